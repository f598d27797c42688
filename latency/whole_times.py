"""Kernel times of a runtime that only tells how long whole networks take.

The times of a network's kernels are what makes its latency up, so many networks that share kinds of
kernels tell what each kind takes. Two steps:

1. A roofline for each family, all fitted together, with what every run costs beside its kernels:
   the latencies of the networks, relative errors minimised, no coefficient negative. Families that
   too little is told about lean on the roofline of all.
2. What is left is the sum of what each kernel's logarithm is off by, weighted with the kernel's
   time. With a Gaussian process over each family's features those sums are Gaussian too: the
   covariance of two networks is the sum over their pairs of kernels, and what all networks tell of
   any kernel, measured or not, has a closed form (regression with aggregated observations: Law et
   al., *Variational Learning on Aggregate Outputs with Gaussian Processes*, NeurIPS 2018, section
   2, for a linear link). A time is an exponential of the process, so the weights are renewed and
   the form is solved again, a few times (Gauss-Newton).

How much each feature matters (one factor for all families, for the networks tell too little to find
one for each), how much kernels of each family vary, and how noisy latencies are, are the most
likely ones given the latencies and a broad prior (Rasmussen and Williams, *Gaussian Processes for
Machine Learning*, 2006, equations 5.8 and 5.9). Each family's features are scaled to unit deviation
first.

A network may be off by what no kernel explains (layers that a runtime puts between two others), so
that errors have the tails of Student's distribution: each latency's variance grows with what it is
off by (Lange, Little and Taylor, *Robust Statistical Modeling Using the t Distribution*, JASA 1989,
section 3). This is this project's own choice; docs/adr/0015-runtimes-that-say-less.md has what it
gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latency.context import Surroundings
from latency.features import FEATURES
from latency.gaussian_process import GaussianProcess, inducing_points, matern
from latency.regressor import Described, FamilyRegressor
from latency.roofline import Roofline

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from latency.kernel import Kernel

    Array = npt.NDArray[np.float64]

__all__ = ["Explained", "WholeNetwork", "WorkedOut", "explain"]

_ROUNDS = 4
"""Of Gauss-Newton; the third changes times by less than a percent."""
_TUNED_ROUNDS = (1, 2)
_TUNING_STEPS = 40
_INDUCING = 300
_MOST = 2.0
"""By which the logarithm of a kernel's time is off its roofline, at most."""
_ROOFLINE_DEVIATION = 0.15
"""Relative deviation of latencies from what rooflines say: how much a family leans on all others'
roofline instead of on its own networks depends on it."""
_LEANING = 1.2
"""Deviation of the logarithms of a family's coefficients from those of all."""
_LEAST_PART = 0.01
"""Of the time of all networks, that each term of the roofline of all takes at least."""
_LEAST_LEFT_OUT = 0.02
"""Of its latency that a network is said to take, at least."""
_FEW = 4
"""Networks with fewer than these have rooflines only."""
_JITTER = 1e-6
_LENGTH = (-1.9, 1.0)
"""Logarithm of the inverse length of a feature of unit deviation: what it is expected to be, and by
how much it may differ."""
_AMPLITUDE = (-1.0, 0.7)
"""The same of a family's prior variance."""
_NOISE = (-7.0, 1.5)
"""The same of the variance of a latency's logarithm, beside what its visits say."""
_LEAST_NOISE = 1e-6
"""Variance of a latency's logarithm, at least: a tenth of a per cent."""
_FREEDOM = 4.0
"""Degrees of freedom of Student's distribution."""
_BOUNDS = 6.0
"""Of those deviations, that a parameter stays within."""


@dataclass(frozen=True)
class WholeNetwork:
    """One network, measured as a whole.

    Attributes:
        kernels: in the order of execution, at least one.
        sources: see `latency.context.contexts`.
        whole_ms: latency.
        noise: standard error of its logarithm.
    """

    kernels: Sequence[Kernel]
    sources: Sequence[Sequence[int]]
    whole_ms: float
    noise: float


