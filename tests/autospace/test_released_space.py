"""All 99 cells of the released space: built, trained a step, exported, and measured on a card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autospace.genotype import Block
from autospace.graph import block_function
from autospace.network import build_network
from autospace.onnx_export import architecture_of_onnx, build_onnx, check_outputs, folded_weights
from autospace.seeding import Seed
from autospace.space import Architecture, SearchSpace
from autospace.steps import costs_of, open_device, space_networks
from latency import profile_device


@pytest.fixture(scope="module")
def space(reference_folder: Path) -> SearchSpace:
    """The released space on its own layout, with an input of 32×32 to be quick."""
    space = SearchSpace.load(reference_folder / "search_space.config")
    small = replace(space.skeleton, resolution=32, num_classes=10)
    return replace(space, skeleton=small)


@pytest.fixture(scope="module")
def networks(space: SearchSpace) -> list[Architecture]:
    """Those that `profile-device --space` measures."""
    found = []
    for model in space_networks(space, Seed(0)).values():
        architecture = architecture_of_onnx(model)
        assert architecture is not None
        found.append(architecture)
    return found


def test_the_networks_hold_every_cell_in_every_block(space, networks):
    cells = 0
    for index, shape in enumerate(space.skeleton.blocks):

        def function(block: Block, shape=shape) -> int:
            return block_function(block, shape, space.kernel_reading)

        held = {function(network.blocks[index]) for network in networks}
        layer = space.layers[space.skeleton.layer_of(index)]
        assert held >= {function(cell.fused()) for cell in layer}
        cells += len(layer) if index % 2 == 0 else 0
    assert cells + space.provenance["repeats_dropped"] == 99


def test_every_cell_runs_forward_and_backward_and_is_exported(networks):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for architecture in networks:
        network = build_network(architecture, 0).train()
        loss = torch.nn.functional.cross_entropy(network(images), torch.arange(4))
        loss.backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        network.eval()
        model = build_onnx(architecture.nodes, folded_weights(network), batch=1)
        check_outputs(network, model, np.asarray(images), batch=1)


def test_a_card_of_the_space_knows_every_candidate(space, tmp_path):
    profile_device(
        tmp_path / "device.card", runtime="simulated", rounds=3, probes=12,
        extra_models=space_networks(space, Seed(0)),
    )  # fmt: skip
    cost = costs_of(
        space.skeleton, open_device(tmp_path / "device.card", allow_mismatch=True),
        space.kernel_reading,
    )["latency_ms"]  # fmt: skip
    candidates = space.candidates_by_block
    assert not cost.missing(candidates)
