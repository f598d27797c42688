"""The truth that predictions are judged by: networks measured whole, profiler off.

Visits go in rounds of random order over all networks, the sentinel around each, until two disjoint
halves of a network's visits agree within `AGREEMENT`, or until `MAX_VISITS`: it is then marked as
unstable. Kernels are timed in the same visits, so that the error of summing kernels can be told
from the error of predicting them. What was measured is kept as a device card, visit by visit, so
that an interrupted run goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import numpy as np

from benchmarks.networks import Network
from devices.host import read_environment
from devices.measurement import Measurement
from devices.onnx_files import fix_shapes, read_onnx
from devices.runtimes import get_runtime
from devices.runtimes.base import Runtime, RuntimeSettings
from latency.card import CardVisit, CardWriter, DeviceCard
from latency.kernel import KernelGraph
from latency.measure import GraphStore, Visitor, by_position, compile_named, match_kernels
from latency.probes import model_digest

__all__ = [
    "AGREEMENT",
    "MAX_MS",
    "MAX_VISITS",
    "MIN_VISITS",
    "is_stable",
    "measure_truth",
    "new_card",
]

AGREEMENT = 0.02
MIN_VISITS = 8
MAX_VISITS = 24
MAX_MS = 200.0
"""Slower networks are left out, but for those in `ALWAYS`."""
ALWAYS = ("vit_b_16", "swin_t")

Progress = Callable[[str], None]


def is_stable(measurement: Measurement) -> bool:
    """Whether two halves of the visits agree well enough to judge a prediction by them."""
    found = measurement.repeatability
    return found is not None and found <= AGREEMENT


def new_card(
    path: Path, runtime: Runtime, settings: RuntimeSettings, networks: Sequence[str]
) -> CardWriter:
    """An empty card for networks that are measured here and now; these are its arguments."""
    return CardWriter.create(
        path,
        {
            "runtime": runtime.name,
            "runtime_version": runtime.status().version,
            "settings": settings.to_json(),
            "arguments": {"networks": list(networks)},
            "environment": read_environment().to_json(),
            "simulated": runtime.simulated,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "complete": False,
        },
    )


def measure_truth(
    path: Path,
    networks: Sequence[Network],
    settings: RuntimeSettings,
    progress: Progress,
    seed: int = 0,
    max_visits: int = MAX_VISITS,
    runtime: str = "onnxruntime",
) -> DeviceCard:
    """Measures networks into a card of their own; goes on where an earlier run ended.

    Args:
        path: of the card.
        networks: what to measure.
        settings: threads, precision, batch.
        progress: called with a line of text.
        seed: of the order of visits.
        max_visits: after which a network whose halves do not agree is given up.
        runtime: name of the runtime.

    Returns:
        The card; each network's name is that of its `Network`.
    """
    engine = get_runtime(runtime)
    engine.require(settings)
    if path.exists():
        card = DeviceCard.open(path)
        if card.complete and {n.name for n in networks} <= set(card.arguments["networks"]):
            return card
        writer = CardWriter(path)
        known = dict.fromkeys((*card.arguments["networks"], *(n.name for n in networks)))
        writer.put(complete=False, arguments={"networks": list(known)})
    else:
        writer = new_card(path, engine, settings, [n.name for n in networks])
    with ExitStack() as stack:
        stack.enter_context(writer)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="autospace-graphs-"))
        visitor = stack.enter_context(Visitor(engine, settings))
        store = GraphStore(Path(folder))
        left_out = set(writer.get("left_out", []))
        orders: dict[str, tuple[int, dict[str, int]]] = {}
        started = monotonic() - float(writer.get("elapsed_s", 0.0))
        round_ = 0
        while True:
            waiting = _waiting(path, networks, left_out, max_visits)
            if not waiting:
                break
            progress(f"round {round_ + 1}: {len(waiting)} networks")
            for place in np.random.default_rng([seed, round_]).permutation(len(waiting)):
                network = waiting[int(place)]
                _visit(writer, visitor, store, network, settings, left_out, orders, started)
            round_ += 1
        writer.finish({}, {})
    return DeviceCard.open(path)


def _waiting(
    path: Path, networks: Sequence[Network], left_out: set[str], max_visits: int
) -> list[Network]:
    """The networks whose visits are too few, or do not agree yet."""
    card = DeviceCard.open(path)
    known = {network.name: network for network in card.networks}
    waiting = []
    for network in networks:
        found = known.get(network.name)
        visits = len(found.visits) if found else 0
        if network.name in left_out or visits >= max_visits:
            continue
        if found is None or visits < MIN_VISITS or not is_stable(card.measurement(found)):
            waiting.append(network)
    return waiting


def _visit(
    writer: CardWriter,
    visitor: Visitor,
    store: GraphStore,
    network: Network,
    settings: RuntimeSettings,
    left_out: set[str],
    orders: dict[str, tuple[int, dict[str, int]]],
    started: float,
) -> None:
    if network.name not in store:
        model = fix_shapes(read_onnx(network.path), settings.batch)
        store.put(network.name, compile_named(visitor.runtime, network.name, model, settings))
        graph = KernelGraph.from_compiled(model, store.get(network.name).data)
        known = writer.networks().get(network.name)
        if known is None and network.name not in ALWAYS and _too_slow(visitor, store, network):
            left_out.add(network.name)
            writer.put(left_out=sorted(left_out))
            store.drop(network.name)
            return
        if known is None:
            spec = {"group": network.group, "family": network.family}
            number = writer.add_network(
                network.name, "extra", model_digest(model), spec, graph.kernels
            )
        else:
            number = known[0]
        places = match_kernels(graph, writer.kernel_keys(number), network.name)
        orders[network.name] = (number, places)
    number, places = orders[network.name]
    profiled = visitor.visit(store.get(network.name), kernels=True)
    round_ = sum(1 for _, found in writer.visited() if found == number)
    times = by_position(profiled, places)
    elapsed_s = 0.0 if visitor.runtime.simulated else monotonic() - started
    writer.add_visit(number, CardVisit(round_, elapsed_s, profiled.visit, times), elapsed_s)


def _too_slow(visitor: Visitor, store: GraphStore, network: Network) -> bool:
    with visitor.runtime.load(store.get(network.name), visitor.settings) as model:
        return min(model.run(3)) > MAX_MS
