"""A network is trained from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autospace.data import Data
from autospace.events import Progress, silent
from autospace.seeding import Seed
from autospace.space import Architecture
from autospace.steps.target import load_proxy

if TYPE_CHECKING:
    from autospace.train_options import TrainOptions
    from autospace.training import TrainedNetwork

__all__ = ["train"]


def train(
    architecture: Architecture,
    *,
    data: Data | None = None,
    options: TrainOptions | None = None,
    seed: int = 0,
    state: Path | None = None,
    log: Path | None = None,
    progress: Progress = silent,
) -> TrainedNetwork:
    """Trains an architecture and tests it on data that training never saw.

    Raises:
        UsageError: an impossible recipe.
    """
    from autospace.training import train_network

    data = data or load_proxy("digits", None, architecture.skeleton)
    return train_network(
        architecture, data, options=options, seed=Seed(seed), state=state, log=log,
        progress=progress,
    )  # fmt: skip
