"""`latency_ms` is one defined statistic, and its interval is honest."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import InvalidInputError
from devices.measurement import (
    ABOVE_FASTEST,
    Measurement,
    Visit,
    fast_runs,
    latency_statistic,
    quiet_enough,
    sentinel_reference,
    slow_warning,
)

times = st.floats(min_value=1e-3, max_value=1e3)


def measurement(visits: list[Visit], reference_ms: float = 1.0, **options) -> Measurement:
    return Measurement("m", tuple(visits), reference_ms, "onnxruntime", "1", **options)


def quiet(ms: float) -> Visit:
    return Visit((ms,), 1.0, 1.0)


class TestVisit:
    @pytest.mark.parametrize("samples", [(), (0.0,), (float("nan"),), (-1.0,)])
    def test_needs_positive_samples(self, samples: tuple[float, ...]) -> None:
        with pytest.raises(InvalidInputError):
            Visit(samples, 1.0, 1.0)

    def test_median_and_sentinel(self) -> None:
        visit = Visit((3.0, 1.0, 2.0, 9.0), 1.0, 4.0)
        assert visit.median_ms == 2.5
        assert visit.sentinel_ms == 2.0 and visit.slowdown(0.5) == 4.0
        assert not visit.steady


class TestStatistic:
    def test_three_accepted_visits_take_the_low_quantile(self) -> None:
        values = [10.0, 11.0, 12.0, 50.0, 60.0]
        slow = [1.0, 1.0, 1.0, 2.0, 2.0]
        assert latency_statistic(values, slow, [True] * 5) == pytest.approx(10.2)

    def test_few_accepted_visits_take_the_corrected_median(self) -> None:
        values, slow = [10.0, 20.0, 30.0], [1.0, 2.0, 2.5]
        assert latency_statistic(values, slow, [True] * 3) == 10.0

    def test_many_visits_take_the_low_quantile(self) -> None:
        values = [float(v) for v in range(10, 21)]
        assert latency_statistic(values, [1.0] * 11, [True] * 11) == 11.0

    def test_a_slow_phase_is_corrected(self) -> None:
        values = [10.0] * 6 + [15.0] * 6
        assert latency_statistic(values, [1.0] * 6 + [1.5] * 6, [True] * 12) == pytest.approx(10.0)

    def test_slow_visits_are_corrected_where_there_is_nothing_better(self) -> None:
        values, slow = [10.0, 20.0, 21.0], [1.0, 2.0, 2.0]
        assert latency_statistic(values, slow, [True] * 3) == 10.0

    def test_slow_visits_are_not_needed_with_enough_accepted_ones(self) -> None:
        values, slow = [10.0] * 8 + [12.0] * 20, [1.0] * 8 + [2.0] * 20
        assert latency_statistic(values, slow, [True] * 28) == 10.0

    def test_unsteady_visits_are_left_out(self) -> None:
        values = [10.0] * 8 + [1.0]
        assert latency_statistic(values, [1.0] * 9, [True] * 8 + [False]) == 10.0

    def test_unsteady_visits_count_when_there_is_nothing_else(self) -> None:
        assert latency_statistic([3.0], [1.0], [False]) == 3.0

    def test_accepted_visits_are_not_touched(self) -> None:
        values, slow = [10.0] * 8, [0.99, 1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.0]
        assert latency_statistic(values, slow, [True] * 8) == 10.0

    def test_reference_is_a_low_quantile(self) -> None:
        assert sentinel_reference([float(v) for v in range(1, 12)]) == 2.0
        with pytest.raises(InvalidInputError):
            sentinel_reference([])


class TestMeasurement:
    def test_percentiles_are_of_the_samples_as_seen(self) -> None:
        found = measurement([Visit(tuple(float(i) for i in range(101, 201)), 2.0, 2.0)])
        assert found.p50_ms == pytest.approx(150.5)
        assert found.p90_ms == pytest.approx(np.quantile(range(101, 201), 0.9))
        assert found.p99_ms == pytest.approx(np.quantile(range(101, 201), 0.99))
        assert found.latency_ms == pytest.approx(75.25)

    def test_interval_narrows_with_visits(self) -> None:
        rng = np.random.default_rng(0)
        noisy = [quiet(float(x)) for x in rng.lognormal(0, 0.02, 64)]
        few, many = measurement(noisy[:4]), measurement(noisy)
        assert few.low_ms < few.latency_ms < few.high_ms
        assert many.high_ms / many.low_ms < few.high_ms / few.low_ms

    def test_agreement_by_luck_is_not_believed(self) -> None:
        real = measurement([quiet(1.0)] * 3)
        assert real.high_ms > 1.02
        assert measurement([quiet(1.0)] * 3, simulated=True).high_ms == pytest.approx(1.0)

    def test_upper_bound_grows_with_confidence(self) -> None:
        found = measurement([quiet(1.0), quiet(1.1), quiet(1.2)])
        assert found.latency_ms < found.upper_ms(0.9) < found.upper_ms() < found.upper_ms(0.999)
        assert found.upper_ms(0.95) == pytest.approx(found.high_ms)
        with pytest.raises(InvalidInputError):
            found.upper_ms(1.0)

    def test_repeatability_compares_halves(self) -> None:
        assert measurement([quiet(1.0)] * 3).repeatability is None
        halves = measurement([quiet(1.0), quiet(1.1)] * 4)
        assert halves.repeatability == pytest.approx(0.1)

    def test_disturbed_when_the_sentinel_hardly_ever_accepts(self) -> None:
        slow = Visit((2.0,), 2.0, 2.0)
        assert measurement([slow] * 7 + [quiet(1.0)]).disturbed
        assert not measurement([slow] * 7 + [quiet(1.0)] * 2).disturbed
        assert not measurement([slow, quiet(1.0)]).disturbed

    def test_fast_runs_of_slow_visits_count_where_two_agree(self) -> None:
        """A machine that flips between two speeds within a visit, and slows this network by 1.8."""
        slow = Visit((1.8, 1.8, 1.8), 1.4, 1.4)
        flips = Visit((1.8, 1.0, 1.8), 1.4, 1.02)
        found = measurement([slow] * 8 + [flips, replace(flips, samples_ms=(1.9, 1.8, 1.01))])
        assert found.latency_ms == pytest.approx(ABOVE_FASTEST * 1.0)
        assert not found.corrected and not found.disturbed and slow_warning([found]) is None
        assert 0.01 < found.standard_error < 0.03
        assert found.fast_runs == (1.0, 1.01)

    def test_one_fast_run_alone_is_not_enough(self) -> None:
        slow, flips = Visit((1.8,), 1.4, 1.4), Visit((1.8, 1.0, 1.0), 1.4, 1.02)
        found = measurement([slow] * 8 + [flips])
        assert found.fast_runs is None and found.corrected and found.disturbed
        assert found.latency_ms == pytest.approx(ABOVE_FASTEST)  # no run is faster than the machine
        assert found.standard_error > 0.05
        jumped = measurement([*[slow] * 8, Visit((0.01, 1.8, 1.8), 1.4, 1.4)])
        assert jumped.latency_ms == pytest.approx(1.8 / 1.4)

    def test_agreeing_runs_of_a_machine_never_seen_fast_are_corrected(self) -> None:
        assert fast_runs([Visit((1.8,), 1.4, 1.4)] * 5, 1.0) is None
        assert fast_runs([quiet(1.0)], 1.0) is None
        assert fast_runs([Visit((1.0, 1.2), 1.1, 1.0)] * 9, 1.0) is None  # hardly slow at all
        apart = [Visit((1.0,), 1.4, 1.4)] * 2 + [Visit((1.8,), 1.0, 1.0)]
        assert fast_runs(apart, 1.0) is None  # it was fast at another time

    def test_a_correction_widens_the_interval(self) -> None:
        slow = [Visit((1.4,), 1.4, 1.4)] * 10
        corrected, known = measurement(slow), measurement([quiet(1.0)] * 10)
        assert corrected.corrected and corrected.latency_ms == pytest.approx(known.latency_ms)
        assert corrected.standard_error > 0.3 * math.log(1.4) > 5 * known.standard_error
        enough = measurement([*slow, quiet(1.0), quiet(1.0), quiet(1.0)])
        assert not enough.corrected and enough.standard_error < 0.05

    def test_what_is_told_of_a_slow_machine(self) -> None:
        slow = Visit((1.4,), 1.4, 1.4)
        assert slow_warning([measurement([quiet(1.0)] * 4)]) is None
        told = slow_warning([measurement([quiet(1.0)] * 4), measurement([slow] * 4)])
        assert told is not None and "1.40 times slower" in told and "(0.8" in told
        assert slow_warning([measurement([slow] * 20 + [quiet(1.0)] * 4)]) is None
        apart = [quiet(1.0), quiet(1.1), quiet(1.2), quiet(1.3)]
        assert slow_warning([measurement([slow] * 20 + apart)]) is not None

    def test_quiet_enough(self) -> None:
        slow, fast = Visit((2.0,), 2.0, 2.0), quiet(1.0)
        assert quiet_enough([fast], 1.0) and not quiet_enough([slow], 1.0)
        apart = [quiet(1.0), quiet(1.1), quiet(1.2)]  # no two agree
        assert not quiet_enough([*apart[:2], slow], 1.0)
        assert quiet_enough(apart + [slow] * 9, 1.0)
        assert not quiet_enough(apart + [slow] * 10, 1.0)
        assert quiet_enough([fast, fast] + [slow] * 20, 1.0)

    def test_disturbed_when_runs_kept_losing_their_core(self) -> None:
        lost = Visit((1.0,), 1.0, 1.0, preempted=1.0)
        found = measurement([lost] * 3 + [quiet(1.0)] * 3)
        assert found.preempted == 0.5 and found.disturbed
        assert not measurement([lost] + [quiet(1.0)] * 3).disturbed

    def test_visits_that_lost_their_core_count_when_there_is_nothing_else(self) -> None:
        lost = Visit((2.0,), 1.0, 1.0, preempted=0.8)
        assert measurement([lost] * 5 + [quiet(1.0)] * 3).latency_ms == 1.0
        assert measurement([lost] * 5).latency_ms == 2.0

    @pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
    def test_a_share_is_a_share(self, share: float) -> None:
        with pytest.raises(InvalidInputError, match="preempted"):
            Visit((1.0,), 1.0, 1.0, share)

    def test_json_round_trip(self) -> None:
        found = measurement([Visit((1.0, 2.0), 1.0, 1.1, 0.25), quiet(3.0)])
        data = json.loads(json.dumps(found.to_json()))
        assert Measurement.from_json(data) == found
        assert data["latency_ms"] == found.latency_ms

    @pytest.mark.parametrize("key", ["visits", "settings", "sentinel_reference_ms"])
    def test_broken_json_is_refused(self, key: str) -> None:
        data = measurement([quiet(1.0)]).to_json()
        for wrong in ({**data, key: None}, {k: v for k, v in data.items() if k != key}):
            with pytest.raises(InvalidInputError):
                Measurement.from_json(wrong)

    def test_needs_visits_and_a_reference(self) -> None:
        with pytest.raises(InvalidInputError):
            measurement([])
        with pytest.raises(InvalidInputError):
            measurement([quiet(1.0)], reference_ms=0.0)

    @given(st.lists(times, min_size=1, max_size=20), st.floats(0.1, 10.0))
    def test_scaling_every_time_scales_the_latency(self, values: list[float], by: float) -> None:
        plain = measurement([quiet(v) for v in values])
        scaled = measurement([quiet(v * by) for v in values])
        assert scaled.latency_ms == pytest.approx(plain.latency_ms * by)
        assert min(values) <= plain.latency_ms * (1 + 1e-9)
        assert plain.latency_ms <= max(values) * (1 + 1e-9)
        assert plain.low_ms <= plain.latency_ms <= plain.high_ms and math.isfinite(plain.high_ms)
