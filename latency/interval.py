"""Intervals for whole networks, from the errors on networks that a fit had not seen.

Split by network, because kernel intervals do not add up (conformal prediction: Vovk, Gammerman and
Shafer, *Algorithmic Learning in a Random World*, 2005). Networks differ in how well they can be
predicted, so errors are compared after division by how difficult each network looks beforehand
(normalised conformal prediction): a line in the uncertainty of its kernels, as if their errors all
went the same way and as if each went its own, fitted to the errors seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["INTERVAL", "Doubt", "Intervals", "Score"]

INTERVAL = 0.90
"""Share of networks whose latency the interval is made to hold."""
MIN_SCORES = 19
"""Networks before the 90 % quantile of their errors is not simply the largest."""
_LEAST_DIFFICULTY = 0.4
"""Of the median error; no network is so easy that nothing is left."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """How uncertain the kernels of a network are together, as parts of its time.

    Attributes:
        together: if all errors went the same way.
        apart: if each went its own.
    """

    together: float
    apart: float

    @classmethod
    def of(cls, times_ms: Sequence[float], deviations: Sequence[float]) -> Self:
        """From each kernel's time and the standard deviation of its logarithm."""
        total = sum(times_ms)
        if total <= 0:
            return cls(0.0, 0.0)
        parts = [t * d / total for t, d in zip(times_ms, deviations, strict=True)]
        return cls(sum(parts), math.hypot(*parts))


@dataclass(frozen=True, slots=True)
class Score:
    """How a network came out when the fit had not seen it.

    Attributes:
        kind: of the network in the card.
        whole_ms: measured.
        predicted_ms: by a fit without it.
        summed_ms: from its own measured kernels.
        doubt: of that fit about its kernels.
    """

    kind: str
    whole_ms: float
    predicted_ms: float
    summed_ms: float
    doubt: Doubt

    @property
    def error(self) -> float:
        """Absolute error of the logarithm."""
        return abs(math.log(self.predicted_ms / self.whole_ms))


@dataclass(frozen=True, slots=True)
class Intervals:
    """What makes an interval out of a prediction.

    Attributes:
        line: weights of one, of `Doubt.together` and of `Doubt.apart`.
        least: smallest difficulty.
        width: half-width of the logarithm at difficulty one.
        scores: how many networks it rests on.
    """

    line: tuple[float, float, float]
    least: float
    width: float
    scores: int

    @classmethod
    def fit(cls, scores: Sequence[Score]) -> Self:
        """From the errors on networks that were left out.

        Args:
            scores: at least one.
        """
        import numpy as np
        from scipy.optimize import nnls

        errors = np.array([s.error for s in scores])
        middle = max(float(np.median(errors)), 1e-4)
        # A few wild errors would otherwise decide the line.
        clipped = np.minimum(errors, 5 * middle)
        columns = np.array([[1.0, s.doubt.together, s.doubt.apart] for s in scores])
        found = nnls(columns, clipped)[0] if len(scores) >= MIN_SCORES else np.array([middle, 0, 0])
        line = (float(found[0]), float(found[1]), float(found[2]))
        least = _LEAST_DIFFICULTY * middle if len(scores) >= MIN_SCORES else max(middle, 0.1)
        bare = cls(line, least, 1.0, len(scores))
        scaled = [s.error / bare.difficulty(s.doubt) for s in scores]
        return cls(line, bare.least, _conformal_quantile(scaled), len(scores))

    def difficulty(self, doubt: Doubt) -> float:
        """Expected error of a network's logarithm."""
        constant, together, apart = self.line
        return max(constant + together * doubt.together + apart * doubt.apart, self.least)

    def half_width(self, doubt: Doubt) -> float:
        """Half-width of the interval of a network's logarithm."""
        return self.width * self.difficulty(doubt)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "line": list(self.line),
            "least": self.least,
            "width": self.width,
            "scores": self.scores,
        }

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """From what `to_json` gave.

        Raises:
            KeyError: something is missing.
        """
        constant, together, apart = (float(x) for x in data["line"])
        return cls(
            (constant, together, apart),
            float(data["least"]),
            float(data["width"]),
            int(data["scores"]),
        )


def _conformal_quantile(values: Sequence[float]) -> float:
    """What one more network stays below with probability `INTERVAL`."""
    ordered = sorted(values)
    rank = math.ceil((len(ordered) + 1) * INTERVAL)
    if rank <= len(ordered):
        return ordered[rank - 1]
    # Too few networks for the quantile: half as much again as the largest error seen.
    return max(ordered[-1] * 1.5, 1.0)
