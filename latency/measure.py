"""How to measure: many short visits in random order, each between two looks at the sentinel.

Each model is compiled once; its compiled graph waits in a temporary file and is loaded again for
every visit, so that memory stays bounded however many models there are. See `devices.measurement`
for what is then made of the visits, and docs/adr/0010-measuring-with-a-sentinel.md for why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from devices.errors import InvalidInputError, UsageError
from devices.measurement import ABOVE_FASTEST, Measurement
from devices.runtimes import get_runtime
from devices.runtimes.base import (
    CompiledGraph,
    CompiledModel,
    NodeTiming,
    Runtime,
    RuntimeSettings,
)
from devices.visits import ACCEPT_RATIO, Visit, quiet_enough, sentinel_reference, tells_more
from latency.graph_store import GraphStore

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

    from latency.kernel import KernelGraph

__all__ = [
    "Measurement",
    "Profiled",
    "VisitPlan",
    "Visitor",
    "by_position",
    "compile_named",
    "match_kernels",
    "measure_models",
    "naming",
]

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class VisitPlan:
    """How long a visit stays.

    Attributes:
        warm_up: runs that are not counted; the first ones fill caches and page in the weights.
        min_runs: counted runs, at least.
        max_runs: counted runs, at most.
        min_ms: counted runs go on until they took this long together.
        profiled_runs: runs with the runtime's profiler on.
        slow_ms: a run from which on a network counts as slow; its runs are steadier and cost more.
        slow_runs: counted runs of a slow network, at least, and its profiled runs.
        sentinel_runs: runs of the sentinel on each side, of which the median is kept.
    """

    warm_up: int = 2
    min_runs: int = 5
    max_runs: int = 40
    min_ms: float = 10.0
    profiled_runs: int = 6
    slow_ms: float = 4.0
    slow_runs: int = 3
    sentinel_runs: int = 9


@dataclass(frozen=True, slots=True)
class Profiled:
    """A visit that also timed the single kernels.

    Attributes:
        visit: whole-network samples, taken with the profiler off.
        kernels: times of each node of the compiled graph; empty when they were not asked for.
    """

    visit: Visit
    kernels: Mapping[str, NodeTiming]


class Visitor:
    """Holds the sentinel open and visits one compiled model at a time; a context manager.

    Args:
        runtime: to run with.
        settings: threads, precision, batch.
        plan: how long a visit stays.
    """

    def __init__(
        self, runtime: Runtime, settings: RuntimeSettings, plan: VisitPlan | None = None
    ) -> None:
        from latency.probes import build_sentinel

        self.runtime = runtime
        self.settings = settings
        self.plan = plan or VisitPlan()
        runtime.require(settings)
        graph = runtime.compile(build_sentinel(settings.batch).SerializeToString(), settings)
        self._sentinel: CompiledModel = runtime.load(graph, settings)
        self._sentinel.run(20)

    def visit(self, compiled: CompiledGraph, kernels: bool = False) -> Profiled:
        """One visit: load, warm up, sentinel, runs, sentinel, and the profiled runs in between.

        Args:
            compiled: the graph to run.
            kernels: whether to time the single kernels too.

        Returns:
            The samples, and with `kernels` the times of each node.
        """
        plan = self.plan
        with self.runtime.load(compiled, self.settings, profiling=kernels) as model:
            slow = model.run(plan.warm_up)[-1] >= plan.slow_ms
            before_ms = self.sentinel_ms()
            profiled_runs = plan.slow_runs if slow else plan.profiled_runs
            timings = model.profile(profiled_runs) if kernels else {}
            model.run(1)  # the sentinel, or reading the profile, has pushed it out of the caches
            preempted = model.preempted
            samples = model.run(plan.slow_runs if slow else plan.min_runs)
            mean_ms = sum(samples) / len(samples)
            missing = min(plan.max_runs, int(plan.min_ms / mean_ms) + 1) - len(samples)
            if missing > 0:
                samples += model.run(missing)
            share = (model.preempted - preempted) / len(samples)
            after_ms = self.sentinel_ms()
        return Profiled(Visit(tuple(samples), before_ms, after_ms, share), timings)

    def sentinel_ms(self) -> float:
        """Median time of the sentinel, now."""
        self._sentinel.run(2)
        times = sorted(self._sentinel.run(self.plan.sentinel_runs))
        return times[len(times) // 2]

    def close(self) -> None:
        """Frees the sentinel."""
        self._sentinel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def measure_models(
    models: Mapping[str, onnx.ModelProto],
    *,
    runtime: str | Runtime,
    settings: RuntimeSettings | None = None,
    visits: int = 12,
    seed: int = 0,
    reference_ms: float | None = None,
    above_fastest: float = ABOVE_FASTEST,
    patience_s: float = 0.0,
    progress: Progress | None = None,
) -> dict[str, Measurement]:
    """Measures networks on this machine, interleaved, in rounds of random order.

    Args:
        models: by the name that the results carry; any number.
        runtime: name of a runtime, or the runtime itself.
        settings: threads, precision, batch; one thread, fp32 and batch 1 by default.
        visits: rounds, each visiting every model once; at least 1. Where the sentinel accepts
            fewer than 3 of them, `latency_ms` rests on the fastest runs, or on all visits.
        seed: of the order.
        reference_ms: the sentinel's time on the undisturbed device when it is known from a device
            card (`DeviceCard.sentinel_reference_ms`), so that latencies are those of the device as
            profiled, even where the machine was slower or faster all the time; from this series by
            default.
        above_fastest: what latencies are of fastest runs, when it is known from a device card
            (`DeviceCard.above_fastest`).
        patience_s: how long to go on, after the rounds, visiting those models again that hardly any
            visit found about as fast as that.
        progress: called with the share done, from 0 to 1, and a line of text.

    Returns:
        A measurement for each model, in the order given.

    Raises:
        UsageError: `visits` is below 1, or the runtime is unknown.
        UnavailableError: the runtime or the precision is not available here.
        InvalidInputError: a model is not readable or refused; the message names it.
    """
    import numpy as np

    if visits < 1:
        raise UsageError(f"visits {visits}: must be 1 or more; take 8 or more to rely on it.")
    settings = settings or RuntimeSettings()
    engine = get_runtime(runtime) if isinstance(runtime, str) else runtime
    status = engine.require(settings)
    if not models:
        return {}
    report = progress or (lambda share, text: None)
    rng = np.random.default_rng(seed)
    names = list(models)
    found: dict[str, list[Visit]] = {name: [] for name in names}
    with ExitStack() as stack:
        store = stack.enter_context(GraphStore.temporary())
        visitor = stack.enter_context(Visitor(engine, settings))
        done, total = 0, len(names) * (visits + 1)
        for name in names:
            store.put(name, compile_named(engine, name, models[name], settings))
            done += 1
            report(done / total, f"compiled {name}")
        for round_index in range(visits):
            for place in rng.permutation(len(names)):
                name = names[place]
                with naming(name):
                    found[name].append(visitor.visit(store.get(name)).visit)
                done += 1
                report(done / total, f"round {round_index + 1} of {visits}: {name}")
        if reference_ms is not None:
            for name in _when_quiet(visitor, found, reference_ms, patience_s, report):
                with naming(name):
                    visit = visitor.visit(store.get(name)).visit
                if tells_more(visit, found[name], reference_ms):
                    found[name].append(visit)
    if reference_ms is None:
        reference_ms = _own_reference_ms(found)
    return {
        name: Measurement(
            name=name,
            visits=tuple(found[name]),
            sentinel_reference_ms=reference_ms,
            runtime=engine.name,
            runtime_version=status.version or "",
            settings=settings,
            simulated=engine.simulated,
            above_fastest=above_fastest,
        )
        for name in names
    }


def _when_quiet(
    visitor: Visitor,
    found: Mapping[str, Sequence[Visit]],
    reference_ms: float,
    patience_s: float,
    report: Progress,
) -> Iterator[str]:
    """Names of models to visit once more, until enough is known of the undisturbed device.

    Ends when that is so of all, or after `patience_s`. On a slow machine they are visited as well:
    one that flips between its speeds is fast for some runs of a visit. Of these visits only those
    are to be kept that say something (`devices.visits.tells_more`).
    """
    until_s = monotonic() + patience_s
    asked = dict.fromkeys(found, 0)
    while monotonic() < until_s:
        missing = [name for name, own in found.items() if not quiet_enough(own, reference_ms)]
        if not missing:
            return
        name = min(missing, key=lambda name: asked[name])
        asked[name] += 1
        slowdown = visitor.sentinel_ms() / reference_ms
        if slowdown > ACCEPT_RATIO:
            now = f"{slowdown:.2f} times slower than it can be"
        elif slowdown * ACCEPT_RATIO < 1:
            now = f"{1 / slowdown:.2f} times faster than when it was profiled"
        else:
            now = "quiet"
        report(1.0, f"again, the machine being {now}: {name}")
        yield name


def _own_reference_ms(found: Mapping[str, Sequence[Visit]]) -> float:
    """The sentinel's time on the undisturbed device, as far as one series of visits knows."""
    visits = [visit for visits_of_one in found.values() for visit in visits_of_one]
    return sentinel_reference(
        [t for visit in visits for t in (visit.sentinel_before_ms, visit.sentinel_after_ms)]
    )


