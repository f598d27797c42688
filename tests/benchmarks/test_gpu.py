"""The one command for a GPU machine: what goes wrong in a step stays there; a rehearsal's steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autospace import network
from autospace.graph import Node
from benchmarks.gpu import TOTAL_S, _figures, main, run_steps
from benchmarks.gpu_steps import STEPS, Plan, gradients, machine, outputs, training
from devices.errors import InvalidInputError, UnavailableError, UsageError
from devices.runtimes import get_runtime
from tests.benchmarks import gpu_troubled

PLAN = Plan(runtime="torch", skeleton="tiny", batch=8)


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gpu")
    return folder, run_steps(folder / "gpu.json", folder / "steps", PLAN, gpu_troubled.STEPS)


def test_a_step_that_goes_wrong_leaves_its_line_and_the_others_go_on(
    troubled: tuple[Path, dict[str, Any]],
) -> None:
    folder, result = troubled
    found = {name: (entry["state"], entry.get("error")) for name, entry in result["steps"].items()}
    assert found["refused"] == ("failed", "model: not good; take another.")
    assert found["absent"][0] == "not available" and "pip install x" in str(found["absent"][1])
    assert found["broken"] == ("failed", "ZeroDivisionError: two lines")
    assert found["crashes"][0] == "failed" and "signal 11" in str(found["crashes"][1])
    assert found["hangs"][0] == "failed" and "did not finish within" in str(found["hangs"][1])
    assert found["fine"] == ("done", None)
    assert result["steps"]["fine"]["result"] == {"runtime": "torch"}
    assert json.loads((folder / "gpu.json").read_text()) == result
    assert result["rehearsal"] is True


def test_the_same_command_goes_on_with_what_is_not_done(
    troubled: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = troubled
    (folder / "steps" / "better").touch()
    steps = [
        replace(step, seconds=60) for step in gpu_troubled.STEPS if step.name in ("hangs", "fine")
    ]
    result = run_steps(folder / "gpu.json", folder / "steps", PLAN, steps)
    assert result["steps"]["hangs"]["state"] == "done"
    assert (folder / "steps" / "count").read_text() == "x"  # not done twice
    with pytest.raises(UsageError, match="of another plan"):
        run_steps(folder / "gpu.json", folder / "steps", Plan(), steps)


def test_when_time_is_over_the_rest_says_so(tmp_path: Path) -> None:
    steps = gpu_troubled.STEPS[-1:]
    result = run_steps(tmp_path / "gpu.json", tmp_path, PLAN, steps, total_s=1)
    assert result["steps"]["fine"] == {"state": "failed", "error": "no time was left for it"}


def test_limits_of_the_steps_that_need_nothing_but_pytorch_fit_into_the_whole() -> None:
    assert sum(step.seconds for step in STEPS[:7]) < TOTAL_S
    assert [step.name for step in STEPS][:4] == ["machine", "outputs", "card", "accuracy"]


def test_the_machine_outputs_and_mixed_precision_on_the_processor(tmp_path: Path) -> None:
    here = machine(tmp_path, PLAN)
    assert {"torch-cuda", "tensorrt"} <= {row["name"] for row in here["runtimes"]}
    assert here["device"] and json.dumps(here)
    assert outputs(tmp_path, PLAN)["precisions"]["fp32"]["difference"] < 1e-3
    found = training(tmp_path, PLAN)
    losses = found["fp32"]["losses"], found["mixed"]["losses"]
    assert found["half"] == "bfloat16" and len(losses[0]) == len(losses[1]) == 8
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.05)
    assert losses[0] != losses[1]  # it is another arithmetic
    assert losses[0][-1] < losses[0][0] and losses[1][-1] < losses[1][0]


def test_gradients_agree_with_those_in_64_bits_and_wrong_ones_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gradients(tmp_path, PLAN)
    assert 1e-9 < found["largest"] < 0.05 and len(found["errors"]) == 6

    def pooled(x: torch.Tensor, node: Node) -> torch.Tensor:
        """The right value in both, in 32 bits with a gradient of nothing."""
        right = pool(x, node)
        return right if x.dtype == torch.float64 else right + (right.detach() - right)

    pool = network._average_pool
    monkeypatch.setattr(network, "_average_pool", pooled)
    with pytest.raises(InvalidInputError, match=r"gradients of network-.. on cpu are .*% off"):
        gradients(tmp_path, PLAN)


def test_a_rehearsal_tells_its_speed_and_compares_it_with_nothing() -> None:
    own = {"generation_s": 0.5}
    assert _figures("learning", {"cpu": own}) == "0.50 s a generation"
    both = {"cuda": own, "cpu": {"generation_s": 2.0}, "speedup": 4.0}
    assert _figures("learning", both).endswith(", 4.0 times as fast as the processor")


def test_a_runtime_that_is_not_there_is_not_a_failure_of_the_step(tmp_path: Path) -> None:
    step = next(step for step in STEPS if step.name == "onnxruntime-cuda")
    if not get_runtime(step.name).status().usable:
        with pytest.raises(UnavailableError, match="onnxruntime-cuda"):
            step.work(tmp_path, PLAN)


def test_without_a_gpu_it_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    if get_runtime("torch-cuda").status().usable:
        return
    assert main([]) == 4
    said = capsys.readouterr().err
    assert "NVIDIA" in said and said.count("\n") == 1
