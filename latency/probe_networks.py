"""Probes that are built like whole networks: a stem, stages of repeated blocks, a head.

Kernels of short probes are measured beside a handful of others. In a network of a hundred kernels
more code runs in turn, feature maps come from further away, and what one run of the network touches
is spread over more of it; a card of short probes only was 4 to 6 % too high on networks. So some
probes are as long as networks are. How these are composed, is common to the field: one kind of
block for most of a network, fewer pixels and more channels from stage to stage. No network's list
of layers went into it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from latency.layers import LayerSpec, build_layer, draw_channels, draw_layer
from latency.probes import ProbeSpec, begin_probe, width_and_side

if TYPE_CHECKING:
    import numpy as np

    from latency.graph_builder import GraphBuilder

__all__ = ["sample_network"]

_LAYOUT_ODDS = (0.84, 0.08, 0.08)
_KINDS = {
    "inverted": 0.3,
    "bottleneck": 0.16,
    "residual": 0.13,
    "separable": 0.1,
    "fused": 0.07,
    "dense": 0.06,
    "unit": 0.05,
    "growth": 0.05,
    "branches": 0.04,
    "convnext": 0.03,
    "gate": 0.01,
}
"""Odds of the kind of block that most of a network is made of."""
_SUMS = 0.12
_KINDS_WITH_SUMS = {**{kind: (1 - _SUMS) * odds for kind, odds in _KINDS.items()}, "sum": _SUMS}
"""The same with parallel paths that are added, as in evolved cells; they tell nothing new where
each path is timed by itself."""
_UNSTRIDED = ("unit", "growth", "branches", "convnext", "gate", "sum")
"""Kinds that keep the number of pixels: something in front of a stage has to reduce it."""
_OTHER_KIND = 0.15
"""Odds that a stage has blocks of another kind than the rest of its network."""
_DEPTHS = (1, 2, 3, 4, 5, 6, 8)
_DEPTH_ODDS = (0.14, 0.24, 0.22, 0.16, 0.09, 0.1, 0.05)
_WIDTH_STEPS = (8, 16, 32, 64, 4, 1)
_WIDTH_STEP_ODDS = (0.4, 0.24, 0.16, 0.12, 0.05, 0.03)
_GROWTH = (1.25, 2.1)
"""By what the channels grow from stage to stage."""
_DECODER_SHARE = 0.06
"""Odds that an image's network grows its feature map again, as those that label pixels do."""
_MAX_LAYERS = 40
_MIN_LAYERS = 8
_MADDS = (60e6, 3000e6)
"""The most that a network may take, even in orders: 2 to 100 ms of one core."""
_SMALL_MADDS = (0.5e6, 60e6)
"""The same of small networks, for images of thumbnails' size: 0.03 to 2 ms."""
_TYPICAL_MADDS = 6e8
_MAX_WEIGHTS = 30_000_000
_MAX_PEAK = 12_000_000


def sample_network(rng: np.random.Generator, sums: bool = False, small: bool = False) -> ProbeSpec:
    """A random probe built like a whole network.

    Args:
        rng: the one generator that draws everything.
        sums: whether parallel paths that are added are among the kinds of blocks.
        small: for thumbnails, and all of it small enough to stay in a core's own caches.

    Returns:
        A specification of 8 to 40 layers for an image of 96 to 320 pixels; of 16 to 96 if small.
    """
    while True:
        kind = 0 if small else int(rng.choice(3, p=_LAYOUT_ODDS))
        if kind:
            spec = (_token_network, _grid_network)[kind - 1](rng)
        else:
            spec = _image_network(rng, _KINDS_WITH_SUMS if sums else _KINDS, small)
        if len(spec.layers) >= _MIN_LAYERS:
            return spec


