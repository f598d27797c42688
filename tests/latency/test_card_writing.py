"""A card is written by one process at a time, survives a full disk, and says what is wrong."""

import ctypes
import os
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devices.errors import AutospaceError, InvalidInputError
from latency import DeviceCard, profile_device
from latency.card_errors import writing
from latency.card_writer import CardWriter

COMMAND = (sys.executable, "-c", "from autospace.cli import main; main()")
PROFILE = ("profile-device", "--runtime", "simulated", "--rounds", "6", "-o")
GOES_ON = "free some space and repeat the command, it goes on from there."
_DROP_FROM_BOUNDS, _OVERRIDE, _READ_SEARCH = 24, 1, 2


def autospace(*arguments: str, limit: Callable[[], None] | None = None) -> tuple[int, str, str]:
    """Exit code, output and the last line of the errors of the command line, as a process."""
    done = subprocess.run(
        (*COMMAND, *arguments), capture_output=True, text=True, check=False, preexec_fn=limit
    )
    assert "Traceback" not in done.stderr
    assert "a fault of autospace" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("profiling ")]
    assert len(lines) <= 1, lines
    return done.returncode, done.stdout, "".join(lines)


def small_files(kib: int) -> Callable[[], None]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, kib * 1024))

    return limit


def no_override() -> None:
    """Makes permissions count for root too."""
    prctl = ctypes.CDLL(None).prctl
    for capability in (_OVERRIDE, _READ_SEARCH):
        prctl(_DROP_FROM_BOUNDS, capability, 0, 0, 0)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ("mount", "-t", "tmpfs", "-o", "size=300k", "none", str(folder)),
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    yield folder
    subprocess.run(("umount", str(folder)), check=True)


# -- a full disk -----------------------------------------------------------------------------------


@pytest.mark.needs_hardware
def test_a_full_disk_stops_the_profile_and_keeps_the_card(tiny_disk: Path) -> None:
    card = tiny_disk / "d.card"
    code, _, line = autospace(*PROFILE, str(card))
    assert code == 1
    assert line.startswith(f"autospace: error: {card}: disk is full")
    assert line.endswith(GOES_ON)
    assert not DeviceCard.open(card).complete
    code, output, _ = autospace("inspect", str(card))
    assert code == 0 and "UNFINISHED" in output
    subprocess.run(("mount", "-o", "remount,size=20m", str(tiny_disk)), check=True)
    assert autospace(*PROFILE, str(card))[0] == 0
    assert DeviceCard.open(card).complete
    assert [path.name for path in tiny_disk.iterdir()] == ["d.card"]


