"""Shapes known before a graph runs: node by node, as ONNX infers a whole graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from latency.onnx_node import Node
from latency.probes import build_probe, sample_probe
from latency.static import StaticGraph, _compute


def by_onnx(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    return {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.output)
    }


def one_node(
    op: str, *shapes: tuple[int, ...], opset: int = 17, weights: int = 0, **options: object
) -> onnx.ModelProto:
    """A model of one node; the last `weights` inputs are constants."""
    names = [f"x{i}" for i in range(len(shapes))]
    split = len(shapes) - weights
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(op, names, ["y"], **options)],
            "one",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in zip(names[:split], shapes[:split], strict=True)
            ],
            [helper.make_empty_tensor_value_info("y")],
            [
                onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name)
                for name, shape in zip(names[split:], shapes[split:], strict=True)
            ],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
    )


@pytest.mark.parametrize("index", range(40))
def test_shapes_of_probes_are_those_of_onnx(index: int) -> None:
    model = build_probe(sample_probe(np.random.default_rng([1, index])), seed=None)
    found, wanted = StaticGraph(model), by_onnx(model)
    assert {name: found.shapes[name] for name in wanted} == wanted
    assert {found.dtypes[name] for node in model.graph.node for name in node.output} >= {"float32"}


@given(
    side=st.tuples(st.integers(5, 20), st.integers(5, 20)),
    window=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    groups=st.sampled_from((1, 2, 4)),
)
def test_any_convolution(side, window, stride, dilation, pads, groups) -> None:
    model = one_node(
        "Conv", (1, 8, *side), (12, 8 // groups, *window), weights=1, group=groups,
        strides=[stride] * 2, dilations=[dilation] * 2, pads=list(pads),
    )  # fmt: skip
    try:
        wanted = by_onnx(model)["y"]
    except onnx.shape_inference.InferenceError:
        return
    found = StaticGraph(model).shapes.get("y")
    assert found == (wanted if min(wanted) > 0 else found)


FEW = np.arange(12, dtype=np.int64).reshape(3, 4)
WHOLE = helper.make_tensor("v", TensorProto.INT64, [1], [7])


@pytest.mark.parametrize(
    ("op", "inputs", "options"),
    [
        ("Slice", [FEW, [0], [2]], {}),
        ("Slice", [FEW, [1, -3], [2**62, -1], [0, 1]], {}),
        ("Slice", [FEW, [0], [4], [-1], [2]], {}),
        ("Slice", [FEW, [-1], [-9], [0], [-1]], {}),
        ("ConstantOfShape", [[2, 3]], {}),
        ("ConstantOfShape", [[2, 3]], {"value": WHOLE}),
        ("Expand", [FEW, [2, 1, 1]], {}),
        ("Expand", [[[1], [2]], [2, 3]], {}),
        ("Reshape", [FEW, [-1, 2]], {}),
        ("Reshape", [FEW, [0, 2, 2]], {}),
        ("Range", [np.int64(2), np.int64(9), np.int64(3)], {}),
        ("Range", [np.float32(0), np.float32(1), np.float32(0.25)], {}),
        ("Where", [FEW > 4, FEW, FEW * 10], {}),
        ("Where", [FEW > 4, np.int64(1), FEW], {}),
        ("Mod", [FEW - 6, [5]], {}),
        ("Mod", [FEW, [-5]], {}),
        ("Mod", [FEW - 6, [5]], {"fmod": 1}),
        ("Div", [FEW, [5]], {}),
        ("Div", [FEW - 6, [5]], {}),
        ("Div", [FEW.astype(np.float32), np.float32(3)], {}),
        ("ScatterND", [FEW, [[0], [2]], FEW[:2] * 7], {}),
        ("ScatterND", [FEW, [[0, 1], [2, 3]], [5, 6]], {}),
        ("ScatterND", [FEW, [[0], [0]], FEW[:2] * 7], {"reduction": "add"}),
        ("Gather", [FEW, [2, 0]], {"axis": 1}),
        ("Cast", [FEW], {"to": TensorProto.FLOAT}),
        ("Unsqueeze", [FEW, [0, 3]], {}),
        ("Concat", [FEW, FEW], {"axis": 1}),
        ("Equal", [FEW, FEW.T.reshape(3, 4)], {}),
    ],
)
def test_constants_are_those_of_the_reference(op: str, inputs: list, options: dict) -> None:
    arrays = [np.asarray(x) for x in inputs]
    names = [f"x{i}" for i in range(len(arrays))]
    node = helper.make_node(op, names, ["y"], **options)
    given = {name: array for name, array in zip(names, arrays, strict=True)}
    (found,) = _compute(Node(node), given, {"": 17}) or (None,)
    graph = helper.make_graph(
        [node], "one", [onnx.ValueInfoProto(name=n) for n in names], [onnx.ValueInfoProto(name="y")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (wanted,) = ReferenceEvaluator(model).run(None, given)
    np.testing.assert_array_equal(found, wanted)
    assert np.asarray(found).dtype == wanted.dtype
