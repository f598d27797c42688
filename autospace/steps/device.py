"""A device card, opened and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from autospace.events import Progress, silent
from devices.measurement import Measurement

if TYPE_CHECKING:
    import onnx

    from latency import DeviceCard, Predictor

__all__ = ["Device", "describe_card", "open_device"]

_VISITS = 12
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Device:
    """A card that was opened and checked, with its predictor.

    Attributes:
        card: the card.
        warnings: what was found and allowed; to be repeated beside every figure.
        here: whether this machine is the card's device, so that it can measure.
        patience_s: how long a machine is waited for that is far slower or faster than when it was
            profiled; as long as the profile took by default, and a minute at most.
    """

    card: DeviceCard
    warnings: tuple[str, ...]
    here: bool
    patience_s: float | None = None

    @property
    def description(self) -> str:
        """For output: device, runtime, threads, precision, batch."""
        return describe_card(self.card)

    @cached_property
    def predictor(self) -> Predictor:
        """Of latencies on this device; what it works out for one network serves the next.

        Raises:
            InvalidInputError: nothing was measured in the card yet.
        """
        from latency import Predictor

        return Predictor.from_card(self.card)

    def measure(
        self,
        models: Mapping[str, onnx.ModelProto],
        *,
        visits: int = _VISITS,
        seed: int = 0,
        progress: Progress = silent,
    ) -> dict[str, Measurement]:
        """Measures models on this device, interleaved."""
        from latency import measure_models

        patience_s = self.patience_s
        if patience_s is None:
            patience_s = min(_PATIENCE_S, self.card.elapsed_s)
        return measure_models(
            models,
            runtime=self.card.runtime,
            settings=self.card.settings,
            visits=visits,
            seed=seed,
            reference_ms=self.card.sentinel_reference_ms,
            above_fastest=self.card.above_fastest,
            patience_s=patience_s,
            progress=progress,
        )


def describe_card(card: DeviceCard) -> str:
    """Device, runtime, threads, precision and batch of a card in one line."""
    settings = card.settings
    threads = f"{settings.threads} thread" + ("s" if settings.threads > 1 else "")
    name = "simulated device" if card.simulated else card.environment.get("cpu", "unknown CPU")
    return (
        f"{name} · {card.runtime} {card.runtime_version} · {threads} · {settings.precision} · "
        f"batch {settings.batch}"
    )


def open_device(path: Path, *, allow_mismatch: bool = False, batch: int | None = None) -> Device:
    """Opens a device card and checks that it speaks for this machine.

    Args:
        path: the card.
        allow_mismatch: turns differences into warnings.
        batch: the batch size that latency is asked for; None is the card's own.

    Raises:
        InvalidInputError: no card, or damaged.
        MismatchError: made elsewhere, and that was not allowed.
    """
    from latency import DeviceCard

    card = DeviceCard.open(path, samples=False)
    warnings = card.check_usable(allow_mismatch)
    here = card.is_this_machine()
    if batch is not None:
        asked = replace(card.settings, batch=batch)
        warnings = (*warnings, *card.check_settings(asked, allow_mismatch))
    # By name only: a run folder that was moved says the same.
    warnings = tuple(warning.replace(str(card.path), card.path.name) for warning in warnings)
    return Device(card, warnings, here)
