"""`latency_ms` is one defined statistic, and its interval is honest."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import InvalidInputError
from devices.measurement import ABOVE_FASTEST, Measurement, speed_warning
from devices.visits import CORRECTION, Visit

times = st.floats(min_value=1e-3, max_value=1e3)


def measurement(visits: list[Visit], reference_ms: float = 1.0, **options) -> Measurement:
    return Measurement("m", tuple(visits), reference_ms, "onnxruntime", "1", **options)


def quiet(ms: float) -> Visit:
    return Visit((ms,), 1.0, 1.0)


class TestMeasurement:
    def test_percentiles_are_of_the_samples_as_seen(self) -> None:
        found = measurement([Visit(tuple(float(i) for i in range(101, 201)), 2.0, 2.0)])
        assert found.p50_ms == pytest.approx(150.5)
        assert found.p90_ms == pytest.approx(np.quantile(range(101, 201), 0.9))
        assert found.p99_ms == pytest.approx(np.quantile(range(101, 201), 0.99))
        assert found.latency_ms == pytest.approx(150.5 / 2.0**CORRECTION)

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
        assert not found.corrected and not found.disturbed and speed_warning([found]) is None
        assert 0.01 < found.standard_error < 0.03
        assert found.fast_runs == (1.0, 1.01)
        between = replace(found, above_fastest=1.2)  # its card's speed is between the two
        assert between.latency_ms == pytest.approx(1.2)
        assert Measurement.from_json(between.to_json()) == between
        older = {key: value for key, value in found.to_json().items() if key != "above_fastest"}
        assert Measurement.from_json(older) == found

    def test_one_fast_run_alone_is_not_enough(self) -> None:
        slow, flips = Visit((1.8,), 1.4, 1.4), Visit((1.8, 1.0, 1.0), 1.4, 1.02)
        found = measurement([slow] * 8 + [flips])
        assert found.fast_runs is None and found.corrected and found.disturbed
        assert found.latency_ms == pytest.approx(ABOVE_FASTEST)  # no run is faster than the machine
        assert found.standard_error > 0.05
        jumped = measurement([*[slow] * 8, Visit((0.01, 1.8, 1.8), 1.4, 1.4)])
        assert jumped.latency_ms == pytest.approx(1.8 / 1.4**CORRECTION)

    def test_a_correction_widens_the_interval(self) -> None:
        slow = [Visit((1.4**CORRECTION,), 1.4, 1.4)] * 10
        corrected, known = measurement(slow), measurement([quiet(1.0)] * 10)
        assert corrected.corrected and corrected.latency_ms == pytest.approx(known.latency_ms)
        assert corrected.standard_error > 0.3 * math.log(1.4) > 5 * known.standard_error
        enough = measurement([*slow, quiet(1.0), quiet(1.0), quiet(1.0)])
        assert not enough.corrected and enough.standard_error < 0.05

    def test_a_faster_machine_is_stated_as_its_card(self) -> None:
        """Its card was made where the sentinel took 1.0."""
        fast = measurement([Visit((0.92,), 0.9, 0.9)] * 8)
        assert fast.latency_ms == pytest.approx(0.92 / 0.9**CORRECTION)
        assert not fast.corrected and not fast.disturbed and speed_warning([fast]) is None
        far = measurement([Visit((0.6,), 0.5, 0.5)] * 8)
        assert far.latency_ms == pytest.approx(0.6 / 0.5**CORRECTION) and far.corrected
        assert far.standard_error > 0.2
        told = speed_warning([far])
        assert told is not None and "2.00 times faster" in told and "profile" in told

    def test_what_is_told_of_a_slow_machine(self) -> None:
        slow = Visit((1.4,), 1.4, 1.4)
        assert speed_warning([measurement([quiet(1.0)] * 4)]) is None
        told = speed_warning([measurement([quiet(1.0)] * 4), measurement([slow] * 4)])
        assert told is not None and "1.40 times slower" in told and "(0.9" in told
        assert speed_warning([measurement([slow] * 20 + [quiet(1.0)] * 4)]) is None
        apart = [quiet(1.0), quiet(1.1), quiet(1.2), quiet(1.3)]
        assert speed_warning([measurement([slow] * 20 + apart)]) is not None

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
