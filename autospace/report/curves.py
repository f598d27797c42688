"""Plots of logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autospace.report import words
from autospace.report.parts import Figure
from autospace.report.run import RunFolder, number, numbers

__all__ = ["column", "cost_plots", "log_plot", "metrics_of"]


def column(
    lines: Sequence[Mapping[str, Any]], x: str, *path: str
) -> tuple[list[float], list[float]]:
    """Positions and values of one quantity, where both are numbers."""
    xs, ys = [], []
    for line in lines:
        value: Any = line
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        place, found = number(line.get(x)), number(value)
        if place is not None and found is not None:
            xs.append(place)
            ys.append(found)
    return xs, ys


def log_plot(
    name: str,
    lines: Sequence[Mapping[str, Any]],
    x: str,
    columns: Mapping[str, tuple[str, ...]],
    y_label: str,
    caption: str,
    **options: Any,
) -> list[Figure]:
    """A line plot of log columns; none when they hold no numbers."""
    from autospace.report import plots

    series = [plots.Series(label, *column(lines, x, *path)) for label, path in columns.items()]
    series = [one for one in series if one.x]
    if not series:
        return []
    svg = plots.lines(name, series, x_label=x, y_label=y_label, **options)
    return [Figure(svg, caption)]


def metrics_of(lines: Sequence[Mapping[str, Any]], field: str) -> list[str]:
    """The metrics that a log holds; names from a file must not reach a picture's markup."""
    found = {metric for line in lines for metric in numbers(line.get(field))}
    return [metric for metric in words.METRICS if metric in found]


def cost_plots(
    run: RunFolder, name: str, lines: Sequence[Mapping[str, Any]], x: str
) -> list[Figure]:
    """Expected cost against its limit, for every metric that the log holds.

    What an evolution allows the expected network is more than the limit, and then in its log.
    """
    values = {entry["metric"]: float(entry["value"]) for entry in run.limits}
    metrics = metrics_of(lines, "expected")
    figures: list[Figure] = []
    for metric in metrics:
        limit = values.get(metric)
        allowed = numbers(lines[-1].get("allowed")).get(metric, limit)
        scale = 1e6 if metric == "madds" else 1.0
        unit = "million multiply-adds" if metric == "madds" else "ms"
        scaled = [
            {x: line.get(x), "cost": numbers(line.get("expected"))[metric] / scale}
            for line in lines
            if metric in numbers(line.get("expected"))
        ]
        said = ""
        if limit is not None and allowed is not None:
            said = f" against the limit of {words.cost(metric, limit)}"
            if allowed != limit > 0:
                said = (
                    f" with a cell in every block, against {allowed / limit:.3g} times"
                    f" the limit of {words.cost(metric, limit)}"
                )
        figures += log_plot(
            f"{name}-{metric.replace('_', '-')}",
            scaled,
            x,
            {"expected": ("cost",)},
            unit,
            f"Expected {words.METRICS.get(metric, metric)} of the network{said}.",
            limit=None
            if allowed is None
            else (allowed / scale, "limit" if allowed == limit else "allowed"),
        )
    return figures
