"""One description of a network's layers, from which everything else is derived.

The torch module (`autospace.network`), the ONNX file (`autospace.onnx_export`), the exact counts
(`autospace.cost`) and the drawings all read these nodes, so that they cannot disagree.

Shapes are (channels, height, width). Counting convention: one fused multiply-add is 1;
convolution and linear layers count, nothing else does; parameters include both of batch norm's
and the classifier's bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from autospace.genotype import Block, Cell, MBConv, Mix, Zero
from autospace.operations import KernelReading, Operation, depthwise_kernel
from autospace.skeleton import BlockShape, Skeleton
from devices.errors import InvalidInputError

__all__ = [
    "INPUT",
    "Node",
    "NodeKind",
    "Shape",
    "block_function",
    "block_nodes",
    "distinct_blocks",
    "network_nodes",
]

NodeKind = Literal["conv", "average_pool", "add", "gate", "global_pool", "linear"]
Shape = tuple[int, int, int]
INPUT = "input"
"""The name of the value that enters a network or a block."""


@dataclass(frozen=True)
class Node:
    """One layer.

    Attributes:
        name: unique in its network: ``block3/expand``.
        kind: ``conv`` is convolution, batch norm and, with ``relu6``, the activation;
            ``average_pool`` is 3×3, stride 2, without counting the padding; ``gate`` multiplies
            its first input with the sigmoid of the global average of its second.
        inputs: names of the nodes whose values enter.
        in_shape: shape of the first input.
        shape: shape of the output.
        key: names the weights inside a block; two cells of one block that agree on a key can
            share them.
    """

    name: str
    kind: NodeKind
    inputs: tuple[str, ...]
    in_shape: Shape
    shape: Shape
    key: str = ""
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    relu6: bool = False

    @property
    def padding(self) -> int:
        """Zero padding on each side, so that stride 1 keeps the size."""
        return self.dilation * (self.kernel - 1) // 2

    @property
    def weights(self) -> int:
        """Entries of the convolution's or linear layer's weight, without bias and batch norm."""
        if self.kind == "conv":
            return self.shape[0] * (self.in_shape[0] // self.groups) * self.kernel**2
        return self.shape[0] * self.in_shape[0] if self.kind == "linear" else 0

    @property
    def madds(self) -> int:
        """Multiply-adds for one image."""
        return self.weights * self.shape[1] * self.shape[2]

    @property
    def params(self) -> int:
        """Trainable parameters."""
        if self.kind == "conv":
            return self.weights + 2 * self.shape[0]
        return self.weights + self.shape[0] if self.kind == "linear" else 0


def _conv(
    name: str,
    source: str,
    in_shape: Shape,
    channels: int,
    *,
    key: str = "",
    kernel: int = 1,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    relu6: bool = True,
) -> Node:
    size = -(-in_shape[1] // stride)
    return Node(
        name=name,
        kind="conv",
        inputs=(source,),
        in_shape=in_shape,
        shape=(channels, size, size),
        key=key,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        groups=groups,
        relu6=relu6,
    )


class _BlockBuilder:
    """Collects the nodes of one block."""

    def __init__(
        self, shape: BlockShape, reading: KernelReading, prefix: str, source: str, shortcut: bool
    ):
        self.shape = shape
        self.reading = reading
        self.prefix = prefix
        self.source = source
        self.shortcut = shortcut and shape.has_shortcut
        self.nodes: list[Node] = []
        self.in_shape: Shape = (shape.in_channels, shape.in_size, shape.in_size)

    def conv(self, suffix: str, source: str, in_shape: Shape, channels: int, **kw: object) -> Node:
        node = _conv(f"{self.prefix}/{suffix}", source, in_shape, channels, **kw)  # type: ignore[arg-type]
        self.nodes.append(node)
        return node

    def edge(self, cell: Cell, to: int, source: int, value: tuple[str, Shape]) -> tuple[str, Shape]:
        """The value that an edge delivers; the stride is on the edges into node 3."""
        operation, (name, shape) = cell[to, source], value
        stride = self.shape.stride if to == 3 else 1
        suffix = f"edge{source}{to}"
        key = f"e{cell.expansion}/{suffix}/{operation.label}"
        if operation is Operation.IDENTITY:
            if stride == 1:
                return name, shape
            size = -(-shape[1] // stride)
            node = Node(
                name=f"{self.prefix}/{suffix}",
                kind="average_pool",
                inputs=(name,),
                in_shape=shape,
                shape=(shape[0], size, size),
                key=key,
                kernel=3,
                stride=stride,
            )
            self.nodes.append(node)
        elif operation is Operation.DENSE:
            node = self.conv(suffix, name, shape, shape[0], key=key, stride=stride)
        else:
            kernel, dilation = depthwise_kernel(operation, self.reading)
            node = self.conv(
                suffix,
                name,
                shape,
                shape[0],
                key=key,
                kernel=kernel,
                stride=stride,
                dilation=dilation,
                groups=shape[0],
            )
        return node.name, node.shape

    def mix(self, cell: Cell, to: int, values: Sequence[tuple[str, Shape]]) -> tuple[str, Shape]:
        """Combines the inputs of a node; the chain's value is the last and is what gates act on."""
        mix = cell.mixes[to - 2] if to >= 2 else Mix.ADD
        name, shape = values[-1]
        for index, (other, _) in enumerate(reversed(values[:-1])):
            node = Node(
                name=f"{self.prefix}/mix{to}" + (f"_{index}" if index else ""),
                kind="gate" if mix is Mix.GATE else "add",
                inputs=(name, other),
                in_shape=shape,
                shape=shape,
            )
            self.nodes.append(node)
            name = node.name
        return name, shape

    def cell(self, cell: Cell) -> None:
        value = (self.source, self.in_shape)
        if cell.expansion != 1:
            channels = self.shape.in_channels * cell.expansion
            node = self.conv("expand", *value, channels, key=f"e{cell.expansion}/expand")
            value = (node.name, node.shape)
        values = {0: value}
        for to in (1, 2, 3):
            inputs = [self.edge(cell, to, source, values[source]) for source, _ in cell.inputs(to)]
            values[to] = self.mix(cell, to, inputs)
        self.project(*values[3], key=f"e{cell.expansion}/project")

    def mbconv(self, block: MBConv) -> None:
        value = (self.source, self.in_shape)
        if block.expansion != 1:
            channels = self.shape.in_channels * block.expansion
            node = self.conv("expand", *value, channels, key=f"mb{block.expansion}/expand")
            value = (node.name, node.shape)
        node = self.conv(
            "depthwise",
            *value,
            value[1][0],
            key=f"mb{block.expansion}/depthwise{block.kernel}",
            kernel=block.kernel,
            stride=self.shape.stride,
            groups=value[1][0],
        )
        self.project(node.name, node.shape, key=f"mb{block.expansion}/project")

    def project(self, name: str, shape: Shape, key: str) -> None:
        """The linear projection, and the outer shortcut where the shape allows it."""
        node = self.conv("project", name, shape, self.shape.out_channels, key=key, relu6=False)
        if self.shortcut:
            self.nodes.append(
                Node(
                    name=f"{self.prefix}/shortcut",
                    kind="add",
                    inputs=(node.name, self.source),
                    in_shape=node.shape,
                    shape=node.shape,
                )
            )


