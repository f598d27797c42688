"""Averages with their border counted, against ONNX Runtime on the model as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from devices.errors import InvalidInputError
from devices.onnx_averages import with_border_counted


def averaging(shape: tuple[int, ...], opset: int = 17, **options: Any) -> onnx.ModelProto:
    """An average, and the ReLU that follows it."""
    nodes = [
        helper.make_node("AveragePool", ["x"], ["y"], name="mean", **options),
        helper.make_node("Relu", ["y"], ["z"], name="relu"),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(
        nodes, "one", given, [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def ran(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([10, 11, 17]))
def test_it_computes_the_same(data, opset) -> None:
    rank = data.draw(st.integers(1, 3))
    kernel = [data.draw(st.integers(1, 4)) for _ in range(rank)]
    sizes = [data.draw(st.integers(k, 9)) for k in kernel]
    strides = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    pads = [data.draw(st.integers(0, k - 1)) for k in kernel * 2]
    shape = (2, 3, *sizes)
    model = averaging(shape, opset, kernel_shape=kernel, strides=strides, pads=pads)
    counted = with_border_counted(model)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(ran(counted, x), ran(model, x), rtol=1e-5, atol=1e-6)
    if not any(pads):
        assert counted == model


def test_the_given_model_is_left_alone() -> None:
    model = averaging((1, 2, 6, 6), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    before = model.SerializeToString()
    counted = with_border_counted(model)
    assert model.SerializeToString() == before
    assert [node.op_type for node in counted.graph.node] == ["Pad", "AveragePool", "Mul", "Relu"]
    assert "pads" not in {attribute.name for attribute in counted.graph.node[1].attribute}
    assert with_border_counted(counted) == counted
    pads, factor = counted.graph.initializer
    assert onnx.numpy_helper.to_array(pads).tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert list(factor.dims) == [1, 1, 3, 3]
    values = onnx.numpy_helper.to_array(factor)[0, 0]
    assert values[0, 0] == pytest.approx(9 / 4) and values[0, 1] == 1.5 and values[1, 1] == 1


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1},
        {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"},
        {"kernel_shape": [3, 3], "pads": [1] * 4},
        {"kernel_shape": [2, 2]},
    ],
)
def test_what_is_left_as_it_is(options) -> None:
    model = averaging((1, 2, 6, 6), **options)
    assert with_border_counted(model) == model


def test_a_size_that_changes_is_left_as_it_is() -> None:
    model = averaging((1, 2, 6, 6), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    assert with_border_counted(model) == model


def test_a_model_whose_shapes_are_wrong_is_one_line() -> None:
    model = averaging((1, 2, 6), kernel_shape=[3, 3], pads=[1] * 4)
    with pytest.raises(InvalidInputError, match=r"^model: its shapes are wrong \("):
        with_border_counted(model)
