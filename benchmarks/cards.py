"""Device cards of long benchmarks: made once, and completed by what a space needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autospace.coverage import CoveredLatencyCost, networks_with
from autospace.events import Progress
from autospace.space import SearchSpace
from autospace.steps import Device, open_device, profile
from latency import Predictor

__all__ = ["completed", "covered_cost", "profiled"]

_ROUNDS = 6


def profiled(
    card: Path, minutes: float, progress: Progress, space: SearchSpace | None = None
) -> Device:
    """This machine, profiled if there is no card yet.

    Args:
        card: its file; there whole or not at all.
        minutes: how long.
        progress: is told as it goes.
        space: whose networks are among the probes.
    """
    if not card.is_file():
        part = card.with_suffix(".part")
        profile(part, minutes=minutes, space=space, progress=progress)
        part.rename(card)
    return open_device(card)


def covered_cost(device: Device, space: SearchSpace) -> CoveredLatencyCost:
    """The latency of a space's candidates, which knows what was never measured."""
    card = device.card
    return CoveredLatencyCost(
        space.skeleton, Predictor.from_card(card), space.kernel_reading, card.settings.batch
    )


def completed(
    device: Device, space: SearchSpace, say: Callable[[str], None], progress: Progress
) -> Device:
    """The device with a measurement behind every candidate of a space: the card is added to.

    Args:
        device: with its card.
        space: whose candidates count.
        say: is given a line if something is missing.
        progress: is told as it goes.
    """
    missing = covered_cost(device, space).missing(space.candidates_by_block)
    if not missing:
        return device
    card = device.card
    say(f"{card.path.name} lacks kernels of the space: measuring them")
    profile(
        card.path, runtime=card.runtime, settings=card.settings, minutes=None, rounds=_ROUNDS,
        probes=0, update=True, models=networks_with(missing, space, card.settings.batch),
        progress=progress,
    )  # fmt: skip
    return open_device(card.path)
