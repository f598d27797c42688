"""The family regressor: follows the roofline outside, and knows what it would not have known."""

import json
import math

import numpy as np
import pytest
from test_roofline import convolution

from latency.context import Context
from latency.features import FEATURES, kernel_features
from latency.kernel import Kernel
from latency.regressor import Described, FamilyRegressor, Sample, Samples
from latency.roofline import roofline_terms

CHANNELS = (8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128)
SIDES = (7, 10, 14, 20, 28, 40, 56)
PLACES = [(c, s) for c in CHANNELS for s in SIDES]
CALM = Context(
    footprint_bytes=1_000_000,
    input_age_bytes=50_000,
    oldest_age_bytes=50_000,
    absence_ms=3.0,
    kin_ms=0.1,
)


def truth(channels: int, side: int) -> float:
    """A roofline with a dent: unaligned channels are half as fast."""
    work = channels**2 * side**2 * 9 / 1e6
    return 0.004 + 0.02 * work * (1.0 if channels % 16 == 0 else 2.0)


def sample(channels: int, side: int, visits: int = 6, factor: float = 1.0) -> Sample:
    return Sample(convolution(channels, side), CALM, truth(channels, side) * factor, visits)


def predicted(regressor: FamilyRegressor, *kernels: Kernel) -> list[float]:
    found, covariance = regressor.predict(kernels, [CALM] * len(kernels))
    assert covariance.matrix.shape == (len(kernels), len(kernels))
    assert np.linalg.eigvalsh(covariance.matrix).min() > -1e-6
    return [float(x) for x in found]


@pytest.fixture(scope="module")
def samples() -> Samples:
    return Samples.of([sample(*place) for place in PLACES])


@pytest.fixture(scope="module")
def fitted(samples: Samples) -> FamilyRegressor:
    return FamilyRegressor.fit(samples)


class TestInside:
    def test_it_learns_what_the_roofline_cannot(self, fitted: FamilyRegressor) -> None:
        for channels, side in ((16, 17), (24, 33), (40, 12), (64, 9), (80, 24), (56, 14)):
            (found,) = predicted(fitted, convolution(channels, side))
            assert found == pytest.approx(truth(channels, side), rel=0.15)

    def test_surroundings_count(self) -> None:
        """Kernels in large networks are slower, which nothing but the surroundings tell."""
        rng = np.random.default_rng(0)
        many = []
        for channels, side in PLACES * 3:
            footprint = int(10 ** rng.uniform(4, 7))
            slower = 1.3 if footprint > 300_000 else 1.0
            around = Context(footprint, 50_000, 50_000, 3.0, 0.1)
            time_ms = truth(channels, side) * slower
            many.append(Sample(convolution(channels, side), around, time_ms, 6))
        regressor = FamilyRegressor.fit(Samples.of(many))
        kernel = convolution(48, 28)
        around = [Context(n, 50_000, 50_000, 3.0, 0.1) for n in (30_000, 5_000_000)]
        found, _ = regressor.predict([kernel, kernel], around)
        assert found[1] / found[0] == pytest.approx(1.3, rel=0.1)

    def test_time_since_the_last_run_counts(self) -> None:
        """A cache that is shared with others forgets while nothing is touched."""
        rng = np.random.default_rng(0)
        many = []
        for channels, side in PLACES * 3:
            absence_ms = float(10 ** rng.uniform(-1, 1.5))
            slower = 1.5 if absence_ms > 3 else 1.0
            around = Context(1_000_000, 50_000, 50_000, absence_ms, 0.1)
            many.append(
                Sample(convolution(channels, side), around, truth(channels, side) * slower, 6)
            )
        regressor = FamilyRegressor.fit(Samples.of(many))
        kernel = convolution(48, 28)
        around = [Context(1_000_000, 50_000, 50_000, ms, 0.1) for ms in (0.3, 20.0)]
        found, _ = regressor.predict([kernel, kernel], around)
        assert found[1] / found[0] == pytest.approx(1.5, rel=0.1)

    def test_times_alone_are_those_of_predict(self, fitted: FamilyRegressor) -> None:
        kernels = [convolution(48, 24), convolution(64, 9)]
        found, _ = fitted.predict(kernels, [CALM, CALM])
        alone = fitted.times_ms(Described.of(kernels), [CALM, CALM])
        np.testing.assert_allclose(alone, found, rtol=1e-12)

    def test_labels_count(self) -> None:
        many = []
        for channels, side in PLACES:
            for activation, factor in (("", 1.0), ("HardSwish", 1.5)):
                kernel = _activated(convolution(channels, side), activation)
                many.append(Sample(kernel, CALM, truth(channels, side) * factor, 6))
        regressor = FamilyRegressor.fit(Samples.of(many))
        assert set(regressor.labels) == {
            "activation ", "activation HardSwish", "op nchwc.Conv float32",
        }  # fmt: skip
        plain, swish = (_activated(convolution(48, 24), a) for a in ("", "HardSwish"))
        found = predicted(regressor, plain, swish)
        assert found[1] / found[0] == pytest.approx(1.5, rel=0.1)
        (other,) = predicted(regressor, _activated(convolution(48, 24), "Mish"))
        assert 0.5 * found[0] < other < 2 * found[1]

    def test_samples_of_few_visits_count_less(self) -> None:
        errors = []
        for visits in (1, 6):
            many = [sample(*place) for place in PLACES]
            many[::3] = [sample(*place, visits, 1.6) for place in PLACES[::3]]
            regressor = FamilyRegressor.fit(Samples.of(many))
            found = predicted(regressor, *(convolution(*place) for place in PLACES[1::3]))
            wanted = [truth(*place) for place in PLACES[1::3]]
            errors.append(np.abs(np.log(np.array(found) / wanted)).mean())
        assert errors[0] < errors[1]

    def test_equal_kernels_are_worked_out_once_and_rightly(self, fitted: FamilyRegressor) -> None:
        one, other = convolution(48, 24), convolution(64, 9)
        around = [Context(10**n, 10, 10, 3.0, 0.1) for n in range(4, 8)]
        together, _ = fitted.predict([one, other, one, one], around)
        alone = [
            float(fitted.predict([k], [c])[0][0])
            for k, c in zip([one, other, one, one], around, strict=True)
        ]
        np.testing.assert_allclose(together, alone, rtol=1e-9)


