"""Which kernels a LiteRT file executes, and which of the model's nodes each stands for.

The file's operations go by the names of their outputs, and those tell the modules that they were
exported from: a module for each ONNX node, if they come from `OnnxModule.in_modules`. Names of
several modules mean that operations were merged, or that one was made of what belongs to others;
the first is always right. LiteRT hands operations over to XNNPACK in parts, and executes what is
left in kernels of its own, which its profiler names by their operation's number. What XNNPACK makes
of its parts is aligned with the trace of a run (`devices.xnnpack_kernels`).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from devices.executed_onnx import (
    HEAVY,
    MOVES,
    ExecutedOp,
    ExecutedTensor,
    value_shapes,
    with_what_was_fused,
)
from devices.onnx_files import input_specs
from devices.xnnpack_kernels import TO_LAST, Given, part_kernels

if TYPE_CHECKING:
    import onnx

    from devices.kernel_trace import TraceEvent

__all__ = ["LiteRtFile", "executed_operations"]

_RUNTIME, _NATIVE = "litert", "litert.native"
_STEP = re.compile(r"_step(\d+);")
_KINDS = {
    "CONV_2D": "Conv2d",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2d",
    "TRANSPOSE_CONV": "ConvTranspose2d",
    "FULLY_CONNECTED": "FullyConnected",
    "BATCH_MATMUL": "BatchMatrixMultiply",
    "ADD": "Add",
    "SUB": "Subtract",
    "MUL": "Multiply",
    "DIV": "Div",
    "RELU": "Clamp",
    "RELU6": "Clamp",
    "RELU_N1_TO_1": "Clamp",
    "RELU_0_TO_1": "Clamp",
    "HARD_SWISH": "Hardswish",
    "LOGISTIC": "Sigmoid",
    "TANH": "Tanh",
    "GELU": "Gelu",
    "ELU": "ELU",
    "LEAKY_RELU": "LeakyReLU",
    "PRELU": "PReLU",
    "NEG": "Negate",
    "ABS": "Abs",
    "EXP": "Exp",
    "LOG": "Log",
    "FLOOR": "Floor",
    "CEIL": "Ceiling",
    "SQRT": "SquareRoot",
    "RSQRT": "ReciprocalSquareRoot",
    "SQUARE": "Square",
    "SQUARED_DIFFERENCE": "SquaredDifference",
    "MAXIMUM": "Maximum",
    "MINIMUM": "Minimum",
    "AVERAGE_POOL_2D": "AvgPooling2d",
    "MAX_POOL_2D": "MaxPooling2d",
    "MEAN": "Mean",
    "SUM": "Sum",
    "SOFTMAX": "Softmax",
    "TRANSPOSE": "StaticTranspose",
    "RESHAPE": "StaticReshape",
    "SQUEEZE": "StaticReshape",
    "EXPAND_DIMS": "StaticReshape",
    "SLICE": "StaticSlice",
    "STRIDED_SLICE": "StaticSlice",
    "PAD": "StaticConstantPad",
    "RESIZE_BILINEAR": "StaticResizeBilinear2D",
    "CONCATENATION": "Concatenate2",
    "CAST": "Convert",
    "QUANTIZE": "Convert",
    "DEQUANTIZE": "Convert",
}
"""LiteRT's operation -> what XNNPACK calls it, see `devices.xnnpack_kernels`; one that is not here
goes by its own name."""
_TO_FIRST = (0, 3, 1, 2)
_HEAVY = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL")
_ARITHMETIC = ("ADD", "SUB", "MUL", "DIV")
_ACTIVATIONS = ("Relu", "Clip")
_PADDING = ("PAD", "PADV2", "MIRROR_PAD")
_NATIVE_KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "PAD": ("Pad", ("Pad",)),
    "PADV2": ("Pad", ("Pad",)),
    "RESHAPE": ("Reshape", MOVES),
    "SQUEEZE": ("Squeeze", MOVES),
    "EXPAND_DIMS": ("Unsqueeze", MOVES),
    "TRANSPOSE": ("Transpose", ("Transpose",)),
    "GATHER": ("Gather", ("Gather",)),
    "GATHER_ND": ("Gather", ("Gather",)),
    "SLICE": ("Slice", ("Slice", "Gather")),
    "STRIDED_SLICE": ("Slice", ("Slice", "Gather")),
    "SPLIT": ("Split", ("Split",)),
    "PACK": ("Concat", ("Concat",)),
    "CONCATENATION": ("Concat", ("Concat",)),
    "BROADCAST_TO": ("Expand", ("Expand",)),
    "TILE": ("Tile", ("Tile",)),
    "SELECT": ("Where", ("Where",)),
    "SELECT_V2": ("Where", ("Where",)),
    "GREATER": ("Greater", ("Greater",)),
    "ADD": ("Add", ("Add", "Sum")),
    "MUL": ("Mul", ("Mul",)),
    "SUB": ("Sub", ("Sub",)),
    "DIV": ("Div", ("Div",)),
    "MEAN": ("ReduceMean", ("ReduceMean", "GlobalAveragePool")),
    "SUM": ("ReduceSum", ("ReduceSum",)),
    "CAST": ("Cast", ("Cast",)),
}
"""LiteRT's own kernels: the ONNX operation that each is called where it covers nothing, and the
covered operations whose work it may be called after. One that is not here is called after what it
covers."""


def executed_operations(
    model: onnx.ModelProto,
    steps: Sequence[str],
    file: LiteRtFile,
    events: Sequence[TraceEvent],
) -> tuple[ExecutedOp, ...]:
    """The kernels of a file in the order of execution.

    Args:
        model: the original, with a name on every node and fixed shapes.
        steps: name of the ONNX node of each module that the file was exported from.
        file: the file.
        events: of one run, see `devices.litert_profiler`.
    """
    found = _Reader(model, steps, file).operations(events)
    return tuple(with_what_was_fused(model, found))


@dataclass(frozen=True, slots=True)
class _Operation:
    """One operation of the file; tensors by their numbers, without those left out."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    activated: bool = False

    @property
    def plain_name(self) -> str:
        """Its kind, as other libraries write such names."""
        return self.kind.title().replace("_", "")


