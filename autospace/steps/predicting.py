"""The latency of a model, by a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autospace.steps.device import Device, open_device

if TYPE_CHECKING:
    import onnx

    from latency import Prediction

__all__ = ["predict"]


def predict(
    model: Path | onnx.ModelProto,
    device: Path | Device,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    allow_mismatch: bool = False,
) -> Prediction:
    """The latency of an ONNX model on a card's device.

    Args:
        model: the model or its file.
        device: an opened card or its file.
        shapes: of inputs with dynamic dimensions other than the batch, by name.
        allow_mismatch: turns differences between card and machine into warnings.

    Raises:
        InvalidInputError: no ONNX model, or no card.
        MismatchError: the card was made elsewhere.
    """
    if isinstance(device, Path):
        device = open_device(device, allow_mismatch=allow_mismatch)
    return device.predictor.predict(model, shapes)
