"""Writes ONNX graphs node by node, in the ways in which exporters write the usual layers.

Probe networks are built with it straight as ONNX: exporting as many through torch would take longer
than measuring them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

__all__ = ["IR_VERSION", "OPSET", "GraphBuilder", "Mark"]

OPSET = 17
"""ONNX operator set of everything built here."""
IR_VERSION = 8
"""ONNX file version of everything built here, old enough for any runtime in use."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the writing of a graph, see `GraphBuilder.mark`."""

    nodes: int
    tensors: int
    named: frozenset[str]
    madds: int
    weights: int
    peak: int


class GraphBuilder:
    """Writes an ONNX graph layer by layer, keeping track of shapes and of its size.

    Args:
        input_shape: of the one input, batch first.
        rng: draws the weights; None leaves their values out, which makes a graph that tells shapes
            and sizes but cannot be run.

    Attributes:
        shapes: of every tensor, by name.
        madds: multiply-adds of convolutions and matrix products so far.
        weights: numbers in all weights so far.
        peak: numbers in the largest tensor so far.
    """

    def __init__(self, input_shape: Sequence[int], rng: np.random.Generator | None) -> None:
        self._inputs = {"input": list(input_shape)}
        self._rng = rng
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._named: set[str] = set()
        self.shapes: dict[str, tuple[int, ...]] = {"input": tuple(input_shape)}
        self.madds = 0
        self.weights = 0
        self.peak = math.prod(input_shape)

    def input(self, name: str, shape: Sequence[int]) -> str:
        """Another input of the graph; returns its name."""
        self._inputs[name] = list(shape)
        self.shapes[name] = tuple(shape)
        self.peak = max(self.peak, math.prod(shape))
        return name

    # -- convolutions and matrix products

    def conv(
        self,
        name: str,
        x: str,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        *,
        window: tuple[int, int] | None = None,
        padded: bool = True,
        bias: bool = True,
    ) -> str:
        """A convolution, padded so that stride 1 keeps the size.

        Args:
            name: of the layer.
            x: the feature map.
            channels: at the output.
            kernel: side of a square window.
            stride: of both directions.
            groups: of channels.
            dilation: of the window.
            window: height and width of a window that is not square.
            padded: whether there is a border of zeros at all.
            bias: whether a bias is added.
        """
        batch, channels_in, *sides = self.shapes[x]
        window = window or (kernel, kernel)
        shape = (channels, channels_in // groups, *window)
        inputs = [x, self._random(f"{name}.weight", shape, math.prod(shape[1:]))]
        if bias:
            inputs.append(self._random(f"{name}.bias", (channels,), 100))
        pads = [dilation * (side - 1) // 2 if padded else 0 for side in window]
        out = [
            (side + 2 * pad - dilation * (reach - 1) - 1) // stride + 1
            for side, pad, reach in zip(sides, pads, window, strict=True)
        ]
        self.madds += batch * math.prod(shape) * math.prod(out)
        return self.node(
            "Conv",
            name,
            inputs,
            (batch, channels, *out),
            kernel_shape=list(window),
            strides=[stride, stride],
            pads=pads * 2,
            dilations=[dilation, dilation],
            group=groups,
        )

    def conv_transpose(
        self, name: str, x: str, channels: int, kernel: int, stride: int, groups: int = 1
    ) -> str:
        """A transposed convolution that makes a feature map `stride` times as large.

        Args:
            name: of the layer.
            x: the feature map.
            channels: at the output.
            kernel: side of a square window, at least `stride`.
            stride: of both directions.
            groups: of channels.
        """
        batch, channels_in, *sides = self.shapes[x]
        shape = (channels_in, channels // groups, kernel, kernel)
        weight = self._random(f"{name}.weight", shape, channels_in // groups * kernel**2)
        bias = self._random(f"{name}.bias", (channels,), 100)
        self.madds += batch * math.prod(shape) * math.prod(sides)
        # Where the window's overhang cannot be taken off evenly, the far edge gets one back.
        pad = -(-(kernel - stride) // 2)
        return self.node(
            "ConvTranspose",
            name,
            [x, weight, bias],
            (batch, channels, *[side * stride for side in sides]),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
            output_padding=[2 * pad - (kernel - stride)] * 2,
            group=groups,
        )

    def gemm(self, name: str, x: str, width: int) -> str:
        """A linear layer of a matrix `(rows, features)`."""
        rows, features = self.shapes[x]
        weight = self._random(f"{name}.weight", (width, features), features)
        bias = self._random(f"{name}.bias", (width,), 100)
        self.madds += rows * features * width
        return self.node("Gemm", name, [x, weight, bias], (rows, width), transB=1)

    def linear(self, name: str, x: str, width: int) -> str:
        """A linear layer over the last axis of any tensor: a matrix product and an addition."""
        *front, features = self.shapes[x]
        weight = self._random(f"{name}.weight", (features, width), features)
        self.madds += math.prod(front) * features * width
        y = self.node("MatMul", f"{name}/product", [x, weight], (*front, width))
        bias = self._random(f"{name}.bias", (width,), 100)
        return self.node("Add", f"{name}/bias", [bias, y], (*front, width))

    def matmul(self, name: str, x: str, y: str) -> str:
        """Product of two batches of matrices."""
        *front, inner = self.shapes[x]
        columns = self.shapes[y][-1]
        self.madds += math.prod(front) * inner * columns
        return self.node("MatMul", name, [x, y], (*front, columns))

    # -- activations and normalisations

    def activation(self, name: str, x: str, kind: str) -> str:
        """An activation, written as exporters write it.

        Args:
            name: of the layer.
            x: any tensor.
            kind: "relu", "relu6", "hardswish", "hardswish_parts" (as older exporters write it),
                "silu", "gelu", "sigmoid", "leaky", "prelu", "elu", "mish", "tanh" or "none".
        """
        shape = self.shapes[x]
        if kind in _PLAIN_ACTIVATIONS:
            return self.node(_PLAIN_ACTIVATIONS[kind], name, [x], shape)
        if kind == "relu6":
            return self.node("Clip", name, [x, self.constant(0.0), self.constant(6.0)], shape)
        if kind == "hardswish_parts":
            y = self.node("HardSigmoid", f"{name}/gate", [x], shape, alpha=1 / 6, beta=0.5)
            return self.node("Mul", name, [x, y], shape)
        if kind == "prelu":
            per_channel = (shape[1], *([1] * (len(shape) - 2)))
            slope = self._random(f"{name}.slope", per_channel, 16)
            return self.node("PRelu", name, [x, slope], shape)
        if kind == "mish":
            y = self.node("Softplus", f"{name}/softplus", [x], shape)
            y = self.node("Tanh", f"{name}/tanh", [y], shape)
            return self.node("Mul", name, [x, y], shape)
        if kind == "silu":
            gate = self.node("Sigmoid", f"{name}/gate", [x], shape)
            return self.node("Mul", name, [x, gate], shape)
        if kind == "gelu":
            y = self.node("Div", f"{name}/scale", [x, self.constant(math.sqrt(2.0))], shape)
            y = self.node("Erf", f"{name}/erf", [y], shape)
            y = self.node("Add", f"{name}/shift", [y, self.constant(1.0)], shape)
            y = self.node("Mul", f"{name}/gate", [x, y], shape)
            return self.node("Mul", name, [y, self.constant(0.5)], shape)
        return x

    def norm(self, name: str, x: str) -> str:
        """Batch norm with fixed statistics."""
        channels = self.shapes[x][1]
        names = [
            self._random(f"{name}.{part}", (channels,), 1) for part in ("scale", "bias", "mean")
        ]
        variance = self._fill(f"{name}.variance", channels, 1.0)
        return self.node("BatchNormalization", name, [x, *names, variance], self.shapes[x])

    def group_norm(self, name: str, x: str, groups: int) -> str:
        """Normalisation of each image over groups of channels, as PyTorch exports it."""
        batch, channels, *sides = shape = self.shapes[x]
        y = self.reshape(
            f"{name}.groups", x, (batch, groups, channels // groups * math.prod(sides))
        )
        y = self.instance_norm(f"{name}.norm", y, learned=False)
        y = self.reshape(f"{name}.back", y, shape)
        return self.offset(
            f"{name}.offset",
            self.layer_scale(f"{name}.scale", y, (channels, 1, 1)),
            (channels, 1, 1),
        )

    def instance_norm(self, name: str, x: str, learned: bool = True) -> str:
        """Normalisation of each channel of each image over its places."""
        channels = self.shapes[x][1]
        if learned:
            scale = self._random(f"{name}.factor", (channels,), 1)
            bias = self._random(f"{name}.bias", (channels,), 1)
        else:
            scale = self._fill(f"{name}.factor", channels, 1.0)
            bias = self._fill(f"{name}.bias", channels, 0.0)
        return self.node("InstanceNormalization", name, [x, scale, bias], self.shapes[x])

    def layer_norm(self, name: str, x: str) -> str:
        """Normalisation over the last axis."""
        width = self.shapes[x][-1]
        names = [self._random(f"{name}.{part}", (width,), 1) for part in ("scale", "bias")]
        return self.node("LayerNormalization", name, [x, *names], self.shapes[x], axis=-1)

    def softmax(self, name: str, x: str) -> str:
        """Softmax over the last axis."""
        return self.node("Softmax", name, [x], self.shapes[x], axis=-1)

    def layer_scale(self, name: str, x: str, shape: Sequence[int]) -> str:
        """Product with learned factors, as many as `shape` has numbers."""
        return self.node("Mul", name, [x, self._random(f"{name}.factor", shape, 1)], self.shapes[x])

    def offset(self, name: str, x: str, shape: Sequence[int]) -> str:
        """Sum with learned numbers: position embeddings, attention biases."""
        return self.node("Add", name, [x, self._random(f"{name}.bias", shape, 1)], self.shapes[x])

    def mask(self, name: str, x: str, shape: Sequence[int]) -> str:
        """Sum with a mask that is -100 for a quarter of its rows and columns, else 0."""
        import numpy as np
        import onnx

        values = np.zeros(shape, dtype=np.float32)
        values[..., : max(1, shape[-2] // 4), shape[-1] // 4 :] = -100.0
        if len(shape) > 4:
            values[:, : shape[1] // 2] = 0.0  # windows away from the edges
        self._weights.append(onnx.numpy_helper.from_array(values, f"{name}.values"))
        return self.node("Add", name, [x, f"{name}.values"], self.shapes[x])

    # -- pooling and attention over channels

    def squeeze_excite(self, name: str, x: str, squeezed: int, kind: str = "sigmoid") -> str:
        """Channel attention: pooled, through two 1×1 convolutions, multiplied on.

        Args:
            name: of the layer.
            x: the feature map.
            squeezed: channels in the middle.
            kind: "sigmoid", "hard" (a hard sigmoid), or "silu" (inside, as some networks have it).
        """
        channels = self.shapes[x][1]
        y = self.global_pool(f"{name}/pool", x)
        y = self.conv(f"{name}/reduce", y, squeezed)
        y = self.activation(f"{name}/act", y, "silu" if kind == "silu" else "relu")
        y = self.conv(f"{name}/expand", y, channels)
        gate = "HardSigmoid" if kind == "hard" else "Sigmoid"
        y = self.node(gate, f"{name}/gate", [y], self.shapes[y])
        return self.multiply(f"{name}/scale", x, y)

    def global_pool(self, name: str, x: str) -> str:
        """Mean over height and width."""
        return self.node("GlobalAveragePool", name, [x], (*self.shapes[x][:2], 1, 1))

    def pool(
        self, name: str, x: str, kernel: int, stride: int, mean: bool, padded: bool = True
    ) -> str:
        """Maximum or mean over a window."""
        batch, channels, *sides = self.shapes[x]
        pad = kernel // 2 if padded else 0
        sides = [(side + 2 * pad - kernel) // stride + 1 for side in sides]
        return self.node(
            "AveragePool" if mean else "MaxPool",
            name,
            [x],
            (batch, channels, *sides),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
        )

    def head(self, name: str, x: str, classes: int, reduce_mean: bool = False) -> str:
        """Mean over height and width, and a linear layer."""
        batch, channels = self.shapes[x][:2]
        if reduce_mean:
            shape = (batch, channels)
            y = self.node("ReduceMean", f"{name}/mean", [x], shape, axes=[2, 3], keepdims=0)
        else:
            y = self.flatten(f"{name}/flatten", self.global_pool(f"{name}/pool", x))
        return self.gemm(f"{name}/linear", y, classes)

    # -- moving data

    def add(self, name: str, x: str, y: str) -> str:
        """Sum of two tensors of one shape."""
        return self.node("Add", name, [x, y], self.shapes[x])

    def multiply(self, name: str, x: str, y: str) -> str:
        """Product of two tensors of one shape, or with a factor for each channel or pixel."""
        return self.node("Mul", name, [x, y], self.shapes[x])

    def concat(self, name: str, parts: Sequence[str], axis: int = 1) -> str:
        """Tensors behind each other."""
        shape = list(self.shapes[parts[0]])
        shape[axis] = sum(self.shapes[part][axis] for part in parts)
        return self.node("Concat", name, list(parts), shape, axis=axis)

    def flatten(self, name: str, x: str) -> str:
        """All axes but the first as one."""
        batch, *rest = self.shapes[x]
        return self.node("Flatten", name, [x], (batch, math.prod(rest)), axis=1)

    def reshape(self, name: str, x: str, shape: Sequence[int]) -> str:
        """The same numbers in another shape."""
        return self.node("Reshape", name, [x, self._integers(f"{name}.shape", shape)], shape)

    def transpose(self, name: str, x: str, perm: Sequence[int]) -> str:
        """Axes in another order."""
        shape = tuple(self.shapes[x][axis] for axis in perm)
        return self.node("Transpose", name, [x], shape, perm=list(perm))

    def squeeze(self, name: str, x: str, axis: int = 0) -> str:
        """Drops an axis of length 1."""
        shape = [size for place, size in enumerate(self.shapes[x]) if place != axis]
        return self.node("Squeeze", name, [x, self._integers(f"{name}.axes", (axis,))], shape)

    def unsqueeze(self, name: str, x: str, axis: int = 0) -> str:
        """Adds an axis of length 1."""
        shape = list(self.shapes[x])
        shape.insert(axis, 1)
        return self.node("Unsqueeze", name, [x, self._integers(f"{name}.axes", (axis,))], shape)

    def prefix(self, name: str, x: str) -> str:
        """One learned token in front of the others."""
        batch, tokens, width = self.shapes[x]
        token = self._random(f"{name}.token", (batch, 1, width), 1)
        return self.node("Concat", name, [token, x], (batch, tokens + 1, width), axis=1)

    def take(self, name: str, x: str, index: int, axis: int = 0) -> str:
        """One entry of an axis, which is dropped."""
        shape = [size for place, size in enumerate(self.shapes[x]) if place != axis]
        place = self._integer(f"{name}.index", index)
        return self.node("Gather", name, [x, place], shape, axis=axis)

    def cut(self, name: str, x: str, axis: int, start: int, end: int, step: int = 1) -> str:
        """A range of an axis."""
        shape = list(self.shapes[x])
        shape[axis] = -(-(end - start) // step)
        bounds = [
            self._integers(f"{name}.{part}", (value,))
            for part, value in (("start", start), ("end", end), ("axis", axis), ("step", step))
        ]
        return self.node("Slice", name, [x, *bounds], shape)

    def pad(self, name: str, x: str, before: Sequence[int], after: Sequence[int]) -> str:
        """A border of zeros."""
        sizes = zip(before, self.shapes[x], after, strict=True)
        pads = self._integers(f"{name}.pads", (*before, *after))
        return self.node("Pad", name, [x, pads], [sum(size) for size in sizes], mode="constant")

    def resize(self, name: str, x: str, factor: int, linear: bool) -> str:
        """A feature map `factor` times as large, by the nearest pixel or between pixels."""
        batch, channels, *sides = self.shapes[x]
        scales = self._numbers(f"{name}.scales", (1.0, 1.0, float(factor), float(factor)))
        options = (
            dict(mode="linear", coordinate_transformation_mode="half_pixel")
            if linear
            else dict(
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        )
        shape = (batch, channels, *[side * factor for side in sides])
        return self.node("Resize", name, [x, "", scales], shape, **options)

    def depth_to_space(self, name: str, x: str, factor: int) -> str:
        """Channels laid out as pixels: `factor` times as large, with fewer channels."""
        batch, channels, *sides = self.shapes[x]
        shape = (batch, channels // factor**2, *[side * factor for side in sides])
        return self.node("DepthToSpace", name, [x], shape, blocksize=factor, mode="CRD")

    def split(self, name: str, x: str, parts: int = 2, axis: int = 1) -> list[str]:
        """Equal parts of an axis."""
        import onnx

        shape = list(self.shapes[x])
        shape[axis] //= parts
        outputs = [f"{name}_out{i}" for i in range(parts)]
        sizes = self._integers(f"{name}.sizes", (shape[axis],) * parts)
        self._nodes.append(
            onnx.helper.make_node("Split", [x, sizes], outputs, name=f"{name}/Split", axis=axis)
        )
        self.shapes.update(dict.fromkeys(outputs, tuple(shape)))
        return outputs

    def interleave(self, name: str, x: str, groups: int = 2) -> str:
        """Channels of the groups in turns: a channel shuffle."""
        batch, channels, height, width = shape = self.shapes[x]
        grouped = (batch, groups, channels // groups, height, width)
        y = self.reshape(f"{name}/group", x, grouped)
        y = self.transpose(f"{name}/swap", y, (0, 2, 1, 3, 4))
        return self.reshape(f"{name}/flat", y, shape)

    # -- the graph itself

    def node(
        self, op: str, name: str, inputs: list[str], shape: Sequence[int], **options: Any
    ) -> str:
        """Any operation with one output of a known shape; returns the output's name."""
        import onnx

        output = f"{name}_out"
        self._nodes.append(
            onnx.helper.make_node(op, inputs, [output], name=f"{name}/{op}", **options)
        )
        self.shapes[output] = tuple(shape)
        self.peak = max(self.peak, math.prod(shape))
        return output

    def finish(self, *outputs: str) -> onnx.ModelProto:
        """The model whose outputs are the given tensors."""
        import onnx

        def info(name: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
            return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape))

        graph = onnx.helper.make_graph(
            self._nodes,
            "probe",
            [info(name, shape) for name, shape in self._inputs.items()],
            [info(name, self.shapes[name]) for name in outputs],
            self._weights,
        )
        opset = onnx.helper.make_opsetid("", OPSET)
        return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)

    def mark(self) -> Mark:
        """Where the graph is now, to go back to with `rewind`."""
        sizes = self.madds, self.weights, self.peak
        return Mark(len(self._nodes), len(self._weights), frozenset(self._named), *sizes)

    def rewind(self, mark: Mark) -> None:
        """Takes back everything that was written since the mark."""
        del self._nodes[mark.nodes :], self._weights[mark.tensors :]
        self._named = set(mark.named)
        self.madds, self.weights, self.peak = mark.madds, mark.weights, mark.peak

    def constant(self, value: float) -> str:
        """A scalar; equal ones are one tensor."""
        import numpy as np
        import onnx

        name = f"constant {value:.9g}"
        if name not in self._named:
            self._named.add(name)
            self._weights.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def _random(self, name: str, shape: Sequence[int], fan_in: int) -> str:
        import numpy as np
        import onnx

        size = math.prod(shape)
        self.weights += size
        if self._rng is None:
            bare = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=shape)
            self._weights.append(bare)
            return name
        # Repeated blocks are as good for timing, and drawing millions of numbers takes longer than
        # a visit.
        block = self._rng.standard_normal(min(size, 65_536), dtype=np.float32)
        values = np.resize(block / np.float32(math.sqrt(max(fan_in, 1))), shape)
        self._weights.append(onnx.numpy_helper.from_array(values, name))
        return name

    def _fill(self, name: str, size: int, value: float) -> str:
        import numpy as np
        import onnx

        values = np.full(size, value, dtype=np.float32)
        self._weights.append(onnx.numpy_helper.from_array(values, name))
        return name

    def _integers(self, name: str, values: Sequence[int]) -> str:
        import numpy as np
        import onnx

        array = np.array(values, dtype=np.int64)
        self._weights.append(onnx.numpy_helper.from_array(array, name))
        return name

    def _numbers(self, name: str, values: Sequence[float]) -> str:
        import numpy as np
        import onnx

        array = np.array(values, dtype=np.float32)
        self._weights.append(onnx.numpy_helper.from_array(array, name))
        return name

    def _integer(self, name: str, value: int) -> str:
        import numpy as np
        import onnx

        self._weights.append(onnx.numpy_helper.from_array(np.array(value, dtype=np.int64), name))
        return name


_PLAIN_ACTIVATIONS = {
    "relu": "Relu",
    "hardswish": "HardSwish",
    "sigmoid": "Sigmoid",
    "leaky": "LeakyRelu",
    "elu": "Elu",
    "tanh": "Tanh",
}