def compile_named(
    runtime: Runtime, name: str, model: onnx.ModelProto, settings: RuntimeSettings
) -> CompiledGraph:
    """Compiles a model; an error names it.

    Raises:
        InvalidInputError: the model is not readable or refused.
    """
    from devices.onnx_files import to_bytes

    with naming(name):
        return runtime.compile(to_bytes(model), settings)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Puts the model's name into errors about "the model".

    Raises:
        InvalidInputError: the same error, with the name in it.
    """
    try:
        yield
    except InvalidInputError as error:
        text = str(error).removeprefix("model").removeprefix(":").strip()
        raise InvalidInputError(f"model {name!r}: {text}") from error


def match_kernels(
    graph: KernelGraph, stored: list[tuple[str, tuple[str, ...]]], name: str
) -> dict[str, int]:
    """Stored position of each kernel of a graph that was compiled again.

    The runtime numbers its layout changes differently from one compilation to the next, so kernels
    are matched by what they are and whom they serve, and where that is not enough (equal kernels
    that the runtime has put in another order) by what they are alone.

    Raises:
        UsageError: the runtime now compiles the network to other kernels.
    """
    exact: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for position, key in enumerate(stored):
        exact.setdefault(key, []).append(position)
    order, waiting = {}, []
    for node in graph.kernels:
        free = exact.get((node.kernel.signature, node.nodes))
        if free:
            order[node.name] = free.pop(0)
        else:
            waiting.append(node)
    alike: dict[str, list[int]] = {}
    for (signature, _), positions in exact.items():
        alike.setdefault(signature, []).extend(positions)
    for node in waiting:
        free = sorted(alike.get(node.kernel.signature, []))
        if not free:
            raise UsageError(
                f"network {name!r}: is now compiled to other kernels than when the card was begun; "
                "give another path for a new card."
            )
        order[node.name] = free[0]
        alike[node.kernel.signature].remove(free[0])
    return order


def by_position(profiled: Profiled, order: Mapping[str, int]) -> npt.NDArray[np.float32]:
    """Kernel times, shape `(kernels, profiled_runs)`; 0 where a node was not timed."""
    import numpy as np

    runs = max((len(t.samples_ms) for t in profiled.kernels.values()), default=0)
    times = np.zeros((len(order), runs), dtype=np.float32)
    for name, timing in profiled.kernels.items():
        if name in order and len(timing.samples_ms) == runs:
            times[order[name]] = timing.samples_ms
    return times
