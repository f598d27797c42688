import csv
import io
import json
import sqlite3
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from autospace.checkpoint import Checkpoint
from autospace.cli.inspect import command
from autospace.genotype import REFERENCE_CELLS, Zero
from autospace.inspecting import file_kind, inspect_file, layer_table, table_csv, times_by_owner
from autospace.onnx_export import onnx_for_cost
from autospace.skeleton import SKELETONS
from autospace.space import Architecture, SearchSpace
from devices.errors import AutospaceError, InvalidInputError

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
NETWORK = Architecture(
    SKELETONS["tiny"],
    (REFERENCE_CELLS[0], Zero(), REFERENCE_CELLS[1], Zero(), Zero(), REFERENCE_CELLS[2]),
)
SPACE = SearchSpace(SKELETONS["tiny"], (REFERENCE_CELLS,) * 3, ((0.9, 0.5, 0.1),) * 3)


@cache
def samples() -> dict[str, bytes]:
    """One small file of each kind."""
    from latency.profile import profile_device

    with TemporaryDirectory() as name:
        folder = Path(name)
        SPACE.save(folder / "space")
        NETWORK.save(folder / "architecture")
        meta = {"architecture": NETWORK.to_json(), "epochs": 3}
        tensors = {"net/w": torch.zeros(4, 2), "net/b": torch.zeros(4)}
        Checkpoint("autospace.trained", tensors, meta).save(folder / "checkpoint")
        profile_device(folder / "card", runtime="simulated", rounds=2, probes=6)
        (folder / "onnx").write_bytes(onnx_for_cost(NETWORK).SerializeToString())
        kinds = ("space", "architecture", "checkpoint", "card", "onnx")
        return {kind: (folder / kind).read_bytes() for kind in kinds}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The samples under names that say nothing."""
    paths = {}
    for number, (kind, data) in enumerate(samples().items()):
        paths[kind] = tmp_path / f"file{number}.txt"
        paths[kind].write_bytes(data)
    return paths


def released(name: str) -> Path:
    path = REFERENCE / name
    if not path.is_file():
        pytest.skip(f"the released file {name} is not beside this checkout")
    return path


def test_the_kind_is_read_from_the_content(files: dict[str, Path]) -> None:
    for kind, path in files.items():
        assert file_kind(path) == kind
        found = inspect_file(path)
        assert found["kind"] == kind
        assert found["file"] == path.name
        json.dumps(found, allow_nan=False)


def test_layers_of_every_form_of_a_network_agree(files: dict[str, Path]) -> None:
    network = inspect_file(files["architecture"])
    assert network["madds"] == NETWORK.madds == sum(row["madds"] for row in network["layers"])
    assert network["params"] == NETWORK.params == sum(row["params"] for row in network["layers"])
    model = inspect_file(files["onnx"])
    assert model["madds"] == NETWORK.madds
    assert model["uncounted"] == 0
    # Folding leaves one bias where batch norm had two parameters.
    biases = sum(node.shape[0] for node in NETWORK.nodes if node.kind == "conv")
    assert model["params"] == NETWORK.params - biases
    assert model["architecture"]["hash"] == NETWORK.hash
    assert inspect_file(files["checkpoint"])["hash"] == NETWORK.hash


def test_space(files: dict[str, Path]) -> None:
    found = inspect_file(files["space"])
    assert found["cells"] == 9
    first = found["layers"][0]
    assert first["blocks"] == [0, 1]
    assert first["cells"][0]["fitness"] == 0.9
    assert all(cell["reference"] for cell in first["cells"])
    assert found["smallest_madds"] < NETWORK.madds < found["largest_madds"]


def test_checkpoint_counts_its_values(files: dict[str, Path]) -> None:
    found = inspect_file(files["checkpoint"])
    assert (found["of"], found["tensors"], found["values"]) == ("trained", 2, 12)
    assert found["meta"] == {"epochs": 3}


def test_card(files: dict[str, Path]) -> None:
    found = inspect_file(files["card"])
    assert found["simulated"] is True
    assert len(found["table"]) == found["kernels"]
    assert "path" not in found


def test_foreign_onnx_with_symbolic_batch_and_matrix_product(tmp_path: Path) -> None:
    shape = helper.make_tensor_value_info
    weight = helper.make_tensor("w", TensorProto.FLOAT, [6, 5], [0.0] * 30)
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [1.0])
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("Mul", ["y", "s"], ["z"]),
        ],
        "g",
        [shape("x", TensorProto.FLOAT, ["batch", 3, 6])],
        [shape("z", TensorProto.FLOAT, ["batch", 3, 5])],
        [weight, scale],
    )
    path = tmp_path / "m"
    onnx.save(helper.make_model(graph), str(path))
    found = inspect_file(path)
    assert found["madds"] == 3 * 6 * 5
    assert found["params"] == 30
    assert found["architecture"] is None
    assert found["inputs"] == [{"name": "x", "shape": ["batch", 3, 6]}]


def test_batch_does_not_count_twice(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(onnx_for_cost(NETWORK, batch=4).SerializeToString())
    assert inspect_file(path)["madds"] == NETWORK.madds


def test_released_files() -> None:
    network = inspect_file(released("net_340M.config"))
    assert (network["params"], network["madds"]) == (4_305_552, 339_685_760)
    space = inspect_file(released("search_space.config"))
    assert (len(space["layers"]), space["cells"]) == (11, 98)


def test_times_go_to_the_part_that_they_belong_to() -> None:
    kernels = [
        {"latency_ms": 0.25, "nodes": ["block2/expand/Conv", "block2/expand/Clip"]},
        {"latency_ms": 0.5, "nodes": ["block2/project/Conv"]},
        {"latency_ms": 0.125, "nodes": []},
    ]
    times = times_by_owner({"kernels": kernels})
    assert times == {"block2": 0.75, "other": 0.125}
    rows = {row["part"]: row["latency_ms"] for row in layer_table(NETWORK, times)}
    assert rows["block2"] == 0.75
    assert rows["stem"] == 0.0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 64, "none of autospace's files"),
        (b'{"format": "autospace.sp', "not valid JSON"),
        (b'{"format": "other"}', "another kind"),
        (b'{"format": ["autospace.space"]}', "another kind"),
        (b"[1, 2]", "a JSON list"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"format": "autospace.architecture", "schema_version": 99}', "schema version 99"),
        (b"SQLite format 3\x00", "device card"),
        (b"\x00\x01\x00\x00\x00\x00\x00\x00{}", "truncated checkpoint"),
        (b"\x08\x09\xff\xff\xff", "not a readable ONNX"),
        (b"<html>", "none of autospace's files"),
        (b"x = 1", "none of autospace's files"),
    ],
)
def test_what_is_not_ours_is_refused_in_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match=words) as caught:
        inspect_file(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_folder_and_foreign_database(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no such file"):
        inspect_file(tmp_path / "nothing")
    with pytest.raises(InvalidInputError, match="is a folder"):
        inspect_file(tmp_path)
    connection = sqlite3.connect(tmp_path / "other.card")
    connection.execute("CREATE TABLE t (a)")
    connection.close()
    with pytest.raises(InvalidInputError, match="not a device card"):
        inspect_file(tmp_path / "other.card")


def check_only_our_errors(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        try:
            found = inspect_file(path)
        except AutospaceError as error:
            assert "\n" not in str(error)
        else:
            json.dumps(found)


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=100)
def test_arbitrary_bytes_raise_only_our_errors(data: bytes) -> None:
    check_only_our_errors(data)


@given(
    kind=st.sampled_from(["space", "architecture", "checkpoint", "card", "onnx"]),
    place=st.floats(0, 1, exclude_max=True),
    patch=st.binary(min_size=1, max_size=6),
    cut=st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_damaged_files_raise_only_our_errors(
    kind: str, place: float, patch: bytes, cut: bool
) -> None:
    data = samples()[kind]
    at = int(place * len(data))
    check_only_our_errors(data[:at] + (b"" if cut else patch + data[at + len(patch) :]))


def test_csv_of_each_kind(files: dict[str, Path]) -> None:
    for kind, path in files.items():
        done = CliRunner().invoke(command, [str(path), "--csv"], catch_exceptions=False)
        assert done.exit_code == 0, kind
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        assert rows, kind
        assert None not in rows[0], kind
    assert table_csv([]) == ""


def test_command_shows_each_kind(files: dict[str, Path]) -> None:
    for kind, path in files.items():
        done = CliRunner().invoke(command, [str(path)], catch_exceptions=False)
        assert done.exit_code == 0, kind
        assert done.stdout.strip()
        as_json = CliRunner().invoke(command, [str(path), "--json"], catch_exceptions=False)
        assert json.loads(as_json.stdout)["kind"] == kind


def test_command_writes_pictures(files: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("space", "architecture", "onnx", "checkpoint"):
        out = tmp_path / f"{kind}.svg"
        arguments = [str(files[kind]), "--svg", str(out)]
        assert CliRunner().invoke(command, arguments, catch_exceptions=False).exit_code == 0
        assert out.read_text(encoding="utf-8").startswith("<svg")
    out = tmp_path / "card.svg"
    done = CliRunner().invoke(command, [str(files["card"]), "--svg", str(out)])
    assert isinstance(done.exception, AutospaceError)
    assert done.exception.exit_code == 2
    assert not out.exists()
