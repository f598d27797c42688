"""Every kind of layer, in every way in which it can be drawn, is one that ONNX Runtime takes."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.errors import InvalidInputError
from latency.graph_builder import GraphBuilder
from latency.layers import (
    _ODDS,
    ACTIVATIONS,
    LAYOUTS,
    LayerSpec,
    Layout,
    build_layer,
    draw_channels,
    draw_layer,
)

KINDS = {layout: tuple(odds) for layout, odds in _ODDS.items()}
ALL = [(layout, kind) for layout in LAYOUTS for kind in KINDS[layout]]


def shape_of(layout: Layout, width: int, side: int) -> tuple[int, ...]:
    if layout == "image":
        return (1, width, side, side)
    if layout == "vector":
        return (1, width)
    return (1, side * side, width) if layout == "tokens" else (1, side, side, width)


def build(
    layer: LayerSpec, layout: Layout, width: int, side: int
) -> tuple[GraphBuilder, str, onnx.ModelProto]:
    builder = GraphBuilder(shape_of(layout, width, side), np.random.default_rng(0))
    output = build_layer(builder, "layer", "input", layer, layout)
    return builder, output, builder.finish(output)


def run(builder: GraphBuilder, output: str, model: onnx.ModelProto) -> None:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = np.random.default_rng(0).standard_normal(builder.shapes["input"], dtype=np.float32)
    (found,) = session.run(None, {"input": x})
    assert found.shape == builder.shapes[output]
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("layout", "kind"), ALL)
class TestKinds:
    @pytest.mark.parametrize("seed", range(4))
    def test_drawn_layers_run(self, layout: Layout, kind: str, seed: int) -> None:
        rng = np.random.default_rng([seed, len(kind)])
        width, side = int(rng.choice((3, 16, 24, 33, 48))), int(rng.integers(3, 13))
        layer = draw_layer(rng, layout, width, side, kind)
        assert layer.kind == kind and layer.channels >= 3
        run(*build(layer, layout, width, side))

    @pytest.mark.parametrize("variant", range(4))
    @pytest.mark.parametrize("activation", ["relu", "gelu"])
    def test_variants_run(self, layout: Layout, kind: str, variant: int, activation: str) -> None:
        layer = LayerSpec(
            kind, 24, expansion=2, squeeze=4, heads=2, variant=variant, activation=activation
        )
        layer = replace(layer, groups=2 if kind in ("grouped", "bottleneck") else 1)
        run(*build(layer, layout, 24, 9))

    def test_defaults_are_enough(self, layout: Layout, kind: str) -> None:
        run(*build(LayerSpec(kind, 16), layout, 16, 8))

    def test_without_values_the_structure_is_the_same(self, layout: Layout, kind: str) -> None:
        layer = draw_layer(np.random.default_rng(3), layout, 32, 8, kind)
        full, output, model = build(layer, layout, 32, 8)
        bare = GraphBuilder(shape_of(layout, 32, 8), None)
        assert build_layer(bare, "layer", "input", layer, layout) == output
        assert (bare.shapes, bare.madds, bare.weights, bare.peak) == (
            full.shapes, full.madds, full.weights, full.peak,
        )  # fmt: skip
        assert bare.finish(output).graph.node == model.graph.node

    def test_the_layout_stays(self, layout: Layout, kind: str) -> None:
        for seed in range(5):
            layer = draw_layer(np.random.default_rng(seed), layout, 32, 8, kind)
            builder, output, _ = build(layer, layout, 32, 8)
            shape = builder.shapes[output]
            assert len(shape) == len(shape_of(layout, 32, 8)) and min(shape) >= 1
            if layout == "grid":
                assert shape[1] == shape[2]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_of_an_inverted_layer(activation: str) -> None:
    layer = LayerSpec("inverted", 16, expansion=2, squeeze=4, activation=activation)
    run(*build(layer, "image", 16, 7))


@pytest.mark.parametrize("code", range(7))
def test_every_path_of_parallel_ones(code: int) -> None:
    for kind in ("sum", "branches"):
        for kernel in (3, 5, 7):
            layer = LayerSpec(kind, 16, kernel=kernel, heads=2, variant=code + 7 * ((code + 3) % 7))
            run(*build(layer, "image", 12, 9))


class TestDrawing:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_all_kinds_are_drawn(self, layout: Layout) -> None:
        rng = np.random.default_rng(0)
        kinds = {draw_layer(rng, layout, 32, 16).kind for _ in range(1500)}
        assert kinds == set(KINDS[layout])

    @settings(max_examples=150, deadline=None)
    @given(
        seed=st.integers(0, 2**32),
        place=st.sampled_from(ALL),
        width=st.integers(1, 2048),
        side=st.integers(1, 160),
    )
    def test_any_feature_map_has_its_layer(self, seed, place, width, side) -> None:
        layout, kind = place
        layer = draw_layer(np.random.default_rng(seed), layout, width, side, kind)
        builder = GraphBuilder(shape_of(layout, width, side), None)
        output = build_layer(builder, "layer", "input", layer, layout)
        shape = builder.shapes[output]
        assert all(isinstance(size, int) for size in shape)
        channels = shape[1] if layout in ("image", "vector") else shape[-1]
        assert 1 <= channels <= 4 * 2048 + width
        # Only windows that are larger than the map may leave nothing of it.
        if min(shape) < 1:
            assert side < 8

    @settings(max_examples=100, deadline=None)
    @given(
        seed=st.integers(0, 2**32),
        typical=st.floats(3, 4000),
        spread=st.floats(0.01, 2.0),
        limit=st.integers(8, 4096),
    )
    def test_channels_keep_their_limits(self, seed, typical, spread, limit) -> None:
        found = draw_channels(np.random.default_rng(seed), typical, spread, limit)
        assert isinstance(found, int) and 3 <= found <= limit

    def test_channels_are_mostly_multiples_of_eight(self) -> None:
        rng = np.random.default_rng(0)
        found = [draw_channels(rng, 100.0) for _ in range(1000)]
        assert 0.7 < sum(n % 8 == 0 for n in found) / 1000 < 0.95
        assert 80 < float(np.median(found)) < 125

    def test_the_seed_decides(self) -> None:
        layers = [draw_layer(np.random.default_rng(5), "image", 24, 14) for _ in range(2)]
        assert layers[0] == layers[1]


def test_unknown_kinds_are_refused() -> None:
    builder = GraphBuilder((1, 8, 8, 8), None)
    for kind, layout in (("encoder", "image"), ("dense", "tokens"), ("nonsense", "grid")):
        with pytest.raises(InvalidInputError, match=f"'{kind}': unknown for {layout}") as caught:
            build_layer(builder, "a", "input", LayerSpec(kind, 8), layout)
        assert "\n" not in str(caught.value)
