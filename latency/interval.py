"""Intervals for whole networks, from what the regressors say about all kernels together.

Intervals of kernels do not add up: kernels that are alike err alike, others cancel each other. A
Gaussian process knows which: the variance of a network's logarithm is `wᵀ Σ w`, with the part `w`
of its time that each kernel takes and the covariance Σ of the regressors' errors, family by family
(Rasmussen and Williams, *Gaussian Processes for Machine Learning*, 2006, equation 2.24). Kernels
that were measured add what is left open about each by itself.

Whether regressors are as sure as they may be is checked with networks that a fit had not seen:
their errors are divided by what was expected, the noise of their own few visits included, and where
the median of that is larger than it should be, all intervals are wider by as much (which lays what
is too much on noise and regressors alike). The median, because the largest errors are those of the
noisiest networks. Quantiles of the errors themselves
(conformal intervals, which were used here before) measure that noise as well: they were twice as
wide as the errors on networks that were measured longer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import Any, Self

__all__ = ["INTERVAL", "MIN_SCORES", "Intervals", "Score"]

INTERVAL = 0.90
"""Share of networks whose latency the interval is made to hold."""
MIN_SCORES = 19
"""Networks with fewer of which the interval is a guess: a 90 % quantile begins here."""
_SUM_DEVIATION = 0.006
"""Standard deviation of the logarithm of a sum of kernels that were all measured: halves of the
truth in `benchmarks.predictor_accuracy` disagree by 1 %, sums and wholes by 0.7 % in the median."""
_CARD_DEVIATION = 0.12
"""How far a card's predictions are off all together, times the root of how many networks it was
checked with: fewer networks tell less about what all have in common, and those of one card do not
show it. Mobile networks came out by -1.5, +1.1 and +1.2 % in three cards of 30 minutes, where it is
0.6 %, and by up to 3.3 % in cards of 3, where it is 2 %."""
_LEAST_GUESS = 0.1
"""Half-width with few networks, at least."""
_GUESS = 1.5
"""Times the largest error seen that an interval is wide with few networks."""
_DEVIATIONS = NormalDist().inv_cdf(0.5 + INTERVAL / 2)
_MEDIAN_DEVIATION = NormalDist().inv_cdf(0.75)


@dataclass(frozen=True, slots=True)
class Score:
    """How a network came out when the fit had not seen it.

    Attributes:
        kind: of the network in the card.
        whole_ms: measured.
        predicted_ms: by a fit without it.
        summed_ms: from its own measured kernels.
        deviation: that this fit expects of the logarithm.
        noise: of the measurement: standard error of its logarithm.
    """

    kind: str
    whole_ms: float
    predicted_ms: float
    summed_ms: float
    deviation: float
    noise: float

    @property
    def error(self) -> float:
        """Absolute error of the logarithm."""
        return abs(math.log(self.predicted_ms / self.whole_ms))


@dataclass(frozen=True)
class Intervals:
    """What makes an interval out of a prediction.

    Attributes:
        factor: that deviations are too small by, at least 1.
        least: smallest half-width.
        scores: how many networks it rests on.
    """

    factor: float
    least: float
    scores: int

    @classmethod
    def fit(cls, scores: Sequence[Score]) -> Self:
        """From the errors on networks that were left out.

        Args:
            scores: at least one.
        """
        expected = [math.hypot(s.deviation, _SUM_DEVIATION, s.noise) for s in scores]
        ratio = median(s.error / size for s, size in zip(scores, expected, strict=True))
        factor = max(1.0, ratio / _MEDIAN_DEVIATION)
        if len(scores) >= MIN_SCORES:
            return cls(factor, 0.0, len(scores))
        largest = max(s.error for s in scores)
        return cls(factor, max(_GUESS * largest, _LEAST_GUESS), len(scores))

    def half_width(self, deviation: float) -> float:
        """Half-width of the interval of a network's logarithm.

        Args:
            deviation: that the fit expects of it.
        """
        common = _CARD_DEVIATION / math.sqrt(self.scores)
        width = _DEVIATIONS * self.factor * math.hypot(deviation, _SUM_DEVIATION, common)
        return max(width, self.least)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"factor": self.factor, "least": self.least, "scores": self.scores}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """From what `to_json` gave.

        Raises:
            KeyError: something is missing.
            ValueError: a number is not one.
        """
        found = cls(float(data["factor"]), float(data["least"]), int(data["scores"]))
        if not (1.0 <= found.factor < math.inf and 0.0 <= found.least < math.inf):
            raise ValueError("intervals of no width")
        if found.scores < 1:
            raise ValueError("intervals that rest on no networks")
        return found
