"""The runtimes, by name: to add one, write its file and add its line to the registry."""

from __future__ import annotations

import difflib
from importlib import import_module

from devices.errors import UsageError
from devices.runtimes.base import (
    CompiledGraph,
    CompiledModel,
    NodeTiming,
    Runtime,
    RuntimeSettings,
    RuntimeStatus,
)

__all__ = [
    "CompiledGraph",
    "CompiledModel",
    "NodeTiming",
    "Runtime",
    "RuntimeSettings",
    "RuntimeStatus",
    "get_runtime",
    "runtime_names",
    "runtime_statuses",
]

_REGISTRY = {
    "onnxruntime": "devices.runtimes.onnxruntime:OnnxRuntime",
    "openvino": "devices.runtimes.openvino:OpenVino",
    "executorch": "devices.runtimes.executorch:ExecuTorch",
    "litert": "devices.runtimes.litert:LiteRt",
    "ncnn": "devices.runtimes.ncnn:Ncnn",
    "tensorrt": "devices.runtimes.tensorrt:TensorRt",
    "tensorrt-graph": "devices.runtimes.tensorrt:TensorRtGraph",
    "onnxruntime-cuda": "devices.runtimes.onnxruntime_gpu:OnnxRuntimeCuda",
    "onnxruntime-tensorrt": "devices.runtimes.onnxruntime_gpu:OnnxRuntimeTensorRt",
    "onnxruntime-tensorrt-rtx": "devices.runtimes.onnxruntime_gpu:OnnxRuntimeTensorRtRtx",
    "torch": "devices.runtimes.torch:TorchRuntime",
    "torch-compiled": "devices.runtimes.torch_compiled:TorchCompiled",
    "torch-cuda": "devices.runtimes.torch:TorchCudaRuntime",
    "simulated": "devices.runtimes.simulated:SimulatedRuntime",
}


def runtime_names() -> tuple[str, ...]:
    """Names of all runtimes, usable here or not."""
    return tuple(_REGISTRY)


def get_runtime(name: str) -> Runtime:
    """The runtime of that name; whether it is usable here is its `status` to say.

    Args:
        name: as in `runtime_names`.

    Returns:
        A fresh runtime object; nothing heavy is imported until it is used.

    Raises:
        UsageError: there is no runtime of that name.
    """
    if name not in _REGISTRY:
        near = difflib.get_close_matches(str(name).lower(), _REGISTRY, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "choose one of"
        tail = "" if near else f" {', '.join(_REGISTRY)}."
        raise UsageError(f"runtime {name!r}: unknown; {hint}{tail}")
    module, attribute = _REGISTRY[name].split(":")
    runtime: Runtime = getattr(import_module(module), attribute)()
    return runtime


def runtime_statuses() -> tuple[RuntimeStatus, ...]:
    """Status of every runtime on this machine, in the registry's order."""
    return tuple(get_runtime(name).status() for name in _REGISTRY)
