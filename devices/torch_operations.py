"""ONNX operations that compute, as PyTorch: activations, normalisations, sums and products."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from devices.torch_node import Function, Handlers, NodeReading

__all__ = ["ARITHMETIC", "PLAIN"]

ARITHMETIC = Handlers()
"""Those with choices of their own."""


@ARITHMETIC.of("Gemm")
def _gemm(r: NodeReading) -> Function:
    alpha, beta = float(r.options.get("alpha", 1)), float(r.options.get("beta", 1))
    left, right = bool(r.options.get("transA", 0)), bool(r.options.get("transB", 0))

    def call(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a = a.transpose(0, 1) if left else a
        if alpha == beta == 1 and (c is None or c.dim() == 1):
            return F.linear(a, b if right else b.transpose(0, 1), c)
        product = alpha * torch.matmul(a, b.transpose(0, 1) if right else b)
        return product if c is None else product + beta * c

    return call


@ARITHMETIC.of("Einsum")
def _einsum(r: NodeReading) -> Function:
    return partial(torch.einsum, r.options["equation"])


@ARITHMETIC.of("Clip")
def _clip(r: NodeReading) -> Function:
    low, high = r.constant(1, "min"), r.constant(2, "max")
    lowest = None if low is None else float(low)
    highest = None if high is None else float(high)
    if lowest == 0 and (highest is None or highest >= float(np.finfo(np.float32).max)):
        return F.relu
    if lowest is None and highest is None:
        return torch.clone
    if (lowest, highest) == (0, 6):
        return F.relu6
    return lambda x: torch.clamp(x, lowest, highest)


@ARITHMETIC.of("LeakyRelu")
def _leaky(r: NodeReading) -> Function:
    return partial(F.leaky_relu, negative_slope=float(r.options.get("alpha", 0.01)))


@ARITHMETIC.of("Elu")
def _elu(r: NodeReading) -> Function:
    return partial(F.elu, alpha=float(r.options.get("alpha", 1)))


@ARITHMETIC.of("HardSigmoid")
def _hard_sigmoid(r: NodeReading) -> Function:
    slope, offset = float(r.options.get("alpha", 0.2)), float(r.options.get("beta", 0.5))
    if math.isclose(slope, 1 / 6, rel_tol=1e-5) and offset == 0.5:
        return F.hardsigmoid
    return lambda x: torch.clamp(x * slope + offset, 0, 1)


@ARITHMETIC.of("PRelu")
def _prelu(r: NodeReading) -> Function:
    slope, x = r.shapes.get(r.name(1)), r.shapes.get(r.name(0))
    if slope is None or x is None:
        raise r.refuse("an input of unknown shape")
    aligned = (1,) * (len(x) - len(slope)) + slope
    size = math.prod(slope)
    if size != 1 and (len(x) < 2 or aligned[1] != size or x[1] != size):
        return lambda x, slope: torch.where(x < 0, x * slope, x)
    return lambda x, slope: F.prelu(x, slope.reshape(-1))


@ARITHMETIC.of("Gelu")
def _gelu(r: NodeReading) -> Function:
    return partial(F.gelu, approximate=r.options.get("approximate", "none"))


@ARITHMETIC.of("Softmax", "LogSoftmax")
def _softmax(r: NodeReading) -> Function:
    rank = r.rank()
    axis = int(r.options.get("axis", -1 if r.opset >= 13 else 1)) % rank
    if r.opset < 13 and axis != rank - 1:
        raise r.refuse("a softmax over several axes")
    return partial(F.softmax if r.node.op_type == "Softmax" else F.log_softmax, dim=axis)


@ARITHMETIC.of("BatchNormalization")
def _batch_norm(r: NodeReading) -> Function:
    epsilon = float(r.options.get("epsilon", 1e-5))
    if r.options.get("training_mode", 0):
        raise r.refuse("training mode")

    def call(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)

    return call


@ARITHMETIC.of("InstanceNormalization")
def _instance_norm(r: NodeReading) -> Function:
    epsilon = float(r.options.get("epsilon", 1e-5))

    def call(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return F.instance_norm(x, weight=scale, bias=bias, use_input_stats=True, eps=epsilon)

    return call


@ARITHMETIC.of("LayerNormalization")
def _layer_norm(r: NodeReading) -> Function:
    epsilon = float(r.options.get("epsilon", 1e-5))
    shape = r.shapes.get(r.name(0))
    if shape is None:
        raise r.refuse("an input of unknown shape")
    normal = list(shape[int(r.options.get("axis", -1)) % len(shape) :])

    def call(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, normal, scale, bias, epsilon)

    return call


_REDUCTIONS: dict[str, Function] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
}


@ARITHMETIC.of("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
def _reduce(r: NodeReading) -> Function:
    axes = r.integers(1, "axes")
    if not axes:
        if r.options.get("noop_with_empty_axes", 0):
            return torch.clone
        axes = list(range(r.rank()))
    keep = bool(r.options.get("keepdims", 1))
    function = _REDUCTIONS[r.node.op_type]
    if not keep and r.rank() == 4 and sorted(axis % 4 for axis in axes) == [2, 3]:
        # XNNPACK averages images only so; ExecuTorch's own way takes a thousand times as long.
        return lambda x: function(x, axes, keepdim=True).flatten(1)
    return lambda x: function(x, axes, keepdim=keep)


@ARITHMETIC.of("Dropout", "Identity")
def _first(r: NodeReading) -> Function:
    r.known = set(range(1, len(r.node.input)))
    return torch.clone


PLAIN: Mapping[str, Function] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "Div": torch.div,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "HardSwish": F.hardswish,
    "MatMul": torch.matmul,
    "Mish": F.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Pow": torch.pow,
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
}
"""Those that PyTorch calls with the node's inputs as they are."""
