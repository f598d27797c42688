"""Gradients clipped unit by unit."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from autospace.clipping import clip_gradients
from autospace.genotype import REFERENCE_CELLS
from autospace.network import build_network
from autospace.seeding import Seed
from autospace.skeleton import find_skeleton
from autospace.space import Architecture
from autospace.steps import load_proxy


def test_each_unit_is_clipped_by_its_own_weights() -> None:
    layer = nn.Conv2d(1, 3, 2, bias=True)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([2.0, 1.0, 0.0]).view(3, 1, 1, 1).expand_as(layer.weight))
    layer.weight.grad = torch.ones_like(layer.weight)
    assert layer.bias is not None
    layer.bias.grad = torch.full((3,), 100.0)
    clip_gradients(layer.parameters(), 0.25)
    norms = layer.weight.grad.flatten(1).norm(dim=1)
    assert norms.tolist() == pytest.approx([0.25 * 4.0, 0.25 * 2.0, 0.25e-3])
    assert layer.bias.grad.tolist() == [100.0] * 3


def test_short_gradients_and_no_gradients_are_left_alone() -> None:
    layer, other = nn.Linear(4, 2), nn.Linear(4, 2)
    layer.weight.grad = 1e-4 * torch.randn(2, 4)
    before = layer.weight.grad.clone()
    clip_gradients([*layer.parameters(), *other.parameters()], 0.5)
    assert torch.equal(layer.weight.grad, before) and other.weight.grad is None
    layer.weight.grad = torch.full((2, 4), 1e9)
    clip_gradients(layer.parameters(), 0)
    assert float(layer.weight.grad[0, 0]) == 1e9


def test_a_gradient_of_zeros_stays_one() -> None:
    layer = nn.Linear(4, 2)
    layer.weight.grad = torch.zeros(2, 4)
    clip_gradients(layer.parameters(), 0.1)
    assert torch.equal(layer.weight.grad, torch.zeros(2, 4))


def test_a_deep_network_learns_at_a_small_input_size() -> None:
    # Its first convolution's gradient is many times as long as those of later layers.
    skeleton = find_skeleton("mobile")
    data = load_proxy("digits", None, skeleton, 32)
    proxy = skeleton.for_data(resolution=32, in_channels=3, num_classes=10)
    cell = REFERENCE_CELLS[2]
    network = build_network(Architecture(proxy, (cell,) * len(proxy.blocks), "kernel"), 0).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    losses = []
    for step in range(30):
        images, labels = data.training_batch(data.train, 64, step, Seed(0).child("train"))
        loss = functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(network.parameters(), 0.1)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.7 * math.log(10)
