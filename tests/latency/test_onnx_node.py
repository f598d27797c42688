"""Nodes as plain Python."""

import numpy as np
import onnx
from onnx import helper

from latency.onnx_node import Node


def test_a_node_is_read_once() -> None:
    proto = helper.make_node("Clip", ["x", "", "high"], ["y"], name="clip", domain="some.where")
    node = Node(proto)
    assert (node.name, node.op_type, node.domain) == ("clip", "Clip", "some.where")
    assert (node.input, node.output, node.proto) == (("x", "", "high"), ("y",), proto)
    assert node.given == ("x", "high")


def test_attributes_are_plain() -> None:
    tensor = onnx.numpy_helper.from_array(np.zeros(3), "t")
    node = helper.make_node(
        "Conv", ["x"], ["y"], group=2, pads=[1, 2], alpha=0.5, scales=[0.5, 1.0],
        long=list(range(17)),        auto_pad="VALID", value=tensor, names=["a", "b"],
    )  # fmt: skip
    assert Node(node).options == {
        "group": 2, "pads": [1, 2], "alpha": 0.5, "scales": [0.5, 1.0], "auto_pad": "VALID"
    }  # fmt: skip
