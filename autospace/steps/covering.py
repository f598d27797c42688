"""What a card lacks for a space is measured before the space is searched."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from autospace.cost import Cost
from autospace.coverage import described, networks_with
from autospace.events import Progress
from autospace.files import replacing
from autospace.space import SearchSpace
from autospace.steps.device import Device
from autospace.steps.limits import latency_cost
from autospace.steps.profiling import profile
from devices.errors import InvalidInputError, UsageError

if TYPE_CHECKING:
    from autospace.distributed import Ranks

__all__ = ["card_copy", "covered_latency"]

_MISSING_ROUNDS = 6
"""Visits to networks with what a card lacks; from three on a kernel counts as measured."""


def card_copy(state: Path) -> Path:
    """Where a card is completed for one search, beside the state of the search."""
    return state.with_name(f"{state.name}.card")


def covered_latency(
    space: SearchSpace,
    device: Device,
    seed: int,
    measure: bool,
    state: Path | None,
    ranks: Ranks,
    progress: Progress,
) -> tuple[Cost, tuple[str, ...]]:
    """Latency with a measurement behind every entry of the space's table, and what to say of it.

    Raises:
        InvalidInputError: entries are missing, and nothing can be measured here.
    """
    cost = latency_cost(space.skeleton, device.card, space.kernel_reading)
    missing = cost.missing(space.candidates_by_block)
    if not missing:
        return cost, ()
    card, words = device.card.path, described(missing)
    remedy = f"'autospace profile-device --update --space SPACE -o {card.name}'"
    if not measure or not device.here:
        why = "--no-measure forbids to" if device.here else "this machine cannot"
        raise InvalidInputError(
            f"{card.name}: never measured {words}, which the space needs, and {why} measure them "
            f"now; add them to the card with {remedy}"
        )
    if ranks.size > 1 and state is None:
        raise UsageError(
            f"{card.name}: lacks {words}, and {ranks.size} processes need a place to share what "
            f"is measured; give a state, or add them to the card with {remedy}"
        )
    progress(0.0, f"measuring {words}, which {card.name} lacks")
    if not ranks.first:
        ranks.wait()  # then everything is measured, and the card is opened at once
    with TemporaryDirectory() as folder:
        copy = card_copy(state) if state else Path(folder) / card.name
        if not copy.exists():
            with replacing(copy) as temporary:
                shutil.copyfile(card, temporary)
        fuller = profile(
            copy, runtime=device.card.runtime, settings=device.card.settings, minutes=None,
            rounds=_MISSING_ROUNDS, probes=0, seed=seed, update=True,
            models=networks_with(missing, space, device.card.settings.batch),
        )  # fmt: skip
        if ranks.first:
            ranks.wait()
        cost = latency_cost(space.skeleton, fuller, space.kernel_reading)
        still = cost.missing(space.candidates_by_block)
    if still:
        raise InvalidInputError(
            f"{card.name}: {described(still)} could not be measured, and the space needs them; "
            "profile for longer, or take another space"
        )
    return cost, (f"{card.name} lacks {words}: measured for this search; keep them with {remedy}",)
