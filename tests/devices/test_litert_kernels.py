"""LiteRT's profiler, and what a file's operations stand for where XNNPACK does not execute all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from troubled_runtimes import ContainedUntoldLiteRt

from devices.contained import ContainedRuntime
from devices.errors import InvalidInputError
from devices.litert_kernels import LiteRtFile
from devices.litert_profiler import LiteRtProfiler
from devices.runtimes import get_runtime
from devices.runtimes.base import CompiledGraph, RuntimeSettings
from latency.executed import executed_graph
from latency.graph_builder import GraphBuilder
from latency.kernel_reading import read_kernels

SETTINGS = RuntimeSettings()


@pytest.fixture(scope="module")
def runtime() -> Iterator[ContainedRuntime]:
    made = get_runtime("litert")
    status = made.status()
    if not status.usable:
        pytest.skip(f"litert is {status.reason}: {status.install}")
    assert isinstance(made, ContainedRuntime)
    yield made
    made.close()


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """A padded maximum, which LiteRT takes in two steps of which XNNPACK has one; a shuffle."""
    build = GraphBuilder((1, 3, 32, 32), np.random.default_rng(0))
    y = build.activation("stem_act", build.conv("stem", "input", 16, 3, stride=2), "relu")
    y = build.pool("pool", y, 3, 2, mean=False)
    y = build.activation("first_act", build.conv("first", y, 32, 1), "relu")
    y = build.interleave("shuffle", y)
    y = build.activation("dw_act", build.conv("dw", y, 32, 3, stride=2, groups=32), "relu")
    z = build.conv("last", y, 32, 1)
    y = build.activation("sum_act", build.add("sum", z, y), "relu")
    return build.finish(build.head("head", y, 10))


@pytest.fixture(scope="module")
def compiled(runtime: ContainedRuntime, model: onnx.ModelProto) -> CompiledGraph:
    return runtime.compile(model.SerializeToString(), SETTINGS)


def test_every_layer_has_its_kernel_on_both_sides_of_what_xnnpack_lacks(
    model: onnx.ModelProto, compiled: CompiledGraph
) -> None:
    assert compiled.executed is not None
    kernels = read_kernels(model, compiled.executed).kernels
    layers = {node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    leading = [k.nodes[0] for k in kernels if k.kernel.family.startswith(("conv_", "gemm"))]
    assert sorted(leading) == sorted(layers)
    (padding,) = [k for k in kernels if k.kernel.op.startswith("native.")]
    assert padding.kernel.op == "native.Pad" and padding.nodes == ("pool/MaxPool",)
    assert {k.kernel.op for k in kernels if k.kernel.family == "reorder"} == {
        "nhwc.ReorderInput",
        "nhwc.ReorderOutput",
    }
    by_layer = {k.nodes[0]: k.kernel for k in kernels}
    assert by_layer["dw/Conv"].inputs[0] == (1, 32, 8, 8)
    assert by_layer["dw/Conv"].outputs[0] == (1, 32, 4, 4)
    assert by_layer["dw/Conv"].activation == "Relu"


def test_an_activation_behind_a_sum_is_a_kernel_or_a_part_of_the_sum(
    model: onnx.ModelProto, compiled: CompiledGraph
) -> None:
    assert compiled.executed is not None
    kernels = read_kernels(model, compiled.executed).kernels
    behind = [k for k in kernels if "sum_act/Relu" in k.nodes]
    assert behind and all(set(k.nodes) <= {"sum/Add", "sum_act/Relu"} for k in behind)


def test_runs_are_told_alike(runtime: ContainedRuntime, compiled: CompiledGraph) -> None:
    with runtime.load(compiled, SETTINGS, profiling=True) as loaded:
        times = loaded.profile(5)
    assert compiled.executed is not None
    executed = onnx.load_from_string(compiled.executed)
    assert list(times) == [node.name for node in executed.graph.node]
    assert all(len(timing.samples_ms) == 5 for timing in times.values())
    assert all(min(timing.samples_ms) >= 0.0005 for timing in times.values())


def test_what_is_handed_over_and_what_is_not(compiled: CompiledGraph) -> None:
    everything = LiteRtFile(compiled.data)
    assert everything.delegated == []
    kinds = [operation.kind for operation in everything.operations]
    place = kinds.index("PADV2")
    (inside,) = everything.operations[place].outputs
    before = everything.operations[place].inputs[0]
    parts = [
        (everything.inputs, [before]),
        ([inside], everything.outputs),
    ]
    found = LiteRtFile(compiled.data, parts).delegated
    assert found == [number for number in range(len(kinds)) if number != place]


@pytest.mark.filterwarnings("ignore")
def test_no_file_no_profiler(runtime: ContainedRuntime) -> None:
    with pytest.raises(InvalidInputError, match=r"^model: litert .* use another runtime\.$"):
        LiteRtProfiler(b"no file at all, but some bytes of text", 1, [])


@pytest.mark.filterwarnings("ignore")
def test_inputs_of_another_size(runtime: ContainedRuntime, compiled: CompiledGraph) -> None:
    with pytest.raises(InvalidInputError, match="inputs: litert wants 12288 bytes instead of 12;"):
        LiteRtProfiler(compiled.data, 1, [np.zeros((1, 1, 1, 3), np.float32)])


def test_a_file_whose_kernels_cannot_be_told_still_runs(
    runtime: ContainedRuntime, model: onnx.ModelProto
) -> None:
    untold = ContainedUntoldLiteRt()
    made = untold.compile(model.SerializeToString(), SETTINGS)
    untold.close()
    assert made.executed is None
    with pytest.raises(InvalidInputError, match="cannot be told"):
        executed_graph(model, made, per_op_times=True)
    with runtime.load(made, SETTINGS) as loaded:
        assert len(loaded.run(2)) == 2
