"""A section whose file is not there, or damaged."""

from __future__ import annotations

from autospace.report.parts import Section
from autospace.report.run import RunFolder

__all__ = ["missing"]


def missing(run: RunFolder, key: str, title: str, file: str, meaning: str) -> Section:
    """Says what is not there, and what that means.

    Args:
        run: the run.
        key: the section's anchor.
        title: its heading.
        file: that it is made of.
        meaning: of its absence.
    """
    fault = next((line for line in run.faults if line.startswith(f"{file}:")), None)
    if fault is not None:
        return Section(key, title, notes=(f"{fault}.",))
    there = (run.path / file).exists()
    state = "holds no complete entry" if there else "is not in the run folder"
    return Section(key, title, notes=(f"{file} {state}: {meaning}.",))
