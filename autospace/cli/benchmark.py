"""``autospace benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from autospace.cli.common import FILE, OUTPUT, Session, common_options, shape_option

if TYPE_CHECKING:
    from devices.measurement import Measurement

__all__ = ["command"]


@click.command("benchmark")
@click.argument("models", type=FILE, nargs=-1, required=True, metavar="MODEL.onnx...")
@click.option("--device", type=FILE, required=True, metavar="CARD", help="The device card.")
@click.option("--allow-mismatch", is_flag=True, help="Use a card of another runtime version.")
@shape_option
@click.option("--visits", type=click.IntRange(4, 1000), default=16, show_default=True)
@click.option(
    "--latency", metavar="TIME", help="A limit: exit code 3 if a model's 95 % bound is above it."
)
@click.option(
    "--statistic",
    type=click.Choice(["latency", "p50", "p90", "p99"]),
    default="latency",
    show_default=True,
    help="What --latency limits.",
)
@click.option(
    "-o", "--output", type=OUTPUT, default=Path("benchmark.json"), show_default=True, metavar="JSON"
)
@common_options
def command(
    session: Session,
    models: tuple[Path, ...],
    device: Path,
    allow_mismatch: bool,
    shapes: tuple[str, ...],
    visits: int,
    latency: str | None,
    statistic: str,
    output: Path,
) -> None:
    """Measure ONNX models here, predicted against measured.

    Models are visited in turn, in random order, with a sentinel network timed before and after
    each visit; raw samples go into the result file.

    \b
    Example:
      autospace benchmark model.onnx --device cpu.card --latency 5ms
    """
    from autospace import steps as step
    from autospace.files import check_writable
    from autospace.quantities import parse_latency_ms, parse_shapes
    from devices.errors import BudgetError
    from devices.preemption import busy_warning

    limit_ms = parse_latency_ms(latency) if latency is not None else None
    sizes = parse_shapes(shapes)
    check_writable(output)
    opened = step.open_device(device, allow_mismatch=allow_mismatch)
    for warning in opened.warnings:
        session.note(f"warning: {warning}")
    with session.progress("measuring") as progress:
        result = step.benchmark(
            models, opened, shapes=sizes, visits=visits, seed=session.seed, progress=progress
        )
    result.save(output)
    busiest = max((model.measured.preempted for model in result.models), default=0.0)
    if (busy := busy_warning(busiest)) is not None:
        session.note(f"warning: {busy}")
    session.say(f"on {result.device}; latency is that of the undisturbed device, in ms")
    session.table(
        ("model", "latency", "90 % interval", "p50", "p90", "p99", "predicted", "error"),
        [
            (
                model.name,
                f"{model.measured.latency_ms:.4g}",
                f"{model.measured.low_ms:.4g} – {model.measured.high_ms:.4g}",
                f"{model.measured.p50_ms:.4g}",
                f"{model.measured.p90_ms:.4g}",
                f"{model.measured.p99_ms:.4g}",
                f"{model.predicted.latency_ms:.4g}",
                f"{model.error:+.1%}",
            )
            for model in result.models
        ],
    )
    session.say(f"written: {output}")
    session.result(result.to_json())
    if limit_ms is not None:
        bounds = {model.name: _bound_ms(model.measured, statistic) for model in result.models}
        worst = max(bounds, key=lambda name: bounds[name])
        if bounds[worst] > limit_ms:
            raise BudgetError(
                f"{worst}: 95 % bound of {statistic} {bounds[worst]:.4g} ms, above the limit "
                f"{latency}"
            )


def _bound_ms(measured: Measurement, statistic: str) -> float:
    """The upper bound of a statistic, by its measured ratio to the latency."""
    if statistic == "latency":
        return measured.upper_ms()
    seen_ms: float = getattr(measured, f"{statistic}_ms")
    return measured.upper_ms() * seen_ms / measured.latency_ms
