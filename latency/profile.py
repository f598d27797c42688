"""Profiling: fills a device card, visit by visit, and can be killed at any moment.

The caller's own networks come first, then as many random probe networks as the time allows; they
are visited again and again, in rounds of random order, whole and kernel by kernel; which of them in
which round, says `latency.schedule`. Each visit is committed to the card with the sentinel's times.
Called again with the same arguments, profiling goes on where the card ends.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from devices.errors import AutospaceError, InvalidInputError, UsageError
from devices.host import read_environment
from devices.onnx_files import fix_shapes, one_line
from devices.runtimes import get_runtime
from devices.runtimes.base import CompiledGraph, Runtime, RuntimeSettings
from latency.acquisition import FIRST_ROUND, Acquisition
from latency.card import DeviceCard
from latency.card_errors import writing
from latency.card_rows import ANCHOR, CHOSEN, WHOLE, CardVisit
from latency.card_writer import CardWriter
from latency.compiling import Compilers
from latency.executed import executed_graph
from latency.fusion import FusionLearner, FusionRules
from latency.graph_store import GraphStore
from latency.kernel_reading import read_kernels
from latency.measure import (
    Visitor,
    by_position,
    compile_named,
    match_kernels,
    naming,
)
from latency.schedule import SMALL_PERIOD, Schedule
from latency.slow_phases import above_fastest

if TYPE_CHECKING:
    import onnx

    from latency.kernel import KernelGraph
    from latency.probes import ProbeSpec

__all__ = ["profile_device"]

Progress = Callable[[float, str], None]

_MOST_DRAWS = 20
"""Draws of one probe, before a runtime that refuses every one is taken at its word."""
_LEAST_PROBES = 12
"""Probes that a profile has, however long the runtime takes to compile them."""
_LEARNED = 400
"""Networks from which is read what the runtime fuses."""


def profile_device(
    card_path: str | Path,
    *,
    runtime: str | Runtime = "onnxruntime",
    settings: RuntimeSettings | None = None,
    minutes: float | None = 10,
    rounds: int | None = None,
    probes: int | None = None,
    seed: int = 0,
    extra_models: Mapping[str, onnx.ModelProto] | None = None,
    update: bool = False,
    progress: Progress | None = None,
) -> DeviceCard:
    """Measures this device and writes what was seen into a device card.

    Args:
        card_path: the card; made when it is missing, continued when it is unfinished.
        runtime: name of a runtime, or the runtime itself.
        settings: threads, precision, batch; one thread, fp32 and batch 1 by default.
        minutes: how long to measure, by the clock; more time means more probes and more visits.
        rounds: instead of `minutes`: how often each network is visited. The plan is then fixed, and
            with the simulated runtime two cards of the same seed have the same content.
        probes: how many probe networks; by default as many as the time allows, or
            `latency.schedule.PROBES_BY_ROUNDS` with `rounds`.
        seed: of the probes and of the order of visits.
        extra_models: the caller's own networks by name, with fixed shapes or a symbolic batch. They
            are visited in every round, before new probes are added.
        update: measure more into an existing card, with other `minutes`, `rounds`, `probes`, `seed`
            or `extra_models`. Runtime, version, settings and device must stay.
        progress: called with the share done, from 0 to 1, and a line of text.

    Returns:
        The finished card; at once when it was already finished with these arguments.

    Raises:
        UsageError: the arguments contradict each other or those that the card was made with, or
            another profiler is writing the card.
        UnavailableError: the runtime or the precision is not available here.
        InvalidInputError: the file is no device card or damaged, or a model is refused.
        AutospaceError: the disk is full; the card holds what was measured, and goes on from there.
    """
    from latency.probes import build_sentinel, model_digest

    path = Path(card_path)
    settings = settings or RuntimeSettings()
    if rounds is not None:
        minutes = None
    _check_limits(minutes, rounds, probes)
    engine = get_runtime(runtime) if isinstance(runtime, str) else runtime
    status = engine.require(settings)
    models = _fixed(extra_models or {}, settings.batch)
    arguments = _arguments(models, minutes, rounds, probes, seed)
    identity = {
        "runtime": engine.name,
        "runtime_version": status.version,
        "settings": settings.to_json(),
        "sentinel": model_digest(build_sentinel(settings.batch)),
    }
    with _locked(path):
        writer = _open_card(path, engine, identity, arguments, update)
        if writer is not None:
            with writer, writing(path):
                profiler = _Profiler(writer, engine, settings, models, arguments, progress)
                profiler.run()
                _finish(writer, path, profiler.fusion_rules())
    return DeviceCard.open(path)


@dataclass(frozen=True, slots=True)
class _Network:
    """A network of the profile: its number in the card, how to get its model, its first round."""

    number: int
    name: str
    kind: str
    born: int


@dataclass(frozen=True, slots=True)
class _Probe:
    """A probe that was drawn."""

    name: str
    spec: ProbeSpec
    model: onnx.ModelProto

    @property
    def digest(self) -> str:
        from latency.probes import model_digest

        return model_digest(self.model)


class _Profiler:
    """One run of the profile over an open card."""

    def __init__(
        self,
        writer: CardWriter,
        engine: Runtime,
        settings: RuntimeSettings,
        models: Mapping[str, onnx.ModelProto],
        arguments: Mapping[str, Any],
        progress: Progress | None,
    ) -> None:
        self.writer = writer
        self.engine = engine
        self.per_op_times = engine.status().per_op_times
        self.settings = settings
        self.models = models
        self.seed = int(arguments["seed"])
        minutes: float | None = arguments["minutes"]
        self.limit_s = None if minutes is None else minutes * 60.0
        self.schedule = Schedule(
            minutes, arguments["rounds"], arguments["probes"], engine.simulated, self.per_op_times
        )
        self.progress = progress or (lambda share, text: None)
        self.first_round = int(writer.get("first_round", 0))
        self.visited = writer.visited()
        self.networks: list[_Network] = []
        self.orders: dict[int, dict[str, int]] = {}
        self.learner = FusionLearner()
        self.learned: set[str] = set()
        self.acquisition: Acquisition | None = None
        # Probes that took their process with them when they ran.
        self.given_up: set[str] = set(writer.get("given_up", []))
        self.next_look = 0
        self.elapsed_before_s = float(writer.get("elapsed_s", 0.0))
        self.started = monotonic()

    def run(self) -> None:
        """Measures until the plan is fulfilled."""
        with ExitStack() as stack:
            self.store = stack.enter_context(GraphStore.temporary())
            self.visitor = stack.enter_context(Visitor(self.engine, self.settings))
            self.compilers = stack.enter_context(Compilers(self.engine, self.settings))
            self._take_up_known()
            self._learn_patterns()
            for name in self.models:
                self._add_extra(name)
            self._add_anchors()
            number, more = self.first_round, True
            while more:
                more = self._round(number)
                self._note_state(number)
                number += 1

    def _note_state(self, number: int) -> None:
        """Writes down the device's clocks and temperature, where it tells them, after a round."""
        state = self.engine.device_state()
        if state is not None:
            row = {"round": number, "at_s": round(self.elapsed_s, 1), **state}
            self.writer.put(device_states=[*self.writer.get("device_states", []), row])

    @property
    def elapsed_s(self) -> float:
        """Time of the whole profile, earlier runs included; 0 when it is simulated."""
        if self.engine.simulated:
            return 0.0
        return self.elapsed_before_s + monotonic() - self.started

    # -- rounds

    def _round(self, number: int) -> bool:
        """Visits what is due and adds probes; whether there is another round."""
        age = number - self.first_round
        born_now = sum(n.kind == "probe" and n.born == number for n in self.networks)
        have = sum(n.kind == "probe" for n in self.networks)
        wanted = self.schedule.new_probes(have - born_now) - born_now
        if self.schedule.fixed and age:
            wanted = 0
        for network in self._due(number, growing=wanted + born_now > 0):
            if self._stop(age):
                return False
            self._visit(number, network)
        if wanted > 0:
            self._look_ahead(age)
        for first in range(have, have + wanted, self.compilers.count):
            if self._stop(age):
                return False
            if first >= _LEAST_PROBES and not self.engine.simulated and self._time_is_up():
                break  # it compiles slowly: those that there are get their second visit, no more
            places = range(first, min(first + self.compilers.count, have + wanted))
            drawn = {index: self._draw_probe(index) for index in places}
            made = self.compilers.compile({one.name: one.model for one in drawn.values()})
            for index, one in drawn.items():
                if self._stop(age):
                    return False
                self._visit(number, self._add_probe(index, number, one, made[one.name]))
        rounds = self.schedule.rounds
        if rounds is not None:
            return age + 1 < rounds
        return not self._time_is_up() or age == 0

    def _due(self, number: int, growing: bool) -> list[_Network]:
        """The networks of one round in its random order, which depends on nothing else."""
        import numpy as np

        due = []
        for network in self.networks:
            if network.born > number:  # known from an earlier run of the same profile
                continue
            is_probe = network.kind == "probe"
            # The caller's networks begin anew when a card is extended; probes have had their turn.
            age = number - (network.born if is_probe else max(network.born, self.first_round))
            if self.schedule.is_due(age, is_probe, growing):
                due.append(network)
            if growing and self.schedule.is_over(age, is_probe):
                self.store.drop(network.name)
        rng = np.random.default_rng([self.seed, 1, number])
        return [due[i] for i in rng.permutation(len(due))]

    def _look_ahead(self, age: int) -> None:
        """Fits to what was measured so far, now and then, to choose the next probes by it."""
        if self.schedule.fixed or age < max(FIRST_ROUND, self.next_look):
            return
        self.next_look = 2 * age
        self.acquisition = Acquisition(DeviceCard.open(self.writer.path), self.fusion_rules())

    def _stop(self, age: int) -> bool:
        """Whether to stop at once; a network seen only once says nothing of its repeatability."""
        return age > 1 and self._time_is_up()

    def _time_is_up(self) -> bool:
        if self.limit_s is None:
            return False
        return self.engine.simulated or self.elapsed_s >= self.limit_s

    # -- networks

    def _take_up_known(self) -> None:
        """The card's networks whose models are at hand: probes are built anew from their spec."""
        born: dict[int, int] = {}
        for number, network in sorted(self.visited):
            born.setdefault(network, number)
        latest = max((number for number, _ in self.visited), default=self.first_round)
        for name, (number, kind, _, _) in self.writer.networks().items():
            if kind in ("probe", ANCHOR) or name in self.models:
                # What was added when the profiler was killed had not been visited yet.
                self.networks.append(_Network(number, name, kind, born.get(number, latest)))

    def _learn_patterns(self) -> None:
        """Where compiling takes seconds: how the runtime writes the usual layers.

        Networks with a layer that the fusion rules do not know have to be compiled later on, each
        of hundreds.
        """
        from latency.pattern_networks import PATTERN_NETWORKS
        from latency.probes import build_probe

        if not (self.per_op_times and self.engine.slow_to_compile):
            return
        models = {
            name: build_probe(spec, self.settings.batch) for name, spec in PATTERN_NETWORKS.items()
        }
        self.progress(0.0, "learning what is fused")
        names, at_once = list(models), self.compilers.count
        for first in range(0, len(names), at_once):
            some = {name: models[name] for name in names[first : first + at_once]}
            for name, one in self.compilers.compile(some).items():
                if isinstance(one, CompiledGraph):
                    self._take_in(name, models[name], one)
                else:
                    self._note_refusal(one)

    def _add_extra(self, name: str) -> None:
        from latency.probes import model_digest

        known = self.writer.networks().get(name)
        digest = model_digest(self.models[name])
        if known is None:
            self.networks.append(
                self._add(name, "extra", digest, None, self.models[name], self.first_round)
            )
        elif known[1] != "extra" or known[2] != digest:
            raise UsageError(
                f"network {name!r}: the card holds another one of that name; rename yours."
            )

    def _add_anchors(self) -> None:
        from latency.probes import ANCHORS, build_anchor, model_digest

        known = self.writer.networks()
        for kernels in ANCHORS:
            name = f"anchor-{kernels}"
            if name not in known:
                model = build_anchor(kernels, self.settings.batch)
                digest = model_digest(model)
                spec = {"kernels": kernels}
                self.networks.append(self._add(name, ANCHOR, digest, spec, model, self.first_round))

    def _add_probe(
        self, index: int, born: int, drawn: _Probe, made: CompiledGraph | AutospaceError
    ) -> _Network:
        """Takes up a probe; where the runtime refuses it, another is drawn.

        Args:
            index: of the probe.
            born: the round.
            drawn: the probe.
            made: by the runtime.
        """
        for attempt in range(1, _MOST_DRAWS + 1):
            try:
                if isinstance(made, AutospaceError):
                    raise made
                network = self._add(
                    drawn.name, "probe", drawn.digest, drawn.spec.to_json(), drawn.model, born, made
                )
            except InvalidInputError as error:
                if attempt == _MOST_DRAWS:
                    raise
                self._note_refusal(error)
                drawn = self._draw_probe(index, attempt)
                made = self.compilers.compile({drawn.name: drawn.model})[drawn.name]
            else:
                self.networks.append(network)
                return network
        raise AssertionError("unreachable")

    def _note_refusal(self, error: AutospaceError) -> None:
        self.writer.put(refused=[*self.writer.get("refused", []), str(error)])

    def _draw_probe(self, index: int, attempt: int = 0) -> _Probe:
        import numpy as np

        from latency.probe_networks import sample_network
        from latency.probes import build_probe, sample_probe

        rng = np.random.default_rng([self.seed, 2, index, *([attempt] if attempt else [])])
        light, label = index < self.schedule.light_probes, "probe-"
        if self.per_op_times and index % SMALL_PERIOD == SMALL_PERIOD - 1:
            spec, label = sample_network(rng, small=True), WHOLE
        elif not light and index % self.schedule.network_period == 0:
            spec, label = sample_network(rng, sums=not self.per_op_times), WHOLE
        elif not light and index % 2 and self.acquisition:
            spec, label = self.acquisition.choose(rng), CHOSEN
        else:
            spec = sample_probe(rng, light=light)
        name = f"{label}{self.seed}-{index}"
        return _Probe(name, spec, build_probe(spec, self.settings.batch))

    def _add(
        self,
        name: str,
        kind: str,
        digest: str,
        spec: dict[str, Any] | None,
        model: onnx.ModelProto,
        born: int,
        compiled: CompiledGraph | None = None,
    ) -> _Network:
        compiled = compiled or compile_named(self.engine, name, model, self.settings)
        graph = self._take_in(name, model, compiled)
        self.store.put(name, compiled)
        number = self.writer.add_network(name, kind, digest, spec, graph.kernels)
        self.orders[number] = {node.name: i for i, node in enumerate(graph.kernels)}
        return _Network(number, name, kind, born)

    def _compiled(self, network: _Network) -> CompiledGraph:
        """The network's compiled graph; after a restart it is compiled again."""
        if network.name not in self.store:
            model = self._model(network)
            compiled = compile_named(self.engine, network.name, model, self.settings)
            graph = self._take_in(network.name, model, compiled)
            self.orders[network.number] = match_kernels(
                graph, self.writer.kernel_keys(network.number), network.name
            )
            self.store.put(network.name, compiled)
        return self.store.get(network.name)

    def _take_in(
        self, name: str, model: onnx.ModelProto, compiled: CompiledGraph | None
    ) -> KernelGraph:
        """Reads a network's kernels, and what the runtime fuses; after some hundreds no more.

        Raises:
            InvalidInputError: that cannot be read. Runtimes make of networks what nobody has seen
                before, and one network of hundreds is not worth a profile.
        """
        with naming(name):
            model = self.engine.rewritten(model, self.settings)
            executed = executed_graph(model, compiled, self.per_op_times)
            try:
                graph = read_kernels(model, executed)
                if name not in self.learned and len(self.learned) < _LEARNED:
                    self.learner.add(model, executed)
                    self.learned.add(name)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise InvalidInputError(
                    "model: what its runtime made of it cannot be read "
                    f"({type(error).__name__}: {one_line(error)}); take another one."
                ) from error
            return graph

    def fusion_rules(self) -> FusionRules:
        """What the runtime fuses, read from the networks of the profile.

        After a restart those that were not visited again are compiled once more for it.
        """
        for network in self.networks:
            if len(self.learned) >= _LEARNED:
                break
            if network.name not in self.learned:
                model = self._model(network)
                compiled = None
                if self.per_op_times:
                    compiled = compile_named(self.engine, network.name, model, self.settings)
                self._take_in(network.name, model, compiled)
        return FusionRules.of(self.learner)

    def _model(self, network: _Network) -> onnx.ModelProto:
        from latency.probes import ProbeSpec, build_anchor, build_probe

        if network.kind == "extra":
            return self.models[network.name]
        spec = self.writer.networks()[network.name][3]
        if network.kind == ANCHOR:
            return build_anchor(spec["kernels"], self.settings.batch)
        return build_probe(ProbeSpec.from_json(spec), self.settings.batch)

    # -- visits

    def _visit(self, number: int, network: _Network) -> None:
        if (number, network.number) in self.visited or network.name in self.given_up:
            return
        compiled = self._compiled(network)
        try:
            with naming(network.name):
                profiled = self.visitor.visit(compiled, kernels=self.per_op_times)
        except InvalidInputError as error:
            if network.kind != "probe":
                raise
            self.given_up.add(network.name)
            self.writer.put(given_up=sorted(self.given_up))
            self._note_refusal(error)
            self.progress(self._share(number), f"left out {network.name}: {error}")
            return
        times = by_position(profiled, self.orders[network.number])
        elapsed_s = self.elapsed_s
        self.writer.add_visit(
            network.number, CardVisit(number, elapsed_s, profiled.visit, times), elapsed_s
        )
        self.visited.add((number, network.number))
        self.progress(self._share(number), f"round {number + 1}: {network.name}")

    def _share(self, number: int) -> float:
        from latency.probes import ANCHORS

        if self.limit_s is not None and not self.engine.simulated:
            return min(1.0, self.elapsed_s / self.limit_s)
        done = sum(round_ >= self.first_round for round_, _ in self.visited)
        planned = len(ANCHORS) + len(self.models) + self.schedule.most_probes
        return min(1.0, done / (planned * (self.schedule.rounds or 2)))


