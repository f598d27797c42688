"""What every command shares: options, output, progress, limits and data as options.

A command parses, calls a function of `autospace.steps`, and prints what it returns. Results go
to standard output (text, or one JSON document with ``--json``); progress and notes to standard
error.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from autospace.accelerator import ACCELERATORS

if TYPE_CHECKING:
    from autospace.cli.live import Figure

__all__ = [
    "FILE",
    "OUTPUT",
    "Session",
    "check_limits_given",
    "common_options",
    "data_options",
    "limit_options",
    "print_table",
    "shape_option",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_TOGETHER = ("evolve", "search")
"""Commands that torchrun may start several times for one piece of work."""

FILE = click.Path(readable=False, path_type=Path)
"""A file argument; the command's reader checks it and says what is wrong in one line."""

OUTPUT = click.Path(readable=False, path_type=Path)
"""An output path."""


@dataclass(frozen=True)
class Session:
    """How this call of the command line talks.

    Attributes:
        json: print one JSON document instead of text.
        seed: of everything random.
        verbose: say more, and show tracebacks of unexpected errors.
        speaks: False in all but the first of the processes that torchrun started: they say
            nothing but what went wrong.
    """

    json: bool
    seed: int
    verbose: bool
    speaks: bool = True

    def say(self, text: str = "") -> None:
        """A line of the result, for people."""
        if self.speaks and not self.json:
            click.echo(text)

    def note(self, text: str) -> None:
        """A remark on standard error: what is being done, warnings."""
        if self.speaks:
            click.echo(text, err=True)

    def detail(self, text: str) -> None:
        """A remark for ``-v``."""
        if self.verbose:
            self.note(text)

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table of the result, for people."""
        if self.speaks and not self.json:
            print_table(headings, rows)

    def result(self, document: Mapping[str, Any]) -> None:
        """The result for machines: printed with ``--json``, and only then."""
        if self.speaks and self.json:
            click.echo(json.dumps(document, indent=1, allow_nan=False))

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[float, str], None]]:
        """A progress bar on a terminal, plain lines now and then elsewhere; on standard error."""
        with self.screen(title) as (progress, _):
            yield progress

    @contextmanager
    def screen(
        self, title: str
    ) -> Iterator[tuple[Callable[[float, str], None], Callable[[Sequence[Figure]], None]]]:
        """As `progress`, and what shows figures with their course on a terminal's screen."""
        if self.speaks and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            from autospace.cli.live import Screen

            screen = Screen(title)
            with Live(screen, console=Console(stderr=True), refresh_per_second=8):
                yield screen.progress, screen.show
            return
        last_s = [-1e9]

        def show(fraction: float, message: str) -> None:
            now_s = time.monotonic()
            if now_s - last_s[0] >= 5.0 or fraction >= 1.0:
                last_s[0] = now_s
                self.note(f"{title}: {fraction:4.0%} {message}")

        yield show, lambda figures: None


def common_options(command: _Command) -> _Command:
    """Adds ``--json``, ``--seed`` and ``-v``; the command gets them as a `Session` first."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    @click.option(
        "--seed",
        type=click.IntRange(0, 2**31 - 1),
        default=0,
        show_default=True,
        help="Of everything random: the same seed gives the same result.",
    )
    @click.option(
        "-v", "--verbose", is_flag=True, help="Say more; tracebacks of unexpected errors."
    )
    @functools.wraps(command)
    def wrapped(*args: Any, as_json: bool, seed: int, verbose: bool, **kwargs: Any) -> Any:
        together = os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ
        name = click.get_current_context().info_name
        if together and name not in _TOGETHER:
            from devices.errors import UsageError

            raise UsageError(
                f"{name}: cannot run in several processes, only {', '.join(_TOGETHER)} can; start "
                "it without torchrun"
            )
        speaks = not together or os.environ["RANK"] == "0"
        return command(Session(as_json, seed, verbose, speaks), *args, **kwargs)

    return wrapped  # type: ignore[return-value]


def limit_options(command: _Command) -> _Command:
    """Adds ``--budget``, ``--latency``, ``--device``, ``--statistic``, ``--batch`` and more."""
    options = (
        click.option(
            "--budget",
            metavar="COUNT",
            help="Upper bound on multiply-adds of one image at the target: 500M, 0.5G, or 70% of "
            "the reference network.",
        ),
        click.option(
            "--latency",
            metavar="TIME",
            help="Upper bound on batch-1 latency on the card's device: 5ms, 800us, or 70% of the "
            "reference network's. Needs --device.",
        ),
        click.option(
            "--device",
            type=FILE,
            metavar="CARD",
            help="The target's device card, from 'autospace profile-device'.",
        ),
        click.option(
            "--statistic",
            type=click.Choice(["latency", "p50", "p90", "p99"]),
            default="latency",
            show_default=True,
            help="What --latency limits: latency of the undisturbed device, or a percentile as "
            "seen, by its measured ratio.",
        ),
        click.option(
            "--batch",
            type=click.IntRange(1, 4096),
            help="Batch size of the latency; has to be the card's (1 if not profiled otherwise).",
        ),
        click.option(
            "--allow-mismatch",
            is_flag=True,
            help="Use a card of another machine, runtime version or setting, with a warning.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def check_limits_given(
    command: str, budget: str | None, latency: str | None, device: Path | None
) -> None:
    """Refuses limits that are missing, malformed or without a card, before anything is loaded.

    Raises:
        UsageError: says what to write.
    """
    from autospace.steps import check_limit_texts
    from devices.errors import UsageError

    if budget is None and latency is None:
        raise UsageError(f"{command}: no limit; give --budget 500M, --latency 5ms or both")
    check_limit_texts(budget, latency)
    if latency is not None and device is None:
        raise UsageError(f"--latency {latency}: needs a device card; add --device CARD")


def data_options(command: _Command) -> _Command:
    """Adds ``--data``, ``--data-root``, ``--resolution`` and ``--accelerator``."""
    options = (
        click.option(
            "--data",
            default="digits",
            show_default=True,
            metavar="NAME",
            help="What is learned on: digits (embedded), fashion-mnist, cifar10, cifar100, or "
            "folder (images, one subfolder a class).",
        ),
        click.option(
            "--data-root", type=FILE, metavar="FOLDER", help="Where the data set's files are."
        ),
        click.option(
            "--resolution",
            type=click.IntRange(8, 1024),
            help="Input size to learn at; the data set's usual one if not given.",
        ),
        click.option(
            "--accelerator",
            type=click.Choice(ACCELERATORS),
            default=ACCELERATORS[0],
            show_default=True,
            help="Where it is learned; auto is an NVIDIA GPU where there is one.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def shape_option(command: _Command) -> _Command:
    """Adds ``--shape``, given as often as there are inputs."""
    return click.option(
        "--shape",
        "shapes",
        multiple=True,
        metavar="NAME=AxBxC",
        help="Size of an input with dynamic dimensions: input=1x3x224x224. For every model that "
        "has the input; can be repeated.",
    )(command)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a plain table: columns aligned, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [
        bool(rows) and all(_is_number(row[column]) for row in rows)
        for column in range(len(headings))
    ]
    for number, row in enumerate(cells):
        line = "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        click.echo(line.rstrip())
        if number == 0:
            click.echo("  ".join("─" * width for width in widths))


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float) or (isinstance(cell, str) and cell[:1].isdigit())
