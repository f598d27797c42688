"""Linear algebra on one thread, for small matrices on few cores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["one_blas_thread"]


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within it NumPy and SciPy use one thread, so that threads do not get in each other's way.

    It also makes results the same every time: how a sum is cut into parts depends on the number of
    threads. Only libraries that are loaded can be told, so SciPy's is loaded first.
    """
    import numpy as np  # noqa: F401
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):
        yield
