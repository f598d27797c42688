"""How long work reports its progress and keeps its place.

Work calls a `Progress` with a fraction and a line; the command line draws it. A `Journal` is the
JSON-lines log beside the state, cut back to the resumed step so that no line stands twice.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Journal", "Progress", "SaveClock", "Watch", "silent", "undivided", "unwatched"]

Progress = Callable[[float, str], None]
"""Called with the fraction done (0 to 1) and a line to show."""

Watch = Callable[[Mapping[str, Any]], None]
"""Called with each line that goes into a log."""


def silent(fraction: float, message: str) -> None:
    """A `Progress` that shows nothing."""


def unwatched(line: Mapping[str, Any]) -> None:
    """A `Watch` that looks away."""


@contextmanager
def undivided() -> Iterator[None]:
    """Lets Ctrl-C wait for the end of a step: half a step must not be saved as a whole one.

    Outside the main thread, and where somebody else handles the signal, it does nothing.
    """
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if waiting:
        raise KeyboardInterrupt


class SaveClock:
    """Says when it is time to save: not more often than every few seconds."""

    def __init__(self, every_s: float = 10.0):
        self._every_s = every_s
        self._last_s = time.monotonic()

    def due(self) -> bool:
        """Whether the interval has passed; starts the next one if so."""
        now_s = time.monotonic()
        if now_s - self._last_s < self._every_s:
            return False
        self._last_s = now_s
        return True


class Journal:
    """A JSON-lines log that survives a kill.

    Args:
        path: the file; None keeps the lines in memory only.
        keep: lines of an earlier, interrupted run that stay; later ones are dropped.
    """

    def __init__(self, path: Path | None, keep: int = 0):
        self.lines: list[dict[str, Any]] = []
        self._path = path
        if path is None:
            return
        if keep:
            self.lines = read_journal(path)[:keep]
        path.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")

    def add(self, line: Mapping[str, Any]) -> None:
        """Appends one line."""
        self.lines.append(dict(line))
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(line)) + "\n")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a log; a last line cut short by a kill is left out."""
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
