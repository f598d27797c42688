"""``autospace report``."""

from __future__ import annotations

from pathlib import Path

import click

from autospace.cli.common import FILE, OUTPUT, Session, common_options

__all__ = ["command"]


@click.command("report")
@click.argument("run", type=FILE)
@click.option("-o", "--output", type=OUTPUT, metavar="FOLDER", help="Where; the run's own folder.")
@common_options
def command(session: Session, run: Path, output: Path | None) -> None:
    """Write a run's report: one self-contained HTML page, and the same as Markdown.

    The run may be unfinished, or have missed its budget: the page says so first.

    \b
    Example:
      autospace report runs/digits
    """
    from autospace.report import build_report

    html, markdown = build_report(run, output)
    session.say(f"wrote {html}")
    session.say(f"wrote {markdown}")
    session.result({"html": str(html), "markdown": str(markdown)})
