"""Workers end with the program that began them, however that ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(what, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_a_killed_program_leaves_no_workers(tmp_path: Path) -> None:
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    program = subprocess.Popen(
        [sys.executable, str(HERE / "sleeping_work.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
    )
    files = [tmp_path / name for name in ("a", "b")]
    try:
        assert until(lambda: all(file.is_file() and file.read_text() for file in files))
        workers = [int(file.read_text()) for file in files]
        assert all(map(alive, workers))
    finally:
        program.kill()
        program.wait()
    assert until(lambda: not any(map(alive, workers)), 10)
