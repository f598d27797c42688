"""Whether the fusion rules in a card give the kernels that the runtime itself would run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.accuracy import Truth
from devices.onnx_files import fix_shapes, read_onnx
from latency.fusion_apply import apply_rules

if TYPE_CHECKING:
    from latency.fusion import FusionRules

__all__ = ["fusion_match"]

_WORST = 5


def fusion_match(
    rules: FusionRules, truths: Sequence[Truth], files: dict[str, Path], batch: int
) -> dict[str, Any]:
    """Compares kernels by rules with those that the runtime ran, network by network.

    Args:
        rules: from the card; the networks were not seen when they were learned.
        truths: the networks, with the runtime's kernels.
        files: ONNX file of each network by its name; networks without a file are left out.
        batch: batch size.

    Returns:
        As a JSON object: the share of equal kernels over all networks, and over each network (the
        kernels of one are a multiset of signatures; too many count as misses like too few).
    """
    shares: dict[str, float] = {}
    equal = total = 0
    for truth in truths:
        path = files.get(truth.name)
        if path is None or not path.is_file():
            continue
        model = fix_shapes(read_onnx(path), batch)
        ruled = Counter(apply_rules(rules, model).signatures)
        actual = Counter(truth.graph.signatures)
        same = (ruled & actual).total()
        most = max(ruled.total(), actual.total())
        shares[truth.name] = same / most
        equal, total = equal + same, total + most
    ordered = sorted(shares.items(), key=lambda item: item[1])
    return {
        "networks": len(shares),
        "kernels": total,
        "share": equal / total if total else None,
        "median": float(np.median(list(shares.values()))) if shares else None,
        "exact_networks": sum(share == 1 for share in shares.values()),
        "worst": [{"name": name, "share": share} for name, share in ordered[:_WORST]],
    }
