"""A run as one page that people want to read: self-contained HTML, and the same in Markdown."""

from __future__ import annotations

from pathlib import Path

__all__ = ["build_report"]


def build_report(run: Path, out: Path | None = None) -> tuple[Path, Path]:
    """Writes ``report.html`` and ``report.md`` of a run, finished or not.

    The same run gives the same bytes. A file of the run that is missing or damaged costs its
    section, which says so, and nothing else.

    Args:
        run: the run's folder.
        out: the folder to write into, made when missing; the run's own when None.

    Returns:
        The paths of the HTML page and the Markdown file.

    Raises:
        InvalidInputError: the folder is missing or holds nothing of a run.
        UsageError: the output cannot be written.
    """
    from autospace.files import write_text
    from autospace.report.page import make_folder, render
    from autospace.report.run import RunFolder

    folder = RunFolder.read(run)
    target = make_folder(out) if out is not None else run
    html, markdown = render(folder)
    paths = (target / "report.html", target / "report.md")
    for path, text in zip(paths, (html, markdown), strict=True):
        write_text(path, text)
    return paths
