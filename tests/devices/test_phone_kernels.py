"""Kernels of the phone runtimes: which are executed, what they stand for, and their times."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest

from devices.runtimes import get_runtime
from devices.runtimes.base import CompiledGraph, Runtime, RuntimeSettings
from devices.xnnpack_kernels import aligned
from latency.fusion import FusionRules
from latency.fusion_apply import apply_rules
from latency.graph_builder import GraphBuilder
from latency.kernel_reading import read_kernels

SETTINGS = RuntimeSettings()


def usable(name: str) -> Runtime:
    made = get_runtime(name)
    status = made.status()
    if not status.usable:
        pytest.skip(f"{name} is {status.reason}: {status.install}")
    return made


@pytest.fixture(scope="module", params=["executorch", "litert", "ncnn"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    made = usable(request.param)
    yield made
    made.close()


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """Every family of a mobile network, and what a runtime has to do without XNNPACK."""
    build = GraphBuilder((1, 3, 48, 48), np.random.default_rng(0))
    y = build.activation("stem_act", build.conv("stem", "input", 16, 3, stride=2), "relu6")
    z = build.activation("act", build.conv("expand", y, 48, 1), "hardswish")
    z = build.activation("dw_act", build.conv("dw", z, 48, 5, groups=48), "relu")
    z = build.squeeze_excite("se", z, 12)
    y = build.add("add", build.conv("project", z, 16, 1), y)
    y = build.concat("cat", [build.conv("grouped", y, 32, 3, groups=4), y])
    y = build.activation("gelu", y, "gelu")
    return build.finish(build.head("head", y, 10))


@pytest.fixture(scope="module")
def compiled(runtime: Runtime, model: onnx.ModelProto) -> CompiledGraph:
    return runtime.compile(model.SerializeToString(), SETTINGS)


def kernels(model: onnx.ModelProto, compiled: CompiledGraph) -> tuple:
    assert compiled.executed is not None
    return read_kernels(model, compiled.executed).kernels


def test_what_is_profiled_is_what_is_said_to_be_executed(
    runtime: Runtime, model: onnx.ModelProto, compiled: CompiledGraph
) -> None:
    with runtime.load(compiled, SETTINGS, profiling=True) as loaded:
        times = loaded.profile(4)
        again = loaded.profile(3)
        whole_ms = float(np.median(loaded.run(20)))
    assert set(times) == set(again) == {node.name for node in kernels(model, compiled)}
    assert all(len(timing.samples_ms) == 4 for timing in times.values())
    total_ms = sum(float(np.median(timing.samples_ms)) for timing in times.values())
    assert 0.2 * whole_ms < total_ms < 5 * whole_ms


def test_every_layer_is_in_one_kernel(model: onnx.ModelProto, compiled: CompiledGraph) -> None:
    found = kernels(model, compiled)
    layers = {node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    leading = [k.nodes[0] for k in found if k.kernel.family.startswith(("conv_", "gemm"))]
    assert sorted(leading) == sorted(layers)
    known = {node.name for node in model.graph.node}
    assert all(set(node.nodes) <= known for node in found)
    assert all(node.kernel.output and all(node.kernel.inputs) for node in found)
    assert known == {name for node in found for name in node.nodes}


def test_kernels_compute_what_the_model_does(
    model: onnx.ModelProto, compiled: CompiledGraph
) -> None:
    other = get_runtime("onnxruntime").compile(model.SerializeToString(), SETTINGS)
    madds = [sum(k.kernel.madds for k in kernels(model, one)) for one in (compiled, other)]
    assert madds[0] == madds[1] > 0
    shapes = {
        value.name: tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    executed = onnx.load_from_string(compiled.executed)
    told = {
        value.name: tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
        for value in executed.graph.value_info
        if value.name in shapes
    }
    assert len(told) > 10 and told == {name: shapes[name] for name in told}


def test_activations_are_part_of_convolutions(
    model: onnx.ModelProto, compiled: CompiledGraph
) -> None:
    found = [node.kernel for node in kernels(model, compiled)]
    assert {k.activation for k in found if k.family.startswith("conv_")} >= {"Clip", "Relu"}
    assert not [k for k in found if k.op.endswith(("Clip", "Relu"))]
    assert [k for k in found if k.op.endswith("HardSwish")]  # XNNPACK has a kernel of its own


def test_sources_point_backwards(model: onnx.ModelProto, compiled: CompiledGraph) -> None:
    for place, node in enumerate(kernels(model, compiled)):
        assert all(-1 <= source < place for source in node.sources)


def test_fusion_rules_are_learned_from_it(model: onnx.ModelProto, compiled: CompiledGraph) -> None:
    assert compiled.executed is not None
    rules = FusionRules.from_json(FusionRules.learn([(model, compiled.executed)]).to_json())
    told, true = (
        set(apply_rules(rules, model).signatures),
        {node.kernel.signature for node in kernels(model, compiled)},
    )
    assert len(told & true) > 0.7 * len(true)


@pytest.mark.parametrize("name", ["executorch", "litert"])
def test_large_windows_come_in_parts(name: str) -> None:
    runtime = usable(name)
    build = GraphBuilder((1, 3, 24, 24), np.random.default_rng(0))
    y = build.activation("stem_act", build.conv("stem", "input", 32, 3, stride=2), "relu")
    y = build.activation("dw_act", build.conv("dw", y, 32, 7, groups=32), "relu")
    model = build.finish(build.head("head", y, 10))
    rewritten = runtime.rewritten(model, SETTINGS)
    made = runtime.compile(model.SerializeToString(), SETTINGS)
    found = [node.kernel for node in kernels(rewritten, made)]
    depthwise = [kernel for kernel in found if kernel.groups == 32]
    assert len(depthwise) > 1
    assert max(np.prod(kernel.kernel) for kernel in depthwise) <= 25
    assert sum(kernel.op == "nhwc.Add" for kernel in found) == len(depthwise) - 1
    rules = FusionRules.learn([(rewritten, made.executed)])
    told = set(apply_rules(rules, rewritten).signatures)
    assert told == {node.kernel.signature for node in kernels(rewritten, made)}


@pytest.mark.parametrize("name", ["executorch", "litert"])
def test_layers_on_a_single_pixel(name: str) -> None:
    """XNNPACK may put a reshape behind one, for which nothing asked."""
    runtime = usable(name)
    build = GraphBuilder((1, 3, 16, 16), np.random.default_rng(0))
    y = build.activation("stem_act", build.conv("stem", "input", 16, 3, stride=2), "relu")
    y = build.conv("pixel", build.global_pool("pool", y), 24, 1)
    y = build.activation("wide_act", build.conv("wide", y, 40, 1), "relu")
    y = build.activation("hidden_act", build.gemm("hidden", build.flatten("flat", y), 16), "relu")
    model = build.finish(build.gemm("head", y, 10))
    made = runtime.compile(model.SerializeToString(), SETTINGS)
    found = kernels(model, made)
    layers = [n.kernel for n in found if n.kernel.op.rpartition(".")[2] in ("Conv", "Gemm")]
    assert [kernel.weights[0][0] for kernel in layers] == [16, 24, 40, 16, 10]
    FusionRules.learn([(model, made.executed)])


def test_kernels_of_eight_bits(model: onnx.ModelProto) -> None:
    runtime = usable("executorch")
    settings = RuntimeSettings(precision="int8")
    assert runtime.rewritten(model, settings) is model
    made = runtime.compile(model.SerializeToString(), settings)
    found = kernels(model, made)
    assert "int8" in {k.kernel.dtype for k in found if k.kernel.family.startswith("conv_")}
    layers = {node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    leading = [k.nodes[0] for k in found if k.kernel.family.startswith(("conv_", "gemm"))]
    assert sorted(leading) == sorted(layers)
    with runtime.load(made, settings) as loaded:
        assert set(loaded.profile(2)) >= {node.name for node in found}


class TestAligned:
    def test_in_order_and_as_many_as_possible(self) -> None:
        wanted = [("Add",), ("Clamp",), ("Clamp",), ("Copy", "Concat"), ("Add",)]
        names = ["Add (ND) #1", "Clamp #1", "Copy #1", "Copy #2", "Add (ND) #2"]
        assert aligned(wanted, names) == [0, 1, None, 2, 4]

    def test_nothing_fits(self) -> None:
        assert aligned([("Add",)], []) == [None]
        assert aligned([], ["Add"]) == []
        assert aligned([("Add",), ("Mul",)], ["Mul", "Add"]).count(None) == 1
