"""ncnn, Tencent's phone runtime, on this machine's processor.

pnnx turns ONNX into ncnn's two files, a text of layers and the weights, with its fusions done; that
pair is the compiled graph. ncnn picks kernels and packs weights when it loads them. It runs only
what is asked for, so that asking for what one layer after the other makes tells their times; which
of the model's nodes they stand for tells the wiring (`devices.ncnn_layers`). There is no batch in
its tensors: one image is one run. With fp16, weights and what lies between layers have 16 bits;
whether sums have too is the processor's.
"""

from __future__ import annotations

import math
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from devices.contained import COMPILE_LIMIT_S, ContainedRuntime
from devices.errors import InvalidInputError, UnavailableError
from devices.executed_onnx import executed_if_told
from devices.kernel_trace import TraceEvent, kernel_timings
from devices.ncnn_layers import REFERENCE, executed_operations, read_layers, timed_layers
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
from devices.preemption import timed_runs
from devices.runtimes.base import (
    CompiledGraph,
    CompiledModel,
    NodeTiming,
    Runtime,
    RuntimeSettings,
    RuntimeStatus,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

    from devices.ncnn_layers import Layer

__all__ = ["Ncnn", "NcnnHere", "NcnnModel"]

_AS_IT_IS = 1
"""How a blob is handed out: not unpacked, for that would take its time."""
_WARM_UP = 3
"""Runs before those that a profile counts."""
_LEAST_MS = 1e-5
_HEAD = struct.Struct("<Q")
"""Bytes of the layers' text; the weights follow it."""
_FOREIGN = re.compile(r"[.:]")
"""What only names of layers that are not ncnn's own have."""
_SHORT_TYPES = {"float32": "f32", "float16": "f16", "int64": "i64", "int32": "i32"}


class NcnnHere(Runtime):
    """ncnn in this process; `Ncnn` is the same in a child."""

    name: ClassVar[str] = "ncnn"

    def status(self) -> RuntimeStatus:
        """Usable when both packages are installed; importing them is left for later."""
        return self.status_by_packages(
            "ncnn",
            "pnnx",
            install="pip install 'autospace[ncnn]'",
            precisions=("fp32", "fp16"),
            per_op_times=True,
        )

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        """Converts with pnnx.

        Raises:
            InvalidInputError: the model is unreadable, has dynamic dimensions, or is refused.
            UnavailableError: the package, the precision or the batch is not available.
        """
        status = self.require(settings)
        if settings.batch != 1:
            raise UnavailableError(
                f"batch {settings.batch}: runtime 'ncnn' runs one image at a time; take batch 1."
            )
        proto = name_nodes(fix_shapes(parse_onnx(model), settings.batch))
        inputs = input_specs(proto)
        nodes = {node.op_type: node.name or node.output[0] for node in proto.graph.node[::-1]}
        layers, weights = _converted(to_bytes(proto), inputs, nodes, settings.precision)
        made = CompiledGraph(
            runtime=self.name,
            version=status.version or "",
            data=_HEAD.pack(len(layers)) + layers + weights,
            inputs=inputs,
            outputs=tuple(value.name for value in proto.graph.output),
        )
        with NcnnModel(made, settings) as loaded:
            _check_sizes(proto, loaded, made)
            executed = executed_if_told(
                proto, lambda: executed_operations(proto, loaded.layers, loaded.shapes())
            )
        return replace(made, executed=executed)

    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> NcnnModel:
        """Loads the converted network.

        Raises:
            InvalidInputError: the graph is another runtime's, or is refused.
            UnavailableError: the package is not installed.
        """
        self.require(settings)
        self.check_compiled(compiled)
        return NcnnModel(compiled, settings)

    def files(self, compiled: CompiledGraph) -> dict[str, bytes]:
        """The text of the layers, and the weights; input and output are ``in0`` and ``out0``."""
        layers, weights = _parts(compiled)
        return {".ncnn.param": layers, ".ncnn.bin": weights}


class Ncnn(ContainedRuntime):
    """ncnn in a child process, and pnnx with it."""

    name: ClassVar[str] = "ncnn"
    inner: ClassVar[str] = "devices.runtimes.ncnn:NcnnHere"


class NcnnModel(CompiledModel):
    """One loaded network."""

    def __init__(self, compiled: CompiledGraph, settings: RuntimeSettings) -> None:
        """Loads it.

        Args:
            compiled: from `NcnnHere.compile`.
            settings: threads, precision, batch.

        Raises:
            InvalidInputError: ncnn refuses the network.
        """
        import ncnn

        self._compiled = compiled
        self._threads = settings.threads
        # Memory is kept from run to run, as programs for phones do.
        self._allocators = (ncnn.UnlockedPoolAllocator(), ncnn.PoolAllocator())
        self._net: Any = ncnn.Net()
        option = self._net.opt
        option.num_threads = settings.threads
        option.blob_allocator, option.workspace_allocator = self._allocators
        option.use_vulkan_compute = False
        for name in dir(option):
            if name.startswith(("use_fp16_", "use_bf16_", "use_int8_")):
                half = name.startswith("use_fp16_") and settings.precision == "fp16"
                setattr(option, name, half)
        layers, weights = _parts(compiled)
        with tempfile.TemporaryDirectory(prefix="autospace-ncnn-") as folder:
            parts = {"model.param": layers, "model.bin": weights}
            for name, content in parts.items():
                Path(folder, name).write_bytes(content)
            failed = self._net.load_param(str(Path(folder, "model.param"))) or self._net.load_model(
                str(Path(folder, "model.bin"))
            )
        if failed:
            self.close()
            raise InvalidInputError("model: ncnn refused the converted network; use another one.")
        self._text = layers.decode(errors="replace")
        self._feed = self._mats(random_inputs(compiled.inputs))

    def run(self, count: int) -> list[float]:
        """Times `count` runs; see the base class."""
        self._open()
        runs = timed_runs(lambda: self._outputs(self._feed), count, self._threads)
        return self.counted_ms(runs, count)

    def profile(self, count: int) -> dict[str, NodeTiming]:
        """Times each layer in `count` runs; see the base class.

        A run asks for what the layers make, one after the other. What asking itself takes is taken
        off: the time of layers that only refer to what is there, or of asking again, where there is
        no such layer.
        """
        self._open()
        layers = [layer for layer in self.layers if layer.bottoms]
        references = [place for place, layer in enumerate(layers) if layer.kind == REFERENCE]
        spent: list[list[float]] = []
        asking: list[float] = []

        def run() -> None:
            extractor = self._started(self._feed)
            spent.append([_asked_ms(extractor, layer.tops[0]) for layer in layers])
            asking.append(_asked_ms(extractor, layers[-1].tops[0]))

        timed_runs(run, _WARM_UP, self._threads)
        spent.clear()
        asking.clear()
        runs = timed_runs(run, count, self._threads)
        off_ms = median([own[place] for own in spent for place in references] or asking)
        timed = {layer.place for layer in timed_layers(layers)}
        traced = [
            tuple(
                TraceEvent(layer.place, layer.kind, False, max(ms - off_ms, _LEAST_MS))
                for layer, ms in zip(layers, own, strict=True)
                if layer.place in timed
            )
            for own in spent
        ]
        return kernel_timings(traced, runs, count)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Its layers.

        Raises:
            ValueError: its text is not ncnn's.
        """
        return read_layers(self._text)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape, with the batch, of what each timed layer makes first, by the name of that."""
        extractor = self._started(self._feed)
        found = {}
        for layer in timed_layers(self.layers):
            failed, mat = extractor.extract(layer.tops[0], type=_AS_IT_IS)
            _check(failed)
            axes = ("w", "h", "c") if mat.dims == 3 else ("w", "h", "d", "c")
            sides = [int(getattr(mat, axis)) for axis in axes[: mat.dims]]
            sides[-1] *= mat.elempack
            found[layer.tops[0]] = (1, *reversed(sides))
        return found

    def infer(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
        """Runs once; see the base class."""
        import numpy as np

        self._open()
        found = self._outputs(self._mats(inputs))
        return [np.array(mat)[None] for mat in found]

    def close(self) -> None:
        """Frees the network."""
        if self._net is not None:
            self._feed = []
            self._net.clear()
            self._net = None

    def _started(self, feed: list[Any]) -> Any:
        """A run that has its inputs, and has computed nothing yet."""
        extractor = self._net.create_extractor()
        for place, mat in enumerate(feed):
            extractor.input(f"in{place}", mat)
        return extractor

    def _outputs(self, feed: list[Any]) -> list[Any]:
        extractor = self._started(feed)
        outputs = []
        for place in range(len(self._compiled.outputs)):
            failed, mat = extractor.extract(f"out{place}")
            _check(failed)
            outputs.append(mat)
        return outputs

    def _mats(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[Any]:
        """The inputs as ncnn's tensors, which have no batch."""
        import ncnn
        import numpy as np

        mats = []
        for array in ordered_inputs(self._compiled.inputs, inputs):
            single = array[0] if array.ndim > 1 and array.shape[0] == 1 else array
            mats.append(ncnn.Mat(np.ascontiguousarray(single)).clone())
        return mats

    def _open(self) -> None:
        if self._net is None:
            raise UnavailableError("model: already closed; load it again.")


def _asked_ms(extractor: Any, blob: str) -> float:
    """How long it takes until a blob is there."""
    start = perf_counter()
    failed, _ = extractor.extract(blob, type=_AS_IT_IS)
    spent_ms = (perf_counter() - start) * 1e3
    _check(failed)
    return spent_ms


def _check(failed: int) -> None:
    if failed:
        raise InvalidInputError(
            f"model: ncnn failed to run it (code {failed}); use another runtime."
        )


def _check_sizes(model: onnx.ModelProto, loaded: NcnnModel, made: CompiledGraph) -> None:
    """Refuses a network that makes more or fewer numbers than the model does.

    pnnx guesses which axis is the batch, and takes constants of three axes for batches of matrices.
    """
    told = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in model.graph.output
        if value.type.tensor_type.HasField("shape")
    }
    found = loaded.infer(random_inputs(made.inputs))
    for name, array in zip(made.outputs, found, strict=True):
        shape = told.get(name, [])
        if shape and all(shape) and array.size != math.prod(shape):
            raise InvalidInputError(
                f"model output {name!r}: ncnn makes {array.shape} of what is {tuple(shape)}; use "
                "another runtime for this network."
            )


def _converted(
    model: bytes,
    inputs: tuple[tuple[str, tuple[int, ...], str], ...],
    nodes: Mapping[str, str],
    precision: str,
) -> tuple[bytes, bytes]:
    """The text of the layers and the weights, as pnnx writes them.

    Args:
        model: serialised ONNX.
        inputs: name, shape and numpy type name of each.
        nodes: by operation the first node that has it, to name what is refused.
        precision: "fp32", or "fp16" for weights of 16 bits.

    Raises:
        InvalidInputError: pnnx refuses the model, or leaves operations that ncnn does not have.
    """
    for name, _, dtype in inputs:
        if dtype not in _SHORT_TYPES:
            raise InvalidInputError(
                f"model input {name!r}: pnnx takes no {dtype}; export it with float32."
            )
    shapes = ",".join(
        f"[{','.join(map(str, shape))}]{_SHORT_TYPES[dtype]}" for _, shape, dtype in inputs
    )
    with tempfile.TemporaryDirectory(prefix="autospace-ncnn-") as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(model)
        command = [
            str(_pnnx()),
            str(path),
            f"inputshape={shapes}",
            f"fp16={int(precision == 'fp16')}",
        ]
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMPILE_LIMIT_S,
        )
        layers, weights = Path(folder, "model.ncnn.param"), Path(folder, "model.ncnn.bin")
        if done.returncode or not layers.is_file() or not weights.is_file():
            raise InvalidInputError(f"model: pnnx refused ({_said(done)}); use another runtime.")
        text = layers.read_bytes()
        missing = {line.split()[-1] for line in _lines(done) if line.startswith("todo ")}
        for line in text.decode(errors="replace").splitlines()[2:]:
            kind, name = (*line.split(), "", "")[:2]
            if _FOREIGN.search(kind) or kind in missing:
                raise InvalidInputError(
                    f"model node {nodes.get(kind, name)!r}: ncnn has no operation {kind}; export "
                    "the model without it, or use another runtime."
                )
        return text, weights.read_bytes()


def _parts(compiled: CompiledGraph) -> tuple[bytes, bytes]:
    """Layers and weights of a compiled graph."""
    length = _HEAD.unpack_from(compiled.data)[0]
    return compiled.data[_HEAD.size : _HEAD.size + length], compiled.data[_HEAD.size + length :]


def _pnnx() -> Path:
    """The converter's program; its package is not imported, for that would import torch."""
    spec = find_spec("pnnx")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    for place in places:
        for name in ("pnnx", "pnnx.exe"):
            if Path(place, name).is_file():
                return Path(place, name)
    raise UnavailableError("runtime 'ncnn': pnnx has no program; install the package again.")


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"it crashed with signal {-done.returncode}"
    lines = _lines(done)
    wrong = [line for line in lines if re.search("not|error|fail|unsupported", line, re.I)]
    last = (wrong or lines or ["no reason given"])[-1]
    return one_line(ValueError(last), 120)


def _lines(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    text = (done.stderr + done.stdout).decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()]
