"""Two processes compute what one computes: batch norm by itself, evolve and search by torchrun."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from autospace import distributed
from autospace.checkpoint import load_checkpoint
from autospace.cost import SMALLEST_CELL
from autospace.distributed import ALONE, Ranks, SharedNorm, join, share_norms
from autospace.genotype import REFERENCE_CELLS
from autospace.skeleton import SKELETONS, Stage
from autospace.space import Architecture, SearchSpace
from devices.errors import UsageError

SCRIPT = Path(__file__).with_name("distributed_work.py")
ROOT = Path(__file__).parents[2]


def launch(*command: str, processes: int = 2, cwd: Path | None = None) -> tuple[int, str, str]:
    """A command under torchrun; its exit code and what it said."""
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", str(processes),
    ]  # fmt: skip
    start = torchrun if processes > 1 else [sys.executable]
    done = subprocess.run(
        [*start, *command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """All-reduces of one process: what every formula has to allow."""
    monkeypatch.setattr(distributed.distributed, "all_reduce", lambda tensor: None)


def test_shared_norm_is_batch_norm(pretended: None) -> None:
    norm = nn.BatchNorm2d(5, eps=1e-3, track_running_stats=False).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    shared = SharedNorm(norm)
    x = torch.randn(4, 5, 6, 6, dtype=torch.float64).requires_grad_()
    weight = torch.randn(4, 5, 6, 6, dtype=torch.float64)
    found = []
    for layer in (norm, shared):
        loss = (layer(x) * weight).sum()
        found.append((loss, *torch.autograd.grad(loss, [x, norm.weight, norm.bias])))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


def test_names_and_weights_stay_when_norms_are_shared() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.BatchNorm2d(2)))
    before = dict(net.named_parameters())
    share_norms(net)
    after = dict(net.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def test_shares_of_a_batch_are_all_of_it() -> None:
    images, labels = torch.arange(7.0).reshape(7, 1, 1, 1), torch.arange(7)
    parts = [Ranks(rank, 3).share(images, labels) for rank in range(3)]
    assert sorted(torch.cat([part[1] for part in parts]).tolist()) == list(range(7))
    assert sum(part[2] for part in parts) == pytest.approx(1)
    assert all(torch.equal(part[0].flatten().long(), part[1]) for part in parts)
    with pytest.raises(UsageError, match="a batch of 7 images for 8 processes"):
        Ranks(0, 8).share(images, labels)


def test_alone_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join() is ALONE
    value = torch.ones(3)
    ALONE.sum([value])
    assert torch.equal(value, torch.ones(3)) and ALONE.total(value.sum()) == 3
    ALONE.wait()
    ALONE.leave()


# -- real processes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and two came to: twenty steps in float64, the two broken off in between.

    The batches of the search by ``full_v2`` and of the evolution do not divide by two.
    """
    folder = tmp_path_factory.mktemp("work")
    for processes in (1, 2):
        code, _, said = launch(str(SCRIPT), str(folder), processes=processes)
        assert code == 0, said
    return folder


@pytest.mark.parametrize("rule", ["two", "full_v2"])
def test_two_processes_end_with_the_weights_of_one(work: Path, rule: str) -> None:
    one = load_file(work / f"{rule}-1-0")
    for rank in (0, 1):
        two = load_file(work / f"{rule}-2-{rank}")
        assert two.keys() == one.keys()
        for name, value in one.items():
            assert torch.allclose(two[name], value, rtol=0, atol=1e-8), name
    # It is not that nothing was learned.
    assert one["alpha"][one["alpha"].isfinite()].abs().max() > 0.01


def test_two_processes_evolve_the_space_of_one(work: Path) -> None:
    one, two = (
        load_checkpoint(work / f"evolve-{size}.state", "autospace.evolution", "a state")
        for size in (1, 2)
    )
    assert two.tensors.keys() == one.tensors.keys()
    for name, value in one.tensors.items():
        assert value.dtype == torch.float64
        assert torch.allclose(two.tensors[name], value, rtol=0, atol=1e-8), name
    assert (two.meta["generation"], two.meta["history"]) == (5, one.meta["history"])
    values: list[float] = []
    for ours, theirs in zip(one.meta["populations"], two.meta["populations"], strict=True):
        assert [cell for cell, _, _ in ours] == [cell for cell, _, _ in theirs]
        values += [value for _, value, _ in ours]
        assert [value for _, value, _ in theirs] == pytest.approx(
            [value for _, value, _ in ours], rel=0, abs=1e-8
        )
    assert max(map(abs, values)) > 0.01
    alone, first, second = (
        json.loads((work / f"evolve-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")
    )
    assert first == second
    assert first["cells"] == alone["cells"]  # after the exam, which is shared too
    for ours, theirs in zip(alone["fitness"], first["fitness"], strict=True):
        assert theirs == pytest.approx(ours, abs=3e-6)


def test_under_torchrun_one_process_of_the_command_speaks_and_writes(tmp_path: Path) -> None:
    stages = (Stage(8, 1, 2), Stage(8, 2, 2))
    skeleton = replace(SKELETONS["tiny"], stem_width=8, stages=stages, head_width=32)
    cells = (*REFERENCE_CELLS, SMALLEST_CELL)
    SearchSpace(skeleton, (cells,) * skeleton.num_layers).save(tmp_path / "space.json")
    command = (
        "-m", "autospace", "search", "--space", "space.json", "--budget", "0.3M", "--steps", "8",
        "--warmup", "2", "--batch-size", "8", "--proposals", "2", "--pareto", "2",
    )  # fmt: skip
    code, out, said = launch(*command, cwd=tmp_path)
    assert code == 0, said
    assert len(re.findall(r"^architecture-1\.json", out, re.M)) == 1  # the first one speaks
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "space.json", "architecture-1.json", "architecture-2.json", "pareto.json", "pareto.svg"
    }  # fmt: skip
    assert Architecture.load(tmp_path / "architecture-2.json").provenance["kept"]


def test_under_torchrun_the_first_process_writes_the_space(tmp_path: Path) -> None:
    command = (
        "-m", "autospace", "evolve", "--budget", "80%", "--skeleton", "tiny",
        "--width-mult", "0.25", "--generations", "2",
        "--warmup", "1", "--population", "8", "--steps", "1", "--batch-size", "8",
        "--option", "exam=1",
    )  # fmt: skip
    code, out, said = launch(*command, cwd=tmp_path)
    assert code == 0, said
    assert len(re.findall(r"^space\.json: 3 layers", out, re.M)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"space.json", "space.jsonl"}
    assert len((tmp_path / "space.jsonl").read_text().splitlines()) == 2
    assert len(SearchSpace.load(tmp_path / "space.json").layers) == 3
