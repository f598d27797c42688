"""``autospace evolve``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autospace.accelerator import Accelerator
from autospace.cli.common import (
    OUTPUT,
    Session,
    check_limits_given,
    common_options,
    data_options,
    limit_options,
)

if TYPE_CHECKING:
    from autospace.cli.live import Figure

__all__ = ["command"]


@click.command("evolve")
@limit_options
@click.option(
    "--skeleton",
    default="mobile",
    show_default=True,
    help="Macro layout at which costs are counted: mobile (224×224), small (32×32), tiny (16×16).",
)
@click.option("--width-mult", type=click.FloatRange(0.05, 20), default=1.0, show_default=True)
@data_options
@click.option("--generations", type=int, default=120, show_default=True)
@click.option("--warmup", type=int, default=40, show_default=True, help="Generations before α.")
@click.option("--population", type=int, default=24, show_default=True, help="Cells a layer.")
@click.option("--sampled", type=int, default=4, show_default=True, help="Cells stacked (K).")
@click.option("--tournament", type=int, default=3, show_default=True)
@click.option("--steps", type=int, default=4, show_default=True, help="Steps a generation.")
@click.option("--batch-size", type=int, default=64, show_default=True, help="Of a step.")
@click.option(
    "--kernel-reading",
    type=click.Choice(["kernel", "dilated"]),
    default="kernel",
    show_default=True,
    help="How fused depthwise operations are built.",
)
@click.option(
    "--option",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other open choice of the evolution, as in momentum=0.7 or settled=2 (never stop "
    "early); can be repeated. The names are those of [evolve] in a configuration.",
)
@click.option(
    "--log", type=OUTPUT, metavar="JSONL", help="The log; beside SPACE, as .jsonl, if not given."
)
@click.option(
    "-o", "--output", type=OUTPUT, default=Path("space.json"), show_default=True, metavar="SPACE"
)
@common_options
def command(
    session: Session,
    budget: str | None,
    latency: str | None,
    device: Path | None,
    statistic: str,
    batch: int | None,
    allow_mismatch: bool,
    skeleton: str,
    width_mult: float,
    data: str,
    data_root: Path | None,
    resolution: int | None,
    accelerator: Accelerator,
    generations: int,
    warmup: int,
    population: int,
    sampled: int,
    tournament: int,
    steps: int,
    batch_size: int,
    kernel_reading: str,
    settings: tuple[str, ...],
    log: Path | None,
    output: Path,
) -> None:
    """Evolve a search space for a budget.

    Costs are counted at the target (skeleton, input size, device); fitness is learned on the data
    at hand, which may be a proxy. Both are named in the output. State is saved as it goes: after
    an interruption the same command goes on. It stops before --generations when the space no
    longer changes.

    Started by torchrun, several processes share each batch and get the space that one gets, up to
    rounding; the first one writes.

    \b
    Examples:
      autospace evolve --budget 500M
      autospace evolve --latency 5ms --device cpu.card --skeleton small --data fashion-mnist
    """
    from autospace import steps as step
    from autospace.checks import hardly_learned
    from autospace.config import with_settings
    from autospace.data import check_data_name
    from autospace.evolution_options import EvolutionOptions
    from autospace.files import check_writable
    from autospace.operations import KERNEL_READINGS
    from autospace.quantities import format_count
    from autospace.skeleton import find_skeleton
    from devices.errors import UsageError

    check_limits_given("evolve", budget, latency, device)
    check_data_name(data)
    named = find_skeleton(skeleton)
    if not math.isfinite(width_mult):  # nan passes click's range
        raise UsageError(f"--width-mult {width_mult}: must be 0.05 to 20")
    check_writable(output)
    log = log or output.with_suffix(".jsonl")
    check_writable(log)
    if log.resolve() == output.resolve():
        raise UsageError(f"{output}: both the space and its log; name the log with --log")
    options: EvolutionOptions = EvolutionOptions(
        generations=generations,
        warmup=warmup,
        population=population,
        sampled=sampled,
        tournament=tournament,
        steps=steps,
        batch=batch_size,
    )
    options = with_settings(options, settings)
    options.check()
    session.detail(f"options: {options}")
    opened = (
        step.open_device(device, allow_mismatch=allow_mismatch, batch=batch) if device else None
    )
    for warning in opened.warnings if opened else ():
        session.note(f"warning: {warning}")
    images = step.load_proxy(data, data_root, named, resolution, accelerator)
    target = step.target_skeleton(skeleton, images, width_mult=width_mult)
    session.note(
        f"target: {target.name} skeleton at {target.resolution}×{target.resolution}, "
        f"{target.num_classes} classes"
        + (f", on {opened.description}" if opened else ", counted in multiply-adds")
    )
    proxy = (images.num_classes, images.resolution) != (target.num_classes, target.resolution)
    session.note(
        f"learned on: {images.description}"
        + (" (a proxy: the target's own data is not at hand)" if proxy else "")
    )
    state = output.with_name(f"{output.name}.state")
    allowed = {
        metric: options.allowed_text(text)
        for metric, text in (("madds", budget), ("latency_ms", latency))
        if text
    }
    with session.screen("evolving") as (progress, show):
        space = step.evolve(
            budget=budget,
            latency=latency,
            device=opened,
            statistic=statistic,
            skeleton=target,
            data=images,
            options=options,
            seed=session.seed,
            reading=next(one for one in KERNEL_READINGS if one == kernel_reading),
            state=state,
            log=log,
            progress=progress,
            watch=lambda line: show(_figures(line, allowed)),
        )
    space.save(output)
    state.unlink(missing_ok=True)
    cells, speed = sum(map(len, space.layers)), space.provenance["cells_per_minute"]
    session.say(
        f"{output}: {len(space.layers)} layers, {cells} cells "
        f"({space.provenance['cells_tried']} tried{f', {speed:g} a minute' if speed else ''})"
    )
    for limit in space.provenance["limits"]:
        expected = space.provenance["expected"].get(limit["metric"])
        unit = "multiply-adds" if limit["metric"] == "madds" else "ms"
        if expected is not None:
            shown = format_count(expected) if unit == "multiply-adds" else f"{expected:.3g}"
            most = options.allowed_text(limit["text"])
            session.say(f"  expected cost, every block filled: {shown} {unit} of {most}")
            if expected > 1.02 * options.headroom * limit["value"]:
                session.note(
                    f"warning: the expected cost is above {most}; evolve for more generations, "
                    "or leave it to the search, which keeps the limit"
                )
    poor = hardly_learned(
        space.provenance["validation_loss"],
        images.num_classes,
        "the cells' fitness says little; evolve for more generations, at another --resolution, or "
        "with another --option learning_rate",
    )
    if poor:
        session.note(f"warning: {poor}")
    session.say(f"  target: {space.provenance['target']}; learned on: {images.description}")
    session.say(f"  log: {log}, a line a generation")
    best = [layer[0].label for layer in space.layers]
    session.table(("layer", "fittest cell"), list(enumerate(best)))
    session.result({"space": str(output), "hash": space.hash, **space.to_json()})


def _figures(line: Mapping[str, Any], allowed: Mapping[str, str]) -> list[Figure]:
    """What a person follows, from a line of the log."""
    from autospace.cli.live import Figure
    from autospace.cost import format_cost

    loss = line["validation_loss"]
    figures = [Figure("training loss", f"{line['train_loss']:.3f}", line["train_loss"])]
    if loss is None:
        return figures
    entropy = line["operation_entropy_bits"]
    figures += [
        Figure("held-out loss", f"{loss:.3f}", loss),
        Figure("best fitness", f"{line['best_fitness']:.2f}", line["best_fitness"]),
        Figure("median fitness", f"{line['median_fitness']:.2f}", line["median_fitness"]),
        Figure(
            "layers led by references", f"{line['reference_share']:.0%}", line["reference_share"]
        ),
        Figure("distinct cells", str(line["distinct_cells"]), line["distinct_cells"]),
        Figure("entropy of operations", f"{entropy:.2f} bits", entropy),
        Figure("cells tried", str(line["cells_tried"]), line["cells_tried"]),
    ]
    if line["unchanged"] is not None:
        figures.append(Figure("space unchanged", f"{line['unchanged']:.0%}", line["unchanged"]))
    for metric, cost in line["expected"].items():
        text = f"{format_cost(metric, cost)} of {allowed[metric]}"
        figures.append(Figure(f"expected {_COSTS[metric]}", text, cost))
        price = line["prices"][metric]
        figures.append(Figure(f"price of {_COSTS[metric]}", f"{price:.2f}", price))
    return figures


_COSTS = {"madds": "multiply-adds", "latency_ms": "latency"}
