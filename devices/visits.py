"""Short stays at a model, each between two looks at the sentinel, and what several say together.

A shared machine has slow phases of seconds to minutes, so a model is measured in many short visits,
interleaved with those of other models, and a small sentinel network is timed before and after each.
The sentinel says how fast the machine was just then.

A visit's value is the median of its samples, *corrected* by how much slower or faster than its
reference the sentinel was. The sentinel *accepts* a visit when it was within `ACCEPT_RATIO` of
that; a visit during which it changed by more than `STEADY_RATIO` is left out unless nothing else is
there. See docs/adr/0010-measuring-with-a-sentinel.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devices.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

__all__ = [
    "ACCEPT_RATIO",
    "CORRECTION",
    "FEW_VISITS",
    "MUCH_PREEMPTED",
    "STEADY_RATIO",
    "Visit",
    "bootstrap_error",
    "enough",
    "fast_runs",
    "latency_statistic",
    "quantile",
    "quiet_enough",
    "sentinel_reference",
    "tells_more",
]

ACCEPT_RATIO = 1.12
"""A visit within this factor of the sentinel's reference counts, corrected."""
CORRECTION = 0.72
"""Slope of a network's log time over the sentinel's log slowdown, median over networks; from 0.41
to 1.39 (docs/adr/0010-measuring-with-a-sentinel.md)."""
STEADY_RATIO = 1.15
"""A sentinel that changes by more than this during a visit cannot say how fast the machine was."""
FEW_VISITS = 3
"""With so many accepted visits, the others are not needed."""
MUCH_PREEMPTED = 0.5
"""From this share of preempted runs on a measurement is marked as disturbed."""
_UNDISTURBED = 1.06
"""A sentinel within this factor of its reference found the machine at its best."""
_AGREEING = 1.02
"""Fastest runs of two visits within this factor are of one speed."""
_BOOTSTRAPS = 400
_LOW_QUANTILE = 0.10
"""Of a sentinel's times: what it takes on the undisturbed device."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One short stay at a model: its samples, and the sentinel's time just before and after.

    Attributes:
        samples_ms: milliseconds of each run, warm-up left out; at least one.
        sentinel_before_ms: median time of the sentinel before the runs.
        sentinel_after_ms: the same after them.
        preempted: share of the samples whose run lost its processor to another program, 0 to 1;
            see `devices.preemption`.

    Raises:
        InvalidInputError: there is no sample, or a time is not a positive number.
    """

    samples_ms: tuple[float, ...]
    sentinel_before_ms: float
    sentinel_after_ms: float
    preempted: float = 0.0

    def __post_init__(self) -> None:
        times = (*self.samples_ms, self.sentinel_before_ms, self.sentinel_after_ms)
        if not self.samples_ms or not all(math.isfinite(t) and t > 0 for t in times):
            raise InvalidInputError(
                "visit: needs at least one sample, and positive finite times; measure again."
            )
        if not 0 <= self.preempted <= 1:
            raise InvalidInputError(
                f"visit: share of preempted runs {self.preempted} must be 0 to 1; measure again."
            )

    @property
    def median_ms(self) -> float:
        """Median of the samples."""
        ordered = sorted(self.samples_ms)
        middle = len(ordered) // 2
        if len(ordered) % 2:
            return ordered[middle]
        return (ordered[middle - 1] + ordered[middle]) / 2

    @property
    def fastest_ms(self) -> float:
        """The fastest of the samples."""
        return min(self.samples_ms)

    @property
    def sentinel_ms(self) -> float:
        """Geometric mean of the sentinel's two times."""
        return math.sqrt(self.sentinel_before_ms * self.sentinel_after_ms)

    @property
    def steady(self) -> bool:
        """Whether the sentinel was as fast after it as before, and most runs kept their core."""
        low, high = sorted((self.sentinel_before_ms, self.sentinel_after_ms))
        return high <= low * STEADY_RATIO and self.preempted < MUCH_PREEMPTED

    def slowdown(self, reference_ms: float) -> float:
        """How much slower than at its best the machine was; 1.0 is undisturbed."""
        return self.sentinel_ms / reference_ms

    def accepted(self, reference_ms: float) -> bool:
        """Whether the sentinel found the machine about as fast as its reference."""
        return self.steady and 1 / ACCEPT_RATIO <= self.slowdown(reference_ms) <= ACCEPT_RATIO

    def corrected_ms(self, reference_ms: float) -> float:
        """Its value, as if the sentinel had taken what it takes on the undisturbed device."""
        return self.median_ms * math.exp(-CORRECTION * math.log(self.slowdown(reference_ms)))


def sentinel_reference(times_ms: Sequence[float]) -> float:
    """What the sentinel takes on the undisturbed device: the 10th percentile of its times.

    Args:
        times_ms: sentinel times of one series, at least one.

    Raises:
        InvalidInputError: the series is empty.
    """
    if not times_ms:
        raise InvalidInputError("sentinel series: empty; measure again.")
    return quantile(sorted(times_ms), _LOW_QUANTILE)


