"""``autospace profile-device``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from autospace.cli.common import FILE, OUTPUT, Session, common_options

__all__ = ["command"]


@click.command("profile-device")
@click.option("--runtime", default="onnxruntime", show_default=True, help="See 'devices'.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True)
@click.option("--precision", default="fp32", show_default=True, help="As the runtime has it.")
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True)
@click.option(
    "--minutes",
    type=click.FloatRange(0.05, 1440),
    default=10.0,
    show_default=True,
    help="How long to measure; more is more accurate.",
)
@click.option(
    "--rounds", type=click.IntRange(1, 1000), help="A fixed number of rounds instead of minutes."
)
@click.option("--host", default="local", show_default=True, help="Where the device is.")
@click.option(
    "--space", type=FILE, metavar="SPACE", help="Measure the very kernels of this space too."
)
@click.option("--update", is_flag=True, help="Add measurements to a finished card.")
@click.option(
    "-o", "--output", type=OUTPUT, default=Path("device.card"), show_default=True, metavar="CARD"
)
@common_options
def command(
    session: Session,
    runtime: str,
    threads: int,
    precision: str,
    batch: int,
    minutes: float,
    rounds: int | None,
    host: str,
    space: Path | None,
    update: bool,
    output: Path,
) -> None:
    """Measure this device; write a device card.

    Small ONNX networks run in the runtime that will be used; every kernel's time is read inside
    them. The card keeps raw samples. Interrupted at any moment, the same command goes on.

    \b
    Examples:
      autospace profile-device -o cpu.card
      autospace profile-device --runtime onnxruntime --threads 2 --minutes 3 -o cpu2.card
    """
    from autospace import steps
    from autospace.files import check_writable
    from autospace.space import SearchSpace
    from devices.host import resolve_host
    from devices.preemption import busy_warning
    from devices.runtimes import get_runtime
    from devices.runtimes.base import RuntimeSettings

    resolve_host(host)
    get_runtime(runtime)
    if not output.is_file():
        check_writable(output)
    searched = SearchSpace.load(space) if space else None
    with session.progress(f"profiling {runtime}") as progress:
        card = steps.profile(
            output,
            runtime=runtime,
            settings=RuntimeSettings(threads=threads, precision=precision, batch=batch),
            minutes=None if rounds else minutes,
            rounds=rounds,
            seed=session.seed,
            space=searched,
            update=update,
            progress=progress,
        )
    if warning := busy_warning(card.preempted):
        session.note(f"warning: {output}: {warning}")
    summary = card.summary()
    session.say(f"{output}: {steps.describe_card(card)}")
    networks = sum(summary["networks"].values())
    session.say(f"  {networks} networks, {summary['kernels']} kernels, {summary['visits']} visits")
    repeatability, validation = summary["repeatability"], summary["validation"]
    if repeatability["median"] is not None:
        session.say(
            f"  two halves of the visits disagree by {repeatability['median']:.1%} (median), "
            f"{repeatability['p90']:.1%} (90th percentile)"
        )
    if states := _states(card.device_states):
        session.say(f"  the device after each round: {states}")
    if validation and "median_error" in validation:
        session.say(
            f"  each network predicted without itself: median error "
            f"{validation['median_error']:.1%}, {validation['within_10_percent']:.0%} within 10 %"
        )
    session.say(f"  next: autospace evolve --latency 5ms --device {output}")
    session.result({"card": str(output), **summary})


def _states(states: Sequence[Mapping[str, Any]]) -> str:
    """Clocks and temperature, each from its lowest to its highest; "" where nothing tells them."""
    told = []
    for key, name, unit in (
        ("sm_mhz", "cores", "MHz"),
        ("memory_mhz", "memory", "MHz"),
        ("temperature_c", "temperature", "°C"),
    ):
        values = [int(state[key]) for state in states if key in state]
        if values:
            span = " to ".join(str(value) for value in sorted({min(values), max(values)}))
            told.append(f"{name} {span} {unit}")
    return ", ".join(told)
