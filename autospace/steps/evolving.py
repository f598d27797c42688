"""A search space is evolved for limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autospace.data import Data
from autospace.events import Progress, Watch, silent, unwatched
from autospace.operations import KernelReading
from autospace.seeding import Seed
from autospace.skeleton import Skeleton, find_skeleton
from autospace.space import SearchSpace
from autospace.steps.device import Device
from autospace.steps.limits import STATISTICS, check_limit_texts, costs_of, limits_of
from autospace.steps.target import load_proxy, target_skeleton

if TYPE_CHECKING:
    from autospace.evolution_options import EvolutionOptions

__all__ = ["evolve"]


def evolve(
    *,
    budget: str | None = None,
    latency: str | None = None,
    device: Device | None = None,
    statistic: str = STATISTICS[0],
    skeleton: Skeleton | str = "mobile",
    data: Data | None = None,
    options: EvolutionOptions | None = None,
    seed: int = 0,
    reading: KernelReading = "kernel",
    state: Path | None = None,
    log: Path | None = None,
    progress: Progress = silent,
    watch: Watch = unwatched,
) -> SearchSpace:
    """Evolves a search space for limits.

    Args:
        budget: multiply-adds at the target.
        latency: on the card's device; needs ``device``.
        device: an opened card.
        statistic: what the latency limit is on, one of `STATISTICS`.
        skeleton: the target's macro layout.
        data: what fitness is learned on; the embedded digits if not given.
        options: the open choices of the evolution.
        seed: of everything random.
        reading: how fused depthwise operations are built.
        state: where the state is saved as it goes.
        log: the JSON-lines log.
        progress: is told as it goes.
        watch: is given every new line of the log.

    Raises:
        UsageError: a malformed limit, or one below the smallest network.
    """
    from autospace.distributed import join
    from autospace.evolution import evolve_space

    check_limit_texts(budget, latency)
    if data is None:
        named = find_skeleton(skeleton) if isinstance(skeleton, str) else skeleton
        data = load_proxy("digits", None, named)
    ranks = join(data.accelerator)
    if isinstance(skeleton, str):
        skeleton = target_skeleton(skeleton, data)
    costs = costs_of(skeleton, device, reading)
    space = evolve_space(
        skeleton,
        data,
        costs,
        limits_of(budget, latency, costs, device=device, statistic=statistic),
        options=options,
        seed=Seed(seed),
        reading=reading,
        provenance={"device": device.description} if device else {},
        ranks=ranks,
        state=state,
        log=log,
        progress=progress,
        watch=watch,
    )
    ranks.leave()
    return space
