"""What TensorRT says of an engine: its inspector's JSON, and its profiler's reports.

Nothing here needs a GPU or TensorRT itself. The formats are those of NVIDIA's documentation:
`EngineInspector.get_engine_information(LayerInformationFormat.JSON)` of an engine that was built
with `ProfilingVerbosity.DETAILED`, in version 10 with ``Bindings`` and ``Format/Datatype``, in
version 11 with ``I/O Tensors``; and `IProfiler.report_layer_time(name, ms)`, called for every layer
of every run. A layer's ``Metadata`` names the nodes of the ONNX model that it does the work of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devices.errors import InvalidInputError
from devices.executed_onnx import ExecutedOp, ExecutedTensor, executed_onnx
from devices.runtimes.base import NodeTiming

if TYPE_CHECKING:
    import onnx

__all__ = ["EngineLayer", "EngineTensor", "engine_layers", "executed_by_engine", "layer_timings"]

_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_DTYPES = (
    (re.compile(r"\b(half|fp16|float16)\b", re.I), "float16"),
    (re.compile(r"\b(bf16|bfloat16)\b", re.I), "float16"),
    (re.compile(r"\b(int8)\b", re.I), "int8"),
    (re.compile(r"\b(uint8)\b", re.I), "uint8"),
    (re.compile(r"\b(bool)\b", re.I), "bool"),
    (re.compile(r"\b(int64)\b", re.I), "int64"),
    (re.compile(r"\b(int32)\b", re.I), "int32"),
)
_UNTIMED = frozenset({"NoOp", "Constant", "ShapeHostToDevice", "signal", "wait"})
"""Kinds of layers that pass their input on and take no time of their own."""
_REFORMATS = frozenset({"Reformat", "NoOpReformat"})
_KINDS: Mapping[str, str] = {
    "Convolution": "Conv",
    "Deconvolution": "ConvTranspose",
    "MatrixMultiply": "MatMul",
    "FullyConnected": "Gemm",
    "Pooling": "AveragePool",
    "Reduce": "ReduceMean",
    "SoftMax": "Softmax",
    "Softmax": "Softmax",
    "Shuffle": "Reshape",
    "Slice": "Slice",
    "Concatenation": "Concat",
    "Gather": "Gather",
    "Resize": "Resize",
    "Normalization": "LayerNormalization",
    "PointWiseV2": "Mul",
    "PointWise": "Mul",
    "ElementWise": "Mul",
    "Activation": "Relu",
    "Scale": "Mul",
    "Cast": "Cast",
}
"""Kind of layer -> the ONNX operation where it names no node of the model."""


@dataclass(frozen=True, slots=True)
class EngineTensor:
    """A tensor of an engine.

    Attributes:
        name: unique in the engine.
        shape: logical, whatever the layout.
        dtype: numpy's name of the element type; bfloat16 counts as float16.
        layout: as the inspector words it; "" where it does not say.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """A layer of an engine, as it is executed.

    Attributes:
        name: as the profiler reports it.
        kind: of layer; the kind of parameters where the layer is a generic one.
        nodes: names of the nodes of the ONNX model whose work it does.
        inputs: what it reads, weights left out.
        outputs: what it makes.
        tactic: name of the kernel that was chosen, or "".
        weights: numbers in its weights and in its bias; 0 where there are none.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    tactic: str
    weights: tuple[int, int]


def engine_layers(information: str) -> tuple[EngineLayer, ...]:
    """The layers of an engine in the order of execution.

    Args:
        information: what the engine inspector gave, as JSON.

    Raises:
        InvalidInputError: it is no such JSON, or tells layers' names only.
    """
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            "engine: what its inspector says is no JSON with layers; build it again."
        ) from error
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise InvalidInputError(
            "engine: its inspector tells names of layers only; build it with detailed profiling "
            "verbosity."
        )
    try:
        return tuple(_layer(layer) for layer in layers)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInputError(
            f"engine: a layer of its inspector's JSON cannot be read ({error!r}); report the "
            "version of TensorRT."
        ) from error


def layer_timings(
    layers: Sequence[EngineLayer], reports: Sequence[Sequence[tuple[str, float]]]
) -> dict[str, NodeTiming]:
    """Times by layer from a profiler's reports.

    Args:
        layers: of the engine.
        reports: for each run, the name and milliseconds of each report in the order in which they
            came. A layer that is reported several times in a run took their sum.

    Returns:
        For each layer that was reported in every run one time for each run, in the order of
        execution; reports of names that no layer has (copies of inputs, say) come last.
    """
    sums: list[dict[str, float]] = []
    for run in reports:
        one: dict[str, float] = {}
        for name, ms in run:
            one[name] = one.get(name, 0.0) + float(ms)
        sums.append(one)
    kinds = {layer.name: layer.kind for layer in layers}
    names = dict.fromkeys((*kinds, *(name for one in sums for name in one)))
    return {
        name: NodeTiming(kinds.get(name, "other"), tuple(one[name] for one in sums))
        for name in names
        if sums and all(name in one for one in sums)
    }


def executed_by_engine(model: onnx.ModelProto, layers: Sequence[EngineLayer]) -> bytes:
    """What an engine executes of a model, as serialised ONNX; see `CompiledGraph.executed`.

    Args:
        model: the original, with fixed shapes and a name on every node.
        layers: of its engine.
    """
    passed: dict[str, ExecutedTensor] = {}
    operations = []
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    by_name = {node.name: node for node in model.graph.node}
    for layer in layers:
        inputs = [passed.get(t.name, _executed_tensor(t)) for t in layer.inputs]
        outputs = [_executed_tensor(tensor) for tensor in layer.outputs]
        if layer.kind in _UNTIMED:
            if len(inputs) == 1:
                passed.update({tensor.name: inputs[0] for tensor in outputs})
            continue
        own = [by_name[name] for name in layer.nodes if name in by_name]
        weights = [
            ExecutedTensor(name, shapes[name], constant=True)
            for node in own
            if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
            for name in node.input[1:]
            if name in shapes
        ]
        plain = all("linear" in tensor.layout.lower() for tensor in layer.outputs if tensor.layout)
        reformat = layer.kind in _REFORMATS
        fallback = _KINDS.get(layer.kind, layer.kind)
        if reformat:
            fallback = "ReorderOutput" if plain else "ReorderInput"
        operations.append(
            ExecutedOp(
                name=layer.name,
                domain="tensorrt" if plain and not reformat else "tensorrt.packed",
                covers=() if reformat else layer.nodes,
                fallback=fallback,
                inputs=(*inputs, *weights),
                outputs=tuple(outputs),
            )
        )
    return executed_onnx(model, operations)


def _layer(raw: Mapping[str, Any]) -> EngineLayer:
    kind = str(raw.get("ParameterType") or raw.get("LayerType", ""))
    return EngineLayer(
        name=str(raw["Name"]),
        kind=kind,
        nodes=tuple(dict.fromkeys(_ONNX_NODE.findall(str(raw.get("Metadata", ""))))),
        inputs=tuple(_tensor(tensor) for tensor in raw.get("Inputs", ())),
        outputs=tuple(_tensor(tensor) for tensor in raw.get("Outputs", ())),
        tactic=str(raw.get("TacticName", "")),
        weights=(_count(raw.get("Weights")), _count(raw.get("Bias"))),
    )


def _tensor(raw: Mapping[str, Any]) -> EngineTensor:
    # Version 10 has one field for both; version 11 tells them apart.
    layout = str(raw.get("Format/Datatype", raw.get("Format", "")))
    said = f"{raw.get('DataType', raw.get('Datatype', ''))} {layout}"
    dtype = next((name for pattern, name in _DTYPES if pattern.search(said)), "float32")
    shape = tuple(int(size) for size in raw.get("Dimensions", ()))
    return EngineTensor(str(raw["Name"]), shape, dtype, layout)


def _count(raw: object) -> int:
    return int(raw.get("Count", 0)) if isinstance(raw, Mapping) else 0


def _executed_tensor(tensor: EngineTensor) -> ExecutedTensor:
    return ExecutedTensor(tensor.name, tensor.shape, dtype=tensor.dtype)
