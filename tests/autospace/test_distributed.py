"""Two processes compute what one computes: batch norm by itself, and searches under torchrun."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from autospace import distributed
from autospace.cost import SMALLEST_CELL
from autospace.distributed import ALONE, Ranks, SharedNorm, join, share_norms
from autospace.genotype import REFERENCE_CELLS
from autospace.skeleton import SKELETONS
from autospace.space import Architecture, SearchSpace
from devices.errors import UsageError

SCRIPT = Path(__file__).with_name("distributed_search.py")
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


@pytest.mark.parametrize(
    ("rule", "batch", "stops"), [("two", 24, (11, 20)), ("full_v2", 17, (20,))]
)
def test_two_processes_end_with_the_weights_of_one(
    tmp_path: Path, rule: str, batch: int, stops: tuple[int, ...]
) -> None:
    """Twenty steps in float64, broken off and gone on with; a batch that two do not divide."""
    for processes in (1, 2):
        name = str(tmp_path / f"{processes}")
        for stop in stops if processes > 1 else (20,):
            code, _, said = launch(
                str(SCRIPT), rule, str(batch), name, str(stop), processes=processes
            )
            assert code == 0, said
    one = load_file(tmp_path / "1-0")
    for rank in (0, 1):
        two = load_file(tmp_path / f"2-{rank}")
        assert two.keys() == one.keys()
        for name, value in one.items():
            assert torch.allclose(two[name], value, rtol=0, atol=1e-8), name
    # It is not that nothing was learned.
    assert one["alpha"][one["alpha"].isfinite()].abs().max() > 0.01


def test_under_torchrun_one_process_of_the_command_speaks_and_writes(tmp_path: Path) -> None:
    SearchSpace(SKELETONS["tiny"], ((*REFERENCE_CELLS, SMALLEST_CELL),) * 3).save(
        tmp_path / "space.json"
    )
    command = (
        "-m", "autospace", "search", "--space", "space.json", "--budget", "2M", "--steps", "8",
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
