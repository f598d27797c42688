"""A space is searched under limits: for one network, or for a family of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autospace.data import Data
from autospace.events import Progress, silent
from autospace.seeding import Seed
from autospace.space import SearchSpace
from autospace.steps.asked import ask
from autospace.steps.device import Device
from autospace.steps.found import FamilyResult, SearchResult
from autospace.steps.limits import STATISTICS

if TYPE_CHECKING:
    from autospace.search_options import SearchOptions

__all__ = ["family_state", "search", "search_pareto"]


def search(
    space: SearchSpace,
    *,
    budget: str | None = None,
    latency: str | None = None,
    device: Device | None = None,
    statistic: str = STATISTICS[0],
    data: Data | None = None,
    options: SearchOptions | None = None,
    seed: int = 0,
    measure: bool = True,
    state: Path | None = None,
    log: Path | None = None,
    record: Path | None = None,
    progress: Progress = silent,
    verifying: Progress | None = None,
) -> SearchResult:
    """Searches a space under limits and measures what it chose.

    Args:
        space: the candidates of each layer.
        budget: multiply-adds at the target.
        latency: on the card's device; needs ``device``.
        device: an opened card.
        statistic: what the latency limit is on, one of `STATISTICS`.
        data: what is learned on; the embedded digits if not given.
        options: how to search.
        seed: of everything random.
        measure: False leaves latency to the prediction.
        state: where the state is saved as it goes.
        log: the JSON-lines log.
        record: where candidates and their measurements are kept.
        progress: is told during the search.
        verifying: is told while candidates are ranked and measured.

    Returns:
        The result, kept or not; `SearchResult.check` raises when it is not.

    Raises:
        UsageError: a malformed limit, or one below the smallest network.
    """
    asked = ask(
        space, budget, latency, device, statistic, data, options, seed, measure, state, progress
    )
    searched = asked.train(state=state, log=log, progress=progress)
    (found,) = asked.verified(
        [searched], measure, record, verifying or progress, searched.held_out_loss
    )
    return found


def search_pareto(
    space: SearchSpace,
    count: int,
    *,
    budget: str | None = None,
    latency: str | None = None,
    device: Device | None = None,
    statistic: str = STATISTICS[0],
    data: Data | None = None,
    options: SearchOptions | None = None,
    seed: int = 0,
    measure: bool = True,
    state: Path | None = None,
    log: Path | None = None,
    record: Path | None = None,
    progress: Progress = silent,
    verifying: Progress | None = None,
) -> FamilyResult:
    """Searches a space for a family of networks: one for each of several limits.

    One supernet is trained; half of its paths are drawn for the limits given, the others for
    those of the family. For each limit α then goes on learning by itself, the exact solver
    proposes, and all proposals are measured interleaved.

    Args:
        space: the candidates of each layer.
        count: how many limits, evenly spaced in the logarithm from just above the smallest
            network up to those given; limits given together shrink together.
        budget: multiply-adds at the target, of the largest network.
        latency: on the card's device, of the largest network; needs ``device``.
        device: an opened card.
        statistic: what the latency limit is on, one of `STATISTICS`.
        data: what is learned on; the embedded digits if not given.
        options: how to search.
        seed: of everything random.
        measure: False leaves latency to the prediction.
        state: where the state is saved as it goes; the members' α beside it, as ``.family``.
        log: the JSON-lines log of the supernet's training.
        record: where candidates and their measurements are kept.
        progress: is told during the search.
        verifying: is told while candidates are ranked and measured.

    Returns:
        The family, kept or not; `FamilyResult.check` raises when a limit is not kept.

    Raises:
        UsageError: a malformed limit, one below the smallest network, or no room for so many.
    """
    from autospace.family import learn_family

    asked = ask(
        space, budget, latency, device, statistic, data, options, seed, measure, state, progress
    )
    limits = asked.family(count)
    searched = asked.train(
        # As many for the last member, whose limits are those given, as for all others together.
        family=[*limits, *[limits[-1]] * (count - 2)],
        state=state,
        log=log,
        progress=lambda fraction, message: progress(0.7 * fraction, message),
    )
    family = learn_family(
        searched, asked.data, limits, options=asked.options, seed=Seed(seed), ranks=asked.ranks,
        state=family_state(state) if state else None,
        progress=lambda fraction, message: progress(0.7 + 0.3 * fraction, message),
    )  # fmt: skip
    return FamilyResult(
        asked.verified(family, measure, record, verifying or progress, searched.held_out_loss)
    )


def family_state(state: Path) -> Path:
    """Where the members' α are kept, beside the state of the search."""
    return state.with_name(f"{state.name}.family")
