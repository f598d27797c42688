"""Kernel times worked out from whole networks: on a device whose every kernel is known."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from devices.errors import UnavailableError
from devices.runtimes import RuntimeSettings
from devices.runtimes.simulated import RUN_MS, SimulatedRuntime
from devices.visits import Visit
from latency import DeviceCard, Predictor, measure_models, profile_device
from latency.card_rows import CardVisit
from latency.executed import executed_graph, executed_here
from latency.graph_builder import GraphBuilder
from latency.kernel_reading import read_kernels
from latency.probes import build_probe, sample_probe
from latency.table import KernelTable
from latency.whole_times import WholeNetwork, _Apportioning, explain

SETTINGS = RuntimeSettings()


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> DeviceCard:
    """Of a device that computes its times and tells only those of whole networks."""
    return profile_device(
        tmp_path_factory.mktemp("whole") / "w.card",
        runtime=SimulatedRuntime(per_op_times=False),
        rounds=1,
        probes=90,
    )


@pytest.fixture(scope="module")
def table(card: DeviceCard) -> KernelTable:
    return KernelTable.from_card(card, quick=True)


def probes(count: int, seed: int) -> dict[str, onnx.ModelProto]:
    rng = np.random.default_rng(seed)
    return {f"p{i}": build_probe(sample_probe(rng, light=True)) for i in range(count)}


def simulated(count: int, seed: int = 3) -> list[WholeNetwork]:
    """Networks whose kernels take 10 ps an operation and 20 µs each."""
    networks = []
    for model in probes(count, seed).values():
        data = executed_here(model, SimulatedRuntime(), SETTINGS, per_op_times=True)
        nodes = read_kernels(model, data).kernels
        whole_ms = sum(1e-8 * n.kernel.flops + 0.02 for n in nodes)
        networks.append(
            WholeNetwork([n.kernel for n in nodes], [n.sources for n in nodes], whole_ms, 0.01)
        )
    return networks


class TestCard:
    def test_holds_no_times_of_kernels_and_says_so(self, card: DeviceCard) -> None:
        assert not card.per_op_times
        assert card.summary()["per_op_times"] is False
        assert all(v.kernel_ms.size == 0 for n in card.networks for v in n.visits)
        again = DeviceCard.open(card.path, samples=False)
        assert not again.per_op_times

    def test_predicts_networks_that_it_has_not_seen(self, card: DeviceCard) -> None:
        predictor = Predictor.from_card(card)
        models = probes(16, seed=77)
        truth = measure_models(models, runtime=SimulatedRuntime(), visits=1)
        errors = {
            name: predictor.predict(model).latency_ms / truth[name].latency_ms - 1
            for name, model in models.items()
        }
        assert np.median(np.abs(list(errors.values()))) < 0.06
        assert np.quantile(np.abs(list(errors.values())), 0.8) < 0.2

    def test_says_by_networks_left_out_how_well(self, card: DeviceCard) -> None:
        validation = Predictor.from_card(card).validation
        assert validation["kernels_timed"] is False
        assert validation["by_family"] == {}
        assert 0 < validation["median_error"] < 0.1
        assert validation["networks"] >= 19

    def test_needs_no_compilation_to_predict(self, card: DeviceCard, monkeypatch) -> None:
        monkeypatch.setattr(SimulatedRuntime, "compile", lambda *_: pytest.fail("was compiled"))
        (model,) = probes(1, seed=5).values()
        found = Predictor.from_card(card).predict(model)
        assert found.kernels_from == "runtime"
        assert {k.source for k in found.kernels} <= {"regressed", "roofline"}

    def test_is_fitted_once_and_kept(self, card: DeviceCard) -> None:
        predictor = Predictor.from_card(card)
        again = Predictor.from_bytes(card, predictor.to_bytes())
        assert again is not None
        for model in probes(4, seed=6).values():
            one, other = predictor.predict(model), again.predict(model)
            assert other.latency_ms == pytest.approx(one.latency_ms, rel=1e-3)
            assert other.high_ms == pytest.approx(one.high_ms, rel=1e-2)

    def test_latencies_survive_a_machine_that_is_slow_most_of_the_time(
        self, card: DeviceCard, table: KernelTable
    ) -> None:
        rng = np.random.default_rng(0)

        def visit(round_: int, latency_ms: float) -> CardVisit:
            slow = float(rng.choice((1.0, 1.35), p=(0.15, 0.85)))
            sentinel = 0.5 * slow * rng.lognormal(0, 0.02, 2)
            own = latency_ms * slow**0.7 * float(rng.lognormal(0, 0.03))
            seen = Visit((own,) * 3, float(sentinel[0]), float(sentinel[1]))
            return CardVisit(round_, float(round_), seen, np.zeros((0, 0), np.float32))

        disturbed = DeviceCard.open(card.path)
        wholes = {network.name: network.whole_ms for network in table.networks}
        disturbed._networks = tuple(
            replace(own, visits=tuple(visit(i, wholes[own.name]) for i in range(4)))
            for own in card.networks
        )
        found = KernelTable.from_card(disturbed, quick=True)
        off = [math.log(network.whole_ms / wholes[network.name]) for network in found.networks]
        assert abs(np.median(off)) < 0.03
        assert np.median(np.abs(off)) < 0.05

    def test_a_timed_card_is_not_worked_out(self, tmp_path: Path) -> None:
        made = profile_device(tmp_path / "t.card", runtime="simulated", rounds=1, probes=2)
        assert made.per_op_times
        assert all(n.left_out_ms is None for n in KernelTable.from_card(made).networks)


class TestExplain:
    def test_networks_add_up(self, table: KernelTable) -> None:
        off = [network.sum_ms / (network.whole_ms - RUN_MS) - 1 for network in table.networks]
        assert np.median(np.abs(off)) < 0.05

    def test_finds_what_each_of_two_families_takes(self) -> None:
        rng = np.random.default_rng(0)
        settings = RuntimeSettings()
        runtime = SimulatedRuntime()
        networks, truths = [], []
        for model in probes(60, seed=1).values():
            data = executed_here(model, runtime, settings, per_op_times=True)
            graph = read_kernels(model, data)
            times = [
                (2e-8 if n.kernel.family == "conv_dense" else 1e-8) * n.kernel.flops + 0.004
                for n in graph.kernels
            ]
            noise = float(rng.lognormal(0, 0.01))
            networks.append(
                WholeNetwork(
                    [n.kernel for n in graph.kernels],
                    [n.sources for n in graph.kernels],
                    (sum(times) + 0.05) * noise,
                    0.01,
                )
            )
            truths.append(times)
        found = explain(networks).networks
        for family in ("conv_dense", "conv_pointwise"):
            pairs = [
                (time_ms, truth)
                for network, own, row in zip(networks, found, truths, strict=True)
                for kernel, time_ms, truth in zip(network.kernels, own.times_ms, row, strict=True)
                if kernel.family == family
            ]
            ratio = sum(a for a, _ in pairs) / sum(b for _, b in pairs)
            assert ratio == pytest.approx(1, abs=0.05), family

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_few_networks_are_enough_to_say_something(self, count: int) -> None:
        networks = simulated(count)
        for own, network in zip(explain(networks).networks, networks, strict=True):
            assert sum(own.times_ms) == pytest.approx(network.whole_ms, rel=0.3)
            assert min(own.times_ms) > 0
            assert own.left_out_ms > 0

    def test_nothing_is_fitted_to_times_that_were_worked_out(
        self, card: DeviceCard, table: KernelTable
    ) -> None:
        predictor = Predictor.from_card(card)
        assert table.explained is not None
        assert predictor.calibration.fixed_ms == pytest.approx(table.explained.fixed_ms)
        assert (predictor.calibration.scale, predictor.calibration.per_kernel_ms) == (1.0, 0.0)
        for name, found in predictor._families.items():
            own = table.explained.families[name].roofline
            assert found.roofline.coefficients == pytest.approx(own.coefficients)

    def test_a_network_that_no_kernel_explains_spoils_no_other(self) -> None:
        networks = simulated(12)
        before = explain(networks, quick=True).networks
        networks[3] = replace(networks[3], whole_ms=4 * networks[3].whole_ms)
        after = explain(networks, quick=True).networks
        moved = [
            abs(math.log(sum(new.times_ms) / sum(old.times_ms)))
            for place, (old, new) in enumerate(zip(before, after, strict=True))
            if place != 3
        ]
        assert np.median(moved) < 0.01 and max(moved) < 0.3

    def test_slopes_are_those_of_the_likelihood(self) -> None:
        found = _Apportioning(simulated(12))
        off = {name: np.zeros(len(own.owner)) for name, own in found.families.items()}
        placed, target = found._placed(found._times(off)), found._target(off)
        rng = np.random.default_rng(0)
        hyper = found.expected + rng.normal(0, 0.3, len(found.expected))
        _, slope = found._unlikelihood(placed, target, hyper)
        for _ in range(3):
            step = 1e-4 * rng.normal(size=len(hyper))
            above, _ = found._unlikelihood(placed, target, hyper + step)
            below, _ = found._unlikelihood(placed, target, hyper - step)
            assert above - below == pytest.approx(2 * slope @ step, rel=1e-3)

    def test_errors_of_left_out_networks_are_those_of_a_fit_without_them(self) -> None:
        networks = simulated(9)
        said = explain(networks, quick=True).networks[7]
        rest = [*networks[:7], *networks[8:]]
        found = explain(rest, quick=True)
        times_ms = found.fixed_ms
        for kernel in networks[7].kernels:
            around = np.zeros((1, 5))
            times_ms += float(found.families[kernel.family].predict([kernel], around)[0][0])
        # Surroundings and rooflines differ a little.
        assert said.left_out_ms == pytest.approx(times_ms, rel=0.15)
        assert 0 < said.left_out_deviation < 0.5

    def test_none_are_none(self) -> None:
        assert explain([]).networks == ()


class TestExecuted:
    def test_what_every_runtime_fuses_is_fused(self) -> None:
        builder = GraphBuilder((1, 3, 16, 16), np.random.default_rng(0))
        x = builder.norm("norm", builder.conv("conv", "input", 8, 3, bias=False))
        model = builder.finish(builder.conv("last", builder.activation("act", x, "relu"), 8))
        data = executed_graph(model, None, per_op_times=False)
        kernels = read_kernels(model, data).kernels
        assert [(n.kernel.family, n.kernel.activation) for n in kernels] == [
            ("conv_dense", "Relu"),
            ("conv_pointwise", ""),
        ]
        assert set(kernels[0].nodes) == {"conv/Conv", "norm/BatchNormalization", "act/Relu"}

    def test_a_runtime_without_times_refuses_to_tell_them(self) -> None:
        runtime = SimulatedRuntime(per_op_times=False)
        (model,) = probes(1, seed=9).values()
        compiled = runtime.compile(model.SerializeToString(), SETTINGS)
        assert compiled.executed is None
        with (
            runtime.load(compiled, SETTINGS) as loaded,
            pytest.raises(UnavailableError, match="no times of single operations"),
        ):
            loaded.profile(2)