@dataclass(frozen=True, slots=True)
class WorkedOut:
    """What was worked out of one network.

    Attributes:
        times_ms: of each kernel; they add up to about the network's latency without what a run
            costs beside its kernels.
        left_out_ms: what the network's latency would be said to be if it had not been there; the
            rooflines keep what they have learned from it.
        left_out_deviation: standard deviation of that one's logarithm, as the process sees it.
    """

    times_ms: tuple[float, ...]
    left_out_ms: float
    left_out_deviation: float


@dataclass(frozen=True, eq=False)
class Explained:
    """What many networks tell.

    Attributes:
        networks: what was worked out of each, in the order given.
        families: what takes how long, by the kernels' family.
        fixed_ms: what every run costs beside its kernels.
    """

    networks: tuple[WorkedOut, ...]
    families: Mapping[str, FamilyRegressor]
    fixed_ms: float


def explain(networks: Sequence[WholeNetwork], *, quick: bool = False) -> Explained:
    """The time of each kernel of each network, such that networks add up, and of any other kernel.

    Args:
        networks: measured as a whole.
        quick: with the lengths and variances that are usual, instead of those found.
    """
    if not networks:
        return Explained((), {}, 0.0)
    return _Apportioning(networks).explained(tuned=not quick)


@dataclass(frozen=True, eq=False)
class _Family:
    """All kernels of one family, in all networks.

    Attributes:
        owner: of each kernel, the number of its network, shape `(kernels,)`.
        place: and its place in that.
        described: features and roofline terms.
        labels: all that occur.
        marks: which of them each kernel has, shape `(kernels, labels)`.
        parameters: number of the inverse length of each feature and label.
    """

    owner: npt.NDArray[np.intp]
    place: npt.NDArray[np.intp]
    described: Described
    labels: tuple[str, ...]
    marks: Array
    parameters: npt.NDArray[np.intp]

    @classmethod
    def of(cls, members: Sequence[tuple[int, int]], networks: Sequence[WholeNetwork]) -> _Family:
        """From the places of its kernels: network, and kernel in that."""
        import numpy as np

        described = Described.of([networks[number].kernels[place] for number, place in members])
        labels = tuple(sorted({label for own in described.labels for label in own}))
        known = {label: index for index, label in enumerate(labels)}
        marks = np.zeros((len(members), len(labels)))
        for row, own in enumerate(described.labels):
            marks[row, [known[label] for label in own]] = 1.0
        # Labels of one kind ("op", "activation", modes) matter alike.
        kinds = [len(FEATURES) + _KINDS.get(label.split(" ")[0], 2) for label in labels]
        return cls(
            np.array([number for number, _ in members], dtype=np.intp),
            np.array([place for _, place in members], dtype=np.intp),
            described,
            labels,
            marks,
            np.array([*range(len(FEATURES)), *kinds], dtype=np.intp),
        )


_KINDS = {"op": 0, "activation": 1}
_LENGTHS = len(FEATURES) + len(_KINDS) + 1


@dataclass(frozen=True, eq=False)
class _Placed:
    """A family's kernels in their surroundings, features scaled to unit deviation.

    Attributes:
        center: of each feature, shape `(features,)`.
        spread: deviation of each; infinite where it never varies.
        points: shape `(kernels, features)`.
        inducing: some of them, those that are furthest from each other.
        weights: what each kernel takes as a part of its network's latency, shape `(kernels,)`.
    """

    center: Array
    spread: Array
    points: Array
    inducing: Array
    weights: Array


