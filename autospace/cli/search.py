"""``autospace search``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autospace.accelerator import Accelerator
from autospace.cli.common import (
    FILE,
    OUTPUT,
    Session,
    check_limits_given,
    common_options,
    data_options,
    limit_options,
)

if TYPE_CHECKING:
    from autospace.recalibration import Recalibration
    from autospace.steps import FamilyResult, SearchResult
    from autospace.verify import Candidate, Chosen

__all__ = ["command"]

_SHOWN = 3
"""Candidates that recalibration moved by themselves, in a line."""


@click.command("search")
@click.option("--space", type=FILE, required=True, metavar="SPACE", help="From 'evolve'.")
@limit_options
@click.option(
    "--width-mult",
    type=float,
    help="Multiply every width of the space's layout by this instead of its own multiplier.",
)
@data_options
@click.option("--steps", type=int, default=600, show_default=True, help="Weight steps.")
@click.option("--warmup", type=int, default=200, show_default=True, help="Steps before α learns.")
@click.option("--batch-size", type=int, default=64, show_default=True, help="Of a step.")
@click.option(
    "--update-rule",
    type=click.Choice(["two", "full_v2"]),
    default="two",
    show_default=True,
    help="How α learns: from two sampled candidates a block, or from all of them.",
)
@click.option(
    "--constraint",
    type=click.Choice(["lagrangian", "mul#log", "add#linear"]),
    default="lagrangian",
    show_default=True,
    help="How the cost enters the loss.",
)
@click.option(
    "--proposals", type=int, default=5, show_default=True, help="Networks ranked and measured."
)
@click.option(
    "--option",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other choice of the search, as in learning_rate=0.02 or share_weights=false; can be "
    "repeated. The names are those of [search] in a configuration.",
)
@click.option(
    "--pareto",
    type=click.IntRange(2, 50),
    metavar="N",
    help="A family of networks for N limits, from just above the smallest network up to the "
    "limits given, from one supernet: ARCH's name with -1 (the smallest) to -N, and pareto.json "
    "and pareto.svg beside them.",
)
@click.option("--no-measure", is_flag=True, help="Leave latency to the prediction.")
@click.option(
    "-o",
    "--output",
    type=OUTPUT,
    default=Path("architecture.json"),
    show_default=True,
    metavar="ARCH",
)
@common_options
def command(
    session: Session,
    space: Path,
    budget: str | None,
    latency: str | None,
    device: Path | None,
    statistic: str,
    batch: int | None,
    allow_mismatch: bool,
    width_mult: float | None,
    data: str,
    data_root: Path | None,
    resolution: int | None,
    accelerator: Accelerator,
    steps: int,
    warmup: int,
    batch_size: int,
    update_rule: str,
    constraint: str,
    proposals: int,
    settings: tuple[str, ...],
    pareto: int | None,
    no_measure: bool,
    output: Path,
) -> None:
    """Find the best network of a space within hard limits.

    A supernet is trained with one path active; the expected cost is held at the limit by an
    adapted multiplier; an exact solver proposes networks, which are ranked on held-out data and
    measured on the device. Exit code 3 if none keeps the limits; the nearest is written anyway.

    Started by torchrun, several processes share each batch of the training and get what one gets,
    up to rounding; the first one measures and writes.

    \b
    Examples:
      autospace search --space space.json --budget 300M
      autospace search --space space.json --latency 5ms --budget 300M --device cpu.card
      autospace search --space space.json --latency 5ms --device cpu.card --pareto 6
    """
    from dataclasses import replace

    from autospace import steps as step
    from autospace.config import with_settings
    from autospace.data import check_data_name
    from autospace.files import check_writable
    from autospace.search_options import SearchOptions
    from autospace.space import SearchSpace

    check_limits_given("search", budget, latency, device)
    check_data_name(data)
    outputs = _outputs(output, pareto)
    for path in outputs:
        check_writable(path)
    options: SearchOptions = SearchOptions(
        steps=steps,
        warmup=warmup,
        batch=batch_size,
        update_rule=update_rule,  # type: ignore[arg-type]  # click's choice is the type
        constraint=constraint,  # type: ignore[arg-type]  # click's choice is the type
        proposals=proposals,
    )
    options = with_settings(options, settings)
    options.check()
    session.detail(f"options: {options}")
    searched = SearchSpace.load(space)
    if width_mult is not None:
        widened = replace(searched.skeleton, width_mult=width_mult)
        searched = replace(searched, skeleton=widened)
    opened = (
        step.open_device(device, allow_mismatch=allow_mismatch, batch=batch) if device else None
    )
    for warning in opened.warnings if opened else ():
        session.note(f"warning: {warning}")
    images = step.load_proxy(data, data_root, searched.skeleton, resolution, accelerator)
    target = searched.skeleton
    session.note(
        f"target: {target.name} skeleton at {target.resolution}×{target.resolution}"
        + (f", widths × {target.width_mult:g}" if target.width_mult != 1 else "")
        + f"; learned on: {images.description}"
    )
    state = output.with_name(f"{output.name}.state")
    record = output.with_name(f"{output.name}.verification")
    with session.progress("searching") as progress:
        arguments: dict[str, Any] = {
            "budget": budget,
            "latency": latency,
            "device": opened,
            "statistic": statistic,
            "data": images,
            "options": options,
            "seed": session.seed,
            "measure": not no_measure,
            "state": state,
            "record": record,
            "progress": lambda fraction, message: progress(0.8 * fraction, message),
            "verifying": lambda fraction, message: progress(0.8 + 0.2 * fraction, message),
        }
        result: SearchResult | FamilyResult
        if pareto is None:
            result = step.search(searched, **arguments)
        else:
            result = step.search_pareto(searched, pareto, **arguments)
    if isinstance(result, step.FamilyResult):
        _save_family(session, result, outputs)
    else:
        _save_network(session, result, output)
    for path in (
        state, step.family_state(state), step.card_copy(state), step.trial_file(state), record,
    ):  # fmt: skip
        path.unlink(missing_ok=True)
    result.check()


def _outputs(output: Path, members: int | None) -> list[Path]:
    """What will be written: the architecture files, and for a family its document and picture."""
    if members is None:
        return [output]
    names = [f"{output.stem}-{number}{output.suffix}" for number in range(1, members + 1)]
    return [output.with_name(name) for name in (*names, "pareto.json", "pareto.svg")]


def _save_network(session: Session, result: SearchResult, output: Path) -> None:
    from dataclasses import asdict

    from autospace.cost import format_cost

    best, chosen = result.chosen.best, result.chosen
    result.architecture.save(output)
    ends = [
        f"{format_cost(limit.metric, cost)} of {limit}"
        for limit, cost in zip(result.limits, result.expected, strict=True)
    ]
    session.say(f"expected at the end: {' · '.join(ends)}")
    session.table(
        ("round", "candidate", "val. accuracy", "MAdds", "predicted", "measured", "kept"),
        [
            (number, one.architecture.hash[:8], *_figures(one))
            for number, row in enumerate(chosen.rounds, 1)
            for one in row
        ],
    )
    for number, one in enumerate(chosen.recalibrations[1:], 2):
        session.say(
            f"recalibrated for round {number}: {one.factor:.3f} × predicted {one.offset_ms:+.3g} ms"
            f"{_entries(one, chosen)}"
        )
    session.say(
        f"{output}: {best.architecture.hash} · {best.architecture.params / 1e6:.4g}M parameters · "
        f"{best.madds / 1e6:.4g}M multiply-adds"
    )
    for warning in result.warnings:
        session.note(f"warning: {warning}")
    session.result(
        {
            "architecture": str(output),
            "kept": chosen.kept,
            "limits": [limit.to_json() for limit in result.limits],
            "expected": list(result.expected),
            "recalibrations": [asdict(one) for one in chosen.recalibrations],
            "rounds": [[one.to_json() for one in row] for row in chosen.rounds],
            **result.architecture.to_json(),
        }
    )


def _save_family(session: Session, result: FamilyResult, outputs: Sequence[Path]) -> None:
    from autospace.family_plot import family_svg
    from autospace.files import write_json, write_text

    *architectures, document, picture = outputs
    for member, path in zip(result.members, architectures, strict=True):
        member.architecture.save(path)
    report = result.to_json([path.name for path in architectures])
    write_json(document, report)
    write_text(picture, family_svg(result))
    session.table(
        ("network", "limits", "val. accuracy", "MAdds", "predicted", "measured", "kept"),
        [
            (path.name, " and ".join(map(str, member.limits)), *_figures(member.chosen.best))
            for member, path in zip(result.members, architectures, strict=True)
        ],
    )
    kept = sum(member.chosen.kept for member in result.members)
    session.say(f"{document}, {picture}: {kept} of {len(result.members)} limits kept")
    for warning in result.warnings:
        session.note(f"warning: {warning}")
    session.result({"pareto": str(document), "picture": str(picture), **report})


def _entries(recalibration: Recalibration, chosen: Chosen) -> str:
    """The candidates that cost more or less than the line says, the farthest first."""
    labels = {
        (index, candidate): block.label
        for row in chosen.rounds
        for one in row
        for index, (candidate, block) in enumerate(
            zip(one.choice, one.architecture.blocks, strict=True)
        )
    }
    shown, more = recalibration.shifts[:_SHOWN], len(recalibration.shifts) - _SHOWN
    parts = [
        f"; block {one.block} with {labels[one.block, one.candidate]} {one.shift_ms:+.3g} ms"
        for one in shown
    ]
    return "".join(parts) + (f"; {more} more" if more > 0 else "")


def _figures(one: Candidate) -> tuple[str, ...]:
    """Accuracy, costs and verdict of a candidate, for a table."""
    return (
        f"{one.validation_accuracy:.2%}",
        f"{one.madds / 1e6:.4g}M",
        f"{one.predicted_ms:.4g} ms" if one.predicted_ms else "–",
        f"{one.measured.latency_ms:.4g} ms" if one.measured else "–",
        "yes" if one.kept else "no",
    )
