"""``autospace predict``."""

from __future__ import annotations

from pathlib import Path

import click

from autospace.cli.common import FILE, Session, common_options

__all__ = ["command"]


@click.command("predict")
@click.argument("models", type=FILE, nargs=-1, required=True, metavar="MODEL.onnx...")
@click.option("--device", type=FILE, required=True, metavar="CARD", help="The device card.")
@click.option("--allow-mismatch", is_flag=True, help="Use a card of another machine or version.")
@click.option("--top", type=click.IntRange(0), default=10, show_default=True, help="Kernels shown.")
@common_options
def command(
    session: Session, models: tuple[Path, ...], device: Path, allow_mismatch: bool, top: int
) -> None:
    """Latency of an ONNX model on a card's device.

    Prints milliseconds with a 90 % interval, the coverage (the share of the predicted time that
    rests on measured kernel families) and the costliest kernels as the runtime runs them.

    \b
    Example:
      autospace predict model.onnx --device cpu.card
    """
    from autospace.steps import open_device
    from latency import Predictor

    opened = open_device(device, allow_mismatch=allow_mismatch)
    for warning in opened.warnings:
        session.note(f"warning: {warning}")
    predictor = Predictor.from_card(opened.card)
    documents = []
    for path in models:
        prediction = predictor.predict(path)
        documents.append({"model": str(path), **prediction.to_json()})
        session.say(
            f"{path}: {prediction.latency_ms:.4g} ms "
            f"[{prediction.low_ms:.4g}, {prediction.high_ms:.4g}], coverage "
            f"{prediction.coverage:.0%}, on {opened.description}"
        )
        for name, count in prediction.uncovered:
            session.note(f"warning: {path}: {count} × {name} never measured; a roofline estimate")
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
    session.result({"device": opened.description, "predictions": documents})
