"""Models without the numbers of their weights: everything else is as it was."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from devices.onnx_wire import LARGEST_KEPT, split_weights


def model_of(sizes: list[int], extra: bool = False) -> onnx.ModelProto:
    weights = [
        onnx.numpy_helper.from_array(np.full(size, i, np.float32), f"w{i}")
        for i, size in enumerate(sizes)
    ]
    if extra:  # numbers that are not kept raw
        weights.append(
            helper.make_tensor("plain", TensorProto.FLOAT, [8000], np.ones(8000).tolist())
        )
    nodes = [helper.make_node("Add", ["x", w.name], [f"y{i}"]) for i, w in enumerate(weights)]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]
    outputs = [helper.make_empty_tensor_value_info(f"y{i}") for i in range(len(weights))]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values, outputs, weights),
        opset_imports=[helper.make_opsetid("", 20)],
    )
    model.metadata_props.add(key="behind", value="the graph")
    return model


@given(st.lists(st.integers(0, 9000), max_size=6), st.booleans())
def test_all_but_large_weights_stays(sizes: list[int], extra: bool) -> None:
    model = model_of(sizes, extra)
    found, weights = split_weights(model.SerializeToString())
    large = [f"w{i}" for i, size in enumerate(sizes) if 4 * size > LARGEST_KEPT]
    assert list(weights) == large
    read = onnx.load_model_from_string(found)
    for tensor in read.graph.initializer:
        if tensor.name in weights:
            assert not tensor.HasField("raw_data")
            tensor.raw_data = bytes(weights[tensor.name])
    assert read == model


def test_a_large_model_becomes_small() -> None:
    data = model_of([1_000_000, 10, 2_000_000]).SerializeToString()
    found, weights = split_weights(data)
    assert len(found) < 1000
    assert np.frombuffer(weights["w2"], np.float32).tolist()[:2] == [2.0, 2.0]


@given(st.data())
def test_what_is_cut_off_or_damaged(data: st.DataObject) -> None:
    """An error that is told, or bytes that the parser can judge; never another exception."""
    whole = bytearray(model_of([5000, 3]).SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, 80) | st.integers(0, len(whole) - 1))] = data.draw(
            st.integers(0, 255)
        )
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        split_weights(cut)
    except ValueError:
        pass


@pytest.mark.parametrize("data", [b"\x3a", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"])
def test_no_message(data: bytes) -> None:
    with pytest.raises(ValueError, match="number"):
        split_weights(data)
