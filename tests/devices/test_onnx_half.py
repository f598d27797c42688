"""Models in float16, run by ONNX Runtime and by ONNX's reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from devices.errors import InvalidInputError
from devices.onnx_half import half_precision


def test_it_computes_nearly_the_same_with_the_same_inputs_and_outputs(model) -> None:
    half = half_precision(model)
    onnx.checker.check_model(half, full_check=True)
    assert model.graph.initializer[0].data_type == TensorProto.FLOAT  # left alone
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    outputs = []
    for proto in (model, half):
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        outputs.append(session.run(None, {"x": x})[0])
    assert outputs[1].dtype == np.float32
    difference = np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[0]).max()
    assert 0 < difference < 5e-3


def test_everything_in_between_is_half(model) -> None:
    half = half_precision(model)
    assert {t.data_type for t in half.graph.initializer} == {TensorProto.FLOAT16}
    inferred = onnx.shape_inference.infer_shapes(half, strict_mode=True)
    between = {v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    assert between == {TensorProto.FLOAT16}


def test_an_output_that_is_used_inside_stays_whole() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], name="a"),
        helper.make_node("Neg", ["y"], ["z"], name="b"),
    ]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "y", "z")]
    graph = helper.make_graph(nodes, "two", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    half = half_precision(model)
    onnx.checker.check_model(half, full_check=True)
    session = onnxruntime.InferenceSession(
        half.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    y, z = session.run(None, {"x": np.float32([-1, 3])})
    assert y.tolist() == [0, 3] and z.tolist() == [0, -3]


def test_large_weights_stay_finite(model) -> None:
    values = numpy_helper.to_array(model.graph.initializer[0]).copy()
    values.reshape(-1)[0] = 1e9
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
    found = numpy_helper.to_array(half_precision(model).graph.initializer[0])
    assert np.isfinite(found).all() and found.reshape(-1)[0] == np.finfo(np.float16).max


def test_what_cannot_be_converted_is_named(model) -> None:
    model.graph.node[1].op_type = "QuantizeLinear"
    with pytest.raises(InvalidInputError, match=r"'stem/Relu' \(QuantizeLinear\)"):
        half_precision(model)
