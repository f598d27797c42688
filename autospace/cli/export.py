"""``autospace export``."""

from __future__ import annotations

from pathlib import Path

import click

from autospace.cli.common import FILE, OUTPUT, Session, common_options

__all__ = ["command"]

_OTHERS = ("tensorrt", "openvino", "executorch", "litert", "ncnn")


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
@click.option("-o", "--output", type=OUTPUT, metavar="FILE", help="Named after the source if not.")
@common_options
def command(
    session: Session,
    source: Path | None,
    to_onnx: bool,
    precision: str,
    batch: int,
    output: Path | None,
    **others: bool,
) -> None:
    """Convert a network and check its outputs against PyTorch.

    Without an argument, the newest run in this folder is exported. Batch norm is folded; images
    go through both and the largest difference is printed; above 1e-3 nothing is written.

    \b
    Examples:
      autospace export --onnx
      autospace export checkpoint.safetensors --onnx -o model.onnx
    """
    from autospace import steps as step
    from autospace.pipeline import newest_network
    from devices.errors import UnavailableError, UsageError
    from devices.runtimes import get_runtime

    wanted = [name for name in _OTHERS if others[name]]
    if not to_onnx and not wanted:
        raise UsageError("export: no format; give --onnx")
    for name in wanted:
        get_runtime(name).require()
    if wanted:
        raise UnavailableError(
            f"export --{wanted[0]}: not supported by this version; export --onnx and convert that"
        )
    if precision != "fp32":
        raise UnavailableError(
            f"export --precision {precision}: this version exports fp32 only; use --precision fp32"
        )
    if source is None:
        source, named = newest_network(Path())
        session.note(f"exporting the newest run: {source}")
        output = output or named
    output = output or Path(f"{source.stem}.onnx")
    exported = step.export(source, output, batch=batch, seed=session.seed)
    for warning in exported.warnings:
        session.note(f"warning: {warning}")
    check = exported.check
    session.say(
        f"{output}: {exported.architecture.params / 1e6:.4g}M parameters, "
        f"{exported.architecture.madds / 1e6:.4g}M multiply-adds, batch {batch}"
    )
    session.say(
        f"  checked against PyTorch on {check.images} images: largest difference "
        f"{check.max_error:.2g} ({check.relative_error:.2g} of the largest logit), same class for "
        f"{check.agreement:.1%}"
    )
    session.result(
        {
            "model": str(output),
            "source": str(source),
            "trained": exported.trained,
            "precision": precision,
            "batch": batch,
            "check": check.to_json(),
            "warnings": list(exported.warnings),
        }
    )
