"""Shapes known before a graph runs: node by node, as ONNX infers a whole graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from latency.probes import build_probe, sample_probe
from latency.static import StaticGraph


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
