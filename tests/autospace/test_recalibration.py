"""What networks that were measured say of a table, on tables whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autospace.cost import CostTable
from autospace.recalibration import Recalibration, Shift, line_through


def some_table(random: np.random.Generator, blocks: int = 6, candidates: int = 8) -> CostTable:
    rows = random.uniform(0.01, 0.05, (blocks, candidates))
    rows[:, 0] = 0.0  # a skip
    return CostTable("latency_ms", 0.03, tuple(map(tuple, rows.tolist())))


def some_networks(random: np.random.Generator, count: int) -> list[tuple[int, ...]]:
    return [tuple(map(int, row)) for row in random.integers(0, 8, (count, 6))]


def with_shift(table: CostTable, block: int, candidate: int, more_ms: float) -> CostTable:
    return Recalibration(shifts=(Shift(block, candidate, more_ms),)).of(table)


def test_a_slope_and_an_offset_are_told_apart_where_predictions_differ():
    factor, offset = line_through(np.array([1.0, 1.5, 2.0, 3.0]), np.array([0.8, 1.4, 2.0, 3.2]))
    assert factor == pytest.approx(1.2, rel=0.03)
    assert offset == pytest.approx(-0.4, abs=0.06)


def test_equal_predictions_give_the_plain_ratio():
    factor, offset = line_through(np.ones(3), np.full(3, 1.3))
    assert factor + offset == pytest.approx(1.3, rel=0.01)
    assert abs(offset) < 0.2


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 0.3), st.floats(0.5, 2))
def test_noise_in_a_narrow_range_makes_no_slope(seed, noise, ratio):
    """Proposals are all of about one size: a line through them must not end somewhere absurd."""
    random = np.random.default_rng(seed)
    predicted = random.uniform(0.97, 1.0, 10)
    measured = ratio * predicted * np.exp(random.normal(0, noise, 10))
    factor, offset = line_through(predicted, measured)
    typical = float(np.median(measured / predicted))
    assert 0.5 * typical < factor < 2 * typical
    for size in (0.1, 1.0, 2.0):  # of networks far smaller and far larger
        assert factor * size + offset == pytest.approx(typical * size, abs=typical)
    if noise < 0.05:
        assert factor + offset == pytest.approx(typical, rel=0.06)
        assert factor == pytest.approx(typical, rel=0.25)


# -- single entries --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_an_entry_that_is_far_off_is_found(seed):
    random = np.random.default_rng(seed)
    table = some_table(random)
    truth = with_shift(table, 2, 5, 0.4)
    networks = some_networks(random, 15)
    networks = [(*n[:2], 5, *n[3:]) if i % 3 == 0 else n for i, n in enumerate(networks)]
    measured = [truth.total(n) * float(np.exp(random.normal(0, 0.01))) for n in networks]
    found = Recalibration.fit(table, networks, measured)
    first = found.shifts[0]
    assert (first.block, first.candidate) == (2, 5)
    corrected = found.of(table)
    assert corrected.values[2][5] == pytest.approx(truth.values[2][5], rel=0.3)
    others = some_networks(random, 40)
    errors = [abs(corrected.total(n) / truth.total(n) - 1) for n in others]
    before = [abs(line_corrected(table, networks, measured).total(n) / truth.total(n) - 1)
              for n in others]  # fmt: skip
    assert np.mean(errors) < 0.6 * np.mean(before)


def line_corrected(table, networks, measured) -> CostTable:
    predicted = np.array([table.total(n) for n in networks])
    return table.recalibrated(*line_through(predicted, np.array(measured)))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 0.04), st.floats(0.6, 1.6), st.integers(2, 20))
def test_what_a_line_explains_moves_hardly_anything(seed, noise, ratio, count):
    random = np.random.default_rng(seed)
    table = some_table(random)
    networks = some_networks(random, count)
    measured = [ratio * table.total(n) * float(np.exp(random.normal(0, noise))) for n in networks]
    found = Recalibration.fit(table, networks, measured)
    line, corrected = line_corrected(table, networks, measured), found.of(table)
    for one in some_networks(random, 10):
        assert corrected.total(one) == pytest.approx(line.total(one), rel=0.15)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.floats(0.1, 3))
def test_no_entry_becomes_free_and_no_skip_costs_anything(seed, count, spread):
    random = np.random.default_rng(seed)
    table = some_table(random)
    networks = some_networks(random, count)
    measured = [table.total(n) * float(np.exp(random.normal(0, spread))) for n in networks]
    corrected = Recalibration.fit(table, networks, measured).of(table)
    for row in corrected.values:
        assert row[0] == 0 and min(row[1:]) > 0


def test_equal_networks_say_nothing_of_entries():
    random = np.random.default_rng(0)
    table = some_table(random)
    networks = [(1, 2, 3, 4, 5, 6)] * 4
    assert Recalibration.fit(table, networks, [0.9, 0.91, 0.9, 0.92]).shifts == ()
