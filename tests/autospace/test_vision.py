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


def test_the_missing_operators_are_declared_and_the_import_repeated() -> None:
    """What an import of torchvision beside another torch does, replayed."""
    code = """
import importlib, sys, types, torch
from autospace.vision import torchvision
real, package = importlib.import_module, types.ModuleType("torchvision")
def stub(name, *rest):
    if name != "torchvision":
        return real(name, *rest)
    if not hasattr(torch.ops.torchvision, "nms"):
        sys.modules["torchvision"] = sys.modules["torchvision.half"] = package
        raise RuntimeError("operator torchvision::nms does not exist")
    print(hasattr(torch.ops.torchvision, "qnms"), "torchvision.half" in sys.modules)
    return package
importlib.import_module = stub
print(torchvision() is package)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True"]
