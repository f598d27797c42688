"""Measuring networks, on the real runtime and on the simulated one."""

import onnx
import pytest

from devices.errors import InvalidInputError, UnavailableError, UsageError
from devices.runtimes import RuntimeSettings
from devices.runtimes.simulated import SimulatedRuntime
from latency import measure_models
from latency.measure import Visitor


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


def test_a_known_reference_corrects_a_wholly_slow_series(network: onnx.ModelProto) -> None:
    plain = measure_models({"a": network}, runtime="simulated", visits=2)["a"]
    half = plain.sentinel_reference_ms / 2
    corrected = measure_models({"a": network}, runtime="simulated", visits=2, reference_ms=half)
    assert corrected["a"].latency_ms == pytest.approx(plain.latency_ms / 2)


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
