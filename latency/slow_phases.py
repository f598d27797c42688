"""Latencies of the undisturbed device, of a series in which hardly any visit was undisturbed.

Without three accepted visits, or fast runs that two agree on, `latency_ms` of a network is a median
of visits that were each divided by the sentinel's slowdown (`devices.measurement`). Networks do not
slow down as the sentinel does: on a machine that was 1.3 times slower most of the time, small ones
did so more and large ones less, and what was said of a network depended on how often it was
visited. A series of many networks tells how they slow down:

    log visit = log latency + elasticity(size) · log slowdown + noise,

with one elasticity for all networks that is linear in the logarithm of their size, fitted to all
visits at once by reweighted least squares with Huber's weights (Huber, *Robust Estimation of a
Location Parameter*, 1964). Each network's own elasticity differs a little, which makes visits
uncertain by how slow the machine was. This is this project's own choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from devices.measurement import ABOVE_FASTEST, Measurement
from devices.visits import FEW_VISITS, STEADY_RATIO, Visit, enough

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

__all__ = ["above_fastest", "undisturbed"]

_USUAL = (0.8, 0.0)
"""Elasticity of a network of `_SIZE_MS`, and its slope in the logarithm of the size."""
_USUAL_DEVIATIONS = (0.3, 0.1)
_SIZE_MS = 4.0
_SIZES = 3.0
"""Logarithms of size from `_SIZE_MS` within which the elasticity changes."""
_OWN_DEVIATION = 0.2
"""By which the elasticity of a network differs from that of its size."""
_UNSTEADY = 2.0
"""Variance of a visit during which the sentinel changed, relative to others."""
_LEAST_NOISE = 0.01
_HUBER = 1.5
_ROUNDS = 12
_SHORT_MS = 0.5
"""Runs that a machine which flips between its speeds leaves alone, now and then."""
_FEW_NETWORKS = 5
_QUIET_ABOVE = 1.04
"""Latencies over fastest runs in quieter cards: 1.027, 1.051, 1.061 and 1.062, where
`ABOVE_FASTEST` fits series in which few runs were undisturbed."""
_MOST_ABOVE = 1.5


def above_fastest(networks: Sequence[Measurement]) -> float:
    """What latencies on the device of a card are of fastest runs, in series that hold few.

    A card that was made on a machine which flips between two speeds faster than a visit lasts is of
    a speed between them: its short networks took 1.20 times their fastest runs in the median of 17,
    where quieter cards have 1.03 to 1.06, and by fastest runs networks of a search were told to
    take 0.057 ms that took 0.071 by visits at the card's speed.

    Args:
        networks: of a card, measured whole.

    Returns:
        `ABOVE_FASTEST`, and as much more as the median of short networks is above that of quiet
        cards; nothing more where fewer than five tell.
    """
    told = [
        found.latency_ms
        / sorted(sample for visit in found.visits for sample in visit.samples_ms)[1]
        for found in networks
        if found.accepted >= FEW_VISITS
        and enough(found.accepted, len(found.visits))
        and found.latency_ms <= _SHORT_MS
    ]
    if len(told) < _FEW_NETWORKS:
        return ABOVE_FASTEST
    middle = sorted(told)[len(told) // 2]
    return min(ABOVE_FASTEST * max(1.0, middle / _QUIET_ABOVE), _MOST_ABOVE)


def undisturbed(
    visits: Sequence[Sequence[Visit]], reference_ms: float
) -> tuple[tuple[float, float], ...]:
    """Latency in milliseconds of each network, and the standard error of its logarithm.

    Args:
        visits: of each network, at least one.
        reference_ms: what the sentinel takes on the undisturbed device.
    """
    import numpy as np

    owner = np.array([i for i, own in enumerate(visits) for _ in own], dtype=np.intp)
    every = [visit for own in visits for visit in own]
    values = np.log([visit.median_ms for visit in every])
    slow = np.log([visit.slowdown(reference_ms) for visit in every])
    unsteady = [_change(visit) > math.log(STEADY_RATIO) for visit in every]
    relative = np.where(unsteady, _UNSTEADY, 1.0)
    count = len(visits)

    def mean(of: Array, weights: Array) -> Array:
        total = np.bincount(owner, weights, count)
        return np.asarray(np.bincount(owner, weights * of, count) / total)

    coefficients, noise, trust = np.array(_USUAL), 0.05, np.ones(len(every))
    prior = 1.0 / np.array(_USUAL_DEVIATIONS) ** 2
    for _ in range(_ROUNDS):
        variances = noise**2 * relative + (_OWN_DEVIATION * slow) ** 2
        weights = trust / variances
        sizes = mean(values - coefficients[0] * slow, weights) - math.log(_SIZE_MS)
        slopes = slow[:, None] * np.column_stack(
            [np.ones(len(every)), np.clip(sizes, -_SIZES, _SIZES)[owner]]
        )
        # What all visits of a network have in common tells nothing of elasticities.
        apart = np.column_stack([own - mean(own, weights)[owner] for own in slopes.T])
        left = values - mean(values, weights)[owner]
        coefficients = np.linalg.solve(
            (apart * weights[:, None]).T @ apart + np.diag(prior),
            (apart * weights[:, None]).T @ left + prior * _USUAL,
        )
        off = left - apart @ coefficients
        scaled = np.abs(off) / np.sqrt(variances)
        trust = np.minimum(1.0, _HUBER / np.maximum(scaled, 1e-9))
        free = max(len(every) - count, 1)
        spread = math.sqrt(float((trust * off**2 / relative).sum()) / free)
        noise = max(_LEAST_NOISE, min(spread, 0.2))
    weights = trust / (noise**2 * relative + (_OWN_DEVIATION * slow) ** 2)
    latencies = np.exp(mean(values - slopes @ coefficients, weights))
    errors = np.sqrt(1.0 / np.bincount(owner, weights, count))
    return tuple(zip(latencies.tolist(), errors.tolist(), strict=True))


def _change(visit: Visit) -> float:
    return abs(math.log(visit.sentinel_after_ms / visit.sentinel_before_ms))
