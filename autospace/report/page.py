"""Puts the sections into the two templates."""

from __future__ import annotations

import re
from pathlib import Path

from autospace.report.run import RunFolder
from autospace.report.sections import all_sections
from autospace.report.verdict import verdict_of
from devices.errors import UsageError

__all__ = ["make_folder", "render"]


def render(run: RunFolder) -> tuple[str, str]:
    """The page and its Markdown; the same run gives the same text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    values = {
        "name": run.name,
        "verdict": verdict_of(run),
        "sections": all_sections(run),
        "simulated": run.simulated,
    }
    loader = PackageLoader("autospace.report", "templates")
    texts = []
    for name, escaped in (("report.html", True), ("report.md", False)):
        environment = Environment(
            loader=loader,
            autoescape=escaped,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        environment.filters["md"] = _markdown
        texts.append(environment.get_template(f"{name}.j2").render(values))
    return texts[0], re.sub(r"\n{3,}", "\n\n", texts[1])


def make_folder(path: Path) -> Path:
    """Makes the output folder.

    Raises:
        UsageError: it cannot be made, or is a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "is a file" if path.is_file() else error.strerror
        raise UsageError(f"-o {path}: {reason}; name a folder for the report") from None
    return path


def _markdown(text: str) -> str:
    """Text for a Markdown line or table: on one line, nothing in it taken for markup."""
    return re.sub(r"([\\`*_|<>\[\]#])", r"\\\1", " ".join(text.split()))
