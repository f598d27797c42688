"""Depthwise convolutions of small images, learned as fast as they are computed.

On a CPU, PyTorch's convolutions come from oneDNN, which has no fast code for the gradient by the
weights of a depthwise convolution where the image is smaller than the window, or the convolution
is dilated; such layers then take most of a training step. Here that gradient is a matrix product:
with x and g the input and the output's gradient of one channel, one image a row, xᵀ·g holds for
every pair of an input and an output pixel what they have in common; a weight's gradient is the sum
over the pairs that it connects. On small images few pairs are connected by none. This project's
own choice; the values are those of the plain convolution, up to rounding.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["depthwise"]

_MOST_PAIRS = 2**20
"""Pairs of pixels times weights of a window: beyond, the matrix that adds them is too large."""


def depthwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Applies a depthwise convolution with a square window, an odd one, padded to keep the size.

    Args:
        conv: the convolution, without bias.
        x: shape ``(batch, channels, h, w)``.

    Returns:
        Shape ``(batch, channels, h', w')``: what ``conv(x)`` is. It is just that on a GPU, in mixed
        precision, and while no gradients are recorded.
    """
    device = x.device.type
    if device != "cpu" or not torch.is_grad_enabled() or torch.is_autocast_enabled(device):
        return conv(x)  # type: ignore[no-any-return]
    weight, stride, dilation = conv.weight, conv.stride[0], conv.dilation[0]
    height, width = x.shape[2:]
    reach = conv.kernel_size[0] // 2
    # A weight that is further from the middle than the image is large meets nothing but padding.
    used = min(reach, (max(height, width) - 1) // dilation)
    if used < reach:
        beyond = reach - used
        weight = weight[:, :, beyond:-beyond, beyond:-beyond]
    if used == 0:
        return x[:, :, ::stride, ::stride] * weight.view(1, -1, 1, 1)
    smallest = min(-(-height // stride), -(-width // stride))
    pairs = height * width * -(-height // stride) * -(-width // stride)
    slow = dilation > 1 or smallest < 2 * used + 1
    if slow and pairs * (2 * used + 1) ** 2 <= _MOST_PAIRS:
        return _SmallImage.apply(x, weight, stride, dilation)  # type: ignore[no-any-return,no-untyped-call]
    return functional.conv2d(
        x, weight, stride=stride, padding=dilation * used, dilation=dilation, groups=x.shape[1]
    )


class _SmallImage(torch.autograd.Function):
    """A depthwise convolution whose backward is a matrix product for each channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
        """The convolution itself, by oneDNN."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.dilation = stride, dilation
        padding = dilation * (weight.shape[2] // 2)
        return functional.conv2d(
            x, weight, stride=stride, padding=padding, dilation=dilation, groups=x.shape[1]
        )

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """∂L/∂x, a convolution by the turned window, and ∂L/∂weight."""
        (slope,) = slopes
        x, weight = ctx.saved_tensors
        stride, dilation = ctx.stride, ctx.dilation
        by_x = by_weight = None
        if ctx.needs_input_grad[0]:
            by_x = _by_input(slope, x, weight, stride, dilation)
        if ctx.needs_input_grad[1]:
            by_weight = _by_weight(slope, x, weight.shape[2], stride, dilation)
        return by_x, by_weight, None, None


def _by_input(slope: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    padding, channels = dilation * (weight.shape[2] // 2), x.shape[1]
    if stride == 1:
        return functional.conv2d(
            slope, weight.flip(2, 3), padding=padding, dilation=dilation, groups=channels
        )
    found: Tensor = torch.ops.aten.convolution_backward(
        slope, x, weight, None, [stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0],
        channels, [True, False, False],
    )[0]  # fmt: skip
    return found


def _by_weight(slope: Tensor, x: Tensor, window: int, stride: int, dilation: int) -> Tensor:
    batch, channels, height, width = x.shape
    size = (height, width, slope.shape[2], slope.shape[3])
    # In the plain layout a channel's matrices lie in memory as the product reads them.
    inputs = x.contiguous().view(batch, channels, -1).permute(1, 2, 0)
    outputs = slope.contiguous().view(batch, channels, -1).transpose(0, 1)
    pairs = torch.bmm(inputs, outputs).view(channels, -1)
    found = pairs @ _connected(size, window, stride, dilation, x.dtype)
    return found.view(channels, 1, window, window)


@lru_cache(64)
def _connected(
    size: tuple[int, int, int, int], window: int, stride: int, dilation: int, dtype: torch.dtype
) -> Tensor:
    """Which pairs of an input and an output pixel each weight connects.

    Args:
        size: height and width of the input, then of the output.
        window: height and width of the window.
        stride: of the convolution.
        dilation: of the convolution.
        dtype: of the result.

    Returns:
        0 or 1, shape ``(pairs, window²)``.
    """
    height, width, out_height, out_width = size
    taps = dilation * (torch.arange(window) - window // 2)

    def along(length: int, out_length: int) -> Tensor:
        places = stride * torch.arange(out_length)[:, None] + taps
        return (torch.arange(length)[:, None, None] == places).to(dtype)

    rows, columns = along(height, out_height), along(width, out_width)
    both = torch.einsum("ayi,bxj->abyxij", rows, columns)
    return both.reshape(-1, window * window)
