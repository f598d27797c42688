"""The exact end of the search: the best network within every limit, proven so.

A multiple-choice knapsack, solved by ``scipy.optimize.milp`` (HiGHS) to a relative gap of 0:
maximise Σ log p over blocks, one candidate a block, every cost at most its limit. The next best
networks come from no-good cuts. Log probabilities only propose; others decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autospace.cost import CostTable, Limit, format_cost
from devices.errors import UsageError

__all__ = ["check_limits", "select"]

_FLOOR = 1e-9
_FEASIBLE = 0


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


def select(
    probabilities: Sequence[Sequence[float]],
    tables: Sequence[CostTable],
    limits: Sequence[Limit],
    count: int = 1,
) -> list[tuple[int, ...]]:
    """The most probable networks within the limits, best first.

    Args:
        probabilities: for each block, one for each candidate.
        tables: one for each limit, of the same shape.
        limits: upper bounds that all hold.
        count: how many different networks.

    Returns:
        Candidate indices of each network; fewer than ``count`` when no more exist.

    Raises:
        UsageError: a limit is below the smallest network, or no network keeps all of them.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, vstack

    check_limits(tables, limits)
    sizes = [len(row) for row in probabilities]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    score = np.log(np.maximum(np.concatenate([np.asarray(row) for row in probabilities]), _FLOOR))
    one_each = np.zeros((len(sizes), starts[-1]))
    for block in range(len(sizes)):
        one_each[block, starts[block] : starts[block + 1]] = 1
    rows = [one_each]
    low, high = [np.ones(len(sizes))], [np.ones(len(sizes))]
    for table, limit in zip(tables, limits, strict=True):
        # Scaled to 1, so that the solver's absolute tolerance is a relative one here.
        rows.append(np.concatenate([np.asarray(row) for row in table.values])[None] / limit.value)
        low.append(np.array([-np.inf]))
        high.append(np.array([1 - table.fixed / limit.value]))
    found: list[tuple[int, ...]] = []
    while len(found) < count:
        result = milp(
            -score,
            integrality=np.ones(starts[-1]),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(
                vstack([csr_array(row) for row in rows]),
                np.concatenate(low),
                np.concatenate(high),
            ),
            options={"mip_rel_gap": 0.0},
        )
        if result.status != _FEASIBLE or result.x is None:
            break
        choice = tuple(
            int(np.argmax(result.x[starts[block] : starts[block + 1]]))
            for block in range(len(sizes))
        )
        found.append(choice)
        cut = np.zeros((1, starts[-1]))
        cut[0, [starts[block] + index for block, index in enumerate(choice)]] = 1
        rows.append(cut)
        low.append(np.array([-np.inf]))
        high.append(np.array([len(sizes) - 1.0]))
    if not found:
        named = " and ".join(str(limit) for limit in limits)
        raise UsageError(f"limits {named}: no network of the space keeps all of them; raise one")
    return found
