"""The exact end of the search against trying everything."""

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autospace.cost import CostTable, Limit
from autospace.select import check_limits, select
from devices.errors import UsageError

Problem = tuple[list[list[float]], list[CostTable], list[Limit]]


@st.composite
def problems(draw: st.DrawFn, limits: int) -> Problem:
    """A few blocks with a few candidates; limits that something keeps and not everything."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rows = []
    for size in sizes:
        weights = [draw(st.integers(1, 1000)) for _ in range(size)]
        rows.append([weight / sum(weights) for weight in weights])
    metrics = ("madds", "latency_ms")
    tables, bounds = [], []
    for index in range(limits):
        table = CostTable(
            metrics[index],
            float(draw(st.integers(0, 20))),
            tuple(tuple(float(draw(st.integers(0, 50))) for _ in range(size)) for size in sizes),
        )
        # Half a unit beside whole numbers, so that no network is on the limit.
        share = draw(st.floats(0, 1))
        value = round(table.smallest + share * (table.largest - table.smallest)) + 0.5
        tables.append(table)
        bounds.append(Limit(metrics[index], value, f"{value}"))
    return rows, tables, bounds


def score(rows: Sequence[Sequence[float]], choice: Sequence[int]) -> float:
    return sum(math.log(row[index]) for row, index in zip(rows, choice, strict=True))


def everything(problem: Problem) -> list[tuple[int, ...]]:
    """All networks within the limits, most probable first."""
    rows, tables, limits = problem
    kept = [
        choice
        for choice in itertools.product(*(range(len(row)) for row in rows))
        if all(
            table.total(choice) <= limit.value for table, limit in zip(tables, limits, strict=True)
        )
    ]
    return sorted(kept, key=lambda choice: -score(rows, choice))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2).flatmap(problems))
def test_the_best_is_the_best_of_all(problem: Problem) -> None:
    rows, tables, limits = problem
    found = select(rows, tables, limits)
    expected = everything(problem)
    if not expected:
        assert found == []
        return
    assert found[0] in expected
    assert score(rows, found[0]) == pytest.approx(score(rows, expected[0]), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2).flatmap(problems), st.integers(1, 6))
def test_the_k_best_in_order(problem: Problem, count: int) -> None:
    rows, tables, limits = problem
    found = select(rows, tables, limits, count)
    expected = everything(problem)[:count]
    assert len(set(found)) == len(found) == len(expected)
    assert [score(rows, one) for one in found] == pytest.approx(
        [score(rows, one) for one in expected], abs=1e-6
    )
    for choice in found:
        for table, limit in zip(tables, limits, strict=True):
            assert table.total(choice) <= limit.value * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2).flatmap(problems), st.sampled_from((0.5, 0.8, 0.95)))
def test_a_share_of_one_limit_is_used(problem: Problem, use: float) -> None:
    rows, tables, limits = problem
    expected = [
        choice
        for choice in everything(problem)
        if any(
            table.total(choice) >= use * limit.value
            for table, limit in zip(tables, limits, strict=True)
        )
    ]
    # Shares that a network meets exactly are a matter of the solver's tolerance.
    assume(
        all(
            abs(table.total(choice) - use * limit.value) > 1e-3
            for choice in everything(problem)
            for table, limit in zip(tables, limits, strict=True)
        )
    )
    found = select(rows, tables, limits, 2, use=use)
    assert [score(rows, one) for one in found] == pytest.approx(
        [score(rows, one) for one in expected[:2]], abs=1e-6
    )
    assert set(found) <= set(expected)


@settings(max_examples=12, deadline=None)
@given(problems(1), st.data())
def test_excluded_networks_are_not_found(problem: Problem, data: st.DataObject) -> None:
    rows, tables, limits = problem
    kept = everything(problem)
    assume(kept)
    exclude = data.draw(st.lists(st.sampled_from(kept), unique=True))
    found = select(rows, tables, limits, len(kept), exclude=exclude)
    assert set(found) == set(kept) - set(exclude)


TABLE = CostTable("madds", 100.0, ((10.0, 30.0), (10.0, 30.0)))
ROWS = [[0.1, 0.9], [0.4, 0.6]]


def test_a_small_case_by_hand() -> None:
    assert select(ROWS, [TABLE], [Limit("madds", 140, "140")], 4) == [(1, 0), (0, 1), (0, 0)]
    assert select(ROWS, [TABLE], [Limit("madds", 160, "160")], 9) == [
        (1, 1),
        (1, 0),
        (0, 1),
        (0, 0),
    ]
    assert select(ROWS, [], []) == [(1, 1)]


def test_a_network_on_the_limit_keeps_it() -> None:
    assert select(ROWS, [TABLE], [Limit("madds", 120, "120")]) == [(0, 0)]


def test_a_probability_of_nought_is_the_last_resort() -> None:
    rows = [[0.0, 1.0], [0.0, 1.0]]
    assert select(rows, [TABLE], [Limit("madds", 120, "120")]) == [(0, 0)]


def test_large_numbers_and_small_ones() -> None:
    for scale in (1e-6, 1e9):
        values = tuple(tuple(value * scale for value in row) for row in TABLE.values)
        table, limit = CostTable("madds", 100 * scale, values), Limit("madds", 140.5 * scale, "")
        assert select(ROWS, [table], [limit]) == [(1, 0)]


def test_limits_that_nothing_keeps() -> None:
    limit = Limit("madds", 119, "119")
    for call in (
        lambda: select(ROWS, [TABLE], [limit]),
        lambda: check_limits([TABLE], [limit]),
    ):
        with pytest.raises(UsageError, match="below the smallest network of the space, 120 multi"):
            call()


def test_limits_that_are_kept_one_by_one_and_not_together() -> None:
    """No single limit is impossible, so this is an empty answer and not an error."""
    other = CostTable("latency_ms", 1.0, ((3.0, 1.0), (3.0, 1.0)))
    limits = [Limit("madds", 125, ""), Limit("latency_ms", 3.5, "")]
    assert select(ROWS, [TABLE, other], limits) == []
