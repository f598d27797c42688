"""Models are measured: beside what a card predicts, or in several runtimes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autospace.events import Progress, silent
from autospace.steps.device import Device
from devices.errors import UsageError
from devices.measurement import Measurement

if TYPE_CHECKING:
    import onnx

    from devices.runtimes.base import RuntimeSettings
    from latency import Prediction
    from latency.compare import Comparison

__all__ = ["Benchmark", "BenchmarkedModel", "benchmark", "compare"]


@dataclass(frozen=True)
class BenchmarkedModel:
    """One model, predicted and measured.

    Attributes:
        name: its file's name.
        predicted: by the card.
        measured: on this machine.
    """

    name: str
    predicted: Prediction
    measured: Measurement

    @property
    def error(self) -> float:
        """Predicted divided by measured, minus 1."""
        return self.predicted.latency_ms / self.measured.latency_ms - 1


@dataclass(frozen=True)
class Benchmark:
    """What `benchmark` found.

    Attributes:
        models: in the order given.
        device: in words.
        warnings: to be repeated.
    """

    models: tuple[BenchmarkedModel, ...]
    device: str
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The document that ``benchmark`` writes, with raw samples."""
        return {
            "device": self.device,
            "warnings": list(self.warnings),
            "models": [
                {
                    "name": model.name,
                    "error": model.error,
                    "predicted": model.predicted.to_json(),
                    "measured": model.measured.to_json(),
                }
                for model in self.models
            ],
        }


def benchmark(
    models: Sequence[Path],
    device: Device,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    visits: int = 16,
    seed: int = 0,
    progress: Progress = silent,
) -> Benchmark:
    """Measures ONNX models on this machine, interleaved, beside what the card predicts.

    Args:
        models: ONNX files.
        device: an opened card of this machine.
        shapes: of inputs with dynamic dimensions other than the batch, by name.
        visits: to each model.
        seed: of the order of visits.
        progress: is told as it goes.

    Raises:
        InvalidInputError: no ONNX model, or the runtime refuses it.
        MismatchError: this machine is not the card's device.
        UnavailableError: the card's runtime is not installed.
    """
    from devices.errors import MismatchError
    from devices.measurement import speed_warning
    from devices.runtimes import get_runtime
    from latency.measure import naming

    if not device.here:
        get_runtime(device.card.runtime).require(device.card.settings)
        raise MismatchError(
            f"{device.card.path}: this machine is not the card's device, so nothing can be "
            "measured for it here; profile this machine with 'autospace profile-device'"
        )
    loaded = _fixed_models(models, shapes or {}, device.card.settings.batch)
    predictor = device.predictor
    predicted = {}
    for name, model in loaded.items():
        with naming(name):
            predicted[name] = predictor.predict(model)
    measured = device.measure(loaded, visits=visits, seed=seed, progress=progress)
    slow = speed_warning(measured.values())
    return Benchmark(
        tuple(BenchmarkedModel(name, predicted[name], measured[name]) for name in loaded),
        device.description,
        device.warnings if slow is None else (*device.warnings, slow),
    )


def compare(
    models: Sequence[Path],
    runtimes: Sequence[str],
    settings: RuntimeSettings,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    visits: int = 16,
    seed: int = 0,
    progress: Progress = silent,
) -> Comparison:
    """Measures ONNX models on this machine in several runtimes, interleaved.

    Args:
        models: ONNX files.
        runtimes: names.
        settings: threads, precision, batch.
        shapes: of inputs with dynamic dimensions other than the batch, by name.
        visits: to each model in each runtime.
        seed: of the order of visits.
        progress: is told as it goes.

    Returns:
        What was measured, and why what was not could not be.

    Raises:
        InvalidInputError: no ONNX model.
        UsageError: an unknown runtime, or one named twice.
        UnavailableError: a runtime is not installed.
        AutospaceError: every runtime refuses every model; of the first.
    """
    from latency.compare import compare_models

    loaded = _fixed_models(models, shapes or {}, settings.batch)
    return compare_models(loaded, runtimes, settings, visits=visits, seed=seed, progress=progress)


def _fixed_models(
    paths: Sequence[Path], shapes: Mapping[str, Sequence[int]], batch: int
) -> dict[str, onnx.ModelProto]:
    """Models by their file's name, with fixed shapes."""
    from autospace.conversion import SUFFIXES
    from devices.onnx_files import fix_shapes, read_onnx, shapes_by_model
    from latency.measure import naming

    loaded: dict[str, onnx.ModelProto] = {}
    for path in paths:
        kind = next((kind for kind, end in SUFFIXES.items() if path.name.endswith(end)), "onnx")
        if kind != "onnx":
            raise UsageError(
                f"{path}: is made for {kind}; give the ONNX model with --runtime {kind} or a card "
                "of it, it is converted before it is measured"
            )
        name = path.name if path.name not in loaded else str(path)
        loaded[name] = read_onnx(path)
    for name, own in shapes_by_model(loaded, shapes).items():
        with naming(name):
            loaded[name] = fix_shapes(loaded[name], batch, own)
    return loaded
