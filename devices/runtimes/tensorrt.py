"""TensorRT on an NVIDIA GPU, versions 10 and 11.

Networks are strongly typed in both, which is the only kind that version 11 has: the model's own
types decide. So float16 is made by converting the ONNX model (`devices.onnx_half`), and int8 takes
a model with QuantizeLinear and DequantizeLinear. TF32 is switched off, so that fp32 is fp32.

An engine works on the GPU model and with the version that built it; both are written in front of
it, and others are refused. Buffers, stream and events are pycuda's. A run is timed by two events on
the stream: from the first kernel's start to the last one's end, with the gaps in between, without
copying inputs and outputs. `tensorrt-graph` is the same with the engine's kernels launched as one
CUDA graph, which leaves fewer gaps; a runtime of its own, so that no card or figure is of both. See
docs/tensorrt.md for what has run on hardware.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any, ClassVar

from devices.contained import ContainedRuntime
from devices.cuda_graph import CudaGraph
from devices.engine_layers import engine_layers, executed_by_engine, layer_timings
from devices.errors import InvalidInputError, UnavailableError
from devices.gpu import gpu_state
from devices.onnx_files import (
    fix_shapes,
    input_specs,
    name_nodes,
    one_line,
    ordered_inputs,
    parse_onnx,
    random_inputs,
    to_bytes,
)
from devices.onnx_half import half_precision
from devices.runtimes.base import (
    NOT_INSTALLED,
    CompiledGraph,
    CompiledModel,
    NodeTiming,
    Runtime,
    RuntimeSettings,
    RuntimeStatus,
    refusals,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

__all__ = [
    "EngineStamp",
    "TensorRt",
    "TensorRtGraph",
    "TensorRtGraphHere",
    "TensorRtHere",
    "TensorRtModel",
    "stamped",
    "unstamped",
]

_PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu")
"""What is there when an NVIDIA driver is: on Linux, in Windows' Linux, on Jetson."""
_HEAD = struct.Struct("<Q")
_WORKSPACE_BYTES = 1 << 30
_WARM_UP = 10

EngineStamp = Mapping[str, Any]
"""Version and GPU of an engine: ``{"tensorrt": …, "gpu": …, "capability": [8, 6]}``."""


