"""Networks compiled for the fusion rules only."""

from __future__ import annotations

from pathlib import Path

import onnx
from choosy_runtime import SlowAndChoosy

from autospace.genotype import REFERENCE_CELLS
from autospace.onnx_export import onnx_for_cost
from autospace.skeleton import SKELETONS
from autospace.space import Architecture
from latency import profile_device
from latency.fusion_apply import explain
from latency.layers import LayerSpec
from latency.pattern_networks import PATTERN_NETWORKS
from latency.probes import ProbeSpec, build_probe


def test_they_hold_the_usual_layers_and_are_small() -> None:
    layers: list[LayerSpec] = []
    for name, spec in PATTERN_NETWORKS.items():
        model = build_probe(spec)
        onnx.checker.check_model(model, full_check=True)
        assert len(model.graph.node) < 100 and model.ByteSize() < 200_000, name
        layers += spec.layers
    assert {layer.kernel for layer in layers if layer.kind == "inverted"} == {3, 5, 7}
    assert {layer.variant for layer in layers if layer.kind == "pool"} == {0, 1, 2}
    assert {"relu", "relu6", "hardswish", "silu"} <= {layer.activation for layer in layers}


def test_a_card_of_one_probe_knows_them_where_compiling_is_slow(tmp_path: Path) -> None:
    said: list[str] = []
    card = profile_device(
        tmp_path / "slow.card", runtime=SlowAndChoosy(), rounds=1, probes=1,
        progress=lambda share, text: said.append(text),
    )  # fmt: skip
    assert said.count("learning what is fused") == 1
    assert not set(PATTERN_NETWORKS) & {network.name for network in card.networks}
    pooled = ProbeSpec("image", 20, 8, (LayerSpec("pool", 8, stride=2, variant=1),), classes=3)
    skeleton = SKELETONS["tiny"]
    network = Architecture(skeleton, (REFERENCE_CELLS[1].fused(),) * len(skeleton.blocks))
    for model in (build_probe(pooled), onnx_for_cost(network)):
        assert explain(card.fusion_rules, model)[1] == ()
    plain = profile_device(tmp_path / "quick.card", runtime="simulated", rounds=1, probes=1)
    assert explain(plain.fusion_rules, build_probe(pooled))[1] != ()
