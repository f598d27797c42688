"""The distribution over networks nearest to a learned one that keeps other limits.

Of all distributions with a given expected cost, the one with the smallest Kullback-Leibler
divergence from softmax(α) is softmax(α - s · cost): every block is tilted by one common strength.
With several limits the costs are taken as shares of theirs, and the tightest decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from autospace.cost import CostTable, Limit

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["tilted"]

_HALVINGS = 40
_STRONGEST = 1e6


def tilted(
    alpha: NDArray[np.float64],
    tables: Sequence[CostTable],
    limits: Sequence[Limit],
    *,
    fill: bool = False,
) -> NDArray[np.float64]:
    """α whose expected costs keep the limits, as near to the given one as can be.

    Args:
        alpha: shape ``(blocks, most candidates)``, -inf where a block has fewer.
        tables: one for each limit.
        limits: upper bounds for the expected network.
        fill: tilt towards larger networks too, until one limit is met.

    Returns:
        In the same shape; ``alpha`` itself where it keeps the limits (with ``fill``, where not
        even the largest network meets one), and very near to the smallest network where nothing
        else keeps them.
    """
    real = np.isfinite(alpha)
    shares = []
    for table, limit in zip(tables, limits, strict=True):
        share = np.zeros(alpha.shape)
        for row, values in zip(share, table.values, strict=True):
            row[: len(values)] = np.asarray(values) / limit.value
        shares.append((share, table.fixed / limit.value))
    common = sum((share for share, _ in shares), np.zeros(alpha.shape))

    def tilt(strength: float) -> NDArray[np.float64]:
        return np.where(real, alpha - strength * common, -np.inf)

    def kept(strength: float) -> bool:
        rows = tilt(strength)
        powers = np.exp(rows - rows.max(1, keepdims=True))
        p = powers / powers.sum(1, keepdims=True)
        return all((p * share).sum() + fixed <= 1 for share, fixed in shares)

    weak, strong = 0.0, 0.0
    if kept(0.0):
        if not fill or not limits:
            return alpha
        weak = -1.0
        while kept(weak):
            if weak < -_STRONGEST:
                return alpha
            weak, strong = 4 * weak, weak
    else:
        strong = 1.0
        while not kept(strong) and strong < _STRONGEST:
            weak, strong = strong, 4 * strong
    for _ in range(_HALVINGS):
        middle = (weak + strong) / 2
        weak, strong = (weak, middle) if kept(middle) else (middle, strong)
    return tilt(strong)
