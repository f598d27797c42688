"""Importing the package stays light, and its `__all__` tells the truth."""

import subprocess
import sys

import pytest

import devices

HEAVY = ("torch", "onnxruntime", "onnx", "sklearn", "scipy", "tensorrt", "pycuda")


@pytest.mark.parametrize("module", ["devices", "devices.runtimes", "devices.measurement"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_listing_the_runtimes_loads_none_of_them() -> None:
    code = (
        "import sys, devices; devices.runtime_statuses();"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_is_honest() -> None:
    assert sorted(devices.__all__) == devices.__all__
    for name in devices.__all__:
        assert getattr(devices, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = devices.nonsense
