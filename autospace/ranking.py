"""Which of several networks that keep the limits to take.

A limit was given to be used, and held-out accuracy with a supernet's weights is a noisy judge. It
tells little between networks of different size, as small ones learn sooner: one is only compared
with those that use about as much of the limits. Of these the best is often one that had luck with
the images. All classify the same ones, so that what counts is only where two networks differ: the
paired standard error. A network is left for one that uses less only if that one is better beyond
this error.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["paired_error", "preferred"]

_CONFIDENCE = 0.95
_ALIKE = 0.98
"""Of the largest use: below it a network is of another size."""


def paired_error(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Standard error of the difference of two accuracies on the same images.

    Args:
        one: whether each image is classified right, shape ``(images,)``.
        other: the same of another network.
    """
    gain = one.astype(np.float64) - other
    return float(np.sqrt(gain.var() / len(gain)))


def preferred(right: Sequence[NDArray[np.bool_]], uses: Sequence[float]) -> int:
    """The network that uses most of the limits, of those alike to which none is clearly better.

    Args:
        right: for each network, whether each image is classified right, shape ``(images,)``.
        uses: for each network, the share of the limits that it uses; ties go to the first.

    Returns:
        Its place. "Clearly" is beyond 95 %, one-sided, corrected for the number of networks: one
        of many is easily better by luck.
    """
    alike = [place for place, use in enumerate(uses) if use >= _ALIKE * max(uses)]
    accuracies = [float(own.mean()) for own in right]
    deviations = NormalDist().inv_cdf(1 - (1 - _CONFIDENCE) / max(1, len(alike) - 1))

    def beaten(place: int) -> bool:
        return any(
            accuracies[other] - accuracies[place]
            > deviations * paired_error(right[other], right[place])
            for other in alike
        )

    return max((place for place in alike if not beaten(place)), key=lambda place: uses[place])
