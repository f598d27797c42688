"""What simpler methods say, fitted to the same card's networks and judged by the same truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.accuracy import Answer, Truth
from latency.card import DeviceCard
from latency.card_rows import ANCHOR
from latency.kernel import Kernel
from latency.table import KernelTable

__all__ = ["flops_constant", "network_roofline"]

Array = npt.NDArray[np.float64]


def flops_constant(card: DeviceCard, truths: Sequence[Truth]) -> dict[str, Answer]:
    """Operations times a constant: the median over the card's networks of time per operation."""
    terms, whole_ms = _networks(card)
    per_flop = float(np.median(whole_ms / terms[:, 0]))
    return {t.name: Answer(per_flop * _terms(_kernels(t))[0]) for t in truths}


def network_roofline(card: DeviceCard, truths: Sequence[Truth]) -> dict[str, Answer]:
    """Operations, bytes of activations, bytes of weights, and kernels, each times a constant.

    The constants are not negative, and minimise the relative error on the card's networks.
    """
    from scipy.optimize import nnls

    terms, whole_ms = _networks(card)
    found, _ = nnls(terms / whole_ms[:, None], np.ones(len(whole_ms)))
    return {t.name: Answer(float(np.dot(found, _terms(_kernels(t))))) for t in truths}


def _networks(card: DeviceCard) -> tuple[Array, Array]:
    """Terms and latency of the card's networks."""
    table = KernelTable.from_card(card)
    rows = [row for row in table.networks if row.kind != ANCHOR]
    terms = [_terms([table.kernels[place].kernel for place in row.rows]) for row in rows]
    return np.array(terms), np.array([row.whole_ms for row in rows])


def _kernels(truth: Truth) -> list[Kernel]:
    return [node.kernel for node in truth.graph.kernels]


def _terms(kernels: Sequence[Kernel]) -> tuple[float, float, float, float]:
    """Millions of operations, megabytes of activations and of weights, number of kernels."""
    return (
        sum(k.flops for k in kernels) / 1e6,
        sum(k.bytes_in + k.bytes_out for k in kernels) / 1e6,
        sum(k.bytes_weights for k in kernels) / 1e6,
        float(len(kernels)),
    )
