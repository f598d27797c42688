"""Which kernels an ExecuTorch program executes, and which of the model's nodes each stands for.

A program calls kernels of ExecuTorch's own and XNNPACK, which got a part of the graph each time.
What it was given is known (`PartGraph`): operations in order, each with the number of the PyTorch
operation that it comes from, and that one carries the ONNX node's name. What XNNPACK makes of that
is aligned with the trace of a run (`devices.xnnpack_kernels`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from devices.executed_onnx import MOVES, ExecutedOp, ExecutedTensor, with_what_was_fused
from devices.xnnpack_kernels import (
    TO_LAST,
    Given,
    aligned,
    part_kernels,
)

if TYPE_CHECKING:
    import onnx

    from devices.kernel_trace import TraceEvent

__all__ = ["NODE_KEY", "executed_operations"]

NODE_KEY = "autospace.onnx"
"""Where a PyTorch operation carries the name of its ONNX node, below "custom" in its metadata."""

_RUNTIME, _NATIVE = "executorch", "executorch.native"
_DELEGATE = "delegate"
_NO_VALUE = 0xFFFFFFFF
_TYPES = {
    **dict.fromkeys(("fp32", "pfp32"), "float32"),
    **dict.fromkeys(("fp16", "bf16"), "float16"),
    **dict.fromkeys(("quint8",), "uint8"),
    **dict.fromkeys(("int32", "qint32", "qcint32"), "int32"),
}
"""XNNPACK's types by the numpy type of their size; whatever else is quantised is int8."""

_NATIVE_KINDS = {
    "native_layer_norm": ("LayerNormalization", ("LayerNormalization",)),
    "expand_copy": ("Expand", ("Expand",)),
    "squeeze_copy": ("Squeeze", MOVES),
    "unsqueeze_copy": ("Unsqueeze", MOVES),
    "view_copy": ("Reshape", MOVES),
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
    return tuple(with_what_was_fused(model, found))


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
        matched = aligned(
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
        operations, alias = part_kernels(given, events, _RUNTIME)
        yield from operations
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
) -> tuple[list[Given], tuple[ExecutedTensor, ...]]:
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
            inside = perm == TO_LAST
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
        found.append(Given(kind, covers, inputs, output, inside, perm))
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
