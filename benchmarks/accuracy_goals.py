"""The goals that the accuracy report is held against; a miss is shown like a hit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.accuracy import TRANSFORMERS

__all__ = ["Goal", "goals"]

UNTIMED_WITHIN_10 = 0.90
"""Of the networks of the space, on a runtime that times no single operations."""
LEAST_MOBILE = 200
LEAST_TORCHVISION = 28


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure and what it should be.

    Attributes:
        name: of the figure.
        unit: "share" (shown in percent), "count", "per second" or "correlation".
        least: that it should reach; None where there is no such limit.
        most: that it should not exceed; None where there is no such limit.
        value: reached, over networks with a stable truth; None when it was not measured.
        with_unstable: the same with the unstable ones counted as misses, where that differs.
    """

    name: str
    unit: str
    least: float | None
    most: float | None
    value: float | None
    with_unstable: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether it is reached; None when it was not measured."""
        if self.value is None:
            return None
        above = self.least is None or self.value >= self.least
        return above and (self.most is None or self.value <= self.most)

    def to_json(self) -> dict[str, Any]:
        """Every field, and whether the goal is met."""
        return {**asdict(self), "met": self.met}


def goals(result: Mapping[str, Any]) -> tuple[Goal, ...]:
    """The goals with what was reached.

    Args:
        result: of `benchmarks.predictor_accuracy.compute`.
    """
    found = [
        *(
            _share(f"summation within 5 %, {group}", result["summation"][group], "5", 0.99)
            for group in ("mobile", "torchvision")
        ),
        _count("mobile networks", result, "mobile", LEAST_MOBILE),
        _count("torchvision networks", result, "torchvision", LEAST_TORCHVISION),
        Goal(
            "networks with unstable truth",
            "share",
            None,
            0.05,
            result["truth"]["floor"]["unstable_share"],
        ),
    ]
    groups = result["curve"][-1]["groups"]
    mobile, torchvision = groups["mobile"], groups["torchvision"]
    small = groups["small"]["networks"]
    intervals = Goal(
        "mobile intervals that hold",
        "share",
        0.85,
        0.95,
        mobile["stable"].get("interval_coverage"),
        mobile["unstable_as_misses"].get("interval_coverage"),
    )
    if not result["conditions"]["per_op_times"]:
        within = _share("mobile within 10 %", mobile, "10", UNTIMED_WITHIN_10)
        every = mobile["all"]["within_10_percent"]
        label = "the same, unstable ones like any other"
        return within, Goal(label, "share", UNTIMED_WITHIN_10, None, every), intervals, found[-1]
    found += [
        _share("mobile within 10 %", mobile, "10", 0.99),
        _share("mobile within 5 %", mobile, "5", 0.91),
        _share("torchvision within 10 %", torchvision, "10", 0.95),
        *([_share("small within 10 %", groups["small"], "10", 0.90)] if small else []),
        intervals,
        Goal(
            "mobile median half-width",
            "share",
            None,
            0.10,
            mobile["stable"].get("median_half_width"),
        ),
        *(
            Goal(
                f"rank correlation, {name}",
                "correlation",
                0.99,
                None,
                groups[name]["stable"]["rank_correlation"],
            )
            for name in ("mobile", "torchvision")
        ),
    ]
    for name in TRANSFORMERS:
        own = groups[name]["stable"] if groups[name]["networks"] else {}
        worst = own.get("worst") or [{"error": None}]
        error = worst[0]["error"]
        found += [
            Goal(f"{name}: absolute error", "share", None, 0.10, error and abs(error)),
            Goal(f"{name}: coverage", "share", 0.90, None, own.get("coverage_min")),
        ]
    fusion, speed = result["fusion"] or {}, result["speed"] or {}
    expected = speed.get("expected_latency") or {}
    rates = expected.get("speed") or {}
    return (
        *found,
        Goal("kernels as fusion rules say", "share", 0.95, None, fusion.get("share")),
        *(
            Goal(
                f"predictions from ONNX, {name}",
                "per second",
                50,
                None,
                (speed.get(name) or {}).get("from_onnx_per_s"),
            )
            for name in ("mobile", "torchvision")
        ),
        Goal("ExpectedLatency forward", "per second", 1e6, None, rates.get("forward")),
        Goal(
            "ExpectedLatency forward and backward",
            "per second",
            1e6,
            None,
            rates.get("forward_backward"),
        ),
    )


def _share(name: str, group: Mapping[str, Any], percent: str, least: float) -> Goal:
    key = f"within_{percent}_percent"
    return Goal(
        name, "share", least, None, group["stable"][key], group["unstable_as_misses"].get(key)
    )


def _count(name: str, result: Mapping[str, Any], group: str, least: int) -> Goal:
    count = result["curve"][-1]["groups"][group]["networks"]
    return Goal(name, "count", least, None, count)
