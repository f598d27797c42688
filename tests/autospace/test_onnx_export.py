"""PyTorch and the exported file, two readers of one graph, compared in a real ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from autospace.genotype import REFERENCE_CELLS, MBConv, Zero
from autospace.mutation import random_cell
from autospace.network import build_network
from autospace.onnx_export import (
    architecture_metadata,
    architecture_of_onnx,
    build_onnx,
    check_outputs,
    filler_weights,
    folded_weights,
    onnx_for_cost,
    write_onnx,
)
from autospace.seeding import Seed
from autospace.skeleton import Skeleton, Stage
from autospace.space import Architecture
from devices.errors import AutospaceError

SKELETON = Skeleton(
    name="test", resolution=15, in_channels=2, num_classes=5, stem_width=8, stem_stride=2,
    first_width=8, stages=(Stage(8, 2, 1), Stage(16, 2, 2)), head_width=24,
)  # fmt: skip


def _warm(architecture: Architecture, seed: int):
    """A network whose batch norms have seen data, so that folding them is a real test."""
    network = build_network(architecture, seed).train()
    generator = torch.Generator().manual_seed(seed)
    size = architecture.skeleton.resolution
    for _ in range(3):
        network(3 * torch.randn(8, 2, size, size, generator=generator) + 1)
    return network.eval()


def _images(count: int, size: int = 15) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 2, size, size)).astype(np.float32)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("reading", ["kernel", "dilated"])
def test_random_networks_compute_the_same(seed, reading):
    random = Seed(seed).generator("cells")
    blocks = tuple(random_cell(random).fused() for _ in range(4))
    network_architecture = Architecture(SKELETON, blocks, reading)
    network = _warm(network_architecture, seed)
    model = build_onnx(network_architecture.nodes, folded_weights(network), batch=2)
    check = check_outputs(network, model, _images(6), batch=2)
    assert check.images == 6
    assert check.relative_error < 1e-4
    assert check.agreement == 1.0


def test_every_kind_of_block_computes_the_same():
    blocks = (MBConv(5, 3), Zero(), MBConv(7, 1), REFERENCE_CELLS[0])
    architecture = Architecture(SKELETON, blocks)
    network = _warm(architecture, 0)
    model = build_onnx(architecture.nodes, folded_weights(network))
    assert check_outputs(network, model, _images(4), batch=1).relative_error < 1e-4


def test_a_wrong_export_is_refused():
    architecture = Architecture(SKELETON, (REFERENCE_CELLS[1],) * 4)
    network = _warm(architecture, 0)
    weights = dict(folded_weights(network))
    weight, bias = weights["block2/project"]
    weights["block2/project"] = (weight * 1.05, bias)
    model = build_onnx(architecture.nodes, weights)
    with pytest.raises(AutospaceError, match="outputs differ from PyTorch"):
        check_outputs(network, model, _images(4), batch=1)


def test_no_two_filler_weights_are_alike():
    """A runtime that works out once what occurs twice must find nothing."""
    architecture = Architecture(SKELETON, (REFERENCE_CELLS[1],) * 4)
    weights = filler_weights(architecture.nodes)
    parts = [part.tobytes() for own in weights.values() for part in own]
    assert len(set(parts)) == len(parts) > 20


def test_node_names_say_where_they_belong():
    architecture = Architecture(SKELETON, (REFERENCE_CELLS[1],) * 4)
    names = [node.name for node in onnx_for_cost(architecture).graph.node]
    assert len(names) == len(set(names))
    known = {node.name for node in architecture.nodes}
    assert {name.rpartition("/")[0] for name in names} == known


def test_the_file_carries_its_architecture_and_is_valid(tmp_path):
    architecture = Architecture(SKELETON, (REFERENCE_CELLS[2],) * 4)
    model = build_onnx(
        architecture.nodes,
        folded_weights(build_network(architecture, 0).eval()),
        metadata=architecture_metadata(architecture),
    )
    write_onnx(model, tmp_path / "net.onnx")
    loaded = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(loaded, full_check=True)
    assert architecture_of_onnx(loaded) == architecture
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_a_file_of_another_program_carries_none():
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    assert architecture_of_onnx(empty) is None
