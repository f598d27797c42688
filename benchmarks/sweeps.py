"""Sweeps: families of small networks that differ in one size, to see whether predictions follow.

Each network has a stem, three equal layers of the kind in question, and a head. A prediction that
interpolates sanely grows along a sweep; how far it ever falls back is stated, beside the same of
what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.accuracy import Answer, Truth
from benchmarks.networks import Network, write_whole
from latency.calibration import Calibration
from latency.graph_builder import GraphBuilder

if TYPE_CHECKING:
    import onnx

__all__ = ["SWEEPS", "Sweep", "largest_drop", "sweep_figures", "sweep_networks"]

_LAYERS = 3


@dataclass(frozen=True)
class Sweep:
    """One size, varied.

    Attributes:
        name: for people.
        size: what is varied.
        points: its values, growing.
        channels: at a point.
        side: of the feature map at a point.
        layer: adds one of the equal layers.
    """

    name: str
    size: str
    points: tuple[int, ...]
    channels: Callable[[int], int]
    side: Callable[[int], int]
    layer: Callable[[GraphBuilder, str, str], str]

    def build(self, point: int, batch: int = 1) -> onnx.ModelProto:
        """The network of one point."""
        side = self.side(point)
        builder = GraphBuilder((batch, 16, side, side), np.random.default_rng(0))
        x = builder.conv("stem", "input", self.channels(point))
        x = builder.activation("stem/act", x, "relu")
        for index in range(_LAYERS):
            x = self.layer(builder, f"layer{index}", x)
        return builder.finish(builder.head("head", x, 10))


def _conv(kernel: int, groups: int | None) -> Callable[[GraphBuilder, str, str], str]:
    """A convolution that keeps the channels, and ReLU; groups None for depthwise."""

    def add(builder: GraphBuilder, name: str, x: str) -> str:
        channels = builder.shapes[x][1]
        y = builder.conv(name, x, channels, kernel, groups=groups or channels)
        return builder.activation(f"{name}/act", y, "relu")

    return add


def _squeeze_excite(builder: GraphBuilder, name: str, x: str) -> str:
    return builder.squeeze_excite(name, x, builder.shapes[x][1] // 4)


@dataclass(frozen=True)
class _Linear(Sweep):
    """Linear layers on a vector."""

    def build(self, point: int, batch: int = 1) -> onnx.ModelProto:
        builder = GraphBuilder((batch, 64), np.random.default_rng(0))
        x = builder.activation("stem/act", builder.gemm("stem", "input", point), "relu")
        for index in range(_LAYERS):
            y = builder.gemm(f"layer{index}", x, point)
            x = builder.activation(f"layer{index}/act", y, "relu")
        return builder.finish(builder.gemm("head", x, 10))


_CHANNELS = (8, 16, 24, 40, 64, 96, 160, 256, 384, 512)
_SIDES = (7, 10, 14, 20, 28, 40, 56, 80, 112)


def _same(point: int) -> int:
    return point


def _fixed(value: int) -> Callable[[int], int]:
    return lambda point: value


SWEEPS = (
    Sweep("pointwise, 28 px", "channels", _CHANNELS, _same, _fixed(28), _conv(1, 1)),
    Sweep("pointwise, 64 channels", "pixels", _SIDES, _fixed(64), _same, _conv(1, 1)),
    Sweep("depthwise 3×3, 28 px", "channels", _CHANNELS, _same, _fixed(28), _conv(3, None)),
    Sweep("depthwise 5×5, 96 channels", "pixels", _SIDES, _fixed(96), _same, _conv(5, None)),
    Sweep("dense 3×3, 28 px", "channels", _CHANNELS[:8], _same, _fixed(28), _conv(3, 1)),
    Sweep("grouped 3×3 (8), 28 px", "channels", _CHANNELS[1:], _same, _fixed(28), _conv(3, 8)),
    _Linear(
        "linear",
        "width",
        (32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048),
        _same,
        _fixed(1),
        _squeeze_excite,
    ),
    Sweep("squeeze-excite, 96 channels", "pixels", _SIDES, _fixed(96), _same, _squeeze_excite),
)


def sweep_networks(
    folder: Path, batch: int = 1, sweeps: Sequence[Sweep] = SWEEPS
) -> Iterator[Network]:
    """The networks of the sweeps, as files in a folder.

    Args:
        folder: for the files; those that are there already are taken as they are.
        batch: batch size.
        sweeps: which.
    """
    for number, sweep in enumerate(sweeps):
        for point in sweep.points:
            path = folder / f"sweep-{number}-{point}.onnx"
            if not path.is_file():
                write_whole(path, sweep.build(point, batch).SerializeToString())
            yield Network(f"{sweep.name}: {point}", "sweep", sweep.name, path)


def sweep_figures(
    truths: Sequence[Truth], answered: Mapping[str, Answer], calibration: Calibration
) -> list[dict[str, Any]]:
    """Measured and predicted latency along each sweep, as JSON objects.

    Args:
        truths: networks of `sweep_networks`, measured.
        answered: the predictor's answers.
        calibration: of that predictor.

    Returns:
        For each sweep its points with latencies in milliseconds (`layers_ms` is the part of the
        three equal layers, by their kernels), the median absolute error, and the largest drops.
    """
    found = []
    by_name = {t.name: t for t in truths}
    for sweep in SWEEPS:
        points = [p for p in sweep.points if f"{sweep.name}: {p}" in by_name]
        if not points:
            continue
        own = [by_name[f"{sweep.name}: {p}"] for p in points]
        given = [answered[t.name] for t in own]
        measured_ms = [t.whole_ms for t in own]
        predicted_ms = [a.latency_ms for a in given]
        kernel_ms = [[calibration.kernel_ms(x) for x in t.kernel_ms] for t in own]
        layers_measured = [_layers_ms(t, ms) for t, ms in zip(own, kernel_ms, strict=True)]
        layers_predicted = [_layers_ms(t, a.kernel_ms) for t, a in zip(own, given, strict=True)]
        errors = np.array(predicted_ms) / np.array(measured_ms) - 1
        found.append(
            {
                "name": sweep.name,
                "size": sweep.size,
                "points": points,
                "measured_ms": measured_ms,
                "predicted_ms": predicted_ms,
                "low_ms": [a.low_ms for a in given],
                "high_ms": [a.high_ms for a in given],
                "layers_measured_ms": layers_measured,
                "layers_predicted_ms": layers_predicted,
                "median_error": float(np.median(np.abs(errors))),
                "worst_error": float(errors[np.argmax(np.abs(errors))]),
                "largest_drop": {
                    "measured": largest_drop(measured_ms),
                    "predicted": largest_drop(predicted_ms),
                    "layers_measured": largest_drop(layers_measured),
                    "layers_predicted": largest_drop(layers_predicted),
                },
            }
        )
    return found


def largest_drop(values: Sequence[float]) -> float:
    """How far a series ever falls below what it has reached, as a fraction; 0 where it grows."""
    reached = np.maximum.accumulate(values)
    return float(np.max(1 - np.asarray(values) / reached))


def _layers_ms(truth: Truth, kernel_ms: Sequence[float]) -> float:
    """Time of the kernels that stand for the equal layers."""
    return sum(
        time_ms
        for node, time_ms in zip(truth.graph.kernels, kernel_ms, strict=True)
        if any(name.startswith("layer") for name in node.nodes)
    )
