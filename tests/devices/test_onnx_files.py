"""Reading and fixing ONNX files."""

from pathlib import Path

import onnx
import pytest

from devices.errors import InvalidInputError
from devices.onnx_files import fix_shapes, input_specs, name_nodes, random_inputs, read_onnx


def test_read_gives_the_model(model, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model, str(path))
    assert len(read_onnx(path).graph.node) == 5


@pytest.mark.parametrize("content", [None, b"", b"hello world, this is no model"])
def test_bad_files_are_refused_in_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"m\.onnx") as caught:
        read_onnx(path)
    assert "\n" not in str(caught.value)


def test_symbolic_batch_is_fixed_and_the_original_kept(make_model) -> None:
    model = make_model("batch")
    assert input_specs(fix_shapes(model, 4)) == (("x", (4, 3, 8, 8), "float32"),)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_fixed_model_is_returned_as_it_is(model) -> None:
    assert fix_shapes(model, 1) is model


def test_other_dynamic_dimensions_are_named(make_model) -> None:
    with pytest.raises(InvalidInputError, match="'height'"):
        fix_shapes(make_model(1, "height"), 1)


def test_another_fixed_batch_is_refused(make_model) -> None:
    with pytest.raises(InvalidInputError, match="made for batch 2"):
        fix_shapes(make_model(2), 1)


def test_names_become_unique(model) -> None:
    for node in model.graph.node:
        node.name = "same"
    names = [node.name for node in name_nodes(model).graph.node]
    assert len(set(names)) == len(names)


def test_random_inputs_are_seeded() -> None:
    specs = (("x", (2, 3), "float32"), ("i", (4,), "int64"))
    first, second = random_inputs(specs), random_inputs(specs)
    assert (first["x"] == second["x"]).all() and first["x"].dtype == "float32"
    assert not first["i"].any()
