"""Networks beside each other in real runtimes."""

from __future__ import annotations

import onnx
import pytest

from devices.errors import InvalidInputError, UnavailableError, UsageError
from devices.runtimes import RuntimeSettings
from latency.compare import compare_models
from latency.probes import build_anchor, build_sentinel

RUNTIMES = ("onnxruntime", "openvino")


def test_every_network_in_every_runtime() -> None:
    models = {"small": build_anchor(4), "large": build_sentinel()}
    told = []
    rows = compare_models(
        models, RUNTIMES, visits=4, sustained_s=0.05, progress=lambda share, _: told.append(share)
    )
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
        )[0]
        for batch in (1, 4)
    ]  # fmt: skip
    for row, batch in zip(rows, (1, 4), strict=True):
        assert row.images_per_s == pytest.approx(1e3 * batch / row.measured.latency_ms)
        assert row.memory_mb is None


@pytest.mark.parametrize(
    ("runtimes", "error", "words"),
    [
        (("zzz",), UsageError, "unknown"),
        (("simulated", "simulated"), UsageError, "named twice"),
        (("tensorrt",), UnavailableError, "tensorrt"),
    ],
)
def test_refusals(runtimes, error, words) -> None:
    with pytest.raises(error, match=words):
        compare_models({"m": build_anchor(1)}, runtimes, visits=1)


def test_a_refused_network_is_named_with_its_runtime() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(build_anchor(1))
    model.graph.node[0].op_type = "Frobnicate"
    with pytest.raises(InvalidInputError, match=r"model 'm': .*Frobnicate.*openvino"):
        compare_models({"m": model}, ["openvino"], visits=1)
