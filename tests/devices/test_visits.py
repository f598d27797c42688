"""Visits: which the sentinel accepts, and what several say together."""

import pytest

from devices.errors import InvalidInputError
from devices.visits import (
    CORRECTION,
    Visit,
    fast_runs,
    latency_statistic,
    quiet_enough,
    sentinel_reference,
    tells_more,
)


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


def statistic(
    values: list[float], slow: list[float] | None = None, steady: list[bool] | None = None
) -> float:
    """`latency_statistic` of visits whose sentinel took so many milliseconds."""
    slow, steady = slow or [1.0] * len(values), steady or [True] * len(values)
    visits = [
        Visit((value,), ms, ms, preempted=0.0 if still else 1.0)
        for value, ms, still in zip(values, slow, steady, strict=True)
    ]
    return latency_statistic(visits, 1.0)


class TestStatistic:
    def test_accepted_visits_take_the_median(self) -> None:
        assert statistic([10.0, 11.0, 13.0, 50.0, 60.0], [1.0, 1.0, 1.0, 2.0, 2.0]) == 11.0
        assert statistic([10.0, 11.0, 13.0, 16.0]) == 12.0

    def test_values_are_corrected_for_the_speed_of_the_machine(self) -> None:
        slow, fast = [10 * 1.1**CORRECTION] * 3, [10 * 0.9**CORRECTION] * 3
        assert statistic(slow, [1.1] * 3) == pytest.approx(10.0)
        assert statistic(fast, [0.9] * 3) == pytest.approx(10.0)
        assert statistic(slow + fast, [1.1] * 3 + [0.9] * 3) == pytest.approx(10.0)

    def test_a_far_slower_or_faster_phase_is_left_out(self) -> None:
        assert statistic([10.0] * 4 + [19.0] * 6, [1.0] * 4 + [1.5] * 6) == 10.0
        assert statistic([10.0] * 4 + [5.0] * 6, [1.0] * 4 + [0.7] * 6) == 10.0

    def test_such_visits_are_corrected_where_there_is_nothing_better(self) -> None:
        values = [10.0, 10 * 2**CORRECTION, 10 * 2**CORRECTION]
        assert statistic(values, [1.0, 2.0, 2.0]) == pytest.approx(10.0)

    def test_unsteady_visits_are_left_out(self) -> None:
        assert statistic([10.0] * 8 + [1.0] * 9, steady=[True] * 8 + [False] * 9) == 10.0

    def test_unsteady_visits_count_when_there_is_nothing_else(self) -> None:
        assert statistic([3.0], steady=[False]) == 3.0

    def test_reference_is_a_low_quantile(self) -> None:
        assert sentinel_reference([float(v) for v in range(1, 12)]) == 2.0
        with pytest.raises(InvalidInputError):
            sentinel_reference([])


def test_agreeing_runs_of_a_machine_never_seen_fast_are_corrected() -> None:
    assert fast_runs([Visit((1.8,), 1.4, 1.4)] * 5, 1.0) is None
    assert fast_runs([quiet(1.0)], 1.0) is None
    assert fast_runs([Visit((1.0, 1.2), 1.1, 1.0)] * 9, 1.0) is None  # hardly slow at all
    apart = [Visit((1.0,), 1.4, 1.4)] * 2 + [Visit((1.8,), 1.0, 1.0)]
    assert fast_runs(apart, 1.0) is None  # it was fast at another time


def test_quiet_enough() -> None:
    slow, fast = Visit((2.0,), 2.0, 2.0), quiet(1.0)
    assert quiet_enough([fast], 1.0) and not quiet_enough([slow], 1.0)
    apart = [quiet(1.0), quiet(1.1), quiet(1.2)]  # no two agree
    assert not quiet_enough([*apart[:2], slow], 1.0)
    assert quiet_enough(apart + [slow] * 9, 1.0)
    assert not quiet_enough(apart + [slow] * 10, 1.0)
    assert quiet_enough([fast, fast] + [slow] * 20, 1.0)


def test_one_more_visit_tells_something_if_it_was_accepted_or_is_fast() -> None:
    slow, before = Visit((2.0,), 2.0, 2.0), [Visit((ms,), 2.0, 2.0) for ms in (2.0, 1.5, 1.2)]
    assert not tells_more(slow, before, 1.0)
    assert tells_more(quiet(9.0), before, 1.0)  # slow itself, but on a quiet machine
    assert tells_more(Visit((1.4, 3.0), 2.0, 2.0), before, 1.0)
    assert not tells_more(Visit((1.5,), 2.0, 2.0), before, 1.0)
    assert tells_more(Visit((2.1,), 2.0, 2.0), before[:1], 1.0)  # two have to agree
