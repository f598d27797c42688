"""Rules for shapes: whatever they say is what ONNX says, and the usual is said."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from latency.onnx_node import Node
from latency.shape_rules import has_rule, needs_attributes, output_shape

Shape = tuple[int, ...]


def by_onnx(node: onnx.NodeProto, shapes: list[Shape], opset: int = 20) -> Shape | None:
    """What ONNX infers; None where it refuses or does not know."""
    kinds = {
        name: helper.make_tensor_type_proto(TensorProto.FLOAT, shape)
        for name, shape in zip(node.input, shapes, strict=True)
    }
    schema = onnx.defs.get_schema(node.op_type, opset)
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, node, kinds, opset_imports=[helper.make_opsetid("", opset)]
        )
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return None
    assert found["y"].tensor_type.elem_type == TensorProto.FLOAT
    return tuple(d.dim_value for d in found["y"].tensor_type.shape.dim)


def ask(op: str, shapes: list[Shape], **options: object) -> tuple[Shape | None, Shape | None]:
    """What the rule says and what ONNX says."""
    node = helper.make_node(op, [f"x{i}" for i in range(len(shapes))], ["y"], **options)
    options = Node(node).options
    said = output_shape(op, shapes, options)
    assert needs_attributes(op) or output_shape(op, shapes, {}) == said
    return said, by_onnx(node, shapes)


def agrees(op: str, shapes: list[Shape], **options: object) -> None:
    said, wanted = ask(op, shapes, **options)
    assert said is None or said == wanted


sides = st.integers(1, 9)
images = st.lists(sides, min_size=1, max_size=3).map(tuple)
shapes = st.lists(st.sampled_from((1, 1, 2, 3, 7)), min_size=1, max_size=4).map(tuple)


@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    image = data.draw(images)
    rank = len(image)

    def each(low: int, high: int, count: int = rank) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    groups = data.draw(st.sampled_from((1, 2, 3)))
    options = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "strides": st.just(each(1, 3)),
                "dilations": st.just(each(1, 2)),
                "pads": st.just(each(0, 3, 2 * rank)),
                "auto_pad": st.sampled_from(("NOTSET", "SAME_UPPER", "VALID")),
            },
        )
    )
    weight = (6, 12 // groups, *each(1, 4))
    channels = data.draw(st.sampled_from((12, 12, 12, 6)))
    agrees("Conv", [(2, channels, *image), weight], group=groups, **options)


@given(st.data())
def test_poolings(data: st.DataObject) -> None:
    image = data.draw(images)
    window = data.draw(st.lists(st.integers(1, 4), min_size=len(image), max_size=len(image)))
    options = data.draw(
        st.fixed_dictionaries(
            {"kernel_shape": st.just(window)},
            optional={
                "strides": st.just([2] * len(image)),
                "pads": st.just([1] * (2 * len(image))),
                "ceil_mode": st.sampled_from((0, 1)),
                "auto_pad": st.sampled_from(("NOTSET", "SAME_LOWER")),
            },
        )
    )
    op = data.draw(st.sampled_from(("MaxPool", "AveragePool")))
    agrees(op, [(1, 5, *image)], **options)


@given(shapes, shapes, st.sampled_from(("Add", "Sub", "Mul", "Div", "MatMul")))
def test_two_inputs(left: Shape, right: Shape, op: str) -> None:
    agrees(op, [left, right])


@given(st.tuples(sides, sides), st.tuples(sides, sides), st.integers(0, 1), st.integers(0, 1))
def test_linear_layers(left: Shape, right: Shape, turned_a: int, turned_b: int) -> None:
    agrees("Gemm", [left, right], transA=turned_a, transB=turned_b)


@given(shapes, st.data())
def test_moves(shape: Shape, data: st.DataObject) -> None:
    agrees("Transpose", [shape], perm=data.draw(st.permutations(range(len(shape)))))
    agrees("Transpose", [shape])
    agrees("Flatten", [shape], axis=data.draw(st.integers(-len(shape), len(shape))))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    other = list(shape)
    other[axis] = data.draw(sides)
    agrees("Concat", [shape, tuple(other), shape], axis=axis)
    agrees("Concat", [shape, data.draw(shapes)], axis=axis)


@pytest.mark.parametrize(
    ("op", "shapes", "options", "wanted"),
    [
        ("Conv", [(1, 3, 224, 224), (32, 3, 3, 3)], {"strides": [2, 2], "pads": [1] * 4},
         (1, 32, 112, 112)),
        ("Conv", [(1, 64, 14, 14), (64, 1, 5, 5), (64,)], {"group": 64}, (1, 64, 10, 10)),
        ("MaxPool", [(1, 64, 112, 112)], {"kernel_shape": [3, 3], "strides": [2, 2]},
         (1, 64, 55, 55)),
        ("GlobalAveragePool", [(1, 64, 7, 7)], {}, (1, 64, 1, 1)),
        ("Gemm", [(1, 512), (1000, 512), (1000,)], {"transB": 1}, (1, 1000)),
        ("MatMul", [(1, 8, 49, 32), (1, 8, 32, 49)], {}, (1, 8, 49, 49)),
        ("Add", [(1, 8, 49, 49), (8, 1, 49)], {}, (1, 8, 49, 49)),
        ("Relu", [(1, 5)], {}, (1, 5)),
        ("Clip", [(1, 5), (), ()], {}, (1, 5)),
        ("LayerNormalization", [(1, 49, 96), (96,), (96,)], {"axis": -1}, (1, 49, 96)),
        ("Softmax", [(1, 8, 49, 49)], {"axis": -1}, (1, 8, 49, 49)),
    ],
)  # fmt: skip
def test_the_usual_is_said(
    op: str, shapes: list[Shape], options: dict[str, object], wanted: Shape
) -> None:
    assert ask(op, shapes, **options) == (wanted, wanted)


def test_the_unusual_is_left_to_onnx() -> None:
    assert not has_rule("Reshape") and not has_rule("Einsum")
    for op, inputs, options in (
        ("Conv", [(1, 3, 8, 8), (4, 2, 3, 3)], {}),  # channels that do not fit
        ("Conv", [(1, 3, 2, 2), (4, 3, 5, 5)], {}),  # a window larger than the image
        ("Conv", [(1, 3, 8, 8), (4, 3, 3, 3)], {"auto_pad": "SAME_UPPER"}),
        ("Add", [(3,), (4,)], {}),
        ("Gemm", [(1, 3), (4, 5)], {}),
        ("Concat", [(1, 3), (2, 4)], {"axis": 0}),
    ):
        assert output_shape(op, inputs, options) is None, op
