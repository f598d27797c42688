"""Intervals for whole networks, from the errors on networks that a fit had not seen.

Split by network, because kernel intervals do not add up (conformal prediction: Vovk, Gammerman and
Shafer, *Algorithmic Learning in a Random World*, 2005). Networks differ in how well they can be
predicted, so errors are compared after division by how difficult each network looks beforehand
(normalised conformal prediction): a line in the uncertainty of its kernels, as if their errors all
went the same way and as if each went its own, fitted to the errors seen. What counts then are the
networks most like the one asked about (localised conformal prediction: Guan, *Biometrika*, 2023):
in what kinds of kernels take their time, and in how long they take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from latency.kernel import FAMILIES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["INTERVAL", "Doubt", "Intervals", "Score"]

INTERVAL = 0.90
"""Share of networks whose latency the interval is made to hold."""
MIN_SCORES = 19
"""Networks before the 90 % quantile of their errors is not simply the largest."""
_LEAST_DIFFICULTY = 0.4
"""Of the median error; no network is so easy that nothing is left."""
_LEAST_ALIKE = 60
"""Networks that count as alike, at least: a 90 % quantile of fewer is mostly chance."""
_ALIKE = 0.25
"""Part of the networks that count as alike."""
_SIZE_WEIGHT = 0.4
"""An e-fold of latency is so far apart as this part of the time on another kind of kernel."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """How uncertain the kernels of a network are together, as parts of its time.

    Attributes:
        together: if all errors went the same way.
        apart: if each went its own.
        place: where the network lies among others: the part of its time on each of
            `latency.kernel.FAMILIES`, and how long it takes; empty if that is not known.
    """

    together: float
    apart: float
    place: tuple[float, ...] = ()

    @classmethod
    def of(
        cls,
        times_ms: Sequence[float],
        deviations: Sequence[float],
        families: Sequence[str] = (),
    ) -> Self:
        """From each kernel's time, the standard deviation of its logarithm, and its family."""
        total = sum(times_ms)
        if total <= 0:
            return cls(0.0, 0.0)
        parts = [t * d / total for t, d in zip(times_ms, deviations, strict=True)]
        shares = dict.fromkeys(FAMILIES if families else (), 0.0)
        for time_ms, family in zip(times_ms, families, strict=bool(families)):
            shares[family] += time_ms / total
        size = (_SIZE_WEIGHT * math.log(total),) if families else ()
        return cls(sum(parts), math.hypot(*parts), (*shares.values(), *size))


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


@dataclass(frozen=True)
class Intervals:
    """What makes an interval out of a prediction.

    Attributes:
        line: weights of one, of `Doubt.together` and of `Doubt.apart`.
        least: smallest difficulty.
        errors: of the networks that it rests on, over their difficulty.
        places: of the same networks, see `Doubt`.
    """

    line: tuple[float, float, float]
    least: float
    errors: tuple[float, ...]
    places: tuple[tuple[float, ...], ...]

    @property
    def scores(self) -> int:
        """How many networks it rests on."""
        return len(self.errors)

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
        bare = cls(line, least, (), ())
        scaled = tuple(s.error / bare.difficulty(s.doubt) for s in scores)
        # Rounded here and not when written, so that what is read is the same.
        places = tuple(tuple(round(x, 5) for x in s.doubt.place) for s in scores)
        return cls(line, least, scaled, places)

    def difficulty(self, doubt: Doubt) -> float:
        """Expected error of a network's logarithm."""
        constant, together, apart = self.line
        return max(constant + together * doubt.together + apart * doubt.apart, self.least)

    def half_width(self, doubt: Doubt) -> float:
        """Half-width of the interval of a network's logarithm."""
        return self.difficulty(doubt) * _conformal_quantile(self._alike(doubt.place))

    def _alike(self, place: Sequence[float]) -> Sequence[float]:
        """The errors of the networks most like one; of all, where that cannot be told."""
        import numpy as np

        count = max(_LEAST_ALIKE, int(_ALIKE * self.scores))
        if self.scores < 2 * _LEAST_ALIKE or self._table is None or not place:
            return self.errors
        apart = ((self._table - np.array(place)) ** 2).sum(axis=1)
        return [self.errors[int(i)] for i in np.argsort(apart, kind="stable")[:count]]

    @cached_property
    def _table(self) -> npt.NDArray[np.float64] | None:
        """The places as an array; None where not all are known."""
        import numpy as np

        return np.array(self.places) if all(self.places) else None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "line": list(self.line),
            "least": self.least,
            "errors": list(self.errors),
            "places": [list(place) for place in self.places],
        }

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """From what `to_json` gave.

        Raises:
            KeyError: something is missing.
            ValueError: places that are not of the same networks, or of other families.
        """
        constant, together, apart = (float(x) for x in data["line"])
        errors = tuple(float(x) for x in data["errors"])
        places = tuple(tuple(float(x) for x in place) for place in data["places"])
        if len(places) != len(errors) or {len(p) for p in places} - {0, len(FAMILIES) + 1}:
            raise ValueError("places of other networks")
        return cls((constant, together, apart), float(data["least"]), errors, places)


def _conformal_quantile(values: Sequence[float]) -> float:
    """What one more network stays below with probability `INTERVAL`."""
    ordered = sorted(values)
    rank = math.ceil((len(ordered) + 1) * INTERVAL)
    if rank <= len(ordered):
        return ordered[rank - 1]
    # Too few networks for the quantile: half as much again as the largest error seen.
    return max(ordered[-1] * 1.5, 1.0)
