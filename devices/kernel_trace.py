"""What runs of a network tell of its kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from devices.preemption import Run, chosen, without_waiting
from devices.runtimes.base import NodeTiming

__all__ = ["TraceEvent", "kernel_timings"]


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One kernel in one run.

    Attributes:
        instruction: of the program; kernels of one part have the part's.
        op: as the runtime or XNNPACK calls it, such as "mean.out" or "Convolution (NHWC, F32) IGEMM
            #2"; unique in its instruction.
        delegated: whether XNNPACK executed it.
        time_ms: how long it took.
    """

    instruction: int
    op: str
    delegated: bool
    time_ms: float

    @property
    def name(self) -> str:
        """Unique in a run."""
        return f"{self.instruction}:{self.op}"


def kernel_timings(
    traced: Sequence[Sequence[TraceEvent]], runs: Sequence[Run], count: int
) -> dict[str, NodeTiming]:
    """The times of each kernel, as `CompiledModel.profile` gives them.

    Args:
        traced: the kernels of each run.
        runs: the same runs, see `devices.preemption.timed_runs`.
        count: how many of them to keep.
    """
    samples: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for run in traced:
        for event in run:
            kinds[event.name] = event.op
            samples.setdefault(event.name, []).append(event.time_ms)
    undisturbed = without_waiting(samples, [run.waiting_ms for run in runs])
    kept = chosen(runs, count)
    return {
        name: NodeTiming(kinds[name], tuple(times[place] for place in kept))
        for name, times in undisturbed.items()
    }
