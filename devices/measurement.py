"""Measurements as values: raw samples kept, every statistic derived from them.

A shared machine has slow phases of seconds to minutes, so a model is measured in many short visits,
interleaved with those of other models, and a small sentinel network is timed before and after each.
The sentinel says how fast the machine was just then.

`latency_ms` is one defined statistic wherever it appears: the latency of the undisturbed device.
A visit's value is the median of its samples. The sentinel *accepts* a visit when it was within
`ACCEPT_RATIO` of its reference, and *corrects* one by its slowdown; a visit during which the
sentinel itself changed by more than `STEADY_RATIO` is left out unless nothing else is there.

- Where the sentinel accepts a quarter of the visits, and `FEW_VISITS` if there are so many: their
  10th percentile.
- Else, as on a machine that flips between its speeds faster than a visit lasts, the fastest run: if
  two visits agree on it, and the sentinel found the machine undisturbed beside one of them. Nothing
  makes a run faster than it is (`fast_runs`).
- Else, with `FEW_VISITS` accepted visits or more: the 10th percentile of their values.
- Else: the median of the corrected values of all visits, or the fastest run but one where that is
  less.

Slow phases do not hit every network as they hit the sentinel, so that corrected values of slow
visits are used only where there is nothing better, and with a wider interval; see
docs/adr/0010-measuring-with-a-sentinel.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Self

from devices.errors import InvalidInputError
from devices.runtimes.base import RuntimeSettings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

__all__ = [
    "ABOVE_FASTEST",
    "ACCEPT_RATIO",
    "FEW_VISITS",
    "MUCH_PREEMPTED",
    "STEADY_RATIO",
    "Measurement",
    "Visit",
    "fast_runs",
    "latency_statistic",
    "quiet_enough",
    "sentinel_reference",
    "slow_warning",
]

ACCEPT_RATIO = 1.06
"""A visit within this factor of the sentinel's reference counts as undisturbed."""
STEADY_RATIO = 1.15
"""A sentinel that changes by more than this during a visit cannot say how fast the machine was."""
FEW_VISITS = 3
"""With so many accepted visits, the others are not needed."""
MUCH_PREEMPTED = 0.5
"""From this share of preempted runs on a measurement is marked as disturbed."""
ABOVE_FASTEST = 1.015
"""`latency_ms` of accepted visits over the fastest of all runs: 1.013 and 1.017 of two networks on
a machine that flipped between two speeds, 1.020 in the median of 47 of a card of a quieter hour."""
_AGREEING = 1.02
"""Fastest runs of two visits within this factor are of one speed."""
_NO_ACCIDENT = 2
"""The fastest run but one bounds a corrected value: a clock that jumped once does not."""
_LOW_QUANTILE = 0.10
_BOOTSTRAPS = 400
_FLOOR_AT_8_VISITS = 0.013
"""Standard error of the logarithm that 8 visits cannot go below on a real machine: the 90th
percentile of the disagreement of two halves of 8 visits was 3 %, that is 1.3 % for one half."""
_CORRECTION_DEVIATION = 0.3
"""Standard deviation, over networks, of the slope of log time over log slowdown of the sentinel:
0.72 in the median, from 0.41 to 1.39 (docs/adr/0010-measuring-with-a-sentinel.md)."""


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
        """Whether the sentinel found the machine as fast as it can be."""
        return self.steady and self.slowdown(reference_ms) <= ACCEPT_RATIO


def sentinel_reference(times_ms: Sequence[float]) -> float:
    """What the sentinel takes on the undisturbed device: the 10th percentile of its times.

    Args:
        times_ms: sentinel times of one series, at least one.

    Raises:
        InvalidInputError: the series is empty.
    """
    if not times_ms:
        raise InvalidInputError("sentinel series: empty; measure again.")
    return _quantile(sorted(times_ms), _LOW_QUANTILE)


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
    if len(ordered) < 2 or _quantile(slowdowns, 0.5) <= STEADY_RATIO:
        return None
    first, second = ordered[0].fastest_ms, ordered[1].fastest_ms
    agreeing = [visit for visit in ordered if visit.fastest_ms <= first * _AGREEING]
    seen_ms = min(min(one.sentinel_before_ms, one.sentinel_after_ms) for one in agreeing)
    if len(agreeing) < 2 or seen_ms > reference_ms * ACCEPT_RATIO:
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
    return _enough(sum(visit.accepted(reference_ms) for visit in visits), len(visits))


