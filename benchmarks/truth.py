"""The truth that predictions are judged by: networks measured whole, profiler off.

Visits go in rounds of random order over all networks, the sentinel around each, until two disjoint
halves of a network's visits agree within `AGREEMENT`, or until `MAX_VISITS`: it is then marked as
unstable. Kernels are timed in the same visits, so that the error of summing kernels can be told
from the error of predicting them. What was measured is kept as a device card, visit by visit, so
that an interrupted run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Self

import numpy as np

from benchmarks.networks import Network
from devices.errors import InvalidInputError
from devices.host import read_environment
from devices.measurement import Measurement
from devices.onnx_files import fix_shapes, read_onnx
from devices.runtimes import get_runtime
from devices.runtimes.base import CompiledGraph, Runtime, RuntimeSettings
from latency.card import DeviceCard
from latency.card_rows import CardVisit
from latency.card_writer import CardWriter
from latency.executed import executed_graph
from latency.graph_store import GraphStore
from latency.kernel_reading import read_kernels
from latency.measure import Visitor, by_position, compile_named, match_kernels
from latency.probes import model_digest

__all__ = [
    "AGREEMENT",
    "MAX_MS",
    "MAX_VISITS",
    "MIN_VISITS",
    "TruthSeries",
    "is_stable",
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
            "per_op_times": runtime.status().per_op_times,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "complete": False,
        },
    )


class TruthSeries:
    """Networks measured into a card of their own, round by round; a context manager.

    Goes on where an earlier series of the same card ended.

    Args:
        path: of the card; each of its networks' names is that of its `Network`.
        networks: what to measure.
        settings: threads, precision, batch.
        progress: called with a line of text.
        seed: of the order of visits.
        max_visits: after which a network whose halves do not agree is given up.
        runtime: name of the runtime.
    """

    def __init__(
        self,
        path: Path,
        networks: Sequence[Network],
        settings: RuntimeSettings,
        progress: Progress,
        seed: int = 0,
        max_visits: int = MAX_VISITS,
        runtime: str = "onnxruntime",
    ) -> None:
        self.path = path
        self.networks = networks
        self.settings = settings
        self.progress = progress
        self.seed = seed
        self.max_visits = max_visits
        self.engine = get_runtime(runtime)
        self.per_op_times = self.engine.require(settings).per_op_times
        self.orders: dict[str, tuple[int, dict[str, int]]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.writer = stack.enter_context(self._open())
            self.store = stack.enter_context(GraphStore.temporary())
            self.visitor = stack.enter_context(Visitor(self.engine, self.settings))
            self.left_out = set(self.writer.get("left_out", []))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def measure(self, rounds: int | None = None) -> None:
        """Measures until all networks have had their visits.

        Args:
            rounds: of the card after which it pauses; None to go on to the end.
        """
        self.started = monotonic() - float(self.writer.get("elapsed_s", 0.0))
        done = int(self.writer.get("rounds", 0))
        while waiting := self._waiting():
            if rounds is not None and done >= rounds:
                return
            self.progress(f"round {done + 1}: {len(waiting)} networks")
            for place in np.random.default_rng([self.seed, done]).permutation(len(waiting)):
                self._visit(waiting[int(place)])
            done += 1
            self.writer.put(rounds=done)
        if not self.writer.get("complete"):
            self.writer.finish({}, {})

    def _open(self) -> CardWriter:
        names = [network.name for network in self.networks]
        if not self.path.exists():
            return new_card(self.path, self.engine, self.settings, names)
        known = DeviceCard.open(self.path).arguments["networks"]
        writer = CardWriter(self.path)
        if not set(names) <= set(known):
            together = list(dict.fromkeys((*known, *names)))
            writer.put(complete=False, arguments={"networks": together})
        return writer

    def _waiting(self) -> list[Network]:
        """The networks whose visits are too few, or do not agree yet."""
        card = DeviceCard.open(self.path)
        known = {network.name: network for network in card.networks}
        waiting = []
        for network in self.networks:
            found = known.get(network.name)
            visits = len(found.visits) if found else 0
            if network.name in self.left_out or visits >= self.max_visits:
                continue
            if found is None or visits < MIN_VISITS or not is_stable(card.measurement(found)):
                waiting.append(network)
        return waiting

    def _visit(self, network: Network) -> None:
        if network.name not in self.store and not self._take_up(network):
            return
        number, places = self.orders[network.name]
        profiled = self.visitor.visit(self.store.get(network.name), kernels=self.per_op_times)
        round_ = sum(1 for _, found in self.writer.visited() if found == number)
        times = by_position(profiled, places)
        elapsed_s = 0.0 if self.engine.simulated else monotonic() - self.started
        visit = CardVisit(round_, elapsed_s, profiled.visit, times)
        self.writer.add_visit(number, visit, elapsed_s)

    def _take_up(self, network: Network) -> bool:
        """Compiles a network; whether it is not too slow to be measured."""
        model = fix_shapes(read_onnx(network.path), self.settings.batch)
        try:
            compiled = compile_named(self.engine, network.name, model, self.settings)
        except InvalidInputError as error:
            self.progress(f"left out: {error}")
            self._leave_out(network)
            return False
        self.store.put(network.name, compiled)
        known = self.writer.networks().get(network.name)
        if known is None and network.name not in ALWAYS and self._is_too_slow(compiled):
            self._leave_out(network)
            self.store.drop(network.name)
            return False
        seen = self.engine.rewritten(model, self.settings)
        graph = read_kernels(seen, executed_graph(seen, compiled, self.per_op_times))
        if known is None:
            spec = {"group": network.group, "family": network.family}
            number = self.writer.add_network(
                network.name, "extra", model_digest(model), spec, graph.kernels
            )
        else:
            number = known[0]
        places = match_kernels(graph, self.writer.kernel_keys(number), network.name)
        self.orders[network.name] = (number, places)
        return True

    def _leave_out(self, network: Network) -> None:
        self.left_out.add(network.name)
        self.writer.put(left_out=sorted(self.left_out))

    def _is_too_slow(self, compiled: CompiledGraph) -> bool:
        with self.engine.load(compiled, self.settings) as model:
            return min(model.run(3)) > MAX_MS
