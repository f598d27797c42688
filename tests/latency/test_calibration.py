"""From the profiler's sums to whole networks."""

import numpy as np
import pytest

from latency.calibration import Calibration


class TestCalibration:
    @staticmethod
    def networks(rng: np.random.Generator, count: int, typical_ms: float) -> list[list[float]]:
        spread = rng.lognormal(np.log(typical_ms), 1.0, (count, 60))
        return [row[: int(rng.integers(5, 60))].tolist() for row in spread]

    def test_it_recovers_the_profiler_s_cost(self) -> None:
        times = self.networks(np.random.default_rng(0), 40, 0.1)
        truth = Calibration(0.02, 0.98, -0.001)
        found = Calibration.fit(times, [truth.whole_ms(own) for own in times])
        assert found.fixed_ms == pytest.approx(0.02, rel=0.05)
        assert found.scale == pytest.approx(0.98, rel=0.01)
        assert found.per_kernel_ms == pytest.approx(-0.001, rel=0.05)

    def test_chains_of_next_to_nothing_do_not_spoil_small_networks(self) -> None:
        """What is left of them is not on the line of the others."""
        rng = np.random.default_rng(1)
        truth = Calibration(0.005, 1.0, -0.003)
        times = [[0.002], [0.002] * 16, *self.networks(rng, 40, 0.05)]
        found = Calibration.fit(times, [truth.whole_ms(own) for own in times])
        for own in self.networks(rng, 20, 0.005):
            assert found.whole_ms(own) == pytest.approx(truth.whole_ms(own), rel=0.02)

    def test_networks_that_are_far_off_count_less_where_asked(self) -> None:
        rng = np.random.default_rng(2)
        truth = Calibration(0.01, 1.05, -0.002)
        times = self.networks(rng, 60, 0.02)
        wholes = [truth.whole_ms(own) for own in times]
        wholes[::12] = [0.5 * whole for whole in wholes[::12]]

        def off(robust: bool) -> float:
            found = Calibration.fit(times, wholes, robust=robust)
            return max(abs(found.whole_ms(own) / truth.whole_ms(own) - 1) for own in times)

        assert off(True) < 0.07 and off(True) < 0.6 * off(False)

    def test_few_networks_give_only_a_scale(self) -> None:
        found = Calibration.fit([[1.0, 0.5, 0.5]], [1.8])
        assert found == Calibration(0.0, 0.9, 0.0)

    def test_no_kernel_becomes_negative(self) -> None:
        assert Calibration(0.0, 1.0, -0.003).kernel_ms(0.002) > 0
