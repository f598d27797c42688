"""Output shapes of the operations that networks mostly consist of, without asking ONNX.

One call of ONNX's own inference carries a node and the types of its inputs to another language and
back: 50 to 100 µs, of which a network of 200 layers needs 200, and as much again for its compiled
graph. These rules say the same in a few. They are ONNX's, operation by operation; what they do not
say for certain (padding by name, an input that does not fit) is left to ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["has_rule", "needs_attributes", "output_shape"]

Shape = tuple[int, ...]
Options = Mapping[str, Any]
Rule = Callable[[Sequence[Shape], Options], Shape | None]


def has_rule(op: str) -> bool:
    """Whether `output_shape` knows an operation of ONNX's own domain."""
    return op in _RULES


def needs_attributes(op: str) -> bool:
    """Whether `output_shape` looks at the attributes of an operation that has a rule."""
    return _RULES[op] not in _PLAIN_RULES


def output_shape(op: str, inputs: Sequence[Shape], options: Options) -> Shape | None:
    """The shape of an operation's only output, whose element type is that of its first input.

    Args:
        op: of ONNX's own domain, one that has a rule.
        inputs: shapes of all inputs.
        options: see `latency.onnx_node.Node`.

    Returns:
        The shape, or None where no rule here says it for certain.
    """
    return _RULES[op](inputs, options) if inputs else None


def _same(inputs: Sequence[Shape], options: Options) -> Shape | None:
    return inputs[0]


def _broadcast(inputs: Sequence[Shape], options: Options) -> Shape | None:
    left, right = inputs[0], inputs[-1]
    if left == right:
        return left
    if len(left) < len(right):
        left, right = right, left
    right = (1,) * (len(left) - len(right)) + right
    sides = []
    for a, b in zip(left, right, strict=True):
        if a != b and a != 1 and b != 1:
            return None
        sides.append(b if a == 1 else a)
    return tuple(sides)


def _window(shape: Shape, window: Sequence[int], options: Options) -> Shape | None:
    """The sides of an image after a window has gone over it."""
    rank = len(window)
    if options.get("auto_pad", "NOTSET") != "NOTSET" or options.get("ceil_mode"):
        return None
    strides = options.get("strides") or [1] * rank
    dilations = options.get("dilations") or [1] * rank
    pads = options.get("pads") or [0] * (2 * rank)
    if not len(shape) == len(strides) == len(dilations) == rank == len(pads) // 2:
        return None
    sides = []
    for i, side in enumerate(shape):
        room = side + pads[i] + pads[rank + i] - dilations[i] * (window[i] - 1) - 1
        if room < 0 or strides[i] < 1:
            return None
        sides.append(room // strides[i] + 1)
    return tuple(sides)


def _convolution(inputs: Sequence[Shape], options: Options) -> Shape | None:
    if len(inputs) < 2 or len(inputs[0]) != len(inputs[1]) or len(inputs[0]) < 3:
        return None
    image, weight = inputs[0], inputs[1]
    window = options.get("kernel_shape") or weight[2:]
    if tuple(window) != weight[2:] or image[1] != weight[1] * options.get("group", 1):
        return None
    sides = _window(image[2:], window, options)
    return None if sides is None else (image[0], weight[0], *sides)


def _pooling(inputs: Sequence[Shape], options: Options) -> Shape | None:
    if len(inputs) != 1 or len(inputs[0]) < 3 or "kernel_shape" not in options:
        return None
    sides = _window(inputs[0][2:], options["kernel_shape"], options)
    return None if sides is None else (*inputs[0][:2], *sides)


def _global_pooling(inputs: Sequence[Shape], options: Options) -> Shape | None:
    shape = inputs[0]
    return (*shape[:2], *([1] * (len(shape) - 2))) if len(shape) > 2 else None


def _gemm(inputs: Sequence[Shape], options: Options) -> Shape | None:
    if len(inputs) < 2 or len(inputs[0]) != 2 or len(inputs[1]) != 2:
        return None
    left = inputs[0][::-1] if options.get("transA") else inputs[0]
    right = inputs[1][::-1] if options.get("transB") else inputs[1]
    return (left[0], right[1]) if left[1] == right[0] else None


def _product(inputs: Sequence[Shape], options: Options) -> Shape | None:
    if len(inputs) != 2 or min(map(len, inputs)) < 2 or inputs[0][-1] != inputs[1][-2]:
        return None
    batch = _broadcast([inputs[0][:-2], inputs[1][:-2]], {})
    return None if batch is None else (*batch, inputs[0][-2], inputs[1][-1])


def _transposition(inputs: Sequence[Shape], options: Options) -> Shape | None:
    shape = inputs[0]
    perm = options.get("perm") or range(len(shape) - 1, -1, -1)
    if sorted(perm) != list(range(len(shape))):
        return None
    return tuple(shape[axis] for axis in perm)


def _concatenation(inputs: Sequence[Shape], options: Options) -> Shape | None:
    first = inputs[0]
    axis = options.get("axis")
    if axis is None or not -len(first) <= axis < len(first):
        return None
    axis %= len(first)
    rest = first[:axis], first[axis + 1 :]
    if any(len(s) != len(first) or (s[:axis], s[axis + 1 :]) != rest for s in inputs):
        return None
    return (*rest[0], sum(shape[axis] for shape in inputs), *rest[1])


def _flattening(inputs: Sequence[Shape], options: Options) -> Shape | None:
    shape, axis = inputs[0], options.get("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        return None
    axis = axis + len(shape) if axis < 0 else axis
    return math.prod(shape[:axis]), math.prod(shape[axis:])


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        (
            "Abs",
            "BatchNormalization",
            "Clip",
            "Dropout",
            "Elu",
            "Erf",
            "Exp",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "Identity",
            "InstanceNormalization",
            "LayerNormalization",
            "LeakyRelu",
            "Log",
            "LogSoftmax",
            "Neg",
            "Reciprocal",
            "Relu",
            "Sigmoid",
            "Softmax",
            "Softplus",
            "Sqrt",
            "Tanh",
        ),
        _same,
    ),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _broadcast),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pooling),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pooling),
    "Conv": _convolution,
    "Gemm": _gemm,
    "MatMul": _product,
    "Transpose": _transposition,
    "Concat": _concatenation,
    "Flatten": _flattening,
}
_PLAIN_RULES = (_same, _broadcast, _global_pooling, _product)
