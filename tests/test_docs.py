"""The documentation names what there is: every option, every command, every decision."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from autospace.cli import COMMANDS, cli
from autospace.config import RunConfig, load_config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def test_every_configuration_field_stands_there_with_its_default():
    text = (DOCS / "configuration.md").read_text()
    sections = [f for f in dataclasses.fields(RunConfig) if f.name != "seed"]
    for section in sections:
        part = text.split(f"## [{section.name}]")[1].split("\n## ")[0]
        default = section.default_factory()
        rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", part, re.M)
        assert rows == [
            (one.name, _toml(getattr(default, one.name))) for one in dataclasses.fields(default)
        ]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_every_shipped_configuration_is_valid(path):
    assert load_config(path).target.latency or load_config(path).target.budget


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_chapter_with_an_example_that_was_run(name):
    text = (DOCS / "commands.md").read_text()
    chapter = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
    assert f"$ autospace {name}" in chapter
    command = cli.get_command(None, name)
    for parameter in command.params:
        for option in parameter.opts:
            if option.startswith("--") and option not in ("--json", "--seed", "--verbose"):
                assert f"`{option}" in chapter, option


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=str)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
