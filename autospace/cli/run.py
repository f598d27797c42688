"""``autospace run``."""

from __future__ import annotations

from pathlib import Path

import click

from autospace.cli.common import FILE, OUTPUT, Session, common_options

__all__ = ["command"]


@click.command("run")
@click.argument("config", type=FILE, metavar="CONFIG.toml")
@click.option(
    "-o", "--output", type=OUTPUT, metavar="RUN", help="The run folder; runs/<CONFIG> if not given."
)
@common_options
@click.pass_context
def command(context: click.Context, session: Session, config: Path, output: Path | None) -> None:
    """The whole pipeline in one resumable folder.

    Profiles the device, evolves a space, searches it, trains, exports, benchmarks and reports.
    Killed at any moment, the same command goes on without doing finished work again; only where the
    last measurement left open whether a limit is kept, it measures again. --seed, if given, stands
    above the configuration's.

    \b
    Example:
      autospace run configs/fashion-mnist.toml -o runs/fashion
    """
    from dataclasses import replace

    from click.core import ParameterSource

    from autospace.config import load_config
    from autospace.quantities import format_count

    settings = load_config(config)  # what is wrong in it is said before anything heavy is loaded
    from autospace.pipeline import check_verdict, run_pipeline

    given = context.get_parameter_source("seed") is ParameterSource.COMMANDLINE
    if given:
        settings = replace(settings, seed=session.seed)
    folder = output or Path("runs") / config.stem
    verdict = run_pipeline(
        settings,
        folder,
        reporter=session.progress,
        note=session.note,
        config_text=config.read_text(encoding="utf-8"),
    )
    session.say(f"{'KEPT' if verdict['kept'] else 'NOT KEPT'} · {verdict['target']}")
    if verdict["accuracy"] is not None:
        session.say(f"  test accuracy   {verdict['accuracy']:.2%} on {verdict['data']}")
    session.say(f"  parameters      {format_count(verdict['params'])}")
    session.say(f"  multiply-adds   {format_count(verdict['madds'])}")
    for name in ("predicted", "measured"):
        if verdict[f"{name}_ms"] is not None:
            low, high = verdict[f"{name}_low_ms"], verdict[f"{name}_high_ms"]
            interval = f" [{low:.4g}, {high:.4g}]" if low is not None else ""
            session.say(f"  {name:<15} {verdict[f'{name}_ms']:.4g} ms{interval}")
    session.say(f"  device          {verdict['device']}")
    for limit in verdict["limits"]:
        unit = " ms" if limit["metric"] == "latency_ms" else ""
        shown = (
            (f"{limit['found']:.4g}", f"{limit['bound']:.4g}", f"{limit['value']:.4g}")
            if unit
            else tuple(format_count(limit[key]) for key in ("found", "bound", "value"))
        )
        relative = f" ({limit['text']} of the reference)" if "%" in limit["text"] else ""
        session.say(
            f"  limit           {shown[2]}{unit}{relative}: "
            f"{'kept' if limit['kept'] else 'MISSED'}, {shown[0]}{unit}"
            + (f", 95 % bound {shown[1]}{unit}" if unit else "")
        )
    for warning in verdict["warnings"]:
        session.note(f"warning: {warning}")
    session.say(f"  report          {folder / 'report.html'}")
    session.result({**verdict, "run": str(folder)})
    check_verdict(verdict)
