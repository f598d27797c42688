"""Kernels that were measured themselves, and how sure a sum of kernels is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from latency.covariance import Covariance
from latency.kernel import Kernel

__all__ = ["MIN_VISITS", "Hit", "Spread", "hit_of", "kernel_key"]

MIN_VISITS = 3
"""A kernel seen in fewer visits is predicted instead of looked up."""
_UNCOVERED_DEVIATION = 0.85
"""Standard deviation of the logarithm of what a roofline says of an operation never measured, as
found by leaving out one operation of a card after the other (0.75 to 0.9): a network of nothing
else has an interval from a quarter to four times its latency."""
_MEASURED_DEVIATION = 0.03
"""Standard deviation of the logarithm of one kernel's measured time."""
_MAX_KEYS = 16_384
"""Kernels whose key is remembered."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A kernel that was measured: how its time compares to what its family's regressor says."""

    residual: float
    networks: int

    @property
    def deviation(self) -> float:
        """Of the logarithm of its time."""
        return _MEASURED_DEVIATION / math.sqrt(self.networks) + 0.01


@dataclass(frozen=True, eq=False)
class Spread:
    """How sure the times of a network's kernels are.

    Attributes:
        alone: deviation of the logarithm of each kernel that was measured, by its place.
        blocks: places of kernels that were not, one family after the other, with the covariance of
            their logarithms.
        never: places of kernels whose operation was never measured.
    """

    alone: Mapping[int, float]
    blocks: Sequence[tuple[Sequence[int], Covariance]]
    never: Sequence[int] = ()

    def deviation(self, times_ms: Sequence[float]) -> float:
        """Standard deviation of the logarithm of the sum of the kernels' times."""
        import numpy as np

        times = np.array(times_ms)
        variance = sum((times[i] * deviation) ** 2 for i, deviation in self.alone.items())
        variance += float(times[list(self.never)].sum() * _UNCOVERED_DEVIATION) ** 2
        for places, covariance in self.blocks:
            variance += covariance.of_sum(times[list(places)])
        total = float(times.sum())
        return math.sqrt(variance) / total if total else 0.0

    def together(self, times_ms: Sequence[float]) -> float:
        """As `deviation` of what was measured, if all errors went the same way."""
        import numpy as np

        times = np.array(times_ms)
        added = sum(times[i] * deviation for i, deviation in self.alone.items())
        for places, covariance in self.blocks:
            added += float(times[list(places)] @ covariance.deviations)
        total = float(times.sum() - times[list(self.never)].sum())
        return float(added / total) if total else 0.0


@lru_cache(maxsize=_MAX_KEYS)
def kernel_key(kernel: Kernel) -> int:
    """A number that stands for the kernel; equal kernels have equal ones."""
    digest = hashlib.blake2b(kernel.signature.encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def hit_of(found: Sequence[tuple[int, float, int]], without: int | None) -> Hit | None:
    """What was measured of a kernel, one network left out; None when that is too little."""
    others = [(residual, visits) for index, residual, visits in found if index != without]
    if sum(visits for _, visits in others) < MIN_VISITS:
        return None
    ordered = sorted(residual for residual, _ in others)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return Hit(median, len(ordered))
