"""PyTorch as a runtime, on networks of the space; of the GPU part only what needs none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autospace.mutation import random_cell
from autospace.network import build_network
from autospace.onnx_export import build_onnx, folded_weights
from autospace.seeding import Seed
from autospace.skeleton import Skeleton, Stage
from autospace.space import Architecture
from devices.errors import InvalidInputError, UnavailableError
from devices.gpu import gpu_state
from devices.onnx_files import random_inputs
from devices.runtimes import CompiledGraph, RuntimeSettings, get_runtime

SETTINGS = RuntimeSettings()
SKELETON = Skeleton(
    name="test", resolution=16, in_channels=3, num_classes=5, stem_width=8, stem_stride=2,
    first_width=8, stages=(Stage(16, 2, 2),), head_width=32,
)  # fmt: skip


def network_of_the_space(seed: int) -> bytes:
    random = Seed(seed).generator("cells")
    architecture = Architecture(SKELETON, tuple(random_cell(random).fused() for _ in range(2)))
    network = build_network(architecture, seed).eval()
    return build_onnx(architecture.nodes, folded_weights(network)).SerializeToString()


@pytest.mark.parametrize("seed", range(3))
def test_outputs_are_those_of_onnx_runtime(seed: int) -> None:
    data = network_of_the_space(seed)
    answers = []
    for name in ("torch", "onnxruntime"):
        engine = get_runtime(name)
        graph = engine.compile(data, SETTINGS)
        with engine.load(graph, SETTINGS) as loaded:
            (answer,) = loaded.infer(random_inputs(graph.inputs, seed=seed))
        answers.append(answer)
    assert np.abs(answers[0] - answers[1]).max() < 1e-3 * np.abs(answers[1]).max()


@pytest.fixture(scope="module")
def compiled() -> CompiledGraph:
    return get_runtime("torch").compile(network_of_the_space(0), SETTINGS)


def test_runs_are_timed_and_the_process_s_threads_come_back(compiled: CompiledGraph) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with get_runtime("torch").load(compiled, SETTINGS) as loaded:
            times = loaded.run(4)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert len(times) == 4 and min(times) > 0


def test_it_tells_no_times_of_operations(compiled: CompiledGraph) -> None:
    assert compiled.executed is None
    assert not get_runtime("torch").status().per_op_times
    with (
        get_runtime("torch").load(compiled, SETTINGS) as loaded,
        pytest.raises(UnavailableError, match="no times of single operations"),
    ):
        loaded.profile(1)


def test_wrong_inputs_and_a_closed_model(compiled: CompiledGraph) -> None:
    loaded = get_runtime("torch").load(compiled, SETTINGS)
    with pytest.raises(InvalidInputError, match="give float32"):
        loaded.infer({"other": np.zeros(3, np.float32)})
    loaded.close()
    with pytest.raises(UnavailableError, match="closed"):
        loaded.run(1)


@pytest.mark.needs_hardware  # or rather its absence
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_gpu_s_runtime_says_why() -> None:
    runtime = get_runtime("torch-cuda")
    status = runtime.status()
    assert not status.usable and "NVIDIA" in (status.reason or "")
    with pytest.raises(UnavailableError, match="NVIDIA"):
        runtime.compile(network_of_the_space(0), SETTINGS)
    assert gpu_state() is None


@pytest.mark.needs_hardware
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    runtime = get_runtime("torch-cuda")
    graph = runtime.compile(network_of_the_space(0), SETTINGS)
    with runtime.load(graph, SETTINGS) as loaded:
        times = loaded.run(5)
        (answer,) = loaded.infer(random_inputs(graph.inputs))
    assert min(times) > 0 and np.isfinite(answer).all()
