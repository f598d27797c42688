"""OpenVINO on this machine's processor.

The model is compiled once and exported; every later load imports that, which is some times as
quick. Precision is forced to float32, for OpenVINO otherwise takes bfloat16 or float16 where the
processor has them; models with QuantizeLinear and DequantizeLinear run in int8 where those say so.
One inference stream, as many threads as asked for, threads not pinned to cores, and no second
thread on one core (hyper-threading).

Times of single operations come from performance counters (`PERF_COUNT`), which cost nothing that
can be seen, so that they are always on. The counters are means over all runs since the graph was
loaded, in whole microseconds: the times of some runs are told by two looks at them, so that a
profile gives means over runs instead of single ones. Which operations are executed and how is told
by the runtime model of the compiled one; nothing is converted by OpenVINO's own tools, which report
their use over the network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from devices.errors import InvalidInputError, UnavailableError
from devices.executed_onnx import ExecutedOp, ExecutedTensor, executed_onnx
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
from devices.preemption import Run, timed_runs, without_waiting
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

__all__ = ["OpenVino", "OpenVinoModel", "open_file", "write_file"]

_DEVICE = "CPU"
_WARM_UP = 3
_BLOCKS = 2
"""Means that a profile gives."""
_MOST_BLOCKS = 4
"""Means that are taken for that, at most, while another program takes the core."""
_LEAST_MS = 0.0005
"""What an operation takes whose counter is still at zero."""
_PLAIN_LAYOUTS = ("undef", *("abcdefgh"[:rank] for rank in range(9)))
_ELEMENT_TYPES = {
    **{"f32": "float32", "f16": "float16", "f64": "float64", "boolean": "bool", "bf16": "float16"},
    **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("i", "int"), ("u", "uint"))
       for bits in (8, 16, 32, 64)},
}  # fmt: skip
_ACTIVATIONS = (
    *("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh"),
    *("Gelu", "Erf", "Exp", "Log", "Sqrt", "Neg", "Abs", "Reciprocal", "Softplus", "Mish"),
)
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Pow", *_ACTIVATIONS)
_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
_NORMS = (
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization"),
    *("RMSNormalization", "LpNormalization"),
)
_KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Convolution": ("Conv", ("Conv",)),
    "Deconvolution": ("ConvTranspose", ("ConvTranspose",)),
    "FullyConnected": ("Gemm", ("Gemm", "MatMul")),
    "MatMul": ("MatMul", ("MatMul", "Gemm")),
    "Eltwise": ("Mul", _ARITHMETIC),
    "Subgraph": ("Mul", _ARITHMETIC),
    "Pooling": ("AveragePool", ("AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool")),
    "Reduce": ("ReduceMean", ("GlobalAveragePool", "GlobalMaxPool", *_REDUCTIONS)),
    "MVN": ("InstanceNormalization", _NORMS),
    "RMS": ("RMSNormalization", _NORMS),
    "NormalizeL2": ("LpNormalization", _NORMS),
    "Softmax": ("Softmax", ("Softmax", "LogSoftmax")),
    "Concatenation": ("Concat", ("Concat",)),
    "Split": ("Split", ("Split", "Slice")),
    "StridedSlice": ("Slice", ("Slice", "Split", "Gather")),
    "Gather": ("Gather", ("Gather",)),
    "Pad": ("Pad", ("Pad",)),
    "Interpolate": ("Resize", ("Resize", "Upsample")),
    "Transpose": ("Transpose", ("Transpose",)),
    "DepthToSpace": ("DepthToSpace", ("DepthToSpace",)),
    "SpaceToDepth": ("SpaceToDepth", ("SpaceToDepth",)),
    "Reshape": ("Reshape", ("Reshape", "Flatten", "Squeeze", "Unsqueeze")),
    "Convert": ("Cast", ("Cast",)),
    "Broadcast": ("Expand", ("Expand",)),
    "Tile": ("Tile", ("Tile",)),
    "ShapeOf": ("Shape", ("Shape",)),
}
"""Kind of an executed operation -> what it is called where it covers nothing, and the operations of
the original whose work it may be called after."""


_IN_PLACE = ("Reshape", "Split", "Gather", "Concatenation", "StridedSlice", "Convert")
"""Kinds that move nothing where no code was chosen for them."""


class OpenVino(Runtime):
    """OpenVINO with its CPU plug-in."""

    name: ClassVar[str] = "openvino"

    def status(self) -> RuntimeStatus:
        """Usable when the package is installed; importing it is left for later."""
        return self.status_by_packages(
            "openvino", install="pip install 'autospace[openvino]'", per_op_times=True
        )

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        """Compiles for this processor.

        Raises:
            InvalidInputError: the model is unreadable, has dynamic dimensions, or is refused.
            UnavailableError: the package or the precision is not available.
        """
        status = self.require(settings)
        proto = name_nodes(fix_shapes(parse_onnx(model), settings.batch))
        inputs = input_specs(proto)
        with _refusals("model", proto):
            compiled = _core().compile_model(
                _core().read_model(to_bytes(proto)), _DEVICE, _options(settings)
            )
            exported = compiled.export_model()
            data = bytes(exported.getvalue() if hasattr(exported, "getvalue") else exported)
            # What was imported again is not always what was compiled: what was fused in attention
            # may not be. It is what will be measured.
            compiled = _core().import_model(data, _DEVICE, _options(settings))
            operations = tuple(_operations(compiled.get_runtime_model()))
        return CompiledGraph(
            runtime=self.name,
            version=status.version or "",
            data=data,
            inputs=inputs,
            outputs=tuple(value.name for value in proto.graph.output),
            executed=executed_onnx(proto, operations),
        )

    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> OpenVinoModel:
        """Imports a compiled model; its counters are on, whether it will be profiled or not.

        Raises:
            InvalidInputError: the graph is another runtime's, or is refused.
            UnavailableError: the package is not installed.
        """
        self.require(settings)
        self.check_compiled(compiled)
        return OpenVinoModel(compiled, settings)


class OpenVinoModel(CompiledModel):
    """One compiled model with one inference request."""

    def __init__(self, compiled: CompiledGraph, settings: RuntimeSettings) -> None:
        """Imports it.

        Args:
            compiled: from `OpenVino.compile`.
            settings: threads, precision, batch.
        """
        self._settings = settings
        self._inputs = compiled.inputs
        with _refusals("model"):
            self._compiled: Any = _core().import_model(compiled.data, _DEVICE, _options(settings))
            self._request: Any = _request(self._compiled, compiled.inputs)
        self._runs = 0

    def run(self, count: int) -> list[float]:
        """Times `count` runs; see the base class."""
        runs = self._timed(count)
        return self.counted_ms(runs, count)

    def profile(self, count: int) -> dict[str, NodeTiming]:
        """Mean times of each operation over `count` runs, twice; see the base class.

        Runs that lost their core make a mean worth little, so that it is taken again, a few times.
        """
        request = self._open()
        while self._runs < _WARM_UP:
            self._timed(1)
        kinds: dict[str, str] = {}
        blocks: list[tuple[float, dict[str, float]]] = []
        before, runs_before = _counters(request), self._runs
        for _ in range(_MOST_BLOCKS):
            runs = self._timed(count)
            after = _counters(request)
            means = _means_ms(before, runs_before, after, self._runs)
            before, runs_before = after, self._runs
            kinds |= {name: kind for name, (kind, _) in means.items()}
            waiting_ms = sum(run.waiting_ms for run in runs) / len(runs)
            own = without_waiting({name: (ms,) for name, (_, ms) in means.items()}, [waiting_ms])
            preempted = sum(run.preempted for run in runs) / len(runs)
            blocks.append((preempted, {name: ms for name, (ms,) in own.items()}))
            if sum(not lost for lost, _ in blocks) == _BLOCKS:
                break
        kept = sorted(blocks, key=lambda block: block[0])[:_BLOCKS]
        return {
            name: NodeTiming(kind, tuple(times.get(name, _LEAST_MS) for _, times in kept))
            for name, kind in kinds.items()
        }

    def infer(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
        """Runs once, in a request of its own; see the base class."""
        import numpy as np

        self._open()
        given = dict(enumerate(ordered_inputs(self._inputs, inputs)))
        with _refusals(f"inputs {sorted(inputs)}"):
            request = self._compiled.create_infer_request()
            found = request.infer(given)
            self._runs += 1
            return [np.array(found[place]) for place in range(len(found))]

    def close(self) -> None:
        """Frees the model."""
        self._request = self._compiled = None

    def _timed(self, count: int) -> list[Run]:
        request = self._open()
        with _refusals("model"):
            runs = timed_runs(request.infer, count, self._settings.threads)
        self._runs += len(runs)
        return runs

    def _open(self) -> Any:
        if self._request is None:
            raise UnavailableError("model: already closed; load it again.")
        return self._request


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def _options(settings: RuntimeSettings) -> dict[str, Any]:
    return {
        "INFERENCE_NUM_THREADS": settings.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
        "ENABLE_HYPER_THREADING": False,
        "PERF_COUNT": True,
        "CACHE_DIR": "",
    }


def _request(compiled: Any, inputs: Sequence[tuple[str, tuple[int, ...], str]]) -> Any:
    """An inference request that holds random inputs of its own, so that nothing is copied."""
    import openvino

    request = compiled.create_infer_request()
    arrays = random_inputs(tuple(inputs))
    for place, (name, _, _) in enumerate(inputs):
        request.set_input_tensor(place, openvino.Tensor(arrays[name]))
    return request


@contextmanager
def _refusals(subject: str, model: onnx.ModelProto | None = None) -> Iterator[None]:
    """Turns what the runtime raises into one line; an operation that it lacks is named."""
    try:
        yield
    except InvalidInputError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        lacking = _NO_RULE.search(str(error))
        if lacking is not None:
            op = lacking.group(1)
            nodes = [n.name for n in (model.graph.node if model else ()) if n.op_type == op]
            raise InvalidInputError(
                f"{subject}: openvino has no {op} (node {next(iter(nodes), '?')!r}); replace that "
                "operation, or choose another runtime."
            ) from error
        raise InvalidInputError(f"{subject}: openvino refused ({_said(error)}).") from error


_NO_RULE = re.compile(r"No conversion rule found for operations: (\w+)")
_EMPTY_WORDS = (
    "Exception from",
    "Check '",
    "[ ",
    "FrontEnd API",
    "Error",
    "Summary",
    "OpenVINO does",
)


def _said(error: BaseException) -> str:
    """What the runtime says, without the places in its source that stand in front."""
    lines = [line.strip(" -*\t") for line in str(error).splitlines()]
    telling = [
        line for line in lines
        if line and not line.startswith(_EMPTY_WORDS) and ".cpp" not in line
    ]  # fmt: skip
    words = next(iter(telling or lines), type(error).__name__)
    return one_line(ValueError(words)).rstrip(".")


def _counters(request: Any) -> dict[str, tuple[str, int]]:
    """Kind and mean time, in whole microseconds, of each operation that was executed."""
    return {
        item.node_name: (item.node_type, round(item.real_time.total_seconds() * 1e6))
        for item in request.profiling_info
        if item.status == item.Status.EXECUTED
    }


def _means_ms(
    before: Mapping[str, tuple[str, int]],
    runs_before: int,
    after: Mapping[str, tuple[str, int]],
    runs_after: int,
) -> dict[str, tuple[str, float]]:
    """Mean time of each operation over the runs between two looks at the counters.

    The counters are means over all runs so far of whole microseconds, and cut off to whole
    microseconds twice: half a microsecond is missing each time.

    Args:
        before: kind and mean over the first `runs_before` runs, in microseconds.
        runs_before: at least 0.
        after: the same over the first `runs_after` runs.
        runs_after: more than `runs_before`.
    """
    count = runs_after - runs_before
    means = {}
    for name, (kind, mean_us) in after.items():
        total_us = mean_us * runs_after + (runs_after - 1) / 2
        if runs_before:
            mean_before_us = before[name][1] if name in before else 0
            total_us -= mean_before_us * runs_before + (runs_before - 1) / 2
        means[name] = kind, max(total_us / count + 0.5, 0.1) / 1e3
    return means


def _operations(graph: Any) -> Iterator[ExecutedOp]:
    """The operations of a runtime model that take time, in the order of execution.

    What is not executed (reshapes that change no byte, layout changes of single pixels) passes its
    input on; a concatenation that its inputs were written into has no maker.
    """
    known: dict[str, ExecutedTensor] = {}
    ordered = sorted(graph.get_ordered_ops(), key=lambda op: int(_info(op, "execOrder")))
    for op in ordered:
        kind, name = _info(op, "layerType"), op.get_friendly_name()
        inputs = tuple([known[_tensor_of(port.get_source_output())] for port in op.inputs()])
        outputs = tuple(_outputs(op, name, kind, inputs))
        if kind == "Output":
            continue
        if not _takes_time(kind, _info(op, "primitiveType"), inputs):
            data = [tensor for tensor in inputs if not tensor.constant]
            for port, tensor in zip(op.outputs(), outputs, strict=True):
                passes_on = len(data) == 1 and len(outputs) == 1 and kind != "Input"
                known[_tensor_of(port)] = data[0] if passes_on else tensor
            continue
        for port, tensor in zip(op.outputs(), outputs, strict=True):
            known[_tensor_of(port)] = tensor
        layout = _info(op, "outputLayouts").split(",")[0]
        plain = layout in _PLAIN_LAYOUTS
        fallback, allowed = _KINDS.get(kind, (kind, ()))
        attributes = {"primitive": _info(op, "primitiveType").rpartition("_")[0]}
        if kind == "Reorder":
            fallback = "ReorderOutput" if plain else "ReorderInput"
            plain, attributes = False, {}
        yield ExecutedOp(
            name=name,
            domain="openvino" if plain else "openvino.nhwc",
            covers=tuple(filter(None, _info(op, "originalLayersNames").split(","))),
            fallback=fallback,
            allowed=frozenset(allowed),
            inputs=inputs,
            outputs=outputs,
            attributes=attributes,
        )


def _takes_time(kind: str, primitive: str, inputs: Sequence[ExecutedTensor]) -> bool:
    """Whether an operation is executed in every run.

    What its counters say cannot be asked: they are zero for whatever takes less than a microsecond.
    """
    if kind in ("Input", "Const") or all(tensor.constant for tensor in inputs):
        return False
    if primitive.startswith("unknown"):
        return kind not in _IN_PLACE
    if kind == "Reorder" and primitive.startswith("reorder"):
        shape = inputs[0].shape
        return len(shape) < 3 or (shape[1] > 1 and math.prod(shape[2:]) > 1)
    return True


def _outputs(
    op: Any, name: str, kind: str, inputs: Sequence[ExecutedTensor]
) -> Iterator[ExecutedTensor]:
    """What an operation makes; it is constant where all that it reads is."""
    constant = kind == "Const" or (bool(inputs) and all(tensor.constant for tensor in inputs))
    types = _info(op, "outputPrecisions").split(",")
    for place, port in enumerate(op.outputs()):
        yield ExecutedTensor(
            name=name if kind in ("Input", "Const") else f"{name}:{place}",
            shape=tuple(int(side) for side in port.get_shape()),
            constant=constant,
            dtype=_ELEMENT_TYPES.get(types[min(place, len(types) - 1)], "float32"),
        )


def _tensor_of(port: Any) -> str:
    return f"{port.get_node().get_friendly_name()}:{port.get_index()}"


def _info(op: Any, key: str) -> str:
    found = op.get_rt_info()[key]
    return str(found.astype(str) if hasattr(found, "astype") else found)


def write_file(model: bytes, path: Path, *, halved: bool = False) -> None:
    """Writes a model in OpenVINO's format: the graph to `path`, weights beside it as ``.bin``.

    Args:
        model: a serialised ONNX model.
        path: ending in ``.xml``.
        halved: whether weights are kept in 16 bits.

    Raises:
        InvalidInputError: OpenVINO refuses the model.
        UnavailableError: the package is not installed.
    """
    OpenVino().require()
    import openvino

    proto = parse_onnx(model)
    with _refusals("model", proto):
        openvino.save_model(_core().read_model(model), path, compress_to_fp16=halved)


def open_file(
    path: Path,
) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """A file that `write_file` wrote, ready to run in float32 arithmetic.

    Args:
        path: of the ``.xml`` file.

    Returns:
        From the first input to the first output.

    Raises:
        InvalidInputError: OpenVINO cannot read it; or, of what is returned, not run it.
    """
    import numpy as np

    with _refusals(str(path)):
        compiled = _core().compile_model(path, _DEVICE, _options(RuntimeSettings()))
        request = compiled.create_infer_request()

    def run(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with _refusals(str(path)):
            return np.array(request.infer({0: images})[0], dtype=np.float32)

    return run
