"""The covariance of many errors, of which mostly one sum is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

__all__ = ["Covariance"]


@dataclass(frozen=True, eq=False)
class Covariance:
    """`prior - cross told crossᵀ`, or `prior` alone.

    What is known of a weighted sum costs two products with a vector then, where the matrix costs
    two of matrices: a fifth of a whole prediction.

    Attributes:
        prior: shape `(errors, errors)`.
        cross: shape `(errors, inducing)`; None where nothing was told.
        told: symmetric, shape `(inducing, inducing)`.
    """

    prior: Array
    cross: Array | None = None
    told: Array | None = None

    def of_sum(self, weights: Array) -> float:
        """Variance of the errors' sum with these weights, shape `(errors,)`; not below 0."""
        whole = float(weights @ self.prior @ weights)
        if self.cross is not None and self.told is not None:
            seen = weights @ self.cross
            whole -= float(seen @ (self.told @ seen))
        return max(whole, 0.0)

    @property
    def deviations(self) -> Array:
        """Standard deviation of each error, shape `(errors,)`."""
        import numpy as np

        variances = np.diag(self.prior)
        if self.cross is not None and self.told is not None:
            variances = variances - ((self.cross @ self.told) * self.cross).sum(axis=1)
        return np.sqrt(np.maximum(variances, 0.0))

    @property
    def matrix(self) -> Array:
        """Shape `(errors, errors)`."""
        if self.cross is None or self.told is None:
            return self.prior
        return self.prior - self.cross @ self.told @ self.cross.T
