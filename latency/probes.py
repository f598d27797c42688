"""What to measure: short random networks, built straight as ONNX.

A kernel alone in a model pays for layout changes that it does not pay inside a network, so kernels
are measured in context, in random networks of 4 to 12 layers. They are built with `onnx.helper`:
exporting as many through torch would take longer than measuring them. A probe is its specification,
a few numbers; its weights are random, which the time of floating-point kernels does not depend on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from devices.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy as np
    import onnx

__all__ = [
    "ANCHORS",
    "GraphBuilder",
    "LayerSpec",
    "ProbeSpec",
    "build_anchor",
    "build_probe",
    "build_sentinel",
    "model_digest",
    "sample_probe",
]

OPSET = 17
"""ONNX operator set of everything built here."""
IR_VERSION = 8
"""ONNX file version of everything built here, old enough for any runtime in use."""
ACTIVATIONS = ("relu", "relu6", "hardswish", "silu", "none")
_KIND_ODDS = {
    "dense": 0.12,
    "depthwise": 0.09,
    "grouped": 0.10,
    "pointwise": 0.14,
    "inverted": 0.29,
    "residual": 0.07,
    "pool": 0.06,
    "concat": 0.06,
    "norm": 0.03,
    "shuffle": 0.04,
}
_CHANNEL_KINDS = ("dense", "pointwise", "grouped", "inverted", "concat")
"""Kinds that set the number of channels; the others keep it."""
_SIDES = (7, 8, 14, 16, 28, 32, 56, 64, 112, 128, 160, 192, 224)
_CHANNELS = (8, 12, 16, 20, 24, 32, 40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 240, 256, 320, 384)
# A probe should take milliseconds, not seconds, and load quickly: visits are short and many.
_MAX_LAYER_MADDS = 60_000_000
_MAX_LIGHT_MADDS = 90_000_000
_MAX_HEAVY_MADDS = 300_000_000
_MAX_LIGHT_WEIGHTS = 500_000
_MAX_HEAVY_WEIGHTS = 7_000_000
_HEAVY_SHARE = 0.6
_EARLY_POOL = 0.06
"""Large maps are pooled more often than small ones, as after the stem of many networks."""
_MAX_CHANNELS = 1280


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer of a probe.

    Attributes:
        kind: "dense", "depthwise", "grouped", "pointwise", "inverted" (expand, depthwise, project),
            "residual", "pool", "concat", "norm" (batch norm that no convolution takes up) or
            "shuffle" (channels split in two and interleaved).
        channels: at the output; kinds that keep the channels ignore it.
        kernel: side of the window.
        stride: 1 or 2.
        groups: of a grouped convolution.
        dilation: of a window.
        expansion: of an inverted layer.
        activation: one of `ACTIVATIONS`.
        squeeze: whether a squeeze-excite follows the (depthwise) convolution.
    """

    kind: str
    channels: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    expansion: int = 1
    activation: str = "relu"
    squeeze: bool = False


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """A probe network; the same specification always builds the same model.

    Attributes:
        side: height and width of the input image, which has 3 channels or those of a feature map.
        channels: of the input.
        layers: in order.
        classes: outputs of the linear head, or 0 for none.
        reduce_mean: whether the head takes its mean with a reduction, as some exporters write it.
    """

    side: int
    channels: int
    layers: tuple[LayerSpec, ...]
    classes: int
    reduce_mean: bool = False

    def to_json(self) -> dict[str, Any]:
        """The specification as a JSON object."""
        return {
            "side": self.side,
            "channels": self.channels,
            "classes": self.classes,
            "reduce_mean": self.reduce_mean,
            "layers": [
                {name: getattr(layer, name) for name in LayerSpec.__slots__}
                for layer in self.layers
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The specification from what `to_json` gave.

        Raises:
            InvalidInputError: a field is missing or unknown.
        """
        try:
            layers = tuple(LayerSpec(**layer) for layer in data["layers"])
            side, channels, classes = (int(data[k]) for k in ("side", "channels", "classes"))
            return cls(side, channels, layers, classes, bool(data["reduce_mean"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(
                "probe: its specification is not readable; profile the device again."
            ) from error


class GraphBuilder:
    """Writes an ONNX graph layer by layer, keeping track of shapes.

    Args:
        input_shape: of the one input, batch first.
        rng: draws the weights.
    """

    def __init__(self, input_shape: Sequence[int], rng: np.random.Generator) -> None:
        self._input_shape = list(input_shape)
        self._rng = rng
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {"input": tuple(input_shape)}

    def conv(
        self,
        name: str,
        x: str,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
    ) -> str:
        """A convolution with bias, padded so that stride 1 keeps the size."""
        batch, channels_in, height, width = self.shapes[x]
        taps = channels_in // groups * kernel * kernel
        shape = (channels, channels_in // groups, kernel, kernel)
        weight = self._random(f"{name}.weight", shape, taps)
        bias = self._random(f"{name}.bias", (channels,), 100)
        pad = dilation * (kernel - 1) // 2
        reach = dilation * (kernel - 1) + 1
        sides = [(side + 2 * pad - reach) // stride + 1 for side in (height, width)]
        return self.node(
            "Conv",
            name,
            [x, weight, bias],
            (batch, channels, *sides),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
            dilations=[dilation, dilation],
            group=groups,
        )

    def activation(self, name: str, x: str, kind: str) -> str:
        """One of `ACTIVATIONS`, written as exporters write it."""
        shape = self.shapes[x]
        if kind == "relu":
            return self.node("Relu", name, [x], shape)
        if kind == "relu6":
            bounds = [self._constant("zero", 0.0), self._constant("six", 6.0)]
            return self.node("Clip", name, [x, *bounds], shape)
        if kind == "hardswish":
            return self.node("HardSwish", name, [x], shape)
        if kind == "silu":
            gate = self.node("Sigmoid", f"{name}/gate", [x], shape)
            return self.node("Mul", name, [x, gate], shape)
        return x

    def squeeze_excite(self, name: str, x: str, squeezed: int, hard: bool = False) -> str:
        """Channel attention: pooled, through two 1×1 convolutions, multiplied on."""
        channels = self.shapes[x][1]
        y = self.global_pool(f"{name}/pool", x)
        y = self.activation(f"{name}/act", self.conv(f"{name}/reduce", y, squeezed), "relu")
        y = self.conv(f"{name}/expand", y, channels)
        y = self.node("HardSigmoid" if hard else "Sigmoid", f"{name}/gate", [y], self.shapes[y])
        return self.node("Mul", f"{name}/scale", [x, y], self.shapes[x])

    def global_pool(self, name: str, x: str) -> str:
        """Mean over height and width."""
        return self.node("GlobalAveragePool", name, [x], (*self.shapes[x][:2], 1, 1))

    def pool(self, name: str, x: str, kernel: int, stride: int, mean: bool) -> str:
        """Maximum or mean over a window."""
        batch, channels, *sides = self.shapes[x]
        pad = kernel // 2
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

    def add(self, name: str, x: str, y: str) -> str:
        """Sum of two feature maps."""
        return self.node("Add", name, [x, y], self.shapes[x])

    def concat(self, name: str, parts: Sequence[str]) -> str:
        """Feature maps behind each other."""
        batch, _, height, width = self.shapes[parts[0]]
        channels = sum(self.shapes[part][1] for part in parts)
        return self.node("Concat", name, list(parts), (batch, channels, height, width), axis=1)

    def norm(self, name: str, x: str) -> str:
        """Batch norm with fixed statistics."""
        channels = self.shapes[x][1]
        names = [
            self._random(f"{name}.{part}", (channels,), 1) for part in ("scale", "bias", "mean")
        ]
        return self.node(
            "BatchNormalization",
            name,
            [x, *names, self._ones(f"{name}.variance", channels)],
            self.shapes[x],
        )

    def shuffle(self, name: str, x: str) -> str:
        """Halves of the channels, interleaved: split, concatenated, reshaped and transposed."""
        batch, channels, height, width = shape = self.shapes[x]
        half = (batch, channels // 2, height, width)
        parts = self.split(f"{name}/split", x)
        x = self.concat(f"{name}/join", parts[::-1])
        grouped = (batch, 2, half[1], height, width)
        to_groups = self._integers(f"{name}.groups", grouped)
        x = self.node("Reshape", f"{name}/group", [x, to_groups], grouped)
        swapped = (batch, half[1], 2, height, width)
        x = self.node("Transpose", f"{name}/swap", [x], swapped, perm=[0, 2, 1, 3, 4])
        return self.node(
            "Reshape", f"{name}/flat", [x, self._integers(f"{name}.all", shape)], shape
        )

    def split(self, name: str, x: str) -> list[str]:
        """Two halves of the channels."""
        import onnx

        batch, channels, height, width = self.shapes[x]
        half = (batch, channels // 2, height, width)
        outputs = [f"{name}_out{i}" for i in (0, 1)]
        sizes = self._integers(f"{name}.sizes", (half[1], half[1]))
        self._nodes.append(
            onnx.helper.make_node("Split", [x, sizes], outputs, name=f"{name}/Split", axis=1)
        )
        self.shapes.update(dict.fromkeys(outputs, half))
        return outputs

    def head(self, name: str, x: str, classes: int, reduce_mean: bool = False) -> str:
        """Mean over height and width, and a linear layer."""
        batch, channels = self.shapes[x][:2]
        if reduce_mean:
            shape = (batch, channels)
            y = self.node("ReduceMean", f"{name}/mean", [x], shape, axes=[2, 3], keepdims=0)
        else:
            y = self.global_pool(f"{name}/pool", x)
            y = self.node("Flatten", f"{name}/flatten", [y], (batch, channels), axis=1)
        weight = self._random(f"{name}.weight", (classes, channels), channels)
        bias = self._random(f"{name}.bias", (classes,), 100)
        return self.node("Gemm", f"{name}/linear", [y, weight, bias], (batch, classes), transB=1)

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
        return output

    def finish(self, output: str) -> onnx.ModelProto:
        """The model whose output is the given tensor."""
        import onnx

        kind = onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            self._nodes,
            "probe",
            [onnx.helper.make_tensor_value_info("input", kind, self._input_shape)],
            [onnx.helper.make_tensor_value_info(output, kind, list(self.shapes[output]))],
            self._weights,
        )
        opset = onnx.helper.make_opsetid("", OPSET)
        return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)

    def _random(self, name: str, shape: Sequence[int], fan_in: int) -> str:
        import numpy as np
        import onnx

        # Repeated blocks are as good for timing, and drawing millions of numbers takes longer than
        # a visit.
        size = math.prod(shape)
        block = self._rng.standard_normal(min(size, 65_536), dtype=np.float32)
        values = np.resize(block / np.float32(math.sqrt(max(fan_in, 1))), shape)
        self._weights.append(onnx.numpy_helper.from_array(values, name))
        return name

    def _ones(self, name: str, size: int) -> str:
        import numpy as np
        import onnx

        self._weights.append(onnx.numpy_helper.from_array(np.ones(size, dtype=np.float32), name))
        return name

    def _integers(self, name: str, values: Sequence[int]) -> str:
        import numpy as np
        import onnx

        array = np.array(values, dtype=np.int64)
        self._weights.append(onnx.numpy_helper.from_array(array, name))
        return name

    def _constant(self, name: str, value: float) -> str:
        import numpy as np
        import onnx

        if all(tensor.name != name for tensor in self._weights):
            array = np.array(value, dtype=np.float32)
            self._weights.append(onnx.numpy_helper.from_array(array, name))
        return name


def sample_probe(rng: np.random.Generator) -> ProbeSpec:
    """A random probe network.

    Half of them begin with an image of 3 channels, the others with a feature map, so that every
    layer kind is seen at every size and not only deep inside a network. More than half are heavy:
    their weights do not fit into a core's own cache, as those of whole networks do not. Kernels of
    light probes alone were 10 to 30 % faster than the same kernels inside torchvision networks.

    Args:
        rng: the one generator that draws everything.

    Returns:
        A specification of 4 to 12 layers at 7 to 224 pixels.
    """
    heavy = bool(rng.random() < _HEAVY_SHARE)
    for _ in range(200):
        spec = _draw_probe(rng)
        madds, weights = _size(spec)
        light = madds <= _MAX_LIGHT_MADDS and weights <= _MAX_LIGHT_WEIGHTS
        small = madds <= _MAX_HEAVY_MADDS and weights <= _MAX_HEAVY_WEIGHTS
        if light if not heavy else small and weights > _MAX_LIGHT_WEIGHTS:
            break
    return spec


def _draw_probe(rng: np.random.Generator) -> ProbeSpec:
    image = bool(rng.random() < 0.5)
    side = int(rng.choice(_SIDES[4:] if image else _SIDES[:-2]))
    channels = 3 if image else _channels(rng, 16, side)
    layers: list[LayerSpec] = []
    width, current = channels, side
    for _ in range(int(rng.integers(4, 13))):
        layer = _sample_layer(rng, width, current, first=image and not layers)
        layers.append(layer)
        if layer.stride == 2:
            current = (current + 1) // 2
        if layer.kind in _CHANNEL_KINDS:
            width = layer.channels
    classes = int(rng.choice((10, 100, 1000))) if rng.random() < 0.6 else 0
    reduce_mean = classes > 0 and bool(rng.random() < 0.3)
    return ProbeSpec(side, channels, tuple(layers), classes, reduce_mean)


def build_probe(spec: ProbeSpec, batch: int = 1, seed: int = 0) -> onnx.ModelProto:
    """The model of a probe specification.

    Args:
        spec: what to build.
        batch: images in one run.
        seed: of the weights.

    Returns:
        An ONNX model with one input "input" of shape `(batch, channels, side, side)`.
    """
    import numpy as np

    builder = GraphBuilder(
        (batch, spec.channels, spec.side, spec.side), np.random.default_rng(seed)
    )
    x = "input"
    for index, layer in enumerate(spec.layers):
        x = _build_layer(builder, f"layers.{index}", x, layer)
    if spec.classes:
        x = builder.head("head", x, spec.classes, spec.reduce_mean)
    return builder.finish(x)


def build_sentinel(batch: int = 1) -> onnx.ModelProto:
    """The sentinel: a small fixed network whose time tells how fast the machine is just now.

    It mixes what networks are made of (dense, pointwise and depthwise convolutions), so that it
    slows down as they do, and takes a fraction of a millisecond, so that it costs little.
    """
    import numpy as np

    builder = GraphBuilder((batch, 3, 64, 64), np.random.default_rng(0))
    x = builder.activation("stem.act", builder.conv("stem", "input", 16, 3, 2), "relu")
    for index, channels in enumerate((24, 32, 48)):
        y = builder.activation(f"{index}.a", builder.conv(f"{index}.up", x, channels * 4), "relu")
        y = builder.conv(f"{index}.dw", y, channels * 4, 3, 2 if index else 1, channels * 4)
        x = builder.conv(f"{index}.down", builder.activation(f"{index}.b", y, "relu"), channels)
    x = builder.activation("last.act", builder.conv("last", x, 64, 3), "relu")
    return builder.finish(builder.head("head", x, 10))


ANCHORS = (1, 16)
"""Kernels of the anchor networks, see `build_anchor`."""


def build_anchor(kernels: int, batch: int = 1) -> onnx.ModelProto:
    """A chain of activations on 8 numbers: next to nothing but what every run and kernel costs.

    Whole networks alone tell the cost of a call badly from that of their kernels: in one card of
    noisy probes the call came out at 22 µs, where it takes 5.

    Args:
        kernels: how many; alternately ReLU and sigmoid, which no runtime fuses into one.
        batch: batch size.
    """
    import numpy as np

    builder = GraphBuilder((batch, 8, 1, 1), np.random.default_rng(0))
    x = "input"
    for index in range(kernels):
        x = builder.activation(f"anchor{index}", x, "sigmoid" if index % 2 else "relu")
    return builder.finish(x)


def model_digest(model: onnx.ModelProto) -> str:
    """Digest of a model's structure; large floating-point weights are left out.

    A network exported anew has other random weights but the same latency, and must be recognised.

    Args:
        model: any ONNX model.

    Returns:
        A hexadecimal SHA-256.
    """
    import onnx

    digest = hashlib.sha256()
    graph = model.graph
    for value in (*graph.input, *graph.output):
        digest.update(value.SerializeToString(deterministic=True))
    for node in graph.node:
        digest.update(node.SerializeToString(deterministic=True))
    for tensor in graph.initializer:
        digest.update(repr((tensor.name, tuple(tensor.dims), tensor.data_type)).encode())
        if math.prod(tensor.dims) <= 16 and tensor.data_type != onnx.TensorProto.FLOAT:
            digest.update(tensor.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _channels(rng: np.random.Generator, width: int, side: int, limit: int = 400) -> int:
    """A channel count that suits the size: large maps have few channels, as in real networks.

    Sometimes any whole number, so that remainders modulo the vector width are seen too.
    """
    typical = min(max(8.0, 4500.0 / side), float(limit))
    drawn = math.exp(rng.normal(math.log(math.sqrt(typical * max(width, 8))), 0.5))
    if rng.random() < 0.25:
        return max(4, min(limit, round(drawn)))
    return min(_CHANNELS, key=lambda c: abs(math.log(c / drawn)))


def _size(spec: ProbeSpec) -> tuple[int, int]:
    """Multiply-adds and weights of a probe's convolutions and head, for one image."""
    width, side, madds, weights = spec.channels, spec.side, 0, 0
    for layer in spec.layers:
        before = side * side
        side = -(-side // layer.stride)
        area, window = side * side, layer.kernel**2
        inner = min(width * layer.expansion, _MAX_CHANNELS)
        # Each convolution as (weights, places where they are used).
        parts = {
            "dense": [(width * layer.channels * window, area)],
            "pointwise": [(width * layer.channels, area)],
            "grouped": [(width * layer.channels * window // layer.groups, area)],
            "depthwise": [(width * window, area)],
            "residual": [(width * width * window, area), (width * width, area)],
            "concat": [(width * (layer.channels - width) * window, area)],
            "inverted": [
                (width * inner if layer.expansion > 1 else 0, before),
                (inner * window, area),
                (inner * layer.channels, area),
                (2 * inner * (width // 4) if layer.squeeze else 0, 1),
            ],
        }.get(layer.kind, [])
        madds += sum(count * places for count, places in parts)
        weights += sum(count for count, _ in parts)
        if layer.kind in _CHANNEL_KINDS:
            width = layer.channels
    head = width * spec.classes
    return madds + head, weights + head


def _sample_layer(rng: np.random.Generator, width: int, side: int, first: bool) -> LayerSpec:
    """One layer for a map of that width and side."""
    kind = "dense" if first else str(rng.choice(list(_KIND_ODDS), p=list(_KIND_ODDS.values())))
    if not first and side >= 56 and rng.random() < _EARLY_POOL:
        kind = "pool"
    kernel = int(rng.choice((3, 5, 7), p=(0.65, 0.25, 0.10)))
    stride = 2 if side > 7 and rng.random() < (0.8 if first else 0.25) else 1
    activation = str(rng.choice(ACTIVATIONS, p=(0.28, 0.27, 0.15, 0.15, 0.15)))
    out_side = (side + 1) // stride
    channels = _channels(rng, width, out_side)
    groups, dilation, expansion, squeeze = 1, 1, 1, False
    if kind == "pointwise":
        kernel, stride = 1, 1
        channels = min(channels * int(rng.choice((1, 2, 4))), _MAX_CHANNELS)
    elif kind == "grouped":
        options = [w for w in (4, 8, 12, 16, 24, 32, 48) if width % w == 0 and width > w]
        groups = width // int(rng.choice(options)) if options else 1
        channels = width if rng.random() < 0.5 else max(channels // groups, 1) * groups
        kernel = min(kernel, 5)
    elif kind == "depthwise":
        channels = width
        dilation = int(rng.choice((1, 2, 3), p=(0.8, 0.12, 0.08))) if kernel == 3 else 1
    elif kind == "inverted":
        expansion = int(rng.choice((1, 2, 3, 4, 6), p=(0.15, 0.1, 0.25, 0.2, 0.3)))
        stride = 2 if side >= 28 and rng.random() < 0.4 else stride
        squeeze = bool(rng.random() < 0.25)
        dilation = int(rng.choice((1, 2, 3), p=(0.8, 0.12, 0.08))) if kernel == 3 else 1
    elif kind == "pool":
        kernel, stride = (2, 2) if side % 2 == 0 and rng.random() < 0.4 else (3, stride)
    elif kind == "norm" or (kind == "shuffle" and width % 2 == 0):
        kernel, stride = 1, 1
    elif kind == "shuffle":
        kind, kernel, stride = "norm", 1, 1
    elif kind in ("concat", "residual"):
        kernel, stride = int(rng.choice((1, 3))), 1
    if kind in ("dense", "concat"):
        room = _MAX_LAYER_MADDS / (width * kernel * kernel * out_side * out_side)
        channels = max(4, min(channels, int(room)))
    if kind == "concat":
        channels += width
    return LayerSpec(
        kind, channels, kernel, stride, groups, dilation, expansion, activation, squeeze
    )


def _build_layer(builder: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    width = builder.shapes[x][1]
    if layer.kind == "pool":
        return builder.pool(name, x, layer.kernel, layer.stride, mean=layer.activation != "relu")
    if layer.kind == "norm":
        return builder.activation(f"{name}.act", builder.norm(name, x), "relu")
    if layer.kind == "shuffle":
        return builder.shuffle(name, x)
    if layer.kind == "inverted":
        return _build_inverted(builder, name, x, layer)
    if layer.kind == "residual":
        y = builder.conv(f"{name}.a", x, width, layer.kernel)
        y = builder.activation(f"{name}.a.act", y, layer.activation)
        y = builder.conv(f"{name}.b", y, width)
        y = builder.add(f"{name}.add", y, x)
        return builder.activation(f"{name}.act", y, layer.activation)
    if layer.kind == "concat":
        y = builder.conv(f"{name}.branch", x, layer.channels - width, layer.kernel)
        return builder.concat(name, [x, builder.activation(f"{name}.act", y, layer.activation)])
    groups = width if layer.kind == "depthwise" else layer.groups
    y = builder.conv(name, x, layer.channels, layer.kernel, layer.stride, groups, layer.dilation)
    return builder.activation(f"{name}.act", y, layer.activation)


def _build_inverted(builder: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    width = builder.shapes[x][1]
    inner, y = min(width * layer.expansion, _MAX_CHANNELS), x
    if inner != width:
        y = builder.conv(f"{name}/expand", x, inner)
        y = builder.activation(f"{name}/expand.act", y, layer.activation)
    y = builder.conv(
        f"{name}/depthwise", y, inner, layer.kernel, layer.stride, inner, layer.dilation
    )
    y = builder.activation(f"{name}/depthwise.act", y, layer.activation)
    if layer.squeeze:
        hard = layer.activation == "hardswish"
        y = builder.squeeze_excite(f"{name}/se", y, max(width // 4, 4), hard)
    y = builder.conv(f"{name}/project", y, layer.channels)
    return builder.add(f"{name}/add", y, x) if builder.shapes[y] == builder.shapes[x] else y
