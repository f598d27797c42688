"""``autospace export``."""

from __future__ import annotations

from pathlib import Path

import click

from autospace.cli.common import FILE, OUTPUT, Session, common_options

__all__ = ["command"]

_FORMATS = ("openvino", "executorch", "litert", "ncnn", "tensorrt")


@click.command("export")
@click.argument("source", type=FILE, required=False, metavar="[ARCH_OR_CHECKPOINT]")
@click.option("--onnx", "to_onnx", is_flag=True, help="Write an ONNX file.")
@click.option("--tensorrt", is_flag=True, help="Write a TensorRT engine.")
@click.option("--openvino", is_flag=True, help="Write an OpenVINO model.")
@click.option("--executorch", is_flag=True, help="Write an ExecuTorch program.")
@click.option("--litert", is_flag=True, help="Write a LiteRT model.")
@click.option("--ncnn", is_flag=True, help="Write an ncnn model.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
)
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True)
@click.option(
    "--data",
    "data_name",
    metavar="NAME",
    help="Real images for comparison and calibration; the checkpoint's own by default.",
)
@click.option("--data-root", type=FILE, metavar="FOLDER", help="Where the data lie.")
@click.option(
    "-o",
    "--output",
    type=OUTPUT,
    metavar="FILE",
    help="With several formats, each has its own ending; named after the source if not given.",
)
@common_options
def command(
    session: Session,
    source: Path | None,
    to_onnx: bool,
    precision: str,
    batch: int,
    data_name: str | None,
    data_root: Path | None,
    output: Path | None,
    **asked: bool,
) -> None:
    """Convert a network and check its outputs against PyTorch.

    Without an argument, the newest run in this folder is exported. Batch norm is folded; images
    go through PyTorch and through the file that was written, by its own runtime, and the largest
    difference is printed; above 1e-3 (2e-2 in 16 bits, 0.25 in 8) the file is not kept. With
    --precision int8 scales are found on training images, and accuracy is printed before and after.

    \b
    Examples:
      autospace export --onnx
      autospace export checkpoint.safetensors --onnx --openvino -o model.onnx
      autospace export checkpoint.safetensors --executorch --litert --ncnn
      autospace export checkpoint.safetensors --onnx --precision int8 -o model-int8.onnx
    """
    from autospace import steps as step
    from autospace.conversion import SUFFIXES
    from autospace.pipeline import newest_network
    from devices.errors import UsageError
    from devices.runtimes import get_runtime

    others = [name for name in _FORMATS if asked[name]]
    formats = [*(["onnx"] if to_onnx else []), *others]
    if not formats:
        raise UsageError("export: no format; give --onnx")
    for name in others:
        get_runtime(name).require()
    if source is None:
        source, named = newest_network(Path())
        session.note(f"exporting the newest run: {source}")
    else:
        named = source
    if output is None:
        bits = "" if precision == "fp32" else f"-{precision}"
        output = Path(f"{named.stem}{bits}{SUFFIXES[formats[0]]}")
    network = step.read_network(source)
    data, doubt = step.data_of(network, data_name, data_root)
    with session.progress("exporting") as progress:
        exported = step.export(
            network, output, batch=batch, data=data, seed=session.seed, formats=formats,
            precision=precision, progress=progress,
        )  # fmt: skip
    for warning in (*exported.warnings, *([doubt] if doubt else [])):
        session.note(f"warning: {warning}")
    images = "images" if data is None else f"images of {data.name}"
    for file in exported.files:
        check = file.check
        session.say(
            f"{file.path}: {exported.architecture.params / 1e6:.4g}M parameters, "
            f"{exported.architecture.madds / 1e6:.4g}M multiply-adds, batch {batch}"
            + (f", {precision}" if precision != "fp32" else "")
        )
        session.say(
            f"  checked against PyTorch on {check.images} {images}: largest difference "
            f"{check.max_error:.2g} ({check.relative_error:.2g} of the largest logit), same class "
            f"for {check.agreement:.1%}"
        )
        if file.accuracy is not None and exported.accuracy is not None:
            session.say(f"  accuracy {exported.accuracy:.2%} before, {file.accuracy:.2%} after")
    session.result(
        {
            "model": str(exported.files[0].path),
            "source": str(source),
            "trained": exported.trained,
            "precision": precision,
            "batch": batch,
            "check": exported.check.to_json(),
            "files": [file.to_json() for file in exported.files],
            "accuracy": exported.accuracy,
            "warnings": list(exported.warnings),
        }
    )
