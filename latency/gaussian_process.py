"""Gaussian process regression with a relevance for each feature, sparse so that it scales.

A Matérn 3/2 kernel, whose length in each feature (automatic relevance determination), amplitude and
noise maximise the marginal likelihood of a few random subsets, as if these were independent of each
other (Rasmussen and Williams, *Gaussian Processes for Machine Learning*, 2006, equations 5.8 and
5.9; the sum over subsets as in Deisenroth and Ng, *Distributed Gaussian Processes*, ICML 2015,
section 3.1); the prior mean is zero, which here
means the roofline. All samples then enter through inducing points (the fully independent training
conditional, FITC, of Quiñonero-Candela and Rasmussen, JMLR 2005), chosen one after the other where
the variance that is left is largest; what these do not tell of a sample counts as its noise.
Without that (the deterministic conditional) a kernel far from all others was given a deviation of
2 % and was 30 % wrong. That makes the fit a linear regression on the inducing points, so that what
it would have said without some of its samples S has a closed form:

    e₋ₛ = (I - Φₛ A⁻¹ Φₛᵀ Dₛ⁻¹)⁻¹ eₛ,    A = K(U, U) + Φᵀ D⁻¹ Φ,    Φ = K(X, U),

with the diagonal D of noises, what the inducing points leave open included, and the residuals e of
the whole fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from latency.covariance import Covariance

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

__all__ = ["GaussianProcess", "inducing_points", "matern"]

_TUNING_SAMPLES = 500
"""Samples in a subset on which lengths are found: the cost grows with their cube."""
_TUNING_SUBSETS = 3
"""With one, networks of a card came out by 0.3 to 1.4 % too slow as a whole, depending on which
samples it held; with three by 0.9 to 1.1 % (docs/adr/0013-kernels-in-context.md)."""
_TUNING_STEPS = 30
_INDUCING = 600
_POOL = 6
"""Times as many samples as inducing points are looked at when these are chosen."""
_PRIOR_LOG_WEIGHT = -3.0
_PRIOR_DEVIATION = 3.0
_JITTER = 1e-6


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted process.

    Attributes:
        center: of each feature, shape `(features,)`.
        weights: inverse length of each feature, shape `(features,)`; 0 for those that never varied.
        amplitude: prior variance.
        noise: variance of a sample of ordinary doubt.
        inducing: inducing points, scaled, shape `(inducing, features)`.
        factor: Cholesky factor of A, lower, shape `(inducing, inducing)`.
        target: A⁻¹ Φᵀ D⁻¹ y, shape `(inducing,)`.
        low: smallest sample.
        high: largest sample.
    """

    center: Array
    weights: Array
    amplitude: float
    noise: float
    inducing: Array
    factor: Array
    target: Array
    low: float
    high: float

    @classmethod
    def fit(
        cls, points: Array, values: Array, doubt: Array, effort: float = 1.0, seed: int = 0
    ) -> Self:
        """Fits to samples.

        Args:
            points: features, shape `(samples, features)`; at least two samples.
            values: shape `(samples,)`.
            doubt: variance of each sample's noise relative to the others, same shape.
            effort: 1 for the full number of tuning samples and inducing points; less is faster.
            seed: of the choice of tuning samples.
        """
        import numpy as np
        from scipy.linalg import solve_triangular

        rng = np.random.default_rng(seed)
        center = points.mean(axis=0)
        spread = points.std(axis=0)
        varies = spread > 1e-9
        scaled = (points[:, varies] - center[varies]) / spread[varies]
        subsets = _subsets(rng.permutation(len(values)), max(20, int(_TUNING_SAMPLES * effort)))
        lengths, amplitude, noise = _tuned(
            [_Subset.of(scaled[few], values[few], doubt[few]) for few in subsets]
        )
        weights = np.zeros(points.shape[1])
        weights[varies] = lengths / spread[varies]
        placed = (points - center) * weights
        inducing = inducing_points(placed, amplitude, max(20, int(_INDUCING * effort)), rng)
        cross = matern(placed, inducing, amplitude)
        inner = matern(inducing, inducing, amplitude)
        inner[np.diag_indices_from(inner)] += _JITTER * amplitude
        known = solve_triangular(np.linalg.cholesky(inner), cross.T, lower=True, check_finite=False)
        missed = np.maximum(amplitude - (known**2).sum(axis=0), 0.0)
        precise = cross / (noise * doubt + missed + _JITTER)[:, None]
        factor: Array = np.asarray(np.linalg.cholesky(inner + precise.T @ cross), np.float64)
        target = _solve(factor, precise.T @ values)
        return cls(
            center, weights, amplitude, noise, inducing, factor, target,
            float(values.min()), float(values.max()),
        )  # fmt: skip

    def mean(self, points: Array) -> Array:
        """The means of `predict` alone, which cost much less; shape `(points,)`."""
        import numpy as np

        return np.clip(self._cross(points) @ self.target, self.low, self.high)

    def predict(self, points: Array) -> tuple[Array, Covariance]:
        """Mean and covariance at points.

        Args:
            points: shape `(points, features)`.

        Returns:
            The means, kept within the range of the samples, shape `(points,)`, and the covariance
            of the function, the noise of a sample left out: points that are alike err alike.
        """
        import numpy as np

        cross = self._cross(points)
        mean = np.clip(cross @ self.target, self.low, self.high)
        placed = self._placed(points)
        return mean, Covariance(matern(placed, placed, self.amplitude), cross, self._told)

    def without(
        self,
        points: Array,
        values: Array,
        doubt: Array,
        groups: npt.NDArray[np.intp] | None = None,
    ) -> Iterator[tuple[npt.NDArray[np.intp], Array, Array]]:
        """As `predict` at samples of the fit, group by group, as if a group had not been there.

        The covariances are plain matrices.

        Args:
            points: of the samples, shape `(samples, features)`.
            values: theirs, shape `(samples,)`.
            doubt: as in `fit`.
            groups: of each sample, same shape: those of one group are left out together; one group
                by default.

        Yields:
            Of each group the places of its samples, the means and the covariance at them.
        """
        import numpy as np
        from scipy.linalg import solve_triangular

        cross = self._cross(points)
        means = cross @ self.target
        known = solve_triangular(self.factor, cross.T, lower=True, check_finite=False)
        prior = solve_triangular(self._prior_factor, cross.T, lower=True, check_finite=False)
        variance = self.amplitude - (prior**2).sum(axis=0)
        precision = 1.0 / (self.noise * doubt + np.maximum(variance, 0.0) + _JITTER)
        placed = self._placed(points)
        if groups is None:
            groups = np.zeros(len(values), dtype=np.intp)
        order = np.argsort(groups, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
            own = known[:, members]
            hat = own.T @ own
            left = np.eye(len(members)) - hat * precision[members]
            right = np.column_stack([values[members] - means[members], hat])
            solved = np.linalg.solve(left, right)
            mean = np.clip(values[members] - solved[:, 0], self.low, self.high)
            at = placed[members]
            missed = matern(at, at, self.amplitude) - prior[:, members].T @ prior[:, members]
            # A⁻¹ without the samples, by Woodbury's identity.
            yield members, mean, missed + solved[:, 1:]

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What the process is made of, as arrays."""
        import numpy as np

        numbers = [self.amplitude, self.noise, self.low, self.high]
        return {
            "center": self.center,
            "weights": self.weights,
            "inducing": self.inducing,
            "factor": self.factor[np.tril_indices(len(self.factor))],
            "target": self.target,
            "numbers": np.array(numbers),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The process from what `to_arrays` gave.

        Raises:
            KeyError: an array is missing.
            ValueError: an array has another shape, or holds what is no number.
        """
        import numpy as np

        with np.errstate(invalid="ignore"):
            found = {name: np.asarray(arrays[name], np.float64) for name in _ARRAYS}
        if not all(np.isfinite(array).all() for array in found.values()):
            raise ValueError("arrays of a Gaussian process are not finite")
        count, features = len(found["target"]), len(found["center"])
        shapes = {"center": (features,), "weights": (features,), "inducing": (count, features)}
        if any(found[name].shape != shape for name, shape in shapes.items()):
            raise ValueError("arrays of a Gaussian process do not fit each other")
        factor = np.zeros((count, count))
        factor[np.tril_indices(count)] = found.pop("factor")
        amplitude, noise, low, high = (float(x) for x in found.pop("numbers"))
        return cls(**found, factor=factor, amplitude=amplitude, noise=noise, low=low, high=high)

    @cached_property
    def _prior_factor(self) -> Array:
        """Cholesky factor of K(U, U)."""
        import numpy as np

        inner = matern(self.inducing, self.inducing, self.amplitude)
        inner[np.diag_indices_from(inner)] += _JITTER * self.amplitude
        return np.asarray(np.linalg.cholesky(inner))

    @cached_property
    def _told(self) -> Array:
        """K(U, U)⁻¹ - A⁻¹: what the samples tell of a point, as a form in its `_cross`.

        A product with it takes a third of the time of solving with both factors, which for few
        points is that of reading them.
        """
        import numpy as np
        from scipy.linalg.lapack import dpotri

        below = np.tril(dpotri(self._prior_factor, lower=True)[0])
        below -= np.tril(dpotri(self.factor, lower=True)[0])
        return np.asarray(below + np.tril(below, -1).T)

    def _placed(self, points: Array) -> Array:
        return (points - self.center) * self.weights

    def _cross(self, points: Array) -> Array:
        return matern(self._placed(points), self.inducing, self.amplitude)


_ARRAYS = ("center", "weights", "inducing", "factor", "target", "numbers")


def matern(a: Array, b: Array, amplitude: float) -> Array:
    """Matérn 3/2 kernel; shapes `(n, f)` and `(m, f)` in, `(n, m)` out."""
    squared = a @ (-2 * b.T)
    squared += (a**2).sum(1)[:, None]
    squared += (b**2).sum(1)[None]
    return _decayed(squared, amplitude)


def _decayed(squared: Array, amplitude: float) -> Array:
    """The Matérn 3/2 kernel of squared distances, which are overwritten."""
    import numpy as np

    distance = np.sqrt(np.maximum(squared, 1e-12, out=squared), out=squared)
    decay = np.exp(-distance)
    distance += 1
    distance *= decay
    distance *= amplitude
    return distance


def _solve(factor: Array, right: Array) -> Array:
    from scipy.linalg import cho_solve

    return cho_solve((factor, True), right, check_finite=False)


def inducing_points(points: Array, amplitude: float, count: int, rng: np.random.Generator) -> Array:
    """Points of which each next one is where the others say least: a pivoted Cholesky factor."""
    import numpy as np

    if len(points) <= count:
        return np.unique(points, axis=0)
    pool = points[rng.permutation(len(points))[: count * _POOL]]
    norms = (pool**2).sum(axis=1)
    left = np.full(len(pool), amplitude)
    # Single precision: which points are chosen matters, the factor itself is thrown away.
    rows = np.zeros((count, len(pool)), dtype=np.float32)
    chosen: list[int] = []
    for step in range(count):
        place = int(left.argmax())
        if left[place] < _JITTER * amplitude:
            break
        chosen.append(place)
        row = _decayed(norms[place] + norms - 2 * (pool @ pool[place]), amplitude)
        row -= rows[:step, place] @ rows[:step]
        rows[step] = row / np.sqrt(left[place])
        left = np.maximum(left - rows[step] ** 2, 0.0)
        left[place] = 0.0
    return np.asarray(pool[chosen])


def _subsets(order: npt.NDArray[np.intp], size: int) -> list[npt.NDArray[np.intp]]:
    """The beginning of an order, cut into subsets of about that size."""
    import numpy as np

    count = min(max(1, round(len(order) / size)), _TUNING_SUBSETS)
    return np.array_split(order[: count * size], count)


@dataclass(frozen=True, eq=False)
class _Subset:
    """Samples whose marginal likelihood is found again and again.

    Attributes:
        values: shape `(samples,)`.
        doubt: variance of each one's noise relative to the others, same shape.
        rows: of the pairs below the diagonal: everything is symmetric, so that these are enough.
        columns: of the same pairs.
        gaps: squared, in each feature, shape `(features, pairs)`; reading them is what takes the
            time, and single precision is enough.
    """

    values: Array
    doubt: Array
    rows: npt.NDArray[np.intp]
    columns: npt.NDArray[np.intp]
    gaps: npt.NDArray[np.float32]

    @classmethod
    def of(cls, points: Array, values: Array, doubt: Array) -> Self:
        """From samples with scaled features."""
        import numpy as np

        rows, columns = np.tril_indices(len(values), -1)
        gaps = np.ascontiguousarray((points[rows] - points[columns]).T ** 2, dtype=np.float32)
        return cls(values, doubt, rows, columns, gaps)

    def likelihood(self, squares: Array, amplitude: float, noise: float) -> tuple[float, Array]:
        """Negative logarithm of the marginal likelihood, and its slope in the logarithms.

        Args:
            squares: squared weights of the features, shape `(features,)`.
            amplitude: prior variance.
            noise: variance of a sample of ordinary doubt.

        Returns:
            Infinity where the kernel matrix is not positive definite; else the slope has shape
            `(features + 2,)`.
        """
        import numpy as np
        from scipy.linalg import cho_solve
        from scipy.linalg.lapack import dpotrf, dpotri

        rows, columns = self.rows, self.columns
        distance = np.sqrt((squares.astype(np.float32) @ self.gaps).astype(np.float64) + 1e-12)
        decay = np.exp(-distance)
        shape = (1 + distance) * decay
        kernel = np.zeros((len(self.values), len(self.values)))
        diagonal = np.diag_indices_from(kernel)
        kernel[rows, columns] = amplitude * shape
        kernel[diagonal] = amplitude + noise * self.doubt + _JITTER
        factor, failed = dpotrf(kernel, lower=True)
        if failed:
            return float("inf"), np.zeros(len(squares) + 2)
        weights = cho_solve((factor, True), self.values, check_finite=False)
        likelihood = 0.5 * self.values @ weights + np.log(factor[diagonal]).sum()
        inverse, _ = dpotri(factor, lower=True)
        slope = inverse[rows, columns] - weights[rows] * weights[columns]
        own = inverse[diagonal] - weights**2
        by_length = self.gaps @ (slope * decay).astype(np.float32)
        return float(likelihood), np.concatenate(
            [
                -0.5 * amplitude * squares * by_length,
                [amplitude * (slope @ shape + 0.5 * own.sum())],
                [0.5 * noise * (own @ self.doubt)],
            ]
        )


def _tuned(subsets: Sequence[_Subset]) -> tuple[Array, float, float]:
    """Weights, amplitude and noise that maximise the marginal likelihood of the subsets."""
    import numpy as np
    from scipy.optimize import minimize

    count = len(subsets[0].gaps)
    everything = np.concatenate([subset.values for subset in subsets])
    variance = max(float((everything**2).mean()), 1e-4)

    def objective(logs: Array) -> tuple[float, Array]:
        squares, amplitude, noise = np.exp(logs[:count]), np.exp(logs[-2]), np.exp(logs[-1])
        total, gradient = 0.0, np.zeros_like(logs)
        for subset in subsets:
            own, slope = subset.likelihood(squares, amplitude, noise)
            total, gradient = total + own, gradient + slope
        if not np.isfinite(total):
            return 1e10, np.zeros_like(logs)
        away = (logs[:count] - _PRIOR_LOG_WEIGHT) / _PRIOR_DEVIATION
        gradient[:count] += away / _PRIOR_DEVIATION
        return float(total + 0.5 * (away**2).sum()), gradient

    start = [*([np.log(0.15)] * count), np.log(variance), np.log(variance * 0.05)]
    bounds: Sequence[tuple[float, float]] = [*([(-9.0, 4.0)] * count), (-8.0, 3.0), (-9.0, 1.0)]
    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": _TUNING_STEPS},
    ).x  # fmt: skip
    return np.exp(found[:count] / 2), float(np.exp(found[-2])), float(np.exp(found[-1]))
