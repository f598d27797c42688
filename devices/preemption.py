"""Runs that lost their processor to another program, and what is made of them.

Low quantiles and a sentinel cannot help where something else runs on the very same core all the
time: every run is then long, and the sentinel's as well. The operating system knows better. On one
thread the time that the thread was on a processor is read beside the clock; what is missing was
spent waiting. With more threads only the fact is known, from the count of involuntary switches.

A run that waited is repeated, up to twice as many runs; where none is left undisturbed, the time on
the processor counts. It is a few percent above the truth, for the caches were another's meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter, thread_time

from devices.host import involuntary_switches

__all__ = ["Run", "busy_warning", "chosen", "timed_runs", "without_waiting"]

_WAITING_SHARE = 0.02
_WAITING_MS = 0.01
"""A run waited when more than this, and more than that share, of its time was off the processor;
reading both clocks takes a microsecond."""
_WORTH_TELLING = 0.1
"""Share of preempted runs; repeats have replaced as many as they could."""


@dataclass(frozen=True, slots=True)
class Run:
    """One timed run.

    Attributes:
        wall_ms: by the clock.
        waiting_ms: of that, how long it waited for a processor; 0 when it did not or that is not
            known.
        preempted: whether another program had its processor in between.
    """

    wall_ms: float
    waiting_ms: float
    preempted: bool

    @property
    def latency_ms(self) -> float:
        """Without the waiting."""
        return self.wall_ms - self.waiting_ms


def timed_runs(run: Callable[[], object], count: int, threads: int) -> list[Run]:
    """Runs until `count` runs were not preempted, at most twice as often.

    Args:
        run: runs once.
        count: how many undisturbed runs are wanted.
        threads: that it uses; with one it must work on the calling thread alone.

    Returns:
        `count` to `2 * count` runs in the order of time.
    """
    time_one = _timed_by_processor if threads == 1 else _timed_by_switches
    runs = [time_one(run) for _ in range(count)]
    missing = sum(r.preempted for r in runs)
    if missing == count:  # twice as long would not make it better
        return runs
    for _ in range(count):
        if missing <= 0:
            break
        runs.append(time_one(run))
        missing -= not runs[-1].preempted
    return runs


def chosen(runs: Sequence[Run], count: int) -> list[int]:
    """Places of the runs to keep, in the order of time: those that waited least.

    Args:
        runs: of `timed_runs`.
        count: how many to keep, at most as many as there are.
    """
    order = sorted(range(len(runs)), key=lambda i: (runs[i].preempted, runs[i].waiting_ms, i))
    return sorted(order[:count])


def busy_warning(share: float) -> str | None:
    """What to tell where that share of the runs was preempted; None where it does not matter."""
    if share < _WORTH_TELLING:
        return None
    return (
        f"{share:.0%} of the runs lost their core to another program; their time on the core was "
        "taken, which reads some percent high: stop the other program and measure again."
    )


def without_waiting(
    samples_ms: Mapping[str, Sequence[float]], waiting_ms: Sequence[float]
) -> dict[str, tuple[float, ...]]:
    """Takes the waiting of each run off the nodes that it hit.

    The profiler tells only by the clock how long a node took. How long a run waited in all is
    known, so the nodes that are furthest above what they usually take give it up, until it is used
    up; what is then left was waited by nodes that always wait, and comes off all in proportion.

    Args:
        samples_ms: by node, one time for each run.
        waiting_ms: of each run.

    Returns:
        The same, without the waiting.
    """
    times = {name: list(samples) for name, samples in samples_ms.items()}
    usual = {name: _quantile(samples, 0.25) for name, samples in times.items()}
    for run, waiting in enumerate(waiting_ms):
        if waiting <= 0:
            continue
        left = waiting
        for name in sorted(times, key=lambda n: usual[n] - times[n][run]):
            surplus = min(times[name][run] - usual[name], left)
            if surplus <= 0:
                break
            times[name][run] -= surplus
            left -= surplus
        whole = sum(samples[run] for samples in times.values())
        if 0 < left < whole:
            for samples in times.values():
                samples[run] *= 1 - left / whole
    return {name: tuple(samples) for name, samples in times.items()}


def _timed_by_processor(run: Callable[[], object]) -> Run:
    before = thread_time()
    start = perf_counter()
    run()
    wall_ms = (perf_counter() - start) * 1e3
    waiting_ms = wall_ms - (thread_time() - before) * 1e3
    preempted = waiting_ms > max(_WAITING_SHARE * wall_ms, _WAITING_MS)
    return Run(wall_ms, waiting_ms if preempted else 0.0, preempted)


def _timed_by_switches(run: Callable[[], object]) -> Run:
    before = involuntary_switches()
    start = perf_counter()
    run()
    wall_ms = (perf_counter() - start) * 1e3
    return Run(wall_ms, 0.0, involuntary_switches() > before)


def _quantile(samples: Sequence[float], share: float) -> float:
    ordered = sorted(samples)
    return ordered[int(share * (len(ordered) - 1))]
