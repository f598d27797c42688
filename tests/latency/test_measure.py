"""Measuring networks, on the real runtime and on the simulated one."""

import numpy as np
import onnx
import pytest

from devices.errors import InvalidInputError, UnavailableError, UsageError
from devices.runtimes import RuntimeSettings, get_runtime
from devices.runtimes.base import NodeTiming
from devices.runtimes.simulated import SimulatedModel, SimulatedRuntime
from devices.visits import CORRECTION, Visit
from latency import measure_models
from latency.kernel import Kernel, KernelGraph, KernelNode
from latency.kernel_reading import read_kernels
from latency.measure import (
    Profiled,
    Visitor,
    VisitPlan,
    by_position,
    compile_named,
    match_kernels,
)
from latency.probes import build_probe, sample_probe


def test_real_measurements_are_complete(network: onnx.ModelProto, make_network) -> None:
    models = {"a": network, "b": make_network(16)}
    found = measure_models(models, runtime="onnxruntime", visits=3)
    assert list(found) == ["a", "b"]
    for name, measurement in found.items():
        assert measurement.name == name and len(measurement.visits) == 3
        assert measurement.low_ms < measurement.latency_ms < measurement.high_ms
        assert measurement.p50_ms <= measurement.p90_ms <= measurement.p99_ms
        assert measurement.runtime_version and not measurement.simulated


def test_simulated_measurements_are_exact_and_marked(network: onnx.ModelProto) -> None:
    found = measure_models({"a": network}, runtime="simulated", visits=2)["a"]
    assert found.simulated
    assert found.latency_ms == found.p99_ms == pytest.approx(found.low_ms)


def test_noise_is_averaged_out(network: onnx.ModelProto) -> None:
    exact = measure_models({"a": network}, runtime="simulated")["a"].latency_ms
    noisy = measure_models({"a": network}, runtime=SimulatedRuntime(noise=0.05, seed=1))["a"]
    assert noisy.latency_ms == pytest.approx(exact, rel=0.1)


def test_latency_is_that_of_the_device_as_profiled(network: onnx.ModelProto) -> None:
    """Be the machine slower or faster than its card all the time."""
    plain = measure_models({"a": network}, runtime="simulated", visits=2)["a"]
    for ratio in (0.5, 0.95, 1.1, 2.0):
        known_ms = plain.sentinel_reference_ms * ratio
        found = measure_models({"a": network}, runtime="simulated", visits=4, reference_ms=known_ms)
        assert found["a"].sentinel_reference_ms == known_ms
        assert found["a"].latency_ms == pytest.approx(plain.latency_ms * ratio**CORRECTION)
        assert found["a"].corrected == (ratio in (0.5, 2.0))


class Phases(SimulatedRuntime):
    """Half as fast as it can be for so many loadings, like a machine beside another's work."""

    def __init__(self, loadings: int) -> None:
        super().__init__()
        self.left = loadings

    def load(self, *arguments, **options):
        outer = self

        class Model(SimulatedModel):
            def run(self, count: int) -> list[float]:
                return [time_ms * (2 if outer.left > 0 else 1) for time_ms in super().run(count)]

        self.left -= 1
        model = super().load(*arguments, **options)
        model.__class__ = Model
        return model


def test_a_slow_machine_is_waited_for(network: onnx.ModelProto) -> None:
    plain = measure_models({"a": network}, runtime="simulated", visits=2)["a"]
    reference_ms = plain.sentinel_reference_ms

    def found(patience_s: float, loadings: int = 4):
        said: list[str] = []
        measured = measure_models(
            {"a": network},
            runtime=Phases(loadings),
            visits=2,
            reference_ms=reference_ms,
            patience_s=patience_s,
            progress=lambda share, text: said.append(text),
        )
        return measured["a"], said

    hasty, _ = found(0.0)
    assert hasty.corrected and len(hasty.visits) == 2
    patient, said = found(0.6, loadings=10**6)
    assert patient.corrected and any("2.00 times slower" in text for text in said)
    patient, said = found(20.0, loadings=3)  # the sentinel's, and a visit's
    assert not patient.corrected and patient.latency_ms == pytest.approx(plain.latency_ms)
    assert len(patient.visits) == 4
    patient, said = found(20.0, loadings=200)  # slow for long: what it is then is not kept
    assert not patient.disturbed and patient.latency_ms == pytest.approx(plain.latency_ms)
    assert len(patient.visits) < 10 and len(said) > 150


def test_progress_ends_at_one(network: onnx.ModelProto) -> None:
    seen: list[float] = []
    measure_models(
        {"a": network},
        runtime="simulated",
        visits=3,
        progress=lambda share, text: seen.append(share),
    )
    assert seen == sorted(seen) and seen[-1] == 1.0


def test_nothing_to_measure() -> None:
    assert measure_models({}, runtime="onnxruntime") == {}


def test_wrong_arguments(network: onnx.ModelProto) -> None:
    with pytest.raises(UsageError, match="visits 0"):
        measure_models({"a": network}, runtime="simulated", visits=0)
    with pytest.raises(UsageError, match="unknown"):
        measure_models({"a": network}, runtime="nonsense")
    with pytest.raises(UnavailableError):
        measure_models({"a": network}, runtime="tensorrt")


def test_errors_name_the_model(network: onnx.ModelProto) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(network)
    broken.graph.node[0].op_type = "NoSuchOperation"
    with pytest.raises(InvalidInputError, match="model 'bad'") as caught:
        measure_models({"bad": broken}, runtime="onnxruntime", visits=1)
    assert "\n" not in str(caught.value)