class TensorRtHere(Runtime):
    """TensorRT in this process; `TensorRt` is the same in a child."""

    name: ClassVar[str] = "tensorrt"
    graphs: ClassVar[bool] = False
    """Whether kernels are launched as a CUDA graph."""

    def __init__(self) -> None:
        self._timing_cache = b""

    def status(self) -> RuntimeStatus:
        """Usable when both packages are installed and there is a driver; imports nothing."""
        version = next((found for name in _PACKAGES if (found := _version(name))), None)
        reason = None
        if version is None or _version("pycuda") is None:
            version, reason = None, NOT_INSTALLED
        elif int(version.split(".")[0]) < 10:
            reason = f"version {version} is too old; 10 or 11 is needed"
        elif not any(os.path.exists(path) for path in _DRIVERS):
            reason = "no NVIDIA GPU with its driver here"
        return RuntimeStatus(
            name=self.name,
            usable=reason is None,
            version=version,
            reason=reason,
            install="pip install 'autospace[tensorrt]'" if reason == NOT_INSTALLED else None,
            precisions=("fp32", "fp16", "int8"),
            per_op_times=True,
            source=self.source,
            sets_threads=False,
        )

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        """Builds an engine; what was timed for one engine is not timed again for the next.

        Raises:
            InvalidInputError: the model is unreadable, has dynamic dimensions, or is refused.
            UnavailableError: the package or a GPU is not available.
        """
        status = self.require(settings)
        proto = name_nodes(fix_shapes(parse_onnx(model), settings.batch))
        typed = typed_model(proto, settings.precision)
        with refusals("model", "tensorrt"), _gpu() as stamp:
            engine, information = self._built(to_bytes(typed))
        return CompiledGraph(
            runtime=self.name,
            version=status.version or "",
            data=stamped({**stamp, "tensorrt": status.version}, engine, information),
            inputs=input_specs(proto),
            outputs=tuple(value.name for value in proto.graph.output),
            executed=executed_by_engine(proto, engine_layers(information)),
        )

    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> TensorRtModel:
        """Loads an engine.

        Raises:
            InvalidInputError: the engine was built for another GPU or version.
            UnavailableError: the package or a GPU is not available.
        """
        self.require(settings)
        self.check_compiled(compiled)
        return TensorRtModel(compiled, as_graph=self.graphs)

    def files(self, compiled: CompiledGraph) -> dict[str, bytes]:
        """One engine with its stamp in front, which `unstamped` takes off again."""
        return {".engine": compiled.data}

    def _built(self, model: bytes) -> tuple[bytes, str]:
        """The engine, and what the inspector says of it."""
        import tensorrt as trt

        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(model):
            raise InvalidInputError(
                parser_refusal([parser.get_error(i) for i in range(parser.num_errors)])
            )
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.clear_flag(trt.BuilderFlag.TF32)
        config.set_timing_cache(config.create_timing_cache(self._timing_cache), False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise InvalidInputError("model: tensorrt could not build an engine; take another one.")
        self._timing_cache = bytes(config.get_timing_cache().serialize())
        engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        inspector = engine.create_engine_inspector()
        information = str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
        return bytes(plan), information


class TensorRt(ContainedRuntime):
    """TensorRT in a child process."""

    name: ClassVar[str] = "tensorrt"
    inner: ClassVar[str] = "devices.runtimes.tensorrt:TensorRtHere"
    compile_limit_s = 900.0

    def device_state(self) -> Mapping[str, Any] | None:
        """The GPU's clocks and temperature; see the base class."""
        return gpu_state()


class TensorRtGraphHere(TensorRtHere):
    """TensorRT with CUDA graphs, in this process."""

    name: ClassVar[str] = "tensorrt-graph"
    graphs: ClassVar[bool] = True


class TensorRtGraph(TensorRt):
    """TensorRT with CUDA graphs, in a child process."""

    name: ClassVar[str] = "tensorrt-graph"
    inner: ClassVar[str] = "devices.runtimes.tensorrt:TensorRtGraphHere"


class TensorRtModel(CompiledModel):
    """One engine with its buffers."""

    def __init__(self, compiled: CompiledGraph, as_graph: bool = False) -> None:
        """Loads it, and copies random inputs to the GPU.

        Args:
            compiled: from `TensorRtHere.compile`.
            as_graph: whether its kernels are recorded once and launched as a whole.

        Raises:
            InvalidInputError: the engine was built for another GPU or version, or cannot be
                recorded.
        """
        import pycuda.driver as cuda
        import tensorrt as trt

        self._compiled = compiled
        self._open = True
        stamp, plan, information = unstamped(compiled.data)
        self._layers = engine_layers(information)
        cuda.init()
        self._device = cuda.Device(0)
        check_stamp(stamp, _stamp_of(self._device), compiled.version)
        self._gpu = self._device.retain_primary_context()
        self._gpu.push()
        try:
            with refusals("model", "tensorrt"):
                runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
                self._engine = runtime.deserialize_cuda_engine(plan)
                self._context = self._engine.create_execution_context()
                self._stream = cuda.Stream()
                self._events = cuda.Event(), cuda.Event()
                self._buffers: dict[str, Any] = {}
                self._host: dict[str, npt.NDArray[np.generic]] = {}
                for index in range(self._engine.num_io_tensors):
                    self._allocate(self._engine.get_tensor_name(index))
                self._bind(self._context)
                self._feed(random_inputs(compiled.inputs))
                for _ in range(_WARM_UP):
                    self._launch(self._context)
                self._stream.synchronize()
                self._graph = (
                    CudaGraph(self._stream.handle, lambda: self._launch(self._context))
                    if as_graph
                    else None
                )
                if self._graph is not None:
                    self._graph.launch()
                    self._stream.synchronize()
        finally:
            self._gpu.pop()

    def run(self, count: int) -> list[float]:
        """Times `count` runs by events on the stream; see the base class."""
        begin, end = self._events
        times = []
        with self._current():
            for _ in range(count):
                begin.record(self._stream)
                self._start()
                end.record(self._stream)
                end.synchronize()
                times.append(float(begin.time_till(end)))
        return times

    def profile(self, count: int) -> dict[str, NodeTiming]:
        """Times each layer with TensorRT's profiler; see the base class.

        It has an execution context of its own, for a profiler cannot be taken off again.
        """
        import tensorrt as trt

        reports: list[list[tuple[str, float]]] = []

        class Profiler(trt.IProfiler):  # type: ignore[misc, unused-ignore]
            """Collects what is reported."""

            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                reports[-1].append((layer_name, ms))

        with self._current():
            context = self._engine.create_execution_context()
            self._bind(context)
            for _ in range(_WARM_UP):
                self._launch(context)
            self._stream.synchronize()
            profiler = Profiler()
            context.profiler = profiler
            for _ in range(count):
                reports.append([])
                self._launch(context)
                self._stream.synchronize()
        return layer_timings(self._layers, reports)

    def infer(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
        """Runs once; see the base class."""
        import pycuda.driver as cuda

        with self._current():
            self._feed(inputs)
            self._start()
            for name in self._compiled.outputs:
                cuda.memcpy_dtoh_async(self._host[name], self._buffers[name], self._stream)
            self._stream.synchronize()
            return [self._host[name].copy() for name in self._compiled.outputs]

    def close(self) -> None:
        """Frees engine and buffers."""
        if self._open:
            with self._current():
                for buffer in self._buffers.values():
                    buffer.free()
                self._buffers = {}
                if self._graph is not None:
                    self._graph.close()
                self._graph = self._context = self._engine = None
            self._open = False
            self._gpu.detach()

    def _allocate(self, name: str) -> None:
        import pycuda.driver as cuda
        import tensorrt as trt

        shape = tuple(int(size) for size in self._engine.get_tensor_shape(name))
        dtype = trt.nptype(self._engine.get_tensor_dtype(name))
        self._host[name] = cuda.pagelocked_empty(shape, dtype)
        self._buffers[name] = cuda.mem_alloc(max(self._host[name].nbytes, 1))

    def _bind(self, context: Any) -> None:
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, int(buffer))

    def _start(self) -> None:
        """Starts a run on the stream."""
        if self._graph is None:
            self._launch(self._context)
        else:
            self._graph.launch()

    def _launch(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.handle):
            raise InvalidInputError("model: tensorrt could not run the engine; build it again.")

    def _feed(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> None:
        import pycuda.driver as cuda

        specs = self._compiled.inputs
        for (name, _, _), array in zip(specs, ordered_inputs(specs, inputs), strict=True):
            self._host[name][...] = array
            cuda.memcpy_htod_async(self._buffers[name], self._host[name], self._stream)
        self._stream.synchronize()

    @contextmanager
    def _current(self) -> Iterator[None]:
        if not self._open:
            raise UnavailableError("model: already closed; load it again.")
        self._gpu.push()
        try:
            with refusals("model", "tensorrt"):
                yield
        finally:
            self._gpu.pop()


def typed_model(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The model with the types of a precision, for strongly typed networks.

    Args:
        model: in float32, or for int8 with QuantizeLinear and DequantizeLinear.
        precision: "fp32", "fp16" or "int8".

    Raises:
        InvalidInputError: the model does not have what the precision needs.
    """
    if precision == "fp16":
        return half_precision(model)
    quantised = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    if precision == "int8" and not quantised:
        raise InvalidInputError(
            "model: has no QuantizeLinear nodes, which int8 needs; quantise it first."
        )
    return model


def parser_refusal(errors: list[Any]) -> str:
    """One line from TensorRT's ONNX parser's errors (`ParserError`), naming the first node."""
    if not errors:
        return "model: tensorrt could not read it; export it again."
    first = errors[0]
    node, operation = str(first.node_name()), str(first.node_operator())
    where = f"model node {node!r} ({operation})" if node else "model"
    said = one_line(ValueError(str(first.desc())), 160).rstrip(".")
    return f"{where}: tensorrt refused ({said}); export the model without it."


def stamped(stamp: EngineStamp, engine: bytes, information: str) -> bytes:
    """An engine with what it was built with and what the inspector says of it in front."""
    parts = (json.dumps(dict(stamp)).encode(), information.encode(), engine)
    return b"".join(_HEAD.pack(len(part)) + part for part in parts)


def unstamped(data: bytes) -> tuple[EngineStamp, bytes, str]:
    """Stamp, engine and the inspector's JSON from what `stamped` gave.

    Raises:
        InvalidInputError: it is no such thing.
    """
    parts, place = [], 0
    try:
        for _ in range(3):
            length = _HEAD.unpack_from(data, place)[0]
            place += _HEAD.size
            if place + length > len(data):
                raise ValueError("too short")
            parts.append(data[place : place + length])
            place += length
        stamp, information = json.loads(parts[0]), parts[1].decode()
    except (struct.error, ValueError) as error:
        raise InvalidInputError(
            "engine: no engine file of autospace, or truncated; build it again."
        ) from error
    return stamp, parts[2], information


def check_stamp(stamp: EngineStamp, here: EngineStamp, version: str) -> None:
    """Refuses an engine of another version or another GPU.

    Raises:
        InvalidInputError: naming the difference.
    """
    there = {**here, "tensorrt": version}
    for key in ("tensorrt", "gpu", "capability"):
        if stamp.get(key) != there.get(key):
            raise InvalidInputError(
                f"engine: built for {key} {stamp.get(key)}, but this is {there.get(key)}; engines "
                "do not travel, so build it again here."
            )


def _stamp_of(device: Any) -> dict[str, Any]:
    return {"gpu": str(device.name()), "capability": [int(x) for x in device.compute_capability()]}


@contextmanager
def _gpu() -> Iterator[dict[str, Any]]:
    """The first GPU's context, current; gives its stamp."""
    import pycuda.driver as cuda

    cuda.init()
    device = cuda.Device(0)
    context = device.retain_primary_context()
    context.push()
    try:
        yield _stamp_of(device)
    finally:
        context.pop()
        context.detach()


def _version(package: str) -> str | None:
    try:
        return package_version(package)
    except PackageNotFoundError:
        return None