def latency_statistic(
    values_ms: Sequence[float], slowdowns: Sequence[float], steady: Sequence[bool]
) -> float:
    """`latency_ms` of visits, as the module's docstring defines it.

    Args:
        values_ms: value of each visit, shape `(visits,)`, at least one.
        slowdowns: slowdown of each visit, same shape.
        steady: whether the sentinel was steady during each visit, same shape.

    Returns:
        Milliseconds.
    """
    import numpy as np

    return float(
        _statistic(
            np.asarray(values_ms, dtype=np.float64)[None],
            np.asarray(slowdowns, dtype=np.float64)[None],
            np.asarray(steady, dtype=bool)[None],
        )[0]
    )


@dataclass(frozen=True)
class Measurement:
    """Everything known about one model's latency; a value, comparable and JSON-able.

    Attributes:
        name: what the caller calls the model.
        visits: at least one.
        sentinel_reference_ms: the sentinel's time on the undisturbed device.
        runtime: name of the runtime.
        runtime_version: its version.
        settings: threads, precision and batch.
        simulated: whether the times were computed instead of measured.

    Raises:
        InvalidInputError: there is no visit, or the reference is not positive.
    """

    name: str
    visits: tuple[Visit, ...]
    sentinel_reference_ms: float
    runtime: str
    runtime_version: str
    settings: RuntimeSettings = field(default_factory=RuntimeSettings)
    simulated: bool = False

    def __post_init__(self) -> None:
        if not self.visits:
            raise InvalidInputError(f"measurement {self.name!r}: has no visits; measure again.")
        if not (math.isfinite(self.sentinel_reference_ms) and self.sentinel_reference_ms > 0):
            raise InvalidInputError(
                f"measurement {self.name!r}: sentinel reference {self.sentinel_reference_ms} must "
                "be positive; measure again."
            )

    @cached_property
    def latency_ms(self) -> float:
        """Latency of the undisturbed device; see the module's docstring."""
        above = 1.0 if self.simulated else ABOVE_FASTEST
        if self.fast_runs is not None:
            return above * self.fast_runs[0]
        found = latency_statistic(*self._columns)
        fastest_ms = self._sorted_samples[:_NO_ACCIDENT][-1]
        return min(found, above * fastest_ms) if self.corrected else found

    @property
    def p50_ms(self) -> float:
        """Median of all samples as seen, slow phases included; lost cores are not."""
        return _quantile(self._sorted_samples, 0.50)

    @property
    def p90_ms(self) -> float:
        """90th percentile of all samples as seen, slow phases included; lost cores are not."""
        return _quantile(self._sorted_samples, 0.90)

    @property
    def p99_ms(self) -> float:
        """99th percentile of all samples as seen, slow phases included; lost cores are not."""
        return _quantile(self._sorted_samples, 0.99)

    @property
    def low_ms(self) -> float:
        """Lower end of the two-sided 90 % interval of `latency_ms`."""
        return self._bound(-NormalDist().inv_cdf(0.95))

    @property
    def high_ms(self) -> float:
        """Upper end of the two-sided 90 % interval of `latency_ms`."""
        return self._bound(NormalDist().inv_cdf(0.95))

    def upper_ms(self, confidence: float = 0.95) -> float:
        """One-sided upper bound of `latency_ms`.

        Args:
            confidence: between 0.5 and 1; for the smallest of k candidates give 1 - 0.05 / k.

        Raises:
            InvalidInputError: the confidence is out of range.
        """
        if not 0.5 <= confidence < 1:
            raise InvalidInputError(
                f"confidence {confidence}: must be at least 0.5 and below 1; give 0.95, say."
            )
        return self._bound(NormalDist().inv_cdf(confidence))

    @property
    def spread(self) -> float:
        """Interquartile range of the corrected visits over their median; 0 with one visit."""
        values, slowdowns, _ = self._columns
        corrected = sorted(v / s for v, s in zip(values, slowdowns, strict=True))
        return (_quantile(corrected, 0.75) - _quantile(corrected, 0.25)) / _quantile(corrected, 0.5)

    @cached_property
    def repeatability(self) -> float | None:
        """How far two disjoint halves of the visits disagree on `latency_ms`, as a fraction.

        None with fewer than four visits.
        """
        if len(self.visits) < 4:
            return None
        values, slowdowns, steady = self._columns
        halves = [latency_statistic(values[i::2], slowdowns[i::2], steady[i::2]) for i in (0, 1)]
        return math.exp(abs(math.log(halves[0] / halves[1]))) - 1

    @property
    def preempted(self) -> float:
        """Share of the runs that lost their processor to another program, mean over the visits."""
        return sum(visit.preempted for visit in self.visits) / len(self.visits)

    @property
    def accepted(self) -> int:
        """How many visits the sentinel accepts: that found the machine as fast as it can be."""
        return sum(visit.accepted(self.sentinel_reference_ms) for visit in self.visits)

    @property
    def slowdown(self) -> float:
        """How much slower than at its best the machine was, median over the visits."""
        return _quantile(sorted(self._columns[1]), 0.5)

    @cached_property
    def fast_runs(self) -> tuple[float, float] | None:
        """What `latency_ms` rests on where few visits were accepted: see `fast_runs`."""
        if _enough(self.accepted, len(self.visits)):
            return None
        return fast_runs(self.visits, self.sentinel_reference_ms)

    @property
    def corrected(self) -> bool:
        """Whether `latency_ms` had to be worked out from visits to a slow machine."""
        return (
            self.accepted < FEW_VISITS and self.slowdown > ACCEPT_RATIO and self.fast_runs is None
        )

    @property
    def disturbed(self) -> bool:
        """Whether hardly a run is known to have found the machine undisturbed.

        Under a quarter of the visits was accepted, and no two agree on a fastest run; or half of
        the runs lost their processor.
        """
        if self.preempted >= MUCH_PREEMPTED:
            return True
        return self.accepted * 4 < len(self.visits) and self.fast_runs is None

    def to_json(self) -> dict[str, Any]:
        """A JSON object: the derived figures for people, and the raw samples."""
        return {
            "name": self.name,
            "runtime": self.runtime,
            "runtime_version": self.runtime_version,
            "settings": self.settings.to_json(),
            "simulated": self.simulated,
            "latency_ms": self.latency_ms,
            "low_ms": self.low_ms,
            "high_ms": self.high_ms,
            "p50_ms": self.p50_ms,
            "p90_ms": self.p90_ms,
            "p99_ms": self.p99_ms,
            "spread": self.spread,
            "repeatability": self.repeatability,
            "disturbed": self.disturbed,
            "preempted": self.preempted,
            "sentinel_reference_ms": self.sentinel_reference_ms,
            "visits": [
                {
                    "samples_ms": list(visit.samples_ms),
                    "sentinel_before_ms": visit.sentinel_before_ms,
                    "sentinel_after_ms": visit.sentinel_after_ms,
                    "preempted": visit.preempted,
                }
                for visit in self.visits
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The measurement from what `to_json` gave; derived figures are computed anew.

        Raises:
            InvalidInputError: a field is missing or breaks its rule.
        """
        try:
            return cls(
                name=str(data["name"]),
                visits=tuple(
                    Visit(
                        tuple(float(x) for x in visit["samples_ms"]),
                        float(visit["sentinel_before_ms"]),
                        float(visit["sentinel_after_ms"]),
                        float(visit.get("preempted", 0.0)),
                    )
                    for visit in data["visits"]
                ),
                sentinel_reference_ms=float(data["sentinel_reference_ms"]),
                runtime=str(data["runtime"]),
                runtime_version=str(data["runtime_version"]),
                settings=RuntimeSettings.from_json(data["settings"]),
                simulated=bool(data["simulated"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(
                "measurement: fields are missing or unreadable; measure again."
            ) from error

    @cached_property
    def standard_error(self) -> float:
        """Standard error of the logarithm of `latency_ms`, from a bootstrap over the visits.

        On a real machine never below what was seen between two halves of as many visits: a few
        visits that agree by luck prove little. Where it had to be corrected for a slow machine,
        what that is off by is added; where it rests on fast runs, what the two visits are apart.
        """
        import numpy as np

        count = len(self.visits)
        if self.fast_runs is not None:
            first, second = self.fast_runs
            least = 0.0 if self.simulated else _FLOOR_AT_8_VISITS * math.sqrt(8 / count)
            return math.hypot(least, math.log(second / first))
        values, slowdowns, steady = (np.asarray(column) for column in self._columns)
        picks = np.random.default_rng(0).integers(0, count, size=(_BOOTSTRAPS, count))
        replicas = _statistic(values[picks], slowdowns[picks], steady[picks])
        floor = 0.0 if self.simulated else _FLOOR_AT_8_VISITS * math.sqrt(8 / count)
        off = _CORRECTION_DEVIATION * math.log(self.slowdown) if self.corrected else 0.0
        return math.hypot(float(np.log(replicas).std()), floor, off)

    @cached_property
    def _columns(self) -> tuple[list[float], list[float], list[bool]]:
        return (
            [visit.median_ms for visit in self.visits],
            [visit.slowdown(self.sentinel_reference_ms) for visit in self.visits],
            [visit.steady for visit in self.visits],
        )

    @cached_property
    def _sorted_samples(self) -> list[float]:
        return sorted(sample for visit in self.visits for sample in visit.samples_ms)

    def _bound(self, deviations: float) -> float:
        return self.latency_ms * math.exp(deviations * self.standard_error)


def slow_warning(measurements: Iterable[Measurement]) -> str | None:
    """What to tell where the machine was hardly ever as fast as it can be; None where it was."""
    slow = [one for one in measurements if one.disturbed and one.slowdown > ACCEPT_RATIO]
    if not slow:
        return None
    worst = max(slow, key=lambda one: one.slowdown)
    return (
        f"the machine was {worst.slowdown:.2f} times slower than it can be, while {worst.name} was "
        f"measured, so that its latency is uncertain ({worst.low_ms:.3g} to {worst.high_ms:.3g} "
        "ms): measure again when it is quiet, or profile it anew."
    )


def _enough(accepted: int, visits: int) -> bool:
    """Whether so many accepted visits say how fast the undisturbed device is."""
    return accepted >= min(FEW_VISITS, visits) and accepted * 4 >= visits


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear interpolation between the sorted values, as numpy does it by default."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _statistic(values: Array, slowdowns: Array, steady: npt.NDArray[np.bool_]) -> Array:
    """`latency_statistic` of each row; shapes `(rows, visits)` in, `(rows,)` out."""
    import numpy as np

    usable = np.where(steady.any(axis=1, keepdims=True), steady, True)
    accepted = usable & (slowdowns <= ACCEPT_RATIO) & (slowdowns >= 1 / ACCEPT_RATIO)
    count = accepted.sum(axis=1, keepdims=True)
    enough = count[:, 0] >= FEW_VISITS
    return np.where(
        enough,
        _row_quantile(values, np.where(enough[:, None], accepted, usable), _LOW_QUANTILE),
        _row_quantile(values / slowdowns, usable, 0.5),
    )


def _row_quantile(values: Array, usable: npt.NDArray[np.bool_], share: float) -> Array:
    """Quantile of each row over its usable values, of which there is at least one."""
    import numpy as np

    ordered = np.sort(np.where(usable, values, np.inf), axis=1)
    place = share * (usable.sum(axis=1) - 1)
    below = np.floor(place).astype(np.intp)
    above = np.ceil(place).astype(np.intp)
    rows = np.arange(len(ordered))
    start = ordered[rows, below]
    return np.asarray(start + (ordered[rows, above] - start) * (place - below))
