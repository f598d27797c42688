"""``autospace devices``."""

from __future__ import annotations

from dataclasses import asdict

import click

from autospace.cli.common import Session, common_options

__all__ = ["command"]


@click.command("devices")
@common_options
def command(session: Session) -> None:
    """Runtimes that work here, with version; those that do not, with what is missing.

    "threads" says whether their number can be chosen, "per-op times" whether the runtime times
    single operations: where it does not, a device card works them out from whole networks.

    \b
    Example:
      autospace devices
    """
    from devices.runtimes import runtime_statuses

    statuses = runtime_statuses()
    rows = [
        (
            status.name,
            "yes" if status.usable else "no",
            status.version or "–",
            ", ".join(status.precisions) or "–",
            "yes" if status.sets_threads else "no",
            "yes" if status.per_op_times else "no",
            "" if status.usable else _reason(status.reason, status.install),
        )
        for status in statuses
    ]
    session.table(
        ("runtime", "usable", "version", "precision", "threads", "per-op times", "missing"), rows
    )
    session.result({"runtimes": [asdict(status) for status in statuses]})


def _reason(reason: str | None, install: str | None) -> str:
    return "; ".join(part for part in (reason, install) if part)
