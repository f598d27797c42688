"""Probe networks: valid, seeded, within the bounds of their class, and of everything."""

import json
import math
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import InvalidInputError
from latency.graph_builder import GraphBuilder
from latency.layers import _ODDS, ACTIVATIONS, LAYOUTS, LayerSpec
from latency.probes import (
    _LOAD_MADDS,
    _SIZES,
    ANCHORS,
    LoadSpec,
    ProbeSpec,
    build_anchor,
    build_probe,
    build_sentinel,
    model_digest,
    sample_probe,
)

COUNT = 200

layers = st.builds(
    LayerSpec,
    kind=st.text(min_size=1, max_size=8),
    channels=st.integers(1, 4096),
    kernel=st.integers(1, 9),
    stride=st.integers(1, 2),
    groups=st.integers(1, 64),
    dilation=st.integers(1, 3),
    expansion=st.integers(0, 6),
    activation=st.sampled_from(ACTIVATIONS),
    squeeze=st.integers(0, 64),
    heads=st.integers(1, 12),
    variant=st.integers(0, 10**6),
)
anything = st.builds(
    ProbeSpec,
    layout=st.sampled_from(LAYOUTS),
    side=st.integers(1, 400),
    channels=st.integers(1, 2048),
    layers=st.lists(layers, max_size=12).map(tuple),
    classes=st.integers(0, 1000),
    hidden=st.integers(0, 4096),
    reduce_mean=st.booleans(),
    patch=st.integers(0, 32),
    width=st.integers(0, 768),
    load=st.none()
    | st.builds(
        LoadSpec, st.integers(1, 56), st.integers(1, 768), st.integers(1, 3), st.integers(1, 4)
    ),
)
values = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers())


@cache
def specs(count: int = COUNT, seed: int = 0) -> tuple[ProbeSpec, ...]:
    return tuple(sample_probe(np.random.default_rng([seed, 2, i])) for i in range(count))


@cache
def bare(index: int) -> onnx.ModelProto:
    return build_probe(specs()[index], seed=None)


@cache
def alone(index: int) -> onnx.ModelProto:
    """The probe without what stands beside it."""
    return build_probe(replace(specs()[index], load=None), seed=None)


