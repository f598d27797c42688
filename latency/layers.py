"""The layers that probe networks are made of: what vision networks are made of, in random sizes.

Kinds are the building blocks of the field (inverted bottlenecks, dense blocks, branches, channel
attention, encoders, shifted windows), written in the ways in which exporters write them. Sizes are
drawn from priors that are common to the field: channel counts that are mostly multiples of 8, few
channels on large maps and many on small ones. No network's list of kernels went into them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from devices.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy as np

    from latency.graph_builder import GraphBuilder

__all__ = [
    "ACTIVATIONS",
    "LAYOUTS",
    "LayerSpec",
    "Layout",
    "build_layer",
    "draw_channels",
    "draw_layer",
]

Layout = Literal["image", "tokens", "grid", "vector"]
LAYOUTS: tuple[Layout, ...] = ("image", "tokens", "grid", "vector")
"""How a probe keeps its feature map: `(batch, channels, height, width)`,
`(batch, tokens, channels)`, `(batch, height, width, channels)` or `(batch, features)`."""

_ACTIVATION_ODDS = {
    "relu": 0.32,
    "relu6": 0.13,
    "hardswish": 0.1,
    "hardswish_parts": 0.07,
    "silu": 0.15,
    "leaky": 0.03,
    "prelu": 0.02,
    "gelu": 0.03,
    "sigmoid": 0.015,
    "tanh": 0.015,
    "elu": 0.01,
    "mish": 0.01,
    "none": 0.1,
}
ACTIVATIONS = tuple(_ACTIVATION_ODDS)
_ODDS: Mapping[Layout, Mapping[str, float]] = {
    "image": {
        "inverted": 0.22,
        "fused": 0.04,
        "separable": 0.08,
        "pointwise": 0.07,
        "depthwise": 0.06,
        "dense": 0.06,
        "grouped": 0.05,
        "residual": 0.05,
        "bottleneck": 0.07,
        "sum": 0.05,
        "branches": 0.04,
        "growth": 0.04,
        "unit": 0.03,
        "convnext": 0.02,
        "shrink": 0.01,
        "pool": 0.04,
        "norm": 0.02,
        "gate": 0.02,
        "enlarge": 0.03,
    },
    "tokens": {"encoder": 0.7, "mlp": 0.2, "mixer": 0.1},
    "grid": {"window": 0.6, "mlp": 0.15, "merge": 0.15, "filter": 0.1},
    "vector": {"linear": 1.0},
}
_CHANNEL_STEPS = (8, 16, 32, 64, 4, 1)
_CHANNEL_STEP_ODDS = (0.36, 0.22, 0.16, 0.12, 0.07, 0.07)
_MAX_CHANNELS = 2048


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer of a probe; kinds ignore what does not concern them.

    Attributes:
        kind: for images "dense", "pointwise", "depthwise", "grouped", "separable" (depthwise and
            pointwise), "inverted" (expand, depthwise, project), "fused" (expand with a window,
            project), "residual", "bottleneck", "sum" (parallel paths added or multiplied),
            "branches" (parallel paths concatenated), "growth" (normalised first, concatenated to
            its input), "unit" (split, half processed, shuffled), "convnext", "shrink" (normalised
            over channels, then half as large), "pool", "norm", "gate" (attention over channels or
            pixels without a bottleneck), "enlarge" (twice as many pixels a side); for
            tokens "encoder", "mlp", "mixer"; for grids "window" (attention in shifted windows),
            "merge" (four neighbours to one), "mlp", "filter" (depthwise in between); for vectors
            "linear".
        channels: at the output.
        kernel: side of the window.
        stride: 1, 2, or 4 of a stem.
        groups: of a grouped convolution.
        dilation: of a window.
        expansion: of an inverted layer or an MLP.
        activation: one of `ACTIVATIONS`.
        squeeze: channels in the middle of a channel attention; 0 for none.
        heads: of an attention; paths of "sum" and "branches"; repeats of "growth", "convnext".
        variant: which of the usual ways of writing the layer.
    """

    kind: str
    channels: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    expansion: int = 1
    activation: str = "relu"
    squeeze: int = 0
    heads: int = 1
    variant: int = 0


