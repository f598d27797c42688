"""What a unit of cost is worth while a space evolves: the multipliers of the limits.

A layer's cells have values v, learned on data, and costs c. The expected network of a population
takes each cell with probability softmax(v - Σ Λ·c / limit) over its layer: the distribution that
trades value for entropy under the limits, with their Lagrange multipliers Λ as prices. The dual

    D(Λ) = Σ_layers logsumexp(v - Σ Λ·c / limit) + Σ Λ·(1 - fixed / limit)

is convex and smooth, and its slope is what each limit has left; so prices are found by minimising
it, rather than by steps that lag behind and overshoot. This project's choice: the paper (AutoSpace,
arXiv 2103.11833) says only that constraints can enter the fitness.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["expected_costs", "fair_prices", "fitness"]

Array = NDArray[np.float64]
_MOST = 20.0
"""For each layer: what a cell that takes a layer's even share of a limit loses at most."""


def fitness(values: Array, costs: Array, prices: Array) -> Array:
    """Value less the price of the cost.

    Args:
        values: of the cells of one layer, shape ``(cells,)``.
        costs: as shares of the limits, shape ``(limits, cells)``.
        prices: shape ``(limits,)``.

    Returns:
        Shape ``(cells,)``.
    """
    return values - prices @ costs


def expected_costs(
    values: Sequence[Array], costs: Sequence[Array], fixed: Array, prices: Array
) -> Array:
    """What the expected network of the populations costs.

    Args:
        values: for each layer, shape ``(cells,)``.
        costs: for each layer, as shares of the limits, shape ``(limits, cells)``.
        fixed: what belongs to no layer, as shares of the limits, shape ``(limits,)``.
        prices: shape ``(limits,)``.

    Returns:
        As shares of the limits, shape ``(limits,)``.
    """
    return _dual(values, costs, fixed, prices)[1]


def fair_prices(
    values: Sequence[Array],
    costs: Sequence[Array],
    fixed: Array,
    start: Array | None = None,
) -> Array:
    """The lowest prices at which the expected network keeps every limit.

    Args:
        values: for each layer, shape ``(cells,)``.
        costs: for each layer, as shares of the limits, shape ``(limits, cells)``.
        fixed: what belongs to no layer, as shares of the limits, shape ``(limits,)``.
        start: where to begin, shape ``(limits,)``.

    Returns:
        Shape ``(limits,)``, 0 for a limit that is kept at no price. Where no network of the
        populations keeps a limit its price is as high as prices get: the cheapest cells lead.
    """
    from scipy.optimize import minimize

    if not len(fixed):
        return np.zeros(0)

    def dual(prices: Array) -> tuple[float, Array]:
        level, spent = _dual(values, costs, fixed, prices)
        return level + float(prices @ (1 - fixed)), 1 - spent

    found = minimize(
        dual,
        np.zeros(len(fixed)) if start is None else start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, _MOST * len(values))] * len(fixed),
        options={"ftol": 1e-14, "gtol": 1e-7},
    )
    return np.asarray(found.x, dtype=np.float64)


def _dual(
    values: Sequence[Array], costs: Sequence[Array], fixed: Array, prices: Array
) -> tuple[float, Array]:
    """Σ logsumexp of every layer's fitness, and the expected costs."""
    level, spent = 0.0, fixed.astype(np.float64)
    for value, cost in zip(values, costs, strict=True):
        scores = fitness(value, cost, prices)
        top = scores.max()
        weights = np.exp(scores - top)
        total = weights.sum()
        level += float(top + np.log(total))
        spent = spent + cost @ weights / total
    return level, spent
