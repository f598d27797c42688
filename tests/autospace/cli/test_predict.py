"""``predict`` and its neighbours: shapes on the command line, bad models, cards made elsewhere."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from autospace.cli import main
from autospace.files import disk_full, replacing, write_text
from autospace.quantities import parse_shape, parse_shapes
from devices.errors import AutospaceError, InvalidInputError, UsageError
from latency import DeviceCard
from latency.card_format import digest_of, seal_of

Call = Callable[..., tuple[int, str, list[str]]]


def network(*shape: int | str, name: str = "input") -> onnx.ModelProto:
    """A convolution, pooled and flattened, of an image of any size."""
    weight = np.zeros((4, 3, 3, 3), np.float32)
    nodes = [
        helper.make_node("Conv", [name, "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["y"], name="flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def folder(tmp_path: Path, simulated_card: DeviceCard, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a card, a fixed and two dynamic models."""
    shutil.copyfile(simulated_card.path, tmp_path / "card")
    for name, model in {
        "fixed": network(1, 3, 8, 8),
        "dynamic": network("n", 3, "h", "w"),
        "other": network("n", 3, "h", "w", name="other"),
    }.items():
        (tmp_path / f"{name}.onnx").write_bytes(model.SerializeToString())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(folder: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Exit code, output and the lines of the errors of a command."""

    def run(*arguments: str) -> tuple[int, str, list[str]]:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err and "a fault of autospace" not in captured.err
        assert isinstance(end.value.code, int)
        lines = [one for one in captured.err.splitlines() if "simulated; its" not in one]
        return end.value.code, captured.out, lines

    return run


PREDICT = ("predict", "--device", "card", "--top", "0")
BENCHMARK = ("benchmark", "--device", "card", "--visits", "4")


# -- shapes ----------------------------------------------------------------------------------------


def test_a_shape_is_predicted_like_a_model_of_that_shape(call: Call) -> None:
    _, output, _ = call(*PREDICT, "fixed.onnx", "--json")
    fixed = json.loads(output)["predictions"][0]
    code, output, lines = call(*PREDICT, "dynamic.onnx", "--shape", "input=1x3x8x8", "--json")
    given_shape = json.loads(output)["predictions"][0]
    assert (code, lines) == (0, [])
    assert given_shape["latency_ms"] == fixed["latency_ms"]
    assert given_shape["shapes"] == {"input": [1, 3, 8, 8]}
    assert fixed["shapes"] == {}


def test_shapes_go_to_the_models_that_have_the_input(call: Call) -> None:
    code, output, lines = call(
        *PREDICT, "dynamic.onnx", "other.onnx", "fixed.onnx",
        "--shape", "input=1x3x8x8", "--shape", "other=1x3x16x16",
    )  # fmt: skip
    assert (code, lines) == (0, [])
    assert [line.split(":")[0] for line in output.splitlines()] == [
        "dynamic.onnx", "other.onnx", "fixed.onnx",
    ]  # fmt: skip


def test_benchmark_takes_shapes_too(call: Call, folder: Path) -> None:
    code, _, _ = call(*BENCHMARK, "dynamic.onnx", "fixed.onnx", "--shape", "input=1x3x8x8")
    assert code == 0
    found = json.loads((folder / "benchmark.json").read_text())["models"]
    assert found[0]["predicted"]["latency_ms"] == found[1]["predicted"]["latency_ms"]
    assert found[0]["error"] == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("command", [PREDICT, BENCHMARK])
@pytest.mark.parametrize(
    ("shapes", "code", "why"),
    [
        ((), 1, "dimensions 2 ('h') and 3 ('w') are dynamic; say how large, as in --shape "
         "input=1x3x224x224, or"),
        (("input=",), 2, "--shape 'input=': no sizes; write input=1x3x224x224"),
        (("input=3x-1",), 2, "'-1' is no whole number above 0; write input=1x3x224x224"),
        (("input=1xax3",), 2, "'a' is no whole number above 0"),
        (("input=1x3x0x8",), 2, "'0' is no whole number above 0"),
        (("1x3x8x8",), 2, "names no input; write input=1x3x224x224"),
        (("=1x3x8x8",), 2, "names no input"),
        (("input=1x3x8x8", "input=1x3x9x9"), 2, "given twice for 'input'"),
        (("image=1x3x8x8",), 1, "--shape 'image': no model given has such an input; there are "
         "'input'."),
        (("w=4x3x3x3",), 1, "no model given has such an input"),
        (("input=1x3x8",), 1, "given as 1x3x8, but the model's has 4 dimensions (nx3xhxw); give"),
        (("input=1x4x8x8",), 1, "dimension 1 is fixed at 3 (nx3xhxw); give that"),
        (("input=2x3x8x8",), 1, "given with batch 2, but batch 1 was asked for; give 1x3x8x8"),
        (("input=1x3x99999x99999",), 1, "too many for timing; give a smaller shape"),
    ],
)  # fmt: skip
def test_shapes_that_are_wrong(
    call: Call, folder: Path, command: tuple[str, ...], shapes: tuple[str, ...], code: int, why: str
) -> None:
    options = [text for shape in shapes for text in ("--shape", shape)]
    found, output, lines = call(*command, "dynamic.onnx", *options)
    assert (found, output, len(lines)) == (code, "", 1)
    assert why in lines[0]
    # What is wrong with the text or with all models is said of the option, else of the model.
    assert "dynamic.onnx" in lines[0] or "--shape" in lines[0]
    assert not (folder / "benchmark.json").exists()


def test_a_shape_that_contradicts_a_fixed_model_names_it(call: Call) -> None:
    code, output, lines = call(*PREDICT, "fixed.onnx", "--shape", "input=1x3x9x9")
    assert (code, output) == (1, "")
    assert lines == [
        "autospace: error: fixed.onnx: model input 'input': given as 1x3x9x9, but dimension 2 is "
        "fixed at 8 (1x3x8x8); give that, or export the model with other sizes."
    ]


@given(st.text(max_size=20), st.lists(st.integers(1, 10**9), min_size=1, max_size=6))
def test_every_shape_is_read_back(name: str, shape: list[int]) -> None:
    text = f"{name}={'x'.join(map(str, shape))}"
    if name:
        assert parse_shape(text) == (name, tuple(shape))
        assert parse_shapes([text]) == {name: tuple(shape)}
        with pytest.raises(UsageError, match="given twice"):
            parse_shapes([text, text])
    else:
        with pytest.raises(UsageError, match="names no input"):
            parse_shape(text)


@given(st.text(alphabet="ab=x×019 -.,\n٣²", max_size=24))
def test_any_text_is_a_shape_or_one_line(text: str) -> None:
    try:
        name, shape = parse_shape(text)
    except UsageError as error:
        assert str(error).startswith(f"--shape {text!r}: ")
        assert "; write " in str(error)
    else:
        assert name and shape and all(size >= 1 for size in shape)
        assert text.startswith(f"{name}=")


# -- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [PREDICT, BENCHMARK, ("inspect",)])
@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("missing.bin", "'missing.bin', which is not there; copy that file"),
        ("../secret", "outside the model's folder, which is refused"),
        ("/etc/hostname", "outside the model's folder, which is refused"),
        ("short.bin", "end at byte 432 of 'short.bin', which has 9; copy that file again"),
    ],
)
def test_weights_in_other_files(
    call: Call, folder: Path, command: tuple[str, ...], location: str, why: str
) -> None:
    (folder / "short.bin").write_bytes(b"too short")
    model = network(1, 3, 8, 8)
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    code, output, lines = call(*command, "m.onnx")
    assert (code, output, len(lines)) == (1, "", 1)
    assert lines[0].startswith("autospace: error: m.onnx: weights 'w' ")
    assert why in lines[0]


@pytest.mark.parametrize("command", [PREDICT, BENCHMARK])
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("strings", "holds strings"),
        ("sequence", "a sequence, not a tensor"),
        ("nothing", "has no inputs"),
        ("batch", "made for batch 2, but batch 1"),
    ],
)
def test_inputs_that_cannot_be_made_up(
    call: Call, folder: Path, command: tuple[str, ...], kind: str, why: str
) -> None:
    model = network(2 if kind == "batch" else 1, 3, 8, 8)
    if kind == "strings":
        model.graph.input.append(helper.make_tensor_value_info("s", TensorProto.STRING, [1]))
    elif kind == "sequence":
        model.graph.input.append(
            helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [1])
        )
    elif kind == "nothing":
        del model.graph.input[:]
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    code, output, lines = call(*command, "m.onnx")
    assert (code, output, len(lines)) == (1, "", 1)
    assert "m.onnx" in lines[0] and why in lines[0] and ";" in lines[0]


# -- cards made elsewhere --------------------------------------------------------------------------


def change_card(path: Path, version: int | None = None, **meta: Any) -> None:
    """Makes a card of another origin, sound in itself."""
    connection = sqlite3.connect(path)
    for key, value in meta.items():
        connection.execute("UPDATE meta SET value=? WHERE key=?", (json.dumps(value), key))
    fingerprint = json.dumps(digest_of(connection))
    connection.execute("UPDATE meta SET value=? WHERE key='fingerprint'", (fingerprint,))
    rows = connection.execute("SELECT key, value FROM meta").fetchall()
    description = {key: json.loads(value) for key, value in rows}
    for name, data in connection.execute("SELECT name, data FROM derived").fetchall():
        connection.execute(
            "UPDATE derived SET seal=? WHERE name=?", (seal_of(description, data), name)
        )
    if version is not None:
        connection.execute(f"PRAGMA user_version={version}")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("command", [(*PREDICT, "fixed.onnx"), ("inspect", "card")])
def test_a_card_of_a_newer_format(call: Call, folder: Path, command: tuple[str, ...]) -> None:
    change_card(folder / "card", version=99)
    code, output, lines = call(*command)
    assert (code, output, len(lines)) == (1, "", 1)
    assert "card: device card of format 99, this version reads" in lines[0]
    assert "update autospace" in lines[0]


@pytest.mark.parametrize("version", ["0.9", "2", "unknown"])
def test_a_card_of_another_runtime_version(call: Call, folder: Path, version: str) -> None:
    change_card(folder / "card", runtime_version=version)
    difference = f"simulated: {version} → 1"
    for command in ((*PREDICT, "fixed.onnx"), (*BENCHMARK, "fixed.onnx")):
        code, output, lines = call(*command)
        assert (code, output, len(lines)) == (1, "", 1)
        assert difference in lines[0] and "--allow-mismatch" in lines[0]
    code, output, lines = call(*PREDICT, "fixed.onnx", "--allow-mismatch", "--json")
    assert code == 0
    assert lines == [f"warning: card: used in spite of differences ({difference})."]
    assert lines[0].removeprefix("warning: ") in json.loads(output)["warnings"]
    (prediction,) = json.loads(output)["predictions"]
    assert prediction["kernels_from"] == "card"
    rules = "kernels from the card's fusion rules, not from the runtime."
    assert rules in prediction["warnings"]
    assert call("inspect", "card")[0] == 0


def test_benchmark_without_the_card_s_runtime(call: Call, folder: Path) -> None:
    """Nothing can be measured; the reason is the missing runtime, and how to get it is said."""
    change_card(folder / "card", runtime="tensorrt", runtime_version="1.0")
    code, output, lines = call(*BENCHMARK, "fixed.onnx")
    assert (code, output) == (4, "")
    assert lines[-1].startswith("autospace: error: runtime 'tensorrt'"), lines


def test_a_card_of_a_runtime_that_is_not_known(call: Call, folder: Path) -> None:
    change_card(folder / "card", runtime="gone")
    code, output, lines = call(*PREDICT, "fixed.onnx")
    assert (code, output, len(lines)) == (1, "", 1)
    assert lines[0].startswith("autospace: error: card: made with 'gone', which this version")


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"threads": 1, "precision": "fp32", "batch": 4}, "batch: 4 → 1"),
        ({"threads": 1, "precision": "fp32", "batch": 1}, "batch: 1 → 2"),
    ],
)
def test_a_card_of_another_batch(
    call: Call, folder: Path, settings: dict[str, Any], difference: str
) -> None:
    change_card(folder / "card", settings=settings)
    code, output, lines = call(
        "evolve", "--skeleton", "tiny", "--latency", "5ms", "--device", "card",
        "--batch", difference[-1],
    )  # fmt: skip
    assert (code, output) == (1, "")
    assert lines[-1].startswith(f"autospace: error: card: made with other settings ({difference})")


# -- a full disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("I/O error: (os error 28)")],
    ids=["python", "library"],
)
def test_a_full_disk_keeps_what_was_there(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "result.json"
    write_text(path, "before")
    with pytest.raises(AutospaceError) as caught, replacing(path) as temporary:
        temporary.write_text("half of what")
        raise error
    assert str(caught.value) == (
        f"{path}: disk is full (No space left on device); free some space and repeat the command"
    )
    assert caught.value.exit_code == 1
    assert [one.name for one in tmp_path.iterdir()] == ["result.json"]
    assert path.read_text() == "before"


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    for error in (OSError(5, "Input/output error"), ValueError("(os error 5)"), KeyError("x")):
        assert disk_full(error) is None
        with pytest.raises(type(error)), replacing(tmp_path / "x"):
            raise error


def test_a_full_disk_anywhere_else_is_one_line(call: Call, monkeypatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "journal")

    monkeypatch.setattr("autospace.inspecting.inspect_file", full)
    code, output, lines = call("inspect", "card")
    assert (code, output) == (1, "")
    assert lines == [
        "autospace: error: disk is full (No space left on device); free some space and repeat the "
        "command"
    ]


def test_functions_name_the_model_too(folder: Path) -> None:
    from autospace.steps import predict

    with pytest.raises(InvalidInputError, match=r"dynamic\.onnx: model input 'input': dimensions"):
        predict(folder / "dynamic.onnx", folder / "card")
    shapes = {"input": (1, 3, 8, 8)}
    fixed = predict(folder / "fixed.onnx", folder / "card")
    assert predict(folder / "dynamic.onnx", folder / "card", shapes=shapes) == fixed


def test_benchmark_in_two_runtimes_without_a_card(call: Call, folder: Path) -> None:
    code, output, _ = call(
        "benchmark", "fixed.onnx", "--runtime", "onnxruntime", "--runtime", "openvino",
        "--visits", "4", "--batch", "1", "--threads", "1",
    )  # fmt: skip
    assert code == 0
    assert "images/s" in output and "first run" in output
    found = json.loads((folder / "benchmark.json").read_text())
    assert [row["runtime"] for row in found["models"]] == ["onnxruntime", "openvino"]
    assert found["settings"] == {"threads": 1, "precision": "fp32", "batch": 1}
    for row in found["models"]:
        assert len(row["measured"]["visits"]) == 4 and row["memory_mb"] > 1


def test_benchmark_in_a_runtime_keeps_a_limit(call: Call) -> None:
    code, _, lines = call(
        "benchmark", "fixed.onnx", "--runtime", "simulated", "--visits", "4", "--latency", "1us"
    )
    assert code == 3
    assert "fixed.onnx in simulated: 95 % bound" in " ".join(lines)
