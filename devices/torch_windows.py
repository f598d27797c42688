"""ONNX operations that move windows over images, as PyTorch: convolutions and poolings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from devices.torch_node import Function, Handlers, NodeReading

__all__ = ["WINDOWS"]

WINDOWS = Handlers()
"""Convolutions and poolings."""


def _window(
    r: NodeReading, rank: int
) -> tuple[list[int], list[int], list[int], Callable[[Tensor], list[int]]]:
    """Kernel, strides, dilations, and the borders of an input, in the order of `F.pad`."""
    kernel = list(r.options.get("kernel_shape") or r.shapes[r.name(1)][2:])
    strides = list(r.options.get("strides") or [1] * rank)
    dilations = list(r.options.get("dilations") or [1] * rank)
    auto = r.options.get("auto_pad", "NOTSET")
    pads = list(r.options.get("pads") or [0] * 2 * rank) if auto == "NOTSET" else [0] * 2 * rank

    def borders(x: Tensor) -> list[int]:
        begins, ends = pads[:rank], pads[rank:]
        if auto.startswith("SAME"):
            begins, ends = [], []
            for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
                total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
                small, large = total // 2, total - total // 2
                begins.append(small if auto == "SAME_UPPER" else large)
                ends.append(large if auto == "SAME_UPPER" else small)
        return [v for pair in zip(begins[::-1], ends[::-1], strict=True) for v in pair]

    return kernel, strides, dilations, borders


def _even(borders: Sequence[int]) -> list[int] | None:
    """Padding for PyTorch's operations where both ends are alike, else None."""
    begins, ends = list(borders[::2])[::-1], list(borders[1::2])[::-1]
    return begins if begins == ends else None


@WINDOWS.of("Conv")
def _conv(r: NodeReading) -> Function:
    rank = r.rank() - 2
    if rank not in (1, 2, 3):
        raise r.refuse(f"a convolution over {rank} axes")
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    _, strides, dilations, borders = _window(r, rank)
    groups = int(r.options.get("group", 1))

    def call(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        pads = borders(x)
        padding = _even(pads)
        if padding is None:
            x, padding = F.pad(x, pads), [0] * rank
        return function(x, weight, bias, strides, padding, dilations, groups)

    return call


@WINDOWS.of("ConvTranspose")
def _conv_transpose(r: NodeReading) -> Function:
    rank = r.rank() - 2
    if rank not in (1, 2, 3):
        raise r.refuse(f"a convolution over {rank} axes")
    if r.options.get("output_shape") or r.options.get("auto_pad", "NOTSET") != "NOTSET":
        raise r.refuse("a given output shape")
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    _, strides, dilations, _ = _window(r, rank)
    pads = list(r.options.get("pads") or [0] * 2 * rank)
    extra = list(r.options.get("output_padding") or [0] * rank)
    if pads[:rank] != pads[rank:]:
        raise r.refuse("uneven padding")
    groups = int(r.options.get("group", 1))

    def call(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return function(x, weight, bias, strides, pads[:rank], extra, groups, dilations)

    return call


@WINDOWS.of("AveragePool", "MaxPool")
def _pool(r: NodeReading) -> Function:
    rank = r.rank() - 2
    if rank not in (1, 2, 3):
        raise r.refuse(f"a pooling over {rank} axes")
    kernel, strides, dilations, borders = _window(r, rank)
    ceil = bool(r.options.get("ceil_mode", 0))
    if r.node.op_type == "MaxPool":
        biggest = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]

        def most(x: Tensor) -> Any:
            pads = borders(x)
            padding = _even(pads)
            if padding is None or any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
                x, padding = F.pad(x, pads, value=-math.inf), [0] * rank
            return biggest(x, kernel, strides, padding, dilations, ceil)

        return most
    if any(d != 1 for d in dilations):
        raise r.refuse("a dilated average")
    counted = bool(r.options.get("count_include_pad", 0))

    def mean(x: Tensor) -> Tensor:
        pads = borders(x)
        padding = _even(pads)
        if padding is None:
            if not counted and any(pads):
                raise r.refuse("an average with uneven padding that is not counted")
            x, padding = F.pad(x, pads), [0] * rank
        if rank == 1:
            return F.avg_pool1d(x, kernel, strides, padding, ceil, counted)
        averaged = F.avg_pool2d if rank == 2 else F.avg_pool3d
        return averaged(x, kernel, strides, padding, ceil, counted)

    return mean


@WINDOWS.of("GlobalAveragePool")
def _global_average(r: NodeReading) -> Function:
    axes = list(range(2, r.rank()))
    return lambda x: x.mean(axes, keepdim=True)


@WINDOWS.of("GlobalMaxPool")
def _global_max(r: NodeReading) -> Function:
    axes = list(range(2, r.rank()))
    return lambda x: x.amax(axes, keepdim=True)
