"""A family of networks for several limits, from one trained supernet.

The supernet is trained once, under the limits as given. What it learned of its weights holds for
smaller networks too; what its α says does not, since they were held at other limits. So for each
of the other limits α goes on learning from where the training ended, with the weights left as they
are and a multiplier of its own (this project's choice). On the way there the limit shrinks by and
by: far above its limit, the cost term would put out every large candidate before the loss has had
its say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from autospace.checkpoint import Checkpoint, saved_state
from autospace.cost import CostTable, Limit, format_cost
from autospace.data import Data
from autospace.distributed import ALONE, Ranks
from autospace.events import Progress, silent
from autospace.files import content_hash
from autospace.proxyless import SearchedNet, SearchRun
from autospace.search_options import SearchOptions
from autospace.seeding import Seed
from autospace.tilt import tilted
from devices.errors import UsageError

__all__ = ["family_limits", "learn_family"]

_KIND = "autospace.family"
_ROOM = 1.25
"""The lowest limit over the smallest network's cost: below that there is next to no choice."""
_LEAST_STEP = 1.02
"""Between two neighbouring limits; nearer ones have the same networks."""
_LEAST_STEPS = 40


def family_limits(
    tables: Sequence[CostTable], limits: Sequence[Limit], count: int
) -> list[tuple[Limit, ...]]:
    """Limits from just above the smallest network up to the ones given, in equal ratios.

    Several limits shrink together: each of the family's steps takes every metric the same share
    of its way down, in the logarithm. A limit above the largest network begins there; the last
    member has the limits as given.

    Args:
        tables: one for each limit.
        limits: of the last member.
        count: how many members.

    Returns:
        The limits of each member, tightest first.

    Raises:
        UsageError: fewer than two, or no room for as many above the smallest network.
    """
    if count < 2:
        raise UsageError(f"--pareto {count}: a family has at least 2 members")
    smallest = _smallest(tables, limits)
    highs = [min(one.value, table.largest) for one, table in zip(limits, tables, strict=True)]
    lows = [
        min(high, _ROOM * table.total(smallest)) for high, table in zip(highs, tables, strict=True)
    ]
    ratio = max(high / low for high, low in zip(highs, lows, strict=True))
    if ratio < _LEAST_STEP ** (count - 1):
        named = " and ".join(
            f"{limit} (smallest network {format_cost(limit.metric, table.total(smallest))})"
            for limit, table in zip(limits, tables, strict=True)
        )
        raise UsageError(
            f"--pareto {count}: no room for {count} limits below {named}; raise the limit or give "
            "a smaller number"
        )
    members = []
    for share in np.linspace(0, 1, count)[:-1]:
        values = [
            float(f"{low ** (1 - share) * high**share:.3g}")
            for low, high in zip(lows, highs, strict=True)
        ]
        members.append(
            tuple(
                Limit(limit.metric, value, format_cost(limit.metric, value))
                for limit, value in zip(limits, values, strict=True)
            )
        )
    return [*members, tuple(limits)]


def _smallest(tables: Sequence[CostTable], limits: Sequence[Limit]) -> tuple[int, ...]:
    """The network with the smallest sum of shares of the limits, block by block."""
    rows = [
        sum(
            np.asarray(row) / limit.value
            for row, limit in zip(blocks, limits, strict=True)
        )
        for blocks in zip(*(table.values for table in tables), strict=True)
    ]  # fmt: skip
    return tuple(int(np.argmin(row)) for row in rows)


def learn_family(
    searched: SearchedNet,
    data: Data,
    members: Sequence[Sequence[Limit]],
    *,
    options: SearchOptions,
    seed: Seed,
    ranks: Ranks = ALONE,
    state: Path | None = None,
    progress: Progress = silent,
) -> tuple[SearchedNet, ...]:
    """α for each member's limits; the weights are the same in all.

    Args:
        searched: the supernet, trained under the last member's limits.
        data: α learns on its validation split.
        members: limits of each, from `family_limits`.
        options: of the search.
        seed: of batches and paths.
        ranks: the processes that share each batch; only the first writes files.
        state: where finished members are kept, and taken from if they are there.
        progress: is told as it goes.

    Raises:
        AutospaceError: a loss is no longer a number.
    """
    digest = content_hash(
        [searched.space.hash, asdict(options), seed.root, data.description,
         [[limit.to_json() for limit in limits] for limits in members],
         [table.values for table in searched.tables]]
    )  # fmt: skip
    saved = saved_state(state, _KIND, digest)
    ranks.wait()
    found: dict[str, torch.Tensor] = dict(saved.tensors) if saved else {}
    steps = max(_LEAST_STEPS, searched.alpha_steps // 2)
    for number, limits in enumerate(members[:-1]):
        if str(number) not in found:

            def told(step: int, number: int = number) -> None:
                progress(
                    (number + step / steps) / (len(members) - 1),
                    f"network {number + 1} of {len(members)}: α step {step}/{steps}",
                )

            found[str(number)] = _continued(
                searched, data, limits, options, seed.child("family", number), steps, told, ranks
            )
            if state is not None and ranks.first:
                Checkpoint(_KIND, found, {"digest": digest}).save(state)
    return (
        *(
            replace(searched, alpha=found[str(number)], limits=tuple(limits), log=())
            for number, limits in enumerate(members[:-1])
        ),
        searched,
    )


def _continued(
    searched: SearchedNet,
    data: Data,
    limits: Sequence[Limit],
    options: SearchOptions,
    seed: Seed,
    steps: int,
    told: Callable[[int], None],
    ranks: Ranks,
) -> torch.Tensor:
    """α after more steps under other limits, shape ``(blocks, most candidates)``."""
    start = torch.from_numpy(tilted(searched.alpha.double().numpy(), searched.tables, limits))
    run = SearchRun(
        options, data, seed, searched.net,
        torch.optim.SGD(searched.net.parameters(), lr=options.learning_rate),
        limits, searched.tables, start.to(searched.alpha.dtype, copy=True),
        list(searched.multipliers), searched.scale, searched.alpha_steps, ranks=ranks,
    )  # fmt: skip
    for step in range(1, steps + 1):
        run.step = options.steps + step  # of which the sampled pairs are drawn
        run.alpha_step()
        told(step)
    if options.constraint == "lagrangian":
        run.settle()
    return run.alpha
