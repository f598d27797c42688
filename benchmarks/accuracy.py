"""How good predictions are: answers beside the truth, and the figures that follow.

A *truth* is a network measured whole, with the kernels that the runtime ran and their times in the
same visits. An *answer* is what some method says about it. Errors are fractions of the measured
latency, positive where the answer is too high. Figures come over the networks whose truth is
stable, with the unstable ones counted as misses, and over all as if all were stable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.truth import is_stable
from latency.calibration import Calibration
from latency.card import DeviceCard
from latency.kernel import KernelGraph, KernelNode
from latency.prediction import Prediction
from latency.predictor import Predictor
from latency.table import KernelTable

__all__ = [
    "GROUPS",
    "TRANSFORMERS",
    "Answer",
    "Truth",
    "answers",
    "by_family",
    "by_group",
    "figures",
    "floor",
    "groups_of",
    "own_calibration",
    "read_truth",
    "summed",
]

TRANSFORMERS = ("vit_b_16", "swin_t")
GROUPS = ("mobile", "small", "torchvision")
"""Of networks that figures are given for; see `benchmarks.networks`."""
_WORST = 5


@dataclass(frozen=True, eq=False)
class Truth:
    """A measured network.

    Attributes:
        name: unique.
        group: one of `GROUPS`, or "sweep".
        family: see `benchmarks.networks.Network`.
        whole_ms: its latency.
        repeatability: disagreement of two halves of its visits; None with fewer than four.
        stable: whether that is good enough to judge by.
        visits: how many.
        graph: its kernels.
        kernel_ms: their times in the same visits, profiler on; empty where the runtime has none.
    """

    name: str
    group: str
    family: str
    whole_ms: float
    repeatability: float | None
    stable: bool
    visits: int
    graph: KernelGraph
    kernel_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method says about a network.

    Attributes:
        latency_ms: predicted.
        low_ms: lower end of its interval; None where the method has none.
        high_ms: upper end.
        coverage: share of the time that is on operations that were measured.
        kernel_ms: of each kernel, calibrated; empty where the method has no kernels.
        sources: of each kernel, as `KernelPrediction.source`.
    """

    latency_ms: float
    low_ms: float | None = None
    high_ms: float | None = None
    coverage: float | None = None
    kernel_ms: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Prediction) -> Answer:
        """The predictor's."""
        return cls(
            latency_ms=found.latency_ms,
            low_ms=found.low_ms,
            high_ms=found.high_ms,
            coverage=found.coverage,
            kernel_ms=tuple(k.latency_ms for k in found.kernels),
            sources=tuple(k.source for k in found.kernels),
        )


Answers = Mapping[str, Answer]


def read_truth(card: DeviceCard) -> tuple[Truth, ...]:
    """The networks of a card that `benchmarks.truth.TruthSeries` made."""
    rows = {row.name: row for row in KernelTable.from_card(card, quick=True).networks}
    found = []
    for network in card.networks:
        row = rows.get(network.name)
        if row is None:
            continue
        spec = network.spec or {}
        measured = card.measurement(network)
        parts = zip(network.kernels, network.nodes, network.sources, strict=True)
        found.append(
            Truth(
                name=network.name,
                group=str(spec["group"]),
                family=str(spec["family"]),
                whole_ms=row.whole_ms,
                repeatability=measured.repeatability,
                stable=is_stable(measured),
                visits=row.visits,
                graph=KernelGraph(
                    tuple(
                        KernelNode(kernel, str(place), nodes, sources)
                        for place, (kernel, nodes, sources) in enumerate(parts)
                    )
                ),
                # Times that were worked out of the truth itself are no measurement.
                kernel_ms=row.times_ms if card.per_op_times else (),
            )
        )
    return tuple(found)


def answers(predictor: Predictor, truths: Sequence[Truth]) -> dict[str, Answer]:
    """The predictor's answers by network, from the kernels that the runtime ran."""
    return {t.name: Answer.of(predictor.predict_graph(t.graph)) for t in truths}


def summed(calibration: Calibration, truths: Sequence[Truth]) -> dict[str, Answer]:
    """The sum of each network's own measured kernels, brought to whole networks."""
    return {t.name: Answer(calibration.whole_ms(t.kernel_ms)) for t in truths}


def own_calibration(truths: Sequence[Truth]) -> Calibration:
    """What the truth itself would be calibrated with: tells drift between two series of visits."""
    stable = [t for t in truths if t.stable] or truths
    return Calibration.fit([t.kernel_ms for t in stable], [t.whole_ms for t in stable])


def floor(truths: Sequence[Truth]) -> dict[str, Any]:
    """How repeatable the truth itself is."""
    halves = [t.repeatability for t in truths if t.repeatability is not None]
    unstable = [t.name for t in truths if not t.stable]
    return {
        "networks": len(truths),
        "visits": sum(t.visits for t in truths),
        "unstable": len(unstable),
        "unstable_share": len(unstable) / len(truths) if truths else None,
        "unstable_names": unstable,
        "repeatability_median": _quantile(halves, 0.5),
        "repeatability_p90": _quantile(halves, 0.9),
    }


