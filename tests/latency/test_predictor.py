"""Predictions add up, hold on networks that were not seen, and say what they do not know."""

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from devices.errors import InvalidInputError
from devices.runtimes.simulated import RUN_MS
from latency import DeviceCard, Prediction, Predictor, measure_models, profile_device
from latency.predictor import Calibration
from latency.probes import GraphBuilder, build_anchor


@pytest.fixture(scope="module")
def simulated(simulated_card: DeviceCard) -> Predictor:
    return Predictor.from_card(simulated_card)


@pytest.fixture(scope="module")
def real(real_card: DeviceCard) -> Predictor:
    return Predictor.from_card(real_card)


def adds_up(found: Prediction) -> bool:
    total = found.fixed_ms + math.fsum(k.latency_ms for k in found.kernels)
    return math.isclose(found.latency_ms, total, rel_tol=1e-12)


def exotic() -> onnx.ModelProto:
    """A network with an operation that no probe has."""
    g = GraphBuilder((1, 16, 14, 14), np.random.default_rng(0))
    x = g.conv("a", "input", 32, 3)
    x = g.node("Softplus", "strange", [x], g.shapes[x])
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
        assert found.uncovered == (("Softplus", 1),)
        assert found.coverage < 1.0
        assert any("Softplus" in line for line in found.warnings)
        (strange,) = [k for k in found.kernels if k.source == "roofline"]
        assert strange.latency_ms > 0 and strange.nodes == ("strange/Softplus",)

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
        again = Predictor.from_card(real.card)
        first, second = again.predict(model), Predictor.from_card(real.card).predict(model)
        assert (first.low_ms, first.high_ms) == (second.low_ms, second.high_ms)
        assert first.latency_ms == pytest.approx(second.latency_ms, rel=1e-12)

    def test_prediction_is_json(self, real: Predictor, network) -> None:
        found = real.predict(network)
        data = json.loads(json.dumps(found.to_json()))
        assert data["latency_ms"] == found.latency_ms
        assert len(data["kernels"]) == len(found.kernels)


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


class TestCalibration:
    def test_it_recovers_the_profiler_s_cost(self) -> None:
        rng = np.random.default_rng(0)
        sums, counts = rng.uniform(0.5, 10, 40), rng.integers(5, 60, 40).astype(float)
        found = Calibration.fit(sums, counts, 0.02 + 0.98 * sums - 0.001 * counts)
        assert found.fixed_ms == pytest.approx(0.02, rel=0.05)
        assert found.scale == pytest.approx(0.98, rel=0.01)
        assert found.per_kernel_ms == pytest.approx(-0.001, rel=0.05)

    def test_few_networks_give_only_a_scale(self) -> None:
        found = Calibration.fit(np.array([2.0]), np.array([5.0]), np.array([1.8]))
        assert found == Calibration(0.0, 0.9, 0.0)

    def test_no_kernel_becomes_negative(self) -> None:
        assert Calibration(0.0, 1.0, -0.003).kernel_ms(0.002) > 0


class TestAnchors:
    def test_the_cost_of_a_call_is_pinned_down(self, real_card: DeviceCard) -> None:
        """A chain of trivial kernels is predicted as what it is: nearly nothing."""
        predictor = Predictor.from_card(real_card)
        one, many = (predictor.predict(build_anchor(kernels)).latency_ms for kernels in (1, 16))
        assert predictor.calibration.fixed_ms < 0.05
        assert 0 < one <= many < 0.2

    def test_anchors_are_not_judged(self, real_card: DeviceCard) -> None:
        assert "anchor" not in Predictor.from_card(real_card).validation["by_kind"]