def _activated(kernel: Kernel, activation: str) -> Kernel:
    return Kernel.from_json({**kernel.to_json(), "activation": activation})


class TestOutside:
    def test_far_outside_it_is_the_roofline(self, fitted: FamilyRegressor) -> None:
        for channels, side in ((1024, 224), (2048, 448), (4096, 7)):
            far = convolution(channels, side)
            (found,) = predicted(fitted, far)
            process = fitted.process
            assert process is not None
            residual = math.log(found / fitted.roofline.predict_one(far))
            assert process.low - 1e-9 <= residual <= process.high + 1e-9
        assert abs(residual) < max(abs(process.low), abs(process.high))

    @pytest.mark.parametrize("side", [7, 28, 112, 448])
    def test_latency_grows_with_channels(self, fitted: FamilyRegressor, side: int) -> None:
        # Powers of two, which are all aligned alike: other counts may well be slower than more.
        kernels = [convolution(2**n, side) for n in range(4, 13)]
        found = predicted(fitted, *kernels)
        assert found == sorted(found)
        assert found[-1] > 1000 * found[0]

    @pytest.mark.parametrize("channels", [16, 64, 512, 4096])
    def test_latency_grows_with_resolution(self, fitted: FamilyRegressor, channels: int) -> None:
        kernels = [convolution(channels, side) for side in (7, 14, 28, 56, 112, 224, 448, 896)]
        found = predicted(fitted, *kernels)
        assert found == sorted(found)
        assert found[-1] > 100 * found[1]

    def test_doubt_grows_outside(self, fitted: FamilyRegressor) -> None:
        kernels = [convolution(c, s) for c, s in ((48, 28), (256, 112), (2048, 448))]
        _, covariance = fitted.predict(kernels, [CALM] * 3)
        assert list(covariance.deviations) == sorted(covariance.deviations)

    def test_kernels_that_are_alike_err_alike(self, fitted: FamilyRegressor) -> None:
        kernels = [convolution(c, s) for c, s in ((200, 100), (200, 101), (9, 300))]
        _, covariance = fitted.predict(kernels, [CALM] * 3)
        deviations = covariance.deviations
        correlation = covariance.matrix / np.outer(deviations, deviations)
        assert correlation[0, 1] > 0.9 > correlation[0, 2]


def left_out(
    fitted: FamilyRegressor, samples: Samples, groups: np.ndarray | None = None
) -> list[float]:
    """Times of samples that were left out, in their order."""
    found = np.full(len(samples), np.nan)
    for members, times, covariance in fitted.without(samples, groups):
        assert covariance.shape == (len(members), len(members))
        found[members] = times
    return [float(x) for x in found]


