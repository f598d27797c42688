"""From the exported ONNX model to the files that runtimes ship, each run and compared with PyTorch.

A converter writes one format; what it wrote is read back by the runtime itself and run on real
images. A file whose outputs are too far from PyTorch's is not kept. Half precision: ONNX's files
hold 16-bit weights and compute in 16 bits, OpenVINO's and LiteRT's hold 16-bit weights,
ExecuTorch's compute in 16 bits and are no smaller, for XNNPACK is given 32-bit weights. Eight bits:
weights and activations are quantised with scales found on calibration images, for ONNX and what
reads it by QuantizeLinear and DequantizeLinear around every layer, which runtimes turn into integer
kernels; for ExecuTorch by its own quantiser.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autospace.files import replacing
from autospace.graph import INPUT
from autospace.onnx_export import ExportCheck, compared, write_onnx
from devices.errors import UnavailableError

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    Images = NDArray[np.float32]
    Run = Callable[[Images], Images]

__all__ = ["CONVERTERS", "TOLERANCES", "ConvertedFile", "check_precision", "convert", "quantised"]

TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.25}
"""Largest difference of a logit from PyTorch's, as a part of the largest logit, by precision.
Eight bits cost some percent of it; a quarter means that the conversion went wrong."""
CALIBRATION_IMAGES = 128


@dataclass(frozen=True, slots=True)
class ConvertedFile:
    """One file that was written.

    Attributes:
        format: as the command names it.
        path: of the file.
        check: how far its outputs are from PyTorch's.
        accuracy: of the file on labelled images; None where there were none.
    """

    format: str
    path: Path
    check: ExportCheck
    accuracy: float | None

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return {
            "format": self.format,
            "model": str(self.path),
            "check": self.check.to_json(),
            "accuracy": self.accuracy,
        }


def convert(
    model: onnx.ModelProto,
    kind: str,
    path: Path,
    *,
    precision: str,
    images: Images,
    expected: Images,
    labels: NDArray[np.int64] | None = None,
    calibration: Images | None = None,
) -> ConvertedFile:
    """Writes one format, runs what was written, and keeps it when its outputs are PyTorch's.

    Args:
        model: of that precision already, but for formats that lower it themselves: see
            `LOWERING`.
        kind: a format, one of `CONVERTERS`.
        path: of the file.
        precision: what the outputs may be off by, see `TOLERANCES`.
        images: to run, shape `(n, channels, size, size)`, a whole number of the model's batches.
        expected: PyTorch's logits for them, shape `(n, classes)`.
        labels: their classes, if known.
        calibration: for formats that quantise themselves, images to find scales on, a whole number
            of batches.

    Raises:
        AutospaceError: the outputs differ by more than the tolerance; the message says where.
        UnavailableError: the runtime is not installed.
        InvalidInputError: the runtime refuses the model.
    """
    batch = _batch_of(model)
    with CONVERTERS[kind](model, path, precision, calibration) as run:
        found = np.concatenate([run(chunk) for chunk in np.split(images, len(images) // batch)])
        check = compared(found, expected, TOLERANCES[precision], f"export --{kind}")
    accuracy = None if labels is None else float((found.argmax(1) == labels).mean())
    return ConvertedFile(kind, path, check, accuracy)


def check_precision(kind: str, precision: str) -> None:
    """Refuses a precision that a format does not have.

    Raises:
        UnavailableError: it does not; the message names those that do.
    """
    from devices.runtimes import get_runtime

    if kind in READING_ONNX:
        return
    own = get_runtime(kind).status().precisions
    if precision not in own:
        others = [
            name
            for name in CONVERTERS
            if name in READING_ONNX or precision in get_runtime(name).status().precisions
        ]
        raise UnavailableError(
            f"export --{kind} --precision {precision}: {kind} has {', '.join(own)}; for "
            f"{precision} take {', '.join(f'--{name}' for name in others)}"
        )


def _batch_of(model: onnx.ModelProto) -> int:
    return int(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value)


# -- formats ---------------------------------------------------------------------------------------


@contextmanager
def _onnx_file(
    model: onnx.ModelProto, path: Path, precision: str, calibration: Images | None
) -> Iterator[Run]:
    """An ONNX file, run by ONNX Runtime; it is there only once the block has ended well."""
    from devices.onnx_files import read_onnx
    from devices.runtimes import get_runtime
    from devices.runtimes.base import RuntimeSettings

    runtime = get_runtime("onnxruntime")
    batch = _batch_of(model)
    settings = RuntimeSettings(batch=batch)
    with tempfile.TemporaryDirectory(prefix="autospace-export-") as folder:
        written = Path(folder) / path.name
        write_onnx(model, written)
        compiled = runtime.compile(read_onnx(written).SerializeToString(), settings)
        with runtime.load(compiled, settings) as loaded:

            def run(images: Images) -> Images:
                return np.asarray(loaded.infer({INPUT: images})[0], dtype=np.float32)

            yield run
        with replacing(path) as temporary:
            temporary.write_bytes(written.read_bytes())


@contextmanager
def _openvino_file(
    model: onnx.ModelProto, path: Path, precision: str, calibration: Images | None
) -> Iterator[Run]:
    """OpenVINO's two files, its graph (.xml) and its weights (.bin), run by OpenVINO."""
    from devices.runtimes.openvino import open_file, write_file

    with tempfile.TemporaryDirectory(prefix="autospace-export-") as folder:
        written = Path(folder) / path.name
        write_file(model.SerializeToString(), written, halved=precision == "fp16")
        yield open_file(written)
        for source, target in (
            (written.with_suffix(".bin"), path.with_suffix(".bin")),
            (written, path),
        ):
            with replacing(target) as temporary:
                temporary.write_bytes(source.read_bytes())


