"""What of a graph is known before it ever runs: shapes, element types, and values of constants.

Exporters write the shape of a reshape as arithmetic on the input's shape. With fixed input shapes
all of it is constant, but only an inference that knows the *values* sees so: ONNX's own data
propagation stops at casts, modulo and comparisons, and everything behind them has no shape. Here
each node is taken in turn: constants of a few numbers are computed, shapes are inferred with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from devices.onnx_files import dtype_name
from latency.move_rules import has_move_rule, moved_shapes
from latency.onnx_node import Node
from latency.shape_rules import has_rule, needs_attributes, output_shape

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx

    Array = npt.NDArray[Any]

__all__ = ["StaticGraph"]

Shape = tuple[int, ...]

_MAX_VALUES = 1024
"""Constants with more numbers are weights: only their shape matters."""


class StaticGraph:
    """Shapes, types and small constants of a graph, found node by node.

    Attributes:
        shapes: of every tensor with a fixed one; weights included.
        dtypes: numpy type name of the same tensors.
        values: constants of at most 1024 numbers, computed ones included.
        constants: names of all tensors that do not depend on the inputs.
        folded: positions of the nodes whose outputs are all constant.
    """

    def __init__(self, model: onnx.ModelProto, walk: bool = True) -> None:
        """Takes in the weights and inputs, and with `walk` every node in turn.

        Args:
            model: with nodes in topological order; left alone.
            walk: whether to visit the nodes; else the caller does, with `visit`.
        """
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, str] = {}
        self.values = _Values()
        self.constants: set[str] = set()
        self.folded: set[int] = set()
        self._opsets = {o.domain: o.version for o in model.opset_import}
        self._imports = list(model.opset_import)
        self._ir_version = model.ir_version
        self._kinds: dict[str, int] = {}
        self._types: dict[str, onnx.TypeProto] = {}
        self._schemas: dict[tuple[str, str], onnx.defs.OpSchema | None] = {}
        for tensor in model.graph.initializer:
            self._add_weight(tensor)
        declared = (*model.graph.output, *model.graph.value_info)
        self._declared = {value.name: value.type for value in declared}
        for value in model.graph.input:
            if value.name not in self.constants:
                self._set_type(value.name, value.type)
        if walk:
            for position, node in enumerate(model.graph.node):
                if self.visit(Node(node)):
                    self.folded.add(position)

    def visit(self, node: Node) -> bool:
        """Finds what is known of a node's outputs; its inputs must have been visited before.

        Returns:
            Whether all outputs are constant.
        """
        names = node.given
        fixed = self.constants.issuperset(names)
        if node.op_type in ("Shape", "Size"):
            fixed = bool(names) and names[0] in self.shapes
        fixed = fixed and not _is_open(node)
        if fixed:
            self.constants.update(name for name in node.output if name)
            self._evaluate(node)
        known = all(map(self.shapes.__contains__, filter(None, node.output)))
        if not known and not self.infer(node):
            for name in node.output:
                if name not in self.shapes and name in self._declared:
                    self._set_type(name, self._declared[name])
        return fixed

    def infer(self, node: Node) -> bool:
        """Infers the shapes of a node's outputs from those of its inputs.

        Returns:
            Whether all of them were found.
        """
        return self._infer_by_rule(node) or self._infer_by_onnx(node)

    def _infer_by_rule(self, node: Node) -> bool:
        """As `infer`, for operations that there are rules for."""
        if node.domain not in ("", "ai.onnx"):
            return False
        if has_move_rule(node.op_type):
            return self._infer_move(node)
        if not has_rule(node.op_type):
            return False
        outputs, names = node.output, node.given
        if len(outputs) != 1 or not all(map(self._kinds.__contains__, names)):
            return False
        options = node.options if needs_attributes(node.op_type) else {}
        shape = output_shape(node.op_type, [self.shapes[name] for name in names], options)
        if shape is None:
            return False
        self._note(outputs[0], shape, self._kinds[names[0]])
        return True

    def _infer_move(self, node: Node) -> bool:
        """As `infer`, for the operations that `latency.move_rules` knows."""
        first, *rest = node.input
        if first not in self._kinds or "" in node.output:
            return False
        further: list[tuple[int, ...] | None] = []
        for name in rest:
            if not name:
                further.append(None)
            elif node.op_type == "Gather":
                if name not in self.shapes:
                    return False
                further.append(self.shapes[name])
            elif node.op_type == "Pad" and len(further) == 1:
                further.append(None)  # the number that is written into the border
            elif name in self.values:
                further.append(tuple(self.values[name].ravel().tolist()))
            else:
                return False
        shapes = moved_shapes(
            node.op_type, self.shapes[first], further, node.options, len(node.output)
        )
        if shapes is None:
            return False
        for name, shape in zip(node.output, shapes, strict=True):
            self._note(name, shape, self._kinds[first])
        return True

    def _infer_by_onnx(self, node: Node) -> bool:
        import onnx

        schema = self._schema(node)
        if schema is None:
            return False
        names = node.given
        if not all(map(self._kinds.__contains__, names)):
            return False
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema,
                node.proto,
                {name: self._type(name) for name in names},
                {name: self.values.tensor(name) for name in names if name in self.values},
                opset_imports=self._imports,
                ir_version=self._ir_version,
            )
        except (
            onnx.shape_inference.InferenceError,
            onnx.checker.ValidationError,
            RuntimeError,
            ValueError,
            TypeError,
        ):
            return False  # a node that breaks ONNX's rules: its shapes stay unknown
        for name, kind in found.items():
            self._set_type(name, kind)
        return all(name in self.shapes for name in node.output if name)

    def _schema(self, node: Node) -> onnx.defs.OpSchema | None:
        import onnx

        key = node.op_type, node.domain
        if key not in self._schemas:
            own = self._opsets.get("", 1) if not node.domain else 1
            version = self._opsets.get(node.domain, own)
            try:
                self._schemas[key] = onnx.defs.get_schema(node.op_type, version, node.domain)
            except onnx.defs.SchemaError:
                self._schemas[key] = None
        return self._schemas[key]

    def set(self, name: str, shape: Shape, dtype: str) -> None:
        """Notes a shape that was found by other means; `dtype` is a numpy type name."""
        self._note(name, shape, _element_type(dtype))

    def _evaluate(self, node: Node) -> None:
        """Computes a constant of few numbers."""
        import numpy as np

        if node.op_type == "Shape":
            results: Sequence[Any] = [_shape_of(node, self.shapes[node.input[0]])]
        elif node.op_type == "Size":
            results = [np.array(math.prod(self.shapes[node.input[0]]), dtype=np.int64)]
        elif node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            self._add_weight(node.attribute[0].t, node.output[0])
            return
        else:
            if any(name and name not in self.values for name in node.input):
                return
            found = _compute(node, self.values, self._opsets)
            if found is None:
                return
            results = found
        for name, value in zip(node.output, results, strict=False):
            array = np.asarray(value)
            if name:
                self.set(name, array.shape, array.dtype.name)
                if array.size <= _MAX_VALUES:
                    self.values.add(name, array)

    def _add_weight(self, tensor: onnx.TensorProto, name: str = "") -> None:
        name = name or tensor.name
        shape = tuple(tensor.dims)
        self.constants.add(name)
        self._note(name, shape, tensor.data_type)
        if math.prod(shape) <= _MAX_VALUES and not tensor.external_data:
            self.values.add_tensor(name, tensor)

    def _set_type(self, name: str, kind: onnx.TypeProto) -> None:
        tensor = kind.tensor_type
        if not kind.HasField("tensor_type") or not tensor.HasField("shape"):
            return
        dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
        if any(d < 0 for d in dims):
            return
        self._note(name, dims, tensor.elem_type)

    def _note(self, name: str, shape: Shape, kind: int) -> None:
        """Notes shape and element type, where numpy has such a type."""
        try:
            self.dtypes[name] = dtype_name(kind)
        except (KeyError, ValueError):
            return
        self.shapes[name] = shape
        self._kinds[name] = kind
        if name in self._types:
            del self._types[name]

    def _type(self, name: str) -> onnx.TypeProto:
        import onnx

        if name not in self._types:
            self._types[name] = onnx.helper.make_tensor_type_proto(
                self._kinds[name], self.shapes[name]
            )
        return self._types[name]


class _Values(Mapping[str, "Array"]):
    """Constants by name, made into arrays when they are asked for: most never are."""

    def __init__(self) -> None:
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._arrays: dict[str, Array | None] = {}

    def add(self, name: str, array: Array) -> None:
        self._arrays[name] = array
        self._tensors.pop(name, None)

    def add_tensor(self, name: str, tensor: onnx.TensorProto) -> None:
        self._tensors[name] = tensor
        self._arrays.pop(name, None)

    def tensor(self, name: str) -> onnx.TensorProto:
        import onnx

        if name not in self._tensors:
            self._tensors[name] = onnx.numpy_helper.from_array(self[name], name)
        return self._tensors[name]

    def _find(self, name: str) -> Array | None:
        import onnx

        if name not in self._arrays and name in self._tensors:
            try:
                self._arrays[name] = onnx.numpy_helper.to_array(self._tensors[name])
            except (ValueError, TypeError, RuntimeError):
                # An element type that numpy does not have, or data left out.
                self._arrays[name] = None
        return self._arrays.get(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def __getitem__(self, name: str) -> Array:
        found = self._find(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return (name for name in {**self._tensors, **self._arrays} if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@cache
def _element_type(dtype: str) -> int:
    import numpy as np
    import onnx

    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _is_open(node: Node) -> bool:
    """Whether outputs may change with constant inputs: by chance, or by what a subgraph reads."""
    if node.op_type.startswith(("Random", "Multinomial", "Bernoulli")):
        return True
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def _shape_of(node: Node, shape: Shape) -> Array:
    import numpy as np

    bounds = {a.name: a.i for a in node.attribute}
    return np.array(shape[bounds.get("start", 0) : bounds.get("end", len(shape))], dtype=np.int64)


def _gather(node: Node, inputs: Sequence[Array]) -> Array:
    import numpy as np

    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    taken: Array = np.take(inputs[0], inputs[1], axis=axis)
    return taken


def _concat(node: Node, inputs: Sequence[Array]) -> Array:
    import numpy as np

    return np.concatenate(inputs, axis=next(a.i for a in node.attribute if a.name == "axis"))


def _unsqueeze(node: Node, inputs: Sequence[Array]) -> Array:
    import numpy as np

    axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
    return np.expand_dims(inputs[0], tuple(axes if axes is not None else inputs[1].tolist()))


def _cast(node: Node, inputs: Sequence[Array]) -> Array:
    import onnx

    to = next(a.i for a in node.attribute if a.name == "to")
    return inputs[0].astype(onnx.helper.tensor_dtype_to_np_dtype(to))


def _slice(node: Node, inputs: Sequence[Array]) -> Array | None:
    if len(inputs) < 3:
        return None
    data, starts, ends = inputs[0], inputs[1].tolist(), inputs[2].tolist()
    axes = inputs[3].tolist() if len(inputs) > 3 else list(range(len(starts)))
    steps = inputs[4].tolist() if len(inputs) > 4 else [1] * len(starts)
    if min(steps, default=1) < 1:
        return None
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[axis] = slice(start, end, step)
    return data[tuple(cut)]


def _constant_of_shape(node: Node, inputs: Sequence[Array]) -> Array:
    import numpy as np
    import onnx

    given = next((a.t for a in node.attribute if a.name == "value"), None)
    value = np.zeros(1, np.float32) if given is None else onnx.numpy_helper.to_array(given)
    return np.full(tuple(inputs[0].tolist()), value.reshape(-1)[0], value.dtype)


def _expand(node: Node, inputs: Sequence[Array]) -> Array:
    import numpy as np

    shape = np.broadcast_shapes(inputs[0].shape, tuple(inputs[1].tolist()))
    return np.broadcast_to(inputs[0], shape)


def _reshape(node: Node, inputs: Sequence[Array]) -> Array | None:
    if len(inputs) < 2 or 0 in inputs[1]:
        return None
    return inputs[0].reshape(tuple(inputs[1].tolist()))


def _range(node: Node, inputs: Sequence[Array]) -> Array:
    import numpy as np

    start, end, step = (x.item() for x in inputs)
    return np.arange(start, end, step).astype(inputs[0].dtype)


def _where(node: Node, inputs: Sequence[Array]) -> Array:
    import numpy as np

    return np.where(inputs[0], inputs[1], inputs[2])


def _mod(node: Node, inputs: Sequence[Array]) -> Array | None:
    import numpy as np

    # Whole numbers only, of which the remainder has the divisor's sign as in Python.
    whole = all(np.issubdtype(x.dtype, np.integer) for x in inputs)
    return np.mod(*inputs) if whole and not node.attribute and inputs[1].all() else None


def _div(node: Node, inputs: Sequence[Array]) -> Array | None:
    import numpy as np

    if np.issubdtype(inputs[0].dtype, np.floating):
        return inputs[0] / inputs[1]
    # ONNX divides whole numbers towards zero.
    return inputs[0] // inputs[1] if (inputs[0] >= 0).all() and (inputs[1] > 0).all() else None


def _scatter(node: Node, inputs: Sequence[Array]) -> Array | None:
    import numpy as np

    if node.attribute:
        return None
    data, places, updates = inputs
    written = data.copy()
    written[tuple(np.moveaxis(places, -1, 0))] = updates
    return written


# ONNX's reference takes a millisecond a node, and a shifted-window network has thousands of these.
# What gives None here, or has an input left out, is left to the reference.
_QUICK: Mapping[str, Callable[[Any, Sequence[Array]], Array | None]] = {
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Cast": _cast,
    "Add": lambda _, xs: xs[0] + xs[1],
    "Sub": lambda _, xs: xs[0] - xs[1],
    "Mul": lambda _, xs: xs[0] * xs[1],
    "Equal": lambda _, xs: xs[0] == xs[1],
    "Identity": lambda _, xs: xs[0],
    "Slice": _slice,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Reshape": _reshape,
    "Range": _range,
    "Where": _where,
    "Mod": _mod,
    "Div": _div,
    "ScatterND": _scatter,
}


def _compute(
    node: Node, values: Mapping[str, Array], opsets: Mapping[str, int]
) -> Sequence[Any] | None:
    """The outputs of a node with constant inputs, or None where that is not known to work."""
    import numpy as np
    import onnx
    from onnx.reference import ReferenceEvaluator

    inputs = [values[name] for name in node.input if name]
    try:
        if node.op_type == "Constant":
            return [_constant(node)]
        if node.op_type in ("ConstantOfShape", "Expand") and (
            math.prod(int(n) for n in inputs[-1 if node.op_type == "Expand" else 0]) > 65_536
        ):
            return None
        with np.errstate(all="ignore"):
            if node.op_type in _QUICK and len(inputs) == len(node.input):
                quick = _QUICK[node.op_type](node, inputs)
                if quick is not None:
                    return [quick]
            graph = onnx.helper.make_graph(
                [node.proto],
                "constant",
                [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(node.input) if name],
                [onnx.ValueInfoProto(name=name) for name in node.output if name],
            )
            imports = [onnx.helper.make_opsetid(d, v) for d, v in opsets.items()]
            model = onnx.helper.make_model(graph, opset_imports=imports)
            feeds = {name: values[name] for name in node.input if name}
            return list(ReferenceEvaluator(model).run(None, feeds))
    except Exception:  # the reference raises whatever numpy raises; the value stays unknown
        return None


def _constant(node: Node) -> Array:
    import numpy as np
    import onnx

    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    kind = np.int64 if attribute.name in ("value_int", "value_ints") else np.float32
    return np.array(value, dtype=kind)
