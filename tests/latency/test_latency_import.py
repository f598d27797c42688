"""Importing the package stays light, and its `__all__` tells the truth."""

import subprocess
import sys

import pytest

import latency

HEAVY = ("torch", "onnxruntime", "onnx", "sklearn", "scipy", "tensorrt", "pycuda")
MODULES = ("latency", "latency.card", "latency.predictor", "latency.profile", "latency.kernel")


@pytest.mark.parametrize("module", MODULES)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_is_honest() -> None:
    assert sorted(latency.__all__) == latency.__all__
    for name in latency.__all__:
        assert getattr(latency, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = latency.nonsense


def test_the_package_knows_nothing_of_networks_and_search() -> None:
    code = (
        "import sys, latency; [getattr(latency, n) for n in latency.__all__];"
        "print([m for m in sys.modules if m.split('.')[0] == 'autospace'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