def _compiled_files(name: str) -> Converter:
    """What writes the files of a runtime that runs what it has compiled, as it stands in them."""

    @contextmanager
    def write(
        model: onnx.ModelProto, path: Path, precision: str, calibration: Images | None
    ) -> Iterator[Run]:
        from devices.runtimes import get_runtime
        from devices.runtimes.base import RuntimeSettings

        runtime = get_runtime(name)
        batch = _batch_of(model)
        settings = RuntimeSettings(batch=batch, precision=precision)
        data = model.SerializeToString()
        if precision == "int8" and name in LOWERING[precision] and calibration is not None:
            chunks = np.stack(np.split(calibration, len(calibration) // batch))
            compiled = runtime.quantise(data, settings, {INPUT: chunks})
        else:
            compiled = runtime.compile(data, settings)
        with runtime.load(compiled, settings) as loaded:

            def run(images: Images) -> Images:
                return np.asarray(loaded.infer({INPUT: images})[0], dtype=np.float32)

            yield run
        for suffix, content in runtime.files(compiled).items():
            target = path.with_name(path.name.removesuffix(SUFFIXES[name]) + suffix)
            with replacing(target) as temporary:
                temporary.write_bytes(content)

    return write


Converter = Callable[["onnx.ModelProto", Path, str, "Images | None"], Any]
CONVERTERS: Mapping[str, Converter] = {
    "onnx": _onnx_file,
    "openvino": _openvino_file,
    **{name: _compiled_files(name) for name in ("executorch", "litert", "ncnn", "tensorrt")},
}
"""Format -> what writes it, a context manager over a function from images to logits."""
SUFFIXES = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "executorch": ".pte",
    "litert": ".tflite",
    "ncnn": ".ncnn.param",
    "tensorrt": ".engine",
}
READING_ONNX = ("onnx", "openvino")
"""Formats that take whatever precision the ONNX model has."""
LOWERING: Mapping[str, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("openvino", "executorch", "litert", "ncnn", "tensorrt"),
    "int8": ("executorch",),
}
"""Formats that take the 32-bit model and lower it themselves, by precision."""


# -- precisions ------------------------------------------------------------------------------------


def quantised(model: onnx.ModelProto, images: Images) -> onnx.ModelProto:
    """The model in eight bits: weights channel by channel, activations by what images show.

    Weights use seven of their eight bits, for processors without instructions for dot products of
    bytes add pairs of products in 16 bits, which the eighth could overflow.

    Args:
        model: left alone.
        images: to calibrate with, shape `(n, channels, size, size)`, a whole number of batches.

    Raises:
        UnavailableError: the installed ONNX Runtime cannot quantise.
    """
    import onnx

    try:
        from onnxruntime.quantization import (
            CalibrationDataReader,
            QuantFormat,
            QuantType,
            quantize_static,
        )
    except ImportError as error:
        raise UnavailableError(
            f"export --precision int8: onnxruntime's quantisation does not load ({error}); "
            "install it with: pip install onnxruntime"
        ) from error
    batch = _batch_of(model)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The images, batch by batch."""

        def __init__(self) -> None:
            self.chunks = iter(np.split(images, len(images) // batch))

        def get_next(self) -> dict[str, Images] | None:
            """The next batch, None behind the last one."""
            chunk = next(self.chunks, None)
            return None if chunk is None else {INPUT: chunk}

    with tempfile.TemporaryDirectory(prefix="autospace-export-") as folder, _quietly():
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model.SerializeToString())
        quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        found = onnx.load(str(target))
    del found.metadata_props[:]
    found.metadata_props.extend(model.metadata_props)
    return found


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the advice that the quantiser logs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
