"""Probes built like whole networks: valid, seeded, within their bounds, shaped like networks."""

from collections import Counter
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest

from latency.graph_builder import GraphBuilder
from latency.layers import build_layer
from latency.probe_networks import (
    _KINDS,
    _MADDS,
    _MAX_LAYERS,
    _MAX_PEAK,
    _MAX_WEIGHTS,
    _MIN_LAYERS,
    _SMALL_MADDS,
    sample_network,
)
from latency.probes import ProbeSpec, begin_probe, build_probe, width_and_side

COUNT = 120


@cache
def specs() -> tuple[ProbeSpec, ...]:
    return tuple(sample_network(np.random.default_rng([0, 2, i])) for i in range(COUNT))


def built(spec: ProbeSpec) -> tuple[GraphBuilder, list[tuple[int, int]]]:
    """The layers' graph, and channels and side after the beginning and after each layer."""
    builder, x = begin_probe(spec)
    seen = [width_and_side(builder.shapes[x], spec.layout)]
    for index, layer in enumerate(spec.layers):
        x = build_layer(builder, f"layers.{index}", x, layer, spec.layout)
        seen.append(width_and_side(builder.shapes[x], spec.layout))
    return builder, seen


def test_every_one_is_valid_onnx() -> None:
    for spec in specs():
        model = build_probe(spec, seed=None)
        onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


@pytest.mark.parametrize("index", range(0, COUNT, 12))
def test_they_run(index: int) -> None:
    spec = specs()[index]
    session = onnxruntime.InferenceSession(build_probe(spec).SerializeToString())
    (wanted,) = session.get_inputs()
    (found,) = session.run(None, {wanted.name: np.ones(wanted.shape, np.float32)})
    assert found.shape == (1, spec.classes) and np.isfinite(found).all()


def test_the_same_seed_gives_the_same_and_specifications_survive_json() -> None:
    for index in range(0, COUNT, 10):
        spec = specs()[index]
        assert sample_network(np.random.default_rng([0, 2, index])) == spec
        assert ProbeSpec.from_json(spec.to_json()) == spec


def test_some_have_parallel_paths_where_these_are_asked_for() -> None:
    drawn = [sample_network(np.random.default_rng([1, i]), sums=True) for i in range(40)]
    kinds = {layer.kind for spec in drawn for layer in spec.layers}
    assert "sum" in kinds
    assert "sum" not in {layer.kind for spec in specs() for layer in spec.layers}
    for spec in drawn[::8]:
        assert spec.layout != "image" or len(build_probe(spec, seed=None).graph.node) > 8


def test_they_keep_their_bounds() -> None:
    for spec in specs():
        builder, _ = built(spec)
        assert _MIN_LAYERS <= len(spec.layers) <= _MAX_LAYERS
        assert builder.madds <= _MADDS[1] and builder.weights <= _MAX_WEIGHTS
        assert builder.peak <= _MAX_PEAK and 96 <= spec.side <= 320


def test_small_ones_are_for_thumbnails_and_as_deep() -> None:
    small = [sample_network(np.random.default_rng([7, i]), small=True) for i in range(60)]
    costs, ends = [], []
    for spec in small:
        builder, seen = built(spec)
        assert spec.layout == "image" and 16 <= spec.side <= 96 and spec.channels in (1, 3)
        assert _MIN_LAYERS <= len(spec.layers) <= _MAX_LAYERS
        costs.append(builder.madds)
        ends.append(seen[-1][1])
    assert max(costs) <= _SMALL_MADDS[1] and np.median(costs) < 10e6
    assert {spec.channels for spec in small} == {1, 3} and 1 in ends


def test_they_narrow_and_widen_like_networks() -> None:
    wider = images = decoders = 0
    for spec in specs():
        if spec.layout != "image":
            continue
        _, seen = built(spec)
        decoded = next((i for i, x in enumerate(spec.layers) if x.kind == "enlarge"), len(seen))
        decoders += decoded < len(seen)
        assert all(side >= seen[decoded][1] for _, side in seen[decoded:][1:])
        seen = seen[: decoded + 1]
        sides = [side for _, side in seen]
        assert sides == sorted(sides, reverse=True) and sides[-1] <= sides[0] // 4
        wider += seen[-1][0] > seen[1][0]
        images += 1
    assert wider > 0.9 * images and 0 < decoders < 0.15 * images


def test_all_kinds_sizes_and_layouts_occur() -> None:
    layouts = Counter(spec.layout for spec in specs())
    assert min(layouts[layout] for layout in ("image", "tokens", "grid")) >= 2
    kinds = Counter(layer.kind for spec in specs() for layer in spec.layers)
    assert set(_KINDS) <= set(kinds)
    madds = [built(spec)[0].madds for spec in specs()]
    assert min(madds) < 2 * _MADDS[0] and max(madds) > _MADDS[1] / 3
    assert sum(_KINDS.values()) == pytest.approx(1.0)


def test_most_blocks_are_of_one_kind() -> None:
    shares = []
    for spec in specs():
        blocks = Counter(layer.kind for layer in spec.layers if layer.kind in _KINDS)
        if spec.layout == "image" and blocks:
            shares.append(max(blocks.values()) / sum(blocks.values()))
    assert np.mean(shares) > 0.6
