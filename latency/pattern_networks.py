"""Networks that show how a runtime writes the usual layers; compiled for that, never measured.

A short profile with a runtime that takes seconds to compile sees few layers, and a network with one
that its fusion rules do not know has to be compiled to be predicted: a table of a search space asks
for hundreds. Two small networks hold the layers of the field's image networks, each in the ways in
which it is written most.
"""

from __future__ import annotations

from dataclasses import replace

from latency.layers import LayerSpec
from latency.probes import ProbeSpec

__all__ = ["PATTERN_NETWORKS"]

_WIDTH = 16
_STEM = LayerSpec("dense", _WIDTH, stride=2, activation="relu")
_INVERTED = LayerSpec("inverted", _WIDTH, expansion=2)
_POOL = LayerSpec("pool", _WIDTH, activation="none")
_MEAN, _NOT_PADDED = 1, 2

_MOBILE = (
    _STEM,
    _INVERTED,
    replace(_INVERTED, kernel=5, activation="relu6"),
    replace(_INVERTED, kernel=7, activation="hardswish", squeeze=8),
    replace(_INVERTED, stride=2, activation="silu", squeeze=8),
    replace(_POOL, variant=_MEAN),
    LayerSpec("separable", _WIDTH, activation="relu6"),
    LayerSpec("depthwise", _WIDTH, activation="none"),
    LayerSpec("pointwise", _WIDTH, kernel=1, activation="none"),
    LayerSpec("fused", _WIDTH, expansion=2, activation="silu"),
    LayerSpec("depthwise", _WIDTH, kernel=5, stride=2, activation="relu"),
    replace(_POOL, kernel=2, variant=_MEAN),
)
_OTHERS = (
    _STEM,
    _POOL,
    LayerSpec("residual", _WIDTH),
    LayerSpec("bottleneck", _WIDTH, expansion=2, squeeze=8, activation="relu"),
    LayerSpec("grouped", _WIDTH, groups=2),
    LayerSpec("sum", _WIDTH, heads=3, variant=5),
    LayerSpec("branches", _WIDTH, heads=3, variant=5),
    LayerSpec("growth", _WIDTH, heads=2, expansion=2),
    LayerSpec("pointwise", _WIDTH, kernel=1, activation="leaky"),
    LayerSpec("unit", _WIDTH),
    LayerSpec("gate", _WIDTH),
    LayerSpec("enlarge", _WIDTH, kernel=2, stride=2),
    LayerSpec("norm", _WIDTH),
    replace(_POOL, variant=_NOT_PADDED),
)

PATTERN_NETWORKS = {
    "patterns-mobile": ProbeSpec("image", 32, 3, _MOBILE, classes=10),
    "patterns-others": ProbeSpec("image", 32, 3, _OTHERS, classes=10, reduce_mean=True),
}
"""By name."""
