"""What a runtime executes, written down in ONNX, for runtimes whose own graphs are not ONNX.

Kernels are read from ONNX (`latency.kernel`), so a runtime that says which operations it executes
has that translated here: each operation becomes a node of the ONNX operation whose work it mostly
does, with the attributes that the original model gives it, over tensors that carry the original's
names wherever they hold the original's values. Weights have shapes only. The graph cannot be run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from devices.errors import AutospaceError
from devices.onnx_files import inferred

if TYPE_CHECKING:
    import onnx

__all__ = [
    "EXECUTED_DOMAIN",
    "HEAVY",
    "LINEAR",
    "MOVES",
    "ExecutedOp",
    "ExecutedTensor",
    "executed_if_told",
    "executed_onnx",
    "value_shapes",
    "with_what_was_fused",
]

EXECUTED_DOMAIN = "autospace.executed"
"""Domain of the models that are written here: their tensors' shapes are all told."""

LINEAR = ("Gemm", "MatMul")
HEAVY = ("Conv", "ConvTranspose", *LINEAR)
"""Operations of ONNX that a kernel is called after, whatever else it does."""
MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operations of ONNX that give the same numbers another shape."""
_NO_ACTIVATION = {
    *(*HEAVY, *MOVES, "BatchNormalization", "Add", "Sub", "Sum", "Div", "Identity", "Dropout"),
    *("Transpose", "Constant", "QuantizeLinear", "DequantizeLinear"),
}


@dataclass(frozen=True, slots=True)
class ExecutedTensor:
    """A tensor between operations.

    Attributes:
        name: unique in the executed graph; that of an input of the model for such.
        shape: logical, whatever the layout.
        constant: whether it is known before the network runs.
        dtype: numpy's name of the element type.
    """

    name: str
    shape: tuple[int, ...]
    constant: bool = False
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class ExecutedOp:
    """One operation that is executed.

    Attributes:
        name: as the profiler calls it.
        domain: of the ONNX node; operations that work in another layout have another.
        covers: names of what it stands for in the original: of nodes or of tensors, in any order,
            with suffixes behind a "/" where the runtime took a node apart.
        fallback: the ONNX operation where it covers nothing.
        allowed: of the covered operations those whose work it may be said to do; empty for any.
        inputs: what it reads.
        outputs: what it makes.
        attributes: further ones.
    """

    name: str
    domain: str
    covers: tuple[str, ...]
    fallback: str
    inputs: tuple[ExecutedTensor, ...]
    outputs: tuple[ExecutedTensor, ...]
    allowed: frozenset[str] = frozenset()
    attributes: Mapping[str, Any] = field(default_factory=dict)


def executed_onnx(model: onnx.ModelProto, operations: Sequence[ExecutedOp]) -> bytes:
    """The executed graph as serialised ONNX.

    Args:
        model: the original, with fixed shapes and a name on every node.
        operations: in the order of execution.
    """
    return _Writer(model).write(operations)


def executed_if_told(
    model: onnx.ModelProto, read: Callable[[], Sequence[ExecutedOp]]
) -> bytes | None:
    """As `executed_onnx`; None where what is executed cannot be told.

    A network that runs is good for everything but cards, so that none is refused for it.

    Args:
        model: as for `executed_onnx`.
        read: gives the operations.
    """
    try:
        return executed_onnx(model, read())
    except (AutospaceError, LookupError, TypeError, ValueError):
        return None


def value_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a model that is no weight, by its name.

    Args:
        model: with fixed shapes.
    """
    graph = inferred(model).graph
    return {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def with_what_was_fused(
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


class _Writer:
    """Writes one executed graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.position = {node.name: i for i, node in enumerate(self.nodes)}
        self.maker = {out: i for i, node in enumerate(self.nodes) for out in node.output if out}
        self.weights = {t.name: tuple(t.dims) for t in model.graph.initializer}

    def write(self, operations: Sequence[ExecutedOp]) -> bytes:
        from onnx import TensorProto, helper

        covered = [self._covered(op.covers) for op in operations]
        names = self._names(operations, covered)
        nodes, weights, values = [], {}, {}
        for op, own in zip(operations, covered, strict=True):
            leader = self._leader(own, op.allowed)
            kind = leader.op_type if leader is not None else op.fallback
            attributes = self._attributes(kind, leader, own, op)
            constants = [t for t in op.inputs if t.constant]
            data = [names.get(t.name, t.name) for t in op.inputs if not t.constant]
            shapes = self._weight_shapes(kind, leader, [t.shape for t in constants])
            own_weights = []
            for tensor, shape in zip(constants, shapes, strict=True):
                name = f"{op.name}/{tensor.name}"
                own_weights.append(name)
                weights[name] = TensorProto(
                    name=name, dims=shape, data_type=_element_type(tensor.dtype)
                )
            inputs = [*data, *own_weights]
            if kind == "Conv" and own_weights:
                bias = own_weights[1:2] or [""]
                inputs = [data[0], own_weights[0], *bias, *data[1:2]] if data else own_weights
                inputs = inputs if inputs[-1] else inputs[:-1]
            outputs = [names.get(t.name, t.name) for t in op.outputs]
            for tensor in (*op.inputs, *op.outputs):
                if not tensor.constant:
                    name = names.get(tensor.name, tensor.name)
                    values[name] = (_element_type(tensor.dtype), tensor.shape)
            nodes.append(
                helper.make_node(
                    kind, inputs, outputs, name=op.name, domain=op.domain, **attributes
                )
            )
        return self._model(nodes, weights.values(), values)

    def _covered(self, names: Iterable[str]) -> list[int]:
        """Positions of the original's nodes that names point to."""
        found = set()
        for name in names:
            cut = name
            while cut:
                place = self.position.get(cut, self.maker.get(cut))
                if place is not None:
                    found.add(place)
                    break
                cut = cut.rpartition("/")[0]
        return sorted(found)

    def _names(
        self, operations: Sequence[ExecutedOp], covered: Sequence[Sequence[int]]
    ) -> dict[str, str]:
        """The names of the original's tensors that executed tensors are equal to.

        Where a node was taken apart, only the last of the parts makes what the node makes.
        """
        last: dict[str, tuple[str, int]] = {}
        for place, (op, own) in enumerate(zip(operations, covered, strict=True)):
            if not own:
                continue
            outputs = [out for out in self.nodes[own[-1]].output if out]
            for tensor, name in zip(op.outputs, outputs, strict=False):
                last[name] = (tensor.name, place)
        return {tensor: name for name, (tensor, _) in last.items()}

    def _leader(self, covered: Sequence[int], allowed: frozenset[str]) -> onnx.NodeProto | None:
        """The covered node that an operation is called after: a heavy one, else the first."""
        nodes = [self.nodes[i] for i in covered]
        fitting = [node for node in nodes if not allowed or node.op_type in allowed]
        heavy = [node for node in fitting if node.op_type in HEAVY]
        return next(iter((*heavy, *fitting)), None)

    def _attributes(
        self,
        kind: str,
        leader: onnx.NodeProto | None,
        covered: Sequence[int],
        op: ExecutedOp,
    ) -> dict[str, Any]:
        from onnx import AttributeProto, helper

        simple = (
            *(AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT),
            *(AttributeProto.FLOATS, AttributeProto.STRING),
        )
        found: dict[str, Any] = {}
        if leader is not None:
            for attribute in leader.attribute:
                if attribute.type in simple:
                    found[attribute.name] = helper.get_attribute_value(attribute)
        found.update(op.attributes)
        if kind in HEAVY:
            behind = [
                self.nodes[i].op_type
                for i in covered
                if self.nodes[i].op_type not in _NO_ACTIVATION
            ]
            if behind:
                found["activation"] = behind[0]
        return found

    def _weight_shapes(
        self,
        kind: str,
        leader: onnx.NodeProto | None,
        shapes: Sequence[tuple[int, ...]],
    ) -> Sequence[tuple[int, ...]]:
        """Shapes of an operation's constants; a convolution's kernel as ONNX has it."""
        if kind not in ("Conv", "ConvTranspose") or leader is None or not shapes:
            return shapes
        own = self.weights.get(leader.input[1])
        return [own or shapes[0], *shapes[1:]]

    def _model(
        self,
        nodes: Sequence[onnx.NodeProto],
        weights: Iterable[onnx.TensorProto],
        values: Mapping[str, tuple[int, tuple[int, ...]]],
    ) -> bytes:
        from onnx import helper

        inputs = {value.name for value in self.model.graph.input} - set(self.weights)
        outputs = {value.name for value in self.model.graph.output} & set(values)
        if not outputs and nodes:
            # The last operations move nothing, so that the output goes by another's name.
            outputs = {nodes[-1].output[0]}
        infos = {
            name: helper.make_tensor_value_info(name, kind, shape)
            for name, (kind, shape) in values.items()
        }
        graph = helper.make_graph(
            nodes,
            "executed",
            [infos[name] for name in infos if name in inputs],
            [infos[name] for name in infos if name in outputs],
            list(weights),
            value_info=[infos[name] for name in infos if name not in inputs | outputs],
        )
        written = helper.make_model(graph)
        written.domain = EXECUTED_DOMAIN
        return bytes(written.SerializeToString(deterministic=True))


def _element_type(dtype: str) -> int:
    import numpy as np
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
