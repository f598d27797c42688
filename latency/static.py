"""What of a graph is known before it ever runs: shapes, element types, and values of constants.

Exporters write the shape of a reshape as arithmetic on the input's shape. With fixed input shapes
all of it is constant, but only an inference that knows the *values* sees so: ONNX's own data
propagation stops at casts, modulo and comparisons, and everything behind them has no shape. Here
each node is taken in turn: constants of a few numbers are computed, shapes are inferred with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from devices.onnx_files import dtype_name

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
        self.values: dict[str, Array] = {}
        self.constants: set[str] = set()
        self.folded: set[int] = set()
        self._opsets = {o.domain: o.version for o in model.opset_import}
        self._imports = list(model.opset_import)
        self._ir_version = model.ir_version
        self._types: dict[str, onnx.TypeProto] = {}
        self._tensors: dict[str, onnx.TensorProto] = {}
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
                if self.visit(node):
                    self.folded.add(position)

    def visit(self, node: onnx.NodeProto) -> bool:
        """Finds what is known of a node's outputs; its inputs must have been visited before.

        Returns:
            Whether all outputs are constant.
        """
        names = [name for name in node.input if name]
        fixed = all(name in self.constants for name in names)
        if node.op_type in ("Shape", "Size"):
            fixed = bool(names) and names[0] in self.shapes
        fixed = fixed and not _is_open(node)
        if fixed:
            self.constants.update(name for name in node.output if name)
            self._evaluate(node)
        if not all(name in self.shapes for name in node.output if name) and not self.infer(node):
            for name in node.output:
                if name not in self.shapes and name in self._declared:
                    self._set_type(name, self._declared[name])
        return fixed

    def infer(self, node: onnx.NodeProto) -> bool:
        """Infers the shapes of a node's outputs from those of its inputs.

        Returns:
            Whether all of them were found.
        """
        import onnx

        schema = self._schema(node)
        if schema is None:
            return False
        names = [name for name in node.input if name]
        if any(name not in self._types for name in names):
            return False
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {name: self._types[name] for name in names},
                {name: self._tensor(name) for name in names if name in self.values},
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

    def _schema(self, node: onnx.NodeProto) -> onnx.defs.OpSchema | None:
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
        import numpy as np
        import onnx

        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._set_type(name, onnx.helper.make_tensor_type_proto(kind, shape))

    def _evaluate(self, node: onnx.NodeProto) -> None:
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
                    self.values[name] = array

    def _add_weight(self, tensor: onnx.TensorProto, name: str = "") -> None:
        import onnx

        name = name or tensor.name
        shape = tuple(tensor.dims)
        self.constants.add(name)
        self._set_type(name, onnx.helper.make_tensor_type_proto(tensor.data_type, shape))
        if math.prod(shape) <= _MAX_VALUES and not tensor.external_data:
            try:
                self.values[name] = onnx.numpy_helper.to_array(tensor)
            except (ValueError, TypeError, RuntimeError):
                return  # an element type that numpy does not have, or data left out
            self._tensors[name] = tensor

    def _set_type(self, name: str, kind: onnx.TypeProto) -> None:
        tensor = kind.tensor_type
        if not kind.HasField("tensor_type") or not tensor.HasField("shape"):
            return
        dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
        if any(d < 0 for d in dims):
            return
        try:
            self.dtypes[name] = dtype_name(tensor.elem_type)
        except (KeyError, ValueError):
            return
        self.shapes[name] = dims
        self._types[name] = kind

    def _tensor(self, name: str) -> onnx.TensorProto:
        import onnx

        if name not in self._tensors:
            self._tensors[name] = onnx.numpy_helper.from_array(self.values[name], name)
        return self._tensors[name]


def _is_open(node: onnx.NodeProto) -> bool:
    """Whether outputs may change with constant inputs: by chance, or by what a subgraph reads."""
    if node.op_type.startswith(("Random", "Multinomial", "Bernoulli")):
        return True
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def _shape_of(node: onnx.NodeProto, shape: Shape) -> Array:
    import numpy as np

    bounds = {a.name: a.i for a in node.attribute}
    return np.array(shape[bounds.get("start", 0) : bounds.get("end", len(shape))], dtype=np.int64)


def _gather(node: onnx.NodeProto, inputs: Sequence[Array]) -> Array:
    import numpy as np

    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    taken: Array = np.take(inputs[0], inputs[1], axis=axis)
    return taken


def _concat(node: onnx.NodeProto, inputs: Sequence[Array]) -> Array:
    import numpy as np

    return np.concatenate(inputs, axis=next(a.i for a in node.attribute if a.name == "axis"))


def _unsqueeze(node: onnx.NodeProto, inputs: Sequence[Array]) -> Array:
    import numpy as np

    axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
    return np.expand_dims(inputs[0], tuple(axes if axes is not None else inputs[1].tolist()))


def _cast(node: onnx.NodeProto, inputs: Sequence[Array]) -> Array:
    import onnx

    to = next(a.i for a in node.attribute if a.name == "to")
    return inputs[0].astype(onnx.helper.tensor_dtype_to_np_dtype(to))


# ONNX's reference takes a millisecond a node, and a shifted-window network has thousands of these.
_QUICK: Mapping[str, Callable[[Any, Sequence[Array]], Array]] = {
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Cast": _cast,
    "Add": lambda _, xs: xs[0] + xs[1],
    "Sub": lambda _, xs: xs[0] - xs[1],
    "Mul": lambda _, xs: xs[0] * xs[1],
    "Equal": lambda _, xs: xs[0] == xs[1],
    "Identity": lambda _, xs: xs[0],
}


def _compute(
    node: onnx.NodeProto, values: Mapping[str, Array], opsets: Mapping[str, int]
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
            if node.op_type in _QUICK:
                return [_QUICK[node.op_type](node, inputs)]
            graph = onnx.helper.make_graph(
                [node],
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


def _constant(node: onnx.NodeProto) -> Array:
    import numpy as np
    import onnx

    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    kind = np.int64 if attribute.name in ("value_int", "value_ints") else np.float32
    return np.array(value, dtype=kind)
