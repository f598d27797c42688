"""Prices: the expected network keeps the limits, at the lowest price, whatever the values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autospace.price import expected_costs, fair_prices, fitness


def _problem(seed: int, limits: int, share: float):
    """Three layers of different sizes; the limits are a share between cheapest and dearest."""
    random = np.random.default_rng(seed)
    sizes = random.integers(2, 9, 3)
    values = [random.normal(0, 2, size) for size in sizes]
    costs = [random.uniform(0.01, 1, (limits, size)) for size in sizes]
    fixed = random.uniform(0, 0.2, limits)
    # A network that exists and keeps every limit: the one that is cheapest by the sum of costs.
    least = fixed + sum(cost[:, cost.sum(0).argmin()] for cost in costs)
    most = fixed + sum(cost.max(1) for cost in costs)
    bound = least + share * (most - least)
    return values, [cost / bound[:, None] for cost in costs], fixed / bound


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 2), st.floats(0.1, 0.9))
def test_every_limit_is_kept_and_none_is_paid_for_in_vain(seed, limits, share):
    values, costs, fixed = _problem(seed, limits, share)
    prices = fair_prices(values, costs, fixed)
    spent = expected_costs(values, costs, fixed, prices)
    assert (prices >= 0).all() and (spent <= 1 + 1e-3).all()
    for price, used in zip(prices, spent, strict=True):
        assert price < 1e-3 or used > 1 - 1e-3


@pytest.mark.parametrize("start", [0.0, 3.0, 900.0])
def test_where_it_begins_makes_no_difference(start):
    values, costs, fixed = _problem(7, 2, 0.3)
    expected = fair_prices(values, costs, fixed)
    assert fair_prices(values, costs, fixed, np.full(2, start)) == pytest.approx(expected, abs=1e-2)


def test_a_price_by_hand():
    """Two cells of equal value at 0.5 and 1.5 of the limit: even odds would cost just 1."""
    costs = [np.array([[0.5, 1.5]])]
    assert fair_prices([np.zeros(2)], costs, np.zeros(1))[0] == pytest.approx(0.0, abs=1e-4)
    # One worth ln 3 more is three times as likely, unless its cost is priced at ln 3.
    values = [np.array([0.0, np.log(3)])]
    assert expected_costs(values, costs, np.zeros(1), np.zeros(1))[0] == pytest.approx(1.25)
    prices = fair_prices(values, costs, np.zeros(1))
    assert prices[0] == pytest.approx(np.log(3), rel=1e-3)
    assert fitness(values[0], costs[0], prices) == pytest.approx([-0.5493] * 2, rel=1e-3)


def test_limits_that_no_cell_keeps_have_a_finite_price():
    prices = fair_prices([np.zeros(2)], [np.array([[2.0, 3.0]])], np.zeros(1))
    assert np.isfinite(prices).all() and prices[0] > 10


def test_no_limits_no_prices():
    values, costs = [np.zeros(2)], [np.zeros((0, 2))]
    assert fair_prices(values, costs, np.zeros(0)).shape == (0,)
    assert expected_costs(values, costs, np.zeros(0), np.zeros(0)).shape == (0,)
    assert fitness(values[0], costs[0], np.zeros(0)) == pytest.approx([0, 0])
