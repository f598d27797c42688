"""Probe networks: valid, seeded, and within bounds."""

import numpy as np
import onnx
import pytest

from devices.errors import InvalidInputError
from latency.probes import (
    LayerSpec,
    ProbeSpec,
    build_probe,
    build_sentinel,
    model_digest,
    sample_probe,
)


def specs(count: int, seed: int = 0) -> list[ProbeSpec]:
    rng = np.random.default_rng(seed)
    return [sample_probe(rng) for _ in range(count)]


@pytest.mark.parametrize("spec", specs(12), ids=str)
def test_probes_are_valid_onnx(spec: ProbeSpec) -> None:
    onnx.checker.check_model(build_probe(spec), full_check=True)


def test_probes_keep_their_bounds() -> None:
    for spec in specs(60):
        assert 4 <= len(spec.layers) <= 12 and 7 <= spec.side <= 224


def test_probes_have_everything() -> None:
    kinds = {layer.kind for spec in specs(60) for layer in spec.layers}
    assert kinds >= {"dense", "depthwise", "grouped", "pointwise", "inverted", "pool", "concat"}
    assert any(layer.squeeze for spec in specs(60) for layer in spec.layers)
    assert {spec.classes > 0 for spec in specs(60)} == {True, False}


def test_same_seed_same_probes() -> None:
    assert specs(5, 3) == specs(5, 3) != specs(5, 4)
    spec = specs(1)[0]
    assert build_probe(spec).SerializeToString() == build_probe(spec).SerializeToString()


def test_batch_is_the_first_dimension() -> None:
    model = build_probe(specs(1)[0], batch=3)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3


def test_specification_round_trip() -> None:
    for spec in specs(5):
        assert ProbeSpec.from_json(spec.to_json()) == spec
    with pytest.raises(InvalidInputError):
        ProbeSpec.from_json({"side": 3})


def test_digest_ignores_weights_but_not_structure() -> None:
    spec = ProbeSpec(14, 16, (LayerSpec("dense", 16), LayerSpec("pointwise", 32)), 0)
    other = ProbeSpec(14, 16, (LayerSpec("dense", 16), LayerSpec("pointwise", 33)), 0)
    assert model_digest(build_probe(spec, seed=1)) == model_digest(build_probe(spec, seed=2))
    assert model_digest(build_probe(spec)) != model_digest(build_probe(other))


def test_the_sentinel_never_changes() -> None:
    onnx.checker.check_model(build_sentinel(), full_check=True)
    # Series in old cards are comparable only as long as the network stays the same.
    assert model_digest(build_sentinel())[:16] == "c7526f3d5cbce532"
