"""The command line: ``autospace COMMAND``. One file a command, loaded when it is called."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import NoReturn

import click

from devices.errors import AutospaceError, UsageError

__all__ = ["COMMANDS", "cli", "main"]

COMMANDS = {
    "devices": "Runtimes that work here, and why others do not.",
    "profile-device": "Measure this device; write a device card.",
    "predict": "Latency of an ONNX model on a card's device.",
    "evolve": "Evolve a search space for a budget.",
    "search": "Find the best network of a space within hard limits.",
    "train": "Train an architecture.",
    "export": "Convert a network to ONNX and check its outputs.",
    "benchmark": "Measure ONNX models here, predicted against measured.",
    "report": "Write a run's report: one HTML page, and Markdown.",
    "inspect": "Show what is in a space, architecture, card or model file.",
    "run": "The whole pipeline in one resumable folder.",
}
"""Names, in the order of the work, with what each is for."""


class _LazyGroup(click.Group):
    """Imports a command's module only when it is called, so that --help stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = import_module(f"autospace.cli.{name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see 'autospace --help'"
            raise click.UsageError(f"No such command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands, in the order of the work"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 budget not kept, 4 device or runtime "
    "not available, 130 interrupted (state saved).",
)
@click.version_option(package_name="autospace")
def cli() -> None:
    """The most accurate network for your device and limit, with proof that it fits.

    Profile a device, evolve a search space for a budget, search it, train, export and verify.
    """


def main(args: list[str] | None = None) -> NoReturn:
    """Runs the command line and exits with the design's exit codes."""
    arguments = sys.argv[1:] if args is None else args
    # Read by OpenMP when torch is loaded. Its default spins so long that a training step took
    # 6 times as long beside one other busy process; this costs nothing on a quiet machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        code = cli.main(arguments, prog_name="autospace", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo(
            "\ninterrupted; what was done is saved: the same command goes on from there", err=True
        )
        sys.exit(130)
    except AutospaceError as error:
        kind = "usage" if isinstance(error, UsageError) else "error"
        click.echo(f"autospace: {kind}: {error}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        click.echo("autospace: usage: no command; name one of those above", err=True)
        sys.exit(error.exit_code)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "autospace"
        text = " ".join(error.format_message().split())
        hint = "" if "'autospace --help'" in text or "id you mean" in text else _hint(where)
        click.echo(f"{where}: usage: {text.rstrip('.') if hint else text}{hint}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        click.echo(f"autospace: error: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if "-v" in arguments or "--verbose" in arguments:
            raise
        from autospace.files import disk_full

        full = disk_full(error)
        if full is not None:
            click.echo(f"autospace: error: {full}", err=True)
            sys.exit(full.exit_code)
        text = str(error).splitlines()[0] if str(error) else ""
        click.echo(
            f"autospace: unexpected {type(error).__name__}: {text} (a fault of autospace: run "
            "again with -v and report what it shows)",
            err=True,
        )
        sys.exit(1)


def _hint(command: str) -> str:
    return f"; see '{command} --help'"
