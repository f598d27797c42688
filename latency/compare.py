"""Networks beside each other in several runtimes: how long, how soon, how much.

All pairs of network and runtime are visited in turn, in rounds of random order, each runtime with a
sentinel of its own, so that slow phases of the machine hit all alike. Beside the latency of single
runs stands what a user notices else: how long loading takes, the first run after it, how many
images a second are done when run follows run, and how much memory a process needs for it.

A pair that cannot be measured (an operation that the runtime refuses, a crash, a hang) is named
with the reason, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from devices.errors import AutospaceError, UsageError
from devices.footprint import memory_mb
from devices.measurement import Measurement
from devices.runtimes import get_runtime
from devices.runtimes.base import CompiledGraph, Runtime, RuntimeSettings
from devices.visits import Visit, sentinel_reference
from latency.graph_store import GraphStore
from latency.measure import Visitor, compile_named, naming

if TYPE_CHECKING:
    import onnx

__all__ = ["Compared", "Comparison", "compare_models"]

Progress = Callable[[float, str], None]
Pair = tuple[str, str]
"""Names of a network and a runtime."""

_LOADS = 3
"""Times that a model is loaded for the time of loading and of its first run."""
_SUSTAINED_S = 1.0


@dataclass(frozen=True, slots=True)
class Compared:
    """One network in one runtime.

    Attributes:
        model: its name.
        measured: latency of single runs.
        compile_ms: what making the compiled graph took, once.
        load_ms: what loading that took, median.
        first_ms: the first run after loading, median.
        images_per_s: when run follows run.
        memory_mb: that a process grows by, see `devices.footprint`; None where simulated, or where
            that could not be told.
    """

    model: str
    measured: Measurement
    compile_ms: float
    load_ms: float
    first_ms: float
    images_per_s: float
    memory_mb: float | None

    @property
    def runtime(self) -> str:
        """Name of the runtime."""
        return self.measured.runtime

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, with raw samples."""
        return {
            "model": self.model,
            "runtime": self.runtime,
            "compile_ms": self.compile_ms,
            "load_ms": self.load_ms,
            "first_ms": self.first_ms,
            "images_per_s": self.images_per_s,
            "memory_mb": self.memory_mb,
            "measured": self.measured.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Networks in runtimes.

    Attributes:
        settings: threads, precision and batch.
        rows: network by network, in each of the runtimes, in the order given.
        refused: why the pairs of network and runtime that are not among them were not measured.
        warnings: what else was not as it should be, a line each.
    """

    settings: RuntimeSettings
    rows: tuple[Compared, ...]
    refused: Mapping[tuple[str, str], AutospaceError]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, with raw samples."""
        return {
            "settings": self.settings.to_json(),
            "models": [row.to_json() for row in self.rows],
            "refused": [
                {"model": model, "runtime": runtime, "reason": str(error)}
                for (model, runtime), error in self.refused.items()
            ],
            "warnings": list(self.warnings),
        }


def compare_models(
    models: Mapping[str, onnx.ModelProto],
    runtimes: Sequence[str],
    settings: RuntimeSettings | None = None,
    *,
    visits: int = 12,
    seed: int = 0,
    sustained_s: float = _SUSTAINED_S,
    progress: Progress | None = None,
) -> Comparison:
    """Measures every network in every runtime, interleaved.

    Args:
        models: by name, with fixed shapes or a symbolic batch.
        runtimes: names.
        settings: threads, precision, batch; of all of them.
        visits: rounds, each visiting every pair once.
        seed: of the order.
        sustained_s: for how long run follows run.
        progress: called with the share done, from 0 to 1, and a line of text.

    Returns:
        What was measured, and what could not be.

    Raises:
        UsageError: a runtime is unknown or named twice, or `visits` is below 1.
        UnavailableError: a runtime or the precision is not available here.
        AutospaceError: not one pair could be measured; of the first, with both names.
    """
    if visits < 1:
        raise UsageError(f"visits {visits}: must be 1 or more; take 8 or more to rely on it.")
    twice = [name for name in runtimes if list(runtimes).count(name) > 1]
    if twice:
        raise UsageError(f"runtime {twice[0]!r}: named twice; give each once.")
    settings = settings or RuntimeSettings()
    engines = {name: get_runtime(name) for name in runtimes}
    for engine in engines.values():
        engine.require(settings)
    comparison = _Comparison(engines, settings, progress or (lambda share, text: None))
    return comparison.run(models, visits, seed, sustained_s)


class _Comparison:
    """One comparison."""

    def __init__(
        self, engines: Mapping[str, Runtime], settings: RuntimeSettings, progress: Progress
    ) -> None:
        self.engines = engines
        self.settings = settings
        self.progress = progress
        self.refused: dict[Pair, AutospaceError] = {}
        self.warnings: list[str] = []

    def run(
        self, models: Mapping[str, onnx.ModelProto], visits: int, seed: int, sustained_s: float
    ) -> Comparison:
        """See `compare_models`."""
        import numpy as np

        pairs = [(model, runtime) for model in models for runtime in self.engines]
        found: dict[Pair, list[Visit]] = {pair: [] for pair in pairs}
        compiled_ms: dict[Pair, float] = {}
        rows = []
        steps = len(pairs) * (visits + 2)
        rng = np.random.default_rng(seed)
        with ExitStack() as stack:
            store = stack.enter_context(GraphStore.temporary())
            visitors = {
                name: stack.enter_context(Visitor(engine, self.settings))
                for name, engine in self.engines.items()
            }
            for done, pair in enumerate(pairs):
                model, runtime = pair
                began = perf_counter()
                with self._refusing(pair):
                    graph = compile_named(
                        self.engines[runtime], model, models[model], self.settings
                    )
                    compiled_ms[pair] = (perf_counter() - began) * 1e3
                    store.put(_key(pair), graph)
                self.progress(done / steps, f"compiled {model} for {runtime}")
            for round_ in range(visits):
                for place in rng.permutation(len(pairs)):
                    pair = pairs[int(place)]
                    if pair not in self.refused:
                        with self._refusing(pair), naming(pair[0]):
                            visit = visitors[pair[1]].visit(store.get(_key(pair))).visit
                            found[pair].append(visit)
                share = len(pairs) * (round_ + 2) / steps
                self.progress(share, f"round {round_ + 1} of {visits}")
            references = _references(found)
            for pair in pairs:
                if pair not in self.refused:
                    with self._refusing(pair), naming(pair[0]):
                        graph = store.get(_key(pair))
                        reference_ms = references[pair[1]]
                        rows.append(
                            self._compared(
                                pair, found[pair], reference_ms, compiled_ms[pair], graph,
                                sustained_s,
                            )
                        )  # fmt: skip
        if not rows and self.refused:
            raise next(iter(self.refused.values()))
        return Comparison(self.settings, tuple(rows), self.refused, tuple(self.warnings))

    @contextmanager
    def _refusing(self, pair: Pair) -> Iterator[None]:
        """Keeps why a pair cannot be measured, with both names in it."""
        model, runtime = pair
        try:
            yield
        except AutospaceError as error:
            text = str(error)
            if repr(model) not in text:
                text = f"model {model!r}: {text}"
            if repr(runtime) not in text:
                text = f"{text} [runtime {runtime}]"
            self.refused[pair] = type(error)(text)

    def _compared(
        self,
        pair: Pair,
        visits: Sequence[Visit],
        reference_ms: float,
        compiled_ms: float,
        graph: CompiledGraph,
        sustained_s: float,
    ) -> Compared:
        model, runtime = pair
        engine = self.engines[runtime]
        loads_ms, firsts_ms = [], []
        for _ in range(_LOADS):
            began = perf_counter()
            with engine.load(graph, self.settings) as loaded:
                loads_ms.append((perf_counter() - began) * 1e3)
                firsts_ms.append(loaded.run(1)[0])
        with engine.load(graph, self.settings) as loaded:
            typical_ms = loaded.run(5)[-1]
            images_per_s = self._sustained(loaded.run, typical_ms, sustained_s)
        self.progress(1.0, f"{model} in {runtime}")
        return Compared(
            model=model,
            measured=Measurement(
                name=model,
                visits=tuple(visits),
                sentinel_reference_ms=reference_ms,
                runtime=runtime,
                runtime_version=engine.status().version or "",
                settings=self.settings,
                simulated=engine.simulated,
            ),
            compile_ms=compiled_ms,
            load_ms=median(loads_ms),
            first_ms=median(firsts_ms),
            images_per_s=images_per_s,
            memory_mb=self._memory_mb(pair, graph),
        )

    def _memory_mb(self, pair: Pair, graph: CompiledGraph) -> float | None:
        """What it needs, or None and a warning: the times are worth telling without it."""
        if self.engines[pair[1]].simulated:
            return None
        try:
            return memory_mb(pair[1], graph, self.settings)
        except AutospaceError as error:
            self.warnings.append(f"model {pair[0]!r}: {error}")
            return None

    def _sustained(
        self, run: Callable[[int], list[float]], typical_ms: float, seconds: float
    ) -> float:
        """Images a second when run follows run, runs that lost their core left out."""
        chunk = max(1, min(50, int(100.0 / max(typical_ms, 1e-3))))
        count, total_ms, left = 0, 0.0, 10_000
        while total_ms < seconds * 1e3 and left > 0:
            times = run(chunk)
            count, total_ms, left = count + len(times), total_ms + sum(times), left - 1
        return self.settings.batch * count / (total_ms / 1e3)


def _references(found: Mapping[Pair, Sequence[Visit]]) -> dict[str, float]:
    """Of each runtime that measured anything, its undisturbed sentinel."""
    sentinels: dict[str, list[float]] = {}
    for (_, runtime), visits in found.items():
        for visit in visits:
            sentinels.setdefault(runtime, []).extend(
                (visit.sentinel_before_ms, visit.sentinel_after_ms)
            )
    return {runtime: sentinel_reference(times_ms) for runtime, times_ms in sentinels.items()}


def _key(pair: Pair) -> str:
    model, runtime = pair
    return f"{runtime}\n{model}"
