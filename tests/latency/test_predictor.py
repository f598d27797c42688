"""Predictions add up, hold on networks that were not seen, and say what they do not know."""

import json
import math
import os
import random
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_kernel import graph_of

from devices.errors import InvalidInputError, MismatchError
from devices.runtimes.onnxruntime import OnnxRuntime
from devices.runtimes.simulated import RUN_MS, SimulatedRuntime
from latency import DeviceCard, Prediction, Predictor, measure_models, profile_device
from latency.graph_builder import GraphBuilder
from latency.kernel import KernelGraph, KernelNode
from latency.layers import LayerSpec
from latency.predictor import FIT_VERSION
from latency.probes import (
    ProbeSpec,
    build_anchor,
    build_probe,
    model_digest,
    sample_probe,
)
from latency.table import KernelTable


@pytest.fixture(scope="module")
def simulated(simulated_card: DeviceCard) -> Predictor:
    return Predictor.from_card(simulated_card)


@pytest.fixture(scope="module")
def real(real_card: DeviceCard) -> Predictor:
    return Predictor.from_card(real_card)


@pytest.fixture(scope="module")
def encoder() -> onnx.ModelProto:
    layers = (
        LayerSpec("encoder", 100, expansion=3, heads=5, activation="gelu"),
        LayerSpec("mlp", 100, expansion=2, activation="gelu"),
    )
    return build_probe(ProbeSpec("tokens", 90, 3, layers, 7, patch=10, width=100))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    path = tmp_path_factory.mktemp("noisy") / "n.card"
    runtime = SimulatedRuntime(noise=0.1, seed=3)
    return Predictor.from_card(profile_device(path, runtime=runtime, rounds=4, probes=40))


def adds_up(found: Prediction) -> bool:
    total = found.fixed_ms + math.fsum(k.latency_ms for k in found.kernels)
    return math.isclose(found.latency_ms, total, rel_tol=1e-12)


def exotic() -> onnx.ModelProto:
    """A network with an operation that no probe has."""
    g = GraphBuilder((1, 16, 14, 14), np.random.default_rng(0))
    x = g.conv("a", "input", 32, 3)
    x = g.node("Softsign", "strange", [x], g.shapes[x])
    return g.finish(g.conv("b", x, 16))


class TestSummation:
    def test_latency_is_the_sum_of_its_parts(self, real, simulated, network, make_network) -> None:
        for predictor in (real, simulated):
            for model in (network, make_network(24, 56, "silu"), exotic()):
                found = predictor.predict(model)
                assert adds_up(found)
                assert 0 < found.low_ms <= found.latency_ms <= found.high_ms
                assert all(k.latency_ms > 0 for k in found.kernels)

    def test_known_kernels_are_measured(self, real: Predictor, network) -> None:
        assert {k.source for k in real.predict(network).kernels} == {"measured"}

    def test_known_network_comes_out_as_measured(self, real: Predictor, network) -> None:
        card = real.card
        mine = next(n for n in card.networks if n.name == "block")
        measured = card.measurement(mine).latency_ms
        # Loose: it is the plumbing that is tested here, on a machine that may be busy.
        assert real.predict(network).latency_ms == pytest.approx(measured, rel=0.5)

    def test_nodes_cover_the_network(self, real: Predictor, network) -> None:
        names = {name for k in real.predict(network).kernels for name in k.nodes}
        assert names == {node.name for node in network.graph.node}


