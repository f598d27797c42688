"""The exact end of the search: the best network within every limit, proven so.

A multiple-choice knapsack, solved by ``scipy.optimize.milp`` (HiGHS) to a relative gap of 0:
maximise Σ log p over blocks, one candidate a block, every cost at most its limit. The next best
networks come from no-good cuts. Log probabilities only propose; others decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from autospace.cost import CostTable, Limit, format_cost
from devices.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["check_limits", "largest_network", "select", "slack_limits", "smallest_network"]

_FLOOR = 1e-9
_SOLVED = 0


def check_limits(tables: Sequence[CostTable], limits: Sequence[Limit]) -> None:
    """Refuses limits that the smallest network of the space exceeds.

    Args:
        tables: one for each limit.
        limits: upper bounds.

    Raises:
        UsageError: names the limit and the smallest network's cost.
    """
    for table, limit in zip(tables, limits, strict=True):
        if table.smallest > limit.value:
            raise UsageError(
                f"limit {limit}: below the smallest network of the space, "
                f"{format_cost(limit.metric, table.smallest)}; raise the limit or evolve a space "
                "for it"
            )


def slack_limits(tables: Sequence[CostTable], limits: Sequence[Limit]) -> list[str]:
    """A line for each limit that even the largest network of the space keeps.

    Args:
        tables: one for each limit.
        limits: upper bounds.
    """
    return [
        f"limit {limit}: above the largest network of the space, "
        f"{format_cost(limit.metric, table.largest)}, so every network keeps it; lower the limit, "
        "or evolve a space for it"
        for table, limit in zip(tables, limits, strict=True)
        if table.largest <= limit.value
    ]


def largest_network(tables: Sequence[CostTable], limits: Sequence[Limit]) -> tuple[int, ...] | None:
    """The network that costs most, where it keeps all limits.

    Args:
        tables: one for each limit; costs are summed as shares of theirs.
        limits: upper bounds.

    Returns:
        Candidate indices; None where a limit is below it, or none is given.
    """
    if not limits or any(
        table.largest > limit.value for table, limit in zip(tables, limits, strict=True)
    ):
        return None
    return tuple(int(np.argmax(shares)) for shares in _shares(tables, limits))


def smallest_network(tables: Sequence[CostTable], limits: Sequence[Limit]) -> tuple[int, ...]:
    """The network that costs least, whether or not it keeps the limits.

    Args:
        tables: one for each limit, at least one; costs are summed as shares of theirs.
        limits: upper bounds.

    Returns:
        Candidate indices.
    """
    return tuple(int(np.argmin(shares)) for shares in _shares(tables, limits))


def _shares(tables: Sequence[CostTable], limits: Sequence[Limit]) -> list[NDArray[np.float64]]:
    """For each block, what its candidates cost, in shares of the limits."""
    weighted = [
        [np.asarray(row) / limit.value for row in table.values]
        for table, limit in zip(tables, limits, strict=True)
    ]
    return [np.sum(rows, 0) for rows in zip(*weighted, strict=True)]


def select(
    probabilities: Sequence[Sequence[float]],
    tables: Sequence[CostTable],
    limits: Sequence[Limit],
    count: int = 1,
    *,
    use: float = 0.0,
    exclude: Sequence[Sequence[int]] = (),
) -> list[tuple[int, ...]]:
    """The most probable networks within the limits, best first.

    Args:
        probabilities: for each block, one for each candidate.
        tables: one for each limit, of the same shape.
        limits: upper bounds that all hold.
        count: how many different networks.
        use: the share of at least one limit that a network has to use; 0 asks for nothing.
        exclude: candidate indices of networks not to be found again.

    Returns:
        Candidate indices of each network; fewer than ``count`` when no more exist.

    Raises:
        UsageError: a limit is below the smallest network.
    """
    check_limits(tables, limits)
    problem = _Knapsack(probabilities, tables, limits)
    for choice in exclude:
        problem.cut(choice)
    active: Sequence[int | None] = range(len(limits)) if use and limits else (None,)
    found: list[tuple[int, ...]] = []
    while len(found) < count:
        solved = [
            choice for choice in (problem.solve(one, use) for one in active) if choice is not None
        ]
        if not solved:
            break
        found.append(max(solved, key=problem.log_probability))
        problem.cut(found[-1])
    return found


class _Knapsack:
    """The integer program; constraint matrices grow by a row for each cut."""

    def __init__(
        self,
        probabilities: Sequence[Sequence[float]],
        tables: Sequence[CostTable],
        limits: Sequence[Limit],
    ):
        self.sizes = [len(row) for row in probabilities]
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self.scores = np.log(
            np.maximum(np.concatenate([list(row) for row in probabilities]), _FLOOR)
        )
        one_each = np.zeros((len(self.sizes), self.starts[-1]))
        for block, (start, size) in enumerate(zip(self.starts, self.sizes, strict=False)):
            one_each[block, start : start + size] = 1
        self.rows = [one_each]
        self.low, self.high = [np.ones(len(self.sizes))], [np.ones(len(self.sizes))]
        # Scaled to 1, so that the solver's absolute tolerance is a relative one here.
        self.costs = [
            np.concatenate([list(row) for row in table.values])[None] / limit.value
            for table, limit in zip(tables, limits, strict=True)
        ]
        self.fixed = [
            table.fixed / limit.value for table, limit in zip(tables, limits, strict=True)
        ]
        for cost, fixed in zip(self.costs, self.fixed, strict=True):
            self._require(cost, -np.inf, 1 - fixed)

    def _require(self, row: NDArray[np.float64], low: float, high: float) -> None:
        self.rows.append(row)
        self.low.append(np.array([low]))
        self.high.append(np.array([high]))

    def cut(self, choice: Sequence[int]) -> None:
        """Makes one network infeasible (a no-good cut)."""
        row = np.zeros((1, self.starts[-1]))
        row[0, [self.starts[block] + index for block, index in enumerate(choice)]] = 1
        self._require(row, -np.inf, len(self.sizes) - 1.0)

    def log_probability(self, choice: Sequence[int]) -> float:
        """Σ log p of a network."""
        return float(
            sum(self.scores[self.starts[block] + index] for block, index in enumerate(choice))
        )

    def solve(self, active: int | None, use: float) -> tuple[int, ...] | None:
        """The most probable network; with ``active``, that uses its share of this limit."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        rows, low, high = list(self.rows), list(self.low), list(self.high)
        if active is not None:
            rows.append(self.costs[active])
            low.append(np.array([use - self.fixed[active]]))
            high.append(np.array([np.inf]))
        result = milp(
            -self.scores,
            integrality=np.ones(self.starts[-1]),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(
                csr_array(np.concatenate(rows)), np.concatenate(low), np.concatenate(high)
            ),
            # After a presolve HiGHS now and then prints a line to standard output by itself, which
            # would spoil a JSON document there.
            options={"mip_rel_gap": 0.0, "presolve": False},
        )
        if result.status != _SOLVED or result.x is None:
            return None
        return tuple(
            int(np.argmax(result.x[start : start + size]))
            for start, size in zip(self.starts, self.sizes, strict=False)
        )
