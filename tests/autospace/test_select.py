"""The exact end of the search against trying everything."""

import itertools
import math
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autospace.cost import CostTable, Limit
from autospace.select import check_limits, largest_network, select, slack_limits
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


def test_limits_that_even_the_largest_network_keeps_are_named() -> None:
    other = CostTable("latency_ms", 1.0, ((3.0, 1.0), (3.0, 1.0)))
    wide, tight = Limit("madds", 200, ""), Limit("latency_ms", 6.0, "")
    (line,) = slack_limits([TABLE, other], [wide, tight])
    assert "limit 200 multiply-adds: above the largest network of the space, 160" in line
    assert largest_network([TABLE, other], [wide, tight]) is None
    assert largest_network([TABLE], [wide]) == (1, 1)
    # Both in play: the sum of shares decides, and the second metric weighs more here.
    assert largest_network([TABLE, other], [wide, Limit("latency_ms", 7.0, "")]) == (0, 0)
    assert largest_network([], []) is None


# -- at full size ----------------------------------------------------------------------------------


def full_size(seed: int, blocks: int = 21, candidates: int = 9) -> Problem:
    """A problem of the mobile skeleton's size under two limits that pull differently."""
    random = np.random.default_rng(seed)
    rows = random.dirichlet(np.full(candidates, 0.5), blocks)
    size = random.uniform(0.2, 3, (blocks, 1)) * random.lognormal(0, 0.7, (blocks, candidates))
    tables, limits = [], []
    metrics = ("madds", "latency_ms")
    both = (1e7 * size, size * random.lognormal(0, 0.3, size.shape))
    for metric, values in zip(metrics, both, strict=True):
        fixed = float(values.mean(1).sum() / 10)
        table = CostTable(metric, fixed, tuple(tuple(map(float, row)) for row in values))
        share = random.uniform(0.1, 0.4)
        value = table.smallest + share * (table.largest - table.smallest)
        tables.append(table)
        limits.append(Limit(metric, value, ""))
    return [list(map(float, row)) for row in rows], tables, limits


def pareto_best(problem: Problem) -> float:
    """The best Σ log p by dynamic programming over undominated partial networks: exact."""
    rows, tables, limits = problem
    least = [[min(row) for row in table.values] for table in tables]
    rest = [[sum(row[block:]) for block in range(len(rows) + 1)] for row in least]
    # Columns: costs, score.
    states = np.array([[*(table.fixed for table in tables), 0.0]])
    for block, row in enumerate(rows):
        added = np.array(
            [[*(table.values[block][i] for table in tables), math.log(p)]
             for i, p in enumerate(row)]
        )  # fmt: skip
        states = (states[:, None] + added).reshape(-1, states.shape[1])
        for place, limit in enumerate(limits):
            states = states[states[:, place] + rest[place][block + 1] <= limit.value]
        order = np.lexsort((states[:, 0], -states[:, 2]))
        kept: list[np.ndarray] = []
        for state in states[order]:
            if not any(np.all(one[:2] <= state[:2]) for one in reversed(kept)):
                kept.append(state)
        states = np.array(kept)
    return float(states[:, 2].max())


@pytest.mark.parametrize("seed", range(4))
def test_ten_blocks_of_nine_are_solved_exactly(seed: int) -> None:
    """Too many to try (9^10), so against another exact method."""
    problem = full_size(seed, blocks=10)
    found = select(*problem)
    assert score(problem[0], found[0]) == pytest.approx(pareto_best(problem), abs=1e-6)


def test_the_mobile_skeleton_s_size_takes_less_than_a_second() -> None:
    """21 blocks of nine candidates under two limits: the median of some problems."""
    seconds = []
    for seed in range(7):
        rows, tables, limits = full_size(seed)
        started_s = time.process_time()
        (found,) = select(rows, tables, limits)
        seconds.append(time.process_time() - started_s)
        for table, limit in zip(tables, limits, strict=True):
            assert table.total(found) <= limit.value * (1 + 1e-9)
    assert sorted(seconds)[3] < 1


def test_the_k_best_of_the_mobile_skeleton_s_size_fall_in_order() -> None:
    problem = full_size(1)
    found = select(*problem, 6)
    scores = [score(problem[0], one) for one in found]
    assert len(set(found)) == 6 and scores == sorted(scores, reverse=True)
    # Each is what is best once those before it are excluded.
    again = select(*problem, exclude=found[:5])
    assert score(problem[0], again[0]) == pytest.approx(scores[5], abs=1e-6)