def draw_channels(
    rng: np.random.Generator, typical: float, spread: float = 0.6, limit: int = _MAX_CHANNELS
) -> int:
    """A channel count around a typical one: mostly a multiple of 8, sometimes any whole number.

    Args:
        rng: the generator.
        typical: median of what is drawn.
        spread: standard deviation of the logarithm.
        limit: the largest.
    """
    drawn = math.exp(rng.normal(math.log(typical), spread))
    step = int(rng.choice(_CHANNEL_STEPS, p=_CHANNEL_STEP_ODDS))
    return int(min(max(step, round(drawn / step) * step, 3), limit))


def draw_layer(
    rng: np.random.Generator, layout: Layout, width: int, side: int, kind: str | None = None
) -> LayerSpec:
    """A random layer for a feature map.

    Args:
        rng: the generator.
        layout: of the feature map.
        width: its channels.
        side: its height and width in pixels; for tokens, the square root of their number; for
            vectors 1.
        kind: of the layer; drawn when left out.
    """
    odds = _ODDS[layout]
    if kind is None:
        kind = str(rng.choice(list(odds), p=list(odds.values())))
    if layout == "vector":
        spec: dict[str, Any] = dict(activation=_drawn_activation(rng), variant=int(rng.integers(4)))
        return LayerSpec(kind, draw_channels(rng, 128, 1.1), **spec)
    if layout != "image":
        heads = [n for n in (1, 2, 3, 4, 6, 8, 12, 16) if width % n == 0 and width // n <= 128]
        return LayerSpec(
            kind,
            width * 2 if kind == "merge" and rng.random() < 0.7 else width,
            kernel=int(rng.choice((7, 7, 7, 8, 4, 5))) if kind == "window" else 7,
            expansion=int(rng.choice((1, 2, 3, 4), p=(0.1, 0.2, 0.2, 0.5))),
            activation=str(rng.choice(("gelu", "gelu", "relu", "silu"))),
            heads=int(rng.choice(heads)) if heads else 1,
            variant=int(rng.integers(6)),
        )
    stride = 2 if side > 6 and rng.random() < 0.22 else 1
    out_side = -(-side // stride)
    activation = _drawn_activation(rng)
    kernel = int(rng.choice((3, 5, 7), p=(0.62, 0.26, 0.12)))
    dilation = int(rng.choice((1, 2, 3), p=(0.85, 0.1, 0.05))) if kernel == 3 else 1
    typical = min(max(8.0, 4500.0 / out_side), 400.0)
    channels = draw_channels(rng, math.sqrt(typical * max(width, 8)), 0.6)
    if rng.random() < 0.3 and stride == 1:
        channels = width
    spec = dict(kernel=kernel, stride=stride, activation=activation)
    if kind in ("pointwise", "norm"):
        spec.update(kernel=1, stride=1 if rng.random() < 0.85 else stride)
        channels = draw_channels(rng, channels * float(rng.choice((1, 1, 2, 4))), 0.3)
        if kind == "norm":
            spec.update(variant=int(rng.integers(3)), groups=int(rng.choice((4, 8, 32))))
    elif kind == "dense":
        spec.update(kernel=int(rng.choice((3, 5, 7, 2), p=(0.75, 0.13, 0.07, 0.05))))
        spec.update(dilation=dilation, variant=int(rng.integers(4)))
    elif kind in ("grouped", "bottleneck"):
        per_group = [n for n in (2, 4, 8, 8, 12, 16, 16, 24, 32, 40, 48, 64) if channels >= 2 * n]
        groups = 1
        if per_group and (kind == "grouped" or rng.random() < 0.5):
            groups = max(2, channels // int(rng.choice(per_group)))
        channels = -(-channels // groups) * groups
        spec.update(groups=groups, kernel=3 if rng.random() < 0.85 else kernel)
        spec.update(expansion=int(rng.choice((1, 2, 4))), squeeze=_squeezed(rng, channels, 0.25))
    elif kind in ("depthwise", "separable"):
        spec.update(dilation=dilation)
    elif kind in ("inverted", "fused"):
        expansion = int(rng.choice((1, 2, 3, 4, 6), p=(0.12, 0.13, 0.25, 0.2, 0.3)))
        inner = min(width * expansion, _MAX_CHANNELS)
        spec.update(expansion=expansion, squeeze=_squeezed(rng, inner, 0.35), dilation=dilation)
        spec.update(kernel=3 if kind == "fused" else kernel, variant=int(rng.integers(3)))
    elif kind in ("sum", "branches"):
        spec.update(heads=int(rng.integers(2, 5)), stride=1, variant=int(rng.integers(1_000_000)))
    elif kind == "growth":
        spec.update(stride=1, expansion=int(rng.choice((0, 2, 4))), heads=int(rng.integers(1, 4)))
        channels = int(rng.choice((8, 12, 16, 24, 32, 48)))
    elif kind == "unit":
        spec.update(kernel=3, stride=1)
    elif kind == "convnext":
        spec.update(kernel=7, stride=1, expansion=4, activation="gelu")
        spec.update(heads=int(rng.integers(1, 4)))
    elif kind == "shrink":
        spec.update(kernel=2, stride=2 if side > 1 else 1)
    elif kind == "pool":
        side_2 = side % 2 == 0 and rng.random() < 0.4
        spec.update(kernel=2 if side_2 else 3, stride=2 if side_2 else stride)
        spec.update(variant=int(rng.integers(3)))
    elif kind == "gate":
        spec.update(stride=1, variant=int(rng.integers(12)))
    elif kind == "enlarge":
        spec.update(stride=2, kernel=int(rng.choice((2, 3, 4))), variant=int(rng.integers(4)))
        channels = draw_channels(rng, max(width / 2, 8), 0.4)
    return LayerSpec(kind, channels, **spec)


def build_layer(builder: GraphBuilder, name: str, x: str, layer: LayerSpec, layout: Layout) -> str:
    """Writes a layer; returns the name of its output.

    Raises:
        InvalidInputError: there is no such kind of layer for the layout.
    """
    builders = {"image": _IMAGE, "tokens": _TOKENS, "grid": _GRID, "vector": _VECTOR}[layout]
    if layer.kind not in builders:
        raise InvalidInputError(
            f"probe layer {layer.kind!r}: unknown for {layout}; profile the device again."
        )
    return builders[layer.kind](builder, name, x, layer)


def _drawn_activation(rng: np.random.Generator) -> str:
    return str(rng.choice(ACTIVATIONS, p=list(_ACTIVATION_ODDS.values())))


def _squeezed(rng: np.random.Generator, channels: int, odds: float) -> int:
    if rng.random() >= odds:
        return 0
    return int(max(4, round(channels / float(rng.choice((4, 8, 16, 24))))))


# -- images


def _conv_act(
    b: GraphBuilder, name: str, x: str, channels: int, kernel: int, layer: LayerSpec, **options: Any
) -> str:
    return b.activation(
        f"{name}.act", b.conv(name, x, channels, kernel, **options), layer.activation
    )


def _dense(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    # Older networks have windows without a border, and windows of one row or column.
    padded = layer.variant != 1 or b.shapes[x][2] < 3 * layer.kernel
    window = None
    if layer.variant == 2 and layer.stride == 1 and layer.kernel > 2:
        window = (1, layer.kernel) if layer.channels % 2 else (layer.kernel, 1)
    return _conv_act(
        b, name, x, layer.channels, layer.kernel, layer, stride=layer.stride,
        dilation=layer.dilation, padded=padded, window=window,
    )  # fmt: skip


def _pointwise(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    return _conv_act(b, name, x, layer.channels, 1, layer, stride=layer.stride)


def _grouped(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    if b.shapes[x][1] % layer.groups:
        x = b.conv(f"{name}.fit", x, layer.channels)
    return _conv_act(
        b, name, x, layer.channels, layer.kernel, layer, stride=layer.stride, groups=layer.groups
    )


def _depthwise(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    width = b.shapes[x][1]
    return _conv_act(
        b, name, x, width, layer.kernel, layer, stride=layer.stride, groups=width,
        dilation=layer.dilation,
    )  # fmt: skip


def _separable(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    y = _depthwise(b, f"{name}.depthwise", x, layer)
    return b.conv(f"{name}.pointwise", y, layer.channels)


def _inverted(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    width = b.shapes[x][1]
    inner, y = min(width * layer.expansion, _MAX_CHANNELS), x
    if inner != width or layer.variant:
        y = _conv_act(b, f"{name}.expand", y, inner, 1, layer)
    y = _conv_act(
        b, f"{name}.depthwise", y, inner, layer.kernel, layer, stride=layer.stride, groups=inner,
        dilation=layer.dilation,
    )  # fmt: skip
    return _projected(b, name, x, y, layer)


def _fused(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    inner = min(b.shapes[x][1] * layer.expansion, _MAX_CHANNELS)
    y = _conv_act(b, f"{name}.expand", x, inner, layer.kernel, layer, stride=layer.stride)
    return _projected(b, name, x, y, layer)


def _projected(b: GraphBuilder, name: str, x: str, y: str, layer: LayerSpec) -> str:
    if layer.squeeze:
        kind = {"silu": "silu", "hardswish": "hard", "hardswish_parts": "hard"}
        y = b.squeeze_excite(f"{name}.se", y, layer.squeeze, kind.get(layer.activation, "sigmoid"))
    y = b.conv(f"{name}.project", y, layer.channels)
    return b.add(f"{name}.add", y, x) if b.shapes[y] == b.shapes[x] else y


def _residual(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    y = _conv_act(b, f"{name}.a", x, layer.channels, layer.kernel, layer, stride=layer.stride)
    y = b.conv(f"{name}.b", y, layer.channels, 3)
    return _joined(b, name, x, y, layer)


def _bottleneck(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    y = _conv_act(b, f"{name}.a", x, layer.channels, 1, layer)
    y = _conv_act(
        b, f"{name}.b", y, layer.channels, layer.kernel, layer, stride=layer.stride,
        groups=layer.groups,
    )  # fmt: skip
    if layer.squeeze:
        y = b.squeeze_excite(f"{name}.se", y, layer.squeeze)
    y = b.conv(f"{name}.c", y, min(layer.channels * layer.expansion, _MAX_CHANNELS))
    return _joined(b, name, x, y, layer)


def _joined(b: GraphBuilder, name: str, x: str, y: str, layer: LayerSpec) -> str:
    """Adds the shortcut, by a convolution where the shapes differ."""
    if b.shapes[x] != b.shapes[y]:
        x = b.conv(f"{name}.shortcut", x, b.shapes[y][1], 1, layer.stride)
    return b.activation(f"{name}.act", b.add(f"{name}.add", y, x), layer.activation)


def _path(b: GraphBuilder, name: str, x: str, code: int, channels: int, layer: LayerSpec) -> str:
    """One of several parallel paths."""
    width = b.shapes[x][1]
    choice = code % 7
    if choice == 0:
        return _conv_act(b, f"{name}.a", x, channels, 1, layer)
    if choice in (1, 2):
        y = _conv_act(b, f"{name}.a", x, max(4, channels * 3 // 4), 1, layer)
        return _conv_act(b, f"{name}.b", y, channels, 3 if choice == 1 else 5, layer)
    if choice == 3:
        y = _conv_act(b, f"{name}.a", x, max(4, channels // 2), 1, layer)
        side = layer.kernel if layer.kernel > 3 else 7
        y = _conv_act(b, f"{name}.b", y, channels, side, layer, window=(1, side))
        return _conv_act(b, f"{name}.c", y, channels, side, layer, window=(side, 1))
    if choice == 4:
        y = b.pool(f"{name}.pool", x, 3, 1, mean=code % 2 == 0)
        return _conv_act(b, f"{name}.a", y, channels, 1, layer)
    y = b.conv(f"{name}.depthwise", x, width, layer.kernel, groups=width)
    if choice == 6:
        y = b.activation(f"{name}.act", y, layer.activation)
    return b.conv(f"{name}.pointwise", y, channels)


def _sum(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    code, total = layer.variant, ""
    for index in range(layer.heads):
        y = _path(b, f"{name}.{index}", x, code, layer.channels, layer)
        merge = b.multiply if code % 11 > 8 else b.add
        total = merge(f"{name}.merge{index}", total, y) if total else y
        code //= 7
    return total


def _branches(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    code, parts = layer.variant, []
    for index in range(layer.heads):
        share = max(8, layer.channels // layer.heads)
        parts.append(_path(b, f"{name}.{index}", x, code, share, layer))
        code //= 7
    return b.concat(name, parts)


def _growth(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    parts = [x]
    for index in range(layer.heads):
        inner = f"{name}.{index}"
        y = b.concat(f"{inner}.join", parts) if len(parts) > 1 else x
        y = b.activation(f"{inner}.act", b.norm(f"{inner}.norm", y), "relu")
        if layer.expansion:
            y = b.conv(f"{inner}.reduce", y, layer.channels * layer.expansion)
            y = b.activation(f"{inner}.reduce.act", y, "relu")
        parts.append(b.conv(inner, y, layer.channels, 3))
    return b.concat(f"{name}.out", parts)


def _unit(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    width = b.shapes[x][1]
    if width % 2:
        width = max(8, width // 8 * 8)
        x = b.conv(f"{name}.fit", x, width)
    left, right = b.split(f"{name}.halves", x)
    y = _conv_act(b, f"{name}.a", right, width // 2, 1, layer)
    y = b.conv(f"{name}.b", y, width // 2, layer.kernel, groups=width // 2)
    y = _conv_act(b, f"{name}.c", y, width // 2, 1, layer)
    return b.interleave(f"{name}.shuffle", b.concat(f"{name}.join", [left, y]))


def _convnext(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    width = b.shapes[x][1]
    for index in range(layer.heads):
        own = f"{name}.{index}"
        y = b.conv(f"{own}.depthwise", x, width, layer.kernel, groups=width)
        y = b.layer_norm(f"{own}.norm", b.transpose(f"{own}.to_grid", y, (0, 2, 3, 1)))
        y = b.activation(
            f"{own}.act", b.linear(f"{own}.up", y, width * layer.expansion), layer.activation
        )
        y = b.transpose(f"{own}.to_image", b.linear(f"{own}.down", y, width), (0, 3, 1, 2))
        x = b.add(f"{own}.add", b.layer_scale(f"{own}.scale", y, (width, 1, 1)), x)
    return x


def _shrink(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    y = b.layer_norm(f"{name}.norm", b.transpose(f"{name}.to_grid", x, (0, 2, 3, 1)))
    y = b.transpose(f"{name}.to_image", y, (0, 3, 1, 2))
    side = layer.kernel if layer.stride > 1 else 1
    return b.conv(name, y, layer.channels, side, layer.stride, padded=False)


def _pool(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    padded = layer.variant != 2 and layer.kernel > 2
    return b.pool(name, x, layer.kernel, layer.stride, mean=layer.variant == 1, padded=padded)


def _norm(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    if layer.variant == 1:
        y = b.group_norm(f"{name}.norm", x, math.gcd(layer.groups, b.shapes[x][1]))
    elif layer.variant == 2:
        y = b.instance_norm(f"{name}.norm", x)
    else:
        y = b.norm(f"{name}.norm", x)
    return b.conv(name, b.activation(f"{name}.act", y, "relu"), layer.channels)


def _gate(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    """A path that is multiplied with factors from another one, or from itself."""
    y = _conv_act(b, f"{name}.value", x, layer.channels, 1, layer)
    source = y if layer.variant % 2 else x
    if layer.variant % 3 == 2:
        # One factor a pixel, from all channels.
        z = b.conv(f"{name}.weigh", source, 1, layer.kernel)
    else:
        if b.shapes[source][1] != layer.channels:
            source = b.conv(f"{name}.fit", source, layer.channels)
        if layer.variant % 3:
            batch, channels = b.shapes[source][:2]
            z = b.node(
                "ReduceMean", f"{name}.mean", [source], (batch, channels, 1, 1), axes=[2, 3],
                keepdims=1,
            )  # fmt: skip
        else:
            z = b.global_pool(f"{name}.pool", source)
    gate = "HardSigmoid" if layer.variant >= 9 else "Sigmoid"
    return b.multiply(name, y, b.node(gate, f"{name}.gate", [z], b.shapes[z]))


def _enlarge(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    """Twice as many pixels a side, in the ways of decoders."""
    if layer.variant == 0:
        y = b.conv_transpose(f"{name}.up", x, layer.channels, layer.kernel, 2)
        return b.activation(f"{name}.act", y, layer.activation)
    if layer.variant == 1:
        y = b.conv(f"{name}.wide", x, 4 * layer.channels, 1 if layer.kernel == 2 else 3)
        return b.activation(f"{name}.act", b.depth_to_space(f"{name}.up", y, 2), layer.activation)
    y = b.resize(f"{name}.up", x, 2, linear=layer.variant == 3)
    return _conv_act(b, name, y, layer.channels, 1 if layer.kernel == 2 else 3, layer)


# -- tokens and grids


def _encoder(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    y = b.layer_norm(f"{name}.norm1", x)
    attention = (_attention, _joint_attention, _stock_attention)[layer.variant % 3]
    y = attention(b, f"{name}.attention", y, layer)
    return _mlp(b, f"{name}.mlp", b.add(f"{name}.add", x, y), layer)


def _attention(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    """Queries, keys and values by a linear layer each."""
    batch, tokens, width = b.shapes[x]
    each = width // layer.heads
    parts = []
    for part in ("query", "key", "value"):
        y = b.linear(f"{name}.{part}", x, width)
        y = b.reshape(f"{name}.{part}.heads", y, (batch, tokens, layer.heads, each))
        perm = (0, 2, 3, 1) if part == "key" else (0, 2, 1, 3)
        parts.append(b.transpose(f"{name}.{part}.order", y, perm))
    y = b.matmul(f"{name}.scores", parts[0], parts[1])
    y = b.node("Div", f"{name}.scaled", [y, b.constant(math.sqrt(each))], b.shapes[y])
    y = b.matmul(f"{name}.mix", b.softmax(f"{name}.softmax", y), parts[2])
    y = b.reshape(
        f"{name}.join", b.transpose(f"{name}.back", y, (0, 2, 1, 3)), (batch, tokens, width)
    )
    return b.linear(f"{name}.out", y, width)


def _joint_attention(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    """Queries, keys and values by one linear layer, taken apart afterwards."""
    batch, tokens, width = b.shapes[x]
    each, heads = width // layer.heads, layer.heads
    y = b.linear(f"{name}.joint", x, 3 * width)
    y = b.reshape(f"{name}.parts", y, (batch, tokens, 3, heads, each))
    y = b.transpose(f"{name}.order", y, (2, 0, 3, 1, 4))
    if layer.variant < 3:
        query, key, value = (b.take(f"{name}.take{i}", y, i) for i in range(3))
    else:
        parts = b.split(f"{name}.split", y, 3, axis=0)
        query, key, value = (b.squeeze(f"{name}.take{i}", p) for i, p in enumerate(parts))
    query = b.node("Mul", f"{name}.scaled", [query, b.constant(each**-0.5)], b.shapes[query])
    y = b.matmul(f"{name}.scores", query, b.transpose(f"{name}.turn", key, (0, 1, 3, 2)))
    y = b.matmul(f"{name}.mix", b.softmax(f"{name}.softmax", y), value)
    y = b.transpose(f"{name}.back", y, (0, 2, 1, 3))
    y = b.reshape(f"{name}.rows", y, (batch * tokens, width))
    y = b.gemm(f"{name}.out", y, width)
    return b.reshape(f"{name}.tokens", y, (batch, tokens, width))


def _stock_attention(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    """As PyTorch's own module for it is exported: tokens first, scaled on both sides."""
    batch, tokens, width = b.shapes[x]
    each, heads = width // layer.heads, layer.heads
    y = b.linear(f"{name}.joint", b.transpose(f"{name}.first", x, (1, 0, 2)), 3 * width)
    y = b.reshape(f"{name}.parts", y, (tokens, batch, 3, width))
    y = b.unsqueeze(f"{name}.front", y)
    y = b.squeeze(f"{name}.order", b.transpose(f"{name}.swap", y, (3, 1, 2, 0, 4)), 3)
    found = []
    for index, part in enumerate(("query", "key", "value")):
        z = b.take(f"{name}.{part}", y, index)
        z = b.reshape(f"{name}.{part}.heads", z, (tokens, batch * heads, each))
        z = b.transpose(f"{name}.{part}.order", z, (1, 0, 2))
        found.append(b.reshape(f"{name}.{part}.apart", z, (batch, heads, tokens, each)))
    query, key, value = found
    key = b.transpose(f"{name}.turn", key, (0, 1, 3, 2))
    scale = b.constant(each**-0.25)
    query = b.node("Mul", f"{name}.query.scaled", [query, scale], b.shapes[query])
    key = b.node("Mul", f"{name}.key.scaled", [key, scale], b.shapes[key])
    y = b.softmax(f"{name}.softmax", b.matmul(f"{name}.scores", query, key))
    y = b.transpose(f"{name}.back", b.matmul(f"{name}.mix", y, value), (2, 0, 1, 3))
    y = b.gemm(f"{name}.out", b.reshape(f"{name}.rows", y, (tokens * batch, width)), width)
    y = b.reshape(f"{name}.tokens", y, (tokens, batch, width))
    return b.transpose(f"{name}.last", y, (1, 0, 2))


def _mlp(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    width = b.shapes[x][-1]
    y = b.linear(f"{name}.up", b.layer_norm(f"{name}.norm", x), width * layer.expansion)
    y = b.linear(f"{name}.down", b.activation(f"{name}.act", y, layer.activation), width)
    return b.add(f"{name}.add", x, y)


def _mixer(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    """An MLP over the tokens instead of the channels."""
    tokens = b.shapes[x][1]
    y = b.transpose(f"{name}.turn", b.layer_norm(f"{name}.norm", x), (0, 2, 1))
    y = b.activation(f"{name}.act", b.linear(f"{name}.up", y, tokens), layer.activation)
    y = b.transpose(f"{name}.back", b.linear(f"{name}.down", y, tokens), (0, 2, 1))
    return b.add(f"{name}.add", x, y)


def _window(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    """Attention in windows, which are shifted by half a window in every other layer."""
    batch, side, _, width = b.shapes[x]
    window = min(layer.kernel, side)
    fitting = -(-side // window) * window
    y = b.layer_norm(f"{name}.norm", x)
    if fitting != side:
        edge = fitting - side
        y = b.pad(f"{name}.pad", y, (0, 0, 0, 0), (0, edge, edge, 0))
    shift = window // 2 if layer.variant % 2 and fitting > window else 0
    if shift:
        y = _rolled(b, f"{name}.roll", y, shift)
    count, area = (fitting // window) ** 2 * batch, window * window
    y = b.reshape(
        f"{name}.cut", y, (batch, fitting // window, window, fitting // window, window, width)
    )
    y = b.transpose(f"{name}.windows", y, (0, 1, 3, 2, 4, 5))
    y = b.reshape(f"{name}.rows", y, (count, area, width))
    y = _windowed_attention(b, f"{name}.attention", y, layer, masked=shift > 0)
    y = b.reshape(
        f"{name}.apart", y, (batch, fitting // window, fitting // window, window, window, width)
    )
    y = b.transpose(f"{name}.rejoin", y, (0, 1, 3, 2, 4, 5))
    y = b.reshape(f"{name}.map", y, (batch, fitting, fitting, width))
    if shift:
        y = _rolled(b, f"{name}.unroll", y, fitting - shift)
    if fitting != side:
        y = b.cut(f"{name}.crop_rows", y, 1, 0, side)
        y = b.cut(f"{name}.crop_columns", y, 2, 0, side)
    return _mlp(b, f"{name}.mlp", b.add(f"{name}.add", x, y), layer)


def _windowed_attention(b: GraphBuilder, name: str, x: str, layer: LayerSpec, masked: bool) -> str:
    count, area, width = b.shapes[x]
    heads, each = layer.heads, width // layer.heads
    y = b.linear(f"{name}.joint", x, 3 * width)
    y = b.reshape(f"{name}.parts", y, (count, area, 3, heads, each))
    y = b.transpose(f"{name}.order", y, (2, 0, 3, 1, 4))
    parts = b.split(f"{name}.split", y, 3, axis=0)
    query, key, value = (b.squeeze(f"{name}.take{i}", p) for i, p in enumerate(parts))
    query = b.node("Mul", f"{name}.scaled", [query, b.constant(each**-0.5)], b.shapes[query])
    y = b.matmul(f"{name}.scores", query, b.transpose(f"{name}.turn", key, (0, 1, 3, 2)))
    y = b.offset(f"{name}.bias", y, (1, heads, area, area))
    if masked:
        # What a shift has brought together from opposite edges must not attend to each other.
        y = b.reshape(f"{name}.images", y, (1, count, heads, area, area))
        y = b.mask(f"{name}.mask", y, (1, count, 1, area, area))
        y = b.reshape(f"{name}.windows", y, (count, heads, area, area))
    y = b.matmul(f"{name}.mix", b.softmax(f"{name}.softmax", y), value)
    y = b.transpose(f"{name}.back", y, (0, 2, 1, 3))
    return b.linear(f"{name}.out", b.reshape(f"{name}.join", y, (count, area, width)), width)


def _rolled(b: GraphBuilder, name: str, x: str, shift: int) -> str:
    """Both axes of a grid turned by some places."""
    for axis in (1, 2):
        side = b.shapes[x][axis]
        parts = [
            b.cut(f"{name}.{axis}.tail", x, axis, shift, side),
            b.cut(f"{name}.{axis}.head", x, axis, 0, shift),
        ]
        x = b.concat(f"{name}.{axis}", parts, axis)
    return x


def _merge(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    """Four neighbours behind each other, normalised, to twice the channels."""
    side = b.shapes[x][1] // 2 * 2
    if side < 2:
        return _mlp(b, name, x, layer)
    parts = []
    for index in range(4):
        y = b.cut(f"{name}.rows{index}", x, 1, index % 2, side, 2)
        parts.append(b.cut(f"{name}.columns{index}", y, 2, index // 2, side, 2))
    y = b.layer_norm(f"{name}.norm", b.concat(f"{name}.join", parts, 3))
    return b.linear(f"{name}.reduce", y, layer.channels)


def _linear(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    y = b.activation(f"{name}.act", b.gemm(name, x, layer.channels), layer.activation)
    residual = layer.variant == 3 and b.shapes[x] == b.shapes[y]
    return b.add(f"{name}.add", y, x) if residual else y


def _filter(b: GraphBuilder, name: str, x: str, layer: LayerSpec) -> str:
    width = b.shapes[x][-1]
    y = b.transpose(f"{name}.to_image", x, (0, 3, 1, 2))
    y = b.conv(f"{name}.depthwise", y, width, layer.kernel, groups=width)
    return _mlp(b, f"{name}.mlp", b.transpose(f"{name}.to_grid", y, (0, 2, 3, 1)), layer)


_Builder = Callable[["GraphBuilder", str, str, LayerSpec], str]
_IMAGE: dict[str, _Builder] = {
    "dense": _dense,
    "pointwise": _pointwise,
    "grouped": _grouped,
    "depthwise": _depthwise,
    "separable": _separable,
    "inverted": _inverted,
    "fused": _fused,
    "residual": _residual,
    "bottleneck": _bottleneck,
    "sum": _sum,
    "branches": _branches,
    "growth": _growth,
    "unit": _unit,
    "convnext": _convnext,
    "shrink": _shrink,
    "pool": _pool,
    "norm": _norm,
    "gate": _gate,
    "enlarge": _enlarge,
}
_TOKENS: dict[str, _Builder] = {"encoder": _encoder, "mlp": _mlp, "mixer": _mixer}
_GRID: dict[str, _Builder] = {
    "window": _window,
    "merge": _merge,
    "mlp": _mlp,
    "filter": _filter,
}
_VECTOR: dict[str, _Builder] = {"linear": _linear}