@dataclass(frozen=True, eq=False)
class _Part:
    """What one family brings to the covariance of the networks, with given hyperparameters.

    Attributes:
        amplitude: prior variance.
        lengths: inverse length of each feature, shape `(features,)`.
        cross: covariance of kernels and inducing points, shape `(kernels, inducing)`.
        inner: of the inducing points, shape `(inducing, inducing)`.
        inverse: of that.
        told: `cross @ inverse`.
        left: variance of each kernel that the inducing points leave open, shape `(kernels,)`.
        summed: `cross`, weighted and summed over networks, shape `(networks, inducing)`.
        solved: `summed @ inverse`.
    """

    amplitude: float
    lengths: Array
    cross: Array
    inner: Array
    inverse: Array
    told: Array
    left: Array
    summed: Array
    solved: Array


class _Apportioning:
    """One run of the two steps."""

    def __init__(self, networks: Sequence[WholeNetwork]) -> None:
        import numpy as np

        self.networks = networks
        self.wholes = np.array([n.whole_ms for n in networks])
        self.noise = np.array([n.noise for n in networks])
        self.surroundings = [Surroundings.of(n.kernels, n.sources) for n in networks]
        members: dict[str, list[tuple[int, int]]] = {}
        for number, network in enumerate(networks):
            for place, kernel in enumerate(network.kernels):
                members.setdefault(kernel.family, []).append((number, place))
        self.families = {name: _Family.of(own, networks) for name, own in sorted(members.items())}
        self.fixed_ms, self.rooflines = self._rooflines()
        self.base_ms = {
            name: self.rooflines[name].predict(own.described.terms)
            for name, own in self.families.items()
        }
        self.scatter = np.ones(len(networks))
        usual = [_LENGTH] * _LENGTHS + [_AMPLITUDE] * len(self.families) + [_NOISE]
        self.expected, self.deviations = np.array(usual).T

    def explained(self, tuned: bool) -> Explained:
        """See `explain`."""
        import numpy as np

        off = {name: np.zeros(len(own.owner)) for name, own in self.families.items()}
        if len(self.networks) < _FEW:
            rows = self._by_network(self._times(off))
            deviation = np.full(len(rows), _ROOFLINE_DEVIATION)
            sums = np.array([sum(row) for row in rows]) + self.fixed_ms
            families = {
                name: FamilyRegressor(self.rooflines[name], own.labels, None)
                for name, own in self.families.items()
            }
            return self._result(rows, sums, deviation, families)
        hyper: Array = self.expected
        for step in range(_ROUNDS):
            placed = self._placed(self._times(off))
            target = self._target(off)
            if tuned and step in _TUNED_ROUNDS:
                hyper = self._tuned(placed, target, hyper)
            covariance, parts = self._system(placed, hyper)
            inverse: Array = np.asarray(np.linalg.inv(covariance), np.float64)
            solved = inverse @ target
            off = self._means(placed, parts, solved)
            unexplained = self._variances(hyper) * solved
            plain = self._variances(hyper) / self.scatter
            if step + 1 < _ROUNDS:
                self.scatter = (_FREEDOM + unexplained**2 / plain) / (_FREEDOM + 1.0)
        errors, variances = solved / np.diag(inverse), 1.0 / np.diag(inverse)
        return self._result(
            self._by_network(self._times(off)),
            self.wholes * np.maximum(1.0 - errors, _LEAST_LEFT_OUT),
            np.sqrt(np.maximum(variances - self._variances(hyper), 0.0)),
            {
                name: self._regressor(name, placed[name], part, inverse, solved)
                for name, part in parts.items()
            },
        )

    def _result(
        self,
        rows: Sequence[tuple[float, ...]],
        left_out_ms: Array,
        deviations: Array,
        families: Mapping[str, FamilyRegressor],
    ) -> Explained:
        each = zip(rows, left_out_ms.tolist(), deviations.tolist(), strict=True)
        return Explained(tuple(WorkedOut(*own) for own in each), families, self.fixed_ms)

    # -- rooflines

    def _rooflines(self) -> tuple[float, dict[str, Roofline]]:
        """What a run costs beside its kernels, and each family's roofline."""
        import numpy as np
        from scipy.optimize import least_squares, nnls

        sums = [self._summed(own, own.described.terms) for own in self.families.values()]
        shares = np.column_stack([*sums, np.ones(len(self.wholes))]) / self.wholes[:, None]
        common, _ = nnls(
            np.column_stack([np.sum(sums, axis=0) / self.wholes[:, None], shares[:, -1]]),
            np.ones(len(self.wholes)),
        )
        # Nothing takes no time: what is not seen among the others is taken as a small part.
        terms = len(common) - 1
        per_unit = np.sum(sums, axis=0).mean(axis=0) / self.wholes.mean()
        least = _LEAST_PART / np.where(per_unit > 0, per_unit, np.inf)
        expected = np.maximum(common[:terms], least)
        start = np.append(np.tile(expected, len(sums)), max(common[-1], 1e-3 * self.wholes.min()))
        used = (shares.max(axis=0) > 0) & (start > 0)
        shares, start = shares[:, used], start[used]
        leaning = np.eye(len(start)) / _LEANING

        def errors(logs: Array) -> Array:
            off = (shares @ (start * np.exp(logs)) - 1.0) / _ROOFLINE_DEVIATION
            return np.concatenate([off, leaning @ logs])

        def slopes(logs: Array) -> Array:
            return np.vstack([shares * (start * np.exp(logs)) / _ROOFLINE_DEVIATION, leaning])

        logs = least_squares(
            errors, np.zeros(len(start)), slopes, loss="soft_l1", bounds=(-5.0, 5.0), max_nfev=50
        ).x
        found = np.zeros(len(used))
        found[used] = start * np.exp(logs)
        rooflines = {
            name: Roofline(tuple(found[i * terms : (i + 1) * terms].tolist()))
            for i, name in enumerate(self.families)
        }
        return float(found[-1]), rooflines

    def _summed(self, family: _Family, values: Array) -> Array:
        """Sums over each network's kernels of a family; the first axis becomes the networks."""
        import numpy as np

        total = np.zeros((len(self.wholes), *values.shape[1:]))
        np.add.at(total, family.owner, values)
        return total

    # -- the processes

    def _times(self, off: Mapping[str, Array]) -> dict[str, Array]:
        import numpy as np

        return {name: own * np.exp(off[name]) for name, own in self.base_ms.items()}

    def _by_network(self, times: Mapping[str, Array]) -> tuple[tuple[float, ...], ...]:
        rows = [[0.0] * len(network.kernels) for network in self.networks]
        for name, own in self.families.items():
            for number, place, time_ms in zip(own.owner, own.place, times[name], strict=True):
                rows[number][place] = float(time_ms)
        return tuple(tuple(row) for row in rows)

    def _placed(self, times: Mapping[str, Array]) -> dict[str, _Placed]:
        import numpy as np

        around = [
            own.table(np.array(row))
            for own, row in zip(self.surroundings, self._by_network(times), strict=True)
        ]
        placed = {}
        for name, own in self.families.items():
            tables = np.array([around[n][p] for n, p in zip(own.owner, own.place, strict=True)])
            points = np.hstack([own.described.within(tables), own.marks])
            center, spread = points.mean(axis=0), points.std(axis=0)
            spread = np.where(spread > 1e-9, spread, np.inf)
            points = (points - center) / spread
            rng = np.random.default_rng(0)
            length = math.exp(_LENGTH[0])
            chosen = inducing_points(points * length, 1.0, _INDUCING, rng) / length
            weights = times[name] / self.wholes[own.owner]
            placed[name] = _Placed(center, spread, points, chosen, weights)
        return placed

    def _system(
        self, placed: Mapping[str, _Placed], hyper: Array
    ) -> tuple[Array, dict[str, _Part]]:
        """The covariance of the networks' relative errors, and what each family brings to it."""
        import numpy as np
        from scipy.linalg import cho_solve, solve_triangular

        diagonal = self._variances(hyper)
        covariance = np.zeros((len(self.wholes), len(self.wholes)))
        parts = {}
        for index, (name, own) in enumerate(self.families.items()):
            at = placed[name]
            amplitude = math.exp(hyper[_LENGTHS + index])
            lengths = np.exp(hyper[own.parameters])
            cross = matern(at.points * lengths, at.inducing * lengths, amplitude)
            inner = matern(at.inducing * lengths, at.inducing * lengths, amplitude)
            inner[np.diag_indices_from(inner)] += _JITTER * amplitude
            root = np.linalg.cholesky(inner)
            inverse = cho_solve((root, True), np.eye(len(inner)))
            told = cross @ inverse
            left = np.maximum(amplitude - (told * cross).sum(axis=1), 0.0)
            summed = self._summed(own, cross * at.weights[:, None])
            solved = summed @ inverse
            whitened = solve_triangular(root, summed.T, lower=True, check_finite=False)
            covariance += whitened.T @ whitened  # not negative, whatever the rounding
            diagonal = diagonal + self._summed(own, left * at.weights**2)
            parts[name] = _Part(
                amplitude, lengths, cross, inner, inverse, told, left, summed, solved
            )
        covariance[np.diag_indices_from(covariance)] += diagonal
        return covariance, parts

    def _variances(self, hyper: Array) -> Array:
        """Of each latency's logarithm, beside what its kernels leave open."""
        import numpy as np

        return np.asarray((self.noise**2 + math.exp(hyper[-1]) + _LEAST_NOISE) * self.scatter)

    def _target(self, off: Mapping[str, Array]) -> Array:
        """What the weighted sum of the kernels' logarithms has to be in each network."""
        import numpy as np

        times = self._times(off)
        target = self.wholes - self.fixed_ms
        for name, own in self.families.items():
            target = target - self._summed(own, times[name] * (1.0 - off[name]))
        return np.asarray(target / self.wholes)

    def _means(
        self, placed: Mapping[str, _Placed], parts: Mapping[str, _Part], solved: Array
    ) -> dict[str, Array]:
        """The mean of each kernel's logarithm over its roofline, by family."""
        import numpy as np

        means = {}
        for name, own in self.families.items():
            part = parts[name]
            mean = part.cross @ (part.solved.T @ solved)
            mean += part.left * placed[name].weights * solved[own.owner]
            means[name] = np.clip(mean, -_MOST, _MOST)
        return means

    def _regressor(
        self, name: str, placed: _Placed, part: _Part, inverse: Array, solved: Array
    ) -> FamilyRegressor:
        """What the networks tell of any kernel of a family.

        Args:
            name: of the family.
            placed: its kernels.
            part: of the covariance.
            inverse: of the covariance of the networks.
            solved: its product with their target.
        """
        import numpy as np

        # What is left open of the inducing points' weights: K⁻¹ - K⁻¹ Sᵀ C⁻¹ S K⁻¹ = A⁻¹.
        root = np.linalg.cholesky(part.inner)
        whitened = np.linalg.solve(root, part.summed.T)
        open_ = np.eye(len(root)) - whitened @ inverse @ whitened.T
        values, vectors = np.linalg.eigh((open_ + open_.T) / 2)
        # A = R Rᵀ, and the triangle of a QR decomposition of Rᵀ is its Cholesky factor.
        scaled = (vectors / np.sqrt(np.maximum(values, _JITTER))).T @ root.T
        triangle = np.linalg.qr(scaled, mode="r")
        process = GaussianProcess(
            center=placed.center,
            weights=part.lengths / placed.spread,
            amplitude=part.amplitude,
            noise=_JITTER,
            inducing=placed.inducing * part.lengths,
            factor=(triangle * np.sign(np.diag(triangle))[:, None]).T,
            target=part.solved.T @ solved,
            low=-_MOST,
            high=_MOST,
        )
        return FamilyRegressor(self.rooflines[name], self.families[name].labels, process)

    # -- hyperparameters

    def _tuned(self, placed: Mapping[str, _Placed], target: Array, start: Array) -> Array:
        """The lengths, variances and noise under which the latencies are most likely."""
        import numpy as np
        from scipy.optimize import minimize

        def objective(hyper: Array) -> tuple[float, Array]:
            return self._unlikelihood(placed, target, hyper)

        low = self.expected - _BOUNDS * self.deviations
        high = self.expected + _BOUNDS * self.deviations
        bounds: Sequence[tuple[float, float]] = list(zip(low.tolist(), high.tolist(), strict=True))
        found = minimize(
            objective, start.tolist(), jac=True, method="L-BFGS-B", bounds=bounds,
            options={"maxiter": _TUNING_STEPS, "maxfun": 2 * _TUNING_STEPS},
        ).x  # fmt: skip
        return np.asarray(found)

    def _unlikelihood(
        self, placed: Mapping[str, _Placed], target: Array, hyper: Array
    ) -> tuple[float, Array]:
        """Negative logarithm of how likely the latencies are, the prior included, and its slope."""
        import numpy as np
        from scipy.linalg import cho_solve

        covariance, parts = self._system(placed, hyper)
        try:
            factor = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            return math.inf, np.zeros(len(hyper))
        inverse = cho_solve((factor, True), np.eye(len(factor)))
        solved = inverse @ target
        away = (hyper - self.expected) / self.deviations
        value = 0.5 * (target @ solved + away @ away) + np.log(np.diag(factor)).sum()
        outer = 0.5 * (inverse - np.outer(solved, solved))
        slope = away / self.deviations
        slope[-1] += outer.diagonal() @ self.scatter * math.exp(hyper[-1])
        for index, (name, own) in enumerate(self.families.items()):
            lengths, amplitude = _slopes(placed[name], parts[name], own.owner, outer)
            np.add.at(slope, own.parameters, lengths)
            slope[_LENGTHS + index] += amplitude
        return float(value), slope


