"""Kernels: what a runtime executes, one node of its compiled graph.

A runtime fuses, reorders and renames. What it then executes is a *kernel*: a convolution with its
bias, activation and residual add, a layout change, a pooling. To say which layer of a network a
kernel's time belongs to, every kernel also carries the names of the nodes of the *original* model
that it does the work of (`latency.kernel_reading`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Self

from devices.errors import InvalidInputError

__all__ = [
    "CONVOLUTIONS",
    "FAMILIES",
    "SEEN_ATTRIBUTES",
    "Kernel",
    "KernelGraph",
    "KernelNode",
    "Shape",
    "family_of",
    "operation_name",
]

Shape = tuple[int, ...]

FAMILIES = (
    "conv_dense",
    "conv_pointwise",
    "conv_depthwise",
    "conv_grouped",
    "transposed_conv",
    "gemm",
    "matmul",
    "pool",
    "global_pool",
    "elementwise",
    "activation",
    "softmax",
    "concat",
    "reorder",
    "transpose",
    "resize",
    "reshape",
    "normalisation",
    "reduction",
    "split",
    "other",
)
"""Kinds of kernels; each has a roofline and a regressor of its own."""

CONVOLUTIONS = {"Conv", "FusedConv", "NhwcFusedConv"}
"""Operations that are convolutions."""
_FAMILY_OF_OP = {
    **dict.fromkeys(("Gemm", "FusedGemm", "MatMul", "FusedMatMul"), "gemm"),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), "pool"),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), "global_pool"),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Pow"), "elementwise"),
    **dict.fromkeys(
        (
            "Relu",
            "Clip",
            "LeakyRelu",
            "PRelu",
            "Elu",
            "Sigmoid",
            "HardSigmoid",
            "HardSwish",
            "Tanh",
            "QuickGelu",
            "Gelu",
            "FastGelu",
            "BiasGelu",
            "Erf",
            "Exp",
            "Log",
            "Sqrt",
            "Neg",
            "Abs",
            "Reciprocal",
            "Softplus",
            "Mish",
        ),
        "activation",
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax"), "softmax"),
    "Concat": "concat",
    **dict.fromkeys(("ReorderInput", "ReorderOutput", "Reorder"), "reorder"),
    "ConvTranspose": "transposed_conv",
    **dict.fromkeys(("Transpose", "DepthToSpace", "SpaceToDepth"), "transpose"),
    **dict.fromkeys(("Resize", "Upsample"), "resize"),
    **dict.fromkeys(
        ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast"), "reshape"
    ),
    **dict.fromkeys(
        (
            "BatchNormalization",
            "LayerNormalization",
            "SimplifiedLayerNormalization",
            "SkipLayerNormalization",
            "InstanceNormalization",
            "GroupNorm",
            "GroupNormalization",
            "RMSNormalization",
            "LRN",
            "LpNormalization",
        ),
        "normalisation",
    ),
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ArgMax"), "reduction"
    ),
    **dict.fromkeys(("Split", "Slice", "Gather", "Pad", "Expand", "Tile"), "split"),
}
_ELEMENT_BYTES = {"float64": 8, "int64": 8, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}
SEEN_ATTRIBUTES = {
    "kernel_shape",
    "strides",
    "dilations",
    "pads",
    "group",
    "activation",
    "activation_params",
    "auto_pad",
    "channels",
    "alpha",
    "beta",
    "epsilon",
    "momentum",
    "training_mode",
    "storage_order",
}
"""Attributes with a field of their own, or without influence on the time."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One operation as the runtime executes it; hashable, the key of the latency table.

    Attributes:
        family: one of `FAMILIES`.
        op: operation as the compiled graph calls it, with the last part of its domain in front
            when that is not ONNX's own, such as "nchwc.Conv".
        inputs: shapes of the data inputs (weights left out), logical channels, batch first.
        outputs: shapes of the outputs.
        weights: shapes of the constant inputs, as the runtime keeps them (blocked layouts may be
            padded).
        kernel: window of a convolution or pooling, else empty.
        strides: of the window.
        dilations: of the window.
        pads: of the window, begins then ends.
        groups: of a convolution, else 1.
        activation: fused into the kernel, or "".
        fused_add: whether a residual is added in the kernel.
        dtype: numpy name of the output's element type.
        attributes: the operation's other small attributes as JSON text, or "".
    """

    family: str
    op: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    weights: tuple[Shape, ...] = ()
    kernel: Shape = ()
    strides: Shape = ()
    dilations: Shape = ()
    pads: Shape = ()
    groups: int = 1
    activation: str = ""
    fused_add: bool = False
    dtype: str = "float32"
    attributes: str = ""

    @property
    def output(self) -> Shape:
        """Shape of the first output."""
        return self.outputs[0] if self.outputs else ()

    @property
    def madds(self) -> int:
        """Multiply-adds of convolution and matrix product; 0 for anything else."""
        if self.family.startswith("conv_") and self.weights:
            channels_in = self.inputs[0][1] if self.inputs and len(self.inputs[0]) > 1 else 1
            taps = math.prod(self.kernel) * max(channels_in // max(self.groups, 1), 1)
            return math.prod(self.output) * taps
        if self.family == "transposed_conv" and self.inputs and self.weights:
            return math.prod(self.inputs[0]) * math.prod(self.weights[0][1:])
        if self.family == "gemm" and self.inputs and self.weights:
            sizes = math.prod(self.inputs[0]) * math.prod(self.weights[0])
            return math.isqrt(sizes * math.prod(self.output))
        if self.family == "matmul" and len(self.inputs) > 1:
            # Whichever way the factors are turned: (b·m·k)(b·k·n)(b·m·n) = b·(b·m·k·n)².
            sizes = math.prod(math.prod(shape) for shape in (*self.inputs[:2], self.output))
            return math.isqrt(sizes // max(math.prod(self.output[:-2]), 1))
        return 0

    @property
    def flops(self) -> int:
        """Floating-point operations: two a multiply-add, else one for each element touched."""
        return self.flops_of(self.madds)

    def flops_of(self, madds: int) -> int:
        """As `flops`, where `madds` is known already."""
        if madds:
            extra = math.prod(self.output) * (bool(self.activation) + self.fused_add)
            return 2 * madds + extra
        touched = max((math.prod(s) for s in (*self.inputs, *self.outputs)), default=0)
        if self.family == "pool":
            return math.prod(self.output) * max(math.prod(self.kernel), 1)
        if self.family in ("reshape", "reorder", "transpose", "concat", "split"):
            return 0
        return touched

    @property
    def denormal_work(self) -> int:
        """Operations on denormal numbers, see `latency.denormals`."""
        if '"denormals"' not in self.attributes:
            return 0
        count = int(json.loads(self.attributes)["denormals"])
        return count * (self.output[-1] if self.madds else 1)

    @property
    def bytes_in(self) -> int:
        """Bytes of the data inputs."""
        return self.element_bytes * sum(math.prod(shape) for shape in self.inputs)

    @property
    def bytes_out(self) -> int:
        """Bytes of the outputs."""
        return self.element_bytes * sum(math.prod(shape) for shape in self.outputs)

    @property
    def bytes_weights(self) -> int:
        """Bytes of the constant inputs."""
        return self.element_bytes * sum(math.prod(shape) for shape in self.weights)

    @property
    def signature(self) -> str:
        """The kernel as one stable line; equal kernels and only those have equal signatures."""
        parts = [self.family, self.op, f"{_listed(self.inputs)}>{_listed(self.outputs)}"]
        parts.append(f"w{_listed(self.weights)}")
        for letter, values in (
            ("k", self.kernel), ("s", self.strides), ("d", self.dilations), ("p", self.pads)
        ):  # fmt: skip
            parts.append(letter + "x".join(map(str, values)))
        parts += [f"g{self.groups}", self.activation, "add" if self.fused_add else ""]
        return "|".join((*parts, self.dtype, self.attributes))

    def to_json(self) -> dict[str, Any]:
        """The kernel as a JSON object."""
        return {
            name: [list(shape) for shape in value]
            if name in ("inputs", "outputs", "weights")
            else list(value)
            if isinstance(value, tuple)
            else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The kernel from what `to_json` gave.

        Raises:
            InvalidInputError: a field is missing, unknown or of the wrong type.
        """
        try:
            values = {field.name: data[field.name] for field in fields(cls)}
            for name in ("inputs", "outputs", "weights"):
                values[name] = tuple(tuple(int(n) for n in shape) for shape in values[name])
            for name in ("kernel", "strides", "dilations", "pads"):
                values[name] = tuple(int(n) for n in values[name])
            values["groups"] = int(values["groups"])
            values["fused_add"] = bool(values["fused_add"])
            for name in ("family", "op", "activation", "dtype", "attributes"):
                values[name] = str(values[name])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"kernel: field {error} is missing or unreadable; profile the device again."
            ) from error
        if values["family"] not in FAMILIES:
            raise InvalidInputError(
                f"kernel family {values['family']!r}: unknown; profile the device again."
            )
        return cls(**values)

    @property
    def element_bytes(self) -> int:
        """Bytes of one element of the output."""
        return _ELEMENT_BYTES.get(self.dtype, 4)


