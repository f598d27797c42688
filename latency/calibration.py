"""From the sum of kernels, as the profiler times them, to the whole network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

__all__ = ["Calibration"]

_LEAST_PART = 0.1
"""Of its time in the profiler that a kernel takes without it, at least."""
_CALIBRATION_UNITS = (0.01, 1.0, 0.001)
"""Of `Calibration`, such that its numbers are of like size."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """From kernel times with the profiler on to whole networks with it off.

    Attributes:
        fixed_ms: part of every run outside the kernels.
        scale: of a kernel's time.
        per_kernel_ms: added to every kernel; negative, what the profiler costs.
    """

    fixed_ms: float
    scale: float
    per_kernel_ms: float

    @classmethod
    def fit(
        cls,
        times_ms: Sequence[Sequence[float]],
        whole_ms: Sequence[float],
        robust: bool = False,
    ) -> Self:
        """Fits to measured networks, minimising the relative error.

        The least part of a kernel (`kernel_ms`) is part of what is fitted: a line through the sums
        alone has to explain chains of kernels of 2 µs, and then takes too little off those of 4 µs,
        so that networks of 0.1 ms came out 15 to 20 % too slow.

        Args:
            times_ms: of each network, the times of its kernels, at least one.
            whole_ms: of each network, its whole latency.
            robust: whether networks that are off by more than a tenth count less, as predicted ones
                may be.
        """
        import numpy as np
        from scipy.optimize import least_squares

        wholes = np.array(whole_ms)
        sums = np.array([sum(times) for times in times_ms])
        if len(wholes) < 4:
            return cls(0.0, float(np.median(wholes / sums)), 0.0)
        times = np.concatenate([np.array(own) for own in times_ms])
        starts = np.cumsum([0, *(len(own) for own in times_ms[:-1])])

        def errors(units: Array) -> Array:
            fixed, scale, per_kernel = units * _CALIBRATION_UNITS
            scaled = scale * times
            parts = np.maximum(scaled + per_kernel, scaled * _LEAST_PART)
            return np.asarray((fixed + np.add.reduceat(parts, starts)) / wholes - 1)

        bounds = ([0.0, 0.6, -6.0], [10.0, 1.3, 0.0])
        # From several starts: where many kernels are at their least part there are local minima.
        loss: Literal["linear", "soft_l1"] = "soft_l1" if robust else "linear"
        tries = [
            least_squares(errors, [0.5, 1.0, cost], bounds=bounds, loss=loss, f_scale=0.1)
            for cost in (-1, -3, -5)
        ]
        best = min(tries, key=lambda one: float(one.cost)).x * _CALIBRATION_UNITS
        return cls(*(float(x) for x in best))

    def kernel_ms(self, time_ms: float) -> float:
        """A kernel's part of the whole; never less than a tenth of its own time.

        A kernel of 8 numbers takes 3.0 µs in the profiler and 0.32 µs without it.
        """
        scaled = self.scale * time_ms
        return max(scaled + self.per_kernel_ms, scaled * _LEAST_PART)

    def whole_ms(self, times_ms: Sequence[float]) -> float:
        """Whole latency from all kernels' times."""
        return self.fixed_ms + sum(self.kernel_ms(t) for t in times_ms)
