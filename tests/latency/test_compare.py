"""Networks beside each other in real runtimes."""

from __future__ import annotations

import onnx
import pytest

from devices import runtimes
from devices.errors import AutospaceError, InvalidInputError, UnavailableError, UsageError
from devices.runtimes import RuntimeSettings
from latency.compare import compare_models
from latency.probes import build_anchor, build_sentinel

RUNTIMES = ("onnxruntime", "openvino")


def test_every_network_in_every_runtime() -> None:
    models = {"small": build_anchor(4), "large": build_sentinel()}
    told = []
    compared = compare_models(
        models, RUNTIMES, visits=4, sustained_s=0.05, progress=lambda share, _: told.append(share)
    )
    rows = compared.rows
    assert not compared.refused and not compared.warnings
    assert [(row.model, row.runtime) for row in rows] == [
        (model, runtime) for model in models for runtime in RUNTIMES
    ]
    for row in rows:
        assert len(row.measured.visits) == 4
        assert row.measured.runtime_version
        assert row.load_ms > 0 and row.compile_ms > 0
        # A process with a runtime and a network, however small, needs some megabytes.
        assert row.memory_mb is not None and 1 < row.memory_mb < 2000
        assert row.first_ms > 0
        assert row.images_per_s < 1.5e3 / min(min(v.samples_ms) for v in row.measured.visits)
    by_runtime = {row.runtime: row for row in rows if row.model == "small"}
    for row in rows:
        if row.model == "large":
            assert row.measured.latency_ms > by_runtime[row.runtime].measured.latency_ms
            assert row.images_per_s < by_runtime[row.runtime].images_per_s
    assert told[-1] == 1.0
    assert rows[0].to_json()["measured"]["visits"]


def test_images_count_the_batch() -> None:
    rows = [
        compare_models(
            {"m": build_sentinel(batch)}, ["simulated"], RuntimeSettings(batch=batch),
            visits=1, sustained_s=0.01,
        ).rows[0]
        for batch in (1, 4)
    ]  # fmt: skip
    for row, batch in zip(rows, (1, 4), strict=True):
        assert row.images_per_s == pytest.approx(1e3 * batch / row.measured.latency_ms)
        assert row.memory_mb is None


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (("zzz",), UsageError, "unknown"),
        (("simulated", "simulated"), UsageError, "named twice"),
        (("tensorrt",), UnavailableError, "tensorrt"),
    ],
)
def test_refusals(names, error, words) -> None:
    with pytest.raises(error, match=words):
        compare_models({"m": build_anchor(1)}, names, visits=1)


def renamed(op_type: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(build_anchor(1))
    model.graph.node[0].op_type = op_type
    return model


def test_where_nothing_can_be_measured_the_first_refusal_is_the_error() -> None:
    with pytest.raises(InvalidInputError, match=r"model 'm': .*Frobnicate.*openvino"):
        compare_models({"m": renamed("Frobnicate")}, ["openvino"], visits=1)


def test_what_a_runtime_refuses_or_dies_of_is_named_and_the_others_go_on(monkeypatch) -> None:
    monkeypatch.setitem(runtimes._REGISTRY, "choosy", "choosy_runtime:ContainedChoosy")
    models = {"fine": build_anchor(2), "refused": renamed("Softmax"), "fatal": build_anchor(3)}
    models["fatal"].graph.node[0].name = "MaxPool"  # that is enough for this runtime to die of
    compared = compare_models(models, ["onnxruntime", "choosy"], visits=2, sustained_s=0.01)
    assert [(row.model, row.runtime) for row in compared.rows] == [
        ("fine", "onnxruntime"), ("fine", "choosy"),
        ("refused", "onnxruntime"), ("fatal", "onnxruntime"),
    ]  # fmt: skip
    assert list(compared.refused) == [("refused", "choosy"), ("fatal", "choosy")]
    assert "no operation Softmax" in str(compared.refused["refused", "choosy"])
    crash = str(compared.refused["fatal", "choosy"])
    assert "'fatal'" in crash and "crashed while loading (SIGABRT" in crash and "choosy" in crash
    assert [row["model"] for row in compared.to_json()["refused"]] == ["refused", "fatal"]


def test_where_the_memory_cannot_be_told_the_times_are(monkeypatch) -> None:
    def untold(*_: object) -> float:
        raise AutospaceError("runtime 'onnxruntime': did not load")

    monkeypatch.setattr("latency.compare.memory_mb", untold)
    compared = compare_models({"m": build_anchor(2)}, ["onnxruntime"], visits=2, sustained_s=0.01)
    assert compared.rows[0].memory_mb is None and compared.rows[0].measured.latency_ms > 0
    assert compared.warnings == ("model 'm': runtime 'onnxruntime': did not load",)
