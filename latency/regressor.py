"""One regressor for one family of kernels: the logarithm of the residual over a roofline.

Kernel ridge regression with a Gaussian kernel on scaled features. Far from everything measured its
answer goes to zero, that is to the roofline, which is what extrapolation should do; and what it
would have said without some of its samples has a closed form, so that leaving every network out in
turn costs one matrix inverse instead of one fit a network:

    residual error without the samples I = (A⁻¹)[I, I]⁻¹ · (A⁻¹ y)[I],   A = K + noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from latency.roofline import Roofline, effective_flops, roofline_terms

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from latency.kernel import Kernel

    Array = npt.NDArray[np.float64]
    Indices = npt.NDArray[np.intp]

__all__ = ["FamilyRegressor"]

_VECTOR_WIDTH = 16
_LENGTHS = (0.8, 1.5, 2.5, 4.0)
_NOISES = (0.02, 0.08, 0.3)
_TUNING_POINTS = 300
"""Samples on which length and noise are chosen; more of them change the choice little."""
_MAX_POINTS = 1500
"""Samples kept in a fit: the cost grows with their cube."""
_TICK_MS = 0.002
"""The profiler counts microseconds, so that shorter kernels carry less information."""


@dataclass(frozen=True)
class FamilyRegressor:
    """A fitted regressor.

    Attributes:
        roofline: fitted to the same samples.
        categories: operations and activations seen, each a feature.
        points: features of the samples, shape `(samples, features)`.
        picks: which of the given samples were kept, shape `(samples,)`.
        inverse: A⁻¹, shape `(samples, samples)`.
        target: logarithm of time over roofline, shape `(samples,)`.
        length: of the Gaussian kernel, in scaled features.
    """

    roofline: Roofline
    categories: tuple[str, ...]
    points: Array
    picks: Indices
    inverse: Array
    target: Array
    length: float
    terms: Array
    times_ms: Array

    @classmethod
    def fit(cls, kernels: Sequence[Kernel], times_ms: Sequence[float]) -> Self:
        """Fits to measured kernels, all different.

        Args:
            kernels: of one family, at least one.
            times_ms: measured time of each.
        """
        import numpy as np

        count = len(kernels)
        picks = np.arange(count)
        if count > _MAX_POINTS:
            picks = np.sort(np.random.default_rng(0).permutation(count)[:_MAX_POINTS])
        terms = np.array([roofline_terms(k) for k in kernels])
        times = np.asarray(times_ms, dtype=np.float64)
        roofline = Roofline.fit(terms, times)
        labels = {label for k in kernels for label in _labels(k)}
        categories = tuple(sorted(labels))
        points = np.array([_features(kernels[int(i)], categories) for i in picks])
        target = np.log(times[picks] / roofline.predict(terms[picks]))
        doubt = 1.0 + (_TICK_MS / times[picks]) ** 2
        length, noise = _tune(points, target, doubt)
        gram = _gauss(points, points, length)
        inverse: Array = np.linalg.inv(np.asarray(gram + np.diag(noise * doubt), dtype=np.float64))
        return cls(roofline, categories, points, picks, inverse, target, length, terms, times)

    def predict(self, kernels: Sequence[Kernel]) -> list[float]:
        """Milliseconds of each kernel; residuals stay within the range of those seen."""
        import numpy as np

        if not kernels:
            return []
        points = np.array([_features(kernel, self.categories) for kernel in kernels])
        residual = _gauss(points, self.points, self.length) @ (self.inverse @ self.target)
        base = self.roofline.predict(np.array([roofline_terms(k) for k in kernels]))
        low, high = float(self.target.min()), float(self.target.max())
        return [float(t) for t in base * np.exp(np.clip(residual, low, high))]

    def without(self, left_out: Sequence[int]) -> dict[int, float]:
        """What the fit would have said of some of its own samples, had it not seen them.

        Args:
            left_out: indices into the samples that were given to `fit`.

        Returns:
            Milliseconds by index.
        """
        import numpy as np

        keep = np.ones(len(self.times_ms), dtype=bool)
        keep[list(left_out)] = False
        roofline = self.roofline
        if keep.any():
            roofline = Roofline.fit(self.terms[keep], self.times_ms[keep])
        base = roofline.predict(self.terms)
        place = {int(index): i for i, index in enumerate(self.picks)}
        inside = [place[i] for i in left_out if i in place]
        answers = {i: float(base[i]) for i in left_out}
        if not keep[self.picks].any():
            return answers
        target = np.log(self.times_ms[self.picks] / base[self.picks])
        weights = self.inverse @ target
        kept = target[keep[self.picks]]
        low, high = float(kept.min()), float(kept.max())
        if inside:
            block = self.inverse[np.ix_(inside, inside)]
            residual = target[inside] - np.linalg.solve(block, weights[inside])
            for i, value in zip(inside, residual, strict=True):
                index = int(self.picks[i])
                answers[index] = float(base[index] * math.exp(min(max(value, low), high)))
        return answers


def _labels(kernel: Kernel) -> tuple[str, str]:
    return f"op {kernel.op} {kernel.dtype}", f"activation {kernel.activation}"


def _features(kernel: Kernel, categories: Sequence[str]) -> list[float]:
    """Features of a kernel, scaled so that a distance of one is a noticeable difference."""

    def log(value: float, unit: float) -> float:
        return math.log2(value + 1.0) / unit

    flops = effective_flops(kernel)
    channels_in = kernel.inputs[0][1] if kernel.inputs and len(kernel.inputs[0]) > 1 else 1
    channels_out = kernel.output[1] if len(kernel.output) > 1 else 1
    pixels = math.prod(kernel.output[2:]) if len(kernel.output) > 2 else 1
    stride = kernel.strides[0] if kernel.strides else 1
    dilation = kernel.dilations[0] if kernel.dilations else 1
    numbers = [
        log(flops, 4.0),
        log(kernel.bytes_in, 3.0),
        log(kernel.bytes_out, 3.0),
        log(kernel.bytes_weights, 4.0),
        log(channels_in, 1.5),
        log(channels_out, 1.5),
        log(pixels, 3.0),
        log(math.prod(kernel.kernel), 1.5),
        float(stride - 1),
        0.7 * (dilation - 1),
        log(kernel.groups, 2.0),
        0.7 * (channels_in % _VECTOR_WIDTH > 0),
        0.7 * (channels_out % _VECTOR_WIDTH > 0),
        2.0 * math.log2(max(flops, 1.0) / max(kernel.flops, 1.0)),
        0.7 * kernel.fused_add,
        0.5 * (len(kernel.inputs) - 1),
    ]
    labels = set(_labels(kernel))
    scale = {"op": 2.0, "activation": 0.6}
    return numbers + [scale[c.split(" ", 1)[0]] * (c in labels) for c in categories]


def _gauss(a: Array, b: Array, length: float) -> Array:
    """Gaussian kernel; shapes `(n, f)` and `(m, f)` in, `(n, m)` out."""
    import numpy as np

    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.asarray(np.exp(-np.maximum(squared, 0.0) / (2 * length**2)))


def _tune(points: Array, target: Array, doubt: Array) -> tuple[float, float]:
    """Length and noise with the smallest leave-one-out error.

    The noise is relative to the variance of the target, with which the ridge is scaled.
    """
    import numpy as np

    if len(points) > _TUNING_POINTS:
        chosen = np.random.default_rng(0).permutation(len(points))[:_TUNING_POINTS]
        points, target, doubt = points[chosen], target[chosen], doubt[chosen]
    best = (math.inf, _LENGTHS[1], _NOISES[1])
    for length in _LENGTHS:
        gram = _gauss(points, points, length)
        for noise in _NOISES:
            inverse = np.linalg.inv(gram + np.diag(noise * doubt))
            errors = (inverse @ target) / np.diag(inverse)
            best = min(best, (float(np.abs(errors).mean()), length, noise))
    return best[1], best[2]
