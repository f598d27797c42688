"""Denormal numbers behind attention masks: counted in the compiled graph, and really slow."""

import numpy as np
import onnx
import pytest

from devices.runtimes import RuntimeSettings, get_runtime
from latency.denormals import denormal_counts
from latency.graph_builder import GraphBuilder
from latency.kernel import KernelGraph
from latency.kernel_reading import read_kernels

SETTINGS = RuntimeSettings()


def masked(value: float, side: int = 24) -> onnx.ModelProto:
    """Softmax of scores under a mask, times a matrix; as attention has it."""
    b = GraphBuilder((1, 4, side, side), np.random.default_rng(0))
    x = b.mask("mask", "input", (1, 4, side, side))
    model = b.finish(b.matmul("mix", b.softmax("softmax", x), "input"))
    tensor = next(t for t in model.graph.initializer if t.name == "mask.values")
    values = np.zeros((1, 4, side, side), np.float32)
    values[..., : side // 2, : side // 2] = value
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return model


def graph(value: float) -> KernelGraph:
    model = masked(value)
    compiled = get_runtime("onnxruntime").compile(model.SerializeToString(), SETTINGS)
    return read_kernels(model, compiled.data)


@pytest.mark.parametrize(
    ("value", "meets"),
    [(-100.0, True), (-95.0, True), (-10.0, False), (-1e4, False), (-np.inf, False), (0, False)],
)
def test_only_masks_that_leave_denormals_count(value: float, meets: bool) -> None:
    kernels = {node.kernel.family: node.kernel for node in graph(value).kernels}
    expected = 4 * 12 * 12 if meets else 0
    assert kernels["softmax"].denormal_work == expected
    assert kernels["matmul"].denormal_work == expected * 24
    assert kernels["elementwise"].denormal_work == 0


def test_they_are_kernels_of_their_own() -> None:
    assert set(graph(-100.0).signatures) != set(graph(-10.0).signatures)
    assert graph(-10.0).signatures == graph(0.0).signatures


def test_the_product_is_slower_on_this_machine() -> None:
    engine = get_runtime("onnxruntime")
    times = {-100.0: float("inf"), -10.0: float("inf")}
    compiled = {
        value: engine.compile(masked(value, side=64).SerializeToString(), SETTINGS)
        for value in times
    }
    for _ in range(10):  # in turn, so that a slow phase of the machine hits both
        for value, graph_ in compiled.items():
            with engine.load(graph_, SETTINGS) as loaded:
                loaded.run(5)
                times[value] = min(times[value], *loaded.run(30))
    # On a processor that takes denormals at full speed the marks do no harm.
    assert times[-100.0] > 0.8 * times[-10.0]


def test_values_that_were_left_out_count_nothing() -> None:
    model = masked(-100.0)
    tensor = next(t for t in model.graph.initializer if t.name == "mask.values")
    tensor.ClearField("raw_data")
    assert denormal_counts(model.graph, {}, {}) == {}
