"""Gradients clipped unit by unit, in relation to the weights that they change.

At a small input size a deep network with batch norm begins with gradients that are hundreds of
times as large in its first layers as in its last; steps of the usual size then ruin the first
layers, and the loss stays at that of guessing. Clipping the norm of the whole gradient leaves only
these. So each unit's is clipped by itself: Brock, De, Smith and Simonyan, *High-Performance
Large-Scale Image Recognition Without Normalization*, ICML 2021, equation 3. Our own choice: with
batch norm, and the classifier too.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

__all__ = ["clip_gradients"]

_LEAST_NORM = 1e-3
"""As which the weights of a unit count at least, so that those at zero can move."""


def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> None:
    """Shortens the gradient of each unit to a share of its weights' norm, in place.

    Args:
        parameters: those with fewer than two dimensions (biases, batch norm) are left alone, and
            those without a gradient.
        most: norm of the gradient over that of the weights, for each unit (output channel); 0 for
            no clipping.
    """
    if most == 0:
        return
    with torch.no_grad():
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None or parameter.ndim < 2:
                continue
            weights = parameter.flatten(1).norm(dim=1).clamp_min(_LEAST_NORM)
            size = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
            shares = (most * weights / size).clamp_max(1.0)
            gradient.mul_(shares.view(-1, *[1] * (gradient.ndim - 1)))
