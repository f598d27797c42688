"""What a page is made of: plain values that both templates show."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cell", "Figure", "Section", "Table"]


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        text: what it says.
        tone: colours it.
        bar: a share from 0 to 1, drawn behind it.
    """

    text: str
    tone: str = ""
    bar: float | None = None


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: what it shows.
        headings: of the columns.
        rows: of as many cells.
        left: how many columns, from the left, hold words; the others hold figures.
    """

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: int = 1


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        svg: its markup.
        caption: what it shows, in words; also read aloud.
        wide: whether it takes the page's whole width.
    """

    svg: str
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: its anchor.
        title: its heading.
        notes: sentences.
        facts: names and values.
        tables: below them.
        figures: below those.
        text: verbatim, last, under a title.
        alarm: a loud line at the top.
    """

    key: str
    title: str
    notes: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    text: tuple[tuple[str, str], ...] = ()
    alarm: str = ""
