"""Kernel times of a runtime that only tells how long whole networks take.

The times of a network's kernels are what makes its latency up, so many networks that share kinds of
kernels tell what each kind takes. Two steps:

1. A roofline for each family, all fitted together, with what every run costs beside its kernels:
   the latencies of the networks, relative errors minimised, no coefficient negative. Families that
   too little is told about lean on the roofline of all.
2. What is left is the sum of what each kernel's logarithm is off by, weighted with the kernel's
   time. With a Gaussian process over each family's features those sums are Gaussian too, so the
   means of all kernels, given all networks, have a closed form (regression with aggregated
   observations: Law et al., *Variational Learning on Aggregate Outputs with Gaussian Processes*,
   NeurIPS 2018, section 2, for a linear link). A time is an exponential of the process, so the
   weights are renewed and the form is solved again, a few times (Gauss-Newton).

How far kernels' features reach (one factor for all lengths), how much kernels vary, and how noisy
latencies are, maximise the marginal likelihood of the networks. Each family's features are scaled
to unit deviation first. This is this project's own choice; docs/adr/0015-runtimes-that-say-less.md
has what it gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latency.context import contexts
from latency.gaussian_process import inducing_points, matern
from latency.regressor import Described

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from latency.kernel import Kernel

    Array = npt.NDArray[np.float64]

__all__ = ["WholeNetwork", "WorkedOut", "kernel_times"]

_ROUNDS = 4
"""Of Gauss-Newton; the third changes times by less than a percent."""
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
_JITTER = 1e-6
_START = (-1.9, -1.9, -7.0)
"""Logarithms of the inverse length of a feature of unit deviation, of the prior variance and of the
variance of a latency's logarithm."""
_BOUNDS = ((-4.0, 0.5), (-5.0, 0.7), (-9.2, -3.0))
_STEPS = 25


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


@dataclass(frozen=True, eq=False)
class _Family:
    """All kernels of one family, in all networks.

    Attributes:
        owner: of each kernel, the number of its network, shape `(kernels,)`.
        place: and its place in that.
        described: features and roofline terms.
    """

    owner: npt.NDArray[np.intp]
    place: npt.NDArray[np.intp]
    described: Described


@dataclass(frozen=True, eq=False)
class _Prior:
    """A family's kernels as a process sees them, features scaled to unit deviation.

    Attributes:
        points: shape `(kernels, features)`.
        inducing: some of them, those that are furthest from each other.
    """

    points: Array
    inducing: Array

    def factors(self, length: float, amplitude: float) -> tuple[Array, Array]:
        """What the inducing points tell of each kernel, and the variance that they leave.

        Returns:
            Shape `(kernels, inducing)`, whose product with itself is the covariance, and
            `(kernels,)`.
        """
        import numpy as np
        from scipy.linalg import solve_triangular

        inducing = self.inducing * length
        inner = matern(inducing, inducing, amplitude)
        inner[np.diag_indices_from(inner)] += _JITTER * amplitude
        cross = matern(self.points * length, inducing, amplitude)
        told = solve_triangular(np.linalg.cholesky(inner), cross.T, lower=True, check_finite=False)
        return told.T, np.maximum(amplitude - (told**2).sum(axis=0), 0.0)


@dataclass(frozen=True, slots=True)
class WorkedOut:
    """What was worked out of one network.

    Attributes:
        times_ms: of each kernel; they add up to about the network's latency without what a run
            costs beside its kernels.
        left_out_ms: what the network's latency would be said to be if it had not been there; the
            rooflines keep what they have learned from it.
    """

    times_ms: tuple[float, ...]
    left_out_ms: float


def kernel_times(networks: Sequence[WholeNetwork], *, quick: bool = False) -> tuple[WorkedOut, ...]:
    """The time of each kernel of each network, such that networks add up.

    Args:
        networks: measured as a whole.
        quick: with the lengths and variances that are usual, instead of those found.
    """
    if not networks:
        return ()
    return _Apportioning(networks).worked_out(tuned=not quick)


