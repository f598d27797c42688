"""What of the TensorRT runtime needs no GPU; nothing here has run on hardware."""

from __future__ import annotations

import pytest

from devices.errors import InvalidInputError, UnavailableError
from devices.runtimes import get_runtime
from devices.runtimes.base import CompiledGraph, RuntimeSettings
from devices.runtimes.tensorrt import (
    TensorRtHere,
    check_stamp,
    parser_refusal,
    stamped,
    typed_model,
    unstamped,
)

HERE = {"gpu": "NVIDIA L4", "capability": [8, 9]}
STAMP = {**HERE, "tensorrt": "11.4.0"}


class Refusal:
    """As TensorRT's `ParserError` is read."""

    def __init__(self, name: str, operator: str, desc: str) -> None:
        self._said = name, operator, desc

    def node_name(self) -> str:
        return self._said[0]

    def node_operator(self) -> str:
        return self._said[1]

    def desc(self) -> str:
        return self._said[2]


def pretend(monkeypatch, versions: dict[str, str], drivers: tuple[str, ...] = ()) -> None:
    monkeypatch.setattr("devices.runtimes.tensorrt._version", versions.get)
    monkeypatch.setattr("devices.runtimes.tensorrt._DRIVERS", drivers)


class TestStatus:
    def test_not_installed(self, monkeypatch) -> None:
        for versions in ({}, {"tensorrt": "11.4.0"}, {"pycuda": "2026.1"}):
            pretend(monkeypatch, versions)
            status = TensorRtHere().status()
            assert not status.usable and status.reason == "not installed"
            assert status.install == "pip install 'autospace[tensorrt]'"

    def test_without_a_gpu(self, monkeypatch) -> None:
        pretend(monkeypatch, {"tensorrt-cu13": "11.4.0", "pycuda": "2026.1"}, ("/nowhere",))
        status = TensorRtHere().status()
        assert not status.usable and "no NVIDIA GPU" in (status.reason or "")
        assert status.version == "11.4.0" and status.install is None

    def test_too_old(self, monkeypatch) -> None:
        pretend(monkeypatch, {"tensorrt": "8.6.1", "pycuda": "2026.1"}, ("/dev/null",))
        assert "too old" in (TensorRtHere().status().reason or "")

    def test_usable(self, monkeypatch) -> None:
        pretend(monkeypatch, {"tensorrt": "10.13.0", "pycuda": "2026.1"}, ("/dev/null",))
        status = TensorRtHere().status()
        assert status.usable and status.per_op_times
        assert status.precisions == ("fp32", "fp16", "int8")


def test_it_refuses_where_it_cannot_run(model) -> None:
    runtime = get_runtime("tensorrt")
    if runtime.status().usable:
        pytest.skip("it can run here")
    for call in (
        lambda: runtime.compile(model.SerializeToString(), RuntimeSettings()),
        lambda: runtime.load(CompiledGraph("tensorrt", "1", b"", (), ()), RuntimeSettings()),
    ):
        with pytest.raises(UnavailableError, match="tensorrt"):
            call()


class TestStamp:
    def test_round_trip(self) -> None:
        data = stamped(STAMP, b"\x00engine", '{"Layers": []}')
        assert unstamped(data) == (STAMP, b"\x00engine", '{"Layers": []}')

    @pytest.mark.parametrize("cut", [0, 5, 20, -1])
    def test_truncated_files_are_refused(self, cut: int) -> None:
        data = stamped(STAMP, b"engine", "{}")
        with pytest.raises(InvalidInputError, match="truncated"):
            unstamped(data[:cut])

    def test_its_own_gpu_and_version_are_taken(self) -> None:
        check_stamp(STAMP, HERE, "11.4.0")

    @pytest.mark.parametrize(
        ("here", "version", "says"),
        [
            (HERE, "10.13.0", "tensorrt 11.4.0, but this is 10.13.0"),
            ({**HERE, "gpu": "NVIDIA H100"}, "11.4.0", "gpu NVIDIA L4, but this is NVIDIA H100"),
            ({**HERE, "capability": [9, 0]}, "11.4.0", "capability"),
        ],
    )
    def test_another_s_is_refused(self, here: dict, version: str, says: str) -> None:
        with pytest.raises(InvalidInputError, match=says) as caught:
            check_stamp(STAMP, here, version)
        assert "build it again here" in str(caught.value)


class TestModel:
    def test_fp32_is_left_alone(self, model) -> None:
        assert typed_model(model, "fp32") is model

    def test_int8_needs_a_quantised_model(self, model) -> None:
        with pytest.raises(InvalidInputError, match="QuantizeLinear"):
            typed_model(model, "int8")
        model.graph.node.add(op_type="QuantizeLinear")
        assert typed_model(model, "int8") is model

    def test_fp16_is_converted(self, model) -> None:
        kinds = {t.data_type for t in typed_model(model, "fp16").graph.initializer}
        assert kinds == {10}


def test_a_refusal_names_the_node() -> None:
    text = parser_refusal([Refusal("the_node", "Det", "No importer\nregistered for op: Det.")])
    assert text == (
        "model node 'the_node' (Det): tensorrt refused (No importer registered for op: Det); "
        "export the model without it."
    )
    assert "could not read it" in parser_refusal([])
    assert parser_refusal([Refusal("", "", "broken")]).startswith("model: tensorrt refused")
