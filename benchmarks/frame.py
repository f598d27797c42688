"""What the command lines of the long benchmarks share: arguments, exit codes, where results go."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autospace.accelerator import ACCELERATORS
from autospace.files import write_json
from benchmarks.work import Clock, OutOfTimeError
from devices.errors import AutospaceError, UsageError

__all__ = ["Say", "add_long", "add_training", "framed", "in_time", "parser"]

Say = Callable[[str], None]


def parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes.

    Args:
        name: of the benchmark's module.
        text: its docstring.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=(text or "").split("\n")[0]
    )
    made.add_argument("--output", type=Path, help="JSON file (benchmarks/results/…)")
    made.add_argument("--quick", action="store_true", help="a quick try of everything, of no worth")
    made.add_argument("--json", action="store_true", help="print the JSON object instead of text")
    return made


def add_long(made: argparse.ArgumentParser, folder: str) -> None:
    """Adds what a benchmark takes that goes on where it was.

    Args:
        made: its parser.
        folder: where it keeps everything, unless told.
    """
    add = made.add_argument
    add("--data-root", type=Path, help="folder of the data's files")
    add("--folder", type=Path, help=f"for everything ({folder})")
    add("--minutes", type=float, help="stop after so long; the same command goes on")
    add("--report-only", action="store_true", help="measure and train nothing")


def add_training(made: argparse.ArgumentParser) -> None:
    """Adds what a benchmark takes that evolves spaces and trains many networks.

    Args:
        made: its parser.
    """
    made.add_argument("--accelerator", choices=ACCELERATORS, default="cpu",
        help="where spaces are evolved and networks trained")  # fmt: skip
    add = made.add_mutually_exclusive_group().add_argument
    add("--evolve-only", action="store_true",
        help="only evolve, for the card that is there: on any machine, say with a GPU")  # fmt: skip
    add("--train-only", action="store_true", help="only train what was chosen: on any machine too")


def in_time(given: argparse.Namespace, say: Say, work: Callable[[Clock], None]) -> None:
    """Does the work until the given minutes are over; nothing where only a report is wanted.

    Raises:
        UsageError: minutes that make no sense.
    """
    if given.minutes is not None and not 0 < given.minutes < float("inf"):
        raise UsageError(f"--minutes {given.minutes}: must be above 0")
    if given.report_only:
        return
    try:
        work(Clock.of(given.minutes))
    except OutOfTimeError:
        say("out of time; the same command goes on.")


def framed(
    name: str,
    given: argparse.Namespace,
    work: Callable[[Say], tuple[Mapping[str, Any], Path]],
    lines: Callable[[Mapping[str, Any]], Sequence[str]],
    interrupted: str = "the same command goes on",
) -> int:
    """Does the work, writes the result and prints it.

    Args:
        name: of the benchmark.
        given: its arguments.
        work: gives the result, and the file for it.
        lines: the result as a person reads it.
        interrupted: what Ctrl-C means.

    Returns:
        The exit code.
    """

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        result, output = work(say)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, result)
    except AutospaceError as error:
        say(f"{name}: error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say(f"{name}: interrupted; {interrupted}.")
        return 130
    print(json.dumps(result, indent=1) if given.json else "\n".join(lines(result)))
    return 0
