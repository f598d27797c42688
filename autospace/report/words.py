"""Values of a run as words; what is missing is a dash."""

from __future__ import annotations

from collections.abc import Mapping

from autospace.cost import format_cost
from autospace.quantities import format_count, format_ms
from autospace.report.run import number

__all__ = [
    "METRICS",
    "NONE",
    "cost",
    "count",
    "duration",
    "inline",
    "interval_ms",
    "ms",
    "percent",
    "plain",
    "range_ms",
    "short_cost",
    "strings",
]

NONE = "–"
"""Stands for what is missing."""
METRICS = {"madds": "multiply-adds", "latency_ms": "latency"}
"""Names of the metrics that can be limited."""


def ms(value: object) -> str:
    """A time in milliseconds."""
    found = number(value)
    return NONE if found is None else format_ms(found)


def count(value: object) -> str:
    """A large number, in thousands, millions or billions."""
    found = number(value)
    return NONE if found is None else format_count(found)


def percent(value: object, digits: int = 1) -> str:
    """A share."""
    found = number(value)
    return NONE if found is None else f"{found * 100:.{digits}f} %"


def interval_ms(low: object, high: object) -> str:
    """A 90 % interval; nothing where an end is missing."""
    first, last = number(low), number(high)
    return "" if first is None or last is None else f"90 % interval {first:.3g} to {last:.3g} ms"


def range_ms(low: object, high: object) -> str:
    """From one time to another."""
    first, last = number(low), number(high)
    return NONE if first is None or last is None else f"{first:.3g}–{last:.3g} ms"


def duration(seconds: object) -> str:
    """Seconds, as long ones are said."""
    found = number(seconds)
    if found is None:
        return NONE
    if found < 120:
        return f"{found:.3g} s"
    minutes = round(found / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def cost(metric: str, value: object) -> str:
    """A cost in the unit of its metric."""
    found = number(value)
    if found is None:
        return NONE
    if metric in ("madds", "latency_ms"):
        return format_cost("madds" if metric == "madds" else "latency_ms", found)
    return f"{found:.4g}"


def plain(value: object) -> str:
    """Any value of a JSON document."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value)) or NONE
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {plain(entry)}" for name, entry in value.items()) or NONE
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def strings(value: object) -> list[str]:
    """The entries of a list; none of anything else."""
    return [str(entry) for entry in value] if isinstance(value, list | tuple) else []


def inline(svg: str) -> str:
    """A picture without the namespace that only a file of its own needs."""
    return svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)


def short_cost(metric: str, value: object) -> str:
    """A cost as the verdict says it: multiply-adds without the word."""
    return count(value) if metric == "madds" else cost(metric, value)
