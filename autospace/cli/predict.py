"""``autospace predict``."""

from __future__ import annotations

from pathlib import Path

import click

from autospace.cli.common import FILE, Session, common_options, shape_option

__all__ = ["command"]


@click.command("predict")
@click.argument("models", type=FILE, nargs=-1, required=True, metavar="MODEL.onnx...")
@click.option("--device", type=FILE, required=True, metavar="CARD", help="The device card.")
@click.option("--allow-mismatch", is_flag=True, help="Use a card of another machine or version.")
@shape_option
@click.option("--top", type=click.IntRange(0), default=10, show_default=True, help="Kernels shown.")
@common_options
def command(
    session: Session,
    models: tuple[Path, ...],
    device: Path,
    allow_mismatch: bool,
    shapes: tuple[str, ...],
    top: int,
) -> None:
    """Latency of an ONNX model on a card's device.

    Prints milliseconds with a 90 % interval, the coverage (the share of the predicted time that
    rests on measured kernel families) and the costliest kernels as the runtime runs them.

    \b
    Examples:
      autospace predict model.onnx --device cpu.card
      autospace predict dynamic.onnx --shape input=1x3x224x224 --device cpu.card
    """
    from autospace.quantities import parse_shapes
    from autospace.steps import open_device
    from devices.onnx_files import read_onnx, shapes_by_model

    sizes = parse_shapes(shapes)
    opened = open_device(device, allow_mismatch=allow_mismatch)
    for warning in opened.warnings:
        session.note(f"warning: {warning}")
    of_model: dict[Path, dict[str, tuple[int, ...]]] = {}
    if sizes:
        of_model = shapes_by_model({p: read_onnx(p, weights=False) for p in models}, sizes)
    documents = []
    for path in models:
        prediction = opened.predictor.predict(path, of_model.get(path))
        documents.append(
            {"model": str(path), "shapes": of_model.get(path, {}), **prediction.to_json()}
        )
        session.say(
            f"{path}: {prediction.latency_ms:.4g} ms "
            f"[{prediction.low_ms:.4g}, {prediction.high_ms:.4g}], coverage "
            f"{prediction.coverage:.0%}, on {opened.description}"
        )
        for warning in prediction.warnings:
            # What concerns the card was said above, once for all models.
            if str(device) not in warning:
                session.note(f"warning: {path}: {warning}")
        costliest = sorted(prediction.kernels, key=lambda one: -one.latency_ms)[:top]
        if costliest:
            session.table(
                ("ms", "share", "kernel", "from", "ONNX nodes"),
                [
                    (
                        f"{one.latency_ms:.4f}",
                        f"{one.latency_ms / prediction.latency_ms:.1%}",
                        one.kernel.signature,
                        one.source,
                        ", ".join(one.nodes),
                    )
                    for one in costliest
                ],
            )
    session.result(
        {
            "device": opened.description,
            "warnings": list(opened.warnings),
            "predictions": documents,
        }
    )