def groups_of(truths: Sequence[Truth]) -> dict[str, list[Truth]]:
    """The groups that figures are given for, and each transformer alone; may be empty."""
    groups = {name: [t for t in truths if t.group == name] for name in GROUPS}
    return {**groups, **{name: [t for t in truths if t.name == name] for name in TRANSFORMERS}}


def by_group(truths: Sequence[Truth], answered: Answers) -> dict[str, Any]:
    """`figures` of each group, and of each transformer alone, of the networks with an answer."""
    return {
        name: figures([t for t in chosen if t.name in answered], answered)
        for name, chosen in groups_of(truths).items()
    }


def by_family(truths: Sequence[Truth], answered: Answers) -> dict[str, Any]:
    """Torchvision's families: networks, those of stable truth, and their median signed error."""
    families: dict[str, list[Truth]] = {}
    for truth in truths:
        if truth.group == "torchvision":
            families.setdefault(truth.family, []).append(truth)
    return {
        family: {
            "networks": len(own),
            "stable": sum(t.stable for t in own),
            "bias": _quantile([_error(t, answered) for t in own if t.stable], 0.5),
        }
        for family, own in sorted(families.items())
    }


def figures(truths: Sequence[Truth], answered: Answers) -> dict[str, Any]:
    """All figures of one group of networks, as a JSON object.

    Args:
        truths: the group.
        answered: an answer to each of them.
    """
    stable = [t for t in truths if t.stable]
    return {
        "networks": len(truths),
        "stable": _figures(stable, answered),
        "all": _figures(truths, answered),
        "unstable_as_misses": {
            "count": len(truths),
            **{
                name: _share([rule(t, answered[t.name]) for t in stable], len(truths))
                for name, rule in _SHARES.items()
                if not name.startswith("interval") or _has_interval(stable, answered)
            },
        },
    }


def _figures(truths: Sequence[Truth], answered: Answers) -> dict[str, Any]:
    errors = [_error(t, answered) for t in truths]
    given = [answered[t.name] for t in truths]
    found: dict[str, Any] = {
        "count": len(truths),
        "within_5_percent": _share([_within(0.05)(t, answered[t.name]) for t in truths]),
        "within_10_percent": _share([_within(0.10)(t, answered[t.name]) for t in truths]),
        "median_error": _quantile([abs(e) for e in errors], 0.5),
        "p90_error": _quantile([abs(e) for e in errors], 0.9),
        "bias": _quantile(errors, 0.5),
        "rank_correlation": _rank_correlation(truths, given),
        "worst": [
            {"name": t.name, "error": e}
            for e, t in sorted(zip(errors, truths, strict=True), key=lambda pair: -abs(pair[0]))
        ][:_WORST],
    }
    if not _has_interval(truths, answered):
        return found
    widths = [(a.high_ms - a.low_ms) / 2 / a.latency_ms for a in given if a.high_ms and a.low_ms]
    coverages = [a.coverage for a in given if a.coverage is not None]
    totals: dict[str, list[float]] = {"measured": [], "regressed": [], "roofline": []}
    for answer in given:
        for source, shares in totals.items():
            own = sum(
                t for t, s in zip(answer.kernel_ms, answer.sources, strict=True) if s == source
            )
            shares.append(own / sum(answer.kernel_ms))
    return {
        **found,
        "interval_coverage": _share([_inside(t, answered[t.name]) for t in truths]),
        "median_half_width": _quantile(widths, 0.5),
        "coverage_min": min(coverages),
        "coverage_median": _quantile(coverages, 0.5),
        "time_by_source": {source: float(np.mean(shares)) for source, shares in totals.items()},
    }


def _error(truth: Truth, answered: Answers) -> float:
    return answered[truth.name].latency_ms / truth.whole_ms - 1


def _within(limit: float) -> Callable[[Truth, Answer], bool]:
    return lambda truth, answer: abs(answer.latency_ms / truth.whole_ms - 1) <= limit


def _inside(truth: Truth, answer: Answer) -> bool:
    return (answer.low_ms or 0.0) <= truth.whole_ms <= (answer.high_ms or 0.0)


_SHARES: dict[str, Callable[[Truth, Answer], bool]] = {
    "within_5_percent": _within(0.05),
    "within_10_percent": _within(0.10),
    "interval_coverage": _inside,
}


def _has_interval(truths: Sequence[Truth], answered: Answers) -> bool:
    return bool(truths) and all(answered[t.name].low_ms is not None for t in truths)


def _share(hits: Sequence[bool], count: int | None = None) -> float | None:
    total = len(hits) if count is None else count
    return sum(hits) / total if total else None


def _quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.quantile(values, share)) if len(values) else None


def _rank_correlation(truths: Sequence[Truth], given: Sequence[Answer]) -> float | None:
    from scipy.stats import spearmanr

    if len(truths) < 3:
        return None
    found = spearmanr([t.whole_ms for t in truths], [a.latency_ms for a in given])
    return float(found.statistic)
