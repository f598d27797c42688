"""Models in float16, for runtimes that take a model's types as they are.

Every float32 tensor becomes float16 but the model's inputs and outputs, which keep their type
behind a cast. What would overflow is held to the largest number that float16 has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.errors import InvalidInputError

if TYPE_CHECKING:
    import onnx

__all__ = ["half_precision"]

_FIXED = frozenset({"QuantizeLinear", "DequantizeLinear", "Resize", "Upsample", "RandomNormal"})
"""Operations with inputs of a type of their own."""


def half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16 with inputs and outputs as they were; the given one is left alone.

    Args:
        model: without operations of other domains or graphs inside nodes.

    Raises:
        InvalidInputError: an operation cannot be turned into float16 in this way.
    """
    import numpy as np
    from onnx import TensorProto, numpy_helper

    copy = type(model)()
    copy.CopyFrom(model)
    graph = copy.graph
    for node in graph.node:
        graphs = any(attribute.HasField("g") for attribute in node.attribute)
        if node.op_type in _FIXED or graphs or node.domain not in ("", "ai.onnx"):
            raise InvalidInputError(
                f"model node {node.name or node.output[0]!r} ({node.op_type}): cannot be turned "
                "into float16; take fp32, or export the model in float16."
            )
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_half(attribute.t))
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == 1:
                attribute.i = TensorProto.FLOAT16
    limit = float(np.finfo(np.float16).max)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = np.clip(numpy_helper.to_array(tensor), -limit, limit).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    weights = {tensor.name for tensor in graph.initializer}
    first, last = [], []
    renamed: dict[str, str] = {}
    for value in graph.input:
        if value.type.tensor_type.elem_type != TensorProto.FLOAT:
            continue
        if value.name in weights:  # older files list the weights among the inputs too
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
            continue
        renamed[value.name] = f"{value.name}/half"
        first.append(_cast(value.name, renamed[value.name], TensorProto.FLOAT16))
    for value in graph.output:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            made = f"{value.name}/half"
            for node in graph.node:
                for place, name in enumerate(node.output):
                    if name == value.name:
                        node.output[place] = made
            renamed.setdefault(value.name, made)
            last.append(_cast(made, value.name, TensorProto.FLOAT))
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return copy


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    from onnx import helper

    return helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=kind)


def _half(tensor: onnx.TensorProto) -> onnx.TensorProto:
    import numpy as np
    from onnx import numpy_helper

    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
