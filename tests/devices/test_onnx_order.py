"""Depth first orders of small graphs."""

import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from devices.onnx_order import depth_first


def graph(nodes: list[onnx.NodeProto], outputs: list[str]) -> onnx.GraphProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in outputs]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_graph(nodes, "g", [x], values)


def names(given: onnx.GraphProto) -> list[str]:
    return [node.output[0] for node in depth_first(given)]


def test_the_first_input_s_branch_comes_first() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["x"], ["b"]),
        helper.make_node("Abs", ["b"], ["b2"]),
        helper.make_node("Abs", ["a"], ["a2"]),
        helper.make_node("Add", ["b2", "a2"], ["y"]),
    ]
    assert names(graph(nodes, ["y"])) == ["b", "b2", "a", "a2", "y"]


def test_what_no_output_needs_is_kept() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["spare"]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("RandomNormal", [], ["drawn"], shape=[1]),
    ]
    assert names(graph(nodes, ["y"])) == ["y", "spare", "drawn"]


def test_inner_graphs_are_left_alone() -> None:
    inner = helper.make_graph([helper.make_node("Abs", ["late"], ["z"])], "inner", [], [])
    nodes = [
        helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node("Relu", ["x"], ["late"]),
    ]
    assert names(graph(nodes, ["y"])) == ["y", "late"]


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=10), st.randoms())
def test_it_is_topological_and_the_same_from_any_order(wanted: list[list[int]], random) -> None:
    nodes = [
        helper.make_node("Sum", [f"v{i}" for i in own if i < index] or ["x"], [f"v{index}"])
        for index, own in enumerate(wanted)
    ]
    outputs = [f"v{index}" for index in range(len(nodes))]
    found = depth_first(graph(nodes, outputs))
    seen = {"x"}
    for node in found:
        assert set(node.input) <= seen
        seen.update(node.output)
    assert len(found) == len(nodes)
    random.shuffle(nodes)
    assert depth_first(graph(nodes, outputs)) == found
