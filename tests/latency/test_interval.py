"""Intervals hold the share of networks that they are made for, however noisy the card is."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from latency.interval import INTERVAL, MIN_SCORES, Intervals, Score


def scores(count: int, seed: int = 0, noise: float = 0.0, sure: float = 1.0) -> list[Score]:
    """Networks whose errors are as large as expected, times `sure`, with measurement noise."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        deviation = float(rng.lognormal(-3.5, 0.6))
        error = sure * math.hypot(deviation, 0.006) * float(rng.standard_normal())
        measured = noise * float(rng.standard_normal())
        whole = float(rng.lognormal(1, 1))
        found.append(
            Score("probe", whole * math.exp(measured), whole * math.exp(error), whole, deviation,
                  noise)
        )  # fmt: skip
    return found


def coverage(intervals: Intervals, judged: list[Score], common: float = 0.0) -> float:
    """Share of networks held, where all predictions are off by a factor that no card shows."""
    moved = [replace(s, predicted_ms=s.predicted_ms * math.exp(common)) for s in judged]
    return sum(s.error <= intervals.half_width(s.deviation) for s in moved) / len(moved)


class TestCoverage:
    @pytest.mark.parametrize("count", [MIN_SCORES, 40, 100, 400])
    @pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
    def test_new_networks_are_held_as_often_as_promised(self, count: int, noise: float) -> None:
        """However noisy the card's own networks are: those that are asked about are not."""
        judged = scores(400, seed=999)
        common = np.random.default_rng(count).standard_normal(20) * 0.12 / math.sqrt(count)
        found = [
            coverage(Intervals.fit(scores(count, seed, noise)), judged, float(common[seed]))
            for seed in range(20)
        ]
        assert INTERVAL - 0.03 < sum(found) / len(found) < INTERVAL + 0.08

    def test_a_fit_that_is_too_sure_is_found_out(self) -> None:
        intervals = Intervals.fit(scores(400, sure=2.0))
        assert intervals.factor == pytest.approx(2.0, rel=0.15)
        assert 0.85 < coverage(intervals, scores(1000, 1, sure=2.0)) < 0.95
        # Noise hides some of it: what is too much is laid on both alike.
        assert 1.3 < Intervals.fit(scores(400, 0, 0.02, sure=2.0)).factor < 2.0

    def test_easy_and_difficult_networks_alike(self) -> None:
        intervals = Intervals.fit(scores(500))
        judged = sorted(scores(2000, seed=1), key=lambda s: s.deviation)
        for part in (judged[:700], judged[-700:]):
            assert INTERVAL - 0.05 < coverage(intervals, part) < INTERVAL + 0.06

    def test_a_fit_that_is_not_sure_enough_stays_so(self) -> None:
        assert Intervals.fit(scores(400, sure=0.3)).factor == 1.0

    def test_difficult_networks_have_wider_ones(self) -> None:
        intervals = Intervals.fit(scores(500))
        widths = [intervals.half_width(x) for x in (0.0, 0.02, 0.1, 0.5)]
        assert widths == sorted(widths) and 0.005 < widths[0] < widths[-1] / 10

    def test_wild_errors_decide_nothing(self) -> None:
        plain = scores(200)
        wild = [*plain, *(Score("probe", 1.0, 1e6, 1.0, 0.05, 0.0) for _ in range(10))]
        widths = [Intervals.fit(many).half_width(0.05) for many in (plain, wild)]
        assert widths[1] == pytest.approx(widths[0], rel=0.15)


class TestFew:
    @pytest.mark.parametrize("count", range(1, MIN_SCORES))
    def test_few_have_wide_ones(self, count: int) -> None:
        judged = scores(300, seed=5)
        fits = [Intervals.fit(scores(count, seed)) for seed in range(10)]
        for found in fits:
            assert found.scores == count and found.half_width(0.0) >= 0.1
        assert sum(coverage(found, judged) for found in fits) / len(fits) > INTERVAL - 0.02

    def test_no_errors_at_all(self) -> None:
        perfect = [Score("probe", 1.0, 1.0, 1.0, 0.0, 0.0) for _ in range(50)]
        assert 0 < Intervals.fit(perfect).half_width(0.0) < 0.04

    def test_more_networks_tell_more_about_what_all_have_in_common(self) -> None:
        widths = [Intervals(1.0, 0.0, count).half_width(0.01) for count in (20, 60, 400)]
        assert widths == sorted(widths, reverse=True) and widths[0] > 1.5 * widths[2]

    def test_the_smallest_number_is_where_the_quantile_begins(self) -> None:
        assert math.ceil((MIN_SCORES + 1) * INTERVAL) <= MIN_SCORES


class TestJson:
    @pytest.mark.parametrize("count", [1, 5, 60])
    def test_round_trip(self, count: int) -> None:
        intervals = Intervals.fit(scores(count))
        assert Intervals.from_json(json.loads(json.dumps(intervals.to_json()))) == intervals

    @pytest.mark.parametrize("name", ["factor", "least", "scores"])
    def test_what_is_missing_is_told(self, name: str) -> None:
        data = Intervals.fit(scores(3)).to_json()
        del data[name]
        with pytest.raises(KeyError):
            Intervals.from_json(data)

    @pytest.mark.parametrize("factor", [0.5, math.inf, math.nan])
    def test_what_is_no_width_is_told(self, factor: float) -> None:
        data = {**Intervals.fit(scores(30)).to_json(), "factor": factor}
        with pytest.raises(ValueError, match="width"):
            Intervals.from_json(data)

    def test_no_networks_are_told(self) -> None:
        data = {**Intervals.fit(scores(30)).to_json(), "scores": 0}
        with pytest.raises(ValueError, match="networks"):
            Intervals.from_json(data)


def test_the_error_is_the_same_either_way() -> None:
    assert Score("probe", 2.0, 1.0, 1.0, 0.1, 0.0).error == pytest.approx(math.log(2))
    assert Score("probe", 1.0, 2.0, 1.0, 0.1, 0.0).error == pytest.approx(math.log(2))
