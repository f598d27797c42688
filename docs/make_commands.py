"""Writes commands.md: every command's options, and one example that is run here and now.

Run it from the repository root: ``python docs/make_commands.py``. It takes some ten minutes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from autospace.cli import COMMANDS, cli

PAGE = Path(__file__).with_name("commands.md")
COMMON = ("--json", "--seed", "--verbose", "--help")

# In the order in which each finds the files that it needs.
EXAMPLES = (
    ("devices", "autospace devices"),
    ("profile-device", "autospace profile-device --minutes 1 -o cpu.card"),
    (
        "evolve",
        "autospace evolve --latency 0.1ms --device cpu.card --skeleton tiny --generations 45 "
        "--warmup 15 -o space.json",
    ),
    ("", "autospace profile-device --update --space space.json --minutes 0.7 -o cpu.card"),
    (
        "search",
        "autospace search --space space.json --latency 0.1ms --budget 3M --device cpu.card "
        "--steps 1200 --warmup 400",
    ),
    ("train", "autospace train --arch architecture.json --epochs 20"),
    ("export", "autospace export checkpoint.safetensors --onnx -o model.onnx"),
    ("predict", "autospace predict model.onnx --device cpu.card --top 5"),
    ("benchmark", "autospace benchmark model.onnx --device cpu.card --latency 0.1ms"),
    ("inspect", "autospace inspect architecture.json --svg architecture.svg"),
    ("run", "autospace run quickstart.toml -o quickstart"),
    ("report", "autospace report quickstart"),
)


def main() -> None:
    """Runs the examples and writes the page."""
    root = Path(__file__).resolve().parents[1]
    outputs: dict[str, str] = {}
    last = ""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "quickstart.toml").write_text(
            (root / "configs" / "quickstart.toml").read_text()
        )
        for name, line in EXAMPLES:
            print(f"$ {line}", flush=True)
            command = [sys.executable, "-m", *line.split()]
            done = subprocess.run(
                command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            print(done.stdout, flush=True)
            if done.returncode not in (0, 3):
                raise SystemExit(f"{line}: exit code {done.returncode}")
            text = f"$ {line}\n{_shortened(done.stdout)}"
            if done.returncode:
                text += f"[exit code {done.returncode}]\n"
            last = name or last  # an example without a name belongs to the one before it
            outputs[last] = outputs.get(last, "") + text
    PAGE.write_text("\n".join(_chapters(outputs)) + "\n")


def _shortened(text: str) -> str:
    """Progress lines thinned out; trailing spaces removed."""
    lines = [line.rstrip() for line in text.splitlines()]
    bars = [index for index, line in enumerate(lines) if re.match(r"^[\w -]+: +\d+% ", line)]
    kept = set(bars[:1] + bars[len(bars) // 2 : len(bars) // 2 + 1] + bars[-1:])
    shown = [line for index, line in enumerate(lines) if index not in bars or index in kept]
    return "\n".join(shown) + "\n"


def _chapters(outputs: dict[str, str]) -> list[str]:
    lines = [
        "# Commands",
        "",
        "Every command also takes `--json` (one JSON document on standard output), `--seed` (of "
        "everything random), `-v` and `--help`. Progress goes to standard error: a bar on a "
        "terminal, a line now and then elsewhere. All work offline. The examples below were run "
        "by `python docs/make_commands.py`, one after the other in one folder, on two cores of a "
        "shared machine; progress lines are thinned out.",
    ]
    for name, purpose in COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        body = re.split(r"\n\s*\x08?\n?Examples?:", command.help or "")[0]
        lines += ["", f"## {name}", "", purpose, ""]
        paragraphs = [" ".join(part.split()) for part in body.split("\n\n")[1:]]
        lines += [part + "\n" for part in paragraphs if part.strip("\x08 ")]
        rows = []
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.opts[-1] not in COMMON:
                names = ", ".join(f"`{one}`" for one in parameter.opts)
                default = parameter.default
                shown = f" Default: `{default}`." if parameter.show_default else ""
                rows.append(f"| {names} | {parameter.help or ''}{shown} |")
        if rows:
            lines += ["| option | |", "|---|---|", *rows, ""]
        lines += ["```console", outputs[name].rstrip(), "```"]
    return lines


if __name__ == "__main__":
    main()