def _slopes(
    placed: _Placed, part: _Part, owner: npt.NDArray[np.intp], outer: Array
) -> tuple[Array, float]:
    """Slopes of a likelihood in the logarithms of a family's inverse lengths and variance.

    Args:
        placed: the family's kernels.
        part: of the covariance.
        owner: the network of each kernel.
        outer: slope in the covariance of the networks, shape `(networks, networks)`.
    """
    seen = outer @ part.solved
    alone = outer.diagonal()[owner] * placed.weights**2
    cross = placed.weights[:, None] * (2.0 * seen)[owner] - 2.0 * alone[:, None] * part.told
    inner = (part.told * alone[:, None]).T @ part.told - part.solved.T @ seen
    amplitude = float((seen * part.summed).sum() + (alone * part.left).sum())
    points, inducing = placed.points, placed.inducing
    lengths = _by_length(cross, part, points, inducing)
    return lengths + _by_length(inner, part, inducing, inducing), amplitude


def _by_length(slope: Array, part: _Part, a: Array, b: Array) -> Array:
    """From the slope in a Matérn matrix of points to those in the logarithms of inverse lengths."""
    import numpy as np

    # The derivative of (1 + d) exp(-d) in d² is -exp(-d) / 2.
    x, y = a * part.lengths, b * part.lengths
    squared = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2.0 * x @ y.T
    decay = np.exp(-np.sqrt(np.maximum(squared, 1e-12)))
    by_square = slope * decay * (-0.5 * part.amplitude)
    return np.asarray(
        2.0
        * (
            by_square.sum(axis=1) @ x**2
            + by_square.sum(axis=0) @ y**2
            - 2.0 * ((by_square.T @ x) * y).sum(axis=0)
        )
    )
