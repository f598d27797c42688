"""ncnn's layers along the model that they were converted from."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.ncnn_layers import executed_operations, read_layers, timed_layers
from devices.runtimes import get_runtime
from devices.runtimes.base import RuntimeSettings
from latency.graph_builder import GraphBuilder
from latency.kernel_reading import read_kernels

TEXT = """7767517
5 6
Input                    in0                      0 1 in0
Convolution              convclip_0               1 1 in0 1 0=8 1=3 -23310=2,0.0,6.0 11=3 6=216 9=3
Split                    splitncnn_0              1 2 1 2 3
Convolution              conv_1                   1 1 3 4 0=8 1=1 5=1 6=64
BinaryOp                 add_0                    2 1 4 2 out0 0=0
"""


def model() -> onnx.ModelProto:
    build = GraphBuilder((1, 3, 8, 8), np.random.default_rng(0))
    y = build.activation("act", build.conv("first", "input", 8, 3), "relu6")
    return build.finish(build.add("sum", build.conv("second", y, 8, 1), y))


def test_a_text_is_read() -> None:
    layers = read_layers(TEXT)
    assert [layer.kind for layer in layers][:2] == ["Input", "Convolution"]
    assert layers[1].parameters == {0: 8, 1: 3, 11: 3, 6: 216, 9: 3}
    assert layers[2].tops == ("2", "3") and layers[4].bottoms == ("4", "2")
    assert [layer.label for layer in timed_layers(layers)] == [
        "1:Convolution",
        "3:Convolution",
        "4:BinaryOp",
    ]


@given(st.text(max_size=60))
def test_what_is_no_such_text(text: str) -> None:
    try:
        read_layers(f"7767517\n1 1\n{text}")
    except ValueError:  # what the runtime takes as "cannot be told"
        pass


def test_layers_stand_for_the_nodes_that_read_what_they_read() -> None:
    one, two, three = executed_operations(
        model(), read_layers(TEXT), {"1": (1, 8, 8, 8), "4": (1, 8, 8, 8), "out0": (1, 8, 8, 8)}
    )
    assert one.covers == ("first/Conv", "act/Clip") and two.covers == ("second/Conv",)
    assert three.covers == ("sum/Add",)
    assert [tensor.name for tensor in three.inputs] == ["b4", "b1"]
    assert next(tensor.shape for tensor in two.inputs if tensor.constant) == (8, 8, 1, 1)


def test_parallel_paths_are_told_apart_by_what_they_read() -> None:
    """Two layers of one size, the second of the model before the first of the text."""
    build = GraphBuilder((1, 8, 8, 8), np.random.default_rng(0))
    y = build.activation("act", "input", "relu")
    left, right = build.conv("left", "input", 8, 1), build.conv("right", y, 8, 1)
    built = build.finish(build.add("sum", left, right))
    text = """7767517
6 7
Input                    in0                      0 1 in0
Split                    splitncnn_0              1 2 in0 1 2
ReLU                     relu_0                   1 1 2 3
Convolution              conv_0                   1 1 3 4 0=8 1=1 6=64
Convolution              conv_1                   1 1 1 5 0=8 1=1 6=64
BinaryOp                 add_0                    2 1 5 4 out0 0=0
"""
    found = executed_operations(built, read_layers(text), {})
    assert [one.covers for one in found] == [
        ("act/Relu",),
        ("right/Conv",),
        ("left/Conv",),
        ("sum/Add",),
    ]


def test_squeeze_and_excite_with_layers_of_numbers() -> None:
    """pnnx makes linear layers of convolutions of one pixel, gates and activations with them."""
    runtime = get_runtime("ncnn")
    if not runtime.status().usable:
        pytest.skip("ncnn is not installed: pip install 'autospace[ncnn]'")
    build = GraphBuilder((1, 3, 32, 32), np.random.default_rng(0))
    y = build.activation("stem_act", build.conv("stem", "input", 16, 3, stride=2), "relu")
    y = build.squeeze_excite("se", y, 8)
    built = build.finish(build.head("head", build.conv("last", y, 32, 1), 10))
    settings = RuntimeSettings()
    compiled = runtime.compile(built.SerializeToString(), settings)
    assert compiled.executed is not None
    kernels = read_kernels(built, compiled.executed).kernels
    assert {name for kernel in kernels for name in kernel.nodes} == {
        node.name for node in built.graph.node
    }
    with runtime.load(compiled, settings, profiling=True) as loaded:
        times = loaded.profile(3)
    executed = onnx.load_from_string(compiled.executed)
    assert list(times) == [node.name for node in executed.graph.node]
    assert all(ms > 0 for timing in times.values() for ms in timing.samples_ms)