class TestLeavingOut:
    LEFT = (3, 17, 30, 55)

    def test_it_is_as_good_as_fitting_without(
        self, fitted: FamilyRegressor, samples: Samples
    ) -> None:
        rest = [i for i in range(len(PLACES)) if i not in self.LEFT]
        again = FamilyRegressor.fit(samples.take(rest))
        found = left_out(fitted, samples.take(self.LEFT))
        expected = predicted(again, *(convolution(*PLACES[i]) for i in self.LEFT))
        # The refit may choose other length scales; nothing else differs.
        np.testing.assert_allclose(found, expected, rtol=0.1)

    def test_groups_are_left_out_one_by_one(
        self, fitted: FamilyRegressor, samples: Samples
    ) -> None:
        together = left_out(fitted, samples.take(self.LEFT), np.arange(len(self.LEFT)))
        alone = [left_out(fitted, samples.take([i]))[0] for i in self.LEFT]
        np.testing.assert_allclose(together, alone, rtol=1e-9)

    def test_everything_left_out_leaves_the_roofline(
        self, fitted: FamilyRegressor, samples: Samples
    ) -> None:
        found = left_out(fitted, samples)
        np.testing.assert_allclose(found, fitted.roofline.predict(samples.terms), rtol=1e-3)

    def test_residuals_are_what_the_prediction_leaves(
        self, fitted: FamilyRegressor, samples: Samples
    ) -> None:
        found = predicted(fitted, *(convolution(*place) for place in PLACES))
        expected = np.log(samples.times_ms / np.array(found))
        np.testing.assert_allclose(fitted.residuals(samples), expected, atol=1e-9)
        assert np.abs(expected).mean() < 0.05


class TestFew:
    @pytest.mark.parametrize("count", [1, 2, 7])
    def test_few_samples_have_a_roofline_only(self, count: int) -> None:
        own = Samples.of([sample(*place) for place in PLACES[:count]])
        few = FamilyRegressor.fit(own)
        assert few.process is None
        found = predicted(few, *(convolution(*place) for place in PLACES[:count]))
        assert found == [few.roofline.predict_one(convolution(*p)) for p in PLACES[:count]]
        for groups in (None, np.arange(count)):
            assert left_out(few, own, groups) == found
            assert all((c > 0.2**2).all() for _, _, c in few.without(own, groups))
        assert np.isfinite(few.residuals(own)).all()

    def test_one_sample_is_enough(self) -> None:
        one = FamilyRegressor.fit(Samples.of([Sample(convolution(16), CALM, 0.5, 1)]))
        assert predicted(one, convolution(16))[0] == pytest.approx(0.5, rel=0.1)

    def test_the_same_sample_again_and_again(self) -> None:
        many = FamilyRegressor.fit(Samples.of([sample(16, 14)] * 20))
        assert predicted(many, convolution(16, 14))[0] == pytest.approx(truth(16, 14), rel=0.05)


class TestKeeping:
    def test_round_trip(self, fitted: FamilyRegressor) -> None:
        about, arrays = fitted.to_arrays()
        again = FamilyRegressor.from_arrays(json.loads(json.dumps(about)), arrays)
        kernels = [convolution(c, s) for c, s in ((48, 24), (1024, 224))]
        assert predicted(again, *kernels) == pytest.approx(predicted(fitted, *kernels))

    def test_round_trip_of_a_bare_roofline(self) -> None:
        few = FamilyRegressor.fit(Samples.of([sample(16, 14)]))
        about, arrays = few.to_arrays()
        assert arrays == {} and FamilyRegressor.from_arrays(about, arrays) == few

    def test_other_features_are_refused(self, fitted: FamilyRegressor) -> None:
        about, arrays = fitted.to_arrays()
        with pytest.raises(ValueError, match="features"):
            FamilyRegressor.from_arrays({**about, "labels": [*about["labels"], "x"]}, arrays)
        with pytest.raises(KeyError):
            FamilyRegressor.from_arrays({"labels": []}, arrays)


class TestSamples:
    def test_what_they_hold(self, samples: Samples) -> None:
        assert len(samples) == len(PLACES) == len(samples.labels)
        assert samples.features.shape == (len(PLACES), len(FEATURES))
        assert samples.terms.shape == (len(PLACES), len(roofline_terms(convolution(16))))
        first = convolution(*PLACES[0])
        assert samples.features[0].tolist() == kernel_features(first, CALM)

    def test_taking_some(self, samples: Samples) -> None:
        some = samples.take([4, 2])
        assert len(some) == 2
        np.testing.assert_array_equal(some.times_ms, samples.times_ms[[4, 2]])
        np.testing.assert_array_equal(some.features, samples.features[[4, 2]])

    def test_short_kernels_and_few_visits_are_doubtful(self) -> None:
        kernel = convolution(16)
        doubts = [
            Samples.of([Sample(kernel, CALM, time_ms, visits)]).doubt[0]
            for time_ms, visits in ((1.0, 12), (1.0, 4), (1.0, 1), (0.001, 4))
        ]
        assert doubts == pytest.approx([1.0, 1.0, 2.0, 5.0], rel=1e-4)
