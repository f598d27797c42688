"""What a run of a network tells of one of its kernels."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TraceEvent"]


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
