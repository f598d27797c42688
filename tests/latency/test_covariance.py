"""A covariance in parts says what its matrix says."""

import numpy as np
import pytest

from latency.covariance import Covariance


@pytest.fixture
def covariance() -> Covariance:
    random = np.random.default_rng(0)
    root, cross = random.standard_normal((6, 6)), random.standard_normal((6, 9))
    told = random.standard_normal((9, 9))
    return Covariance(root @ root.T + 200 * np.eye(6), cross, told + told.T)


def test_sums_and_deviations_are_those_of_the_matrix(covariance: Covariance) -> None:
    weights = np.random.default_rng(1).standard_normal(6)
    expected = weights @ covariance.matrix @ weights
    assert covariance.of_sum(weights) == pytest.approx(expected)
    np.testing.assert_allclose(covariance.deviations**2, np.diag(covariance.matrix))


def test_alone_the_prior_is_all() -> None:
    alone = Covariance(np.diag([1.0, 4.0]))
    assert alone.of_sum(np.array([1.0, 2.0])) == 17.0
    np.testing.assert_array_equal(alone.deviations, [1.0, 2.0])
    np.testing.assert_array_equal(alone.matrix, np.diag([1.0, 4.0]))


def test_rounding_leaves_no_negative_variance() -> None:
    ones = np.ones((2, 2))
    nothing = Covariance(ones, np.ones((2, 1)), np.array([[1.0 + 1e-12]]))
    assert nothing.of_sum(np.array([1.0, 1.0])) == 0.0
    assert (nothing.deviations == 0.0).all()