class _Apportioning:
    """One run of the two steps."""

    def __init__(self, networks: Sequence[WholeNetwork]) -> None:
        import numpy as np

        self.networks = networks
        self.wholes = np.array([n.whole_ms for n in networks])
        self.noise = np.array([n.noise for n in networks])
        members: dict[str, list[tuple[int, int]]] = {}
        for number, network in enumerate(networks):
            for place, kernel in enumerate(network.kernels):
                members.setdefault(kernel.family, []).append((number, place))
        self.families = {
            name: _Family(
                np.array([number for number, _ in own], dtype=np.intp),
                np.array([place for _, place in own], dtype=np.intp),
                Described.of([networks[number].kernels[place] for number, place in own]),
            )
            for name, own in sorted(members.items())
        }
        self.fixed_ms, self.rooflines = self._rooflines()

    def worked_out(self, tuned: bool) -> tuple[WorkedOut, ...]:
        """See `kernel_times`."""
        import numpy as np

        errors = np.zeros(len(self.wholes))
        off = {name: np.zeros(len(own.owner)) for name, own in self.families.items()}
        hyper: Sequence[float] = _START
        if len(self.networks) >= 4:
            for step in range(_ROUNDS):
                times = self._times(off)
                priors = self._priors(times)
                if tuned and step == 1:
                    hyper = self._tuned(priors, times, off)
                off, errors = self._solved(priors, times, off, hyper)
        rows = self._by_network(self._times(off))
        if len(self.networks) < 4:
            errors = 1.0 - (np.array([sum(row) for row in rows]) + self.fixed_ms) / self.wholes
        left_out = self.wholes * np.maximum(1.0 - errors, _LEAST_LEFT_OUT)
        return tuple(WorkedOut(row, float(own)) for row, own in zip(rows, left_out, strict=True))

    # -- rooflines

    def _rooflines(self) -> tuple[float, dict[str, Array]]:
        """What a run costs beside its kernels, and the roofline of each kernel, by family."""
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
            name: np.maximum(
                own.described.terms @ found[i * terms : (i + 1) * terms], 1e-5 * self.wholes.min()
            )
            for i, (name, own) in enumerate(self.families.items())
        }
        return float(found[-1]), rooflines

    def _summed(self, family: _Family, values: Array) -> Array:
        """Sums over each network's kernels of a family; the first axis becomes the networks."""
        import numpy as np

        total = np.zeros((len(self.wholes), *values.shape[1:]))
        np.add.at(total, family.owner, values)
        return total

    # -- the processes

    def _times(self, off: dict[str, Array]) -> dict[str, Array]:
        import numpy as np

        return {name: own * np.exp(off[name]) for name, own in self.rooflines.items()}

    def _by_network(self, times: dict[str, Array]) -> tuple[tuple[float, ...], ...]:
        rows = [[0.0] * len(network.kernels) for network in self.networks]
        for name, own in self.families.items():
            for number, place, time_ms in zip(own.owner, own.place, times[name], strict=True):
                rows[number][place] = float(time_ms)
        return tuple(tuple(row) for row in rows)

    def _priors(self, times: dict[str, Array]) -> dict[str, _Prior]:
        import numpy as np

        around = [
            contexts(network.kernels, network.sources, row)
            for network, row in zip(self.networks, self._by_network(times), strict=True)
        ]
        priors = {}
        for name, own in self.families.items():
            surroundings = [around[n][p] for n, p in zip(own.owner, own.place, strict=True)]
            points = np.hstack([own.described.within(surroundings), _marks(own.described.labels)])
            spread = points.std(axis=0)
            varies = spread > 1e-9
            points = (points[:, varies] - points[:, varies].mean(axis=0)) / spread[varies]
            if not varies.any():
                points = np.zeros((len(points), 1))
            rng = np.random.default_rng(0)
            length = float(np.exp(_START[0]))
            chosen = inducing_points(points * length, 1.0, _INDUCING, rng) / length
            priors[name] = _Prior(points, chosen)
        return priors

    def _system(
        self, priors: dict[str, _Prior], times: dict[str, Array], hyper: Sequence[float]
    ) -> tuple[Array, dict[str, tuple[Array, Array, Array]]]:
        """The covariance of the networks' relative errors, and what each family brings to it."""
        import numpy as np

        length, amplitude, noise = np.exp(np.asarray(hyper))
        diagonal = np.maximum(self.noise**2, noise) + noise
        covariance = np.zeros((len(self.wholes), len(self.wholes)))
        parts = {}
        for name, own in self.families.items():
            told, left = priors[name].factors(float(length), float(amplitude))
            weights = times[name] / self.wholes[own.owner]
            summed = self._summed(own, told * weights[:, None])
            covariance += summed @ summed.T
            diagonal = diagonal + self._summed(own, left * weights**2)
            parts[name] = told, left * weights, summed
        covariance[np.diag_indices_from(covariance)] += diagonal
        return covariance, parts

    def _target(self, times: dict[str, Array], off: dict[str, Array]) -> Array:
        """What the weighted sum of the kernels' logarithms has to be in each network."""
        import numpy as np

        target = self.wholes - self.fixed_ms
        for name, own in self.families.items():
            target = target - self._summed(own, times[name] * (1.0 - off[name]))
        return np.asarray(target / self.wholes)

    def _solved(
        self,
        priors: dict[str, _Prior],
        times: dict[str, Array],
        off: dict[str, Array],
        hyper: Sequence[float],
    ) -> tuple[dict[str, Array], Array]:
        """The mean of each kernel's logarithm over its roofline, and the errors of left-out ones.

        Returns:
            By family, shape `(kernels,)`; and by how much of its latency each network would be
            predicted too low by all others, shape `(networks,)` (Rasmussen and Williams, equation
            5.12).
        """
        import numpy as np

        covariance, parts = self._system(priors, times, hyper)
        inverse = np.linalg.inv(covariance)
        solved = inverse @ self._target(times, off)
        means = {}
        for name, (told, left, summed) in parts.items():
            mean = told @ (summed.T @ solved) + left * solved[self.families[name].owner]
            means[name] = np.clip(mean, -_MOST, _MOST)
        return means, solved / np.diag(inverse)

    def _tuned(
        self, priors: dict[str, _Prior], times: dict[str, Array], off: dict[str, Array]
    ) -> tuple[float, ...]:
        """The length, variance and noise under which the latencies are most likely."""
        import numpy as np
        from scipy.optimize import minimize

        target = self._target(times, off)
        low, high = np.array(_BOUNDS).T

        def unlikelihood(logs: Array) -> float:
            inside = np.clip(logs, low, high)
            covariance, _ = self._system(priors, times, inside.tolist())
            factor = np.linalg.cholesky(covariance)
            whitened = np.linalg.solve(factor, target)
            outside = float(((logs - inside) ** 2).sum())
            return float(0.5 * whitened @ whitened + np.log(np.diag(factor)).sum()) + outside

        found = minimize(
            unlikelihood, _START, method="Nelder-Mead",
            options={"maxfev": _STEPS, "initial_simplex": _simplex()},
        ).x  # fmt: skip
        return tuple(float(x) for x in np.clip(found, low, high))


def _simplex() -> Array:
    import numpy as np

    corners = np.tile(np.array(_START), (4, 1))
    corners[1, 0] += 0.7
    corners[2, 1] += 1.0
    corners[3, 2] += 1.5
    return corners


def _marks(labels: Sequence[tuple[str, ...]]) -> Array:
    """Which labels each kernel has, shape `(kernels, labels)`."""
    import numpy as np

    known = {label: i for i, label in enumerate(sorted({x for own in labels for x in own}))}
    marks = np.zeros((len(labels), len(known)))
    for row, own in enumerate(labels):
        for label in own:
            marks[row, known[label]] = 1.0
    return marks
