"""One regressor for one family of kernels: the logarithm of the residual over a roofline.

Far from everything measured its answer goes to zero, that is to the roofline, which is what
extrapolation should do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from latency.covariance import Covariance
from latency.features import FEATURES, context_features, kernel_labels, own_features
from latency.gaussian_process import GaussianProcess
from latency.roofline import Roofline, roofline_terms

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from latency.context import Context
    from latency.kernel import Kernel

    Array = npt.NDArray[np.float64]

__all__ = ["Described", "FamilyRegressor", "Sample", "Samples"]

_TICK_MS = 0.002
"""The profiler counts microseconds, so that shorter kernels carry less information."""
_FEW_VISITS = 4
"""Visits of a sample of ordinary doubt; fewer make it doubtful."""
_MIN_SAMPLES = 8
"""With fewer, a family has a roofline only."""
_SCARCE_DEVIATION = 0.35
"""Standard deviation of the logarithm where there is only a roofline."""
_MAX_KNOWN = 16_384
"""Kernels whose description is remembered: some 30 MB."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A kernel as it was measured once, in one network.

    Attributes:
        kernel: what was measured.
        context: what surrounded it.
        time_ms: measured.
        visits: how many the time is made of.
    """

    kernel: Kernel
    context: Context
    time_ms: float
    visits: int


_Description = tuple[tuple[float, ...], tuple[str, ...], tuple[float, ...]]


@lru_cache(maxsize=_MAX_KNOWN)
def _description(kernel: Kernel) -> _Description:
    """What `Described` holds of one kernel; networks of one space have many in common."""
    return tuple(own_features(kernel)), kernel_labels(kernel), roofline_terms(kernel)


@dataclass(frozen=True, eq=False)
class Described:
    """What of kernels does not depend on their network, as arrays.

    Attributes:
        features: see `latency.features.own_features`, shape `(kernels, own features)`.
        labels: see `latency.features.kernel_labels`, of each kernel.
        terms: of the roofline, shape `(kernels, terms)`.
    """

    features: Array
    labels: tuple[tuple[str, ...], ...]
    terms: Array

    @classmethod
    def of(cls, kernels: Sequence[Kernel]) -> Self:
        """From kernels, at least one."""
        import numpy as np

        # A kernel that occurs again is mostly the same object, and to hash one takes its time.
        known: dict[int, _Description] = {}
        for kernel in kernels:
            if id(kernel) not in known:
                known[id(kernel)] = _description(kernel)
        found = [known[id(kernel)] for kernel in kernels]
        return cls(
            np.array([features for features, _, _ in found]),
            tuple(labels for _, labels, _ in found),
            np.array([terms for _, _, terms in found]),
        )

    def within(self, surroundings: Sequence[Context] | Array) -> Array:
        """All features of the kernels, in their networks; shape `(kernels, features)`."""
        import numpy as np

        return np.hstack([self.features, context_features(surroundings)])

    def take(self, places: Sequence[int]) -> Self:
        """Some of them, in the order given."""
        index = list(places)
        labels = tuple(self.labels[place] for place in index)
        return type(self)(self.features[index], labels, self.terms[index])


@dataclass(frozen=True, eq=False)
class Samples:
    """Many samples of one family as arrays, so that nothing is worked out twice.

    Attributes:
        features: see `latency.features.kernel_features`, shape `(samples, features)`.
        labels: see `latency.features.kernel_labels`, of each sample.
        terms: of the roofline, shape `(samples, terms)`.
        times_ms: shape `(samples,)`.
        doubt: variance of each sample's noise relative to the others, same shape.
    """

    features: Array
    labels: tuple[tuple[str, ...], ...]
    terms: Array
    times_ms: Array
    doubt: Array

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Self:
        """From single samples, at least one."""
        import numpy as np

        own = Described.of([s.kernel for s in samples])
        features = own.within([s.context for s in samples])
        times = np.array([s.time_ms for s in samples])
        few = np.sqrt(np.maximum(1.0, _FEW_VISITS / np.array([s.visits for s in samples])))
        return cls(features, own.labels, own.terms, times, (1.0 + (_TICK_MS / times) ** 2) * few)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: Sequence[int]) -> Self:
        """Some of them, in the order given."""
        index = list(places)
        return type(self)(
            self.features[index],
            tuple(self.labels[place] for place in index),
            self.terms[index],
            self.times_ms[index],
            self.doubt[index],
        )


def _scarce(count: int) -> Array:
    """Covariance where there is only a roofline: wrong the same way for all."""
    import numpy as np

    return np.full((count, count), _SCARCE_DEVIATION**2)


@dataclass(frozen=True)
class FamilyRegressor:
    """A fitted regressor.

    Attributes:
        roofline: fitted to the same samples.
        labels: operations and activations seen, each a feature.
        process: of the residual; None where there were too few samples.
    """

    roofline: Roofline
    labels: tuple[str, ...]
    process: GaussianProcess | None

    @classmethod
    def fit(cls, samples: Samples, effort: float = 1.0) -> Self:
        """Fits to measured kernels.

        Args:
            samples: of one family, at least one, all times positive.
            effort: see `GaussianProcess.fit`.
        """
        import numpy as np

        roofline = Roofline.fit(samples.terms, samples.times_ms)
        labels = tuple(sorted({label for own in samples.labels for label in own}))
        bare = cls(roofline, labels, None)
        if len(samples) < _MIN_SAMPLES:
            return bare
        values = np.log(samples.times_ms / roofline.predict(samples.terms))
        points = bare._points(samples.features, samples.labels)
        return cls(roofline, labels, GaussianProcess.fit(points, values, samples.doubt, effort))

    def predict(
        self, kernels: Sequence[Kernel] | Described, surroundings: Sequence[Context] | Array
    ) -> tuple[Array, Covariance]:
        """Milliseconds of each kernel, and the covariance of their logarithms.

        Args:
            kernels: of this family, at least one.
            surroundings: of each, see `latency.features.context_features`.

        Returns:
            The times, shape `(kernels,)`, and the covariance.
        """
        import numpy as np

        own = kernels if isinstance(kernels, Described) else Described.of(kernels)
        base = self.roofline.predict(own.terms)
        if self.process is None:
            return base, Covariance(_scarce(len(base)))
        points = self._points(own.within(surroundings), own.labels)
        mean, covariance = self.process.predict(points)
        return base * np.exp(mean), covariance

    def times_ms(self, kernels: Described, surroundings: Sequence[Context] | Array) -> Array:
        """The times of `predict` alone, which cost much less; shape `(kernels,)`."""
        import numpy as np

        base = self.roofline.predict(kernels.terms)
        if self.process is None:
            return base
        points = self._points(kernels.within(surroundings), kernels.labels)
        return np.asarray(base * np.exp(self.process.mean(points)))

    def residuals(self, samples: Samples) -> Array:
        """Logarithm of each sample's time over what `predict` says; shape `(samples,)`."""
        import numpy as np

        values = np.log(samples.times_ms / self.roofline.predict(samples.terms))
        if self.process is None:
            return np.asarray(values)
        return values - self.process.mean(self._points(samples.features, samples.labels))

    def without(
        self, samples: Samples, groups: npt.NDArray[np.intp] | None = None
    ) -> Iterator[tuple[npt.NDArray[np.intp], Array, Array]]:
        """As `predict` for some of the fit's own samples, as if these had not been there.

        Args:
            samples: some of those given to `fit`, at least one. The roofline keeps what it has
                learned from them: four numbers are hardly moved by one network.
            groups: which samples are left out together, see `GaussianProcess.without`.

        Yields:
            Of each group the places of its samples, and what `predict` gives for them.
        """
        import numpy as np

        base = self.roofline.predict(samples.terms)
        if self.process is None:
            own = np.zeros(len(samples), dtype=np.intp) if groups is None else groups
            for group in np.unique(own):
                members = np.flatnonzero(own == group)
                yield members, base[members], _scarce(len(members))
            return
        values = np.log(samples.times_ms / base)
        points = self._points(samples.features, samples.labels)
        for members, mean, covariance in self.process.without(
            points, values, samples.doubt, groups
        ):
            yield members, base[members] * np.exp(mean), covariance

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """What it is made of: a JSON object and arrays."""
        about = {"roofline": list(self.roofline.coefficients), "labels": list(self.labels)}
        return about, self.process.to_arrays() if self.process else {}

    @classmethod
    def from_arrays(cls, about: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The regressor from what `to_arrays` gave.

        Raises:
            KeyError: something is missing.
            ValueError: an array has another shape.
        """
        process = GaussianProcess.from_arrays(arrays) if arrays else None
        roofline = Roofline.from_json(about["roofline"])
        labels = tuple(str(label) for label in about["labels"])
        if process is not None and len(process.center) != len(FEATURES) + len(labels):
            raise ValueError("a regressor of other features")
        return cls(roofline, labels, process)

    def _points(self, features: Array, labels: Sequence[tuple[str, ...]]) -> Array:
        """Features of kernels and which of the known labels they have."""
        import numpy as np

        place = {label: index for index, label in enumerate(self.labels)}
        marks = np.zeros((len(labels), len(place)))
        for row, own in enumerate(labels):
            for label in own:
                if label in place:
                    marks[row, place[label]] = 1.0
        return np.hstack([features, marks])