def fast_runs(visits: Sequence[Visit], reference_ms: float) -> tuple[float, float] | None:
    """The fastest runs of the two quickest visits, if they were on the undisturbed machine.

    Args:
        visits: to one model, at least one.
        reference_ms: the sentinel's time on the undisturbed device.

    Returns:
        Milliseconds, the lower first; None where the two do not agree, or where the sentinel was
        slow before and after every visit that agrees with them. None, too, where it was not slow
        at most visits: there is little to correct then, and the fastest of many runs would be that
        of the luckiest.
    """
    ordered = sorted(visits, key=lambda visit: visit.fastest_ms)
    slowdowns = sorted(visit.slowdown(reference_ms) for visit in visits)
    if len(ordered) < 2 or quantile(slowdowns, 0.5) <= STEADY_RATIO:
        return None
    first, second = ordered[0].fastest_ms, ordered[1].fastest_ms
    agreeing = [visit for visit in ordered if visit.fastest_ms <= first * _AGREEING]
    seen_ms = min(min(one.sentinel_before_ms, one.sentinel_after_ms) for one in agreeing)
    if len(agreeing) < 2 or seen_ms > reference_ms * _UNDISTURBED:
        return None
    return first, second


def quiet_enough(visits: Sequence[Visit], reference_ms: float) -> bool:
    """Whether enough of the visits says how fast the undisturbed device is.

    A quarter of them was accepted, and `FEW_VISITS` where there are so many; or two agree on their
    fastest run (`fast_runs`).

    Args:
        visits: to one model, at least one.
        reference_ms: the sentinel's time on the undisturbed device.
    """
    if fast_runs(visits, reference_ms) is not None:
        return True
    return enough(sum(visit.accepted(reference_ms) for visit in visits), len(visits))


def tells_more(visit: Visit, visits: Sequence[Visit], reference_ms: float) -> bool:
    """Whether one more visit says something of the undisturbed device that others do not.

    It was accepted, or its fastest run is among the two fastest. While a slow machine is waited
    for, hundreds of visits are neither: with them, those that come when it is fast at last would
    never be a quarter of all.

    Args:
        visit: the one more.
        visits: to the same model before, at least one.
        reference_ms: the sentinel's time on the undisturbed device.
    """
    fastest = sorted(one.fastest_ms for one in visits)
    among_two = len(fastest) < 2 or visit.fastest_ms < fastest[1]
    return among_two or visit.accepted(reference_ms)


def latency_statistic(visits: Sequence[Visit], reference_ms: float) -> float:
    """What visits say together: the median of the corrected values of accepted ones.

    Where fewer than `FEW_VISITS` were accepted it is that of all that were steady, or of all if
    none was.

    Args:
        visits: to one model, at least one.
        reference_ms: the sentinel's time on the undisturbed device.

    Returns:
        Milliseconds.
    """
    import numpy as np

    return float(_statistics(visits, reference_ms, np.arange(len(visits))[None])[0])


def bootstrap_error(visits: Sequence[Visit], reference_ms: float) -> float:
    """Standard error of the logarithm of `latency_statistic`, from a bootstrap over the visits."""
    import numpy as np

    count = len(visits)
    picks = np.random.default_rng(0).integers(0, count, size=(_BOOTSTRAPS, count))
    return float(np.log(_statistics(visits, reference_ms, picks)).std())


def enough(accepted: int, visits: int) -> bool:
    """Whether so many accepted visits say how fast the undisturbed device is."""
    return accepted >= min(FEW_VISITS, visits) and accepted * 4 >= visits


def quantile(ordered: Sequence[float], share: float) -> float:
    """Linear interpolation between the sorted values, as numpy does it by default."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _statistics(
    visits: Sequence[Visit], reference_ms: float, picks: npt.NDArray[np.int64]
) -> Array:
    """`latency_statistic` of some of the visits in each row of `picks`, shape `(rows,)`."""
    import numpy as np

    values = np.array([visit.corrected_ms(reference_ms) for visit in visits])[picks]
    steady = np.array([visit.steady for visit in visits])[picks]
    accepted = np.array([visit.accepted(reference_ms) for visit in visits])[picks]
    usable = steady | ~steady.any(axis=1, keepdims=True)
    few = accepted.sum(axis=1, keepdims=True) < FEW_VISITS
    return _row_medians(values, np.where(few, usable, accepted))


def _row_medians(values: Array, usable: npt.NDArray[np.bool_]) -> Array:
    """Median of each row over its usable values, of which there is at least one."""
    import numpy as np

    ordered = np.sort(np.where(usable, values, np.inf), axis=1)
    count = usable.sum(axis=1)
    rows = np.arange(len(ordered))
    return np.asarray((ordered[rows, (count - 1) // 2] + ordered[rows, count // 2]) / 2)