class _Draft:
    """A network in the making, which takes layers as long as they fit."""

    def __init__(self, rng: np.random.Generator, spec: ProbeSpec, small: bool = False) -> None:
        least, most = _SMALL_MADDS if small else _MADDS
        self.spec = spec
        self.madds = math.exp(rng.uniform(math.log(least), math.log(most)))
        self.builder: GraphBuilder
        self.builder, self.x = begin_probe(spec)
        self.layers: list[LayerSpec] = []

    @property
    def width_and_side(self) -> tuple[int, int]:
        """Channels and side of the feature map at its end."""
        return width_and_side(self.builder.shapes[self.x], self.spec.layout)

    def take(self, layer: LayerSpec) -> bool:
        """Adds a layer; whether it fitted."""
        builder = self.builder
        mark = builder.mark()
        name = f"layers.{len(self.layers)}"
        y = build_layer(builder, name, self.x, layer, self.spec.layout)
        too_large = builder.madds > self.madds or builder.weights > _MAX_WEIGHTS
        too_large = too_large or builder.peak > _MAX_PEAK or len(self.layers) == _MAX_LAYERS
        if too_large or min(builder.shapes[y]) < 1:
            builder.rewind(mark)
            return False
        self.layers.append(layer)
        self.x = y
        return True

    def finished(self, rng: np.random.Generator) -> ProbeSpec:
        """The specification, with a head."""
        classes = 1000 if rng.random() < 0.7 else int(rng.choice((2, 10, 100)))
        spec = replace(self.spec, layers=tuple(self.layers), classes=classes)
        inputs = math.prod(self.builder.shapes[self.x][1:])
        hidden = int(rng.choice((256, 512, 1024, 2048, 4096)))
        room = _MAX_WEIGHTS - self.builder.weights
        if spec.layout == "image" and rng.random() < 0.1 and inputs * hidden <= room:
            return replace(spec, hidden=hidden)
        return replace(spec, reduce_mean=bool(rng.random() < 0.3))


def _image_network(
    rng: np.random.Generator, kinds: Mapping[str, float], small: bool = False
) -> ProbeSpec:
    side = int(rng.choice((16, 24, 28, 32, 32, 32, 48, 64, 96))) if small else _image_side(rng)
    channels = 1 if small and rng.random() < 0.2 else 3
    draft = _Draft(rng, ProbeSpec("image", side, channels, ()), small)
    step = int(rng.choice(_WIDTH_STEPS, p=_WIDTH_STEP_ODDS))
    main = _kind(rng, kinds)
    # A network for little time begins narrow, so that it gets beyond its first stages.
    typical = 32 * (draft.madds / _TYPICAL_MADDS) ** 0.35
    width = _stepped(draw_channels(rng, typical, 0.4, 128), step)
    block = draw_layer(rng, "image", width, draft.width_and_side[1], main)
    kernel = int(rng.choice((3, 7, 4), p=(0.75, 0.15, 0.1)))
    stride = 4 if kernel == 4 else 2
    activation = block.activation
    draft.take(LayerSpec("dense", width, kernel, stride, activation=activation))
    if rng.random() < 0.3:
        draft.take(LayerSpec("pool", width, 3, 2))
    for stage in range(int(rng.integers(3, 7))):
        kind = _kind(rng, kinds) if rng.random() < _OTHER_KIND else main
        side = draft.width_and_side[1]
        reduces = side > (1 if small else 6) and bool(rng.random() < (0.85 if stage else 0.4))
        if stage or rng.random() < 0.5:
            width = _stepped(width * float(rng.uniform(*_GROWTH)), step)
        if reduces and kind in _UNSTRIDED:
            _reduce(rng, draft, kind, width, activation)
            reduces = False
        # What a stage does not draw anew, it has from the network.
        drawn = draw_layer(rng, "image", draft.width_and_side[0], side, kind)
        if kind == main and rng.random() < 0.6:
            drawn = block
        drawn = replace(_of_width(drawn, width), activation=activation, dilation=1)
        for index in range(int(rng.choice(_DEPTHS, p=_DEPTH_ODDS))):
            if not draft.take(replace(drawn, stride=2 if reduces and not index else 1)):
                break
    if rng.random() < _DECODER_SHARE:
        _decode(rng, draft, block)
    elif rng.random() < 0.4:
        last = draw_channels(rng, 4 * draft.width_and_side[0], 0.4)
        draft.take(LayerSpec("pointwise", last, 1, activation=activation))
    return draft.finished(rng)


