"""PyTorch's compiler as a runtime, really run on one small network; and where it cannot be."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from devices.errors import InvalidInputError, UnavailableError
from devices.footprint import memory_mb
from devices.onnx_files import random_inputs
from devices.runtimes import RuntimeSettings, get_runtime

SETTINGS = RuntimeSettings()
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler"
)


def small_network() -> bytes:
    """A convolution, ReLU, depthwise convolution, residual, mean and linear layer."""
    random = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.normal(0, 0.3, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="wide", pads=[1] * 4, group=8),
        helper.make_node("Add", ["b", "c"], ["d"], name="shortcut"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], name="mean"),
        helper.make_node("Flatten", ["e"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [weights("w1", 8, 3, 3, 3), weights("w2", 8, 1, 3, 3), weights("w3", 5, 8)],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


@needs_compiler
@pytest.mark.timeout(900)  # a minute or two of compiling, by a busy machine many times that
def test_compiled_outputs_are_those_of_eager() -> None:
    data, answers = small_network(), {}
    for name in ("torch", "torch-compiled"):
        engine = get_runtime(name)
        graph = engine.compile(data, SETTINGS)
        with engine.load(graph, SETTINGS) as loaded:
            (answers[name],) = loaded.infer(random_inputs(graph.inputs, seed=3))
            times = loaded.run(3)
        assert len(times) == 3 and min(times) > 0
    eager = answers["torch"]
    assert np.abs(answers["torch-compiled"] - eager).max() < 1e-3 * np.abs(eager).max()
    assert graph.data[:2] == b"PK" and engine.files(graph) == {".pt2": graph.data}
    with pytest.raises(InvalidInputError, match="cannot be loaded by torch "):
        get_runtime("torch").load(graph, SETTINGS)
    assert 0.1 < memory_mb("torch-compiled", graph, SETTINGS) < 500  # confined like its other child


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    engine = get_runtime("torch-compiled")
    assert not engine.status().usable
    with pytest.raises(UnavailableError, match="no C\\+\\+ compiler 'no-such-compiler' here"):
        engine.compile(small_network(), SETTINGS)


@needs_compiler
def test_a_compiler_that_takes_too_long_is_stopped() -> None:
    engine = get_runtime("torch-compiled")
    engine.compile_limit_s = 0.5  # type: ignore[attr-defined]
    with pytest.raises(InvalidInputError, match=r"did not finish compiling within 0\.5 s"):
        engine.compile(small_network(), SETTINGS)


@needs_compiler
def test_a_compiler_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing = tmp_path / "fails"
    failing.write_text("#!/bin/sh\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CXX", str(failing))
    with pytest.raises(InvalidInputError, match="torch's compiler refused") as caught:
        get_runtime("torch-compiled").compile(small_network(), SETTINGS)
    assert "\n" not in str(caught.value)
