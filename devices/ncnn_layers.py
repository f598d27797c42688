"""The layers of a converted ncnn network, and which of the model's nodes each stands for.

pnnx keeps the order and the wiring of the model, but no names. So the layers are walked along the
model: a layer stands for a node of its kind (with a layer's own sizes) that reads what the layer
reads, and for an activation behind it that the layer says it has. Where that finds nothing, as
where pnnx made one layer of a pattern of nodes, the next node of that kind is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from devices.executed_onnx import (
    HEAVY,
    LINEAR,
    MOVES,
    ExecutedOp,
    ExecutedTensor,
    value_shapes,
    with_what_was_fused,
)
from devices.onnx_files import input_specs

if TYPE_CHECKING:
    import onnx

__all__ = ["REFERENCE", "Layer", "executed_operations", "read_layers", "timed_layers"]

_RUNTIME = "ncnn"
REFERENCE = "Split"
"""A layer whose tops all refer to what it reads."""
_UNTIMED = ("Input", REFERENCE, "MemoryData", "Noop")
"""Layers that compute nothing."""
_SEEN_THROUGH = (*MOVES, "Identity", "Dropout")
"""Nodes that pnnx leaves out where they change nothing for the layer behind."""
_KINDS: Mapping[str, tuple[str, ...]] = {
    "Convolution": ("Conv",),
    "ConvolutionDepthWise": ("Conv",),
    "Convolution1D": ("Conv",),
    "ConvolutionDepthWise1D": ("Conv",),
    "Deconvolution": ("ConvTranspose",),
    "DeconvolutionDepthWise": ("ConvTranspose",),
    "InnerProduct": (*LINEAR, "Conv"),
    "Gemm": LINEAR,
    "MatMul": LINEAR,
    "MultiHeadAttention": ("MatMul",),
    "SDPA": ("MatMul",),
    "ReLU": ("Relu", "LeakyRelu"),
    "Clip": ("Clip", "Relu"),
    "Sigmoid": ("Sigmoid",),
    "Swish": ("Sigmoid", "Mul"),
    "HardSwish": ("HardSwish",),
    "HardSigmoid": ("HardSigmoid",),
    "TanH": ("Tanh",),
    "GELU": ("Gelu", "Erf"),
    "ELU": ("Elu",),
    "SELU": ("Selu",),
    "PReLU": ("PRelu",),
    "Mish": ("Mish", "Tanh"),
    "Eltwise": ("Add", "Sum", "Mul", "Max"),
    "Concat": ("Concat",),
    "Slice": ("Split", "Slice"),
    "Crop": ("Slice", "Gather"),
    "Reshape": MOVES,
    "Flatten": MOVES,
    "Squeeze": MOVES,
    "ExpandDims": MOVES,
    "Permute": ("Transpose",),
    "ShuffleChannel": ("Transpose",),
    "Softmax": ("Softmax",),
    "LayerNorm": ("LayerNormalization",),
    "GroupNorm": ("GroupNormalization", "InstanceNormalization"),
    "InstanceNorm": ("InstanceNormalization",),
    "BatchNorm": ("BatchNormalization",),
    "Padding": ("Pad",),
    "Interp": ("Resize",),
    "Reduction": ("ReduceMean", "ReduceSum", "ReduceMax", "GlobalAveragePool"),
    "PixelShuffle": ("DepthToSpace",),
    "Reorg": ("SpaceToDepth",),
}
"""Kind of a layer -> the operations of the model whose work it may do, the usual one first.

