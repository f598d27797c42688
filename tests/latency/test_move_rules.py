"""Rules for moves: whatever they say is what ONNX says, and the usual is said."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from latency.move_rules import has_move_rule, moved_shapes
from latency.onnx_node import Node

Shape = tuple[int, ...]
shapes = st.lists(st.sampled_from((1, 1, 2, 3, 4, 6)), min_size=1, max_size=4).map(tuple)
small = st.integers(-7, 7)


def ask(
    op: str,
    shape: Shape,
    further: list[list[int] | None],
    outputs: int = 1,
    opset: int = 20,
    **options: object,
) -> tuple[list[Shape] | None, list[Shape] | None]:
    """What the rule says and what ONNX says; None where it refuses or does not know."""
    names = ["x", *("" if n is None else f"n{i}" for i, n in enumerate(further))]
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], **options)
    kinds = {"x": helper.make_tensor_type_proto(TensorProto.FLOAT, shape)}
    values = {}
    for name, numbers in zip(names[1:], further, strict=True):
        if numbers is not None:
            array = np.array(numbers, np.float32 if op == "Pad" and name == "n1" else np.int64)
            values[name] = numpy_helper.from_array(array, name)
            kinds[name] = helper.make_tensor_type_proto(values[name].data_type, array.shape)
    if op == "Gather":
        told = [np.shape(further[0])]
    else:
        told = [tuple(numbers) if isinstance(numbers, list) else None for numbers in further]
    said = moved_shapes(op, shape, told, Node(node).options, outputs)
    try:
        found = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(op, opset),
            node,
            kinds,
            values,
            opset_imports=[helper.make_opsetid("", opset)],
        )
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return _listed(said), None
    wanted = []
    for name in node.output:
        sides = found[name].tensor_type.shape.dim
        if not all(side.HasField("dim_value") for side in sides):
            return _listed(said), None
        wanted.append(tuple(side.dim_value for side in sides))
    return _listed(said), wanted


def _listed(found: object) -> list[Shape] | None:
    return None if found is None else list(found)  # type: ignore[call-overload]


def agrees(*arguments: object, **options: object) -> None:
    said, wanted = ask(*arguments, **options)  # type: ignore[arg-type]
    assert said is None or said == wanted


@settings(max_examples=400)
@given(st.data())
def test_reshapes(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    wanted = list(data.draw(st.permutations(shape)))
    if data.draw(st.booleans()):
        wanted[data.draw(st.integers(0, len(wanted) - 1))] = data.draw(st.sampled_from((-1, 0, 5)))
    if data.draw(st.booleans()):
        wanted.insert(0, data.draw(st.sampled_from((-1, 0, 1))))
    agrees("Reshape", shape, [wanted], allowzero=data.draw(st.sampled_from((0, 1))))


@settings(max_examples=400)
@given(shapes, st.lists(small, min_size=1, max_size=3), st.booleans())
def test_axes(shape: Shape, axes: list[int], keep: bool) -> None:
    for op in ("Squeeze", "Unsqueeze"):
        agrees(op, shape, [axes])
        agrees(op, shape, [], opset=11, axes=axes)
    for op in ("ReduceMean", "ReduceL2"):
        agrees(op, shape, [axes], keepdims=int(keep))
        agrees(op, shape, [], opset=13, axes=axes, keepdims=int(keep))


@given(shapes, st.booleans(), st.booleans())
def test_without_axes(shape: Shape, keep: bool, noop: bool) -> None:
    agrees("Squeeze", shape, [])
    agrees("ReduceMean", shape, [], keepdims=int(keep), noop_with_empty_axes=int(noop))


@settings(max_examples=600)
@given(st.data())
def test_slices(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    count = data.draw(st.integers(1, len(shape)))

    def each(of: st.SearchStrategy[int]) -> list[int]:
        return data.draw(st.lists(of, min_size=count, max_size=count))

    bounds = st.one_of(small, st.sampled_from((2**63 - 1, -(2**63 - 1), 2**31 - 1)))
    starts, ends = each(bounds), each(bounds)
    axes = data.draw(st.permutations(range(len(shape))))[:count]
    steps = each(st.sampled_from((1, 1, 2, -1, -2)))
    agrees("Slice", shape, [starts, ends, list(axes), steps])
    agrees("Slice", shape, [starts, ends, list(axes)])
    agrees("Slice", shape, [starts, ends])
    agrees("Slice", shape, [starts, ends, None, steps])


@given(shapes, st.integers(-4, 3), st.integers(1, 3), st.lists(st.integers(0, 4), max_size=3))
def test_parts(shape: Shape, axis: int, outputs: int, sizes: list[int]) -> None:
    agrees("Split", shape, [], outputs, axis=axis, num_outputs=outputs)
    agrees("Split", shape, [], outputs, opset=13, axis=axis)
    if sizes:
        agrees("Split", shape, [sizes], len(sizes), axis=axis)
        agrees("Split", shape, [], len(sizes), opset=11, axis=axis, split=sizes)


@given(shapes, st.integers(-4, 3), st.sampled_from((0, [0], [0, 0], [[0], [0]])))
def test_gathers(shape: Shape, axis: int, places: list[int]) -> None:
    agrees("Gather", shape, [places], axis=axis)


@settings(max_examples=300)
@given(st.data())
def test_pads(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    pads = data.draw(st.lists(st.integers(-1, 3), min_size=2, max_size=2 * len(shape)))
    agrees("Pad", shape, [pads])
    agrees("Pad", shape, [pads, 0])
    axes = list(range(len(pads) // 2))
    agrees("Pad", shape, [pads, None, axes])


@pytest.mark.parametrize(
    ("op", "shape", "further", "options", "wanted"),
    [
        ("Reshape", (1, 196, 768), [[1, 196, 12, 64]], {}, [(1, 196, 12, 64)]),
        ("Reshape", (1, 196, 768), [[0, -1, 64]], {}, [(1, 2352, 64)]),
        ("Squeeze", (1, 1, 5), [[0]], {}, [(1, 5)]),
        ("Unsqueeze", (4, 5), [[0, 3]], {}, [(1, 4, 5, 1)]),
        ("Slice", (1, 56, 56, 96), [[1], [2**63 - 1], [1], [2]], {}, [(1, 28, 56, 96)]),
        ("Split", (3, 4), [[1, 1, 1]], {"axis": 0}, [(1, 4)] * 3),
        ("Gather", (1, 197, 768), [[]], {"axis": 1}, [(1, 768)]),
        ("Pad", (1, 7, 7, 9), [[0, 0, 0, 0, 0, 1, 1, 0]], {}, [(1, 8, 8, 9)]),
        ("ReduceMean", (1, 9, 7, 7), [[2, 3]], {"keepdims": 0}, [(1, 9)]),
    ],
)
def test_the_usual_is_said(
    op: str, shape: Shape, further: list, options: dict, wanted: list[Shape]
) -> None:
    told = [tuple(numbers) for numbers in further]
    assert moved_shapes(op, shape, told, options, len(wanted)) == wanted
    assert has_move_rule(op)


def test_what_is_not_known_is_not_said() -> None:
    assert moved_shapes("Reshape", (4, 4), [], {}, 1) is None
    assert moved_shapes("Reshape", (4, 4), [(-1, -1)], {}, 1) is None
    assert moved_shapes("Split", (5,), [], {}, 2) is None
    assert moved_shapes("Squeeze", (5,), [(0,)], {}, 1) is None
    assert not has_move_rule("Conv")
