"""The benchmark of the search's step: it counts what is allocated, and its figures add up."""

import json
from pathlib import Path

import pytest
import torch

from autospace.proxyless import SearchRun
from benchmarks.search_step import cells, compute, goals, main, step_peak


def test_cells_differ_and_more_of_them_begin_alike() -> None:
    assert len({cell.canonical() for cell in cells(27)}) == 27
    assert cells(27)[:9] == cells(9)


def test_the_peak_is_the_most_that_was_held_at_once() -> None:
    mib = 2**18  # in float32

    def step() -> torch.Tensor:
        first = torch.ones(4 * mib)
        second = first * 2  # 8 MiB at once
        del first
        return second[:1] + torch.ones(2 * mib).sum()  # 6 MiB

    assert step_peak(step) == pytest.approx(8 * 2**20, rel=0.01)


def test_ratios_are_the_worst_path_s_memory_and_the_median_time() -> None:
    memory = {
        "parameters": 2**20,
        "optimizer": 2**21,
        "peaks": {"weights": [10, 24], "two": [9, 9], "full_v2": [12, 12]},
        "alone": {"weights": [10, 20], "two": [9, 10], "full_v2": [10, 10]},
        "trained_alone": [18, 18],
    }
    times = {
        "weights": [1.0, 2.2, 9.0],
        "beside_weights": [1.0, 2.0, 3.0],
        "two": [1.0, 1.0, 1.0],
        "full_v2": [4.0, 4.0, 4.0],
        "beside_alpha": [1.0, 0.5, 2.0],
    }
    found = compute(memory, times)
    assert found["weights_memory"] == pytest.approx(1.2)
    assert found["two_memory"] == pytest.approx(1.0)
    assert found["two_memory_of_training"] == pytest.approx(0.5)
    assert found["weights_time"] == pytest.approx(1.1)
    assert found["two_time"] == pytest.approx(1.0)
    assert found["amortised_time"] == pytest.approx(1.3)
    verdicts = {goal["figure"]: goal["met"] for goal in goals({"9": found})}
    assert verdicts.pop("weights_memory") is False
    assert all(verdicts.values())
    assert goals({"3": found}) == []


def test_from_beginning_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.json"
    assert main(["--quick", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert set(result["candidates"]) == {"1", "9"}
    for own in result["candidates"].values():
        assert own["weights_memory"] == pytest.approx(1.0, abs=0.05)
        assert own["two_memory_of_training"] < 1
        assert own["training_step_s"] > 0
    one, nine = (result["candidates"][count] for count in ("1", "9"))
    assert nine["parameters_mib"] > one["parameters_mib"] == one["optimizer_mib"]
    text = capsys.readouterr().out
    assert "| 9 |" in text and "goals with 9 candidates" in text
    assert text.count("met: ") + text.count("MISS: ") == len(result["goals"]) == 5


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--rounds", "0"), "--rounds 0: must be at least 1"),
        (("--paths", "-1"), "--paths -1: must be at least 1"),
        (("--batch", "1"), "--batch 1: must be at least 2"),
        (("--candidates", "3", "0"), "--candidates 0: must be 1 to 200"),
        (("--data", "nothing"), "--data 'nothing': unknown"),
        (("--output", "/nowhere/at/all"), "does not exist"),
    ],
)
def test_bad_arguments_end_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], why: str
) -> None:
    assert main([*arguments, *(() if "--output" in arguments else ("--output", "x"))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("search_step: error: ") and why in line


def test_ctrl_c_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: SearchRun) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(SearchRun, "weight_step", interrupted)
    assert main(["--quick", "--output", str(tmp_path / "out.json")]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert "interrupted; nothing was written" in line and not list(tmp_path.iterdir())
