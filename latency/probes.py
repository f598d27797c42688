"""What to measure: random networks, built straight as ONNX.

A kernel alone in a model pays for layout changes that it does not pay inside a network, so kernels
are measured in context, in random networks of up to 16 layers, and in some that are built like
whole ones (`latency.probe_networks`). Networks of one to four small layers have a class of their
own: all that they touch stays in the caches, which makes them run up to twice as fast as the same
layers do among others. A probe is its specification, a few numbers; its weights are random, which
the time of floating-point kernels does not depend on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from devices.errors import InvalidInputError
from latency.graph_builder import GraphBuilder
from latency.layers import LAYOUTS, LayerSpec, Layout, build_layer, draw_channels, draw_layer

if TYPE_CHECKING:
    import numpy as np
    import onnx

__all__ = [
    "ANCHORS",
    "ProbeSpec",
    "begin_probe",
    "build_anchor",
    "build_probe",
    "build_sentinel",
    "model_digest",
    "sample_probe",
    "width_and_side",
]

_LAYOUT_ODDS: dict[Layout, float] = {"image": 0.84, "tokens": 0.07, "grid": 0.07, "vector": 0.02}
_TINY_LAYOUT_ODDS: dict[Layout, float] = {
    "image": 0.5,
    "tokens": 0.05,
    "grid": 0.05,
    "vector": 0.4,
}
_IMAGE_SHARE = 0.5
"""Of the probes that begin with an image of 3 channels; the others begin with a feature map, so
that every kind of layer is seen at every size and not only deep inside a network."""
_MAX_LAYERS = 16
_MAX_TINY_LAYERS = 4
_MAX_MISSES = 4
"""Layers that did not fit into the class of sizes before a probe is left as it is."""
_REPEATS = (1, 2, 3, 4)
_REPEAT_ODDS = (0.55, 0.25, 0.12, 0.08)
"""How often a layer occurs in a row: networks are made of stages, and code that has just run is
still in the caches."""


@dataclass(frozen=True, slots=True)
class _Size:
    """Bounds of one class of probes: they should take milliseconds, visits are short and many."""

    share: float
    madds: int
    weights: int
    peak: int
    ballast: int = 0
    heavy: bool = False
    tiny: bool = False


_SIZES = (
    _Size(0.07, 3_000_000, 1_500_000, 150_000, tiny=True),
    _Size(0.20, 60_000_000, 600_000, 3_000_000),
    _Size(0.16, 60_000_000, 600_000, 3_000_000, ballast=6_000_000),
    _Size(0.47, 300_000_000, 7_000_000, 6_000_000),
    _Size(0.08, 1_500_000_000, 30_000_000, 20_000_000, heavy=True),
    _Size(0.02, 200_000_000, 2_000_000, 6_000_000, ballast=60_000_000, heavy=True),
)
"""Six in ten may grow heavy: weights that do not fit into a core's own cache, as those of whole
networks do not. Some light ones carry a heavy head as ballast, and four in ten stand beside a load,
so that small kernels are seen too where the caches are emptied between two runs."""


_LOAD_SHARE = 0.4
_LOAD_MADDS = (15e6, 2500e6)


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """Convolutions beside a probe, which share its memory and nothing else.

    They let time pass between two runs of each of the probe's kernels, as the rest of a large
    network does: what is kept in a cache that others use too is lost bit by bit meanwhile.

    Attributes:
        side: height and width of their feature map.
        channels: of it.
        kernel: side of the window.
        layers: how many.
    """

    side: int
    channels: int
    kernel: int
    layers: int


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """A probe network; the same specification always builds the same model.

    Attributes:
        layout: of the feature map that its layers work on.
        side: height and width of the input; for tokens given as such, their number; for vectors 1.
        channels: of the input.
        patch: side of the patches that an image is cut into first; 0 when the input is no image but
            a feature map of the layout, or an image that the layers take as it is.
        width: channels of the patches.
        load: what stands beside it, if anything does.
        layers: in order.
        classes: outputs of the linear head, or 0 for none.
        hidden: width of a hidden layer in the head, or 0 for none.
        reduce_mean: whether the head takes its mean with a reduction, as some exporters write it.
    """

    layout: Layout
    side: int
    channels: int
    layers: tuple[LayerSpec, ...]
    classes: int = 0
    hidden: int = 0
    reduce_mean: bool = False
    patch: int = 0
    width: int = 0
    load: LoadSpec | None = None

    def to_json(self) -> dict[str, Any]:
        """The specification as a JSON object; values that are their defaults are left out."""
        nested = ("layers", "load")
        document = {name: getattr(self, name) for name in ProbeSpec.__slots__ if name not in nested}
        if self.load is not None:
            document["load"] = asdict(self.load)
        bare = LayerSpec("", 0)
        document["layers"] = [
            {
                name: getattr(layer, name)
                for name in LayerSpec.__slots__
                if getattr(layer, name) != getattr(bare, name)
            }
            for layer in self.layers
        ]
        return document

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The specification from what `to_json` gave.

        Raises:
            InvalidInputError: a field is missing or unknown.
        """
        try:
            fields = dict(data)
            fields["layers"] = tuple(LayerSpec(**layer) for layer in fields["layers"])
            if fields.get("load") is not None:
                fields["load"] = LoadSpec(**fields["load"])
            if fields["layout"] not in LAYOUTS:
                raise ValueError(fields["layout"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(
                "probe: its specification is not readable; profile the device again."
            ) from error


def sample_probe(rng: np.random.Generator, light: bool = False, tiny: bool = True) -> ProbeSpec:
    """A random probe network.

    Args:
        rng: the one generator that draws everything.
        light: leaves out what takes long: loads and the largest classes.
        tiny: whether the class of tiny networks is among those drawn from.

    Returns:
        A specification of 1 to 16 layers, of images at 3 to 320 pixels.
    """
    classes = [s for s in _SIZES if not (light and s.heavy) and (tiny or not s.tiny)]
    total = sum(s.share for s in classes)
    size = classes[int(rng.choice(len(classes), p=[s.share / total for s in classes]))]
    while True:
        spec = _draw_probe(rng, size)
        if spec.layers:
            return replace(spec, load=None) if light else spec


def build_probe(spec: ProbeSpec, batch: int = 1, seed: int | None = 0) -> onnx.ModelProto:
    """The model of a probe specification.

    Args:
        spec: what to build.
        batch: images in one run.
        seed: of the weights; None leaves their values out, which is enough to tell its kernels.

    Returns:
        An ONNX model with one input "input", batch first.
    """
    import numpy as np

    builder, x = begin_probe(spec, batch, None if seed is None else np.random.default_rng(seed))
    for index, layer in enumerate(spec.layers):
        x = build_layer(builder, f"layers.{index}", x, layer, spec.layout)
    outputs = [_end(builder, spec, x)]
    if spec.load is not None:
        outputs.append(_loaded(builder, spec.load, batch))
    return builder.finish(*outputs)


def begin_probe(
    spec: ProbeSpec, batch: int = 1, rng: np.random.Generator | None = None
) -> tuple[GraphBuilder, str]:
    """A graph that ends in front of a probe's first layer, and the name of that layer's input.

    Args:
        spec: its layers need not be known yet.
        batch: images in one run.
        rng: of the weights; None leaves their values out.
    """
    builder = GraphBuilder(_input_shape(spec, batch), rng)
    return builder, _begin(builder, spec)


def _draw_probe(rng: np.random.Generator, size: _Size) -> ProbeSpec:
    """A probe whose layers are added as long as they fit into its class of sizes."""
    spec = _draw_input(rng, size.tiny)
    builder, x = begin_probe(spec)
    layers: list[LayerSpec] = []
    repeats, misses, layer = 0, 0, LayerSpec("", 0)
    least, most = (1, _MAX_TINY_LAYERS) if size.tiny else (3, _MAX_LAYERS)
    wanted_layers = int(rng.integers(least, most + 1))
    while len(layers) < wanted_layers and misses < _MAX_MISSES:
        width, side = width_and_side(builder.shapes[x], spec.layout)
        stem = spec.layout == "image" and width == 3 and not layers
        if repeats:
            repeats -= 1
            layer = replace(layer, stride=1)
        else:
            layer = draw_layer(rng, spec.layout, width, side, "dense" if stem else None)
            repeats = 0 if stem else int(rng.choice(_REPEATS, p=_REPEAT_ODDS)) - 1
        if stem and rng.random() < 0.75:
            layer = replace(layer, stride=2, dilation=1)
        mark = builder.mark()
        y = build_layer(builder, f"layers.{len(layers)}", x, layer, spec.layout)
        too_large = builder.madds > size.madds or builder.weights > size.weights
        if too_large or builder.peak > size.peak or min(builder.shapes[y]) < 1:
            builder.rewind(mark)
            repeats, misses = 0, misses + 1
            continue
        layers.append(layer)
        x = y
    if size.ballast or rng.random() < 0.6:
        spec = replace(spec, classes=int(rng.choice((2, 10, 100, 1000))))
        spec = replace(spec, reduce_mean=bool(rng.random() < 0.3))
    inputs = math.prod(builder.shapes[x][1:])
    hidden = draw_channels(rng, 512, 1.0, 4096)
    room = size.weights - builder.weights
    if size.ballast:
        hidden = min(4096, int(rng.uniform(0.1, 1.0) * size.ballast / inputs))
        room = size.ballast
    deeper = 0.4 if size.tiny else 0.2
    wanted = bool(size.ballast) or (spec.classes > 0 and rng.random() < deeper)
    if spec.layout == "image" and wanted and 0 < inputs * hidden <= room:
        spec = replace(spec, hidden=hidden)
    if not (size.heavy or size.tiny) and rng.random() < _LOAD_SHARE:
        spec = replace(spec, load=_draw_load(rng))
    return replace(spec, layers=tuple(layers))


def _draw_load(rng: np.random.Generator) -> LoadSpec:
    """A load that takes a tenth of a millisecond to some tens of them."""
    least, most = _LOAD_MADDS
    madds = math.exp(rng.uniform(math.log(least), math.log(most)))
    side = int(rng.choice((7, 10, 14, 14, 20, 28, 28, 40, 56)))
    kernel = int(rng.choice((1, 3), p=(0.35, 0.65)))
    layers = int(rng.integers(1, 5))
    channels = round(math.sqrt(madds / layers) / (side * kernel) / 8) * 8
    channels = min(max(channels, 16), 768)
    return LoadSpec(side, channels, kernel, layers)


def _loaded(b: GraphBuilder, load: LoadSpec, batch: int) -> str:
    x = b.input("load", (batch, load.channels, load.side, load.side))
    for index in range(load.layers):
        y = b.conv(f"load.{index}", x, load.channels, load.kernel)
        x = b.activation(f"load.{index}.act", y, "relu")
    return x


def _draw_input(rng: np.random.Generator, tiny: bool) -> ProbeSpec:
    """Where a probe begins: layout, size and channels of its input."""
    odds = _TINY_LAYOUT_ODDS if tiny else _LAYOUT_ODDS
    layout = LAYOUTS[int(rng.choice(len(odds), p=[odds[layout] for layout in LAYOUTS]))]
    if layout == "vector":
        return ProbeSpec(layout, 1, draw_channels(rng, 200, 1.1), ())
    if tiny:
        return _draw_tiny_input(rng, layout)
    step = int(rng.choice((32, 16, 1), p=(0.6, 0.25, 0.15)))
    image_side = max(32, round(float(rng.uniform(96, 320)) / step) * step)
    is_image = bool(rng.random() < _IMAGE_SHARE)
    if layout == "image":
        if is_image:
            return ProbeSpec(layout, image_side, 3, ())
        reduced = 2 ** int(rng.integers(1, 6))
        side = max(3, -(-image_side // reduced))
        typical = min(max(8.0, 4500.0 / side), 500.0)
        return ProbeSpec(layout, side, draw_channels(rng, typical, 0.7), ())
    heads = int(rng.choice((1, 2, 3, 4, 6, 8, 12)))
    width = max(32, heads * int(rng.choice((16, 24, 32, 32, 48, 64, 64))))
    if layout == "tokens":
        patch = int(rng.choice((8, 14, 16, 16, 32)))
        if is_image:
            return ProbeSpec(layout, image_side, 3, (), patch=patch, width=width)
        return ProbeSpec(layout, int(rng.integers(10, 400)), width, ())
    if is_image:
        return ProbeSpec(layout, image_side, 3, (), patch=int(rng.choice((4, 4, 8))), width=width)
    return ProbeSpec(layout, int(rng.integers(4, 60)), width, ())


def _draw_tiny_input(rng: np.random.Generator, layout: Layout) -> ProbeSpec:
    """As `_draw_input`, of the size of thumbnails and of what is left of an image at the end."""
    if layout == "image" and rng.random() < _IMAGE_SHARE:
        side = int(rng.choice((8, 16, 28, 32, 32, 48, 64)))
        return ProbeSpec(layout, side, int(rng.choice((1, 3), p=(0.3, 0.7))), ())
    side = int(rng.integers(3, 24 if layout == "image" else 10))
    width = draw_channels(rng, min(max(8.0, 600.0 / side), 200.0), 0.7)
    if layout == "tokens":
        side = side**2
    return ProbeSpec(layout, side, width, ())


def _input_shape(spec: ProbeSpec, batch: int) -> tuple[int, ...]:
    if spec.layout == "vector":
        return (batch, spec.channels)
    if spec.layout == "image" or spec.patch:
        return (batch, spec.channels, spec.side, spec.side)
    if spec.layout == "tokens":
        return (batch, spec.side, spec.channels)
    return (batch, spec.side, spec.side, spec.channels)


def _begin(b: GraphBuilder, spec: ProbeSpec) -> str:
    """From the input to the layout of the layers."""
    if not spec.patch:
        return "input"
    x = b.conv("patches", "input", spec.width, spec.patch, spec.patch, padded=False)
    if spec.layout == "grid":
        return b.layer_norm("patches.norm", b.transpose("patches.order", x, (0, 2, 3, 1)))
    batch, width, *sides = b.shapes[x]
    x = b.reshape("patches.flat", x, (batch, width, math.prod(sides)))
    x = b.transpose("patches.order", x, (0, 2, 1))
    if spec.side % 64 == 0:
        x = b.prefix("patches.class", x)
    return b.offset("patches.place", x, (1, b.shapes[x][1], width))


def _end(b: GraphBuilder, spec: ProbeSpec, x: str) -> str:
    """The head, if there is one."""
    if not spec.classes:
        return x
    if spec.layout == "image":
        if spec.hidden:
            y = b.gemm("head.hidden", b.flatten("head.flatten", x), spec.hidden)
            return b.gemm("head", b.activation("head.act", y, "relu"), spec.classes)
        return b.head("head", x, spec.classes, spec.reduce_mean)
    if spec.layout == "vector":
        return b.gemm("head", x, spec.classes)
    y = b.layer_norm("head.norm", x)
    if spec.layout == "tokens":
        return b.gemm("head", b.take("head.first", y, 0, axis=1), spec.classes)
    batch, _, _, width = b.shapes[y]
    y = b.node("ReduceMean", "head.mean", [y], (batch, width), axes=[1, 2], keepdims=0)
    return b.gemm("head", y, spec.classes)


def width_and_side(shape: tuple[int, ...], layout: Layout) -> tuple[int, int]:
    """Channels of a feature map, and its side; for tokens, the square root of their number."""
    if layout == "vector":
        return shape[1], 1
    if layout == "image":
        return shape[1], shape[2]
    return shape[-1], shape[1] if layout == "grid" else math.isqrt(shape[1])


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
