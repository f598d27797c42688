"""Limits as people write them, and what they limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from autospace.cost import Cost, Limit, MaddsCost, Metric, reference_cost
from autospace.coverage import CoveredLatencyCost
from autospace.operations import KernelReading
from autospace.quantities import parse_count, parse_fraction, parse_latency_ms
from autospace.skeleton import Skeleton
from autospace.steps.device import Device
from devices.errors import UsageError

if TYPE_CHECKING:
    from latency import DeviceCard

__all__ = ["STATISTICS", "check_limit_texts", "costs_of", "latency_cost", "limits_of"]

STATISTICS = ("latency", "p50", "p90", "p99")
"""What a limit can be on: ``latency_ms``, or a percentile of all runs, slow phases included."""


def limits_of(
    budget: str | None,
    latency: str | None,
    costs: Mapping[str, Cost],
    *,
    device: Device | None = None,
    statistic: str = STATISTICS[0],
) -> tuple[Limit, ...]:
    """Limits as people write them.

    Args:
        budget: multiply-adds, or a percentage of the reference network's.
        latency: a time, or a percentage of the reference network's.
        costs: by metric.
        device: the opened card, for other statistics than ``latency``.
        statistic: what the latency limit is on; ``p50``, ``p90`` and ``p99``, disturbance
            included, are translated to ``latency_ms`` by the ratio measured in the card.

    Raises:
        UsageError: malformed, or a latency without a device card.
    """
    limits = []
    given: tuple[tuple[Metric, str | None, str, Callable[[str, str], float]], ...] = (
        ("madds", budget, "--budget", parse_count),
        ("latency_ms", latency, "--latency", parse_latency_ms),
    )
    for metric, text, option, parse in given:
        if text is None:
            continue
        if text.strip().endswith("%"):
            fraction = parse_fraction(text, option)
            if metric not in costs:
                raise UsageError(f"{option} {text}: needs a device card; add --device CARD")
            limits.append(Limit(metric, fraction * reference_cost(costs[metric]), text))
            continue
        value = parse(text, option)
        if metric not in costs:
            raise UsageError(f"{option} {text}: needs a device card; add --device CARD")
        if metric == "latency_ms" and statistic != STATISTICS[0] and device is not None:
            ratio = device.card.ratio(statistic)
            value, text = value / ratio, f"{statistic} {text} (÷ {ratio:.3f})"
        limits.append(Limit(metric, value, text))
    return tuple(limits)


def check_limit_texts(budget: str | None, latency: str | None) -> None:
    """Refuses malformed limits before anything is loaded.

    Raises:
        UsageError: malformed.
    """
    if budget is not None:
        parse = parse_fraction if budget.strip().endswith("%") else parse_count
        parse(budget, "--budget")
    if latency is not None:
        (parse_fraction if latency.strip().endswith("%") else parse_latency_ms)(
            latency, "--latency"
        )


def costs_of(
    skeleton: Skeleton, device: Device | None, reading: KernelReading = "kernel"
) -> dict[str, Cost]:
    """Every cost that can be counted: multiply-adds, and latency with a card."""
    costs: dict[str, Cost] = {"madds": MaddsCost(skeleton, reading)}
    if device is not None:
        costs["latency_ms"] = latency_cost(skeleton, device.card, reading)
    return costs


def latency_cost(
    skeleton: Skeleton, card: DeviceCard, reading: KernelReading
) -> CoveredLatencyCost:
    """Latency on a card's device; what the card does not cover is found by its `missing`."""
    from latency import Predictor

    return CoveredLatencyCost(skeleton, Predictor.from_card(card), reading, card.settings.batch)
