"""A process that confines itself; `test_contained` sees to whole runtimes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from devices.confinement import OFFLINE, confined_environment

TRY = """
import os, socket, sys
from pathlib import Path
from devices.confinement import confine
inside, outside = Path(sys.argv[1]), Path(sys.argv[2])
means = confine(inside, kernel=sys.argv[3] == "kernel")

def said(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"

print(said(lambda: (inside / "a").write_text("a")))
print(said(lambda: (inside / "a").rename(inside / "b")))
print(said(lambda: Path(os.devnull).write_text("a")))
print(said(lambda: (outside / "there").read_text()))
print(said(lambda: (outside / "a").write_text("a")))
print(said(lambda: (outside / "there").open("a").close()))
print(said(lambda: socket.create_connection(("127.0.0.1", 9), timeout=1)) != "done")
print(means["files"], means["network"])
"""


@pytest.mark.parametrize("by", ["kernel", "hook"])
def test_it_reads_everywhere_and_writes_in_its_folder_only(tmp_path: Path, by: str) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "there").write_text("as it was")
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(inside), str(outside), by],
        capture_output=True,
        text=True,
        check=True,
    )
    *said, means = done.stdout.split("\n")[:-1]
    assert said == ["done"] * 4 + ["PermissionError"] * 2 + ["True"]
    assert sorted(path.name for path in outside.iterdir()) == ["there"]
    assert (outside / "there").read_text() == "as it was"
    if by == "hook":
        assert means == "audit hook audit hook"


def test_the_environment_says_to_stay_offline(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    environment = confined_environment(tmp_path)
    assert environment["HTTPS_PROXY"] == environment["https_proxy"] == OFFLINE["HTTPS_PROXY"]
    assert environment["HF_HUB_OFFLINE"] == "1" and environment["NO_PROXY"] == ""
    assert environment["HOME"] == environment["TMPDIR"] == str(tmp_path)
    assert environment["PATH"] == os.environ["PATH"]
    # What is imported here can be imported there.
    assert str(Path(__file__).parents[2]) in environment["PYTHONPATH"].split(os.pathsep)
