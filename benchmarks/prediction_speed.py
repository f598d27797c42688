"""How many networks a second the predictor answers, on one core, once it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.accuracy import Truth
from benchmarks.expected_latency import measure, mobile_table
from benchmarks.networks import Network
from devices.onnx_files import fix_shapes, parse_skeleton, read_onnx, to_bytes
from devices.runtimes import get_runtime
from latency.blas_threads import one_blas_thread
from latency.card import DeviceCard
from latency.executed import executed_here
from latency.kernel_reading import read_kernels
from latency.predictor import Predictor

__all__ = ["expected_latency_speed", "prediction_speed"]

_BATCH = 16_384
_ROUNDS = 40


def prediction_speed(
    predictor: Predictor, truths: Sequence[Truth], networks: Sequence[Network], count: int = 30
) -> dict[str, Any]:
    """Times predictions of one group of networks, each network once.

    Args:
        predictor: to be timed.
        truths: the group.
        networks: with the files of the same networks.
        count: how many of them are also read from ONNX, evenly spread.

    Returns:
        Networks a second, as a JSON object: `from_kernels` with the kernels read already,
        `from_onnx` from the bytes of the model and of its compiled graph; what the latter takes for
        a slow network; its mean parts in milliseconds (reading the model's bytes, matching the
        compiled graph to it, predicting); and the number of nodes of the median network.
    """
    settings = predictor.card.settings
    engine = get_runtime(predictor.card.runtime)
    files = [n for n in networks if n.name in {t.name for t in truths} and n.path.is_file()]
    places = np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
    with one_blas_thread():
        predictor.predict_graph(truths[0].graph)
        started = perf_counter()
        for truth in truths:
            predictor.predict_graph(truth.graph)
        from_kernels = len(truths) / (perf_counter() - started)
        times_s: list[tuple[float, float, float]] = []
        nodes = []
        for place in dict.fromkeys(places.tolist()):
            model = fix_shapes(read_onnx(files[place].path), settings.batch)
            model = engine.rewritten(model, settings)
            nodes.append(len(model.graph.node))
            data = to_bytes(model)
            compiled = executed_here(model, engine, settings, predictor.card.per_op_times)
            started = perf_counter()
            original, _ = parse_skeleton(data)
            parsed = perf_counter()
            graph = read_kernels(original, compiled)
            matched = perf_counter()
            predictor.predict_graph(graph)
            ended = perf_counter()
            times_s.append((parsed - started, matched - parsed, ended - matched))
    parse_ms, match_ms, predict_ms = (1e3 * np.mean(times_s, axis=0)).tolist()
    return {
        "networks": len(times_s),
        "nodes_median": float(np.median(nodes)),
        "from_kernels_per_s": from_kernels,
        "from_onnx_per_s": float(1 / np.sum(times_s, axis=1).mean()),
        "from_onnx_ms_p90": float(np.quantile(np.sum(times_s, axis=1), 0.9)) * 1e3,
        "parse_ms": parse_ms,
        "match_ms": match_ms,
        "predict_ms": predict_ms,
    }


def expected_latency_speed(card: DeviceCard) -> dict[str, Any]:
    """`benchmarks.expected_latency` on the mobile skeleton's table by a card."""
    import torch

    torch.set_num_threads(1)
    return measure("mobile skeleton", mobile_table(card), _BATCH, _ROUNDS).to_json()