def test_a_visit_times_kernels_only_when_asked(network: onnx.ModelProto) -> None:
    runtime, settings = SimulatedRuntime(), RuntimeSettings()
    compiled = runtime.compile(network.SerializeToString(), settings)
    with Visitor(runtime, settings) as visitor:
        assert not visitor.visit(compiled).kernels
        assert visitor.visit(compiled, kernels=True).kernels


class TestVisits:
    def visited(self, network: onnx.ModelProto, plan: VisitPlan) -> Profiled:
        runtime, settings = SimulatedRuntime(), RuntimeSettings()
        compiled = runtime.compile(network.SerializeToString(), settings)
        with Visitor(runtime, settings, plan) as visitor:
            return visitor.visit(compiled, kernels=True)

    def test_slow_networks_are_run_less_often(self, network: onnx.ModelProto) -> None:
        found = self.visited(network, VisitPlan(slow_ms=0.0, min_ms=0.0, slow_runs=3))
        assert len(found.visit.samples_ms) == 3
        assert {len(t.samples_ms) for t in found.kernels.values()} == {3}

    def test_fast_networks_are_run_often(self, network: onnx.ModelProto) -> None:
        plan = VisitPlan(slow_ms=1e9, min_ms=1e9, max_runs=17, profiled_runs=5)
        found = self.visited(network, plan)
        assert len(found.visit.samples_ms) == 17
        assert {len(t.samples_ms) for t in found.kernels.values()} == {5}
        short = self.visited(network, VisitPlan(min_ms=0.0, min_runs=6, slow_ms=1e9))
        assert len(short.visit.samples_ms) == 6

    def test_the_real_runtime_counts_alike(self, network: onnx.ModelProto) -> None:
        runtime, settings = get_runtime("onnxruntime"), RuntimeSettings()
        compiled = compile_named(runtime, "net", network, settings)
        plan = VisitPlan(max_runs=8, profiled_runs=4, slow_ms=1e9)
        with Visitor(runtime, settings, plan) as visitor:
            found = visitor.visit(compiled, kernels=True)
        assert 5 <= len(found.visit.samples_ms) <= 8
        assert {len(t.samples_ms) for t in found.kernels.values()} == {4}
        assert found.visit.sentinel_before_ms > 0 and found.visit.sentinel_after_ms > 0


def node(name: str, size: int, nodes: tuple[str, ...]) -> KernelNode:
    kernel = Kernel("activation", "Relu", ((1, size),), ((1, size),))
    return KernelNode(kernel, name, nodes, (-1,))


def keys(nodes: list[KernelNode]) -> list[tuple[str, tuple[str, ...]]]:
    return [(item.kernel.signature, item.nodes) for item in nodes]


class TestMatching:
    NODES = (node("a", 4, ("x",)), node("b", 8, ("y",)), node("c", 4, ("z",)), node("d", 4, ("x",)))

    def test_the_same_order(self) -> None:
        graph = KernelGraph(self.NODES)
        found = match_kernels(graph, keys(list(self.NODES)), "net")
        assert found == {"a": 0, "b": 1, "c": 2, "d": 3}

    def test_another_order_goes_by_whom_a_kernel_serves(self) -> None:
        stored = [self.NODES[i] for i in (2, 1, 0, 3)]
        found = match_kernels(KernelGraph(self.NODES), keys(stored), "net")
        assert found == {"a": 2, "b": 1, "c": 0, "d": 3}

    def test_what_is_left_goes_by_the_kernel_alone(self) -> None:
        stored = [self.NODES[1], node("?", 4, ("w",)), self.NODES[2], self.NODES[0]]
        found = match_kernels(KernelGraph(self.NODES), keys(stored), "net")
        assert found == {"b": 0, "c": 2, "a": 3, "d": 1}
        assert sorted(found.values()) == [0, 1, 2, 3]

    def test_other_kernels_are_refused(self) -> None:
        stored = [*self.NODES[:3], node("e", 16, ("x",))]
        with pytest.raises(UsageError, match=r"'net'.*other kernels") as caught:
            match_kernels(KernelGraph(self.NODES), keys(stored), "net")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("seed", [0, 3, 11, 40])
    def test_a_network_compiled_twice_is_matched(self, seed: int) -> None:
        model = build_probe(sample_probe(np.random.default_rng([0, 2, seed])))
        runtime, settings = get_runtime("onnxruntime"), RuntimeSettings()
        first, second = (
            read_kernels(model, compile_named(runtime, "m", model, settings).data) for _ in range(2)
        )
        found = match_kernels(second, keys(list(first.kernels)), "m")
        assert sorted(found.values()) == list(range(len(first.kernels)))
        for item in second.kernels:
            assert first.kernels[found[item.name]].kernel == item.kernel

    def test_times_lie_where_their_kernels_are_stored(self) -> None:
        timings = {
            "a": NodeTiming("Relu", (1.0, 2.0)),
            "b": NodeTiming("Relu", (3.0, 4.0)),
            "short": NodeTiming("Relu", (9.0,)),
            "unknown": NodeTiming("Relu", (5.0, 6.0)),
        }
        profiled = Profiled(Visit((1.0,), 1.0, 1.0), timings)
        found = by_position(profiled, {"a": 2, "b": 0, "short": 1})
        assert found.dtype == np.float32
        assert found.tolist() == [[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]]

    def test_without_times_there_is_a_row_for_each_kernel(self) -> None:
        profiled = Profiled(Visit((1.0,), 1.0, 1.0), {})
        assert by_position(profiled, {"a": 0, "b": 1}).shape == (2, 0)
