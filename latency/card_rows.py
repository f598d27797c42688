"""What a device card holds of each network: its kernels, and every visit's samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devices.visits import Visit
from latency.kernel import Kernel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


__all__ = ["ANCHOR", "CHOSEN", "WHOLE", "CardNetwork", "CardVisit"]

ANCHOR = "anchor"
"""The kind of a network that only pins down what every run and every kernel cost."""
CHOSEN = "chosen-"
"""How the names of probes begin that were chosen because little was known of them."""
WHOLE = "network-"
"""How the names of probes begin that are built like whole networks."""


@dataclass(frozen=True, eq=False)
class CardVisit:
    """One visit to one network.

    Attributes:
        round: in which round of the profile.
        at_s: seconds since the profile began; 0 when simulated.
        visit: whole-network samples and the sentinel's times.
        kernel_ms: raw times of each kernel, shape `(kernels, profiled_runs)`, in milliseconds;
            `(kernels, 0)` when the single kernels were not timed.
    """

    round: int
    at_s: float
    visit: Visit
    kernel_ms: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class CardNetwork:
    """One measured network.

    Attributes:
        name: unique in the card.
        kind: "probe", "extra" for a network that the caller gave, or `ANCHOR` for one that is
            nothing but overhead.
        digest: of the model's structure, see `latency.probes.model_digest`.
        kernels: in the order of execution.
        nodes: for each kernel, the names of the model's nodes that it covers.
        sources: for each kernel and each of its data inputs, the place of the kernel that makes it;
            -1 for an input of the network.
        visits: in the order of time.
        spec: what it was built from, as a JSON object; None where the card does not say.
    """

    name: str
    kind: str
    digest: str
    kernels: tuple[Kernel, ...]
    nodes: tuple[tuple[str, ...], ...]
    sources: tuple[tuple[int, ...], ...]
    visits: tuple[CardVisit, ...]
    spec: Mapping[str, Any] | None = None

    @property
    def repeatability(self) -> float | None:
        """How far two halves of the visits disagree on the network's fastest run.

        Halves of six visits say little each. None with fewer than four visits.
        """
        if len(self.visits) < 4:
            return None
        fastest = [v.visit.fastest_ms for v in self.visits]
        low, high = sorted(min(fastest[half::2]) for half in (0, 1))
        return high / low - 1
