"""Depthwise windows in parts, against ONNX Runtime on the model as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from devices.onnx_windows import with_small_windows

CHANNELS = 3
MOST = 25


def convolving(
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    *,
    group: int = CHANNELS,
    bias: bool = True,
    dtype: Any = np.float32,
    opset: int = 17,
    **options: Any,
) -> onnx.ModelProto:
    """A depthwise convolution, and the ReLU that follows it."""
    random = np.random.default_rng(1)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = random.standard_normal((CHANNELS, CHANNELS // group, *kernel)).astype(dtype)
    made = [numpy_helper.from_array(weights, "w")]
    if bias:
        made.append(numpy_helper.from_array(random.standard_normal(CHANNELS).astype(dtype), "b"))
    nodes = [
        helper.make_node(
            "Conv", ["x", *(t.name for t in made)], ["y"], name="conv", group=group, **options
        ),
        helper.make_node("Relu", ["y"], ["z"], name="relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", kind, (2, CHANNELS, *sizes))],
        [helper.make_tensor_value_info("z", kind, [None] * 4)],
        made,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def ran(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


def windows(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    return [
        tuple(weights[node.input[1]].dims[2:])
        for node in model.graph.node
        if node.op_type == "Conv"
    ]


def operations(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_it_computes_the_same_with_fewer_taps(data) -> None:
    kernel = tuple(data.draw(st.integers(1, 13)) for _ in range(2))
    dilations = [data.draw(st.integers(1, 2)) for _ in range(2)]
    strides = [data.draw(st.integers(1, 3)) for _ in range(2)]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = [data.draw(st.integers(0, r)) for r in reach * 2]
    sizes = tuple(
        data.draw(st.integers(max(r - a - b, 1), r + 6))
        for r, a, b in zip(reach, pads[:2], pads[2:], strict=True)
    )
    model = convolving(
        sizes,
        kernel,
        bias=data.draw(st.booleans()),
        dilations=dilations,
        strides=strides,
        pads=pads,
    )
    small = with_small_windows(model, MOST)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(small))
    x = np.random.default_rng(0).standard_normal((2, CHANNELS, *sizes)).astype(np.float32)
    blank = np.isclose(ran(model, x), ran(model, 0 * x)).all()  # all windows are on the border
    assert blank or all(rows * columns <= MOST for rows, columns in windows(small))
    np.testing.assert_allclose(ran(small, x), ran(model, x), rtol=1e-4, atol=1e-4)
    assert with_small_windows(small, MOST) == small
    if kernel[0] * kernel[1] <= MOST:
        assert small == model


def test_an_image_smaller_than_the_window_sees_less_of_it() -> None:
    small = with_small_windows(convolving((2, 2), (7, 7), pads=[3] * 4), MOST)
    assert windows(small) == [(3, 3)]
    assert operations(small) == ["Conv", "Relu"]


def test_parts_that_reach_over_each_other_need_no_slices() -> None:
    small = with_small_windows(convolving((16, 16), (9, 9), pads=[4] * 4), MOST)
    assert windows(small) == [(5, 5)] * 4
    assert "Slice" not in operations(small)


def test_as_few_parts_as_possible_of_whole_rows() -> None:
    small = with_small_windows(convolving((16, 16), (7, 7), pads=[3] * 4), MOST)
    assert windows(small) == [(3, 7), (3, 7), (1, 7)]
    assert operations(small).count("Slice") == 2


def test_outputs_and_their_names_stay() -> None:
    model = convolving((12, 12), (7, 7), pads=[3] * 4)
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4))
    small = with_small_windows(model, MOST)
    x = np.random.default_rng(0).standard_normal((2, CHANNELS, 12, 12)).astype(np.float32)
    np.testing.assert_allclose(ran(small, x), ran(model, x), rtol=1e-4, atol=1e-4)
    assert [value.name for value in small.graph.output] == ["z", "y"]
    names = [node.name for node in small.graph.node]
    assert len(set(names)) == len(names)
    assert all(name.startswith("conv/") for name in names[:-1])


def test_the_given_model_is_left_alone() -> None:
    model = convolving((12, 12), (7, 7))
    before = model.SerializeToString()
    with_small_windows(model, MOST)
    assert model.SerializeToString() == before


def test_it_works_in_16_bits() -> None:
    small = with_small_windows(convolving((9, 9), (7, 7), pads=[3] * 4, dtype=np.float16), MOST)
    assert all(t.data_type == TensorProto.FLOAT16 for t in small.graph.initializer if "w" in t.name)
    assert max(rows * columns for rows, columns in windows(small)) <= MOST


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(convolving((12, 12), (7, 7), group=1), id="no depthwise convolution"),
        pytest.param(convolving((12, 12), (7, 7), auto_pad="SAME_UPPER"), id="auto_pad"),
        pytest.param(convolving((60,), (31,)), id="one dimension"),
        pytest.param(convolving((12, 12), (7, 7), opset=9), id="old opset"),
        pytest.param(convolving((12, 12), (7, 7), dtype=np.float64), id="64 bits"),
        pytest.param(convolving((2, 2), (7, 7), pads=[9] * 4, strides=[12] * 2), id="border only"),
    ],
)
def test_what_stays(model: onnx.ModelProto) -> None:
    assert with_small_windows(model, MOST) == model


def test_weights_that_are_computed_stay() -> None:
    model = convolving((12, 12), (7, 7), bias=False)
    weights = model.graph.initializer.pop()
    weights.name = "given"
    model.graph.initializer.append(weights)
    model.graph.node.insert(0, helper.make_node("Identity", ["given"], ["w"]))
    assert with_small_windows(model, MOST) == model


def test_an_image_of_unknown_size_stays() -> None:
    model = convolving((12, 12), (7, 7))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "rows"
    assert with_small_windows(model, MOST) == model