One that is not here goes by its own name.
"""
_BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sub", "Div", "Pow")
"""Operations of a BinaryOp layer, by its parameter 0; the last three swap what they read."""
_WITH_ACTIVATION = ("Convolution", "Deconvolution", "InnerProduct", "Gemm")
"""How kinds of layers begin that may have an activation: their parameter 9."""
_ACTIVATIONS = ("Relu", "LeakyRelu", "Clip", "Sigmoid", "Mish", "HardSwish")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the converted network.

    Attributes:
        kind: as ncnn calls it.
        name: of its own.
        bottoms: what it reads.
        tops: what it makes.
        parameters: numbers by their place; lists, and what is no number, are left out.
        place: in the file.
    """

    kind: str
    name: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    parameters: Mapping[int, float]
    place: int

    @property
    def label(self) -> str:
        """What its times go by."""
        return f"{self.place}:{self.kind}"


def read_layers(text: str) -> tuple[Layer, ...]:
    """The layers of a network, from ncnn's text.

    Raises:
        ValueError: it is no such text.
    """
    found = []
    for place, line in enumerate(text.splitlines()[2:]):
        kind, name, readers, makers, *rest = line.split()
        reads, makes = int(readers), int(makers)
        blobs, options = rest[: reads + makes], rest[reads + makes :]
        parameters: dict[int, float] = {}
        for option in options:
            key, _, value = option.partition("=")
            if "," not in value and int(key) >= 0:
                parameters[int(key)] = float(value)
        found.append(
            Layer(kind, name, tuple(blobs[:reads]), tuple(blobs[reads:]), parameters, place)
        )
    return tuple(found)


