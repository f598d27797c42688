"""ONNX Runtime's execution providers for NVIDIA GPUs, a runtime for each.

`onnxruntime-cuda`, `onnxruntime-tensorrt` and `onnxruntime-tensorrt-rtx` run a model with one
provider and no other: at compilation a session is profiled, and a node that ran elsewhere is an
error (`devices.node_providers`). Being runtimes of their own, each has its own cards, and the name
of the GPU is part of the version, so that a card of one provider or GPU is refused for another.

The profiler's times of nodes are those of launching them: a GPU works behind the program's back. So
these runtimes tell no times of operations, and cards work them out from whole networks
(docs/adr/0015-runtimes-that-say-less.md). Inputs are copied to the GPU once; a run's time is the
clock's, from launching until the outputs are in main memory, which is what a program sees.

TensorRT's engines are kept in the compiled graph (ONNX Runtime calls it an EP context), so that
they are built once; CUDA optimises at every load. Only CUDA has run on a GPU yet; see
docs/tensorrt.md.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from devices.errors import UnavailableError
from devices.gpu import gpu_name, gpu_state
from devices.node_providers import check_providers, node_runs
from devices.onnx_files import (
    fix_shapes,
    input_specs,
    name_nodes,
    parse_onnx,
    random_inputs,
    to_bytes,
)
from devices.preemption import timed_runs
from devices.runtimes.base import (
    NOT_INSTALLED,
    CompiledGraph,
    CompiledModel,
    NodeTiming,
    Runtime,
    RuntimeSettings,
    RuntimeStatus,
)
from devices.runtimes.onnxruntime import ort_refusals, session_options

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "OnnxRuntimeCuda",
    "OnnxRuntimeTensorRt",
    "OnnxRuntimeTensorRtRtx",
    "ProviderModel",
    "ProviderRuntime",
]

_WARM_UP = 3
_GPU_PACKAGE = "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'"


class ProviderRuntime(Runtime):
    """ONNX Runtime with one execution provider.

    Attributes:
        provider: its name in ONNX Runtime.
        options: its options.
        versions: packages beside ONNX Runtime whose versions decide what it does.
        install: what installs it.
        keeps_engines: whether it can write what it built into an ONNX model.
    """

    provider: ClassVar[str]
    options: ClassVar[Mapping[str, str]] = {}
    versions: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str] = _GPU_PACKAGE
    keeps_engines: ClassVar[bool] = False

    def device_state(self) -> Mapping[str, Any] | None:
        """The GPU's clocks and temperature; see the base class."""
        return gpu_state()

    def status(self) -> RuntimeStatus:
        """Usable when the provider's library is installed and there is a GPU; imports nothing."""
        reason = None
        gpu = None
        if not self.installed():
            reason = NOT_INSTALLED
        elif (gpu := gpu_name()) is None:
            reason = "no NVIDIA GPU with its driver here"
        return RuntimeStatus(
            name=self.name,
            usable=reason is None,
            version=f"{self.package_versions()} on {gpu}" if reason is None else None,
            reason=reason,
            install=self.install if reason == NOT_INSTALLED else None,
            precisions=("fp32",),
            per_op_times=False,
            source=self.source,
            sets_threads=False,
        )

    def installed(self) -> bool:
        """Whether the provider's library is there."""
        return _library(self.provider.removesuffix("ExecutionProvider").lower())

    def package_versions(self) -> str:
        """Versions of what decides the provider's times, as in ``1.31.0, tensorrt 10.13``."""
        own = _version("onnxruntime-gpu") or _version("onnxruntime") or "of unknown version"
        found = {name: version for name in self.versions if (version := _version(name))}
        return ", ".join([own, *(f"{name} {version}" for name, version in found.items())])

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        """Runs the model once with the profiler on, and keeps what was built.

        Raises:
            InvalidInputError: the model is unreadable, has dynamic dimensions, or is refused; or
                nodes of it did not run on the provider.
            UnavailableError: the provider is not available.
        """
        status = self.require(settings)
        proto = name_nodes(fix_shapes(parse_onnx(model), settings.batch))
        data, inputs = to_bytes(proto), input_specs(proto)
        with tempfile.TemporaryDirectory(prefix="autospace-ort-") as folder:
            options = session_options(settings)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            kept = Path(folder) / "engines.onnx"
            if self.keeps_engines:
                options.add_session_config_entry("ep.context_enable", "1")
                options.add_session_config_entry("ep.context_file_path", str(kept))
                options.add_session_config_entry("ep.context_embed_mode", "1")
            session = self.session(data, options)
            with ort_refusals("model"):
                session.run(None, random_inputs(inputs))
                profile = Path(session.end_profiling())
            check_providers(node_runs(json.loads(profile.read_bytes())), self.provider, self.name)
            del session
            if kept.is_file():
                data = kept.read_bytes()
        return CompiledGraph(
            runtime=self.name,
            version=status.version or "",
            data=data,
            inputs=inputs,
            outputs=tuple(value.name for value in proto.graph.output),
        )

    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> ProviderModel:
        """Opens a session.

        Raises:
            InvalidInputError: the graph is another runtime's, or is refused.
            UnavailableError: the provider is not available.
        """
        self.require(settings)
        self.check_compiled(compiled)
        return ProviderModel(self.session(compiled.data, session_options(settings)), compiled)

    def session(self, model: bytes, options: Any) -> Any:
        """A session with the provider; one that fell back to the CPU as a whole is refused.

        Raises:
            InvalidInputError: the model is refused.
            UnavailableError: the provider is not there.
        """
        ort = _loaded()
        if self.provider not in ort.get_available_providers():
            raise self.missing()
        with ort_refusals("model"):
            found = ort.InferenceSession(
                model,
                options,
                providers=[(self.provider, dict(self.options))],
                enable_fallback=0,
            )
        return self.checked(found)

    def checked(self, session: Any) -> Any:
        """The session, if it has the provider.

        Raises:
            UnavailableError: ONNX Runtime went on without it.
        """
        if self.provider not in session.get_providers():
            raise self.missing()
        session.disable_fallback()
        return session

    def missing(self) -> UnavailableError:
        """That the provider is not there, or did not load."""
        return UnavailableError(
            f"runtime {self.name!r}: {self.provider} did not load, and ONNX Runtime would use the "
            f"CPU instead; install it with: {self.install}."
        )