def _reduce(
    rng: np.random.Generator, draft: _Draft, kind: str, width: int, activation: str
) -> None:
    """Half as many pixels, in front of a stage that keeps them."""
    if kind == "convnext":
        draft.take(LayerSpec("shrink", width, 2, 2))
    elif rng.random() < 0.5:
        draft.take(LayerSpec("norm" if kind == "growth" else "pointwise", width, 1))
        draft.take(LayerSpec("pool", width, 2, 2, variant=1 if kind == "growth" else 0))
    else:
        draft.take(LayerSpec("separable", width, 3, 2, activation=activation))


def _decode(rng: np.random.Generator, draft: _Draft, block: LayerSpec) -> None:
    """More pixels and fewer channels from stage to stage, in one way of enlarging."""
    enlarge = draw_layer(rng, "image", *draft.width_and_side, kind="enlarge")
    for _ in range(int(rng.integers(1, 5))):
        width = max(draft.width_and_side[0] // 2, 8)
        if not draft.take(replace(enlarge, channels=width)):
            return
        for _ in range(int(rng.integers(0, 3))):
            draft.take(replace(_of_width(block, width), stride=1, dilation=1))


def _of_width(layer: LayerSpec, width: int) -> LayerSpec:
    """The layer with that many channels at its output, as far as its kind lets it."""
    if layer.kind == "growth":
        return layer
    if layer.kind != "bottleneck":
        return replace(layer, channels=width)
    inner = max(width // layer.expansion, 4)
    each = max(layer.channels // layer.groups, 1)
    groups = max(inner // each, 1) if layer.groups > 1 else 1
    return replace(layer, channels=max(inner // groups, 1) * groups, groups=groups)


def _token_network(rng: np.random.Generator) -> ProbeSpec:
    patch = int(rng.choice((8, 14, 16, 16, 16, 32)))
    draft = _Draft(rng, ProbeSpec("tokens", _image_side(rng), 3, (), patch=patch, width=_wide(rng)))
    width, side = draft.width_and_side
    block = draw_layer(rng, "tokens", width, side, "mixer" if rng.random() < 0.15 else "encoder")
    for _ in range(int(rng.integers(_MIN_LAYERS, 15))):
        if not draft.take(block):
            break
    return draft.finished(rng)


def _grid_network(rng: np.random.Generator) -> ProbeSpec:
    draft = _Draft(rng, ProbeSpec("grid", _image_side(rng), 3, (), patch=4, width=_wide(rng, 4)))
    width, side = draft.width_and_side
    block = draw_layer(rng, "grid", width, side, "filter" if rng.random() < 0.2 else "window")
    heads = block.heads
    for stage in range(int(rng.integers(2, 5))):
        if stage and draft.width_and_side[1] > 6:
            width = 2 * draft.width_and_side[0]
            if draft.take(LayerSpec("merge", width)):
                heads *= 2
        for index in range(2 * int(rng.integers(1, 4))):
            # Every other layer shifts its windows.
            variant = block.variant // 2 * 2 + index % 2
            if not draft.take(replace(block, heads=heads, variant=variant)):
                break
    return draft.finished(rng)


def _wide(rng: np.random.Generator, most: int = 12) -> int:
    """A width of tokens: a number of heads, with 16 to 64 channels each."""
    heads = int(rng.choice([n for n in (2, 3, 4, 6, 8, 12) if n <= most]))
    return max(64 if most > 4 else 32, heads * int(rng.choice((16, 24, 32, 32, 48, 64, 64))))


def _image_side(rng: np.random.Generator) -> int:
    step = int(rng.choice((32, 16, 1), p=(0.75, 0.15, 0.1)))
    return round(float(rng.uniform(96, 320)) / step) * step


def _kind(rng: np.random.Generator, kinds: Mapping[str, float]) -> str:
    return str(rng.choice(list(kinds), p=list(kinds.values())))


def _stepped(channels: float, step: int) -> int:
    return min(max(step, 4, round(channels / step) * step), 1024)
