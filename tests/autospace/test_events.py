"""Logs survive a kill, and saving is not too frequent."""

import signal
from pathlib import Path

import pytest

from autospace.events import Journal, SaveClock, read_journal, silent, undivided


def test_a_journal_is_read_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    journal.add({"step": 0})
    journal.add({"step": 1, "loss": 0.5})
    assert (
        read_journal(tmp_path / "log.jsonl")
        == journal.lines
        == [
            {"step": 0},
            {"step": 1, "loss": 0.5},
        ]
    )


def test_a_resumed_journal_is_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    first = Journal(path)
    for step in range(5):
        first.add({"step": step})
    resumed = Journal(path, keep=3)
    resumed.add({"step": 3, "again": True})
    assert [line["step"] for line in read_journal(path)] == [0, 1, 2, 3]
    assert read_journal(path)[3]["again"]


def test_a_new_journal_forgets_an_old_one(tmp_path: Path) -> None:
    Journal(tmp_path / "log.jsonl").add({"step": 0})
    assert Journal(tmp_path / "log.jsonl").lines == []
    assert read_journal(tmp_path / "log.jsonl") == []


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": 1, "lo\xff')
    assert read_journal(path) == [{"step": 0}]
    assert Journal(path, keep=2).lines == [{"step": 0}]
    assert path.read_text() == '{"step": 0}\n'


def test_a_journal_without_a_file() -> None:
    journal = Journal(None)
    journal.add({"step": 0})
    assert journal.lines == [{"step": 0}]


def test_a_missing_journal_is_empty(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "none.jsonl") == []


def test_the_clock_comes_due_once_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("autospace.events.time.monotonic", lambda: now[0])
    clock = SaveClock(10)
    assert not clock.due()
    now[0] += 9
    assert not clock.due()
    now[0] += 1
    assert clock.due()
    assert not clock.due()


def test_silent_takes_what_progress_takes(capsys: pytest.CaptureFixture[str]) -> None:
    silent(0.5, "half")
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test runner's worker may ignore Ctrl-C; a terminal's process raises."""
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)


def test_ctrl_c_waits_for_the_end_of_a_step(terminal: None) -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), undivided():
        signal.raise_signal(signal.SIGINT)
        done.append("the rest of the step")
    assert done


def test_an_error_in_a_step_comes_first(terminal: None) -> None:
    with pytest.raises(ValueError, match="broken"), undivided():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("broken")


def test_another_s_handler_stays_in_charge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    monkeypatch.setattr(signal, "signal", lambda *given: pytest.fail("changed"))
    with undivided():
        pass
