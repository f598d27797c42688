"""Which kernels an ExecuTorch program executes, and which of the model's nodes each stands for.

A program calls kernels of ExecuTorch's own and XNNPACK, which got a part of the graph each time.
What it was given is known (`PartGraph`): operations in order, each with the number of the PyTorch
operation that it comes from, and that one carries the ONNX node's name. What it makes of that shows
only in the trace of a run: names of kernels, in order, without saying where they come from. The two
are aligned: in order, kind by kind. What has no kernel was fused into what made its input, or moves
nothing; a kernel without an operation belongs to the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from devices.executed_onnx import ExecutedOp, ExecutedTensor

if TYPE_CHECKING:
    import onnx

    from devices.etdump import TraceEvent

__all__ = ["NODE_KEY", "executed_operations"]

NODE_KEY = "autospace.onnx"
"""Where a PyTorch operation carries the name of its ONNX node, below "custom" in its metadata."""

_PLAIN, _CHANNELS_LAST, _NATIVE = "executorch", "executorch.nhwc", "executorch.native"
_DELEGATE = "delegate"
_TO_LAST = (0, 2, 3, 1)
_NO_VALUE = 0xFFFFFFFF
_TYPES = {
    **dict.fromkeys(("fp32", "pfp32"), "float32"),
    **dict.fromkeys(("fp16", "bf16"), "float16"),
    **dict.fromkeys(("quint8",), "uint8"),
    **dict.fromkeys(("int32", "qint32", "qcint32"), "int32"),
}
"""XNNPACK's types by the numpy type of their size; whatever else is quantised is int8."""

_LINEAR = ("Gemm", "MatMul")
_MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_KINDS: Mapping[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "Conv2d": (("Convolution", "Fully Connected"), "Conv", ("Conv",)),
    "DepthwiseConv2d": (("Convolution", "Fully Connected"), "Conv", ("Conv",)),
    "ConvTranspose2d": (("Deconvolution",), "ConvTranspose", ("ConvTranspose",)),
    "FullyConnected": (("Fully Connected", "Dynamic Fully Connected"), "Gemm", _LINEAR),
    "BatchMatrixMultiply": (("Batch Matrix Multiply",), "MatMul", _LINEAR),
    "Add": (("Add",), "Add", ("Add", "Sum")),
    "Subtract": (("Subtract",), "Sub", ("Sub",)),
    "Multiply": (("Multiply",), "Mul", ("Mul",)),
    "Div": (("Divide",), "Div", ("Div",)),
    "Clamp": (("Clamp",), "Clip", ("Clip", "Relu")),
    "Hardswish": (("HardSwish",), "HardSwish", ("HardSwish",)),
    "Negate": (("Negate",), "Neg", ("Neg",)),
    "Square": (("Square",), "Mul", ("Mul",)),
    "SquareRoot": (("Square Root",), "Sqrt", ("Sqrt",)),
    "ReciprocalSquareRoot": (("Reciprocal Square Root",), "Sqrt", ("Sqrt",)),
    "Maximum": (("Maximum",), "Max", ("Max",)),
    "Minimum": (("Minimum",), "Min", ("Min",)),
    "Ceiling": (("Ceiling",), "Ceil", ("Ceil",)),
    "LeakyReLU": (("LeakyReLU",), "LeakyRelu", ("LeakyRelu",)),
    "PReLU": (("PReLU",), "PRelu", ("PRelu",)),
    "ELU": (("ELU",), "Elu", ("Elu",)),
    "Tanh": (("TanH",), "Tanh", ("Tanh",)),
    "Gelu": (("GELU",), "Gelu", ("Gelu",)),
    "AvgPooling2d": (("Average Pooling",), "AveragePool", ("AveragePool",)),
    "MaxPooling2d": (("Max Pooling",), "MaxPool", ("MaxPool",)),
    "ArgMaxPooling2d": (("ArgMax Pooling",), "MaxPool", ("MaxPool",)),
    "GlobalAvgPooling2d": (
        ("Mean", "Global Average Pooling"),
        "GlobalAveragePool",
        ("GlobalAveragePool", "ReduceMean"),
    ),
    "StaticTranspose": (("Transpose",), "Transpose", ("Transpose",)),
    "StaticReshape": (("Static Reshape", "Copy"), "Reshape", _MOVES),
    "StaticSlice": (("Slice",), "Slice", ("Slice", "Gather")),
    "StaticConstantPad": (("Constant Pad",), "Pad", ("Pad",)),
    "StaticResizeBilinear2D": (("Resize Bilinear",), "Resize", ("Resize",)),
    "ScaledDotProductAttention": (("Scaled Dot",), "MatMul", ("MatMul",)),
    **{f"Concatenate{i}": (("Copy", "Concatenate"), "Concat", ("Concat",)) for i in range(2, 6)},
    "Convert": (("Convert",), "Cast", ("Cast", "QuantizeLinear", "DequantizeLinear")),
    "Copy": (("Copy",), "Identity", ("Identity",)),
}
"""XNNPACK's operation -> how names of its kernels begin, the ONNX operation that it is called where
it covers nothing, and the covered operations whose work it may be called after. One that is not
here goes by its own name."""
_UNARY = (
    *("Hardswish", "Sigmoid", "Tanh", "ELU", "Gelu", "LeakyReLU", "Exp", "Log", "Abs", "Negate"),
    *("Square", "SquareRoot", "ReciprocalSquareRoot", "Floor", "Ceiling", "Sin", "Cos"),
)
_LOOKED_UP = "Invalid Unary Op"
"""What XNNPACK calls an eight-bit function of one number, which it looks up in a table, with the
conversions on both sides."""
_NATIVE_KINDS = {
    "native_layer_norm": ("LayerNormalization", ("LayerNormalization",)),
    "expand_copy": ("Expand", ("Expand",)),
    "squeeze_copy": ("Squeeze", _MOVES),
    "unsqueeze_copy": ("Unsqueeze", _MOVES),
    "view_copy": ("Reshape", _MOVES),
    "permute_copy": ("Transpose", ("Transpose",)),
    "clone": ("Identity", ("Identity",)),
    "mul": ("Mul", ("Mul",)),
    "add": ("Add", ("Add",)),
    "gt": ("Greater", ("Greater",)),
    "where": ("Where", ("Where",)),
    "bmm": ("MatMul", ("MatMul",)),
}
"""The same for ExecuTorch's own kernels; one that is not here is called after what it covers."""


