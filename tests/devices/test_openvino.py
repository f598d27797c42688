"""OpenVINO itself: outputs, times, and what it says it executes, on networks of the space."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from autospace.mutation import random_cell
from autospace.network import build_network
from autospace.onnx_export import build_onnx, folded_weights
from autospace.seeding import Seed
from autospace.skeleton import Skeleton, Stage
from autospace.space import Architecture
from devices.errors import InvalidInputError, UnavailableError
from devices.onnx_files import random_inputs
from devices.runtimes import CompiledGraph, RuntimeSettings, get_runtime
from devices.runtimes.openvino import OpenVino, _means_ms
from latency.fusion import FusionRules
from latency.fusion_apply import apply_rules
from latency.graph_builder import GraphBuilder
from latency.kernel_reading import read_kernels
from latency.probes import build_sentinel

SETTINGS = RuntimeSettings()
SKELETON = Skeleton(
    name="test", resolution=32, in_channels=3, num_classes=5, stem_width=8, stem_stride=2,
    first_width=8, stages=(Stage(16, 2, 2), Stage(24, 2, 2)), head_width=64,
)  # fmt: skip


def network_of_the_space(seed: int) -> onnx.ModelProto:
    random = Seed(seed).generator("cells")
    blocks = tuple(random_cell(random).fused() for _ in SKELETON.blocks)
    architecture = Architecture(SKELETON, blocks)
    network = build_network(architecture, seed).eval()
    return build_onnx(architecture.nodes, folded_weights(network))


@pytest.fixture(scope="module")
def runtime() -> OpenVino:
    found = get_runtime("openvino")
    assert isinstance(found, OpenVino)
    return found


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return network_of_the_space(0)


@pytest.fixture(scope="module")
def compiled(runtime: OpenVino, model: onnx.ModelProto) -> CompiledGraph:
    return runtime.compile(model.SerializeToString(), SETTINGS)


@pytest.mark.parametrize("seed", range(3))
def test_outputs_are_those_of_onnx_runtime(runtime: OpenVino, seed: int) -> None:
    data = network_of_the_space(seed).SerializeToString()
    answers = []
    for engine in (runtime, get_runtime("onnxruntime")):
        graph = engine.compile(data, SETTINGS)
        with engine.load(graph, SETTINGS) as loaded:
            (answer,) = loaded.infer(random_inputs(graph.inputs, seed=seed))
        answers.append(answer)
    difference = np.abs(answers[0] - answers[1]).max() / np.abs(answers[1]).max()
    assert difference < 1e-3
    assert np.abs(answers[1]).max() > 0


class TestTimes:
    def test_runs_are_timed_one_by_one(self, runtime: OpenVino, compiled: CompiledGraph) -> None:
        with runtime.load(compiled, SETTINGS) as loaded:
            times = loaded.run(7)
        assert len(times) == 7 and min(times) > 0

    def test_operations_add_up_to_no_more_than_some_runs(
        self, runtime: OpenVino, compiled: CompiledGraph
    ) -> None:
        with runtime.load(compiled, SETTINGS) as loaded:
            loaded.run(5)
            nodes = loaded.profile(10)
            whole_ms = float(np.median(loaded.run(20)))
        assert all(len(timing.samples_ms) == 2 for timing in nodes.values())
        total_ms = sum(timing.samples_ms[0] for timing in nodes.values())
        assert 0.2 * whole_ms < total_ms < 5 * whole_ms

    def test_what_is_profiled_is_what_is_said_to_be_executed(
        self, runtime: OpenVino, compiled: CompiledGraph
    ) -> None:
        executed = onnx.load_from_string(compiled.executed)
        with runtime.load(compiled, SETTINGS, profiling=True) as loaded:
            nodes = loaded.profile(2)
        names = {node.name for node in executed.graph.node}
        assert set(nodes) <= names
        # What takes less than a microsecond is not counted: a few layers, on fast processors.
        layers = {node.name for node in executed.graph.node if node.op_type == "Conv"}
        assert len(layers & set(nodes)) > 0.5 * len(layers)

    def test_means_between_two_looks_at_the_counters(self) -> None:
        # 3 runs of 10.4 µs, then 6 of 20.4: each is cut off to 10 and 20, their means again.
        before, after = {"a": ("Conv", 10)}, {"a": ("Conv", (3 * 10 + 6 * 20) // 9)}
        ((kind, ms),) = _means_ms(before, 3, after, 9).values()
        assert kind == "Conv"
        assert ms * 1e3 == pytest.approx(20.4, abs=1.5)
        ((_, first),) = _means_ms({}, 0, {"a": ("Conv", 7)}, 1).values()
        assert first * 1e3 == pytest.approx(7.5)


class TestExecuted:
    def test_every_layer_is_in_one_kernel(
        self, model: onnx.ModelProto, compiled: CompiledGraph
    ) -> None:
        kernels = read_kernels(model, compiled.executed).kernels
        layers = {n.name for n in model.graph.node if n.op_type in ("Conv", "Gemm")}
        leading = [k.nodes[0] for k in kernels if k.kernel.family.startswith(("conv_", "gemm"))]
        assert sorted(leading) == sorted(layers)
        known = {node.name for node in model.graph.node}
        assert all(set(kernel.nodes) <= known for kernel in kernels)
        assert all(k.kernel.output and all(k.kernel.inputs) for k in kernels)
        assert all(k.kernel.dtype == "float32" for k in kernels)

    def test_activations_and_residuals_are_part_of_convolutions(
        self, model: onnx.ModelProto, compiled: CompiledGraph
    ) -> None:
        kernels = [n.kernel for n in read_kernels(model, compiled.executed).kernels]
        fused = {k.activation for k in kernels if k.family.startswith("conv_")}
        assert "Clip" in fused
        assert not [k for k in kernels if k.op.endswith(".Clip")]

    def test_multiply_adds_are_the_model_s(
        self, model: onnx.ModelProto, compiled: CompiledGraph, runtime: OpenVino
    ) -> None:
        ort = get_runtime("onnxruntime").compile(model.SerializeToString(), SETTINGS)
        madds = [
            sum(n.kernel.madds for n in read_kernels(model, data).kernels)
            for data in (compiled.executed, ort.executed)
        ]
        assert madds[0] == madds[1] > 0

    def test_a_network_that_ends_in_what_moves_nothing(self, runtime: OpenVino) -> None:
        builder = GraphBuilder((1, 3, 8, 8), np.random.default_rng(0))
        pooled = builder.global_pool("pool", builder.conv("conv", "input", 10, 3))
        model = builder.finish(builder.flatten("flatten", pooled))
        compiled = runtime.compile(model.SerializeToString(), SETTINGS)
        kernels = read_kernels(model, compiled.executed).kernels
        families = [node.kernel.family for node in kernels]
        assert "conv_dense" in families and "global_pool" in families

    def test_sources_point_backwards(self, model: onnx.ModelProto, compiled: CompiledGraph) -> None:
        kernels = read_kernels(model, compiled.executed).kernels
        for place, node in enumerate(kernels):
            assert all(-1 <= source < place for source in node.sources)
        assert sum(-1 in node.sources for node in kernels) == 1

    def test_fusion_rules_are_learned_from_it(
        self, model: onnx.ModelProto, compiled: CompiledGraph
    ) -> None:
        sentinel = build_sentinel()
        engine = get_runtime("openvino")
        pairs = [
            (model, compiled.executed),
            (sentinel, engine.compile(sentinel.SerializeToString(), SETTINGS).executed),
        ]
        rules = FusionRules.learn(pairs)
        again = FusionRules.from_json(rules.to_json())
        told = apply_rules(again, model)
        true = read_kernels(model, compiled.executed)
        common = set(told.signatures) & set(true.signatures)
        assert len(common) > 0.8 * len(set(true.signatures))


class TestRefusals:
    @pytest.mark.parametrize("data", [b"", b"garbage"])
    def test_garbage(self, runtime: OpenVino, data: bytes) -> None:
        with pytest.raises(InvalidInputError) as caught:
            runtime.compile(data, SETTINGS)
        assert "\n" not in str(caught.value)

    def test_an_unknown_operation_is_named(self, runtime: OpenVino, model) -> None:
        broken = onnx.ModelProto()
        broken.CopyFrom(model)
        broken.graph.node[0].op_type = "Frobnicate"
        with pytest.raises(InvalidInputError, match="Frobnicate") as caught:
            runtime.compile(broken.SerializeToString(), SETTINGS)
        assert "\n" not in str(caught.value)

    def test_a_damaged_graph(self, runtime: OpenVino, compiled: CompiledGraph) -> None:
        cut = CompiledGraph("openvino", compiled.version, b"cut", compiled.inputs, ())
        with pytest.raises(InvalidInputError, match="openvino refused"):
            runtime.load(cut, SETTINGS)

    def test_wrong_inputs(self, runtime: OpenVino, compiled: CompiledGraph) -> None:
        (name, shape, _), *_ = compiled.inputs
        with runtime.load(compiled, SETTINGS) as loaded:
            with pytest.raises(InvalidInputError, match="is missing"):
                loaded.infer({"other": np.zeros(shape, np.float32)})
            with pytest.raises(InvalidInputError, match="give float32"):
                loaded.infer({name: np.zeros((1, 1), np.float32)})

    def test_closed(self, runtime: OpenVino, compiled: CompiledGraph) -> None:
        loaded = runtime.load(compiled, SETTINGS)
        loaded.close()
        with pytest.raises(UnavailableError, match="closed"):
            loaded.run(1)

    def test_precision(self, runtime: OpenVino, model) -> None:
        with pytest.raises(UnavailableError, match="fp16"):
            runtime.compile(model.SerializeToString(), RuntimeSettings(precision="fp16"))


def test_the_status_says_what_it_can(runtime: OpenVino) -> None:
    status = runtime.status()
    assert status.usable and status.version and status.per_op_times
    assert status.source == "onnx"
