"""Plots for the page: SVG that is inlined, takes the page's colours, and never changes by itself.

Matplotlib draws with stand-in colours, which are replaced with the page's CSS variables: so one
picture serves light, dark and print. Dates, metadata and random ids are left out.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Point", "Series", "histogram", "lines", "scatter"]

_INK, _GRID, _LIMIT = "#010101", "#020202", "#030303"
_SERIES = ("#040404", "#050505", "#060606", "#070707")
_VARIABLES = {
    _INK: "currentColor",
    _GRID: "var(--line)",
    _LIMIT: "var(--bad)",
    **{colour: f"var(--s{place})" for place, colour in enumerate(_SERIES, 1)},
}
_MOST_POINTS = 300


@dataclass(frozen=True)
class Series:
    """One line of a plot.

    Attributes:
        name: in the legend.
        x: positions.
        y: values; as many.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Point:
    """One candidate, predicted against measured.

    Attributes:
        predicted: milliseconds.
        measured: milliseconds.
        low: lower end of the measurement's interval.
        high: upper end.
        kept: whether it kept the limit.
    """

    predicted: float
    measured: float
    low: float
    high: float
    kept: bool


def lines(
    name: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    limit: tuple[float, str] | None = None,
    percent: bool = False,
) -> str:
    """A line plot; long series are averaged in equal steps.

    Args:
        name: unique on the page; begins the ids in the picture.
        series: at least one.
        x_label: below.
        y_label: at the side.
        limit: value and name of a dashed bound.
        percent: whether values are shares, shown in percent.
    """

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        for colour, one in zip(_SERIES, series, strict=False):
            x, y = _thinned(one)
            mark = "o" if len(x) < 3 else None
            axes.plot(x, y, color=colour, linewidth=1.8, label=one.name, marker=mark, markersize=4)
        if limit is not None:
            axes.axhline(limit[0], color=_LIMIT, linestyle="--", linewidth=1.4, label=limit[1])
        if len(series) > 1 or limit is not None:
            axes.legend(frameon=False, fontsize=9, labelcolor=_INK)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return _picture(name, draw, (4.9, 2.9))


def scatter(name: str, points: Sequence[Point], limit: tuple[float, str] | None) -> str:
    """Predicted against measured latency, with the line where both are equal."""

    def draw(axes: Axes) -> None:
        for kept, colour, marker, label in (
            (True, _SERIES[0], "o", "kept"),
            (False, _LIMIT, "X", "missed"),
        ):
            group = [point for point in points if point.kept is kept]
            if not group:
                continue
            measured = [point.measured for point in group]
            axes.errorbar(
                [point.predicted for point in group],
                measured,
                yerr=[
                    [max(point.measured - point.low, 0.0) for point in group],
                    [max(point.high - point.measured, 0.0) for point in group],
                ],
                fmt=marker,
                color=colour,
                label=label,
                capsize=2.5,
                markersize=5,
                linewidth=1.2,
            )
        values = [v for p in points for v in (p.predicted, p.low, p.high, p.measured)]
        low, high = min(values), max(values)
        room = (high - low) * 0.06 or high * 0.1
        ends = (low - room, high + room)
        axes.plot(ends, ends, color=_INK, linewidth=0.8, alpha=0.5, label="equal")
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        if limit is not None and ends[0] <= limit[0] <= ends[1]:
            axes.axhline(limit[0], color=_LIMIT, linestyle="--", linewidth=1.4, label=limit[1])
        axes.legend(frameon=False, fontsize=9, labelcolor=_INK)
        axes.set_xlabel("predicted (ms)")
        axes.set_ylabel("measured (ms)")

    return _picture(name, draw, (4.9, 3.6))


def histogram(
    name: str, values: Sequence[float], marks: Sequence[tuple[float, str]], x_label: str
) -> str:
    """How values are spread, with named vertical lines."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        axes.hist(values, bins=min(40, max(8, len(values) // 6)), color=_SERIES[0], alpha=0.55)
        styles = ("-", "--", ":", "-.")
        for (value, label), style, colour in zip(
            marks, styles, (_LIMIT, _INK, _INK, _INK), strict=False
        ):
            axes.axvline(value, color=colour, linestyle=style, linewidth=1.4, label=label)
        if marks:
            axes.legend(frameon=False, fontsize=9, labelcolor=_INK)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel(x_label)
        axes.set_ylabel("runs")

    return _picture(name, draw, (4.9, 2.9))


def _thinned(series: Series) -> tuple[list[float], list[float]]:
    size = -(-len(series.x) // _MOST_POINTS)
    if size <= 1:
        return list(series.x), list(series.y)

    def means(values: Sequence[float]) -> list[float]:
        chunks = [values[start : start + size] for start in range(0, len(values), size)]
        return [sum(chunk) / len(chunk) for chunk in chunks]

    return means(series.x), means(series.y)


_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "svg.hashsalt": "autospace",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


def _picture(name: str, draw: Callable[[Axes], None], size: tuple[float, float]) -> str:
    """Draws on the Agg side of matplotlib, without pyplot and its global state."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), io.StringIO() as out:
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
        svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(?::xlink)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    # Ids must be unique on a page that holds many of these pictures.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return re.sub(r"\n\s*", "\n", svg).strip()
