"""Tilting a distribution to other limits: as near as can be, and never above them."""

import numpy as np
import pytest

from autospace.cost import CostTable, Limit
from autospace.tilt import tilted

TABLE = CostTable("madds", 10.0, ((1.0, 5.0, 9.0), (2.0, 8.0), (0.0, 3.0, 20.0)))
OTHER = CostTable("latency_ms", 1.0, ((3.0, 1.0, 2.0), (1.0, 4.0), (0.0, 9.0, 2.0)))
ALPHA = np.array([[0.3, -0.2, 1.0], [0.5, 0.1, -np.inf], [-1.0, 0.4, 0.9]])


def _p(alpha: np.ndarray) -> np.ndarray:
    powers = np.exp(alpha - alpha.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _cost(alpha: np.ndarray, table: CostTable) -> float:
    p = _p(alpha)
    return table.fixed + sum(
        p[block, place] * value
        for block, row in enumerate(table.values)
        for place, value in enumerate(row)
    )


def _limit(table: CostTable, value: float) -> Limit:
    return Limit(table.metric, value, "")


@pytest.mark.parametrize("value", [13.5, 16.0, 20.0, 24.0])
def test_one_limit_is_met_exactly(value: float) -> None:
    found = tilted(ALPHA, [TABLE], [_limit(TABLE, value)])
    assert _cost(found, TABLE) == pytest.approx(value, rel=1e-6)
    assert np.array_equal(np.isfinite(found), np.isfinite(ALPHA))


def test_what_keeps_the_limits_stays() -> None:
    limits = [_limit(TABLE, 40.0), _limit(OTHER, 40.0)]
    assert tilted(ALPHA, [TABLE, OTHER], limits) is ALPHA
    assert tilted(ALPHA, [], []) is ALPHA


def test_the_tighter_of_two_decides() -> None:
    limits = [_limit(TABLE, 18.0), _limit(OTHER, 6.5)]
    found = tilted(ALPHA, [TABLE, OTHER], limits)
    shares = _cost(found, TABLE) / 18.0, _cost(found, OTHER) / 6.5
    assert max(shares) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("value", [34.0, 38.0, 45.0])
def test_room_is_filled_only_when_asked_for(value: float) -> None:
    limit = _limit(TABLE, value)
    assert _cost(ALPHA, TABLE) < value
    assert tilted(ALPHA, [TABLE], [limit]) is ALPHA
    found = tilted(ALPHA, [TABLE], [limit], fill=True)
    assert _cost(found, TABLE) == pytest.approx(value, rel=1e-6)


def test_room_is_filled_up_to_the_tighter_of_two() -> None:
    limits = [_limit(TABLE, 45.0), _limit(OTHER, 12.0)]
    found = tilted(ALPHA, [TABLE, OTHER], limits, fill=True)
    shares = _cost(found, TABLE) / 45.0, _cost(found, OTHER) / 12.0
    assert max(shares) == pytest.approx(1, rel=1e-6)


def test_a_limit_above_everything_is_not_filled() -> None:
    limit = _limit(TABLE, 2 * TABLE.largest)
    assert tilted(ALPHA, [TABLE], [limit], fill=True) is ALPHA
    assert tilted(ALPHA, [], [], fill=True) is ALPHA


def test_an_impossible_limit_ends_near_the_smallest_network() -> None:
    found = tilted(ALPHA, [TABLE], [_limit(TABLE, 12.9)])
    assert _cost(found, TABLE) == pytest.approx(TABLE.smallest, abs=1e-6)


def test_no_other_distribution_at_the_limit_is_nearer() -> None:
    """Against random distributions with the same expected cost: the divergence is the least."""
    limit = _limit(TABLE, 18.0)
    base, best = _p(ALPHA), _p(tilted(ALPHA, [TABLE], [limit]))

    def divergence(p: np.ndarray) -> float:
        inside = p > 0
        return float((p[inside] * np.log(p[inside] / base[inside])).sum())

    random = np.random.default_rng(0)
    compared = 0
    for _ in range(200):
        noise = np.where(np.isfinite(ALPHA), random.normal(0, 1, ALPHA.shape), 0)
        other = _p(tilted(ALPHA + noise, [TABLE], [limit]))
        cost = _cost(np.log(np.maximum(other, 1e-300)), TABLE)
        if cost == pytest.approx(18.0, rel=1e-6):
            assert divergence(other) >= divergence(best) - 1e-9
            compared += 1
    assert compared > 50