class LiteRtFile:
    """The operations of a file, and which of them XNNPACK executes.

    Args:
        data: the file.
        parts: inputs and outputs of each part that XNNPACK was given, as numbers of tensors, in the
            order of execution.
    """

    def __init__(
        self, data: bytes, parts: Sequence[tuple[Sequence[int], Sequence[int]]] = ()
    ) -> None:
        from ai_edge_litert import schema_py_generated as schema

        model = schema.ModelT.InitFromPackedBuf(data, 0)
        graph = model.subgraphs[0]
        self.parts = [(set(map(int, a)), [int(b) for b in bs]) for a, bs in parts]
        self.tensors = list(graph.tensors)
        names = {
            value: name
            for name, value in vars(schema.BuiltinOperator).items()
            if isinstance(value, int)
        }
        types = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
        self.dtypes = [_DTYPES.get(types[tensor.type], "int8") for tensor in self.tensors]
        self._buffers = model.buffers
        filled = [b.data is not None and len(b.data) > 0 for b in model.buffers]
        self.constant = [filled[tensor.buffer] for tensor in self.tensors]
        self.operations = [
            _Operation(
                names[max(code.builtinCode, code.deprecatedBuiltinCode)],
                tuple(int(i) for i in operation.inputs if i >= 0),
                tuple(int(i) for i in operation.outputs),
                bool(getattr(operation.builtinOptions, "fusedActivationFunction", 0)),
            )
            for operation in graph.operators
            for code in [model.operatorCodes[operation.opcodeIndex]]
        ]
        signature = model.signatureDefs[0]
        self.inputs = _in_order(signature.inputs)
        self.outputs = _in_order(signature.outputs)

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Shape of a tensor, as the file has it."""
        shape = self.tensors[tensor].shape
        return () if shape is None else tuple(int(side) for side in shape)

    def numbers(self, tensor: int) -> tuple[int, ...]:
        """What a constant tensor of 32-bit integers holds, such as an order of axes."""
        held = self._buffers[self.tensors[tensor].buffer].data
        data = b"" if held is None else bytes(held)
        return struct.unpack(f"<{len(data) // 4}i", data) if data else ()

    def name(self, tensor: int) -> str:
        """Name of a tensor."""
        return str(self.tensors[tensor].name.decode(errors="replace"))

    @cached_property
    def delegated(self) -> list[int]:
        """Operations that XNNPACK executes, part by part."""
        maker = {out: n for n, own in enumerate(self.operations) for out in own.outputs}
        found: list[int] = []
        for inputs, outputs in self.parts:
            own: set[int] = set()
            waiting = list(outputs)
            while waiting:
                tensor = waiting.pop()
                place = maker.get(tensor)
                if tensor in inputs or place is None or place in own:
                    continue
                own.add(place)
                waiting += self.operations[place].inputs
            found += sorted(own)
        return list(dict.fromkeys(found))


_DTYPES = {
    "FLOAT32": "float32",
    "FLOAT16": "float16",
    "BFLOAT16": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT8": "int8",
    "FLOAT64": "float64",
}
_TRAILING = re.compile(r"(\d+)$")


def _in_order(entries: Sequence[Any]) -> list[int]:
    """Tensors of a signature by the numbers behind their names (args_0, args_1, …)."""

    def place(entry: Any) -> int:
        found = _TRAILING.search(entry.name.decode())
        return int(found.group(1)) if found else 0

    return [int(entry.tensorIndex) for entry in sorted(entries, key=place)]


@dataclass
class _Reader:
    """Reads one file along one trace."""

    model: onnx.ModelProto
    steps: Sequence[str]
    file: LiteRtFile
    tensors: dict[int, ExecutedTensor] = field(default_factory=dict)
    last: set[int] = field(default_factory=set)
    """Tensors whose channels are last in the file, and whose shape is told as ONNX has it."""
    perms: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """By what is made, the order of axes of what only changes the layout."""

    def __post_init__(self) -> None:
        self.shapes = value_shapes(self.model)
        self.nodes = {node.name: node for node in self.model.graph.node}
        self.maker = {out: node for node in self.model.graph.node for out in node.output if out}

    def operations(self, events: Sequence[TraceEvent]) -> list[ExecutedOp]:
        """The kernels, without those nodes that have none."""
        file = self.file
        for number, (name, _, _) in zip(file.inputs, input_specs(self.model), strict=True):
            self._place(number, name, self.shapes.get(name), inherits=True)
        covers = self._covers()
        for place, operation in enumerate(file.operations):
            moved = [self.nodes[name].op_type == "Transpose" for name in covers[place]]
            perm = () if any(moved) else self._reorder(operation)
            if perm:
                covers[place] = ()
            self._make(operation, covers[place], perm)
        given = [
            one
            for place in file.delegated
            for one in self._given(file.operations[place], covers[place])
        ]
        kernels, alias = part_kernels(given, [e for e in events if e.delegated], _RUNTIME)
        by_name = {kernel.name: kernel for kernel in kernels}
        found = []
        for event in events:
            if event.name in by_name:
                found.append(by_name[event.name])
            elif not event.delegated:
                place = int(event.op.rpartition("@")[2])
                found.append(self._native(event, file.operations[place], covers[place], alias))
        return found

    def _reorder(self, operation: _Operation) -> tuple[int, ...]:
        """The order of axes by which an operation changes the layout of images, if it does."""
        if operation.kind != "TRANSPOSE":
            return ()
        source, order = operation.inputs
        perm = self.file.numbers(order)
        return perm if perm == (_TO_FIRST if source in self.last else TO_LAST) else ()

    def _given(self, operation: _Operation, covers: tuple[str, ...]) -> Iterator[Given]:
        """One operation as XNNPACK is given it; what is not of a layer has its activation apart."""
        for number in operation.outputs:
            made = Given(
                kind=_KINDS.get(operation.kind, operation.plain_name),
                covers=covers,
                inputs=tuple(self._tensor(number) for number in operation.inputs),
                output=self.tensors[number],
                channels_last=any(n in self.last for n in (*operation.inputs, number)),
                perm=self.perms.get(number, ()),
            )
            if not (operation.activated and operation.kind in _ARITHMETIC):
                yield made
                continue
            behind = [name for name in covers if self.nodes[name].op_type in _ACTIVATIONS]
            before = replace(made.output, name=f"{made.output.name}/before")
            own = tuple(name for name in covers if name not in behind)
            yield replace(made, covers=own, output=before)
            yield replace(made, kind="Clamp", covers=tuple(behind), inputs=(before,))

    def _native(
        self,
        event: TraceEvent,
        operation: _Operation,
        covers: tuple[str, ...],
        alias: Mapping[str, ExecutedTensor],
    ) -> ExecutedOp:
        """One of LiteRT's own kernels."""
        fallback, allowed = _NATIVE_KINDS.get(operation.kind, ("", ()))
        inputs = [self._tensor(number) for number in operation.inputs]
        return ExecutedOp(
            name=event.name,
            domain=_NATIVE,
            covers=covers,
            fallback=fallback or operation.plain_name,
            allowed=frozenset(allowed),
            inputs=tuple(alias.get(tensor.name, tensor) for tensor in inputs),
            outputs=tuple(self.tensors[number] for number in operation.outputs),
        )

    def _covers(self) -> list[tuple[str, ...]]:
        """ONNX nodes that each operation stands for."""
        named = [
            [
                self.steps[int(number)]
                for output in operation.outputs
                for number in _STEP.findall(self.file.name(output))
                if int(number) < len(self.steps)
            ]
            for operation in self.file.operations
        ]
        # An operation has its own name first, and what else has an operation of its own is not its.
        # But a layer's own may be behind what was merged with it (an activation, the scales of a
        # norm in front), and padding goes by the name of the layer that it stands in front of.
        first: dict[str, set[int]] = {}
        for place, (names, operation) in enumerate(zip(named, self.file.operations, strict=True)):
            if names and operation.kind not in _PADDING:
                first.setdefault(names[0], set()).add(place)
        covers = []
        for place, (names, operation) in enumerate(zip(named, self.file.operations, strict=True)):
            own = names[:1]
            if operation.kind in _HEAVY:
                own = [n for n in names if self.nodes[n].op_type in HEAVY][:1] or own
            covers.append(
                [
                    name
                    for name in dict.fromkeys((*own, *names))
                    if name in own
                    or (
                        not first.get(name, set()) - {place}
                        and not (own and self.nodes[name].op_type in HEAVY)
                    )
                ]
            )
        told = {name for names in covers for name in names}
        for name, number in zip(
            (value.name for value in self.model.graph.output), self.file.outputs, strict=False
        ):
            # What makes an output is called after the output.
            for place, operation in enumerate(self.file.operations):
                if number in operation.outputs and not covers[place]:
                    covers[place] = list(self._untold(name, told))
        # A slice is one of several outputs: which one it is does not follow from its node.
        several = {n.name for n in self.model.graph.node if sum(map(bool, n.output)) > 1}
        return [tuple(name for name in names if name not in several) for names in covers]

    def _untold(self, output: str, told: set[str]) -> Iterator[str]:
        """The node that makes an output, and those in front that no operation is called after."""
        known = set(self.steps)
        waiting, seen = [output], set()
        while waiting:
            node = self.maker.get(waiting.pop())
            if node is None or node.name in seen or node.name in told or node.name not in known:
                continue
            seen.add(node.name)
            yield node.name
            waiting += node.input

    def _make(
        self, operation: _Operation, covers: Sequence[str], perm: tuple[int, ...] = ()
    ) -> None:
        """Puts down what an operation makes.

        Args:
            operation: of the file.
            covers: ONNX nodes that it stands for.
            perm: order of axes, if it only changes the layout.
        """
        constant = bool(operation.inputs) and all(
            self._tensor(number).constant for number in operation.inputs
        )
        inherits = any(number in self.last for number in operation.inputs)
        if perm:
            (number,) = operation.outputs
            self.perms[number] = perm
            source = self._tensor(operation.inputs[0]).shape
            self._place(number, f"t{number}", source, perm == TO_LAST, constant)
            return
        made = self.nodes.get(covers[0]) if covers else None
        for number in operation.outputs:
            shape = self.shapes.get(made.output[0]) if made is not None else None
            self._place(number, f"t{number}", shape, inherits, constant)

    def _place(
        self,
        number: int,
        name: str,
        logical: tuple[int, ...] | None,
        inherits: bool,
        constant: bool = False,
    ) -> None:
        """Puts down a tensor.

        Args:
            number: in the file.
            name: that it gets.
            logical: shape of what it holds in the model, or of what it is a part of; None where
                that is not known.
            inherits: whether it is made of images whose channels are last.
            constant: whether it is known before the network runs.
        """
        shape = self.file.shape(number)
        if len(shape) == 4:
            first = (shape[0], shape[3], shape[1], shape[2])
            last = inherits
            if logical is not None and (shape == logical) != (first == logical):
                last = first == logical
            if last:
                self.last.add(number)
                shape = first
        if logical is not None and math.prod(shape) == math.prod(logical):
            shape = logical  # the same numbers, such as means without the axes they are over
        self.tensors[number] = ExecutedTensor(name, shape, constant, self.file.dtypes[number])

    def _tensor(self, number: int) -> ExecutedTensor:
        if number not in self.tensors:
            shape, dtype = self.file.shape(number), self.file.dtypes[number]
            constant = self.file.constant[number]
            self.tensors[number] = ExecutedTensor(f"t{number}", shape, constant, dtype)
        return self.tensors[number]