def executed_operations(
    model: onnx.ModelProto,
    program: Any,
    parts: Mapping[bytes, Any],
    events: Sequence[TraceEvent],
) -> tuple[ExecutedOp, ...]:
    """The kernels of a program in the order of execution.

    Args:
        model: the original, with a name on every node.
        program: the exported program that became ExecuTorch's, after all passes.
        parts: what XNNPACK was given (`XNNGraph`), by its serialised form.
        events: of one run.
    """
    found = list(_Reader(model, program, parts).operations(events))
    return tuple(_with_what_was_fused(model, found))


@dataclass
class _Given:
    """One operation that XNNPACK was given, with tensors."""

    kind: str
    covers: tuple[str, ...]
    inputs: tuple[ExecutedTensor, ...]
    output: ExecutedTensor
    channels_last: bool
    perm: tuple[int, ...]


@dataclass
class _Reader:
    """Walks a program along its trace."""

    model: onnx.ModelProto
    program: Any
    parts: Mapping[bytes, Any]
    tensors: dict[Any, tuple[ExecutedTensor, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.several = {n.name for n in self.model.graph.node if sum(map(bool, n.output)) > 1}

    def operations(self, events: Sequence[TraceEvent]) -> Iterator[ExecutedOp]:
        initial = {tensor.name for tensor in self.model.graph.initializer}
        names = [v.name for v in self.model.graph.input if v.name not in initial]
        given = dict(zip(self.program.graph_signature.user_inputs, names, strict=False))
        calls = []
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                name = given.get(node.name)
                self.tensors[node] = (_of_node(node, name or node.name, constant=name is None),)
            elif node.op == "call_function" and _call_name(node) is not None:
                calls.append(node)
        steps = [list(group) for _, group in groupby(events, key=lambda event: event.instruction)]
        matched = _aligned(
            [(_DELEGATE if own[0].delegated else own[0].op,) for own in steps],
            [str(_call_name(node)) for node in calls],
        )
        events_of = {place: steps[step] for step, place in enumerate(matched) if place is not None}
        for place, node in enumerate(calls):
            own = events_of.get(place, [])
            if _call_name(node) == _DELEGATE:
                yield from self._part(node, own)
            else:
                yield from self._native(node, own)

    def _native(self, node: Any, events: Sequence[TraceEvent]) -> Iterator[ExecutedOp]:
        """One of ExecuTorch's own kernels."""
        inputs = tuple(
            tensor
            for argument in node.all_input_nodes
            if not _is_place(argument)
            for tensor in self._of(argument)
        )
        constant = all(tensor.constant for tensor in inputs)
        outputs = _of_values(node, constant)
        self.tensors[node] = outputs
        places = [argument for argument in node.all_input_nodes if _is_place(argument)]
        for place, tensor in zip(places, outputs, strict=False):
            self.tensors[place] = outputs if len(places) == 1 else (tensor,)
        if constant or not events:
            return
        base = events[0].op.partition(".")[0]
        fallback, allowed = _NATIVE_KINDS.get(base, ("", ()))
        covers = _node_names(node)
        yield ExecutedOp(
            name=events[0].name,
            domain=_NATIVE,
            covers=covers,
            fallback=fallback or base.strip("_").title().replace("_", ""),
            allowed=frozenset(allowed),
            inputs=inputs,
            outputs=outputs[: 1 if len(places) != 1 else None],
        )

    def _part(self, node: Any, events: Sequence[TraceEvent]) -> Iterator[ExecutedOp]:
        """What XNNPACK executes of one part."""
        module = getattr(self.program.graph_module, node.args[0].target)
        graph = self.parts[bytes(module.processed_bytes)]
        arguments = [tensor for argument in node.args[1:] for tensor in self._of(argument)]
        nodes = _nodes_by_handle(module)
        # A slice is one of several outputs: which one it is does not follow from its node.
        nodes = {handle: name for handle, name in nodes.items() if name not in self.several}
        given, made = _given(graph, nodes, arguments, node.name)
        self.tensors[node] = made
        matched = _aligned(
            [_kernel_starts(operation.kind) for operation in given],
            [event.op for event in events],
        )
        place_of = {event: place for place, event in enumerate(matched) if event is not None}
        alias: dict[str, ExecutedTensor] = {}
        done = 0

        def pass_on(until: int) -> None:
            """Operations without a kernel hand on what they read."""
            nonlocal done
            while done < until:
                operation = given[done]
                data = [t for t in operation.inputs if not t.constant]
                if matched[done] is None and data:
                    alias[operation.output.name] = alias.get(data[0].name, data[0])
                done += 1

        before: _Given | None = None
        for number, event in enumerate(events):
            place = place_of.get(number)
            if place is None:
                if before is not None:
                    yield _extra(event, before, alias)
                continue
            pass_on(place)
            before = given[place]
            if not all(tensor.constant for tensor in before.inputs):
                yield _executed(event, before, alias)
        pass_on(len(given))
        self.tensors[node] = tuple(alias.get(t.name, t) for t in made)

    def _of(self, node: Any) -> tuple[ExecutedTensor, ...]:
        """What a node of the program makes."""
        if node in self.tensors:
            return self.tensors[node]
        if node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
            found = self._of(node.args[0])
            return (found[min(int(node.args[1]), len(found) - 1)],)
        if node.op == "call_function" and node.all_input_nodes:  # a view of what it reads
            source = self._of(node.all_input_nodes[0])[0]
            return (_of_node(node, source.name, source.constant),)
        return (_of_node(node, node.name, constant=True),)


def _call_name(node: Any) -> str | None:
    """What the trace calls a node; None where nothing is executed for it."""
    name = getattr(node.target, "__name__", "")
    if name == "executorch_call_delegate":
        return _DELEGATE
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return None
    base = schema.name.rpartition("::")[2]
    return f"{base}.{schema.overload_name}" if schema.overload_name else base


def _is_place(node: Any) -> bool:
    """Whether a node is memory for an output."""
    return getattr(node.target, "__name__", "") == "alloc"


def _of_node(node: Any, name: str, constant: bool) -> ExecutedTensor:
    value = node.meta.get("val")
    shape = tuple(int(side) for side in getattr(value, "shape", ()))
    return ExecutedTensor(name, shape, constant, _torch_type(value))


def _of_values(node: Any, constant: bool) -> tuple[ExecutedTensor, ...]:
    values = node.meta.get("val")
    listed = list(values) if isinstance(values, tuple | list) else [values]
    return tuple(
        ExecutedTensor(
            f"{node.name}:{place}",
            tuple(int(side) for side in getattr(value, "shape", ())),
            constant,
            _torch_type(value),
        )
        for place, value in enumerate(listed)
    )


def _torch_type(value: Any) -> str:
    return str(getattr(value, "dtype", "torch.float32")).removeprefix("torch.")


def _node_names(node: Any) -> tuple[str, ...]:
    name = (node.meta.get("custom") or {}).get(NODE_KEY)
    return (str(name),) if name else ()


def _nodes_by_handle(module: Any) -> dict[int, str]:
    """ONNX node by the number that operations of a part carry."""
    found: dict[int, str] = {}
    for node in module.original_module.graph.nodes:
        handle, names = node.meta.get("debug_handle"), _node_names(node)
        if handle and names:
            found.setdefault(int(handle), names[0])
    return found


def _given(
    graph: Any, nodes: Mapping[int, str], arguments: Sequence[ExecutedTensor], prefix: str
) -> tuple[list[_Given], tuple[ExecutedTensor, ...]]:
    """The operations of a part, and what it makes.

    Args:
        graph: `XNNGraph`.
        nodes: ONNX node by number.
        arguments: what the part is called with.
        prefix: for names that are unique in the program.
    """
    values: dict[int, Any] = {}
    external: dict[int, int] = {}
    for value in graph.xvalues:
        own = getattr(value.xvalue_union, "tensor_value", value.xvalue_union)
        values[own.id_out] = own
        if own.external_id != _NO_VALUE and own.flags:
            external[own.external_id] = own.id_out
    tensors = {
        external[place]: tensor for place, tensor in enumerate(arguments) if place in external
    }
    channels_last: set[int] = set()
    found = []
    for node in graph.xnodes:
        union = node.xnode_union
        ids = [
            getattr(union, f.name)
            for f in fields(union)
            if f.name.endswith("_id") and f.name != "output_id"
        ]
        ids = [number for number in ids if number != _NO_VALUE]
        kind = type(union).__name__.removeprefix("XNN")
        name = nodes.get(node.debug_handle, "")
        perm = tuple(getattr(union, "perm", ()))
        if kind == "StaticTranspose" and not name:
            inside = perm == _TO_LAST
        else:
            inside = any(number in channels_last for number in ids)
        if inside:
            channels_last.add(union.output_id)
        for number in (*ids, union.output_id):
            if number not in tensors:
                tensors[number] = _tensor(values[number], prefix, number in channels_last)
        inputs = tuple(tensors[number] for number in ids)
        output = tensors[union.output_id]
        if all(tensor.constant for tensor in inputs):
            output = replace(output, constant=True)
            tensors[union.output_id] = output
        covers = (name,) if name else ()
        found.append(_Given(kind, covers, inputs, output, inside, perm))
    outputs = sorted(number for number in external if number >= len(arguments))
    return found, tuple(
        tensors.get(external[number]) or _tensor(values[external[number]], prefix, False)
        for number in outputs
    )


def _tensor(value: Any, prefix: str, channels_last: bool) -> ExecutedTensor:
    shape = tuple(int(side) for side in value.dims)
    if channels_last and len(shape) == 4:
        shape = (shape[0], shape[3], shape[1], shape[2])
    kind = value.datatype.name.removeprefix("xnn_datatype_")
    return ExecutedTensor(
        f"{prefix}/{value.id_out}", shape, value.constant_buffer_idx != 0, _TYPES.get(kind, "int8")
    )


def _kernel_starts(kind: str) -> tuple[str, ...]:
    starts = _KINDS[kind][0] if kind in _KINDS else (kind,)
    return (*starts, _LOOKED_UP) if kind in _UNARY else starts


def _executed(event: TraceEvent, given: _Given, alias: Mapping[str, ExecutedTensor]) -> ExecutedOp:
    """The kernel of an operation."""
    _, fallback, allowed = _KINDS.get(given.kind, ((), given.kind, ()))
    inputs = tuple(alias.get(tensor.name, tensor) for tensor in given.inputs)
    domain = _CHANNELS_LAST if given.channels_last else _PLAIN
    if given.kind == "StaticTranspose" and not given.covers:
        fallback = "ReorderInput" if given.perm == _TO_LAST else "ReorderOutput"
        domain = _CHANNELS_LAST
    return ExecutedOp(
        name=event.name,
        domain=domain,
        covers=given.covers,
        fallback=fallback,
        allowed=frozenset(allowed),
        inputs=inputs,
        outputs=(given.output,),
    )


def _extra(event: TraceEvent, before: _Given, alias: Mapping[str, ExecutedTensor]) -> ExecutedOp:
    """A kernel that no operation asked for: a further piece of the one before."""
    source = next((t for t in before.inputs if not t.constant), before.output)
    output = ExecutedTensor(f"{event.name}/out", source.shape, False, source.dtype)
    return ExecutedOp(
        name=event.name,
        domain=_PLAIN,
        covers=(),
        fallback=_KINDS.get(before.kind, ((), before.kind, ()))[1],
        inputs=(alias.get(source.name, source),),
        outputs=(output,),
    )


def _aligned(wanted: Sequence[tuple[str, ...]], names: Sequence[str]) -> list[int | None]:
    """For each of what is wanted the place of its name, so that most are found, all in order.

    Args:
        wanted: ways in which the name may begin.
        names: to be found.
    """
    rows, columns = len(wanted), len(names)
    most = [[0] * (columns + 1) for _ in range(rows + 1)]
    fits = [[name.startswith(starts) for name in names] for starts in wanted]
    for row in range(rows - 1, -1, -1):
        for column in range(columns - 1, -1, -1):
            taken = most[row + 1][column + 1] + 1 if fits[row][column] else 0
            most[row][column] = max(taken, most[row + 1][column], most[row][column + 1])
    found: list[int | None] = [None] * rows
    row = column = 0
    while row < rows and column < columns:
        if fits[row][column] and most[row][column] == most[row + 1][column + 1] + 1:
            found[row] = column
            row, column = row + 1, column + 1
        elif most[row + 1][column] >= most[row][column + 1]:
            row += 1
        else:
            column += 1
    return found


def _with_what_was_fused(
    model: onnx.ModelProto, operations: Sequence[ExecutedOp]
) -> Iterator[ExecutedOp]:
    """Gives nodes without a kernel to that which makes their input, if nobody else reads it."""
    owner: dict[str, int] = {}
    for place, operation in enumerate(operations):
        owner.update(dict.fromkeys(operation.covers, place))
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in set(node.input):
            readers[name] = readers.get(name, 0) + 1
    maker: dict[str, str] = {}
    covers = [list(operation.covers) for operation in operations]
    for node in model.graph.node:
        source = next((name for name in node.input if name in maker), None)
        alone = len(node.output) == 1 and source is not None and readers[source] == 1
        if node.name not in owner and source is not None and alone:
            kernel = owner.get(maker[source])
            if kernel is not None:
                owner[node.name] = kernel
                covers[kernel].append(node.name)
        for name in node.output:
            maker[name] = node.name
    for operation, own in zip(operations, covers, strict=True):
        yield replace(operation, covers=tuple(own))
