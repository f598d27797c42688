"""The picture of a family: cost against held-out accuracy, one panel for each limited metric."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from autospace.cost import Metric
from autospace.quantities import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from autospace.steps import FamilyResult
    from autospace.verify import Candidate

__all__ = ["family_svg"]

_KEPT, _MISSED, _OTHERS, _LIMIT = "#1f5fa8", "#b3261e", "#9aa0a6", "#5f6368"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "autospace",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


def family_svg(family: FamilyResult) -> str:
    """An SVG document; the same family gives the same one.

    Args:
        family: from `autospace.steps.search_pareto`.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    metrics = [limit.metric for limit in family.members[-1].limits]
    # Without pyplot and its global state.
    with matplotlib.rc_context(), io.StringIO() as out:
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(5.4 * len(metrics), 3.6), layout="constrained")
        FigureCanvasSVG(figure)
        for number, metric in enumerate(metrics, 1):
            _panel(figure.add_subplot(1, len(metrics), number), family, metric)
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator")))
        return re.sub(r"[ \t]+\n", "\n", out.getvalue())


def _panel(axes: Axes, family: FamilyResult, metric: Metric) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

    best = [member.chosen.best for member in family.members]
    others = {
        one.choice: one
        for member in family.members
        for row in member.chosen.rounds
        for one in row
        if one not in best
    }
    _points(axes, list(others.values()), metric, _OTHERS, ".", "other candidates")
    kept = [one for one in best if one.kept]
    axes.plot(
        [_cost(one, metric) for one in kept],
        [one.validation_accuracy for one in kept],
        color=_KEPT, linewidth=1.2, alpha=0.6,
    )  # fmt: skip
    _points(axes, kept, metric, _KEPT, "o", "limit kept")
    _points(axes, [one for one in best if not one.kept], metric, _MISSED, "X", "limit missed")
    limits = [
        limit.value
        for member in family.members
        for limit in member.limits
        if limit.metric == metric
    ]
    # A last limit far above everything would leave the networks no room in the picture.
    widest = 2 * max(_cost(one, metric) for one in (*best, *others.values()))
    for number, value in enumerate(one for one in limits if one <= widest):
        axes.axvline(
            value, color=_LIMIT, linestyle=":", linewidth=1.0, label=None if number else "limits"
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: format_count(value) if metric == "madds" else f"{value:g}")
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    measured = all(one.measured is not None for one in best)
    axes.set_xlabel(
        "multiply-adds"
        if metric == "madds"
        else f"latency, {'measured' if measured else 'predicted'} (ms)"
    )
    axes.set_ylabel("held-out accuracy, supernet's weights")
    axes.legend(frameon=False, fontsize=9)


def _points(
    axes: Axes, found: list[Candidate], metric: Metric, colour: str, marker: str, label: str
) -> None:
    if found:
        axes.scatter(
            [_cost(one, metric) for one in found],
            [one.validation_accuracy for one in found],
            color=colour, marker=marker, s=36, label=label,
        )  # fmt: skip


def _cost(one: Candidate, metric: Metric) -> float:
    if metric == "madds":
        return float(one.madds)
    return one.measured.latency_ms if one.measured else one.predicted_ms or 0.0
