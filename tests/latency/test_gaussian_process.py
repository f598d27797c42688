"""The Gaussian process: it finds functions, knows where it does not, and what it would not have."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency import gaussian_process
from latency.gaussian_process import GaussianProcess


def function(points: np.ndarray) -> np.ndarray:
    return np.sin(2 * points[:, 0]) + 0.5 * points[:, 1] ** 2 - 0.7


def drawn(count: int, seed: int = 0, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Points of which only the first two features matter, and values."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1.5, 1.5, (count, 5))
    return points, function(points) + noise * rng.standard_normal(count)


@pytest.fixture(scope="module")
def fitted() -> GaussianProcess:
    points, values = drawn(400, noise=0.02)
    return GaussianProcess.fit(points, values, np.ones(400))


@pytest.fixture(scope="module")
def small() -> tuple[GaussianProcess, np.ndarray, np.ndarray, np.ndarray]:
    """A process whose samples are all inducing points, with samples of unequal doubt."""
    points, values = drawn(40, seed=3, noise=0.1)
    doubt = np.random.default_rng(1).uniform(0.5, 3.0, 40)
    process = GaussianProcess.fit(points, values, doubt)
    assert len(process.inducing) == 40
    return process, points, values, doubt


def predict(process: GaussianProcess, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances."""
    mean, covariance = process.predict(points)
    np.testing.assert_allclose(covariance.matrix, covariance.matrix.T, atol=1e-9)
    return mean, covariance.deviations**2


