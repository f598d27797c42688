"""Measurements as values: raw samples kept, every statistic derived from them.

`latency_ms` is one defined statistic wherever it appears: the latency of the undisturbed device,
from visits that a sentinel accepts or corrects (`devices.visits`).

- Where the sentinel accepts a quarter of the visits, and `FEW_VISITS` if there are so many: the
  median of their values, corrected for the machine's speed.
- Else, as on a machine that flips between its speeds faster than a visit lasts, the fastest run: if
  two visits agree on it, and the sentinel found the machine undisturbed beside one of them. Nothing
  makes a run faster than it is (`fast_runs`). Visits of the card's speed take longer than the
  fastest run, by what the card's own networks tell: a card that was itself made on such a machine
  is of a speed between the two.
- Else, with `FEW_VISITS` accepted visits or more: as in the first case.
- Else: the median of the corrected values of all visits, or the fastest run but one where that is
  less.

*Undisturbed* is the device of the card, where there is one: a machine may be faster now than when
it was profiled, and a limit has to be kept on the device by which it was given. Networks do not
slow down exactly as the sentinel does, so that values from much slower or faster phases are used
only where there is nothing better, and with a wider interval; see
docs/adr/0010-measuring-with-a-sentinel.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import Any, Self

from devices.errors import InvalidInputError
from devices.runtimes.base import RuntimeSettings
from devices.visits import (
    ACCEPT_RATIO,
    FEW_VISITS,
    MUCH_PREEMPTED,
    Visit,
    bootstrap_error,
    enough,
    fast_runs,
    latency_statistic,
    quantile,
)

__all__ = ["ABOVE_FASTEST", "Measurement", "speed_warning"]

ABOVE_FASTEST = 1.015
"""Visits over the fastest of all runs where no card tells (`Measurement.above_fastest`), 10th
percentile: 1.013 and 1.017 of two networks on a machine that flipped between two speeds, 1.020 in
the median of 47 of a card of a quieter hour."""
_NO_ACCIDENT = 2
"""The fastest run but one bounds a corrected value: a clock that jumped once does not."""
_BETWEEN_SERIES = 0.010
"""Standard error of the logarithm that no number of visits goes below on a real machine, for these
are seconds of its life: 32 series within nine minutes, of 12 to 500 visits to each of 8 networks,
were apart by 1.2 % (standard deviation), 1.0 % beyond what their visits told."""
_OF_A_VISIT = 0.020
"""The same of a single visit, at least: a few that agree by luck prove little."""
_CORRECTION_DEVIATION = 0.3
"""Standard deviation of `CORRECTION` over networks."""


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
        above_fastest: what `latency_ms` is of the fastest runs, on the device as it was profiled.

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
    above_fastest: float = ABOVE_FASTEST

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
        above = 1.0 if self.simulated else self.above_fastest
        if self.fast_runs is not None:
            return above * self.fast_runs[0]
        found = latency_statistic(self.visits, self.sentinel_reference_ms)
        fastest_ms = self._sorted_samples[:_NO_ACCIDENT][-1]
        return min(found, above * fastest_ms) if self.corrected and self.slowdown > 1 else found

    @property
    def p50_ms(self) -> float:
        """Median of all samples as seen, slow phases included; lost cores are not."""
        return quantile(self._sorted_samples, 0.50)

    @property
    def p90_ms(self) -> float:
        """90th percentile of all samples as seen, slow phases included; lost cores are not."""
        return quantile(self._sorted_samples, 0.90)

    @property
    def p99_ms(self) -> float:
        """99th percentile of all samples as seen, slow phases included; lost cores are not."""
        return quantile(self._sorted_samples, 0.99)

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
        corrected = sorted(v.corrected_ms(self.sentinel_reference_ms) for v in self.visits)
        return (quantile(corrected, 0.75) - quantile(corrected, 0.25)) / quantile(corrected, 0.5)

    @cached_property
    def repeatability(self) -> float | None:
        """How far two disjoint halves of the visits disagree on `latency_ms`, as a fraction.

        None with fewer than four visits.
        """
        if len(self.visits) < 4:
            return None
        halves = [latency_statistic(self.visits[i::2], self.sentinel_reference_ms) for i in (0, 1)]
        return math.exp(abs(math.log(halves[0] / halves[1]))) - 1

    @property
    def preempted(self) -> float:
        """Share of the runs that lost their processor to another program, mean over the visits."""
        return sum(visit.preempted for visit in self.visits) / len(self.visits)

    @property
    def accepted(self) -> int:
        """How many visits the sentinel accepts: to a machine about as fast as the device."""
        return sum(visit.accepted(self.sentinel_reference_ms) for visit in self.visits)

    @property
    def slowdown(self) -> float:
        """How much slower than the undisturbed device the machine was, median over the visits."""
        return quantile(sorted(v.slowdown(self.sentinel_reference_ms) for v in self.visits), 0.5)

    @cached_property
    def fast_runs(self) -> tuple[float, float] | None:
        """What `latency_ms` rests on where few visits were accepted: see `fast_runs`."""
        if enough(self.accepted, len(self.visits)):
            return None
        return fast_runs(self.visits, self.sentinel_reference_ms)

    @property
    def corrected(self) -> bool:
        """Whether `latency_ms` had to be worked out from visits to a machine of another speed."""
        off = max(self.slowdown, 1 / self.slowdown)
        return self.accepted < FEW_VISITS and off > ACCEPT_RATIO and self.fast_runs is None

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
            "above_fastest": self.above_fastest,
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
                above_fastest=float(data.get("above_fastest", ABOVE_FASTEST)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(
                "measurement: fields are missing or unreadable; measure again."
            ) from error

    @cached_property
    def standard_error(self) -> float:
        """Standard error of the logarithm of `latency_ms`, from a bootstrap over the visits.

        On a real machine never below what series of visits, and so many visits, are apart. Where it
        had to be corrected for a much slower or faster machine, what that is off by is added; where
        it rests on fast runs, what the two visits are apart.
        """
        least = 0.0 if self.simulated else _BETWEEN_SERIES
        of_visits = 0.0 if self.simulated else _OF_A_VISIT / math.sqrt(len(self.visits))
        if self.fast_runs is not None:
            first, second = self.fast_runs
            return math.hypot(least, max(of_visits, math.log(second / first)))
        spread = bootstrap_error(self.visits, self.sentinel_reference_ms)
        off = _CORRECTION_DEVIATION * math.log(self.slowdown) if self.corrected else 0.0
        return math.hypot(max(of_visits, spread), least, off)

    @cached_property
    def _sorted_samples(self) -> list[float]:
        return sorted(sample for visit in self.visits for sample in visit.samples_ms)

    def _bound(self, deviations: float) -> float:
        return self.latency_ms * math.exp(deviations * self.standard_error)


def speed_warning(measurements: Iterable[Measurement]) -> str | None:
    """What to tell where the machine was hardly ever as fast as its card says; else None."""
    found = [one for one in measurements if one.disturbed]
    slow = [one for one in found if one.slowdown > ACCEPT_RATIO]
    fast = [one for one in found if one.slowdown * ACCEPT_RATIO < 1]
    if fast and not slow:
        worst = min(fast, key=lambda one: one.slowdown)
        return (
            f"the machine was {1 / worst.slowdown:.2f} times faster than when it was profiled, "
            f"while {worst.name} was measured; its latency is stated as of then "
            f"({worst.low_ms:.3g} to {worst.high_ms:.3g} ms): profile the machine anew."
        )
    if not slow:
        return None
    worst = max(slow, key=lambda one: one.slowdown)
    return (
        f"the machine was {worst.slowdown:.2f} times slower than it can be, while {worst.name} was "
        f"measured, so that its latency is uncertain ({worst.low_ms:.3g} to {worst.high_ms:.3g} "
        "ms): measure again when it is quiet, or profile it anew."
    )
