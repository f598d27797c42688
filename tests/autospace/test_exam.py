"""The final exam: effects by least squares, and cells that cannot see are found out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autospace.data import load_data
from autospace.exam import effects_of, examine
from autospace.genotype import REFERENCE_CELLS
from autospace.operations import Operation
from autospace.seeding import Seed
from autospace.skeleton import SKELETONS
from autospace.supernet import EvolvingNet


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31))
def test_additive_losses_are_taken_apart(seed):
    random = np.random.default_rng(seed)
    sizes = [3, 5, 4]
    truth = [random.normal(0, 1, size) for size in sizes]
    truth = [effect - effect.mean() for effect in truth]
    batches, count = 200, 5
    choices = np.stack([random.integers(0, size, batches * count) for size in sizes], 1)
    losses = sum(effect[choices[:, layer]] for layer, effect in enumerate(truth))
    losses = losses.reshape(batches, count) + random.normal(0, 10, (batches, 1))
    found = effects_of(choices, losses, sizes)
    for own, true in zip(found, truth, strict=True):
        assert own == pytest.approx(true, abs=0.05)
        assert own.mean() == pytest.approx(0, abs=1e-9)


def test_every_cell_is_seen_equally_often_and_the_trained_are_better():
    """A net that learned with one cell a layer: others, with weights of their own, do worse."""
    skeleton, data = SKELETONS["tiny"], load_data("digits", resolution=16)
    net = EvolvingNet(skeleton, "kernel", torch.Generator().manual_seed(0))
    trained = REFERENCE_CELLS[2]
    others = [trained.with_edge((1, 0), Operation.IDENTITY), REFERENCE_CELLS[0]]
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for step in range(25):
        images, labels = data.training_batch(data.train, 64, step, Seed(0))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            net(images, [[trained]] * 3, torch.ones(3, 1)), labels
        )
        loss.backward()
        optimizer.step()
    told: list[float] = []
    populations = [[*others, trained]] * 3
    before = {name: value.clone() for name, value in net.state_dict().items()}
    effects = examine(
        net, populations, data, batches=8, batch=64, seed=Seed(0), progress=told.append
    )
    assert told == [(n + 1) / 8 for n in range(8)]
    assert int(np.argmin(sum(effects))) == 2
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    again = examine(
        net, populations, data, batches=8, batch=64, seed=Seed(0), progress=lambda share: None
    )
    assert [list(own) for own in again] == [list(own) for own in effects]
