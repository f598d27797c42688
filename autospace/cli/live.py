"""One screen for long work: how far it is, and its figures with their course so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

__all__ = ["Figure", "Screen", "sparkline"]

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 32


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the work as it is now.

    Attributes:
        name: in words.
        text: as a person reads it, with its unit.
        number: for its course; None while it is not known.
    """

    name: str
    text: str
    number: float | None


def sparkline(numbers: Sequence[float], width: int = _WIDTH) -> str:
    """The course of a figure as a row of bars, from its least to its greatest number.

    Args:
        numbers: in order; what is not finite is left out.
        width: characters at most; of more numbers, each bar is the mean of some in a row.
    """
    known = [number for number in numbers if math.isfinite(number)]
    # Sums and differences of the largest numbers there are would be larger still.
    largest = max(map(abs, known), default=0.0) or 1.0
    known = [number / largest for number in known]
    if len(known) > width:
        edges = [round(place * len(known) / width) for place in range(width + 1)]
        known = [math.fsum(known[start:end]) / (end - start) for start, end in pairwise(edges)]
    if not known:
        return ""
    least, most = min(known), max(known)
    if most == least:
        return _BARS[0] * len(known)
    top = len(_BARS) - 1
    return "".join(_BARS[round((number - least) / (most - least) * top)] for number in known)


class Screen:
    """What a terminal shows of long work; rich draws it again whenever it changes.

    Args:
        title: of the work.
    """

    def __init__(self, title: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[message]}", markup=False),
        )
        self._task = self._bar.add_task(title, total=1.0, message="")
        self._texts: dict[str, str] = {}
        self._courses: dict[str, list[float]] = {}

    def progress(self, fraction: float, message: str) -> None:
        """A `Progress` of `autospace.events`."""
        self._bar.update(self._task, completed=fraction, message=message)

    def show(self, figures: Sequence[Figure]) -> None:
        """The figures as they are now; each goes on where it was."""
        for figure in figures:
            self._texts[figure.name] = figure.text
            course = self._courses.setdefault(figure.name, [])
            if figure.number is not None:
                course.append(figure.number)

    def __rich__(self) -> Group:
        from rich.console import Group

        return Group(self._bar, self._table())

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column(justify="right")
        table.add_column()
        for name, text in self._texts.items():
            table.add_row(Text(name), Text(text), Text(sparkline(self._courses[name])))
        return table
