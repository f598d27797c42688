from __future__ import annotations

import pytest
import torch

from autospace.genotype import REFERENCE_CELLS, MBConv
from autospace.graph import block_nodes
from autospace.network import (
    NodeGraph,
    _pool_by_convolution,
    apply_node,
    build_network,
    initialise,
    weight_decay_groups,
)
from autospace.skeleton import SKELETONS, BlockShape
from autospace.space import Architecture

TINY = SKELETONS["tiny"]


def _tiny(cell=REFERENCE_CELLS[1]) -> Architecture:
    return Architecture(TINY, (cell,) * len(TINY.blocks))


def test_logits_have_one_column_a_class():
    network = build_network(_tiny(), 0).eval()
    assert network(torch.zeros(3, 1, 16, 16)).shape == (3, 10)


def test_same_seed_same_weights_and_another_seed_others():
    first, again, other = (build_network(_tiny(), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_parameters_are_as_many_as_the_graph_counts():
    architecture = _tiny()
    network = build_network(architecture, 0)
    assert sum(p.numel() for p in network.parameters()) == architecture.params


def test_a_block_with_a_shortcut_adds_its_input():
    shape = BlockShape(8, 8, 1, 6)
    graph = NodeGraph(block_nodes(MBConv(), shape))
    initialise(graph, torch.Generator().manual_seed(0))
    plain = NodeGraph(block_nodes(MBConv(), shape, shortcut=False))
    plain.load_state_dict(graph.state_dict())
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(1))
    graph.eval(), plain.eval()
    assert torch.allclose(graph(x), plain(x) + x)


def test_a_graph_without_nodes_passes_its_input_on():
    x = torch.randn(1, 3, 4, 4)
    assert NodeGraph(())(x) is x


@pytest.mark.parametrize("decay", [0.0, 1e-4])
def test_norms_and_biases_are_not_decayed(decay):
    network = build_network(_tiny(), 0)
    decayed, free = weight_decay_groups(network.named_parameters(), decay)
    assert decayed["weight_decay"] == decay
    assert free["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in free["params"])
    everything = len(decayed["params"]) + len(free["params"])
    assert everything == len(list(network.parameters()))


@pytest.mark.parametrize("size", [8, 7])
def test_averages_by_convolution_are_those_of_pooling_and_so_are_their_gradients(size):
    """What a GPU computes instead."""
    shape = BlockShape(16, 16, 2, size)
    (node,) = [
        n
        for n in block_nodes(REFERENCE_CELLS[1].fused(), shape, reading="kernel")
        if n.kind == "average_pool"
    ]
    x = torch.randn(3, node.shape[0], size, size, dtype=torch.float64, requires_grad=True)
    pooled, other = apply_node(node, None, [x]), _pool_by_convolution(x, node)
    assert torch.allclose(pooled, other, rtol=0, atol=1e-12)
    weights = torch.randn_like(pooled)
    (slope,) = torch.autograd.grad((pooled * weights).sum(), x)
    (other_slope,) = torch.autograd.grad((other * weights).sum(), x)
    assert torch.allclose(slope, other_slope, rtol=0, atol=1e-12)