def timed_layers(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Those that compute something, in the order of execution."""
    return tuple(layer for layer in layers if layer.kind not in _UNTIMED)


def executed_operations(
    model: onnx.ModelProto, layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[ExecutedOp, ...]:
    """The layers that are timed, in the order of execution.

    Args:
        model: the original, with a name on every node and fixed shapes.
        layers: of the converted network.
        shapes: of what each timed layer makes first, with the batch, by the name that it has there.
    """
    return tuple(with_what_was_fused(model, _Walk(model, shapes).operations(layers)))


@dataclass
class _Walk:
    """Walks a model along the layers."""

    model: onnx.ModelProto
    shapes: Mapping[str, tuple[int, ...]]
    used: set[str] = field(default_factory=set)
    tensors: dict[str, ExecutedTensor] = field(default_factory=dict)
    """What a blob is, in the executed network."""
    values: dict[str, str] = field(default_factory=dict)
    """The model's tensor that a blob holds, where that is known."""

    def __post_init__(self) -> None:
        self.sizes: dict[str, tuple[int, ...]] = {
            t.name: tuple(t.dims) for t in self.model.graph.initializer
        }
        self.told = value_shapes(self.model)
        self.nodes = list(self.model.graph.node)
        self.maker = {out: node for node in self.nodes for out in node.output if out}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    def operations(self, layers: Sequence[Layer]) -> list[ExecutedOp]:
        """The kernels, without those nodes that have none."""
        inputs = [name for name, _, _ in input_specs(self.model)]
        found = []
        for layer in layers:
            if layer.kind == "Input" and inputs:
                name = inputs.pop(0)
                self.values[layer.tops[0]] = name
                self.tensors[layer.tops[0]] = ExecutedTensor(name, self.told.get(name, ()))
            elif layer.kind in _UNTIMED:
                for top in layer.tops if layer.bottoms else ():
                    self.tensors[top] = self._tensor(layer.bottoms[0])
                    if layer.bottoms[0] in self.values:
                        self.values[top] = self.values[layer.bottoms[0]]
            else:
                found.append(self._operation(layer))
        return found

    def _operation(self, layer: Layer) -> ExecutedOp:
        inputs = tuple(self._tensor(name) for name in layer.bottoms)
        kinds = self._kinds(layer)
        node = self._node(layer, kinds)
        covers: list[onnx.NodeProto] = []
        if node is not None:
            in_front = [one for _, passed in self._sources(node) for one in passed]
            covers = [*in_front, node, *self._behind(layer, node)]
            self.used |= {one.name for one in covers}
            for top, name in zip(layer.tops, covers[-1].output, strict=False):
                self.values[top] = name
        for top in layer.tops:
            shape = self.told.get(self.values.get(top, ""), self.shapes.get(top, ()))
            self.tensors[top] = ExecutedTensor(f"b{top}", shape)
        weights = tuple(
            ExecutedTensor(name, self.sizes[name], constant=True)
            for name in (node.input if node is not None else ())
            if name in self.sizes
        )
        several = node is not None and sum(map(bool, node.output)) > 1
        return ExecutedOp(
            name=layer.label,
            domain=_RUNTIME,
            covers=() if several else tuple(one.name for one in covers),
            fallback=kinds[0],
            allowed=frozenset(kinds),
            inputs=(*inputs, *weights),
            outputs=tuple(self.tensors[top] for top in layer.tops),
        )

    def _kinds(self, layer: Layer) -> tuple[str, ...]:
        if layer.kind == "BinaryOp" and (kind := int(layer.parameters.get(0, 0))) < len(_BINARY):
            return (_BINARY[kind],)
        if layer.kind == "Pooling":
            if layer.parameters.get(4):
                return ("GlobalAveragePool", "ReduceMean", "GlobalMaxPool", "AveragePool")
            return ("AveragePool",) if layer.parameters.get(0) else ("MaxPool",)
        return _KINDS.get(layer.kind, (layer.kind,))

    def _node(self, layer: Layer, kinds: Sequence[str]) -> onnx.NodeProto | None:
        """The node that a layer stands for."""
        sources = sorted(self.values.get(name, "?") for name in layer.bottoms)
        fitting = [
            node
            for node in self.nodes
            if node.op_type in kinds and node.name not in self.used and self._fits(layer, node)
        ]
        reading = (
            node for node in fitting if sorted(name for name, _ in self._sources(node)) == sources
        )
        return next(reading, next(iter(fitting), None))

    def _fits(self, layer: Layer, node: onnx.NodeProto) -> bool:
        """Whether a node has the sizes of a layer with weights."""
        if node.op_type not in HEAVY or 0 not in layer.parameters:
            return True
        weights = [self.sizes[name] for name in node.input if name in self.sizes]
        if not weights or layer.kind in LINEAR:
            return True
        shape, outputs = weights[0], int(layer.parameters[0])
        if node.op_type == "Conv":
            if layer.kind == "InnerProduct":
                return shape[0] == outputs
            columns = int(layer.parameters.get(1, 1))
            rows = int(layer.parameters.get(11, columns))
            window = (rows, columns) if len(shape) == 4 else (columns,)
            return bool(shape[0] == outputs and shape[2:] == window)
        return outputs in shape

    def _sources(self, node: onnx.NodeProto) -> Iterator[tuple[str, list[onnx.NodeProto]]]:
        """What a node reads, seen through what pnnx leaves out, and what that is."""
        for name in node.input:
            if not name or name in self.sizes:
                continue
            passed: list[onnx.NodeProto] = []
            maker = self.maker.get(name)
            while (
                maker is not None and maker.op_type in _SEEN_THROUGH and maker.name not in self.used
            ):
                passed.append(maker)
                name = maker.input[0]
                maker = self.maker.get(name)
            if maker is None or maker.op_type != "Constant":
                yield name, passed

    def _behind(self, layer: Layer, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The activation that a layer has of its own."""
        if not layer.kind.startswith(_WITH_ACTIVATION) or not layer.parameters.get(9):
            return
        after = self.readers.get(node.output[0], [])
        while len(after) == 1 and after[0].op_type in _SEEN_THROUGH:
            after = self.readers.get(after[0].output[0], [])
        if len(after) == 1 and after[0].op_type in _ACTIVATIONS:
            yield after[0]

    def _tensor(self, blob: str) -> ExecutedTensor:
        known = self.tensors.get(blob)
        return known or ExecutedTensor(f"b{blob}", self.shapes.get(blob, ()))
