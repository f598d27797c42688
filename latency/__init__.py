"""Kernels, measurement, device cards and predictors; knows nothing of cells or genotypes.

Names are loaded when they are first used, so that importing the package costs nothing and pulls in
no runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latency.card import DeviceCard
    from latency.expected import ExpectedLatency
    from latency.kernel import Kernel, KernelGraph, KernelNode
    from latency.measure import Measurement, measure_models
    from latency.prediction import KernelPrediction, Prediction
    from latency.predictor import Predictor
    from latency.profile import profile_device

_HOMES = {
    "DeviceCard": "card",
    "ExpectedLatency": "expected",
    "Kernel": "kernel",
    "KernelGraph": "kernel",
    "KernelNode": "kernel",
    "KernelPrediction": "predictor",
    "Measurement": "measure",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "measure_models": "measure",
    "profile_device": "profile",
}

__all__ = [
    "DeviceCard",
    "ExpectedLatency",
    "Kernel",
    "KernelGraph",
    "KernelNode",
    "KernelPrediction",
    "Measurement",
    "Prediction",
    "Predictor",
    "measure_models",
    "profile_device",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