@pytest.mark.needs_hardware
def test_a_card_is_read_where_nothing_can_be_written(tiny_disk: Path) -> None:
    card = tiny_disk / "d.card"
    assert autospace(*PROFILE, str(card))[0] == 1
    Path(f"{card}-shm").unlink(missing_ok=True)  # as after a restart of the machine
    with open(tiny_disk / "fill", "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(512))
    assert not DeviceCard.open(card).complete
    code, _, line = autospace(*PROFILE, str(card))
    assert code == 1 and line.endswith(GOES_ON)


def test_no_card_is_left_when_none_could_be_made(tmp_path: Path) -> None:
    card = tmp_path / "c.card"
    code, _, line = autospace(*PROFILE, str(card), limit=small_files(12))
    assert code == 1
    assert f"{card}: disk is full" in line and line.endswith(GOES_ON)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kib", [60, 120, 400])
def test_a_limit_on_files_is_a_full_disk(tmp_path: Path, kib: int) -> None:
    card = tmp_path / "c.card"
    code, _, line = autospace(*PROFILE, str(card), limit=small_files(kib))
    assert code == 1
    assert f"{card}: disk is full" in line and line.endswith(GOES_ON)
    assert autospace("inspect", str(card))[0] == 0
    whole = profile_device(card, runtime="simulated", rounds=6)
    assert whole.complete
    other = profile_device(tmp_path / "other.card", runtime="simulated", rounds=6)
    assert whole.fingerprint == other.fingerprint


def test_a_failed_commit_leaves_the_writer_usable(tmp_path: Path, simulated_card) -> None:
    path = tmp_path / "c.card"
    path.write_bytes(simulated_card.path.read_bytes())
    with CardWriter(path) as writer:
        with pytest.raises(AutospaceError, match="disk is full"), writer._transaction():
            raise OSError(28, "No space left on device")
        with pytest.raises(KeyError), writer._transaction():
            raise KeyError("x")
        writer.put(note="after")
        assert writer.get("note") == "after"


def test_a_finished_card_that_was_not_folded_is_made_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.card"
    killed = {}

    def fold(writer: CardWriter) -> None:
        for suffix in ("", "-wal"):
            killed[suffix] = Path(f"{path}{suffix}").read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr(CardWriter, "fold", fold)
        profile_device(path, runtime="simulated", rounds=2)
    for suffix, data in killed.items():
        Path(f"{path}{suffix}").write_bytes(data)
    assert DeviceCard.open(path).complete
    assert profile_device(path, runtime="simulated", rounds=2).complete
    assert os.listdir(tmp_path) == ["c.card"]


# -- permissions -----------------------------------------------------------------------------------


def test_a_read_only_card_is_not_called_damaged(tmp_path: Path) -> None:
    card = tmp_path / "c.card"
    profile_device(card, runtime="simulated", rounds=1)
    card.chmod(0o444)
    code, _, line = autospace(*PROFILE, str(card), "--update", limit=no_override)
    assert code == 1
    assert f"{card}: cannot be written" in line and "writable" in line
    assert autospace("inspect", str(card), limit=no_override)[0] == 0
    card.chmod(0o000)
    for command in (("inspect", str(card)), (*PROFILE, str(card))):
        code, _, line = autospace(*command, limit=no_override)
        assert code == 1 and f"{card}: cannot be read (Permission denied)" in line


def test_a_read_only_folder(tmp_path: Path) -> None:
    card = tmp_path / "c.card"
    profile_device(card, runtime="simulated", rounds=1)
    with CardWriter(card):  # an open card needs files of SQLite's own beside it, even to read
        tmp_path.chmod(0o555)
        try:
            assert autospace("inspect", str(card), limit=no_override)[0] == 0
            code, _, line = autospace(*PROFILE, str(card), "--update", limit=no_override)
            assert code == 1 and "Permission denied" in line and "permission to write" in line
            code, _, line = autospace(*PROFILE, str(tmp_path / "new"), limit=no_override)
            assert code == 2 and "new: cannot be written (Permission denied)" in line
        finally:
            tmp_path.chmod(0o755)


def test_an_unfolded_card_in_a_read_only_folder_is_read(tmp_path: Path) -> None:
    source, folder = tmp_path / "c.card", tmp_path / "readonly"
    profile_device(source, runtime="simulated", rounds=1)
    folder.mkdir()
    with CardWriter(source) as writer:
        writer.put(complete=False)
        for suffix in ("", "-wal"):
            Path(f"{folder / 'c.card'}{suffix}").write_bytes(Path(f"{source}{suffix}").read_bytes())
    folder.chmod(0o555)
    try:
        code, output, _ = autospace("inspect", str(folder / "c.card"), limit=no_override)
    finally:
        folder.chmod(0o755)
    assert code == 0 and "UNFINISHED" in output


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (sqlite3.SQLITE_FULL, "disk is full"),
        (sqlite3.SQLITE_IOERR_WRITE, "disk is full, or a limit"),
        (sqlite3.SQLITE_IOERR_READ, "check the disk"),
        (sqlite3.SQLITE_READONLY, "writable"),
        (sqlite3.SQLITE_CANTOPEN, "writable"),
        (sqlite3.SQLITE_BUSY, "in use by another program"),
        (sqlite3.SQLITE_CORRUPT, "damaged device card"),
    ],
)
def test_each_cause_has_its_line(code: int, words: str) -> None:
    error = sqlite3.OperationalError("what SQLite\nsays")
    error.sqlite_errorcode = code
    with pytest.raises(AutospaceError, match=words) as caught, writing(Path("c.card")):
        raise error
    assert str(caught.value).startswith("c.card: ") and "\n" not in str(caught.value)


def test_other_errors_of_the_system_pass() -> None:
    with pytest.raises(ConnectionError), writing(Path("c.card")):
        raise ConnectionError("not about the card")


# -- two at once -----------------------------------------------------------------------------------


def test_the_second_of_two_profilers_ends_at_once(tmp_path: Path) -> None:
    card = tmp_path / "c.card"
    arguments = ("profile-device", "--rounds", "3", "-o", str(card))
    first = subprocess.Popen(
        (*COMMAND, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        until = time.monotonic() + 60
        while not card.exists() and first.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        code, output, line = autospace(*arguments)
        assert first.poll() is None, "the first was over before the second began"
        assert (code, output) == (2, "")
        assert line == (
            f"autospace: usage: {card}: another profiler is writing this card; wait for it or give "
            "another path."
        )
        assert autospace("inspect", str(card))[0] == 0
    finally:
        errors = first.communicate(timeout=200)[1]
    assert first.returncode == 0, errors
    assert DeviceCard.open(card).complete
    assert os.listdir(tmp_path) == ["c.card"]


def test_a_lock_left_behind_by_a_killed_profiler_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "c.card.lock").touch()
    assert profile_device(tmp_path / "c.card", runtime="simulated", rounds=1).complete


def test_a_damaged_card_is_still_called_damaged(tmp_path: Path, simulated_card) -> None:
    path = tmp_path / "c.card"
    data = bytearray(simulated_card.path.read_bytes())
    data[5000:9000] = bytes(4000)
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match="damaged"):
        CardWriter(path)
