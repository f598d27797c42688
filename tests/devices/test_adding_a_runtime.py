"""The runtime that docs/adding-a-runtime.md shows, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from devices.errors import UnavailableError
from devices.onnx_files import random_inputs
from devices.runtimes import RuntimeSettings, get_runtime, runtime_statuses
from latency.measure import measure_models

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-runtime.md"
SETTINGS = RuntimeSettings()


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """The page's three pieces: the file, the line of the registry, the class for a child."""
    code, line, contained = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len([x for x in code.splitlines() if x.strip()]) <= 40
    contained = contained.replace("devices.runtimes.reference", "reference")
    (tmp_path / "reference.py").write_text(code + "\n\n" + contained)
    monkeypatch.syspath_prepend(tmp_path)
    name, home = re.findall(r'"([^"]+)"', line)
    home = home.replace("devices.runtimes.", "")
    monkeypatch.setitem(__import__("devices.runtimes").runtimes._REGISTRY, name, home)
    return home


@pytest.mark.parametrize("served", ["here", "from a child"])
def test_the_example_computes_and_measures(registered, model, monkeypatch, served: str) -> None:
    if served == "from a child":
        home = registered.replace(":", ":Contained")
        monkeypatch.setitem(__import__("devices.runtimes").runtimes._REGISTRY, "reference", home)
    runtime, other = get_runtime("reference"), get_runtime("onnxruntime")
    data = model.SerializeToString()
    compiled = runtime.compile(data, SETTINGS)
    feed = random_inputs(compiled.inputs, seed=3)
    with runtime.load(compiled, SETTINGS) as loaded:
        (found,) = loaded.infer(feed)
        assert min(loaded.run(3)) > 0
        with pytest.raises(UnavailableError):
            loaded.profile(1)
    with other.load(other.compile(data, SETTINGS), SETTINGS) as loaded:
        (expected,) = loaded.infer(feed)
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
    if served == "from a child":
        runtime.close()


def test_the_registry_line_is_enough(registered, model) -> None:
    assert "reference" in [status.name for status in runtime_statuses()]
    measured = measure_models({"small": model}, runtime="reference", visits=1)
    assert measured["small"].runtime == "reference" and measured["small"].latency_ms > 0
