"""The roofline: what a kernel must take at least, from its operations and the bytes it moves.

time = operations / peak + activation bytes / bandwidth + weight bytes / bandwidth + operations on
denormal numbers / their rate + constant, with non-negative coefficients fitted to one device. It is
crude, and right about the direction: it grows with every size, so that a regressor that only learns
the residual over it extrapolates sensibly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from latency.kernel import Kernel

    Array = npt.NDArray[np.float64]

__all__ = ["Roofline", "effective_flops", "roofline_terms"]

_TERMS = 5


def effective_flops(kernel: Kernel, flops: int | None = None) -> float:
    """Operations that are really carried out, padding of blocked channels included.

    Blocked layouts round channels up to the vector width; the weights, kept in that layout, show by
    how much.

    Args:
        kernel: with its weights as the runtime keeps them.
        flops: `kernel.flops`, where the caller knows it.
    """
    flops = kernel.flops if flops is None else flops
    if kernel.family.startswith("conv_") and kernel.weights and len(kernel.output) == 4:
        batch, _, height, width = kernel.output
        return max(2.0 * batch * height * width * math.prod(kernel.weights[0]), flops)
    return float(flops)


def roofline_terms(kernel: Kernel) -> tuple[float, ...]:
    """Terms of one kernel, each with a coefficient of its own.

    Millions of operations, megabytes of activations, megabytes of weights, millions of operations
    on denormal numbers, and one.
    """
    moved = (kernel.bytes_in + kernel.bytes_out) / 1e6
    slow = kernel.denormal_work / 1e6
    return effective_flops(kernel) / 1e6, moved, kernel.bytes_weights / 1e6, slow, 1.0


@dataclass(frozen=True, slots=True)
class Roofline:
    """Fitted coefficients.

    Attributes:
        coefficients: milliseconds for each of `roofline_terms`, none negative.
    """

    coefficients: tuple[float, ...]

    @classmethod
    def fit(cls, terms: Array, times_ms: Array) -> Self:
        """Fits to measured kernels, minimising the relative error.

        Args:
            terms: shape `(kernels, terms)`, from `roofline_terms`.
            times_ms: shape `(kernels,)`, positive.
        """
        import numpy as np
        from scipy.optimize import nnls

        coefficients, _ = nnls(terms / times_ms[:, None], np.ones(len(times_ms)))
        if not coefficients.any():
            coefficients = np.array([0.0] * (_TERMS - 1) + [float(np.median(times_ms))])
        return cls(tuple(float(c) for c in coefficients))

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """From the list of its coefficients.

        Raises:
            TypeError: it is no list of numbers.
            ValueError: it has another length.
        """
        found = tuple(float(coefficient) for coefficient in data)
        if len(found) != _TERMS:
            raise ValueError(f"a roofline has {_TERMS} coefficients, not {len(found)}")
        return cls(found)

    def predict(self, terms: Array) -> Array:
        """Milliseconds of each kernel, all positive; shapes `(kernels, terms)` to `(kernels,)`."""
        import numpy as np

        # A kernel may touch only terms whose coefficient is zero; no kernel takes no time.
        floor = 1e-4
        return np.asarray(np.maximum(terms @ np.asarray(self.coefficients), floor))

    def predict_one(self, kernel: Kernel) -> float:
        """Milliseconds of one kernel."""
        return max(_dot(self.coefficients, roofline_terms(kernel)), 1e-4)


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