def block_nodes(
    block: Block,
    shape: BlockShape,
    *,
    reading: KernelReading = "kernel",
    prefix: str = "block",
    source: str = INPUT,
    shortcut: bool = True,
) -> tuple[Node, ...]:
    """The layers of one block; none for `Zero`.

    Args:
        block: what the block holds.
        shape: where it stands.
        reading: how the fused depthwise operations are built.
        prefix: begins every node's name.
        source: the name of the value that enters.
        shortcut: False leaves the outer shortcut to the caller.

    Raises:
        InvalidInputError: `Zero` where input and output differ in shape.
    """
    if isinstance(block, Zero):
        if not shape.has_shortcut:
            raise InvalidInputError(
                f"{prefix}: skip where the shape changes ({shape.in_channels} → "
                f"{shape.out_channels} channels, stride {shape.stride}); use a cell"
            )
        return ()
    builder = _BlockBuilder(shape, reading, prefix, source, shortcut)
    if isinstance(block, Cell):
        builder.cell(block)
    else:
        builder.mbconv(block)
    return tuple(builder.nodes)


@lru_cache(1 << 16)
def block_function(block: Block, shape: BlockShape, reading: KernelReading = "kernel") -> int:
    """What a block computes, up to its weights: equal in one process where two compute the same.

    A depthwise 3×3 on the first edge of a chain and one on its last are two genes and, at stride
    1, one function.

    Args:
        block: what the block holds.
        shape: where it stands.
        reading: how the fused depthwise operations are built.
    """
    values, value = {INPUT: 0}, 0
    for node in block_nodes(block, shape, reading=reading):
        inputs = [values[name] for name in node.inputs]
        if node.kind == "add":
            inputs.sort()
        value = hash((
            node.kind, node.kernel, node.stride, node.dilation, node.groups, node.relu6,
            node.shape, *inputs,
        ))  # fmt: skip
        values[node.name] = value
    return value


