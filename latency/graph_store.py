"""Where compiled graphs wait: in a temporary folder, so that a thousand of them need no memory.

They are gigabytes, and a profiler may be killed at any moment. Each folder is locked by the process
that uses it; a lock ends with its process, so a folder that can be locked was left behind.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

from devices.runtimes.base import CompiledGraph

__all__ = ["GraphStore"]

_PREFIX = "autospace-graphs-"
_LOCK = "lock"


class GraphStore:
    """Compiled graphs in a temporary folder, so that a thousand of them need no memory.

    Args:
        folder: to keep them in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[Path, CompiledGraph]] = {}
        self._count = 0

    @classmethod
    @contextmanager
    def temporary(cls) -> Iterator[Self]:
        """A store in a temporary folder, which goes with it; what killed ones left goes now."""
        parent = Path(tempfile.gettempdir())
        for left in parent.glob(f"{_PREFIX}*"):
            _remove_if_left(left)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        try:
            # Locked before it has its name, so that nobody takes it for one that was left.
            with (folder / f"{_LOCK}.new").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                (folder / f"{_LOCK}.new").rename(folder / _LOCK)
                yield cls(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def put(self, key: str, graph: CompiledGraph) -> None:
        """Keeps a graph under a key."""
        path = self._folder / f"{self._count}.graph"
        self._count += 1
        path.write_bytes(graph.data)
        self._known[key] = (path, replace(graph, data=b"", executed=None))

    def get(self, key: str) -> CompiledGraph:
        """The graph that was kept under the key, as far as it takes to load it."""
        path, bare = self._known[key]
        return replace(bare, data=path.read_bytes())

    def drop(self, key: str) -> None:
        """Forgets a graph that will not be asked for again; others may have been dropped before."""
        if key in self._known:
            self._known.pop(key)[0].unlink(missing_ok=True)


def _remove_if_left(folder: Path) -> None:
    """Removes the folder of a process that is no more; one without a lock is just being made."""
    try:
        with (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # in use, another user's, or gone already
