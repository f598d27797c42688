from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autospace.depthwise import _SmallImage, depthwise


def _conv(channels: int, window: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(
        channels, channels, window, stride=stride, padding=dilation * (window // 2),
        dilation=dilation, groups=channels, bias=False, dtype=torch.float64,
    )  # fmt: skip


def _both(conv: nn.Conv2d, x: torch.Tensor) -> list[list[torch.Tensor]]:
    """Output and gradients, of the plain convolution and of `depthwise`."""
    found = []
    for apply in (conv, lambda x: depthwise(conv, x)):
        given = x.clone().requires_grad_()
        output = apply(given)
        slope = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(x)
        found.append([output, *torch.autograd.grad(output, [given, conv.weight], slope)])
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9),
    st.sampled_from([3, 5, 7]), st.integers(1, 2), st.integers(1, 3), st.booleans(),
)  # fmt: skip
def test_it_is_the_plain_convolution(
    batch, channels, height, width, window, stride, dilation, last
):
    x = torch.randn(
        batch, channels, height, width, dtype=torch.float64,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    plain, own = _both(_conv(channels, window, stride, dilation), x)
    for one, other in zip(own, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("size", "window", "stride", "dilation", "own"),
    [
        (4, 7, 1, 1, True),
        (4, 5, 1, 1, True),
        (2, 3, 1, 1, True),
        (4, 3, 2, 1, True),
        (8, 3, 1, 3, True),
        (4, 3, 1, 1, False),
        (8, 7, 1, 1, False),
        (64, 3, 1, 2, False),  # too many pairs
        (2, 7, 1, 1, True),  # as a window of 3
    ],
)
def test_where_the_plain_one_is_fast_it_is_taken(size, window, stride, dilation, own):
    conv = _conv(2, window, stride, dilation)
    output = depthwise(conv, torch.randn(1, 2, size, size, dtype=torch.float64))
    assert (output.grad_fn.name() == f"{_SmallImage.__name__}Backward") == own


def test_only_the_gradients_asked_for_are_computed():
    conv = _conv(3, 5, 1, 1)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    conv.weight.requires_grad_(False)
    depthwise(conv, x).sum().backward()
    assert x.grad is not None and conv.weight.grad is None
    conv.weight.requires_grad_(True)
    depthwise(conv, x.detach()).sum().backward()
    assert conv.weight.grad is not None


def test_without_gradients_it_is_the_layer_itself():
    conv = _conv(3, 7, 1, 1)
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(depthwise(conv, x), conv(x))


def test_mixed_precision_is_left_to_the_layer():
    conv, x = _conv(3, 7, 1, 1).float(), torch.randn(2, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        output = depthwise(conv, x)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert conv.weight.grad is not None
