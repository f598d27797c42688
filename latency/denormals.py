"""Where a network computes with denormal numbers, which processors are slow at.

Times depend on shapes and not on values, with one exception that networks really meet: attention
masks. A mask adds -100 to what must not be attended to; after the softmax that leaves e⁻¹⁰⁰, which
single precision can only hold as a denormal number, and each product with one of those takes a
hundred times as long. The matrix product behind the softmax of a shifted-window layer ran at 2
instead of 60 billion operations a second. So the kernels that meet such numbers are marked with how
many there are, and are kernels of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["denormal_counts"]

_LOWEST, _HIGHEST = -103.9, -87.4
"""Exponents whose exponential is denormal in single precision: below, it is zero."""
_SCORES = 10.0
"""How far the scores that a mask is added to usually are from their largest."""
_BACK = {"Add", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Cast", "Mul", "Div"}
_ON = {"Identity", "Dropout", "Cast", "Reshape", "Transpose"}
_PRODUCTS = {"MatMul", "FusedMatMul", "Gemm", "FusedGemm"}
_MAX_STEPS = 12


def denormal_counts(
    graph: onnx.GraphProto,
    shapes: Mapping[str, tuple[int, ...]],
    contents: Mapping[str, memoryview],
) -> dict[str, int]:
    """How many denormal numbers the softmax and matrix products of a graph meet.

    Args:
        graph: with a name on every node.
        shapes: of its tensors, as far as they are known.
        contents: of weights that the graph itself has no content of, by name.

    Returns:
        The count by the node's name, for the nodes that meet any.
    """
    softmaxes = [node for node in graph.node if node.op_type == "Softmax"]
    if not softmaxes:
        return {}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    counts: dict[str, int] = {}
    for node in softmaxes:
        share = _masked_share(node.input[0], makers, weights, contents)
        count = int(share * _size(shapes.get(node.input[0], shapes.get(node.output[0], ()))))
        if not count:
            continue
        counts[node.name] = count
        tensor = node.output[0]
        for _ in range(_MAX_STEPS):
            following = users.get(tensor, [])
            for user in following:
                if user.op_type in _PRODUCTS:
                    counts[user.name] = count
            passing = [user for user in following if user.op_type in _ON]
            if not passing:
                break
            tensor = passing[0].output[0]
    return counts


def _masked_share(
    tensor: str,
    makers: Mapping[str, onnx.NodeProto],
    weights: Mapping[str, onnx.TensorProto],
    contents: Mapping[str, memoryview],
) -> float:
    """Part of the numbers before a softmax that a constant puts where the result is denormal."""
    import numpy as np
    import onnx

    share, waiting = 0.0, [tensor]
    for _ in range(_MAX_STEPS):
        if not waiting:
            break
        node = makers.get(waiting.pop())
        if node is None or node.op_type not in _BACK:
            continue
        for name in node.input:
            if name in makers:
                waiting.append(name)
            elif node.op_type == "Add" and name in weights:
                tensor_ = weights[name]
                if tensor_.data_type != onnx.TensorProto.FLOAT:
                    continue
                try:
                    if name in contents:
                        values = np.frombuffer(contents[name], dtype="<f4")
                    else:
                        values = onnx.numpy_helper.to_array(tensor_)
                except (ValueError, TypeError):  # its values were left out
                    continue
                found = (values > _LOWEST - _SCORES) & (values < _HIGHEST + _SCORES)
                share += float(np.mean(found)) if values.size else 0.0
    return min(share, 1.0)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
