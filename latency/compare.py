"""Networks beside each other in several runtimes: how long, how soon, how much.

All pairs of network and runtime are visited in turn, in rounds of random order, each runtime with a
sentinel of its own, so that slow phases of the machine hit all alike. Beside the latency of single
runs stands what a user notices else: how long loading takes, the first run after it, how many
images a second are done when run follows run, and how much memory a process needs for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from devices.errors import InvalidInputError, UsageError
from devices.footprint import memory_mb
from devices.measurement import Measurement
from devices.runtimes import get_runtime
from devices.runtimes.base import CompiledGraph, Runtime, RuntimeSettings
from devices.visits import Visit, sentinel_reference
from latency.graph_store import GraphStore
from latency.measure import Visitor, compile_named, naming

if TYPE_CHECKING:
    import onnx

__all__ = ["Compared", "compare_models"]

Progress = Callable[[float, str], None]

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
        memory_mb: that a process grows by, see `devices.footprint`; None where simulated.
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


def compare_models(
    models: Mapping[str, onnx.ModelProto],
    runtimes: Sequence[str],
    settings: RuntimeSettings | None = None,
    *,
    visits: int = 12,
    seed: int = 0,
    sustained_s: float = _SUSTAINED_S,
    progress: Progress | None = None,
) -> tuple[Compared, ...]:
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
        The pairs, network by network, in the order given.

    Raises:
        UsageError: a runtime is unknown or named twice, or `visits` is below 1.
        UnavailableError: a runtime or the precision is not available here.
        InvalidInputError: a runtime refuses a network; the message names both.
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

    def run(
        self, models: Mapping[str, onnx.ModelProto], visits: int, seed: int, sustained_s: float
    ) -> tuple[Compared, ...]:
        """See `compare_models`."""
        import numpy as np

        pairs = [(model, runtime) for model in models for runtime in self.engines]
        found: dict[tuple[str, str], list[Visit]] = {pair: [] for pair in pairs}
        compiled_ms: dict[tuple[str, str], float] = {}
        steps = len(pairs) * (visits + 2)
        rng = np.random.default_rng(seed)
        with ExitStack() as stack:
            store = stack.enter_context(GraphStore.temporary())
            visitors = {
                name: stack.enter_context(Visitor(engine, self.settings))
                for name, engine in self.engines.items()
            }
            for done, (model, runtime) in enumerate(pairs):
                began = perf_counter()
                graph = self._compiled(models[model], model, runtime)
                compiled_ms[model, runtime] = (perf_counter() - began) * 1e3
                store.put(_key(model, runtime), graph)
                self.progress(done / steps, f"compiled {model} for {runtime}")
            for round_ in range(visits):
                for place in rng.permutation(len(pairs)):
                    model, runtime = pairs[int(place)]
                    with naming(model):
                        visit = visitors[runtime].visit(store.get(_key(model, runtime))).visit
                    found[model, runtime].append(visit)
                share = len(pairs) * (round_ + 2) / steps
                self.progress(share, f"round {round_ + 1} of {visits}")
            references = {
                name: sentinel_reference(
                    [
                        time_ms
                        for (_, runtime), own in found.items()
                        for visit in own
                        for time_ms in (visit.sentinel_before_ms, visit.sentinel_after_ms)
                        if runtime == name
                    ]
                )
                for name in self.engines
                if models
            }
            return tuple(
                self._compared(
                    pair, found[pair], references, compiled_ms, store.get(_key(*pair)), sustained_s
                )
                for pair in pairs
            )

    def _compiled(self, proto: onnx.ModelProto, model: str, runtime: str) -> CompiledGraph:
        try:
            return compile_named(self.engines[runtime], model, proto, self.settings)
        except InvalidInputError as error:
            raise InvalidInputError(f"{error} [runtime {runtime}]") from error

    def _compared(
        self,
        pair: tuple[str, str],
        visits: Sequence[Visit],
        references: Mapping[str, float],
        compiled_ms: Mapping[tuple[str, str], float],
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
                sentinel_reference_ms=references[runtime],
                runtime=runtime,
                runtime_version=engine.status().version or "",
                settings=self.settings,
                simulated=engine.simulated,
            ),
            compile_ms=compiled_ms[pair],
            load_ms=median(loads_ms),
            first_ms=median(firsts_ms),
            images_per_s=images_per_s,
            memory_mb=None if engine.simulated else memory_mb(runtime, graph, self.settings),
        )

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


def _key(model: str, runtime: str) -> str:
    return f"{runtime}\n{model}"
