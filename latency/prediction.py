"""What is predicted of a network, and of each of its kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from latency.kernel import Kernel

__all__ = ["KernelPrediction", "Prediction", "Source"]

Source = Literal["measured", "regressed", "roofline"]


@dataclass(frozen=True, slots=True)
class KernelPrediction:
    """One kernel's part of a prediction.

    Attributes:
        kernel: what is executed.
        latency_ms: its part of the network's latency, calibration included.
        source: "measured" (in the card's table), "regressed" (from its family), or "roofline"
            (its operation was never measured).
        nodes: names of the model's nodes that it covers, the heaviest first.
    """

    kernel: Kernel
    latency_ms: float
    source: Source
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted latency of one network.

    Attributes:
        latency_ms: of the undisturbed device; equals `fixed_ms` plus the kernels' sum.
        low_ms: lower end of the 90 % interval.
        high_ms: upper end of the 90 % interval.
        coverage: share of the kernels' time that is on operations that were measured, 0 to 1.
        fixed_ms: part that belongs to no kernel.
        kernels: in the order of execution.
        uncovered: names of operations that were never measured, each with how often it occurs.
        warnings: lines to show with the figures.
        device: fingerprint of the card.
        simulated: whether the card was simulated.
        kernels_from: "runtime" when the runtime compiled the model, "card" when its kernels were
            told by the fusion rules that the card holds.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    coverage: float
    fixed_ms: float
    kernels: tuple[KernelPrediction, ...]
    uncovered: tuple[tuple[str, int], ...]
    warnings: tuple[str, ...]
    device: str
    simulated: bool
    kernels_from: Literal["runtime", "card"] = "runtime"

    def to_json(self) -> dict[str, Any]:
        """The prediction as a JSON object."""
        return {
            "latency_ms": self.latency_ms,
            "low_ms": self.low_ms,
            "high_ms": self.high_ms,
            "coverage": self.coverage,
            "fixed_ms": self.fixed_ms,
            "uncovered": dict(self.uncovered),
            "warnings": list(self.warnings),
            "device": self.device,
            "simulated": self.simulated,
            "kernels_from": self.kernels_from,
            "kernels": [
                {
                    "latency_ms": item.latency_ms,
                    "source": item.source,
                    "nodes": list(item.nodes),
                    "kernel": item.kernel.to_json(),
                }
                for item in self.kernels
            ],
        }