def distinct_blocks(
    blocks: Iterable[Block], shape: BlockShape, reading: KernelReading = "kernel"
) -> tuple[Block, ...]:
    """The blocks without those that compute what an earlier one does, in their order.

    Args:
        blocks: what a block may hold.
        shape: where it stands.
        reading: how the fused depthwise operations are built.
    """
    known: dict[int, Block] = {}
    for block in blocks:
        known.setdefault(block_function(block, shape, reading), block)
    return tuple(known.values())


def network_nodes(
    skeleton: Skeleton, blocks: Sequence[Block], reading: KernelReading = "kernel"
) -> tuple[Node, ...]:
    """The layers of a whole network, from the stem to the classifier.

    Names begin with ``stem``, ``first``, ``block0`` … (searchable blocks from 0), ``head``,
    ``pool`` and ``classifier``.

    Raises:
        InvalidInputError: as many blocks as the skeleton has are needed, and a `Zero` needs an
            outer shortcut.
    """
    shapes = skeleton.blocks
    if len(blocks) != len(shapes):
        raise InvalidInputError(
            f"{len(blocks)} blocks for the {skeleton.name} skeleton, which has {len(shapes)}"
        )
    image: Shape = (skeleton.in_channels, skeleton.resolution, skeleton.resolution)
    stem = _conv(
        "stem",
        INPUT,
        image,
        skeleton.scaled(skeleton.stem_width),
        kernel=3,
        stride=skeleton.stem_stride,
    )
    nodes = [stem]
    if skeleton.first_width:
        first = BlockShape(stem.shape[0], skeleton.scaled(skeleton.first_width), 1, stem.shape[1])
        nodes += block_nodes(MBConv(3, 1), first, prefix="first", source=stem.name)
    for index, (block, shape) in enumerate(zip(blocks, shapes, strict=True)):
        nodes += block_nodes(
            block, shape, reading=reading, prefix=f"block{index}", source=nodes[-1].name
        )
    last = nodes[-1]
    # The release does not narrow the head below its base width (ProxylessNAS convention).
    head_width = max(skeleton.head_width, skeleton.scaled(skeleton.head_width))
    head = _conv("head", last.name, last.shape, head_width)
    pooled: Shape = (head_width, 1, 1)
    pool = Node("pool", "global_pool", (head.name,), head.shape, pooled)
    classifier = Node("classifier", "linear", (pool.name,), pooled, (skeleton.num_classes, 1, 1))
    return (*nodes, head, pool, classifier)
