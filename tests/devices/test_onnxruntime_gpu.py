"""ONNX Runtime's GPU providers: everything but the GPU, on real sessions and real profiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from devices.errors import InvalidInputError, UnavailableError
from devices.gpu import gpu_name
from devices.node_providers import CPU, NodeRun, check_providers, node_runs
from devices.onnx_files import random_inputs
from devices.runtimes import RuntimeSettings, RuntimeStatus, get_runtime
from devices.runtimes.onnxruntime_gpu import OnnxRuntimeCuda, ProviderModel, ProviderRuntime
from tests.devices.test_torch_compiled import small_network

SETTINGS = RuntimeSettings()
PROVIDERS = ("onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx")
CUDA = "CUDAExecutionProvider"


class OnTheCpu(ProviderRuntime):
    """The same code with the provider that is everywhere."""

    name: ClassVar[str] = "onnxruntime-cpu"
    provider: ClassVar[str] = CPU

    def status(self) -> RuntimeStatus:
        return RuntimeStatus(
            self.name, True, "1 on a CPU", None, None, ("fp32",), False, "onnx", sets_threads=False
        )


class AskedForCuda(OnTheCpu):
    """Believes that CUDA is there."""

    provider: ClassVar[str] = CUDA


def profile_of(model: bytes, folder: Path) -> list[dict[str, Any]]:
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=[CPU])
    value = session.get_inputs()[0]
    session.run(None, {value.name: np.ones([d or 1 for d in value.shape], np.float32)})
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_bytes())
    return events


def network_with_shapes() -> bytes:
    """y = reshape(relu(x), shape(x)): its shape is computed in the graph."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="shape"),
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Reshape", ["r", "s"], ["y"], name="reshape"),
    ]
    graph = helper.make_graph(
        nodes,
        "shapes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def test_compiling_and_running_with_the_provider_that_is_here() -> None:
    engine, data = OnTheCpu(), small_network()
    graph = engine.compile(data, SETTINGS)
    assert graph.executed is None and graph.outputs == ("y",)
    inputs = random_inputs(graph.inputs, seed=1)
    with engine.load(graph, SETTINGS) as loaded:
        times = loaded.run(4)
        (answer,) = loaded.infer(inputs)
        with pytest.raises(UnavailableError, match="times launching"):
            loaded.profile(1)
        with pytest.raises(InvalidInputError, match="refused"):
            loaded.infer({"x": np.zeros((1, 3, 5, 5), np.float32)})
    assert len(times) == 4 and min(times) > 0
    reference = onnxruntime.InferenceSession(data, providers=[CPU]).run(None, dict(inputs))[0]
    assert np.abs(answer - reference).max() < 1e-5 * np.abs(reference).max()
    with pytest.raises(UnavailableError, match="closed"):
        loaded.run(1)


no_cuda = pytest.mark.skipif(
    CUDA in onnxruntime.get_available_providers(), reason="this package has CUDA"
)


@pytest.mark.needs_hardware  # or rather its absence
@no_cuda
def test_a_provider_that_is_not_in_the_package_is_one_line() -> None:
    with pytest.raises(UnavailableError, match="would use the CPU instead; install it with: pip"):
        AskedForCuda().compile(small_network(), SETTINGS)


@pytest.mark.needs_hardware  # or rather its absence
@no_cuda
def test_a_session_that_fell_back_as_a_whole_is_refused() -> None:
    with pytest.warns(UserWarning, match=CUDA):
        session = onnxruntime.InferenceSession(small_network(), providers=[CUDA])
    assert session.get_providers() == [CPU]  # ONNX Runtime goes on
    with pytest.raises(UnavailableError, match=f"{CUDA} did not load"):
        AskedForCuda().checked(session)


def test_the_profile_says_which_provider_ran_each_node(tmp_path: Path) -> None:
    runs = node_runs(profile_of(network_with_shapes(), tmp_path))
    assert {run.node: run.op for run in runs} == {
        "shape": "Shape", "relu": "Relu", "reshape": "Reshape"
    }  # fmt: skip
    assert {run.provider for run in runs} == {CPU}
    assert {run.node for run in runs if run.computes_shapes} == {"shape"}
    check_providers(runs, CPU, "onnxruntime")
    with pytest.raises(UnavailableError, match=f"{CUDA} ran no node, {CPU} did"):
        check_providers(runs, CUDA, "onnxruntime-cuda")


def on_cuda(runs: tuple[NodeRun, ...], *nodes: str) -> list[NodeRun]:
    """A real profile in which some nodes ran on the GPU."""
    return [NodeRun(r.node, r.op, CUDA if r.node in nodes else r.provider, r.outputs) for r in runs]


def test_shapes_may_be_computed_on_the_cpu_and_nothing_else(tmp_path: Path) -> None:
    runs = node_runs(profile_of(network_with_shapes(), tmp_path))
    check_providers(on_cuda(runs, "relu", "reshape"), CUDA, "onnxruntime-cuda")
    with pytest.raises(InvalidInputError, match=rf"did not run 'reshape' \(Reshape, {CPU}\);"):
        check_providers(on_cuda(runs, "relu"), CUDA, "onnxruntime-cuda")


def test_another_gpu_s_provider_is_not_the_one_asked_for() -> None:
    runs = [
        NodeRun("a", "TRTKernel", "TensorrtExecutionProvider", ("float",)),
        NodeRun("s", "Shape", CUDA, ("int64",)),
    ]
    with pytest.raises(InvalidInputError, match=f"'s' \\(Shape, {CUDA}\\)"):
        check_providers(runs, "TensorrtExecutionProvider", "onnxruntime-tensorrt")
    many = [NodeRun(f"n{i}", "Relu", CPU, ("float",)) for i in range(5)]
    with pytest.raises(InvalidInputError, match="and 2 more"):
        check_providers([*runs[:1], *many], "TensorrtExecutionProvider", "onnxruntime-tensorrt")


@pytest.mark.parametrize("name", PROVIDERS)
def test_status_says_what_is_missing(name: str) -> None:
    engine = get_runtime(name)
    assert isinstance(engine, ProviderRuntime)
    status = engine.status()
    assert not status.per_op_times and status.precisions == ("fp32",)
    if engine.installed():
        assert status.usable or "NVIDIA" in (status.reason or "")
        return
    assert status.reason == "not installed" and "pip install" in (status.install or "")
    with pytest.raises(UnavailableError, match="not installed; install it with: pip") as caught:
        engine.compile(small_network(), SETTINGS)
    assert caught.value.exit_code == 4


def test_the_gpu_is_part_of_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a card of one GPU, and of one provider, is refused for another."""
    monkeypatch.setattr(OnnxRuntimeCuda, "installed", lambda self: True)
    monkeypatch.setattr("devices.runtimes.onnxruntime_gpu.gpu_name", lambda: "GPU A")
    status = OnnxRuntimeCuda().status()
    assert status.usable and status.version == f"{onnxruntime.__version__} on GPU A"
    monkeypatch.setattr("devices.runtimes.onnxruntime_gpu.gpu_name", lambda: None)
    assert OnnxRuntimeCuda().status().reason == "no NVIDIA GPU with its driver here"


def test_without_a_driver_there_is_no_gpu() -> None:
    assert gpu_name() is None or gpu_name()
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
        assert gpu_name() is None


@pytest.mark.needs_hardware
@pytest.mark.parametrize("name", PROVIDERS)
def test_on_a_gpu(name: str) -> None:
    engine = get_runtime(name)
    if not engine.status().usable:
        pytest.skip(f"{name} is not usable here")
    graph = engine.compile(small_network(), SETTINGS)
    with engine.load(graph, SETTINGS) as loaded:
        assert isinstance(loaded, ProviderModel)
        (answer,) = loaded.infer(random_inputs(graph.inputs))
        assert min(loaded.run(5)) > 0
    assert np.isfinite(answer).all()
