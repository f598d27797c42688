"""ncnn, ExecuTorch and LiteRT, each with real converted networks of the mobile space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from autospace.genotype import Block, MBConv, Zero
from autospace.mutation import random_cell
from autospace.onnx_export import onnx_for_cost
from autospace.skeleton import find_skeleton
from autospace.space import Architecture
from devices.contained import ContainedRuntime
from devices.errors import InvalidInputError, UnavailableError
from devices.onnx_files import random_inputs
from devices.onnx_to_torch import torch_module
from devices.runtimes import get_runtime
from devices.runtimes.base import CompiledGraph, RuntimeSettings
from devices.runtimes.litert import LiteRtModel
from latency.graph_builder import GraphBuilder

NAMES = ("ncnn", "executorch", "litert")
SETTINGS = RuntimeSettings()
TOLERANCE = 1e-3


@pytest.fixture(scope="module", params=NAMES)
def runtime(request) -> Iterator[ContainedRuntime]:
    made = get_runtime(request.param)
    status = made.status()
    if not status.usable:
        pytest.skip(f"{request.param} is {status.reason}: {status.install}")
    assert isinstance(made, ContainedRuntime)
    yield made
    made.close()


def network(seed: int) -> onnx.ModelProto:
    """A network of the mobile space at 64 pixels: cells, inverted bottlenecks, skipped blocks."""
    random = np.random.default_rng(seed)
    skeleton = replace(find_skeleton("mobile"), resolution=64)
    blocks: list[Block] = []
    for place, shape in enumerate(skeleton.blocks):
        if place % 3 == 2 and shape.has_shortcut:
            blocks.append(Zero())
        elif place % 2:
            blocks.append(MBConv(int(random.choice((3, 5, 7))), int(random.choice((3, 6)))))
        else:
            blocks.append(random_cell(random).fused())
    return onnx_for_cost(Architecture(skeleton, tuple(blocks)))


def small(batch: int = 1) -> onnx.ModelProto:
    """Convolution, ReLU, global pooling and a linear layer."""
    builder = GraphBuilder((batch, 3, 8, 8), np.random.default_rng(0))
    y = builder.activation("act", builder.conv("stem", "input", 16, 3), "relu")
    return builder.finish(builder.head("head", y, 10))


@pytest.fixture(scope="module")
def compiled(runtime) -> CompiledGraph:
    return runtime.compile(small().SerializeToString(), SETTINGS)


def by_onnxruntime(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    runtime = get_runtime("onnxruntime")
    with runtime.load(runtime.compile(model.SerializeToString(), SETTINGS), SETTINGS) as loaded:
        return loaded.infer(feed)[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_networks_of_the_space_compute_the_same(runtime, seed: int) -> None:
    model = network(seed)
    made = runtime.compile(model.SerializeToString(), SETTINGS)
    feed = random_inputs(made.inputs, seed=7)
    expected = by_onnxruntime(model, feed)
    with runtime.load(made, SETTINGS) as other:
        other.run(2)  # leaves nothing behind that changes what comes next
        (found,) = other.infer(feed)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert float(np.abs(found - expected).max()) <= TOLERANCE * float(np.abs(expected).max())


@pytest.mark.parametrize(("size", "window"), [(16, 7), (4, 11), (2, 7)])
def test_large_depthwise_windows_compute_the_same(runtime, size: int, window: int) -> None:
    build = GraphBuilder((1, 16, size, size), np.random.default_rng(0))
    y = build.activation("act", build.conv("dw", "input", 16, window, groups=16), "relu")
    model = build.finish(y)
    rewritten = runtime.rewritten(model, SETTINGS)
    assert runtime.rewritten(rewritten, SETTINGS) == rewritten
    made = runtime.compile(model.SerializeToString(), SETTINGS)
    feed = random_inputs(made.inputs, seed=7)
    expected = by_onnxruntime(model, feed)
    with runtime.load(made, SETTINGS) as other:
        (found,) = other.infer(feed)
    assert float(np.abs(found - expected).max()) <= TOLERANCE * float(np.abs(expected).max())


def test_constants_that_are_transposed_compute_the_same(runtime) -> None:
    table = np.random.default_rng(0).normal(size=(1, 9, 9, 6)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["table"], ["turned"], perm=[0, 3, 1, 2]),
            helper.make_node("Add", ["x", "turned"], ["a"]),
            helper.make_node("Softmax", ["a"], ["y"], axis=-1),
        ],
        "biased",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6, 9, 9])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if runtime.name == "ncnn":  # which takes the constant for a batch of its own
        with pytest.raises(InvalidInputError, match=r"'y': ncnn makes \(1, 6, 9, 9, 9\)"):
            runtime.compile(model.SerializeToString(), SETTINGS)
        return
    made = runtime.compile(model.SerializeToString(), SETTINGS)
    feed = random_inputs(made.inputs, seed=7)
    with runtime.load(made, SETTINGS) as other:
        (found,) = other.infer(feed)
    assert np.allclose(found, by_onnxruntime(model, feed), atol=1e-5)


def test_it_is_contained(runtime, compiled) -> None:
    assert set(runtime._compiling.means) == {"network", "files"}


def test_times_are_positive_and_counted(runtime, compiled) -> None:
    with runtime.load(compiled, SETTINGS) as loaded:
        times = loaded.run(5)
    assert len(times) == 5 and min(times) > 0


def test_two_threads_compute_the_same(runtime, compiled) -> None:
    feed = random_inputs(compiled.inputs)
    outputs = []
    for threads in (2, 1):
        settings = RuntimeSettings(threads=threads)
        with runtime.load(compiled, settings) as loaded:
            outputs.append(loaded.infer(feed)[0])
            assert len(loaded.run(3)) == 3
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def test_times_of_operations_are_told_or_refused(runtime, compiled) -> None:
    with runtime.load(compiled, SETTINGS, profiling=True) as loaded:
        if runtime.status().per_op_times:
            assert loaded.profile(1)
            return
        with pytest.raises(UnavailableError, match="whole runs"):
            loaded.profile(1)


def test_wrong_inputs_are_refused(runtime, compiled) -> None:
    with runtime.load(compiled, SETTINGS) as loaded:
        for wrong in ({}, {"input": np.zeros((1, 3, 9, 8), np.float32)}):
            with pytest.raises(InvalidInputError, match="'input' is"):
                loaded.infer(wrong)
    with pytest.raises(UnavailableError, match="closed"):
        loaded.run(1)


def test_an_operation_that_it_lacks_is_named(runtime) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["r"], name="first"),
            helper.make_node("Det", ["r"], ["y"], name="the_determinant"),
        ],
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(InvalidInputError, match=r"(?i)det") as caught:
        runtime.compile(model.SerializeToString(), SETTINGS)
    assert "node" in str(caught.value) and "\n" not in str(caught.value)


def test_garbage_and_foreign_graphs_are_refused(runtime, compiled) -> None:
    with pytest.raises(InvalidInputError, match="not a readable ONNX model"):
        runtime.compile(b"garbage", SETTINGS)
    with pytest.raises(InvalidInputError, match="compile the model again"):
        runtime.load(CompiledGraph("other", "0", b"", (), ()), SETTINGS)


def test_a_broken_compiled_graph_is_one_line(runtime, compiled) -> None:
    broken = replace(compiled, data=compiled.data[:8] + bytes(len(compiled.data) - 8))
    with pytest.raises(InvalidInputError) as caught:
        with runtime.load(broken, SETTINGS) as loaded:
            loaded.run(1)
    assert "\n" not in str(caught.value)
    with runtime.load(compiled, SETTINGS) as loaded:
        assert len(loaded.run(1)) == 1


def test_memory_is_told_by_a_process_of_its_own(runtime, compiled) -> None:
    from devices.footprint import memory_mb

    assert 0.1 < memory_mb(runtime.name, compiled, SETTINGS) < 200


def test_ncnn_has_no_batch() -> None:
    runtime = get_runtime("ncnn")
    if not runtime.status().usable:
        pytest.skip("ncnn is not installed: pip install 'autospace[ncnn]'")
    with pytest.raises(UnavailableError, match="batch 2"):
        runtime.compile(small(2).SerializeToString(), RuntimeSettings(batch=2))
    runtime.close()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_networks_in_fewer_bits(runtime, precision: str) -> None:
    settings = RuntimeSettings(precision=precision)
    if precision not in runtime.status().precisions:
        with pytest.raises(UnavailableError, match="fp32, fp16"):
            runtime.compile(small().SerializeToString(), settings)
        return
    build = GraphBuilder((1, 3, 16, 16), np.random.default_rng(1))
    y = build.activation("stem_act", build.conv("stem", "input", 64, 3), "relu6")
    z = build.activation("act", build.conv("dense", y, 64, 3), "hardswish")
    y = build.add("add", build.conv("dw", z, 64, 3, groups=64), y)
    data = build.finish(build.head("head", build.conv("wide", y, 256, 1), 10)).SerializeToString()
    whole, reduced = (runtime.compile(data, one) for one in (SETTINGS, settings))
    feed = random_inputs(whole.inputs)
    with runtime.load(whole, SETTINGS) as one:
        (expected,) = one.infer(feed)
    with runtime.load(reduced, settings) as other:
        (found,) = other.infer(feed)
        assert len(other.run(3)) == 3
    assert found.shape == expected.shape and found.dtype == expected.dtype
    smaller, tolerance = {"fp16": (0.6, 2e-2), "int8": (0.4, 0.25)}[precision]
    if (runtime.name, precision) != ("executorch", "fp16"):  # XNNPACK is given 32-bit weights
        assert len(reduced.data) < smaller * len(whole.data)
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    assert 1e-6 < difference <= tolerance


def test_scales_are_found_on_the_inputs_that_are_given(runtime) -> None:
    settings = RuntimeSettings(precision="int8")
    data = small().SerializeToString()
    if "int8" not in runtime.status().precisions:
        with pytest.raises(UnavailableError, match="fp32, fp16"):
            runtime.quantise(data, settings, {})
        return
    images = np.random.default_rng(0).normal(size=(4, 1, 3, 8, 8)).astype(np.float32)
    feed = {"input": images[0]}
    outputs = []
    for scale in (1.0, 0.01):
        made = runtime.quantise(data, settings, {"input": images * np.float32(scale)})
        with runtime.load(made, settings) as loaded:
            outputs.append(loaded.infer(feed)[0])
    with runtime.load(runtime.compile(data, SETTINGS), SETTINGS) as loaded:
        (expected,) = loaded.infer(feed)
    good, bad = (float(np.abs(output - expected).max()) for output in outputs)
    assert good < 0.1 * float(np.abs(expected).max())
    assert bad > 3 * good  # small images leave no room for large ones
    for wrong in ({"other": images}, {"input": images[:, :, :1]}):
        with pytest.raises(InvalidInputError, match="'input' is"):
            runtime.quantise(data, settings, wrong)


@pytest.mark.filterwarnings("ignore")  # the package's own, in this process for once
def test_litert_times_its_fixed_inputs_whatever_was_run_before() -> None:
    runtime = get_runtime("litert")
    if not runtime.status().usable:
        pytest.skip("litert is not installed: pip install 'autospace[litert]'")
    assert isinstance(runtime, ContainedRuntime)
    compiled = runtime.compile(small().SerializeToString(), SETTINGS)
    with runtime.here().load(compiled, SETTINGS) as loaded:
        assert isinstance(loaded, LiteRtModel)
        (place,) = loaded._inputs
        fixed = loaded._interpreter.get_tensor(place)
        loaded.infer({"input": np.full((1, 3, 8, 8), 7, np.float32)})
        assert np.array_equal(loaded._interpreter.get_tensor(place), fixed)
    runtime.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stride", [1, 2])
def test_litert_averages_windows_by_its_own_kernel(stride: int) -> None:
    runtime = get_runtime("litert")
    if not runtime.status().usable:
        pytest.skip("litert is not installed: pip install 'autospace[litert]'")
    assert isinstance(runtime, ContainedRuntime)
    options = {"kernel_shape": [3, 3], "strides": [stride] * 2, "pads": [1] * 4}
    graph = helper.make_graph(
        [helper.make_node("AveragePool", ["x"], ["y"], **options)],
        "average",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 6 // stride, 6 // stride])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.random.default_rng(0).standard_normal((1, 8, 6, 6)).astype(np.float32)
    compiled = runtime.compile(model.SerializeToString(), SETTINGS)
    with runtime.here().load(compiled, SETTINGS) as loaded:
        assert isinstance(loaded, LiteRtModel)
        operations = {d["op_name"] for d in loaded._interpreter._get_ops_details()}
        assert "AVERAGE_POOL_2D" in operations and not any("REDUCE" in o for o in operations)
        (found,) = loaded.infer({"x": x})
    expected = torch_module(model)(torch.from_numpy(x)).numpy()
    assert np.allclose(found, expected, atol=1e-6)
    runtime.close()