class OnnxRuntimeCuda(ProviderRuntime):
    """The CUDA provider, without TF32."""

    name: ClassVar[str] = "onnxruntime-cuda"
    provider: ClassVar[str] = "CUDAExecutionProvider"
    options: ClassVar[Mapping[str, str]] = {"device_id": "0", "use_tf32": "0"}


class OnnxRuntimeTensorRt(ProviderRuntime):
    """The TensorRT provider."""

    name: ClassVar[str] = "onnxruntime-tensorrt"
    provider: ClassVar[str] = "TensorrtExecutionProvider"
    options: ClassVar[Mapping[str, str]] = {"device_id": "0"}
    versions: ClassVar[tuple[str, ...]] = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
    install: ClassVar[str] = f"{_GPU_PACKAGE} tensorrt"
    keeps_engines: ClassVar[bool] = True


class OnnxRuntimeTensorRtRtx(ProviderRuntime):
    """The TensorRT-RTX provider: a plug-in that brings its own TensorRT, for GeForce and RTX."""

    name: ClassVar[str] = "onnxruntime-tensorrt-rtx"
    provider: ClassVar[str] = "NvTensorRTRTXExecutionProvider"
    versions: ClassVar[tuple[str, ...]] = (
        "onnxruntime-ep-nv-tensorrt-rtx-cu13",
        "onnxruntime-ep-nv-tensorrt-rtx-cu12",
    )
    install: ClassVar[str] = "pip install onnxruntime-ep-nv-tensorrt-rtx"
    keeps_engines: ClassVar[bool] = True

    def installed(self) -> bool:
        """Whether the plug-in is there."""
        return find_spec("onnxruntime_ep_nv_tensorrt_rtx") is not None

    def session(self, model: bytes, options: Any) -> Any:
        """A session on the plug-in's first device; see the base class."""
        import onnxruntime_ep_nv_tensorrt_rtx as plugin

        ort = _loaded()
        with ort_refusals("model"):
            if not any(device.ep_name == self.provider for device in ort.get_ep_devices()):
                ort.register_execution_provider_library(self.provider, plugin.get_library_path())
            devices = [one for one in ort.get_ep_devices() if one.ep_name == self.provider]
        if not devices:
            raise self.missing()
        with ort_refusals("model"):
            options.add_provider_for_devices(devices[:1], dict(self.options))
            found = ort.InferenceSession(model, options, enable_fallback=0)
        return self.checked(found)


class ProviderModel(CompiledModel):
    """One inference session, with its inputs where the provider wants them."""

    def __init__(self, session: Any, compiled: CompiledGraph) -> None:
        """Binds random inputs.

        Args:
            session: of the provider.
            compiled: from `ProviderRuntime.compile`.
        """
        self._session: Any = session
        self._warm = False
        with ort_refusals("model"):
            self._binding: Any = session.io_binding()
            for name, array in random_inputs(compiled.inputs).items():
                self._binding.bind_cpu_input(name, array)  # copied to the GPU here
            for name in compiled.outputs:
                self._binding.bind_output(name)
            self._binding.synchronize_inputs()

    def run(self, count: int) -> list[float]:
        """Times `count` runs, until the outputs are in main memory; see the base class."""
        session, binding = self._open(), self._binding
        with ort_refusals("model"):
            for _ in range(0 if self._warm else _WARM_UP):
                session.run_with_iobinding(binding)
            self._warm = True
            runs = timed_runs(lambda: session.run_with_iobinding(binding), count, 1)
        return self.counted_ms(runs, count)

    def profile(self, count: int) -> dict[str, NodeTiming]:
        """Refuses; see the base class.

        Raises:
            UnavailableError: always.
        """
        raise UnavailableError(
            "runtime 'onnxruntime' on a GPU: its profiler times launching, not operations; time "
            "whole runs."
        )

    def infer(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
        """Runs once; see the base class."""
        session = self._open()
        with ort_refusals(f"inputs {sorted(inputs)}"):
            return list(session.run(None, dict(inputs)))

    def close(self) -> None:
        """Frees the session."""
        self._binding = None
        self._session = None

    def _open(self) -> Any:
        if self._session is None:
            raise UnavailableError("model: already closed; load it again.")
        return self._session


@cache
def _loaded() -> Any:
    """The package, with CUDA's and TensorRT's libraries loaded where they came by pip."""
    import onnxruntime

    with redirect_stdout(io.StringIO()):  # it prints what it does not find; so will the provider
        onnxruntime.preload_dlls()
    with suppress(ImportError):
        import_module("tensorrt")
    return onnxruntime


def _library(name: str) -> bool:
    """Whether ONNX Runtime's package has the library of a provider; imports nothing."""
    spec = find_spec("onnxruntime")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    return any(
        path.suffix in (".so", ".dll")
        for folder in folders
        for path in Path(folder, "capi").glob(f"*onnxruntime_providers_{name}.*")
    )


def _version(package: str) -> str | None:
    try:
        return package_version(package)
    except PackageNotFoundError:
        return None
