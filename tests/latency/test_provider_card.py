"""A card of one of ONNX Runtime's GPU providers; the CPU's provider stands in for the GPU's."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import onnxruntime
import pytest

from devices.errors import MismatchError, UsageError
from devices.node_providers import CPU
from devices.runtimes import RuntimeStatus
from devices.runtimes.onnxruntime_gpu import OnnxRuntimeCuda, ProviderRuntime
from latency import DeviceCard, profile_device


class OnGpuA(ProviderRuntime):
    """What the CUDA provider's runtime would be on a machine with "GPU A"."""

    name: ClassVar[str] = "onnxruntime-cuda"
    provider: ClassVar[str] = CPU

    def status(self) -> RuntimeStatus:
        version = f"{onnxruntime.__version__} on GPU A"
        return RuntimeStatus(self.name, True, version, None, None, ("fp32",), False, "onnx")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> DeviceCard:
    path = tmp_path_factory.mktemp("provider") / "gpu.card"
    return profile_device(path, runtime=OnGpuA(), rounds=2, probes=12)


def test_it_is_made_from_whole_networks_and_says_what_ran(card: DeviceCard) -> None:
    assert card.complete and not card.per_op_times
    assert card.runtime == "onnxruntime-cuda" and card.runtime_version.endswith(" on GPU A")


def on_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has the provider, and a GPU of that name."""
    monkeypatch.setattr(OnnxRuntimeCuda, "installed", lambda self: True)
    monkeypatch.setattr("devices.runtimes.onnxruntime_gpu.gpu_name", lambda: name)


def test_it_is_refused_on_another_gpu(card: DeviceCard, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu("GPU A", monkeypatch)
    assert card.check_usable() == ()
    on_gpu("GPU B", monkeypatch)
    with pytest.raises(MismatchError, match=r"on GPU A → \S+ on GPU B"):
        card.check_usable()


def test_it_is_not_gone_on_with_by_another_provider(card: DeviceCard, tmp_path: Path) -> None:
    path = tmp_path / "gpu.card"
    path.write_bytes(card.path.read_bytes())
    with pytest.raises(UsageError, match="onnxruntime-cuda") as caught:
        profile_device(path, runtime="onnxruntime", rounds=2, probes=12)
    assert "\n" not in str(caught.value)