def _check_limits(minutes: float | None, rounds: int | None, probes: int | None) -> None:
    if rounds is not None and rounds < 1:
        raise UsageError(f"rounds {rounds}: must be 1 or more; take 8 or more to rely on it.")
    if rounds is None and (minutes is None or not 0 < minutes <= 24 * 60):
        raise UsageError(f"minutes {minutes}: must be above 0 and at most 1440; give 10, say.")
    if probes is not None and probes < 0:
        raise UsageError(f"probes {probes}: must not be negative; leave it out for the default.")


def _fixed(models: Mapping[str, onnx.ModelProto], batch: int) -> dict[str, onnx.ModelProto]:
    """The caller's models with fixed shapes; an error names the model."""
    fixed = {}
    for name, model in models.items():
        with naming(name):
            fixed[name] = fix_shapes(model, batch)
    return fixed


def _arguments(
    models: Mapping[str, onnx.ModelProto],
    minutes: float | None,
    rounds: int | None,
    probes: int | None,
    seed: int,
) -> dict[str, Any]:
    from latency.probes import model_digest

    return {
        "minutes": minutes,
        "rounds": rounds,
        "probes": probes,
        "seed": seed,
        "extra_models": {name: model_digest(model) for name, model in sorted(models.items())},
    }


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the card for this process alone; the lock ends with the process, however it ends."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InvalidInputError(
            f"{path}: cannot be written ({error.strerror}); give a path in a folder that exists, "
            "with space and permission to write."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = lock.exists() and os.fstat(descriptor).st_ino == lock.stat().st_ino
        except OSError:
            held = False
        if not held:
            raise UsageError(
                f"{path}: another profiler is writing this card; wait for it or give another path."
            )
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _open_card(
    path: Path,
    engine: Runtime,
    identity: Mapping[str, Any],
    arguments: Mapping[str, Any],
    update: bool,
) -> CardWriter | None:
    """The card for these arguments: made, continued, or extended; None when it is finished."""
    environment = read_environment()
    if not path.exists() or path.stat().st_size == 0:
        created = None if engine.simulated else datetime.now(UTC).isoformat(timespec="seconds")
        meta = {
            **identity,
            "arguments": dict(arguments),
            "environment": environment.to_json(),
            "simulated": engine.simulated,
            "per_op_times": engine.status().per_op_times,
            "created": created,
            "complete": False,
        }
        return CardWriter.create(path, meta)
    card = DeviceCard.open(path)
    own = {
        "runtime": card.runtime,
        "runtime_version": card.runtime_version,
        "settings": card.settings.to_json(),
        "sentinel": card.sentinel,
    }
    found = [f"{key} {own[key]} → {identity[key]}" for key in own if own[key] != identity[key]]
    if own["sentinel"] != identity["sentinel"]:
        found = [line for line in found if not line.startswith("sentinel ")] + ["another sentinel"]
    if card.per_op_times != engine.status().per_op_times:  # an older version of this project's
        found.append(f"{'' if card.per_op_times else 'no '}times of single operations")
    if not engine.simulated:
        found += type(environment).from_json(card.environment).differences(environment)
    if found:
        raise UsageError(
            f"{path}: the card was made with {'; '.join(found)}; give another path for a new card."
        )
    changed = _changed(card.arguments, arguments)
    if changed and not update:
        raise UsageError(
            f"{path}: the card was made with other arguments ({'; '.join(changed)}); repeat those, "
            "add --update to measure more into it, or give another path."
        )
    if card.complete and not update:
        if path.with_name(f"{path.name}-wal").exists():  # cut off while it was made one file
            with CardWriter(path) as finished:
                finished.fold()
        return None
    writer = CardWriter(path)
    if update and (changed or card.complete):
        rounds = [v.round for network in card.networks for v in network.visits]
        writer.put(
            arguments=dict(arguments),
            complete=False,
            first_round=max(rounds, default=-1) + 1,
            probe_target=None,
            elapsed_s=0.0,
        )
    return writer