def sizes(model: onnx.ModelProto) -> tuple[int, int]:
    """Multiply-adds and weights of a model, read from the model itself."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    madds = 0
    for node in model.graph.node:
        out = math.prod(shapes[node.output[0]])
        if node.op_type == "Conv":
            madds += out * math.prod(weights[node.input[1]][1:])
        elif node.op_type == "ConvTranspose":
            madds += math.prod(shapes[node.input[0]]) * math.prod(weights[node.input[1]][1:])
        elif node.op_type in ("Gemm", "MatMul"):
            madds += out * shapes[node.input[0]][-1]
    return madds, sum(map(math.prod, weights.values()))


class TestSampling:
    def test_every_probe_is_valid_onnx(self) -> None:
        for index in range(COUNT):
            model = bare(index)
            assert all(min(t.dims, default=1) >= 1 for t in model.graph.initializer)
            onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        for index in range(0, COUNT, 20):
            onnx.checker.check_model(build_probe(specs()[index]), full_check=True)

    @pytest.mark.parametrize("index", range(0, COUNT, 8))
    def test_probes_run(self, index: int) -> None:
        spec = specs()[index]
        session = onnxruntime.InferenceSession(build_probe(spec).SerializeToString())
        rng = np.random.default_rng(0)
        feed = {
            wanted.name: rng.standard_normal(wanted.shape, dtype=np.float32)
            for wanted in session.get_inputs()
        }
        found, *beside = session.run(None, feed)
        assert len(beside) == len(feed) - 1 == bool(spec.load)
        assert found.shape[0] == 1 and found.size and np.isfinite(found).all()
        if spec.classes:
            assert found.shape == (1, spec.classes)

    def test_probes_keep_the_bounds_of_their_class(self) -> None:
        madds = max(size.madds for size in _SIZES)
        weights = max(size.weights + size.ballast for size in _SIZES)
        for index, spec in enumerate(specs()):
            assert 1 <= len(spec.layers) <= 16 and 1 <= spec.side <= 400
            found = sizes(alone(index))
            # A head comes on top of what its class allows the layers.
            assert found[0] <= madds * 1.1 and found[1] <= weights * 1.4

    def test_probes_are_light_and_heavy(self) -> None:
        found = [sizes(alone(i)) for i in range(COUNT)]
        classes = [size.madds for size in _SIZES if not size.tiny]
        light, heavy = min(classes), max(classes)
        assert sum(madds <= light * 1.2 for madds, _ in found) >= 0.35 * COUNT
        assert 0 < sum(madds > heavy / 3 for madds, _ in found) <= 0.12 * COUNT
        # Weights that no core's own cache holds, and such as any does.
        assert sum(4 * weights > 4_000_000 for _, weights in found) >= 0.2 * COUNT
        assert sum(4 * weights < 1_000_000 for _, weights in found) >= 0.1 * COUNT
        assert sum(size.share for size in _SIZES) == pytest.approx(1.0)

    def test_some_are_tiny(self) -> None:
        (tiny,) = (size for size in _SIZES if size.tiny)
        found = [sizes(alone(i)) for i in range(COUNT)]
        few = [
            madds <= 1.5 * tiny.madds and len(specs()[i].layers) <= 4
            for i, (madds, _) in enumerate(found)
        ]
        assert 0.04 * COUNT < sum(few) < 0.2 * COUNT
        # From what fits into a core's nearest cache to what does not.
        weights = [found[i][1] for i in range(COUNT) if few[i]]
        assert min(weights) < 8_000 and max(weights) > 100_000
        layouts = {specs()[i].layout for i in range(COUNT) if few[i]}
        assert layouts >= {"image", "vector"}

    def test_they_can_be_left_out(self) -> None:
        (tiny,) = (size for size in _SIZES if size.tiny)
        found = [sample_probe(np.random.default_rng([8, i]), tiny=False) for i in range(200)]
        assert np.mean([len(spec.layers) for spec in found]) > 5
        short = [s for s in found if len(s.layers) <= 4 and not s.load and s.layout == "vector"]
        madds = [sizes(build_probe(spec, seed=None))[0] for spec in found]
        assert not short and sum(m < tiny.madds for m in madds) < 0.1 * len(found)

    def test_four_in_ten_stand_beside_a_load(self) -> None:
        loaded = [i for i in range(COUNT) if specs()[i].load]
        assert 0.25 * COUNT < len(loaded) < 0.45 * COUNT
        added = [sizes(bare(i))[0] - sizes(alone(i))[0] for i in loaded]
        least, most = _LOAD_MADDS
        # From nothing worth mentioning to most of what a large network takes, evenly in orders.
        assert min(added) > least / 3 and max(added) < most * 1.3
        assert sum(madds < 150e6 for madds in added) > len(added) / 4
        assert sum(madds > 150e6 for madds in added) > len(added) / 4

    def test_light_ones_take_little_time(self) -> None:
        found = [sample_probe(np.random.default_rng([7, i]), light=True) for i in range(60)]
        assert not any(spec.load for spec in found)
        madds = [sizes(build_probe(spec, seed=None))[0] for spec in found]
        assert max(madds) < 400e6 and {spec.layout for spec in found} == set(LAYOUTS)

    def test_a_load_changes_nothing_of_the_probe(self) -> None:
        spec = next(spec for spec in specs() if spec.load)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((1, spec.channels, spec.side, spec.side), dtype=np.float32)
        both = onnxruntime.InferenceSession(build_probe(spec).SerializeToString())
        bare_ = build_probe(replace(spec, load=None)).SerializeToString()
        load = next(i for i in both.get_inputs() if i.name == "load")
        beside = rng.standard_normal(load.shape, dtype=np.float32)
        one = both.run(None, {"input": x, "load": beside})[0]
        two = onnxruntime.InferenceSession(bare_).run(None, {"input": x})[0]
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)

    def test_everything_occurs(self) -> None:
        found = Counter(spec.layout for spec in specs())
        assert set(found) == set(LAYOUTS) and found["image"] > COUNT * 0.75
        kinds = Counter((spec.layout, x.kind) for spec in specs(500, 1) for x in spec.layers)
        assert set(kinds) == {(layout, kind) for layout in LAYOUTS for kind in _ODDS[layout]}
        assert {x.activation for spec in specs() for x in spec.layers} == set(ACTIVATIONS)
        for name in ("classes", "hidden", "reduce_mean", "patch", "load"):
            assert {bool(getattr(spec, name)) for spec in specs()} == {True, False}, name
        assert any(x.squeeze for spec in specs() for x in spec.layers)
        images = sum(spec.channels == 3 for spec in specs())
        assert 0.35 * COUNT < images < 0.65 * COUNT

    def test_operations_of_transformers_occur(self) -> None:
        ops = {node.op_type for index in range(COUNT) for node in bare(index).graph.node}
        assert ops >= {
            "Conv", "Gemm", "MatMul", "Softmax", "LayerNormalization", "Erf", "Transpose",
            "Reshape", "Slice", "Concat", "Split", "Pad", "BatchNormalization", "ReduceMean",
        }  # fmt: skip

    def test_the_seed_decides_everything(self) -> None:
        again = tuple(sample_probe(np.random.default_rng([0, 2, i])) for i in range(20))
        assert again == specs()[:20] != specs(20, 3)


class TestBuilding:
    @pytest.mark.parametrize("index", range(0, COUNT, 25))
    def test_building_is_deterministic(self, index: int) -> None:
        spec = specs()[index]
        assert build_probe(spec).SerializeToString() == build_probe(spec).SerializeToString()

    def test_the_seed_of_the_weights_changes_no_structure(self) -> None:
        for index in range(0, COUNT, 10):
            spec = specs()[index]
            found = {model_digest(build_probe(spec, seed=seed)) for seed in (0, 1)}
            assert found == {model_digest(bare(index))}

    def test_batch_is_the_first_dimension(self) -> None:
        for layout in LAYOUTS:
            spec = next(s for s in specs() if s.layout == layout and s.classes)
            model = build_probe(spec, batch=3, seed=None)
            assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
            assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_value == 3
            onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)

    def test_a_batch_runs(self) -> None:
        for layout in LAYOUTS:
            spec = next(s for s in specs() if s.layout == layout and s.classes and s.side < 200)
            session = onnxruntime.InferenceSession(build_probe(spec, batch=2).SerializeToString())
            feed = {x.name: np.zeros(x.shape, np.float32) for x in session.get_inputs()}
            assert session.run(None, feed)[0].shape == (2, spec.classes)


class TestSpecification:
    def test_sampled_ones_survive_json(self) -> None:
        for spec in specs():
            assert ProbeSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec

    @given(anything)
    def test_any_survives_json(self, spec: ProbeSpec) -> None:
        assert ProbeSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec

    @given(st.dictionaries(st.text(max_size=8), values, max_size=6))
    def test_garbage_is_refused_in_one_line(self, data: dict) -> None:
        with pytest.raises(InvalidInputError, match="not readable") as caught:
            ProbeSpec.from_json(data)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "change",
        [
            {"layout": "cube"},
            {"layers": 3},
            {"layers": [{"kind": "dense"}]},
            {"layers": [{"kind": "dense", "channels": 8, "colour": 1}]},
            {"colour": "red"},
            {"layers": ["dense"]},
        ],
    )
    def test_wrong_fields_are_refused(self, change: dict) -> None:
        with pytest.raises(InvalidInputError, match="not readable"):
            ProbeSpec.from_json({**specs()[0].to_json(), **change})

    def test_old_specifications_are_refused(self) -> None:
        with pytest.raises(InvalidInputError, match="not readable"):
            ProbeSpec.from_json({"side": 14, "channels": 16, "layers": [], "classes": 0})


class TestDigest:
    def test_it_ignores_weights_but_not_structure(self) -> None:
        def model(channels: int, seed: int = 0, classes: int = 0) -> onnx.ModelProto:
            both = (LayerSpec("dense", 16), LayerSpec("pointwise", channels))
            return build_probe(ProbeSpec("image", 14, 16, both, classes), seed=seed)

        assert model_digest(model(32, 1)) == model_digest(model(32, 2))
        found = [model_digest(m) for m in (model(32), model(33), model(32, classes=4))]
        assert len(set(found)) == 3

    def test_shapes_in_constants_count(self) -> None:
        def model(rows: int) -> onnx.ModelProto:
            builder = GraphBuilder((1, 24), None)
            y = builder.reshape("r", "input", (1, rows, 24 // rows))
            return builder.finish(builder.reshape("s", y, (1, 24)))

        assert model_digest(model(4)) != model_digest(model(6))


class TestSentinelAndAnchors:
    def test_the_sentinel_never_changes(self) -> None:
        onnx.checker.check_model(build_sentinel(), full_check=True)
        # Series in old cards are comparable only as long as the network stays the same.
        assert model_digest(build_sentinel())[:16] == "4b7f1ac02b92e916"

    @pytest.mark.parametrize("kernels", ANCHORS)
    def test_anchors_are_chains(self, kernels: int) -> None:
        model = build_anchor(kernels, batch=2)
        onnx.checker.check_model(model, full_check=True)
        assert [n.op_type for n in model.graph.node] == (["Relu", "Sigmoid"] * kernels)[:kernels]
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
