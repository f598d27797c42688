"""Python's search for cycles, put off while many objects are made that hold none."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["uncollected"]


@contextmanager
def uncollected() -> Iterator[None]:
    """Puts off the collection of cycles in the whole process, for some milliseconds.

    Reading a network makes a hundred thousand small objects; each few hundred of them make Python
    look through all that there are, which was a seventh of the time.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
