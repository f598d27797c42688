"""What XNNPACK has fast kernels for; LiteRT and ExecuTorch both compute with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.onnx_windows import with_small_windows

if TYPE_CHECKING:
    import onnx

    from devices.runtimes.base import RuntimeSettings

__all__ = ["small_windows"]

_TAPS = 25
"""XNNPACK's depthwise kernels have up to so many taps, on any processor (``dwconv-config.c``; more
only where it was built with ``XNN_ENABLE_DWCONV_MULTIPASS``). Larger windows are computed as
general grouped convolutions, channel by channel: 7×7 takes many times as long as 5×5."""


def small_windows(model: onnx.ModelProto, settings: RuntimeSettings) -> onnx.ModelProto:
    """The model with depthwise windows that XNNPACK has kernels for; in eight bits as it is.

    Each part's output would be rounded to eight bits before they are added up.
    """
    return model if settings.precision == "int8" else with_small_windows(model, _TAPS)
