"""torchvision beside a torch that it was not built for."""

import subprocess
import sys
from types import ModuleType

import pytest

from autospace.vision import torchvision
from devices.errors import UnavailableError


def test_torchvision_works_here() -> None:
    module = torchvision()
    assert isinstance(module, ModuleType)
    assert module is torchvision()
    assert module.datasets.folder.IMG_EXTENSIONS
    assert sum(one.numel() for one in module.models.mobilenet_v2().parameters()) == 3_504_872


# Each in its own process: what is imported, and which operators exist, is the process's state.
_STUB = """
import importlib, sys
from autospace.vision import torchvision
from devices.errors import UnavailableError
real = importlib.import_module
def stub(name, *rest):
    if name == "torchvision":
        raise {error}
    return real(name, *rest)
importlib.import_module = stub
try:
    torchvision()
except UnavailableError as error:
    print(error.exit_code, error)
"""


@pytest.mark.parametrize(
    ("error", "why"),
    [
        ("ModuleNotFoundError('No module', name='torchvision')", "4 torchvision is not installed"),
        ("RuntimeError('other ABI')", "4 torchvision does not fit the installed torch (other ABI)"),
    ],
)
def test_what_cannot_be_helped_is_said(error: str, why: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _STUB.format(error=error)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(why)


def test_another_missing_module_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'PIL'", name="PIL")

    monkeypatch.setattr("autospace.vision.importlib.import_module", missing)
    with pytest.raises(ModuleNotFoundError, match="PIL") as caught:
        torchvision.__wrapped__()
    assert not isinstance(caught.value, UnavailableError)


def test_exactly_the_missing_operators_are_declared() -> None:
    code = """
import importlib, torch
from autospace.vision import torchvision
real, calls = importlib.import_module, []
def once(name, *rest):
    calls.append(name)
    if calls == ["torchvision"]:
        raise RuntimeError("operator torchvision::nms does not exist")
    return real(name, *rest)
importlib.import_module = once
try:
    module = torchvision()
    print(len(calls) >= 2, hasattr(torch.ops.torchvision, "nms"), bool(module.datasets))
except RuntimeError as error:  # a torchvision that fits declares them itself, a second time
    print("same operator" in str(error) or "twice" in str(error) or "already" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "True", done.stdout