@dataclass(frozen=True, slots=True)
class KernelNode:
    """A kernel at its place in a network.

    Attributes:
        kernel: what is executed.
        name: of the node in the compiled graph; profiler times carry it.
        nodes: names of the original model's nodes that it does the work of, the heaviest first
            (convolution, matrix product), then in the original's order; never empty. A node without
            a name goes by its first output. A layout change belongs to the node it is done for.
        sources: for each data input of the kernel, the place in the graph of the kernel that makes
            it; -1 for an input of the network.
    """

    kernel: Kernel
    name: str
    nodes: tuple[str, ...]
    sources: tuple[int, ...] = ()


@dataclass(frozen=True)
class KernelGraph:
    """The kernels of one network in the order of execution.

    Attributes:
        kernels: at least one.
    """

    kernels: tuple[KernelNode, ...]

    @cached_property
    def signatures(self) -> tuple[str, ...]:
        """Signature of each kernel, in order."""
        return tuple(node.kernel.signature for node in self.kernels)


def _listed(shapes: Iterable[Shape]) -> str:
    return ",".join(["x".join(map(str, shape)) or "scalar" for shape in shapes])


def operation_name(op: str, domain: str, attributes: Mapping[str, Any]) -> str:
    """What a kernel's operation is called.

    Args:
        op: the operation as the graph calls it.
        domain: of it.
        attributes: of the node.

    Returns:
        The operation with the last part of its domain in front. ONNX has a GELU of its own since
        its version 20; in ONNX Runtime it takes as long as its own older one (0.8325 and 0.8310 ms
        for 1.2 million numbers, by hand), which it makes of a GELU that is written out: one name
        for both.
    """
    if (op, domain) == ("Gelu", "") and attributes.get("approximate", "none") == "none":
        return "microsoft.Gelu"
    last = domain.rpartition(".")[2]
    return f"{last}.{op}" if last else op


def family_of(
    op: str, window: Shape, groups: int, inputs: Sequence[Shape], has_weights: bool
) -> str:
    """The family of a kernel.

    Args:
        op: its operation, without domain.
        window: of a convolution, ``()`` otherwise.
        groups: of a convolution.
        inputs: shapes of its data.
        has_weights: whether one operand is constant: matrix products of activations are another
            family than layers.
    """
    if op not in CONVOLUTIONS:
        family = _FAMILY_OF_OP.get(op, "other")
        return "matmul" if family == "gemm" and not has_weights else family
    channels = inputs[0][1] if inputs and len(inputs[0]) > 1 else 1
    if groups > 1:
        # Blocked layouts round the groups up to the block: 32 of them for 30 channels.
        return "conv_depthwise" if groups >= channels else "conv_grouped"
    return "conv_pointwise" if math.prod(window) == 1 else "conv_dense"