class TestHits:
    def test_an_exact_hit_wins(self, real_card: DeviceCard, real: Predictor) -> None:
        """A kernel that one network alone has takes what it took there, in that network.

        Not exactly: how long ago it ran last is told by the predicted times of the others.
        """
        table = KernelTable.from_card(real_card)
        errors = []
        for index, row in enumerate(table.networks):
            network = real_card.networks[index]
            nodes = tuple(
                KernelNode(kernel, str(i), nodes, sources)
                for i, (kernel, nodes, sources) in enumerate(
                    zip(network.kernels, network.nodes, network.sources, strict=True)
                )
            )
            found = real.predict_graph(KernelGraph(nodes)).kernels
            assert [k.kernel for k in found] == list(network.kernels)
            for place, prediction in enumerate(found):
                if len(table.kernels[row.rows[place]].times_ms) > 1 or row.times_ms[place] <= 0:
                    continue
                assert prediction.source == "measured"
                expected = real.calibration.kernel_ms(row.times_ms[place])
                errors.append(abs(math.log(prediction.latency_ms / expected)))
        assert len(errors) > 50
        assert (
            sorted(errors)[len(errors) // 2] < 0.02 and sorted(errors)[-1 - len(errors) // 20] < 0.2
        )

    def test_the_only_kernel_of_its_operation_was_measured_too(self, tmp_path: Path) -> None:
        card = profile_device(
            tmp_path / "a.card",
            runtime="simulated",
            rounds=4,
            probes=2,
            extra_models={"strange": exotic()},
        )
        found = Predictor.from_card(card).predict(exotic())
        assert found.uncovered == () and found.coverage == 1.0
        assert {k.source for k in found.kernels} == {"measured"}
        truth = measure_models({"m": exotic()}, runtime="simulated", visits=1)["m"].latency_ms
        assert found.latency_ms == pytest.approx(truth, rel=0.01)

    def test_few_visits_are_no_hit(self, tmp_path: Path) -> None:
        card = profile_device(tmp_path / "a.card", runtime="simulated", rounds=1, probes=20)
        network = card.networks[-1]
        model = build_probe(sample_probe(np.random.default_rng([0, 2, 19]), light=True))
        assert network.digest == model_digest(model)
        found = Predictor.from_card(card).predict(model)
        assert "regressed" in {k.source for k in found.kernels}


class TestTransformers:
    def test_their_operations_are_regressed(self, simulated: Predictor, encoder) -> None:
        found = simulated.predict(encoder)
        by_family = {k.kernel.family: k.source for k in found.kernels}
        wanted = {"gemm", "matmul", "softmax", "normalisation", "transpose", "activation"}
        assert wanted <= set(by_family)
        assert found.coverage == 1.0 and found.uncovered == ()
        # Reshapes of other sizes may have been measured as they are.
        assert {by_family[name] for name in wanted} == {"regressed"}

    def test_they_come_out_right(self, simulated: Predictor, encoder) -> None:
        truth = measure_models({"m": encoder}, runtime="simulated", visits=1)["m"].latency_ms
        assert simulated.predict(encoder).latency_ms == pytest.approx(truth, rel=0.15)


class TestIntervals:
    def test_they_hold_as_many_as_they_promise(self, noisy: Predictor) -> None:
        """Unseen networks, each measured in one noisy visit, as those of the card were in few."""
        specs = [sample_probe(np.random.default_rng([9, i])) for i in range(40)]
        models = {str(i): build_probe(spec, seed=None) for i, spec in enumerate(specs)}
        truth = measure_models(models, runtime=SimulatedRuntime(noise=0.1, seed=4), visits=4)
        held = []
        for name, model in models.items():
            found = noisy.predict(model)
            if found.coverage == 1.0:
                held.append(found.low_ms <= truth[name].latency_ms <= found.high_ms)
        assert len(held) >= 30
        assert 0.75 <= sum(held) / len(held)

    def test_they_are_no_wider_than_they_need_be(self, noisy: Predictor, network) -> None:
        found = noisy.predict(network)
        assert 1.01 < found.high_ms / found.low_ms < 2.6  # a card of four rounds
        assert 0.005 < noisy.validation["interval_half_width"] < 0.25
        assert not any("networks in the card" in line for line in found.warnings)

    def test_validation_covers_the_families(self, noisy: Predictor) -> None:
        families = noisy.validation["by_family"]
        assert sum(f["share"] for f in families.values()) == pytest.approx(1.0)
        assert {"conv_dense", "conv_pointwise", "gemm"} <= set(families)
        for found in families.values():
            assert 0 <= found["median_error"] <= found["p90_error"] and found["kernels"] > 0


class TestKept:
    @pytest.mark.parametrize("name", ["simulated_card", "real_card"])
    def test_round_trip(self, name: str, request, make_network) -> None:
        card = request.getfixturevalue(name)
        fitted = Predictor.fit(card)
        again = Predictor.from_bytes(card, fitted.to_bytes())
        assert again is not None and again.validation == fitted.validation
        assert again.calibration == fitted.calibration and again.intervals == fitted.intervals
        assert again.predicting == fitted.predicting
        for model in (make_network(), make_network(24, 56, "silu"), make_network(256, 224)):
            # One graph for both: the runtime orders equal kernels differently each time.
            graph = graph_of(model, card.runtime)
            one, other = fitted.predict_graph(graph), again.predict_graph(graph)
            for part in ("latency_ms", "low_ms", "high_ms", "fixed_ms", "coverage"):
                assert getattr(other, part) == pytest.approx(getattr(one, part), rel=1e-3)
            for a, b in zip(one.kernels, other.kernels, strict=True):
                assert b.latency_ms == pytest.approx(a.latency_ms, rel=2e-3)
                assert (a.kernel, a.source, a.nodes) == (b.kernel, b.source, b.nodes)

    def test_a_finished_card_keeps_its_fit(self, simulated_card: DeviceCard, monkeypatch) -> None:
        monkeypatch.setattr(Predictor, "fit", None)
        predictor = Predictor.from_card(simulated_card)
        assert predictor.validation == simulated_card.validation

    def test_without_samples_it_says_the_same(
        self, simulated_card: DeviceCard, simulated: Predictor, network, monkeypatch
    ) -> None:
        quick = DeviceCard.open(simulated_card.path, samples=False)
        monkeypatch.setattr(DeviceCard, "networks", None)  # not one sample is looked at
        assert Predictor.from_card(quick).predict(network) == simulated.predict(network)

    @pytest.mark.parametrize("held", [False, True])
    def test_another_version_is_fitted_anew_and_kept(
        self, simulated_card, network, held: bool, tmp_path: Path, monkeypatch
    ) -> None:
        expected = Predictor.from_card(simulated_card).predict(network)
        monkeypatch.setattr("latency.predictor.FIT_VERSION", FIT_VERSION + 1)
        shutil.copy(simulated_card.path, tmp_path / "old.card")
        old = DeviceCard.open(tmp_path / "old.card")
        assert Predictor.from_bytes(old, old.fit) is None
        fitted = []
        fit = Predictor.fit.__func__

        def counting(cls, card: DeviceCard) -> Predictor:
            fitted.append(card)
            return fit(cls, card)

        monkeypatch.setattr(Predictor, "fit", classmethod(counting))
        with sqlite3.connect(old.path, timeout=0) as other:
            if held:  # then the answer comes all the same, and is worked out again
                other.execute("BEGIN IMMEDIATE")
            found = Predictor.from_card(old).predict(network)
        assert fitted == [old]
        assert found.latency_ms == pytest.approx(expected.latency_ms, rel=1e-3)
        kept = DeviceCard.open(old.path)  # checks what was measured
        assert kept.fingerprint == old.fingerprint == simulated_card.fingerprint
        assert Predictor.from_card(kept).predict(network).latency_ms == found.latency_ms
        assert len(fitted) == 1 + held
        assert sorted(os.listdir(tmp_path)) == ["old.card"]

    @settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(seed=st.integers(0, 2**32), count=st.integers(1, 60), head=st.booleans())
    def test_damage_is_refused_in_one_line(self, simulated_card, seed, count, head) -> None:
        rng = random.Random(seed)
        data = bytearray(simulated_card.fit or b"")
        header = 8 + int.from_bytes(data[:8], "little")
        start = rng.randrange(header if head else len(data))
        for place in range(start, min(start + count, len(data))):
            data[place] = rng.randrange(256)
        try:
            Predictor.from_bytes(simulated_card, bytes(data))
        except InvalidInputError as error:
            assert "\n" not in str(error) and str(simulated_card.path) in str(error)

    @pytest.mark.parametrize(
        "data", [b"", b"x", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"{}" * 9]
    )
    def test_what_is_no_fit_is_refused(self, simulated_card: DeviceCard, data: bytes) -> None:
        with pytest.raises(InvalidInputError, match="its fit is unreadable"):
            Predictor.from_bytes(simulated_card, data)

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
    def test_truncation_is_refused(self, simulated_card: DeviceCard, share: float) -> None:
        data = simulated_card.fit or b""
        with pytest.raises(InvalidInputError, match="its fit is unreadable"):
            Predictor.from_bytes(simulated_card, data[: int(len(data) * share)])

    @pytest.mark.parametrize(
        "part", ["families", "calibration", "predicting", "intervals", "roofline", "ops"]
    )
    @pytest.mark.parametrize("value", [None, 3, [], {}, "x"])
    def test_wrong_parts_are_refused(self, simulated_card: DeviceCard, part: str, value) -> None:
        data = simulated_card.fit or b""
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        about = json.loads(header["__metadata__"]["fit"])
        if part == "ops" and value == {}:  # a fit to nothing
            return
        header["__metadata__"]["fit"] = json.dumps({**about, part: value})
        text = json.dumps(header).encode()
        changed = len(text).to_bytes(8, "little") + text + data[8 + length :]
        with pytest.raises(InvalidInputError, match="its fit is unreadable"):
            Predictor.from_bytes(simulated_card, changed)


class TestSimulatedTruth:
    def test_unseen_networks(self, simulated: Predictor, make_network) -> None:
        for width, side in ((24, 28), (48, 56), (16, 112)):
            model = make_network(width, side, "relu")
            truth = measure_models({"m": model}, runtime="simulated", visits=1)["m"].latency_ms
            found = simulated.predict(model)
            assert found.latency_ms == pytest.approx(truth, rel=0.15)
            assert found.simulated

    def test_calibration_finds_the_constant(self, simulated: Predictor) -> None:
        assert simulated.calibration.scale == pytest.approx(1.0, abs=0.01)
        assert simulated.calibration.fixed_ms == pytest.approx(RUN_MS, rel=0.2)

    def test_larger_is_slower(self, simulated: Predictor, real: Predictor, make_network) -> None:
        for predictor in (simulated, real):
            by_width = [predictor.predict(make_network(w)).latency_ms for w in (16, 64, 256)]
            by_side = [predictor.predict(make_network(32, s)).latency_ms for s in (28, 112, 224)]
            assert by_width == sorted(by_width) and by_side == sorted(by_side)


class TestHonesty:
    def test_unknown_operations_are_counted(self, simulated: Predictor) -> None:
        found = simulated.predict(exotic())
        assert found.uncovered == (("Softsign", 1),)
        assert found.coverage < 1.0
        assert any("Softsign" in line for line in found.warnings)
        (strange,) = [k for k in found.kernels if k.source == "roofline"]
        assert strange.latency_ms > 0 and strange.nodes == ("strange/Softsign",)

    def test_known_operations_are_covered(self, simulated: Predictor, network) -> None:
        found = simulated.predict(network)
        assert found.coverage == 1.0 and found.uncovered == ()

    def test_uncovered_operations_widen_the_interval(self, simulated: Predictor, network) -> None:
        known, unknown = simulated.predict(network), simulated.predict(exotic())
        assert unknown.high_ms / unknown.latency_ms > known.high_ms / known.latency_ms

    def test_measured_networks_have_narrower_intervals(self, real: Predictor, network) -> None:
        known = real.predict(network)
        other = onnx.ModelProto()
        other.CopyFrom(network)
        for side in (2, 3):
            other.graph.input[0].type.tensor_type.shape.dim[side].dim_value = 60
        unseen = real.predict(other)
        assert {k.source for k in unseen.kernels} >= {"regressed"}
        # Equal only where summation is as bad as regression, which a very busy machine can do.
        assert known.high_ms / known.low_ms <= unseen.high_ms / unseen.low_ms * (1 + 1e-9)

    def test_few_networks_are_admitted(self, real: Predictor, network) -> None:
        assert any("networks in the card" in line for line in real.predict(network).warnings)

    def test_simulated_cards_are_admitted(self, simulated: Predictor, network) -> None:
        assert any("simulated" in line for line in simulated.predict(network).warnings)

    def test_validation_is_stated(self, real: Predictor) -> None:
        found = json.loads(json.dumps(real.validation))
        assert found["networks"] == 11 and found["method"] == "leave one network out"
        for part in (found, found["summation"], found["by_kind"]["probe"]):
            assert 0 <= part["median_error"] <= part["p90_error"]
            assert 0 <= part["within_10_percent"] <= 1

    def test_fitting_twice_gives_the_same(self, real: Predictor, make_network) -> None:
        model = make_network(40, 56)
        first, second = (Predictor.fit(real.card).predict(model) for _ in range(2))
        assert (first.low_ms, first.high_ms) == (second.low_ms, second.high_ms)
        assert first.latency_ms == pytest.approx(second.latency_ms, rel=1e-12)

    def test_prediction_is_json(self, real: Predictor, network) -> None:
        found = real.predict(network)
        data = json.loads(json.dumps(found.to_json()))
        assert data["latency_ms"] == found.latency_ms
        assert len(data["kernels"]) == len(found.kernels)


class TestQuickly:
    @pytest.fixture
    def slow(self, real_card: DeviceCard, monkeypatch) -> Predictor:
        """Of a card whose runtime says that it takes seconds to compile."""
        monkeypatch.setattr(OnnxRuntime, "slow_to_compile", True)
        return Predictor.from_card(real_card)

    def test_known_patterns_need_no_compiling(self, slow: Predictor, network, monkeypatch) -> None:
        expected = slow.predict(network)

        def refuse(*arguments: object) -> None:
            raise AssertionError("compiled")

        monkeypatch.setattr(OnnxRuntime, "compile", refuse)
        found = slow.predict_quickly(network)
        assert found.kernels_from == "card" and found.warnings == expected.warnings
        assert found.latency_ms == pytest.approx(expected.latency_ms, rel=0.05)

    def test_an_unknown_pattern_is_compiled(self, slow: Predictor) -> None:
        found = slow.predict_quickly(exotic())
        assert found.kernels_from == "runtime"
        assert found.latency_ms == slow.predict(exotic()).latency_ms

    def test_a_fast_compiler_is_asked(self, real: Predictor, network) -> None:
        assert real.predict_quickly(network).kernels_from == "runtime"

    def test_one_runtime_serves_all_networks(self, simulated_card: DeviceCard, network) -> None:
        predictor = Predictor.from_card(simulated_card)
        predictor.predict(network)
        runtime = predictor._runtime
        predictor.predict(exotic())
        assert predictor._runtime is runtime


def test_a_card_of_a_runtime_that_only_another_version_knows(
    real_card: DeviceCard, network, monkeypatch
) -> None:
    monkeypatch.setattr(real_card, "runtime", "of-tomorrow")
    with pytest.raises(MismatchError, match="'of-tomorrow', which this version does not know"):
        Predictor.from_card(real_card).predict(network)


class TestInput:
    def test_a_path(self, simulated: Predictor, network, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        onnx.save(network, str(path))
        expected = simulated.predict(network).latency_ms
        assert simulated.predict(path).latency_ms == expected
        assert simulated.predict(str(path)).latency_ms == expected

    @pytest.mark.parametrize("content", [None, b"", b"no model at all"])
    def test_bad_files(self, simulated: Predictor, tmp_path: Path, content) -> None:
        path = tmp_path / "m.onnx"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InvalidInputError, match=r"m\.onnx") as caught:
            simulated.predict(path)
        assert "\n" not in str(caught.value)

    def test_symbolic_batch_is_set(self, simulated: Predictor, network) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(network)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "n"
        assert simulated.predict(model).latency_ms == simulated.predict(network).latency_ms

    def test_other_dynamic_dimensions_are_refused(self, simulated: Predictor, network) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(network)
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
        with pytest.raises(InvalidInputError, match="'height'"):
            simulated.predict(model)

    def test_an_unmeasured_card_is_refused(self, tmp_path: Path, monkeypatch) -> None:
        from latency.measure import Visitor

        monkeypatch.setattr(
            Visitor, "visit", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        path = tmp_path / "a.card"
        with pytest.raises(KeyboardInterrupt):
            profile_device(path, runtime="simulated", rounds=1, probes=1)
        with pytest.raises(InvalidInputError, match="nothing measured"):
            Predictor.from_card(DeviceCard.open(path))


class TestAnchors:
    def test_the_cost_of_a_call_is_pinned_down(self, real_card: DeviceCard) -> None:
        """A chain of trivial kernels is predicted as what it is: nearly nothing."""
        predictor = Predictor.from_card(real_card)
        one, many = (predictor.predict(build_anchor(kernels)).latency_ms for kernels in (1, 16))
        assert predictor.calibration.fixed_ms < 0.05
        assert 0 < one <= many < 0.2

    def test_anchors_are_not_judged(self, real_card: DeviceCard) -> None:
        assert "anchor" not in Predictor.from_card(real_card).validation["by_kind"]
