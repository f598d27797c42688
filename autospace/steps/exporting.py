"""A network is written for runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autospace.data import Data
from autospace.events import Progress, silent
from autospace.files import check_writable
from autospace.seeding import Seed
from autospace.space import Architecture
from devices.errors import AutospaceError, InvalidInputError

if TYPE_CHECKING:
    from autospace.conversion import ConvertedFile
    from autospace.onnx_export import ExportCheck
    from autospace.training import TrainedNetwork

__all__ = ["Exported", "export", "read_network"]


@dataclass(frozen=True)
class Exported:
    """A converted network.

    Attributes:
        path: the first file.
        architecture: what it computes.
        trained: whether the weights were trained.
        warnings: to be repeated.
        files: what was written, with how far each is from PyTorch.
        accuracy: of the network itself on the images that files were judged by; None where these
            have no labels.
    """

    path: Path
    architecture: Architecture
    trained: bool
    warnings: tuple[str, ...]
    files: tuple[ConvertedFile, ...]
    accuracy: float | None

    @property
    def check(self) -> ExportCheck:
        """How far the first file's outputs are from PyTorch's."""
        return self.files[0].check


def export(
    source: Path | Architecture | TrainedNetwork,
    path: Path,
    *,
    batch: int = 1,
    data: Data | None = None,
    seed: int = 0,
    formats: Sequence[str] = ("onnx",),
    precision: str = "fp32",
    progress: Progress = silent,
) -> Exported:
    """Writes a network for one or more runtimes and compares the files' outputs with PyTorch's.

    Args:
        source: a checkpoint, an architecture, or their file.
        path: the file. With several formats, or one whose ending it has not, what stands before
            the ending of a format is kept, and each file has its own; an ONNX file that is alone
            may be called anything.
        batch: its fixed batch size.
        data: real images for the comparison and the calibration; drawn at random if not given.
        seed: of untrained weights and random images.
        formats: of `autospace.conversion.CONVERTERS`, at least one.
        precision: "fp32", "fp16" or "int8".
        progress: is told as it goes.

    Raises:
        InvalidInputError: neither an architecture nor a checkpoint.
        UsageError: a file cannot be written.
        AutospaceError: the outputs differ; that file is not written, those before it are.
        UnavailableError: a format's runtime is not installed, or has not that precision.
    """
    import numpy as np

    from autospace.conversion import (
        CALIBRATION_IMAGES,
        LOWERING,
        check_precision,
        convert,
        quantised,
    )
    from autospace.network import build_network
    from autospace.onnx_export import (
        architecture_metadata,
        build_onnx,
        folded_weights,
        outputs_of,
        whole_batches,
    )
    from autospace.training import TrainedNetwork
    from devices.onnx_half import half_precision

    targets = {kind: _target(path, kind, alone=len(formats) == 1) for kind in formats}
    for kind, target in targets.items():
        check_writable(target)
        check_precision(kind, precision)
    if isinstance(source, Path):
        source = read_network(source)
    warnings: list[str] = []
    metadata: dict[str, str] = {}
    if isinstance(source, TrainedNetwork):
        architecture, network = source.architecture, source.network
        trained = True
        for key in ("mean", "std", "data"):
            if key in source.meta:
                metadata[f"autospace.{key}"] = str(source.meta[key])
        metadata["autospace.test_accuracy"] = str(source.accuracy)
    else:
        architecture, network, trained = source, build_network(source, seed), False
        warnings.append("the weights are untrained: an architecture file holds none")
    network.eval()
    skeleton = architecture.skeleton
    model = build_onnx(
        architecture.nodes,
        folded_weights(network),
        batch=batch,
        metadata={**metadata, **architecture_metadata(architecture)},
    )
    fits = data is not None and (data.channels, data.resolution) == (
        skeleton.in_channels,
        skeleton.resolution,
    )
    labels = None
    if data is not None and fits:
        count = min(len(data.test), 64 if precision == "fp32" else 1000)
        images, truth = (part.numpy() for part in data.batch(data.test, np.arange(count)))
        count = min(len(data.train), CALIBRATION_IMAGES)
        calibration = data.batch(data.train, np.arange(count))[0].numpy()
        if trained:
            labels = truth
    else:
        shape = (8, skeleton.in_channels, skeleton.resolution, skeleton.resolution)
        images = Seed(seed).generator("export").normal(size=shape).astype(np.float32)
        calibration = images
        if precision == "int8":
            warnings.append("calibrated with random images: activations of real ones may not fit")
    images = whole_batches(images, batch)
    expected = outputs_of(network, images, batch)
    calibration = whole_batches(calibration, batch)
    lowered = model
    if set(formats) - set(LOWERING[precision]):
        if precision == "fp16":
            lowered = half_precision(model)
        elif precision == "int8":
            lowered = quantised(model, calibration)
    if labels is not None:
        labels = np.resize(labels, len(images))
    files: list[ConvertedFile] = []
    for kind, target in targets.items():
        progress(len(files) / len(targets), target.name)
        own = model if kind in LOWERING[precision] else lowered
        try:
            file = convert(
                own, kind, target, precision=precision, images=images, expected=expected,
                labels=labels, calibration=calibration,
            )  # fmt: skip
        except AutospaceError as error:
            if not files:
                raise
            kept = ", ".join(str(file.path) for file in files)
            text = str(error).removesuffix(".")
            raise type(error)(f"{text}; written before that: {kept}") from error
        files.append(file)
    progress(1.0, "compared with PyTorch")
    accuracy = None if labels is None else float((expected.argmax(1) == labels).mean())
    return Exported(files[0].path, architecture, trained, tuple(warnings), tuple(files), accuracy)


def _target(path: Path, kind: str, *, alone: bool) -> Path:
    """Where a format's file goes."""
    from autospace.conversion import SUFFIXES

    if path.name.endswith(SUFFIXES[kind]) or (alone and kind == "onnx"):
        return path
    ending = next((each for each in SUFFIXES.values() if path.name.endswith(each)), "")
    return path.with_name(path.name.removesuffix(ending) + SUFFIXES[kind])


def read_network(path: Path) -> Architecture | TrainedNetwork:
    """Reads an architecture file or a checkpoint, told apart by their content.

    Raises:
        InvalidInputError: neither.
    """
    from autospace.training import TrainedNetwork

    if path.is_dir():
        raise InvalidInputError(
            f"{path}: is a folder, not an architecture or a checkpoint; name the file in it"
        )
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise InvalidInputError(
            f"{path}: no such file; expected an architecture or a checkpoint"
        ) from None
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror})") from None
    # safetensors: eight bytes of header length, then the header, a JSON object.
    if start[5:] == b"\0\0\0{":
        return TrainedNetwork.load(path)
    return Architecture.load(path)
