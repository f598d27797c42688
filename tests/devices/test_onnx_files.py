"""Reading and fixing ONNX files."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from devices import onnx_files
from devices.errors import InvalidInputError
from devices.onnx_files import (
    fix_shapes,
    input_specs,
    name_nodes,
    parse_onnx,
    random_inputs,
    read_onnx,
    shapes_by_model,
    to_bytes,
)
from devices.runtimes import get_runtime
from devices.runtimes.base import RuntimeSettings

WEIGHT_BYTES = 16 * 27 * 4
RUNTIMES = ("onnxruntime", "simulated")


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


# -- files -----------------------------------------------------------------------------------------


def refused(path: Path, **options: bool) -> str:
    """The one line that a file is refused with, which names it."""
    with pytest.raises(InvalidInputError) as caught:
        read_onnx(path, **options)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and ";" in line
    return line.removeprefix(f"{path}: ")


def test_a_file_cut_short_anywhere_is_refused(model, tmp_path: Path) -> None:
    data = model.SerializeToString()
    path = tmp_path / "m.onnx"
    for end in (*range(0, 60), *range(60, len(data), 97), *range(len(data) - 40, len(data))):
        path.write_bytes(data[:end])
        refused(path)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parse_onnx(data)


@given(st.data())
def test_a_damaged_model_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(onnx_model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        fix_shapes(parse_onnx(bytes(whole)), 1)
    except InvalidInputError as error:
        assert "\n" not in str(error)


def test_folders_missing_and_huge_files_are_told_apart(model, tmp_path: Path) -> None:
    assert refused(tmp_path).startswith("is a folder")
    assert refused(tmp_path / "missing.onnx").startswith("no such file")
    assert refused(tmp_path / ("x" * 300)).startswith("cannot be read (File name too long)")
    (tmp_path / "empty.onnx").touch()
    assert refused(tmp_path / "empty.onnx").startswith("empty")
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.write(model.SerializeToString())
        file.truncate(3 * 10**9)
    assert refused(tmp_path / "huge.onnx").startswith("3.0 GB")


def test_a_model_too_large_to_be_written_is_refused_in_one_line(monkeypatch) -> None:
    class Huge:
        def SerializeToString(self) -> bytes:
            raise ValueError("Message onnx.ModelProto\nexceeds maximum protobuf size of 2GB")

        def CopyFrom(self, other: object) -> None:
            raise ValueError("Failed to serialize proto")

    with pytest.raises(InvalidInputError, match="above 2 GB"):
        to_bytes(Huge())
    with pytest.raises(InvalidInputError, match="above 2 GB"):
        onnx_files.copied(Huge())


# -- weights in other files ------------------------------------------------------------------------


def external(model: onnx.ModelProto, path: Path, tensor: int = 0, **entry: object) -> Path:
    """Saves the model with one of its weights in another file, of which `entry` says where."""
    weights = model.graph.initializer[tensor]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in entry.items():
        weights.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())
    return path


def test_external_weights_are_taken_in(make_model, tmp_path: Path) -> None:
    raw = make_model().graph.initializer[0].raw_data
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"1234" + raw + b"more")
    where = {"location": "sub/w.bin", "offset": 4, "length": len(raw)}
    path = external(make_model(), tmp_path / "m.onnx", **where)
    read = read_onnx(path)
    assert read == make_model()
    assert parse_onnx(to_bytes(read)) == read
    left = read_onnx(path, weights=False)
    assert not left.graph.initializer[0].raw_data
    with pytest.raises(InvalidInputError, match="weights 'w' are in another file"):
        parse_onnx(to_bytes(left))


def test_a_relative_path_and_a_linked_folder_do(make_model, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "w.bin").write_bytes(make_model().graph.initializer[0].raw_data)
    external(make_model(), tmp_path / "real" / "m.onnx", location="w.bin")
    assert read_onnx(tmp_path / "link" / "m.onnx") == make_model()
    monkeypatch.chdir(tmp_path / "real")
    assert read_onnx("m.onnx") == make_model()


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(
    "location",
    ["../secret", "/etc/passwd", "{}/secret", "link", "up/secret", "C:\\w.bin", ".", "a/.."],
)
def test_weights_outside_the_folder_are_refused(
    make_model, tmp_path: Path, location: str, weights: bool
) -> None:
    (tmp_path / "secret").write_bytes(bytes(WEIGHT_BYTES))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to("../secret")
    (folder / "up").symlink_to("..")
    path = external(make_model(), folder / "m.onnx", location=location.format(tmp_path))
    assert "outside the model's folder" in refused(path, weights=weights)


def test_a_folder_whose_name_goes_on_is_another_folder(make_model, tmp_path: Path) -> None:
    for name in ("model", "model-2"):
        (tmp_path / name).mkdir()
    (tmp_path / "model-2" / "w.bin").write_bytes(bytes(WEIGHT_BYTES))
    path = external(make_model(), tmp_path / "model" / "m.onnx", location="../model-2/w.bin")
    assert "outside the model's folder" in refused(path)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"location": "missing"}, "in 'missing', which is not there; copy"),
        ({"location": "folder"}, "in 'folder', which is not there"),
        ({"location": "short"}, "end at byte 1728 of 'short', which has 100"),
        ({"location": "short", "length": WEIGHT_BYTES}, "end at byte 1728 of 'short'"),
        ({"location": "w", "offset": 4}, "end at byte 1732 of 'w', which has 1728"),
        ({"location": "w", "offset": 10**30, "length": 4}, "which has 1728"),
        ({"location": "w", "length": 8}, "take 1728 bytes, but 8 are declared"),
        ({"location": "w", "offset": -4}, "offset '-4'"),
        ({"location": "w", "length": "many"}, "length 'many'"),
        ({"location": "w", "length": "²"}, "length '²'"),
        ({"location": "a\nb"}, "not said in which"),
        ({"location": ""}, "not said in which"),
        ({}, "not said in which"),
    ],
)
def test_external_weights_that_do_not_fit(make_model, tmp_path: Path, entry, why: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "short").write_bytes(bytes(100))
    (tmp_path / "w").write_bytes(bytes(WEIGHT_BYTES))
    path = external(make_model(), tmp_path / "m.onnx", **entry)
    for weights in (True, False):
        line = refused(path, weights=weights)
        assert line.startswith("weights 'w'") and why in line


def test_weights_in_nodes_subgraphs_and_functions_are_found(make_model, tmp_path: Path) -> None:
    def constant(name: str) -> onnx.NodeProto:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret")
        return helper.make_node("Constant", [], [name], value=tensor)

    branch = helper.make_graph([constant("deep")], "b", [], [])
    inner = helper.make_node("If", ["cond"], ["o"], then_branch=branch, else_branch=branch)
    function = helper.make_function(
        "my", "f", [], ["y"], [constant("in function")], [helper.make_opsetid("", 17)]
    )
    for name, change in {
        "plain": lambda m: m.graph.node.append(constant("plain")),
        "deep": lambda m: m.graph.node.append(inner),
        "in function": lambda m: m.functions.append(function),
    }.items():
        model = make_model()
        change(model)
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        assert f"weights {name!r} are in '../secret', outside" in refused(tmp_path / "m.onnx")


def test_weights_above_two_gigabytes_are_refused_before_they_are_read(
    make_model, tmp_path: Path
) -> None:
    with (tmp_path / "w").open("wb") as file:
        file.truncate(800_000_000 * 4)
    model = make_model()
    model.graph.initializer[0].dims[:] = [200_000_000, 4, 1, 1]
    path = external(model, tmp_path / "m.onnx", location="w")
    assert refused(path).startswith("3.2 GB with its weights")
    assert len(read_onnx(path, weights=False).graph.node) == 5


@pytest.mark.parametrize(("kind", "count"), [("INT4", 2), ("UINT8", 3), ("BFLOAT16", 6)])
def test_packed_weights_are_counted(make_model, tmp_path: Path, kind: str, count: int) -> None:
    (tmp_path / "w").write_bytes(bytes(count))
    model = make_model()
    model.graph.initializer[0].dims[:] = [3]
    model.graph.initializer[0].data_type = getattr(TensorProto, kind)
    path = external(model, tmp_path / "m.onnx", location="w")
    assert len(read_onnx(path).graph.initializer[0].raw_data) == count


# -- inputs ----------------------------------------------------------------------------------------


def onnx_model(*inputs: onnx.ValueInfoProto, op: str = "Relu", outputs: int = 3) -> onnx.ModelProto:
    """One operation on the inputs."""
    values = inputs or (helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4]),)
    graph = helper.make_graph(
        [helper.make_node(op, [value.name for value in values], ["y"], name="n")],
        "g",
        list(values),
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"o{i}" for i in range(outputs)])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tensor(name: str, *shape: int | str | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape, _ in input_specs(model)}


def test_the_error_says_what_to_write_with_what_is_known(make_model) -> None:
    with pytest.raises(InvalidInputError) as caught:
        fix_shapes(make_model("batch", "side"), 4)
    assert str(caught.value) == (
        "model input 'x': dimensions 2 ('side') and 3 ('side') are dynamic; say how large, as in "
        "--shape x=4x3x224x224, or export it with fixed sizes (only the batch may be symbolic)."
    )


@pytest.mark.parametrize(
    ("inputs", "option"),
    [
        ((tensor("x", 1, "c", 32, "w"),), "--shape x=1x3x32x224"),
        ((tensor("x", None, None, None, None),), "--shape x=1x3x224x224"),
        ((tensor("x", "n", "length", 8),), "--shape x=1x128x8"),
        ((tensor("x", 1, -1),), "dimension 1 (-1) is dynamic; say how large, as in --shape x=1x"),
        ((tensor("x", 1, 3, 0, 8),), "dimension 2 (0) is dynamic"),
        ((tensor("my input", 1, "n"),), "--shape 'my input=1x128'"),
        ((tensor("a", 1, "n"), tensor("b", 1, 2), tensor("c", "n", "m")),
         "--shape a=1x128 --shape c=1x128,"),
        ((helper.make_tensor_value_info("x", 1, None),), "'x' has no shape; say how large, as in "
         "--shape x=1x3x224x224"),
    ],
)  # fmt: skip
def test_open_dimensions(inputs: tuple[onnx.ValueInfoProto, ...], option: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        fix_shapes(onnx_model(*inputs, op="Sum"), 1)
    assert option in str(caught.value)


def test_given_shapes_are_used_and_the_model_kept(make_model) -> None:
    model = make_model("batch", "side")
    before = model.SerializeToString()
    fixed = fix_shapes(model, 2, {"x": (2, 3, 10, 12)})
    assert shapes_of(fixed) == {"x": (2, 3, 10, 12)}
    assert model.SerializeToString() == before
    assert fix_shapes(fixed, 2) is fixed
    assert fix_shapes(fixed, 2, {"x": (2, 3, 10, 12)}) is fixed


def test_dimensions_of_one_name_are_of_one_size() -> None:
    model = onnx_model(
        tensor("a", "n", "s"), tensor("b", "n", "s"), tensor("c", "m", "s"), op="Sum"
    )
    assert shapes_of(fix_shapes(model, 1, {"a": (5, 7)})) == {"a": (5, 7), "b": (5, 7), "c": (1, 7)}
    contradicting = {"a": (5, 7), "b": (5, 8)}
    with pytest.raises(InvalidInputError, match="input 'c': dimension 1"):
        fix_shapes(model, 1, contradicting)
    assert shapes_of(fix_shapes(model, 1, {**contradicting, "c": (1, 9)}))["b"] == (5, 8)
    unknown = onnx_model(tensor("a", "n", "?"), tensor("b", "n", "?"), op="Sum")
    with pytest.raises(InvalidInputError, match="input 'b': dimension 1"):
        fix_shapes(unknown, 1, {"a": (1, 7)})


@pytest.mark.parametrize(
    ("stated", "shape", "why"),
    [
        ((1, 3, "h", "w"), (1, 3, 8), "given as 1x3x8, but the model's has 4 dimensions (1x3xhxw)"),
        ((1, 3, "h", "w"), (1, 4, 8, 8), "dimension 1 is fixed at 3 (1x3xhxw)"),
        (
            ("n", 3, "h", "w"),
            (2, 3, 8, 8),
            "given with batch 2, but batch 1 was asked for; give 1x3",
        ),
        ((2, 3, "h", "w"), (2, 3, 8, 8), "made for batch 2"),
        ((2, "n"), (3, 4), "dimension 0 is fixed at 2"),
        ((), (1,), "a single number"),
        ((1, "n"), (1, 0), "every size must be 1 or more"),
        ((1, "n"), (1, -4), "every size must be 1 or more"),
        ((1, "n", "n"), (1, 10**9, 10**9), "too many for timing"),
    ],
)
def test_shapes_that_contradict(stated: tuple, shape: tuple[int, ...], why: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        fix_shapes(onnx_model(tensor("x", *stated)), 1, {"x": shape})
    assert why in str(caught.value) and str(caught.value).startswith("model input 'x': ")


def test_names_with_line_breaks_stay_on_one_line() -> None:
    model = onnx_model(tensor("a\nb", 1, "n\nm"))
    for shapes in (None, {"a\nb": (1,)}, {"c\nd": (1,)}):
        with pytest.raises(InvalidInputError) as caught:
            fix_shapes(model, 1, shapes)
        assert "\n" not in str(caught.value)


def test_zeros_and_missing_shapes_can_be_given() -> None:
    for stated in ((1, 3, 0, 0), (-1, 3, -1, -1), (None,) * 4):
        fixed = fix_shapes(onnx_model(tensor("x", *stated)), 1, {"x": (1, 3, 4, 5)})
        assert shapes_of(fixed) == {"x": (1, 3, 4, 5)}
    unranked = onnx_model(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    assert shapes_of(fix_shapes(unranked, 1, {"x": (1, 3)})) == {"x": (1, 3)}


def test_the_first_dimension_is_the_batch_unless_given() -> None:
    model = onnx_model(tensor("x", "n", 7))
    assert shapes_of(fix_shapes(model, 4)) == {"x": (4, 7)}
    assert shapes_of(fix_shapes(model, 4, {"x": (9, 7)})) == {"x": (9, 7)}
    assert shapes_of(fix_shapes(onnx_model(tensor("x")), 4)) == {"x": ()}


@given(
    st.lists(st.one_of(st.integers(-1, 6), st.sampled_from(["n", "h", "?", ""])), max_size=5),
    st.lists(st.integers(-1, 6), max_size=5),
    st.integers(1, 3),
)
def test_any_given_shape_is_taken_as_it_is_or_refused(stated, shape, batch: int) -> None:
    model = onnx_model(tensor("x", *(value or None for value in stated)), outputs=len(stated))
    try:
        fixed = fix_shapes(model, batch, {"x": shape})
    except InvalidInputError as error:
        assert "\n" not in str(error)
    else:
        assert shapes_of(fixed) == {"x": tuple(shape)}


def test_unknown_inputs_are_refused_with_the_known(make_model) -> None:
    with pytest.raises(InvalidInputError, match="input 'y': is not there; its inputs are 'x'"):
        fix_shapes(make_model(), 1, {"y": (1,)})
    with pytest.raises(InvalidInputError, match="input 'w': is not there"):
        fix_shapes(make_model(), 1, {"w": (16, 3, 3, 3)})


def test_shapes_go_to_every_model_that_has_the_input() -> None:
    models = {"one": onnx_model(tensor("a", 1)), "two": onnx_model(tensor("a", 1), tensor("b", 1))}
    assert shapes_by_model(models, {"a": [1], "b": [2]}) == {
        "one": {"a": (1,)},
        "two": {"a": (1,), "b": (2,)},
    }
    with pytest.raises(InvalidInputError, match=r"--shape 'c': no model .* there are 'a', 'b'"):
        shapes_by_model(models, {"c": [1]})


@pytest.mark.parametrize(
    "kind", ["sequence", "optional", "map", "sparse tensor", "value of no type"]
)
def test_inputs_that_are_no_tensors_are_named(kind: str) -> None:
    value = onnx.ValueInfoProto(name="x")
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, [4])
    if kind == "sequence":
        value.type.sequence_type.elem_type.CopyFrom(element)
    elif kind == "optional":
        value.type.optional_type.elem_type.CopyFrom(element)
    elif kind == "map":
        value.type.map_type.value_type.CopyFrom(element)
    elif kind == "sparse tensor":
        value.type.sparse_tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(InvalidInputError, match=f"input 'x': an? {kind}, not a tensor"):
        fix_shapes(onnx_model(value), 1)


def test_a_model_without_inputs_or_with_strings_is_refused() -> None:
    constant = onnx_model()
    del constant.graph.input[:]
    with pytest.raises(InvalidInputError, match="has no inputs"):
        fix_shapes(constant, 1)
    strings = onnx_model(helper.make_tensor_value_info("x", TensorProto.STRING, [4]))
    with pytest.raises(InvalidInputError, match="holds strings"):
        input_specs(strings)
    for kind in (0, 99):
        with pytest.raises(InvalidInputError, match=f"element type {kind}"):
            input_specs(onnx_model(helper.make_tensor_value_info("x", kind, [4])))


def test_a_scalar_is_made_up_and_an_input_beyond_memory_refused(monkeypatch) -> None:
    arrays = random_inputs((("x", (), "float32"), ("n", (), "int64")))
    assert arrays["x"].shape == arrays["n"].shape == ()
    assert arrays["x"].dtype == np.float32

    def full(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np.random, "default_rng", lambda seed: None)
    monkeypatch.setattr(np, "zeros", full)
    with pytest.raises(InvalidInputError, match="input 'n': 8x8 does not fit in memory"):
        random_inputs((("n", (8, 8), "int64"),))


# -- in the runtimes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """A network with everything that reads sizes at run time, exported with dynamic axes."""
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 8, 3, 2, 1)
            self.head = torch.nn.Linear(8, 5)

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            y = torch.relu(self.stem(x))
            y = torch.nn.functional.interpolate(y, scale_factor=2.0)
            y = torch.nn.functional.interpolate(y, size=x.shape[2:]).mean((2, 3))
            return self.head(y.view(y.size(0), -1))

    path = tmp_path_factory.mktemp("torch") / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Net().eval(),
            (torch.zeros(1, 3, 16, 16),),
            str(path),
            input_names=["image"],
            output_names=["out"],
            dynamic_axes={"image": {0: "batch", 2: "height", 3: "width"}, "out": {0: "batch"}},
            dynamo=False,
        )
    return read_onnx(path)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_dynamic_export_runs_at_the_given_size(exported, runtime: str) -> None:
    engine, settings = get_runtime(runtime), RuntimeSettings(batch=2)
    with pytest.raises(InvalidInputError, match=r"--shape image=2x3x224x224"):
        fix_shapes(exported, 2)
    fixed = fix_shapes(exported, 2, {"image": (2, 3, 20, 28)})
    compiled = engine.compile(to_bytes(fixed), settings)
    assert compiled.inputs == (("image", (2, 3, 20, 28), "float32"),)
    with engine.load(compiled, settings) as loaded:
        assert loaded.infer(random_inputs(compiled.inputs))[0].shape == (2, 5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_a_file_says_of_other_sizes_confuses_nobody(exported, runtime: str) -> None:
    stale = onnx.shape_inference.infer_shapes(
        fix_shapes(exported, 1, {"image": (1, 3, 16, 16)}), data_prop=True
    )
    assert len(stale.graph.value_info) > 5
    for dim, name in zip(
        stale.graph.input[0].type.tensor_type.shape.dim, ("n", None, "h", "w"), strict=True
    ):
        if name:
            dim.dim_param = name
    fixed = fix_shapes(stale, 2, {"image": (2, 3, 20, 28)})
    compiled = get_runtime(runtime).compile(to_bytes(fixed), RuntimeSettings(batch=2))
    assert compiled.inputs[0][1] == (2, 3, 20, 28)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: setattr(m.opset_import[0], "version", 99), "opset 99 of ai.onnx is newer than"),
        (lambda m: setattr(m, "ir_version", 99), "IR version: 99"),
        (
            lambda m: setattr(m.graph.node[1], "op_type", "Frobnicate"),
            "Op registered for Frobnicate",
        ),
        (lambda m: setattr(m.graph.node[1], "domain", "my.ops"), "my.ops"),
        (
            lambda m: m.graph.node[1].input.__setitem__(0, "nothing"),
            "'nothing' is not a graph input",
        ),
    ],
)
def test_what_the_runtime_refuses_is_said_without_its_source_code(make_model, change, why) -> None:
    model = make_model()
    change(model)
    with pytest.raises(InvalidInputError) as caught:
        get_runtime("onnxruntime").compile(to_bytes(model), RuntimeSettings())
    line = str(caught.value)
    assert why in line and "\n" not in line and ";" in line
    assert "onnxruntime_src" not in line and "ONNXRuntimeError" not in line