def without(
    process: GaussianProcess, points: np.ndarray, values: np.ndarray, doubt: np.ndarray,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Means and variances of samples that were left out, in their order."""
    means, variances = np.full(len(values), np.nan), np.full(len(values), np.nan)
    for members, mean, covariance in process.without(points, values, doubt, groups):
        means[members], variances[members] = mean, np.maximum(np.diag(covariance), 0.0)
    return means, variances


def exact(
    process: GaussianProcess, points: np.ndarray, values: np.ndarray, doubt: np.ndarray,
    asked: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Gaussian process regression as in every textbook, with the process's own hyperparameters."""

    def covariance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        gaps = (a[:, None] - b[None]) * process.weights
        distance = np.sqrt((gaps**2).sum(axis=2))
        return process.amplitude * (1 + distance) * np.exp(-distance)

    inner = covariance(points, points) + np.diag(process.noise * doubt)
    cross = covariance(asked, points)
    mean = cross @ np.linalg.solve(inner, values)
    known = np.einsum("ij,ji->i", cross, np.linalg.solve(inner, cross.T))
    return mean, process.amplitude - known


class TestFitting:
    def test_a_known_function_is_found(self, fitted: GaussianProcess) -> None:
        points, _ = drawn(200, seed=9)
        mean, variance = predict(fitted, points)
        assert np.abs(mean - function(points)).mean() < 0.03
        assert (variance < 0.01).mean() > 0.9

    def test_irrelevant_features_are_found(self, fitted: GaussianProcess) -> None:
        assert fitted.weights[:2].min() > 3 * fitted.weights[2:].max()

    def test_noise_is_found(self, fitted: GaussianProcess) -> None:
        assert 0.01 < fitted.noise**0.5 < 0.05

    def test_it_is_the_textbook_s_when_all_points_are_inducing(self, small) -> None:
        process, points, values, doubt = small
        asked, _ = drawn(30, seed=7)
        mean, variance = predict(process, asked)
        expected, spread = exact(process, points, values, doubt, asked)
        np.testing.assert_allclose(mean, expected, atol=1e-4)
        np.testing.assert_allclose(variance, spread, atol=1e-4)

    def test_many_samples_need_few_inducing_points(self, monkeypatch) -> None:
        monkeypatch.setattr(gaussian_process, "_INDUCING", 60)
        points, values = drawn(900, noise=0.02)
        process = GaussianProcess.fit(points, values, np.ones(900))
        assert len(process.inducing) <= 60
        asked, _ = drawn(200, seed=9)
        assert np.abs(predict(process, asked)[0] - function(asked)).mean() < 0.05

    def test_doubtful_samples_count_less(self) -> None:
        points, values = drawn(120, noise=0.02)
        wrong = values.copy()
        wrong[::4] += 3.0
        doubt = np.ones(120)
        doubt[::4] = 2000.0
        asked, _ = drawn(100, seed=9)
        errors = [
            np.abs(GaussianProcess.fit(points, wrong, d).predict(asked)[0] - function(asked)).mean()
            for d in (doubt, np.ones(120))
        ]
        assert errors[0] < errors[1] / 3

    def test_fitting_twice_gives_the_same(self) -> None:
        points, values = drawn(60, noise=0.1)
        first, second = (GaussianProcess.fit(points, values, np.ones(60)) for _ in range(2))
        for name, array in first.to_arrays().items():
            np.testing.assert_array_equal(array, second.to_arrays()[name])

    def test_less_effort_takes_fewer_points(self) -> None:
        points, values = drawn(400, noise=0.1)
        process = GaussianProcess.fit(points, values, np.ones(400), effort=0.1)
        assert len(process.inducing) <= 60

    def test_the_gradient_is_the_slope(self, monkeypatch) -> None:
        """The likelihood's gradient, which the search for lengths goes by."""
        import scipy.optimize

        taken = {}

        def minimize(objective, start, **options):
            taken.update(objective=objective, start=np.array(start))
            return original(objective, start, **options)

        original = scipy.optimize.minimize
        monkeypatch.setattr(scipy.optimize, "minimize", minimize)
        points, values = drawn(30, noise=0.1)
        doubt = np.random.default_rng(1).uniform(0.5, 3.0, 30)
        GaussianProcess.fit(points, values, doubt)
        at, step = taken["start"] + 0.3, 1e-3
        _, gradient = taken["objective"](at)
        for place in range(len(at)):
            ahead, behind = at.copy(), at.copy()
            ahead[place] += step
            behind[place] -= step
            slope = (taken["objective"](ahead)[0] - taken["objective"](behind)[0]) / (2 * step)
            assert gradient[place] == pytest.approx(slope, rel=0.01, abs=0.01)


class TestDoubt:
    def test_variance_grows_away_from_the_samples(self, fitted: GaussianProcess) -> None:
        distances = (0.0, 2.0, 4.0, 8.0, 32.0)
        variances = [predict(fitted, np.full((1, 5), d))[1][0] for d in distances]
        assert variances == sorted(variances)
        assert variances[-1] == pytest.approx(fitted.amplitude, rel=0.05)

    def test_far_away_the_mean_is_zero(self, fitted: GaussianProcess) -> None:
        mean, variance = predict(fitted, np.array([[1e4] * 5, [-1e4] * 5]))
        np.testing.assert_allclose(mean, 0.0, atol=1e-9)
        np.testing.assert_allclose(variance, fitted.amplitude, rtol=1e-3)

    def test_the_mean_keeps_the_range_of_the_samples(self, fitted: GaussianProcess) -> None:
        points = np.random.default_rng(0).uniform(-6, 6, (500, 5))
        mean, variance = predict(fitted, points)
        assert fitted.low <= mean.min() and mean.max() <= fitted.high
        assert (variance >= 0).all() and (variance <= fitted.amplitude * 1.001).all()

    def test_the_mean_alone_is_the_same(self, fitted: GaussianProcess) -> None:
        points, _ = drawn(50, seed=2)
        np.testing.assert_array_equal(fitted.mean(points), predict(fitted, points)[0])

    def test_errors_are_as_large_as_the_variance_says(self) -> None:
        points, values = drawn(60, noise=0.1)
        process = GaussianProcess.fit(points, values, np.ones(60))
        asked, _ = drawn(500, seed=11)
        mean, variance = predict(process, asked)
        standard = (mean - function(asked)) / np.sqrt(variance)
        assert 0.8 < (np.abs(standard) < 2).mean()


class TestLeavingOut:
    @pytest.mark.parametrize("places", [[0], [3, 17, 30], list(range(20))])
    def test_it_is_a_refit_without_the_samples(self, small, places: list[int]) -> None:
        process, points, values, doubt = small
        rest = [i for i in range(40) if i not in places]
        mean, variance = without(process, points[places], values[places], doubt[places])
        again = refitted(process, points[rest], values[rest], doubt[rest])
        expected, spread = predict(again, points[places])
        low, high = values.min(), values.max()  # of the whole fit
        np.testing.assert_allclose(mean, np.clip(expected, low, high), atol=1e-6)
        np.testing.assert_allclose(variance, spread, atol=1e-6)

    def test_it_is_the_textbook_s(self, small) -> None:
        process, points, values, doubt = small
        places = [5, 6, 7, 25]
        rest = [i for i in range(40) if i not in places]
        found = without(process, points[places], values[places], doubt[places])
        expected = exact(process, points[rest], values[rest], doubt[rest], points[places])
        np.testing.assert_allclose(found[0], expected[0], atol=1e-4)
        np.testing.assert_allclose(found[1], expected[1], atol=1e-4)

    def test_groups_are_left_out_one_by_one(self, small) -> None:
        process, points, values, doubt = small
        groups = np.array([7, 2, 7, 2, 2, 9, 7, 0, 9, 11])
        mean, variance = without(process, points[:10], values[:10], doubt[:10], groups)
        for group in set(groups.tolist()):
            own = groups == group
            alone = without(process, points[:10][own], values[:10][own], doubt[:10][own])
            np.testing.assert_allclose(mean[own], alone[0], atol=1e-9)
            np.testing.assert_allclose(variance[own], alone[1], atol=1e-9)

    def test_everything_left_out_leaves_nothing(self, small) -> None:
        process, points, values, doubt = small
        mean, variance = without(process, points, values, doubt)
        np.testing.assert_allclose(mean, 0.0, atol=1e-4)
        np.testing.assert_allclose(variance, process.amplitude, rtol=1e-3)

    def test_it_doubts_more_than_with_the_samples(self, small) -> None:
        process, points, values, doubt = small
        _, left_out = without(process, points[:5], values[:5], doubt[:5])
        _, within = predict(process, points[:5])
        assert (left_out >= within - 1e-9).all()

    def test_errors_go_together_as_a_refit_says(self, small) -> None:
        process, points, values, doubt = small
        rest = np.arange(40) >= 6
        ((members, _, covariance),) = process.without(points[:6], values[:6], doubt[:6])
        again = refitted(process, points[rest], values[rest], doubt[rest])
        assert members.tolist() == list(range(6))
        np.testing.assert_allclose(covariance, again.predict(points[:6])[1].matrix, atol=1e-6)


class TestTogether:
    def test_points_that_are_alike_err_alike(self, fitted: GaussianProcess) -> None:
        near, far = np.full((1, 5), 3.0), np.full((1, 5), -4.0)
        covariance = fitted.predict(np.concatenate([near, near + 0.01, far]))[1].matrix
        correlation = covariance / np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        assert correlation[0, 1] > 0.95 and abs(correlation[0, 2]) < 0.3

    def test_a_sum_errs_as_much_as_is_said(self) -> None:
        """Means over five points that are near each other, relative to what is expected of them."""
        points, values = drawn(60, noise=0.01)
        process = GaussianProcess.fit(points, values, np.ones(60))
        rng = np.random.default_rng(5)
        ratios = []
        for centre in rng.uniform(-1.5, 1.5, (200, 5)):
            asked = centre + 0.1 * rng.standard_normal((5, 5))
            mean, covariance = process.predict(asked)
            expected = np.sqrt(covariance.of_sum(np.full(5, 0.2)))
            ratios.append((mean - function(asked)).mean() / expected)
        assert 0.75 < (np.abs(ratios) < 1.645).mean()
        assert 0.3 < np.std(ratios) < 1.7


def test_few_inducing_points_do_not_make_it_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an inducing point's own sample is left out, the exact process doubts as much."""
    monkeypatch.setattr(gaussian_process, "_INDUCING", 30)
    points, values = drawn(300, noise=0.005)
    doubt = np.ones(300)
    process = GaussianProcess.fit(points, values, doubt)
    placed = (points - process.center) * process.weights
    for inducing in process.inducing:
        place = int(((placed - inducing) ** 2).sum(axis=1).argmin())
        others = np.arange(300) != place
        _, variance = without(process, points[[place]], values[[place]], doubt[[place]])
        _, expected = exact(process, points[others], values[others], doubt[others], points[[place]])
        assert 0.5 * expected[0] < variance[0] < 2 * expected[0]


def refitted(
    process: GaussianProcess, points: np.ndarray, values: np.ndarray, doubt: np.ndarray
) -> GaussianProcess:
    """The process on other samples, with the hyperparameters and inducing points it has."""
    cross = process._cross(points)
    inner = process._prior_factor @ process._prior_factor.T
    missed = process.amplitude - np.einsum("ij,ji->i", cross, np.linalg.solve(inner, cross.T))
    precise = cross / (process.noise * doubt + missed + gaussian_process._JITTER)[:, None]
    factor = np.linalg.cholesky(inner + precise.T @ cross)
    target = np.linalg.solve(factor.T, np.linalg.solve(factor, precise.T @ values))
    return GaussianProcess(
        process.center, process.weights, process.amplitude, process.noise, process.inducing,
        factor, target, float(values.min()), float(values.max()),
    )  # fmt: skip


class TestArrays:
    def test_round_trip(self, fitted: GaussianProcess) -> None:
        again = GaussianProcess.from_arrays(fitted.to_arrays())
        points, _ = drawn(50, seed=4)
        for found, expected in zip(predict(again, points), predict(fitted, points), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-12)

    def test_single_precision_is_enough(self, fitted: GaussianProcess) -> None:
        halved = {name: np.asarray(a, np.float32) for name, a in fitted.to_arrays().items()}
        again = GaussianProcess.from_arrays(halved)
        points = np.concatenate([drawn(50, seed=4)[0], np.full((1, 5), 9.0)])
        mean, variance = predict(fitted, points)
        found, spread = predict(again, points)
        np.testing.assert_allclose(found, mean, atol=1e-3)
        np.testing.assert_allclose(np.sqrt(spread), np.sqrt(variance), atol=2e-3)

    @pytest.mark.parametrize("name", ["center", "factor", "numbers", "target"])
    def test_what_is_missing_is_told(self, fitted: GaussianProcess, name: str) -> None:
        arrays = fitted.to_arrays()
        del arrays[name]
        with pytest.raises(KeyError):
            GaussianProcess.from_arrays(arrays)

    @pytest.mark.parametrize(
        "name", ["factor", "numbers", "target", "center", "weights", "inducing"]
    )
    def test_wrong_shapes_are_refused(self, fitted: GaussianProcess, name: str) -> None:
        arrays = dict(fitted.to_arrays())
        arrays[name] = arrays[name][:-1]
        with pytest.raises(ValueError):
            GaussianProcess.from_arrays(arrays)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_what_is_no_number_is_refused(self, fitted: GaussianProcess, value: float) -> None:
        for name in fitted.to_arrays():
            arrays = {key: array.copy() for key, array in fitted.to_arrays().items()}
            arrays[name].flat[0] = value
            with pytest.raises(ValueError, match="finite"):
                GaussianProcess.from_arrays(arrays)


class TestFewSamples:
    def test_two(self) -> None:
        points = np.array([[0.0, 1.0], [1.0, 1.0]])
        process = GaussianProcess.fit(points, np.array([-1.0, 1.0]), np.ones(2))
        mean, variance = predict(process, points)
        assert -1 <= mean[0] < mean[1] <= 1 and np.isfinite(variance).all()
        found, _ = without(process, points[:1], np.array([-1.0]), np.ones(1))
        assert np.isfinite(found).all()

    def test_constant_features_weigh_nothing(self) -> None:
        points, values = drawn(50)
        points[:, 3] = 4.0
        process = GaussianProcess.fit(points, values, np.ones(50))
        assert process.weights[3] == 0.0
        moved = points.copy()
        moved[:, 3] = -100.0
        np.testing.assert_allclose(predict(process, moved)[0], predict(process, points)[0])

    def test_nothing_but_constant_features(self) -> None:
        process = GaussianProcess.fit(np.ones((10, 3)), np.full(10, 0.3), np.ones(10))
        mean, _ = predict(process, np.ones((2, 3)))
        np.testing.assert_allclose(mean, 0.3, atol=0.05)

    def test_equal_values(self) -> None:
        points, _ = drawn(30)
        process = GaussianProcess.fit(points, np.zeros(30), np.ones(30))
        mean, variance = predict(process, points)
        np.testing.assert_allclose(mean, 0.0, atol=1e-9)
        assert np.isfinite(variance).all()

    @pytest.mark.parametrize("count", [30, 700])
    def test_duplicates(self, count: int) -> None:
        points, values = drawn(count // 10, noise=0.05)
        many, repeated = np.repeat(points, 10, axis=0), np.repeat(values, 10)
        process = GaussianProcess.fit(many, repeated, np.ones(len(repeated)))
        assert len(process.inducing) <= len(points)
        mean, _ = predict(process, points)
        assert np.abs(mean - values).mean() < 0.1
        out, variance = without(process, many[:10], repeated[:10], np.ones(10))
        assert np.isfinite(out).all() and np.isfinite(variance).all()

    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(0, 2**32),
        count=st.integers(2, 40),
        width=st.integers(1, 6),
        size=st.sampled_from([1e-6, 1.0, 1e6]),
        levels=st.integers(1, 4),
    )
    def test_any_samples_give_numbers(self, seed, count, width, size, levels) -> None:
        rng = np.random.default_rng(seed)
        points = rng.integers(0, levels, (count, width)) * size
        values = rng.standard_normal(count) * rng.choice([1e-3, 1.0])
        doubt = rng.uniform(1, 100, count)
        process = GaussianProcess.fit(points, values, doubt)
        asked = np.concatenate([points, points + size])
        for found in (*predict(process, asked), *without(process, points, values, doubt)):
            assert np.isfinite(found).all()
