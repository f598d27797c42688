"""What the cells of the last populations are worth by themselves: the evolution's final exam.

Gradients through weighted sums (AutoSpace, arXiv 2103.11833, Eq. 4) steer the evolution from few
and noisy steps. At its end the populations are fixed and forward passes are cheap, so each cell is
judged as it will be used: networks of one cell a layer, with the evolution's weights, on held-out
data. Every batch is seen by as many networks as a population has cells, each cell in one of them;
what a cell adds to the loss is then fitted by least squares, with the batch's mean taken out. This
project's choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from autospace.checks import finite_loss
from autospace.data import Data
from autospace.distributed import ALONE, Ranks
from autospace.genotype import Cell
from autospace.seeding import Seed
from autospace.supernet import EvolvingNet

__all__ = ["effects_of", "examine"]

Array = NDArray[np.float64]
_RIDGE = 1.0
"""Observations of an effect of 0 that every cell begins with."""


def examine(
    net: EvolvingNet,
    populations: Sequence[Sequence[Cell]],
    data: Data,
    *,
    batches: int,
    batch: int,
    seed: Seed,
    progress: Callable[[float], None],
    ranks: Ranks = ALONE,
) -> list[Array]:
    """Measures what each cell adds to the held-out loss of networks of single cells.

    Args:
        net: with trained weights.
        populations: for each layer its cells.
        data: whose validation split is used.
        batches: how many.
        batch: images in each.
        seed: of the batches and of the networks.
        progress: is told the share that is done.
        ranks: the processes that share each batch.

    Returns:
        For each layer, the effect of each of its cells on the cross-entropy, shape ``(cells,)``;
        negative is better, and a layer's mean is 0.

    Raises:
        AutospaceError: a loss is no longer a number.
    """
    count = max(map(len, populations))
    ones = torch.ones(len(populations), 1)
    choices: list[list[int]] = []
    losses: list[list[float]] = []
    net.train()
    with torch.no_grad():
        for number in range(batches):
            images, labels = data.training_batch(
                data.validation, batch, number, seed.child("exam"), augment=False
            )
            images, labels, share = ranks.share(images, labels)
            random = seed.generator("exam", number)
            columns = [np.resize(random.permutation(len(row)), count) for row in populations]
            losses.append([])
            for place in range(count):
                choice = [int(column[place]) for column in columns]
                cells = [[row[i]] for row, i in zip(populations, choice, strict=True)]
                loss = share * functional.cross_entropy(net(images, cells, ones), labels)
                losses[-1].append(finite_loss(ranks.total(loss), f"evolve, exam {number}"))
                choices.append(choice)
            progress((number + 1) / batches)
    return effects_of(np.array(choices), np.array(losses), [len(row) for row in populations])


def effects_of(choices: NDArray[np.int64], losses: Array, sizes: Sequence[int]) -> list[Array]:
    """Least squares: what each candidate of each layer adds to the loss.

    Args:
        choices: candidate indices, shape ``(batches * networks, layers)``.
        losses: shape ``(batches, networks)``.
        sizes: candidates of each layer.

    Returns:
        For each layer, shape ``(candidates,)`` with a mean of 0.
    """
    starts = np.concatenate([[0], np.cumsum(sizes)])
    design = np.zeros((len(choices), starts[-1]))
    for layer, start in enumerate(starts[:-1]):
        design[np.arange(len(choices)), start + choices[:, layer]] = 1
    relative = (losses - losses.mean(1, keepdims=True)).ravel()
    # What the networks of a batch have in common is the batch's, whatever cells they are of.
    grouped = design.reshape(*losses.shape, -1)
    design = (grouped - grouped.mean(1, keepdims=True)).reshape(design.shape)
    square = design.T @ design + _RIDGE * np.eye(starts[-1])
    found = np.linalg.solve(square, design.T @ relative)
    parts = np.split(found, starts[1:-1])
    return [part - part.mean() for part in parts]
