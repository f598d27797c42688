"""The nodes agree with the torch modules built from them, counted independently."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import block_shapes, blocks_for, cells, skeletons
from torch import nn

from autospace.genotype import REFERENCE_CELLS, Block, Cell, MBConv, Mix, Zero
from autospace.graph import INPUT, Node, block_nodes, network_nodes
from autospace.network import NodeGraph
from autospace.operations import KERNEL_READINGS, KernelReading, Operation
from autospace.skeleton import SKELETONS, BlockShape, Skeleton
from devices.errors import InvalidInputError


def counted(nodes: tuple[Node, ...], image: torch.Tensor) -> tuple[int, int, torch.Tensor]:
    """Parameters and multiply-adds of the module, by hooks on what it really computes."""
    module = NodeGraph(nodes).eval()
    madds = 0

    def hook(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal madds
        if isinstance(layer, nn.Conv2d):
            madds += output[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            madds += layer.weight.numel()

    for layer in module.modules():
        layer.register_forward_hook(hook)
    with torch.no_grad():
        output = module(image)
    return sum(one.numel() for one in module.parameters()), madds, output


@settings(max_examples=60, deadline=None)
@given(st.data(), block_shapes, st.sampled_from(KERNEL_READINGS))
def test_a_block_counts_as_its_module(
    data: st.DataObject, shape: BlockShape, reading: KernelReading
) -> None:
    nodes = block_nodes(data.draw(blocks_for(shape)), shape, reading=reading)
    image = torch.zeros(1, shape.in_channels, shape.in_size, shape.in_size)
    params, madds, output = counted(nodes, image)
    assert sum(node.params for node in nodes) == params
    assert sum(node.madds for node in nodes) == madds
    assert output.shape == (1, shape.out_channels, shape.out_size, shape.out_size)


@settings(max_examples=25, deadline=None)
@given(st.data(), skeletons, st.sampled_from(KERNEL_READINGS))
def test_a_network_counts_as_its_module(
    data: st.DataObject, skeleton: Skeleton, reading: KernelReading
) -> None:
    blocks: list[Block] = [data.draw(blocks_for(shape)) for shape in skeleton.blocks]
    nodes = network_nodes(skeleton, blocks, reading)
    image = torch.zeros(1, skeleton.in_channels, skeleton.resolution, skeleton.resolution)
    params, madds, output = counted(nodes, image)
    assert sum(node.params for node in nodes) == params
    assert sum(node.madds for node in nodes) == madds
    assert output.shape == (1, skeleton.num_classes)


@given(block_shapes, cells)
def test_nodes_are_named_once_and_read_only_what_came_before(shape: BlockShape, cell: Cell) -> None:
    seen = {INPUT}
    for node in block_nodes(cell, shape, prefix="b"):
        assert set(node.inputs) <= seen
        assert node.name not in seen
        seen.add(node.name)
    keys = [node.key for node in block_nodes(cell, shape) if node.kind == "conv"]
    assert len(set(keys)) == len(keys)


@given(cells, st.integers(1, 20))
def test_the_stride_is_on_the_edges_into_node_3(cell: Cell, size: int) -> None:
    nodes = block_nodes(cell, BlockShape(2, 3, 2, size))
    strided = {node.name for node in nodes if node.stride == 2}
    assert strided == {f"block/edge{source}3" for source, _ in cell.inputs(3)}
    assert not any(node.name.endswith("shortcut") for node in nodes)


def test_an_identity_at_stride_2_is_a_pool_that_ignores_its_padding() -> None:
    (pool,) = [
        node
        for node in block_nodes(REFERENCE_CELLS[2], BlockShape(2, 3, 2, 5))
        if node.kind == "average_pool"
    ]
    assert (pool.kernel, pool.stride, pool.shape) == (3, 2, (12, 3, 3))
    ones = torch.ones(1, 12, 5, 5)
    assert torch.equal(NodeGraph([pool])(ones), torch.ones(1, 12, 3, 3))


def test_both_readings_of_a_fused_operation() -> None:
    shape = BlockShape(4, 4, 1, 9)
    cell = REFERENCE_CELLS[0].fused()
    sizes = {
        reading: next(
            (node.kernel, node.dilation, node.padding, node.madds)
            for node in block_nodes(cell, shape, reading=reading)
            if node.groups > 1
        )
        for reading in KERNEL_READINGS
    }
    assert sizes == {
        "dilated": (3, 3, 3, 24 * 9 * 81),
        "kernel": (7, 1, 3, 24 * 49 * 81),
    }


def test_a_gate_multiplies_the_chain_with_the_sigmoid_of_the_others_average() -> None:
    identity = Operation.IDENTITY
    cell = Cell(
        (identity, identity, identity, *(Operation.NONE,) * 2, identity), 1, (Mix.GATE,) * 2
    )
    (gate,) = [n for n in block_nodes(cell, BlockShape(2, 2, 1, 4)) if n.kind == "gate"]
    assert gate.name == "block/mix2"
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = x * torch.sigmoid(x.mean((2, 3), keepdim=True))
    assert torch.allclose(NodeGraph([gate])(x), expected)


def test_expansion_1_has_no_expanding_convolution() -> None:
    shape = BlockShape(4, 4, 1, 8)
    for block in (Cell(REFERENCE_CELLS[2].edges, 1), MBConv(3, 1)):
        assert not any(node.name.endswith("expand") for node in block_nodes(block, shape))
    assert block_nodes(MBConv(3, 6), shape)[0].shape == (24, 8, 8)


def test_a_skip_needs_a_shortcut() -> None:
    assert block_nodes(Zero(), BlockShape(4, 4, 1, 8)) == ()
    for shape in (BlockShape(4, 5, 1, 8), BlockShape(4, 4, 2, 8)):
        with pytest.raises(InvalidInputError, match="skip where the shape changes"):
            block_nodes(Zero(), shape)


def test_the_number_of_blocks_is_checked() -> None:
    with pytest.raises(InvalidInputError, match="5 blocks for the tiny skeleton, which has 6"):
        network_nodes(SKELETONS["tiny"], [MBConv()] * 5)


def test_mobilenet_v2_counts_what_everybody_counts() -> None:
    """A known network by hand: MBConv6 in every block, at 224×224."""
    skeleton = SKELETONS["mobile"]
    nodes = network_nodes(skeleton, [MBConv()] * 21)
    classifier, head = nodes[-1], nodes[-3]
    assert (classifier.params, classifier.madds) == (1281 * 1000, 1280 * 1000)
    assert (head.weights, head.madds) == (320 * 1280, 320 * 1280 * 49)
    assert nodes[0].madds == 3 * 32 * 9 * 112 * 112
