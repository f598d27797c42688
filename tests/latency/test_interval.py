"""Intervals hold the share of networks that they are made for, however unequal the networks are."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency.interval import INTERVAL, MIN_SCORES, Doubt, Intervals, Score
from latency.kernel import FAMILIES


def scores(count: int, seed: int = 0) -> list[Score]:
    """Networks whose errors grow with their doubt."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        together, apart = float(rng.lognormal(-3, 0.7)), float(rng.lognormal(-4, 0.5))
        deviation = 0.01 + 0.5 * together + apart
        error = float(deviation * rng.standard_normal())
        whole = float(rng.lognormal(1, 1))
        found.append(Score("probe", whole, whole * math.exp(error), whole, Doubt(together, apart)))
    return found


def coverage(intervals: Intervals, judged: list[Score]) -> float:
    return sum(s.error <= intervals.half_width(s.doubt) for s in judged) / len(judged)


class TestCoverage:
    @pytest.mark.parametrize("count", [MIN_SCORES, 40, 100, 400])
    def test_new_networks_are_held_as_often_as_promised(self, count: int) -> None:
        judged = scores(400, seed=999)
        found = [coverage(Intervals.fit(scores(count, seed)), judged) for seed in range(20)]
        assert INTERVAL - 0.03 < sum(found) / len(found) < INTERVAL + 0.05

    def test_easy_and_difficult_networks_alike(self) -> None:
        intervals = Intervals.fit(scores(500))
        judged = sorted(scores(2000, seed=1), key=lambda s: s.doubt.together + s.doubt.apart)
        for part in (judged[:700], judged[-700:]):
            assert INTERVAL - 0.08 < coverage(intervals, part) < INTERVAL + 0.08

    def test_difficult_networks_have_wider_ones(self) -> None:
        intervals = Intervals.fit(scores(500))
        widths = [intervals.half_width(Doubt(x, x)) for x in (0.0, 0.05, 0.2, 1.0)]
        assert widths == sorted(widths) and widths[0] < widths[-1] / 3
        assert widths[0] > 0

    def test_a_wild_error_decides_nothing(self) -> None:
        plain = scores(200)
        wild = [*plain, Score("probe", 1.0, 1e6, 1.0, Doubt(0.05, 0.02))]
        ordinary = Doubt(0.05, 0.02)
        widths = [Intervals.fit(many).half_width(ordinary) for many in (plain, wild)]
        assert widths[1] == pytest.approx(widths[0], rel=0.25)


class TestLikeness:
    @staticmethod
    def mixed(count: int, seed: int) -> list[Score]:
        """Networks of two kinds of kernels; errors on one kind are three times as large."""
        rng = np.random.default_rng(seed)
        found = []
        for index in range(count):
            family, error = (("gemm", 0.06), ("conv_dense", 0.02))[index % 2]
            whole = float(rng.lognormal(1, 1))
            doubt = Doubt.of([whole], [0.05], [family])
            error *= float(rng.standard_normal())
            found.append(Score("probe", whole, whole * math.exp(error), whole, doubt))
        return found

    def test_networks_are_held_by_others_like_them(self) -> None:
        intervals = Intervals.fit(self.mixed(400, 0))
        judged = self.mixed(2000, 1)
        for part in (judged[::2], judged[1::2]):
            assert INTERVAL - 0.06 < coverage(intervals, part) < INTERVAL + 0.06
        wide, narrow = (intervals.half_width(s.doubt) for s in judged[:2])
        assert wide > 2 * narrow

    def test_what_cannot_be_placed_has_the_width_of_all(self) -> None:
        intervals = Intervals.fit(self.mixed(400, 0))
        wide, narrow = (intervals.half_width(s.doubt) for s in self.mixed(2, 1))
        assert narrow < intervals.half_width(Doubt(0.05, 0.05)) < wide

    def test_places_are_parts_of_the_time_and_the_size(self) -> None:
        place = Doubt.of([3.0, 1.0], [0.1, 0.4], ["gemm", "pool"]).place
        assert sum(place[:-1]) == pytest.approx(1.0) and len(place) == len(FAMILIES) + 1
        assert place[FAMILIES.index("gemm")] == 0.75 and place[FAMILIES.index("pool")] == 0.25


class TestFew:
    def test_one(self) -> None:
        intervals = Intervals.fit(scores(1))
        assert intervals.scores == 1 and intervals.half_width(Doubt(0.0, 0.0)) >= 0.1

    @pytest.mark.parametrize("count", range(1, MIN_SCORES))
    def test_few_have_one_width_for_all(self, count: int) -> None:
        """What is difficult cannot be told yet."""
        judged = scores(300, seed=5)
        fits = [Intervals.fit(scores(count, seed)) for seed in range(30)]
        for found in fits:
            assert found.half_width(Doubt(0, 0)) == found.half_width(Doubt(1, 1))
            assert found.scores == count and found.half_width(Doubt(0, 0)) > 0.01
        share = sum(coverage(found, judged) for found in fits) / len(fits)
        assert share > INTERVAL - 0.02

    def test_no_errors_at_all(self) -> None:
        perfect = [Score("probe", 1.0, 1.0, 1.0, Doubt(0.1, 0.1)) for _ in range(50)]
        intervals = Intervals.fit(perfect)
        assert 0 <= intervals.half_width(Doubt(0.1, 0.1)) < 0.01
        assert math.isfinite(intervals.half_width(Doubt(0.0, 0.0)))

    def test_the_smallest_number_is_where_the_quantile_begins(self) -> None:
        assert math.ceil((MIN_SCORES + 1) * INTERVAL) <= MIN_SCORES


class TestJson:
    @pytest.mark.parametrize("count", [1, 5, 60])
    def test_round_trip(self, count: int) -> None:
        intervals = Intervals.fit(scores(count))
        assert Intervals.from_json(json.loads(json.dumps(intervals.to_json()))) == intervals

    @pytest.mark.parametrize("name", ["line", "least", "errors", "places"])
    def test_what_is_missing_is_told(self, name: str) -> None:
        data = Intervals.fit(scores(3)).to_json()
        del data[name]
        with pytest.raises(KeyError):
            Intervals.from_json(data)


class TestDoubt:
    def test_by_hand(self) -> None:
        found = Doubt.of([3.0, 1.0], [0.1, 0.4])
        assert found.together == pytest.approx(0.75 * 0.1 + 0.25 * 0.4)
        assert found.apart == pytest.approx(math.hypot(0.75 * 0.1, 0.25 * 0.4))

    def test_nothing(self) -> None:
        assert Doubt.of([], []) == Doubt.of([0.0], [1.0]) == Doubt(0.0, 0.0)

    @given(st.lists(st.tuples(st.floats(1e-6, 1e3), st.floats(0, 2)), min_size=1, max_size=20))
    def test_errors_apart_partly_cancel(self, kernels: list[tuple[float, float]]) -> None:
        found = Doubt.of([t for t, _ in kernels], [d for _, d in kernels])
        assert 0 <= found.apart <= found.together * (1 + 1e-9)
        assert found.together <= max(d for _, d in kernels) * (1 + 1e-9)

    def test_the_error_is_the_same_either_way(self) -> None:
        assert Score("probe", 2.0, 1.0, 1.0, Doubt(0, 0)).error == pytest.approx(math.log(2))
        assert Score("probe", 1.0, 2.0, 1.0, Doubt(0, 0)).error == pytest.approx(math.log(2))
