"""Every bad input ends in one line that helps, with the right exit code, and writes nothing."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from autospace.cli import main
from autospace.genotype import REFERENCE_CELLS, MBConv
from autospace.skeleton import SKELETONS
from autospace.space import Architecture, SearchSpace
from autospace.steps import export
from devices.errors import InvalidInputError
from devices.runtimes.base import CompiledGraph, RuntimeSettings
from devices.runtimes.openvino import OpenVino
from latency import DeviceCard

TINY = SKELETONS["tiny"]
FAILED, USAGE, UNAVAILABLE = 1, 2, 4
NOTES = ("target: ", "learned on: ", "training on: ", "warning: ", "exporting ")
"""What a command may say on standard error before it fails."""

EVOLVE = ("evolve", "--skeleton", "tiny")
SEARCH = ("search", "--space", "space.json")
QUICK = ("--budget", "2M")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    line: str


Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def good_files(tmp_path_factory: pytest.TempPathFactory, simulated_card: DeviceCard) -> Path:
    """One good file of each kind."""
    folder = tmp_path_factory.mktemp("good")
    SearchSpace(TINY, (REFERENCE_CELLS,) * 3).save(folder / "space.json")
    architecture = Architecture(TINY, (MBConv(),) * 6)
    architecture.save(folder / "arch.json")
    export(architecture, folder / "model.onnx")
    (folder / "card").write_bytes(simulated_card.path.read_bytes())
    (folder / "config.toml").write_text('[target]\nskeleton = "tiny"\nbudget = "2M"\n')
    return folder


def _listing(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def folder(tmp_path: Path, good_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: good files, and one of each bad kind."""
    for path in good_files.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "foreign").write_text('{"a": 1}')
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(4000))
    for name in ("space.json", "arch.json", "model.onnx", "card"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / f"cut-{name}").write_bytes(data[: len(data) // 3])
    (tmp_path / "cut-config.toml").write_text('[target]\nskeleton = "ti')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bad(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that has to fail, and checks what always holds."""

    def run(*arguments: str) -> Outcome:
        before = _listing(folder)
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        captured = capsys.readouterr()
        line = one_line(captured.err)
        assert captured.out == ""
        assert _listing(folder) == before
        assert isinstance(end.value.code, int)
        return Outcome(end.value.code, line)

    return run


def one_line(stderr: str) -> str:
    """The one line of an error; what stands before it are notes."""
    assert "Traceback" not in stderr
    assert "a fault of autospace" not in stderr
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert lines, "nothing was said"
    assert lines[-1].startswith("autospace"), stderr
    assert [line for line in lines[:-1] if not line.startswith(NOTES)] == []
    # What is wrong, and what to do: never a bare statement.
    helps = (";", "(", "expected", "must be", "id you mean", "at least", "above", "say ")
    assert any(mark in lines[-1] for mark in helps)
    return lines[-1]


# -- limits ----------------------------------------------------------------------------------------

BUDGETS = {
    "500X": "unknown unit 'X'; write 500M or 0.5G",
    "-5ms": "greater than zero",
    "-5M": "greater than zero",
    "0": "greater than zero",
    "0%": "greater than zero; write 70%",
    "%": "write 70%",
    "1e400M": "too large",
    "5e20": "larger than any network",
    "": "not a number",
    "nan": "not a number",
    "inf": "not a number",
    "500 M M": "not a number",
}
LATENCIES = {
    "5": "no unit; write 5ms or 800us",
    "5X": "unknown unit 'X'",
    "5M": "unknown unit 'M'",
    "-5ms": "greater than zero",
    "0ms": "greater than zero",
    "1e400ms": "too large",
    "": "not a number",
    "nan": "not a number",
    "inf": "not a number",
    "5 ms ms": "not a number",
}


@pytest.mark.parametrize(("text", "why"), BUDGETS.items())
@pytest.mark.parametrize("command", [EVOLVE, SEARCH])
def test_budgets(bad: Run, command: Sequence[str], text: str, why: str) -> None:
    outcome = bad(*command, "--budget", text)
    assert outcome.code == USAGE
    assert f"--budget {text!r}: " in outcome.line
    assert why in outcome.line


@pytest.mark.parametrize(("text", "why"), LATENCIES.items())
@pytest.mark.parametrize("command", [EVOLVE, SEARCH, ("benchmark", "model.onnx")])
def test_latencies(bad: Run, command: Sequence[str], text: str, why: str) -> None:
    outcome = bad(*command, "--device", "card", "--latency", text)
    assert outcome.code == USAGE
    assert f"--latency {text!r}: " in outcome.line
    assert why in outcome.line


@pytest.mark.parametrize("command", [EVOLVE, SEARCH])
def test_limits_that_are_missing(bad: Run, command: Sequence[str]) -> None:
    outcome = bad(*command)
    assert outcome.code == USAGE
    assert "no limit; give --budget 500M, --latency 5ms or both" in outcome.line
    for latency in ("5ms", "70%"):
        outcome = bad(*command, "--latency", latency)
        assert outcome.code == USAGE
        assert f"--latency {latency}: needs a device card; add --device CARD" in outcome.line


@pytest.mark.parametrize(
    ("arguments", "smallest"),
    [
        (("evolve", "--budget", "5M"), "mobile skeleton, 50.23M multiply-adds"),
        ((*EVOLVE, "--budget", "1k"), "tiny skeleton, 160K multiply-adds"),
        ((*EVOLVE, "--budget", "1%"), "tiny skeleton, 160K multiply-adds"),
        ((*EVOLVE, "--latency", "1us", "--device", "card"), " ms; raise"),
        ((*SEARCH, "--budget", "1k"), "smallest network of the space, 1.05M multiply-adds"),
        ((*SEARCH, "--latency", "1us", "--device", "card"), "smallest network of the space, 0."),
    ],
)
def test_limits_below_the_smallest_network(
    bad: Run, arguments: Sequence[str], smallest: str
) -> None:
    outcome = bad(*arguments)
    assert outcome.code == USAGE
    assert "below the smallest network" in outcome.line
    assert smallest in outcome.line
    assert "raise the limit" in outcome.line


# -- files -----------------------------------------------------------------------------------------

FILES = {
    "space": (("search", *QUICK, "--space"), "cut-space.json"),
    "probes": (("profile-device", "--runtime", "simulated", "--space"), "cut-space.json"),
    "arch": (("train", "--epochs", "1", "--arch"), "cut-arch.json"),
    "export": (("export", "--onnx"), "cut-arch.json"),
    "inspect": (("inspect",), "cut-card"),
    "predict": (("predict", "--device", "card"), "cut-model.onnx"),
    "predict-device": (("predict", "model.onnx", "--device"), "cut-card"),
    "benchmark": (("benchmark", "--device", "card"), "cut-model.onnx"),
    "benchmark-device": (("benchmark", "model.onnx", "--device"), "cut-card"),
    "evolve-device": ((*EVOLVE, *QUICK, "--device"), "cut-card"),
    "search-device": ((*SEARCH, *QUICK, "--device"), "cut-card"),
    "report": (("report",), "cut-config.toml"),
    "config": (("run",), "cut-config.toml"),
    "data": ((*EVOLVE, *QUICK, "--data", "folder", "--data-root"), "noise"),
    "fashion": ((*EVOLVE, *QUICK, "--data", "fashion-mnist", "--data-root"), "noise"),
    "cifar": (("train", "--arch", "arch.json", "--data", "cifar10", "--data-root"), "noise"),
}


@pytest.mark.parametrize("kind", ["missing", "empty", "cut", "foreign", "noise", "folder"])
@pytest.mark.parametrize("argument", FILES)
def test_files(bad: Run, argument: str, kind: str) -> None:
    command, cut = FILES[argument]
    name = cut if kind == "cut" else kind
    outcome = bad(*command, name)
    assert outcome.code == FAILED
    assert name in outcome.line


def test_what_one_runtime_refuses_the_others_measure(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: OpenVino, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        if b"autospace" in model:  # the sentinel is taken
            raise InvalidInputError("model node 'x': there is no operation Odd.")
        return compiled(self, model, settings)

    compiled = OpenVino.compile
    monkeypatch.setattr(OpenVino, "compile", refuses)
    names = ("--runtime", "onnxruntime", "--runtime", "openvino")
    with pytest.raises(SystemExit) as end:
        main(["benchmark", "model.onnx", *names, "--visits", "4", "--json"])
    captured = capsys.readouterr()
    assert end.value.code == FAILED
    said = captured.err.splitlines()
    assert said[-1] == "autospace: error: 1 of 2 not measured; what each said stands above"
    refusal = "model 'model.onnx': node 'x': there is no operation Odd. [runtime openvino]"
    assert said[-2] == f"not measured: {refusal}"
    found = json.loads(captured.out)
    assert [row["runtime"] for row in found["models"]] == ["onnxruntime"]
    assert [row["reason"] for row in found["refused"]] == [refusal]
    assert json.loads((folder / "benchmark.json").read_text()) == found


@pytest.mark.parametrize(("name", "kind"), [("net.tflite", "litert"), ("net.pte", "executorch")])
def test_files_that_are_made_for_a_runtime(bad: Run, folder: Path, name: str, kind: str) -> None:
    (folder / name).write_bytes(b"anything")
    outcome = bad("benchmark", name, "--runtime", kind)
    assert outcome.code == USAGE
    assert f"{name}: is made for {kind}; give the ONNX model" in outcome.line


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("search", *QUICK, "--space"), "arch.json"),
        (("search", *QUICK, "--space"), "card"),
        (("train", "--arch"), "space.json"),
        (("export", "--onnx"), "space.json"),
        (("export", "--onnx"), "model.onnx"),
        (("predict", "model.onnx", "--device"), "space.json"),
        (("predict", "--device", "card"), "arch.json"),
        (("run",), "space.json"),
        (("report",), "card"),
    ],
)
def test_files_of_another_kind(bad: Run, command: Sequence[str], name: str) -> None:
    outcome = bad(*command, name)
    assert outcome.code == FAILED
    assert outcome.line.startswith(f"autospace: error: {name}: ")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"schema_version": 1', '"schema_version": 2', "schema version 2; this version"),
        ('"kernel_reading": "kernel"', '"kernel_reading": "x"', "must be dilated or kernel"),
        ('"resolution": 16', '"resolution": 1', "resolution is 1; must be 4 to 4096"),
        ('"resolution": 16', '"resolution": "x"', "wrong type"),
        ('"resolution": 16', '"resolution": NaN', "not valid JSON"),
        ('"stem_width"', '"stem_with"', "unknown field 'stem_with'"),
    ],
)
@pytest.mark.parametrize(
    ("name", "command"),
    [("space.json", ("search", *QUICK, "--space")), ("arch.json", ("train", "--arch"))],
)
def test_fields(
    folder: Path, bad: Run, name: str, command: Sequence[str], old: str, new: str, why: str
) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    outcome = bad(*command, name)
    assert outcome.code == FAILED
    assert f"{name}: " in outcome.line
    assert why in outcome.line


@pytest.mark.parametrize(
    ("row", "column", "value", "why"),
    [
        (0, 1, 5, "not acyclic"),
        (2, 3, 2, "not acyclic"),
        (1, 1, 5, "not acyclic"),
        (1, 0, 4, "unknown operation 4 on edge 0→1; known: 1, 2, 3, 5, 7, 9"),
        (2, 1, 1, "the chain 0→1→2→3 is broken"),
        (0, 3, 7, "expansion index 7"),
    ],
)
@pytest.mark.parametrize("kind", ["space", "arch"])
def test_cells(
    folder: Path, bad: Run, kind: str, row: int, column: int, value: int, why: str
) -> None:
    import json

    path = folder / f"{kind}.json"
    document = json.loads(path.read_text())
    matrix = REFERENCE_CELLS[0].matrix()
    matrix[row][column] = value
    if kind == "space":
        document["layers"][1][0] = matrix
    else:
        document["blocks"][2] = {"cell": matrix}
    path.write_text(json.dumps(document))
    commands: list[tuple[str, ...]] = [("inspect", path.name)]
    if kind == "space":
        commands.append(("search", *QUICK, "--space", path.name))
    else:
        commands += [("train", "--arch", path.name), ("export", path.name, "--onnx")]
    for command in commands:
        outcome = bad(*command)
        assert outcome.code == FAILED
        assert why in outcome.line
        assert ("layer 1, cell 0" if kind == "space" else "block 2") in outcome.line


# -- outputs ---------------------------------------------------------------------------------------

OUTPUTS = {
    "nowhere/file": "the folder 'nowhere' does not exist; create it first",
    "folder": "is a folder; name a file to write",
    "empty/file": "does not exist",
    "/proc/autospace-file": "cannot be written",
}
WRITERS = {
    "profile-device": ("profile-device", "--runtime", "simulated", "--rounds", "1", "-o"),
    "evolve": (*EVOLVE, *QUICK, "-o"),
    "search": (*SEARCH, *QUICK, "-o"),
    "train": ("train", "--arch", "arch.json", "-o"),
    "export": ("export", "arch.json", "--onnx", "-o"),
    "benchmark": ("benchmark", "model.onnx", "--device", "card", "-o"),
    "inspect": ("inspect", "space.json", "--svg"),
}


@pytest.mark.parametrize(("output", "why"), OUTPUTS.items())
@pytest.mark.parametrize("command", WRITERS)
def test_outputs(bad: Run, command: str, output: str, why: str) -> None:
    outcome = bad(*WRITERS[command], output)
    assert outcome.code == USAGE
    assert output in outcome.line
    assert why in outcome.line


@pytest.mark.parametrize("output", ["empty", "card", "empty/run", "/proc/autospace-run"])
def test_run_folders(bad: Run, output: str) -> None:
    outcome = bad("run", "config.toml", "-o", output)
    assert outcome.code == USAGE
    assert f"{output}: cannot be made" in outcome.line


def test_a_run_folder_that_holds_something_else(folder: Path, bad: Run) -> None:
    (folder / "folder" / "thesis.txt").write_text("mine")
    (folder / "folder" / "run.lock").touch()
    outcome = bad("run", "config.toml", "-o", "folder")
    assert outcome.code == USAGE
    assert "holds other files ('thesis.txt') and no run" in outcome.line


# -- data ------------------------------------------------------------------------------------------

LEARNERS = {
    "evolve": (*EVOLVE, *QUICK),
    "search": (*SEARCH, *QUICK),
    "train": ("train", "--arch", "arch.json"),
}


@pytest.mark.parametrize("command", LEARNERS)
def test_data(folder: Path, bad: Run, command: str) -> None:
    start = LEARNERS[command]
    outcome = bad(*start, "--data", "digit")
    assert (outcome.code, "did you mean 'digits'?" in outcome.line) == (USAGE, True)
    outcome = bad(*start, "--data", "xyz")
    assert (outcome.code, "known: digits, fashion-mnist" in outcome.line) == (USAGE, True)
    outcome = bad(*start, "--data", "folder")
    assert (outcome.code, "--data-root FOLDER" in outcome.line) == (USAGE, True)
    outcome = bad(*start, "--data", "cifar10")
    assert (outcome.code, "--data-root FOLDER" in outcome.line) == (USAGE, True)
    (folder / "folder" / "cat").mkdir()
    (folder / "folder" / "dog").mkdir()
    outcome = bad(*start, "--data", "folder", "--data-root", "folder")
    assert (outcome.code, "no images in it" in outcome.line) == (FAILED, True)
    for name in ("cat", "dog"):
        for index in range(12):
            (folder / "folder" / name / f"{index}.png").write_bytes(b"no image")
    outcome = bad(*start, "--data", "folder", "--data-root", "folder")
    assert (outcome.code, "not a readable image" in outcome.line) == (FAILED, True)


def images_of_one_class(folder: Path, kind: str) -> tuple[str, ...]:
    """Options that name data in which every image has the same class."""
    from datafiles import write_idx
    from PIL import Image

    if kind == "idx":
        for part, count in (("train", 40), ("t10k", 10)):
            write_idx(folder / f"{part}-images-idx3-ubyte", np.zeros((count, 28, 28)))
            write_idx(folder / f"{part}-labels-idx1-ubyte", np.full(count, 3))
        return ("--data", "fashion-mnist", "--data-root", ".")
    names = ["cat"] if kind == "one folder" else ["cat", "dog"]
    for name in names:
        (folder / "folder" / name).mkdir()
    for index in range(24):
        Image.new("RGB", (12, 12), (index, 0, 0)).save(folder / "folder" / "cat" / f"{index}.png")
    return ("--data", "folder", "--data-root", "folder")


@pytest.mark.parametrize("kind", ["one folder", "an empty folder beside it", "idx"])
@pytest.mark.parametrize("command", LEARNERS)
def test_data_of_one_class(folder: Path, bad: Run, command: str, kind: str) -> None:
    outcome = bad(*LEARNERS[command], *images_of_one_class(folder, kind))
    assert outcome.code == FAILED
    assert "1 class in the training data; needs at least 2 with images" in outcome.line


# -- losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--pareto", "2")])
def test_a_search_whose_loss_is_no_number(bad: Run, more: Sequence[str]) -> None:
    rate = ("--steps", "20", "--warmup", "5", "--option", "learning_rate=1e30")
    outcome = bad(*SEARCH, *QUICK, *rate, *more)
    assert outcome.code == FAILED
    assert re.search(r"search, weight step [23]: the loss is (nan|inf); lower the", outcome.line)
    assert "learning rate (nothing was saved yet)" in outcome.line


def test_a_loss_that_is_no_number_leaves_the_last_good_state(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off by bad images and run again with good ones: as if nothing had been."""
    from autospace import proxyless
    from autospace.checkpoint import load_checkpoint
    from autospace.data import Data
    from autospace.events import SaveClock

    command = [*SEARCH, *QUICK, "--steps", "9", "--warmup", "3", "--batch-size", "8"]
    with pytest.raises(SystemExit) as end:
        main([*command, "-o", "whole.json"])
    assert not end.value.code
    capsys.readouterr()
    plain = Data.training_batch

    def poisoned(self, split, batch, step, seed, **more):
        images, labels = plain(self, split, batch, step, seed, **more)
        return (images * float("nan") if split is self.train and step == 6 else images), labels

    with monkeypatch.context() as patched:
        patched.setattr(proxyless, "SaveClock", lambda: SaveClock(every_s=0.0))
        patched.setattr(Data, "training_batch", poisoned)
        with pytest.raises(SystemExit) as end:
            main(command)
    assert end.value.code == FAILED
    line = one_line(
        "\n".join(one for one in capsys.readouterr().err.splitlines() if "searching" not in one)
    )
    assert "search, weight step 7: the loss is nan" in line
    assert "the state of step 5 is kept" in line
    saved = load_checkpoint(folder / "architecture.json.state", "autospace.search", "a state")
    assert saved.meta["step"] == 5
    assert all(bool(value.isfinite().all()) for value in saved.part("net").values())
    with pytest.raises(SystemExit) as end:
        main(command)
    assert not end.value.code
    assert (folder / "architecture.json").read_bytes() == (folder / "whole.json").read_bytes()


# -- processes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", ["0", "1"])
def test_commands_that_cannot_work_in_several_processes(
    bad: Run, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    outcome = bad("train", "--arch", "arch.json")
    assert outcome.code == USAGE
    assert "train: cannot run in several processes, only evolve, search can;" in outcome.line


# -- tables ----------------------------------------------------------------------------------------


def test_a_card_that_lacks_what_the_space_needs(folder: Path, bad: Run) -> None:
    from latency import profile_device

    profile_device(folder / "short.card", runtime="simulated", rounds=2, probes=3)
    outcome = bad(*SEARCH, "--latency", "80%", "--device", "short.card", "--no-measure")
    assert outcome.code == FAILED
    for words in ("short.card: never measured", "Gemm", "(in block 0: ", "--update --space"):
        assert words in outcome.line


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("evolv",), USAGE, "No such command 'evolv'; did you mean 'evolve'?"),
        (("zzz",), USAGE, "No such command 'zzz'; see 'autospace --help'"),
        (("--jsn",), USAGE, "see 'autospace --help'"),
        (("evolve", "--bugdet", "3M"), USAGE, "Did you mean '--budget'?"),
        (("search",), USAGE, "Missing option '--space'; see 'autospace search --help'"),
        (("train",), USAGE, "Missing option '--arch'"),
        (("predict",), USAGE, "Missing argument 'MODEL.onnx...'"),
        (("predict", "model.onnx"), USAGE, "Missing option '--device'"),
        (("benchmark",), USAGE, "Missing argument"),
        (("inspect",), USAGE, "Missing argument 'FILE'"),
        (("report",), USAGE, "Missing argument 'RUN'"),
        (("run",), USAGE, "Missing argument 'CONFIG.toml'"),
        (("devices", "extra"), USAGE, "unexpected extra argument"),
        (("evolve", *QUICK, "--skeleton", "tinny"), USAGE, "did you mean 'tiny'?"),
        (("evolve", *QUICK, "--skeleton", "zzz"), USAGE, "known: mobile, small, tiny"),
        (
            ("profile-device", "--runtime", "onnxruntim"),
            USAGE,
            "did you mean onnxruntime or onnxruntime-cuda?",
        ),
        (("profile-device", "--runtime", "zzz"), USAGE, "choose one of onnxruntime, openvino"),
        (("profile-device", "--precision", "fp61", "--runtime", "simulated"), USAGE, "fp61"),
        (("profile-device", "--host", "ssh:phone"), UNAVAILABLE, "use 'local'"),
        (("profile-device", "--minutes", "0"), USAGE, "see 'autospace profile-device --help'"),
        (("profile-device", "--threads", "0"), USAGE, "not in the range"),
        ((*EVOLVE, *QUICK, "--resolution", "3"), USAGE, "not in the range"),
        ((*EVOLVE, *QUICK, "--seed", "-1"), USAGE, "not in the range"),
        ((*EVOLVE, *QUICK, "--generations", "0"), USAGE, "generations 0: at least 1"),
        ((*EVOLVE, *QUICK, "--generations", "x"), USAGE, "not a valid integer"),
        ((*EVOLVE, *QUICK, "--population", "3"), USAGE, "population 3: at least"),
        ((*EVOLVE, *QUICK, "--width-mult", "nan"), USAGE, "--width-mult nan"),
        ((*SEARCH, *QUICK, "--steps", "-4"), USAGE, "steps -4: at least 1"),
        ((*SEARCH, *QUICK, "--pareto", "1"), USAGE, "not in the range"),
        ((*SEARCH, "--budget", "1.06M", "--pareto", "4"), USAGE, "no room for 4 limits"),
        ((*SEARCH, *QUICK, "--option", "alpha_rate"), USAGE, "must be NAME=VALUE"),
        ((*SEARCH, *QUICK, "--option", "constraint=hard"), USAGE, "constraint"),
        ((*SEARCH, *QUICK, "--update-rule", "full"), USAGE, "is not one of 'two'"),
        ((*SEARCH, *QUICK, "--constraint", "soft"), USAGE, "is not one of 'lagrangian'"),
        (("train", "--arch", "arch.json", "--epochs", "0"), USAGE, "epochs 0: at least 1"),
        (("train", "--arch", "arch.json", "--learning-rate", "nan"), USAGE, "learning_rate nan"),
        (
            ("train", "--arch", "arch.json", "--learning-rate", "inf"),
            USAGE,
            "learning_rate inf: above 0",
        ),
        (("train", "--arch", "arch.json", "--learning-rate", "inf"), USAGE, "learning_rate inf"),
        (("train", "--arch", "arch.json", "--accelerator", "cuda"), UNAVAILABLE, "cpu"),
        (("train", "--arch", "arch.json", "--accelerator", "tpu"), USAGE, "is not one of"),
        (("export", "arch.json"), USAGE, "no format; give --onnx"),
        (("export", "--onnx"), USAGE, "no run in "),
        (("export", "arch.json", "--tensorrt"), UNAVAILABLE, "tensorrt"),
        (("export", "arch.json", "--onnx", "--precision", "int4"), USAGE, "fp32"),
        (("export", "arch.json", "--onnx", "--data", "zzz"), USAGE, "zzz"),
        (("export", "arch.json", "--onnx", "--batch", "0"), USAGE, "not in the range"),
        (("benchmark", "model.onnx", "--device", "card", "--visits", "1"), USAGE, "not in the"),
        (("benchmark", "model.onnx"), USAGE, "either --device CARD or --runtime NAME"),
        (
            ("benchmark", "model.onnx", "--device", "card", "--runtime", "simulated"),
            USAGE,
            "either --device CARD or --runtime NAME",
        ),
        (("benchmark", "model.onnx", "--device", "card", "--batch", "2"), USAGE, "are the card's"),
        (("benchmark", "model.onnx", "--runtime", "zzz"), USAGE, "choose one of onnxruntime"),
        (("benchmark", "model.onnx", "--runtime", "tensorrt"), UNAVAILABLE, "tensorrt"),
        (("inspect", "space.json", "--csv", "--json"), USAGE, "choose one"),
        (("inspect", "card", "--svg", "out.svg"), USAGE, "holds no space and no network"),
    ],
)
def test_names_and_numbers(bad: Run, arguments: Sequence[str], code: int, why: str) -> None:
    outcome = bad(*arguments)
    assert why in outcome.line
    assert outcome.code == code


@pytest.mark.parametrize(
    ("text", "code", "why"),
    [
        ('[target]\nskelton = "tiny"', FAILED, "[target] skelton: unknown; did you mean 'skel"),
        ("[targt]", FAILED, "targt: unknown; did you mean 'target'?"),
        ("[target]\nbudget = 3", FAILED, 'write budget = "3"'),
        ("[target]", USAGE, "no limit"),
        ('[target]\nbudget = "500X"', USAGE, "unknown unit 'X'"),
        ('[target]\nbudget = "1k"\nskeleton = "tiny"', USAGE, "smallest network of the tiny"),
        ('[target]\nbudget = "2M"\n[data]\nname = "digit"', USAGE, "did you mean 'digits'?"),
        ('[target]\nbudget = "2M"\n[data]\nname = "folder"', USAGE, "--data-root FOLDER"),
        (
            '[target]\nbudget = "2M"\n[data]\nname = "folder"\nroot = "folder"',
            FAILED,
            "no images in it",
        ),
        ('[target]\nbudget = "2M"\n[device]\nruntime = "onnx"', USAGE, "unknown"),
        ('[target]\nbudget = "2M"\n[device]\ncard = "missing"', FAILED, "missing: no such file"),
        ('[target]\nbudget = "2M"\n[device]\ncard = "noise"', FAILED, "not a device card"),
        ('[target]\nbudget = "2M"\n[device]\nruntime = "tensorrt"', UNAVAILABLE, "tensorrt"),
        ('[target]\nbudget = "2M"\n[search]\nupdate_rule = "full"', FAILED, "update_rule = 'full'"),
        ('[target]\nbudget = "2M"\nwidth_mult = nan', FAILED, "must be a finite number"),
        ('seed = -1\n[target]\nbudget = "2M"', USAGE, "seed -1: must be 0 to"),
    ],
)
def test_configurations(folder: Path, bad: Run, text: str, code: int, why: str) -> None:
    (folder / "config.toml").write_text(text)
    outcome = bad("run", "config.toml", "-o", "out")
    assert why in outcome.line
    assert outcome.code == code


def test_no_command_shows_the_help_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    captured = capsys.readouterr()
    assert end.value.code == USAGE
    assert one_line(captured.err) == "autospace: usage: no command; name one of those above"
    assert "evolve" in captured.out


def test_json_output_of_a_failure_is_empty(bad: Run) -> None:
    assert bad("inspect", "noise", "--json").code == FAILED


# -- as a process ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("evolve", "--budget", "500X"), USAGE, "unknown unit 'X'"),
        (("inspect", "noise"), FAILED, "noise: none of autospace's files"),
        (("profile-device", "--host", "adb:phone"), UNAVAILABLE, "use 'local'"),
        (("search", "--space", "cut-space.json", "--budget", "2M"), FAILED, "not valid JSON"),
    ],
)
def test_as_a_process(folder: Path, arguments: Sequence[str], code: int, why: str) -> None:
    before = _listing(folder)
    done = subprocess.run(
        [sys.executable, "-c", "from autospace.cli import main; main()", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert why in one_line(done.stderr)
    assert done.stdout == ""
    assert _listing(folder) == before
