"""Where networks learn. What needs a GPU is skipped without one, and says so."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autospace.accelerator import resolve_accelerator
from autospace.cost import SMALLEST_CELL, MaddsCost
from autospace.data import load_data
from autospace.evolution_options import EvolutionOptions
from autospace.genotype import REFERENCE_CELLS
from autospace.proxyless import search_space
from autospace.search_options import SearchOptions
from autospace.seeding import Seed
from autospace.skeleton import SKELETONS, Stage
from autospace.space import Architecture, SearchSpace
from autospace.steps import evolve, limits_of, search
from autospace.train_options import TrainOptions
from autospace.training import train_network
from benchmarks.gpu_steps import Plan, gradients
from devices.errors import UnavailableError

ROOT = Path(__file__).parents[2]
SKELETON = replace(
    SKELETONS["tiny"], stem_width=8, stages=(Stage(8, 1, 2), Stage(8, 2, 2)), head_width=32
)
SPACE = SearchSpace(SKELETON, ((*REFERENCE_CELLS, SMALLEST_CELL),) * SKELETON.num_layers)
ARCHITECTURE = Architecture(SKELETONS["tiny"], (REFERENCE_CELLS[2],) * 6)


def on_gpu(test):
    """Marks what only a GPU can show."""
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
    return pytest.mark.needs_hardware(skip(test))


@pytest.fixture(scope="module")
def data():
    return load_data("digits", resolution=16)


def test_batches_are_where_they_are_wanted(data):
    moved = replace(data, accelerator="meta")
    images, labels = moved.training_batch(moved.train, 4, 0, Seed(0))
    assert images.device.type == labels.device.type == "meta"
    assert images.shape == (4, data.channels, 16, 16)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert moved.description == data.description  # a state goes on wherever it learns


def test_the_processor_is_asked_for_by_name():
    assert resolve_accelerator("cpu") == "cpu"


@pytest.mark.needs_hardware  # or rather its absence
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_auto_is_the_processor_and_cuda_is_refused():
    assert resolve_accelerator("auto") == "cpu"
    with pytest.raises(UnavailableError, match="--accelerator cuda: PyTorch sees no NVIDIA GPU"):
        resolve_accelerator("cuda")
    with pytest.raises(UnavailableError, match=r'^\[data\] accelerator = "cuda": .*use \[data\] '):
        resolve_accelerator("cuda", '[data] accelerator = "{}"')


@pytest.mark.parametrize(("rank", "expected"), [("0", "cuda:0"), ("3", "cuda:1")])
def test_each_process_of_several_takes_a_gpu_of_its_own(monkeypatch, rank, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_accelerator("auto") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert resolve_accelerator("cuda") == expected


# -- on a GPU --------------------------------------------------------------------------------------


@on_gpu
def test_training_on_a_gpu_follows_training_on_the_processor(data, tmp_path):
    courses = {}
    for where in ("cpu", "cuda"):
        log = tmp_path / f"{where}.jsonl"
        trained = train_network(
            ARCHITECTURE, replace(data, accelerator=where),
            options=TrainOptions(epochs=3, batch=64), log=log,
        )  # fmt: skip
        assert {p.device.type for p in trained.network.parameters()} == {"cpu"}
        trained.save(tmp_path / f"{where}.safetensors")
        courses[where] = [json.loads(line)["train_loss"] for line in log.read_text().splitlines()]
        assert trained.accuracy > 0.6
    assert courses["cuda"] == pytest.approx(courses["cpu"], rel=0.05)


@on_gpu
def test_a_state_saved_on_the_processor_goes_on_on_a_gpu(data, tmp_path):
    options, state = TrainOptions(epochs=2, batch=128), tmp_path / "net.state"

    def stop(share, message):
        if share >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_network(ARCHITECTURE, data, options=options, state=state, progress=stop)
    saved = state.read_bytes()
    told = []
    for where in ("cuda", "cpu"):
        state.write_bytes(saved)
        train_network(
            ARCHITECTURE, replace(data, accelerator=where), options=options, state=state,
            progress=lambda share, message: told.append(share),
        )  # fmt: skip
        assert told.pop(0) > 0.5
        told.clear()


@on_gpu
def test_gradients_on_a_gpu_are_those_of_the_processor(tmp_path):
    """In 32 bits: in 64 bits they were right when those of pooling were not."""
    assert gradients(tmp_path, Plan())["largest"] < 0.1


@on_gpu
@pytest.mark.parametrize("rule", ["two", "full_v2"])
def test_a_search_takes_the_same_steps_in_double_precision(data, rule):
    class Doubled(type(data)):
        def training_batch(self, *arguments, **more):
            images, labels = super().training_batch(*arguments, **more)
            return images.double(), labels

    found = {}
    torch.set_default_dtype(torch.float64)
    try:
        for where in ("cpu", "cuda"):
            fields = {name: getattr(data, name) for name in data.__dataclass_fields__}
            given = Doubled(**{**fields, "accelerator": where})
            costs = {"madds": MaddsCost(SKELETON, "kernel")}
            limits = limits_of("70%", None, costs)
            options = SearchOptions(steps=20, warmup=4, batch=16, update_rule=rule)
            searched = search_space(SPACE, given, costs, limits, options=options, seed=Seed(3))
            found[where] = searched
    finally:
        torch.set_default_dtype(torch.float32)
    alphas = {where: one.alpha for where, one in found.items()}
    assert alphas["cuda"].device.type == "cpu"
    real = alphas["cpu"].isfinite()
    assert torch.allclose(alphas["cuda"][real], alphas["cpu"][real], rtol=0, atol=1e-7)
    for own, other in zip(
        found["cuda"].net.parameters(), found["cpu"].net.parameters(), strict=True
    ):
        assert own.device.type == "cuda"
        assert torch.allclose(own.cpu(), other, rtol=0, atol=1e-7)


@on_gpu
def test_a_space_is_evolved_and_searched_on_a_gpu(data, tmp_path):
    given = replace(data, accelerator="cuda")
    options = EvolutionOptions(generations=6, warmup=2, population=10, batch=32, exam=2)
    space = evolve(budget="80%", skeleton=SKELETONS["tiny"], data=given, options=options)
    assert space.provenance["cells_tried"] > 0
    found = search(
        space, budget="80%", data=given, options=SearchOptions(steps=20, warmup=5, batch=32),
        state=tmp_path / "search.state",
    )  # fmt: skip
    assert found.chosen.kept


def torchrun(processes, *command, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         "--nproc-per-node", str(processes), *command],
        cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


@on_gpu
def test_two_processes_share_a_gpu(tmp_path):
    SPACE.save(tmp_path / "space.json")
    done = torchrun(
        2, "-m", "autospace", "search", "--space", "space.json", "--budget", "0.3M", "--steps",
        "8", "--warmup", "2", "--batch-size", "8", "--proposals", "2", "--accelerator", "cuda",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Architecture.load(tmp_path / "architecture.json").provenance["kept"]


NCCL = """
import torch
from torch import distributed, nn
from autospace.distributed import Ranks, SharedNorm
distributed.init_process_group("cpu:gloo,cuda:nccl")
ranks = Ranks(0, 2)  # sums over the one there is
norm = nn.BatchNorm2d(4, track_running_stats=False).cuda()
x = torch.randn(8, 4, 5, 5, device="cuda", requires_grad=True)
(slope,) = torch.autograd.grad((SharedNorm(norm)(x) ** 3).sum(), x)
(expected,) = torch.autograd.grad((norm(x) ** 3).sum(), x)
assert torch.allclose(slope, expected, atol=1e-3), (slope - expected).abs().max()
for where in ("cuda", "cpu"):
    value = torch.ones(3, device=where)
    ranks.sum([value])
    assert value.tolist() == [1, 1, 1] and float(ranks.total(value.sum())) == 3
assert ranks.first_s([2.5]) == [2.5]
ranks.wait()
print("nccl", torch.cuda.nccl.version())
distributed.destroy_process_group()
"""


@on_gpu
def test_nccl_sums_what_is_on_a_gpu(tmp_path):
    script = tmp_path / "nccl.py"
    script.write_text(NCCL)
    done = torchrun(1, str(script))
    assert done.returncode == 0 and "nccl" in done.stdout, done.stderr