def _changed(own: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What of the arguments differs, each in a few words."""
    words = []
    for key in asked:
        if own.get(key) == asked[key]:
            continue
        if key == "extra_models":
            names = sorted(
                name
                for name in {*own.get(key, {}), *asked[key]}
                if own.get(key, {}).get(name) != asked[key].get(name)
            )
            words.append(f"extra networks: {', '.join(names[:3])}{' …' * (len(names) > 3)}")
        else:
            words.append(f"{key} {own.get(key)} → {asked[key]}")
    return words


def _finish(writer: CardWriter, path: Path, rules: FusionRules) -> None:
    """Fits a predictor to what was measured; keeps it in the card, with its validation."""
    from latency.predictor import Predictor

    derived = {"fusion": json.dumps(rules.to_json(), sort_keys=True).encode()}
    card = DeviceCard.open(path)
    writer.put(preempted=card.preempted)
    if not card.simulated:
        measured = [card.measurement(network) for network in card.networks if network.visits]
        writer.put(above_fastest=above_fastest(measured))
        card = DeviceCard.open(path)
    try:
        predictor = Predictor.fit(card)
        validation, derived["fit"] = predictor.validation, predictor.to_bytes()
    except AutospaceError as error:
        validation = {"networks": 0, "note": str(error)}
    writer.finish(validation, derived)
