"""Torch modules built from the nodes of `autospace.graph`.

Images are tensors of shape ``(batch, channels, height, width)``, kept channels-last in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from autospace.depthwise import depthwise
from autospace.graph import INPUT, Node
from autospace.space import Architecture

__all__ = [
    "BN_MOMENTUM",
    "ConvBN",
    "NodeGraph",
    "apply_node",
    "build_network",
    "initialise",
    "last_uses",
    "node_module",
    "weight_decay_groups",
]

BN_EPSILON = 1e-3
BN_MOMENTUM = 0.1


class ConvBN(nn.Module):
    """Convolution, batch norm and, if asked for, ReLU6.

    Attributes:
        depthwise: whether `autospace.depthwise` applies the convolution.
    """

    def __init__(self, node: Node, *, track: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(
            node.in_shape[0],
            node.shape[0],
            node.kernel,
            stride=node.stride,
            padding=node.padding,
            dilation=node.dilation,
            groups=node.groups,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(
            node.shape[0], eps=BN_EPSILON, momentum=BN_MOMENTUM, track_running_stats=track
        )
        self.relu6 = node.relu6
        self.depthwise = node.groups == node.in_shape[0] == node.shape[0] and node.kernel > 1

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, in, h, w)`` to ``(batch, out, h', w')``."""
        x = self.norm(depthwise(self.conv, x) if self.depthwise else self.conv(x))
        return functional.relu6(x, inplace=True) if self.relu6 else x


def node_module(node: Node, *, track: bool = True) -> nn.Module | None:
    """The module that holds a node's weights; None for a node without weights.

    Args:
        node: the node.
        track: whether batch norm keeps running statistics.
    """
    if node.kind == "conv":
        return ConvBN(node, track=track)
    if node.kind == "linear":
        return nn.Linear(node.in_shape[0], node.shape[0])
    return None


def apply_node(node: Node, module: nn.Module | None, inputs: Sequence[Tensor]) -> Tensor:
    """Computes one node.

    Args:
        node: what to compute.
        module: its weights, from `node_module`.
        inputs: one tensor of shape ``(batch, c, h, w)`` for each of the node's inputs.
    """
    if node.kind == "conv":
        assert module is not None
        return module(inputs[0])  # type: ignore[no-any-return]
    if node.kind == "add":
        return inputs[0] + inputs[1]
    if node.kind == "gate":
        return inputs[0] * torch.sigmoid(inputs[1].mean((2, 3), keepdim=True))
    if node.kind == "average_pool":
        return _average_pool(inputs[0], node)
    if node.kind == "global_pool":
        return inputs[0].mean((2, 3), keepdim=True)
    assert module is not None
    return module(inputs[0].flatten(1))  # type: ignore[no-any-return]


def _average_pool(x: Tensor, node: Node) -> Tensor:
    """Averages over the part of each window that is inside of the image."""
    if x.is_cuda:
        return _pool_by_convolution(x, node)
    return functional.avg_pool2d(x, node.kernel, node.stride, node.padding, count_include_pad=False)


def _pool_by_convolution(x: Tensor, node: Node) -> Tensor:
    """The same by a depthwise convolution.

    PyTorch 2.11 on an H200 (CUDA 13, cuDNN 9.19) had right averages and wrong gradients, by as
    much as they are large, where a 1×1 convolution comes after the pooling; networks then learned
    a good deal less. `benchmarks.gpu` compares gradients with the processor's.
    """
    channels, height, width = x.shape[1:]
    window = x.new_ones(1, 1, node.kernel, node.kernel)
    counts = functional.conv2d(
        x.new_ones(1, 1, height, width), window, stride=node.stride, padding=node.padding
    )
    sums = functional.conv2d(
        x, window.expand(channels, 1, -1, -1), stride=node.stride, padding=node.padding,
        groups=channels,
    )  # fmt: skip
    return sums / counts


def last_uses(nodes: Sequence[Node]) -> tuple[tuple[str, ...], ...]:
    """For each node the names of the values that are not needed after it."""
    last_use = {name: index for index, node in enumerate(nodes) for name in node.inputs}
    return tuple(
        tuple(name for name, use in last_use.items() if use == index) for index in range(len(nodes))
    )


class NodeGraph(nn.Module):
    """Runs nodes in order; the last one's value is the result.

    A graph without nodes passes its input on.
    """

    def __init__(self, nodes: Sequence[Node], *, track: bool = True):
        super().__init__()
        self.nodes = tuple(nodes)
        self.layers = nn.ModuleDict()
        for node in self.nodes:
            module = node_module(node, track=track)
            if module is not None:
                self.layers[node.name] = module
        self._drop = last_uses(self.nodes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, channels, h, w)`` to the last node's value."""
        values = {self.nodes[0].inputs[0] if self.nodes else INPUT: x}
        for node, drop in zip(self.nodes, self._drop, strict=True):
            module = self.layers[node.name] if node.name in self.layers else None
            x = apply_node(node, module, [values[name] for name in node.inputs])
            values[node.name] = x
            for name in drop:
                del values[name]
        return x


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draws fresh weights: He-normal (fan out) convolutions, batch norm at 1 and 0.

    Args:
        module: every convolution, batch norm and linear layer in it is set.
        generator: the only source of randomness.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2 // layer.groups
            with torch.no_grad():
                layer.weight.normal_(0, (2.0 / fan_out) ** 0.5, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear):
            with torch.no_grad():
                layer.weight.normal_(0, 0.01, generator=generator)
            nn.init.zeros_(layer.bias)


def build_network(architecture: Architecture, seed: int) -> NodeGraph:
    """The network of an architecture, with fresh weights.

    Args:
        architecture: what to build.
        seed: of the initial weights.

    Returns:
        A module from ``(batch, channels, size, size)`` to logits ``(batch, classes)``.
    """
    network = NodeGraph(architecture.nodes)
    initialise(network, torch.Generator().manual_seed(seed))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def weight_decay_groups(
    parameters: Iterator[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, object]]:
    """Parameter groups in which batch norm and biases are not decayed."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for _, parameter in parameters:
        (decayed if parameter.ndim > 1 else free).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
