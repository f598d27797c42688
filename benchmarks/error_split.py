"""Where the error of a prediction comes from.

With P the prediction, S the sum of the network's own measured kernels and W the measured whole (all
brought to whole networks by the same calibration), P/W = (P/S)·(S/W): the error of the kernels
times the error of summation. Beside them stands the repeatability of W, which bounds both. The
kernels' error is split further by family; every network counts the same, whatever it takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.accuracy import Answer, Truth
from latency.calibration import Calibration

__all__ = ["error_split"]

_COSTLIEST = 15


def error_split(
    truths: Sequence[Truth], answered: Mapping[str, Answer], calibration: Calibration
) -> dict[str, Any]:
    """The split over the stable networks of one group, as a JSON object.

    Args:
        truths: the group.
        answered: the predictor's answers, with kernels.
        calibration: of that predictor.

    Returns:
        `parts` has the size of each part of the error, `dominant` the largest part; `families` the
        kernels' errors as fractions of a network's time (`signed` and `absolute` add up over
        families to those of all kernels); `sources` the same by what the prediction rests on;
        `kernels` the single kernels that add most.
    """
    stable = [t for t in truths if t.stable]
    if not stable:
        return {"networks": 0}
    parts: dict[str, list[float]] = {"repeatability": [], "summation": [], "kernels": []}
    parts["total"] = []
    rows: list[tuple[str, str, str, float, float]] = []
    for truth in stable:
        answer = answered[truth.name]
        own_ms = [calibration.kernel_ms(t) for t in truth.kernel_ms]
        sum_ms = calibration.fixed_ms + sum(own_ms)
        parts["repeatability"].append(truth.repeatability or 0.0)
        parts["summation"].append(sum_ms / truth.whole_ms - 1)
        parts["kernels"].append(answer.latency_ms / sum_ms - 1)
        parts["total"].append(answer.latency_ms / truth.whole_ms - 1)
        scale = 1 / (sum_ms * len(stable))
        rows += [
            (node.kernel.family, source, node.kernel.signature, found * scale, measured * scale)
            for node, source, found, measured in zip(
                truth.graph.kernels, answer.sources, answer.kernel_ms, own_ms, strict=True
            )
        ]
    sizes = {name: _sizes(errors) for name, errors in parts.items()}
    sizes["repeatability"]["median_signed"] = None  # neither half is the right one
    causes = [name for name in sizes if name != "total"]
    return {
        "networks": len(stable),
        "parts": sizes,
        "dominant": max(causes, key=lambda name: sizes[name]["median_absolute"] or 0.0),
        "families": _table([(row[0], *row[3:]) for row in rows]),
        "sources": _table([(row[1], *row[3:]) for row in rows]),
        "kernels": dict(list(_table([row[2:] for row in rows]).items())[:_COSTLIEST]),
    }


def _sizes(errors: Sequence[float]) -> dict[str, float | None]:
    absolute = np.abs(errors)
    return {
        "median_absolute": float(np.median(absolute)),
        "p90_absolute": float(np.quantile(absolute, 0.9)),
        "median_signed": float(np.median(errors)),
    }


def _table(rows: Sequence[tuple[str, float, float]]) -> dict[str, dict[str, float]]:
    """By name, the largest absolute error first.

    Args:
        rows: name, predicted and measured part of the mean network's time.
    """
    table: dict[str, dict[str, float]] = {}
    for name, found, measured in rows:
        line = table.setdefault(
            name, {"kernels": 0, "time_share": 0.0, "signed": 0.0, "absolute": 0.0}
        )
        line["kernels"] += 1
        line["time_share"] += measured
        line["signed"] += found - measured
        line["absolute"] += abs(found - measured)
    return dict(sorted(table.items(), key=lambda item: -item[1]["absolute"]))
