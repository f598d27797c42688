"""``autospace benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from autospace.cli.common import FILE, OUTPUT, Session, common_options, shape_option

if TYPE_CHECKING:
    from autospace.steps import Benchmark
    from devices.measurement import Measurement
    from latency.compare import Comparison

__all__ = ["command"]


@click.command("benchmark")
@click.argument("models", type=FILE, nargs=-1, required=True, metavar="MODEL.onnx...")
@click.option("--device", type=FILE, metavar="CARD", help="The device card; or --runtime.")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="NAME",
    help="A runtime, without a card; may be repeated. See 'devices'.",
)
@click.option("--threads", type=click.IntRange(1, 1024), default=None, help="With --runtime.  [1]")
@click.option("--batch", type=click.IntRange(1, 4096), default=None, help="Images in a run.  [1]")
@click.option("--precision", metavar="NAME", help="With --runtime, as it has it.  [fp32]")
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
    device: Path | None,
    runtimes: tuple[str, ...],
    threads: int | None,
    batch: int | None,
    precision: str | None,
    allow_mismatch: bool,
    shapes: tuple[str, ...],
    visits: int,
    latency: str | None,
    statistic: str,
    output: Path,
) -> None:
    """Measure ONNX models here: predicted against measured, or in several runtimes.

    Models are visited in turn, in random order, with a sentinel network timed before and after
    each visit; raw samples go into the result file. With --runtime there is no card and nothing is
    predicted; loading, the first run, sustained throughput and memory are measured as well. A
    runtime that refuses a model, or dies of it, is named at the end; the others go on.

    \b
    Examples:
      autospace benchmark model.onnx --device cpu.card --latency 5ms
      autospace benchmark a.onnx b.onnx --runtime onnxruntime --runtime openvino
    """
    from autospace import steps as step
    from autospace.files import check_writable, write_json
    from autospace.quantities import parse_latency_ms, parse_shapes
    from devices.errors import AutospaceError, BudgetError, UsageError
    from devices.preemption import busy_warning
    from devices.runtimes.base import RuntimeSettings

    limit_ms = parse_latency_ms(latency) if latency is not None else None
    sizes = parse_shapes(shapes)
    if (device is None) == (not runtimes):
        what = "no target" if device is None else "two targets"
        raise UsageError(f"benchmark: {what}; give either --device CARD or --runtime NAME")
    if device is not None and (threads or batch or precision):
        raise UsageError(
            "benchmark: --threads, --batch and --precision are the card's; leave them out"
        )
    check_writable(output)
    found: dict[str, Measurement]
    result: step.Benchmark | Comparison
    refused: list[AutospaceError] = []
    if device is not None:
        opened = step.open_device(device, allow_mismatch=allow_mismatch)
        for warning in opened.warnings:
            session.note(f"warning: {warning}")
        with session.progress("measuring") as progress:
            result = step.benchmark(
                models, opened, shapes=sizes, visits=visits, seed=session.seed, progress=progress
            )
        found = {model.name: model.measured for model in result.models}
    else:
        settings = RuntimeSettings(
            threads=threads or 1, precision=precision or "fp32", batch=batch or 1
        )
        with session.progress("measuring") as progress:
            result = step.compare(
                models, runtimes, settings,
                shapes=sizes, visits=visits, seed=session.seed, progress=progress,
            )  # fmt: skip
        found = {f"{row.model} in {row.runtime}": row.measured for row in result.rows}
        refused = list(result.refused.values())
    write_json(output, result.to_json())
    for warning in result.warnings:
        if device is None or warning not in opened.warnings:
            session.note(f"warning: {warning}")
    busiest = max((measured.preempted for measured in found.values()), default=0.0)
    if (busy := busy_warning(busiest)) is not None:
        session.note(f"warning: {busy}")
    if isinstance(result, step.Benchmark):
        _show_predicted(session, result)
    else:
        _show_comparison(session, result)
    session.say(f"written: {output}")
    for error in refused:
        session.note(f"not measured: {error}")
    session.result(result.to_json())
    if limit_ms is not None:
        bounds = {name: _bound_ms(measured, statistic) for name, measured in found.items()}
        worst = max(bounds, key=lambda name: bounds[name])
        if bounds[worst] > limit_ms:
            raise BudgetError(
                f"{worst}: 95 % bound of {statistic} {bounds[worst]:.4g} ms, above the limit "
                f"{latency}"
            )
    if refused:
        all_pairs = len(refused) + len(found)
        raise type(refused[0])(
            f"{len(refused)} of {all_pairs} not measured; what each said stands above"
        )


def _show_predicted(session: Session, result: Benchmark) -> None:
    session.say(f"on {result.device}; latency is that of the undisturbed device, in ms")
    session.table(
        ("model", *_LATENCY_COLUMNS, "predicted", "error"),
        [
            (
                model.name,
                *_latency_cells(model.measured),
                f"{model.predicted.latency_ms:.4g}",
                f"{model.error:+.1%}",
            )
            for model in result.models
        ],
    )


def _show_comparison(session: Session, result: Comparison) -> None:
    settings = result.settings
    threads = "1 thread" if settings.threads == 1 else f"{settings.threads} threads"
    session.say(
        f"{threads}, {settings.precision}, batch {settings.batch}; latency is that of the "
        "undisturbed device, times in ms, memory with the runtime's own code"
    )
    session.table(
        ("model", "runtime", *_LATENCY_COLUMNS, "load", "first run", "images/s", "memory"),
        [
            (
                row.model,
                f"{row.runtime} {row.measured.runtime_version}",
                *_latency_cells(row.measured),
                f"{row.load_ms:.4g}",
                f"{row.first_ms:.4g}",
                f"{row.images_per_s:.4g}",
                "–" if row.memory_mb is None else f"{row.memory_mb:.0f} MB",
            )
            for row in result.rows
        ],
    )


_LATENCY_COLUMNS = ("latency", "90 % interval", "p50", "p90", "p99")


def _latency_cells(measured: Measurement) -> tuple[str, ...]:
    return (
        f"{measured.latency_ms:.4g}",
        f"{measured.low_ms:.4g} – {measured.high_ms:.4g}",
        f"{measured.p50_ms:.4g}",
        f"{measured.p90_ms:.4g}",
        f"{measured.p99_ms:.4g}",
    )


def _bound_ms(measured: Measurement, statistic: str) -> float:
    """The upper bound of a statistic, by its measured ratio to the latency."""
    if statistic == "latency":
        return measured.upper_ms()
    seen_ms: float = getattr(measured, f"{statistic}_ms")
    return measured.upper_ms() * seen_ms / measured.latency_ms
