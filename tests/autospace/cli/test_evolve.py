"""``autospace evolve``: its options, its log, its figures."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from autospace.cli import cli, main
from autospace.evolution_options import EvolutionOptions
from autospace.space import SearchSpace

QUICK = (
    "evolve", "--skeleton", "tiny", "--budget", "2.5M", "--generations", "3", "--warmup", "1",
    "--population", "8", "--steps", "1", "--batch-size", "16",
)  # fmt: skip


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_log_stands_beside_the_space(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*QUICK, "-o", "mine.json") == 0
    lines = [json.loads(line) for line in (folder / "mine.jsonl").read_text().splitlines()]
    assert [line["generation"] for line in lines] == [1, 2, 3]
    assert {path.name for path in folder.iterdir()} == {"mine.json", "mine.jsonl"}
    assert "log: mine.jsonl" in capsys.readouterr().out


def test_the_command_and_the_function_have_the_same_defaults() -> None:
    options = EvolutionOptions()
    given = {one.name: one.default for one in cli.get_command(None, "evolve").params}
    assert given.pop("batch_size") == options.batch
    del given["batch"]  # the target's
    for name, default in given.items():
        assert default == getattr(options, name, default), name


def test_every_open_choice_can_be_set(folder: Path) -> None:
    settings = (
        "--option",
        "momentum=0",
        "--option",
        "fitness=random",
        "--option",
        "population = 9",
    )
    assert run(*QUICK, *settings, "--option", "constraint=false", "--log", "log") == 0
    options = SearchSpace.load(folder / "space.json").provenance["options"]
    assert (options["momentum"], options["constraint"]) == (0.0, False)
    assert (options["fitness"], options["population"], options["generations"]) == ("random", 9, 3)
    assert (folder / "log").exists() and not (folder / "space.jsonl").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("momentum", "must be NAME=VALUE"),
        ("=3", "must be NAME=VALUE"),
        ("momentun=0.5", "did you mean 'momentum'?"),
        ("kept=two", "kept = 'two'"),
        ("momentum=nan", "finite"),
        ("momentum=1.5", "momentum 1.5: from 0 to below 1"),
        ("fitness=best", "fitness"),
        ("population=3", "population 3: at least the tournament"),
    ],
)
def test_bad_settings(
    folder: Path, capsys: pytest.CaptureFixture[str], setting: str, words: str
) -> None:
    assert run(*QUICK, "--option", setting) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line and not list(folder.iterdir())


def test_the_log_cannot_be_the_space(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*QUICK, "-o", "space.jsonl") == 2
    assert "space.jsonl" in capsys.readouterr().err and not list(folder.iterdir())


def test_on_a_terminal_the_figures_are_on_the_screen() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "autospace", *QUICK],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=environment,
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # what a terminal says when the other side has closed it
                break
            if not part:
                break
            seen += part
        os.close(ours)
        assert process.wait() == 0
    text = seen.decode()
    for words in ("evolving", "best fitness", "layers led by references", "distinct cells"):
        assert words in text
    assert "expected multiply-adds" in text and "of 1.5 × 2.5M" in text and "bits" in text
