"""What holds for the whole: light imports, honest names, one-way imports, and every command."""

import importlib
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

import autospace
import devices
import latency
from autospace.cli import cli

PACKAGES = (autospace, devices, latency)
HEAVY = (
    "torch",
    "torchvision",
    "onnxruntime",
    "onnx",
    "tensorrt",
    "openvino",
    "pycuda",
    "sklearn",
    "scipy",
    "pydantic",
    "rich",
    "matplotlib",
)
COMMANDS = (
    "devices",
    "profile-device",
    "predict",
    "evolve",
    "search",
    "train",
    "export",
    "benchmark",
    "report",
    "inspect",
    "run",
)
MODULES = sorted(
    found.name
    for package in PACKAGES
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not found.name.rpartition(".")[2].startswith("_")
)


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "statement",
    [
        "import autospace, latency, devices",
        "import autospace.cli",
        "from autospace import Architecture, Cell, SearchSpace, Skeleton",
        "import pkgutil, importlib, autospace.cli as package; "
        "[importlib.import_module(f'{package.__name__}.{one.name}') "
        "for one in pkgutil.iter_modules(package.__path__)]",
    ],
)
def test_importing_loads_nothing_heavy(statement: str) -> None:
    code = f"import sys; {statement}; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert _python(code) == "[]"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom autospace.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: print(end.code)\n"
        f"print([m for m in {(*HEAVY, 'numpy')!r} if m in sys.modules])"
    )
    assert _python(code).splitlines()[-2:] == ["0", "[]"]


def test_a_broken_configuration_is_refused_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    config = tmp_path / "broken.toml"
    config.write_text("[target]\nskeleton = 'tiny'\n")
    code = (
        "import sys\nfrom autospace.cli import main\n"
        f"try: main(['run', {str(config)!r}])\n"
        "except SystemExit as end: print(end.code)\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    # What checks the fields is all that is loaded.
    assert _python(code).splitlines()[-2:] == ["2", "['pydantic']"]


def test_there_are_modules() -> None:
    assert {"autospace.space", "latency.card", "devices.errors", "autospace.cli.run"} <= set(
        MODULES
    )


@pytest.mark.parametrize("name", [package.__name__ for package in PACKAGES] + MODULES)
def test_public_names_exist(name: str) -> None:
    module = importlib.import_module(name)
    assert hasattr(module, "__all__"), f"{name}: no __all__"
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert hasattr(module, public), f"{name}.__all__ names {public!r}, which is not there"
    assert module.__doc__, f"{name}: no docstring"


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = autospace.nonsense
    assert dir(autospace) == sorted(autospace.__all__)


def test_imports_go_one_way() -> None:
    tool = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which(
        "lint-imports"
    )
    assert tool, "import-linter is not installed; pip install -e '.[dev]'"
    done = subprocess.run(
        [tool, "--no-cache"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


# -- the command line ------------------------------------------------------------------------------


def test_help_lists_exactly_the_commands() -> None:
    text = cli.get_help(click.Context(cli, info_name="autospace"))
    section = text.split("in the order of the work:")[1].split("\n\n")[0]
    listed = [
        line.split()[0] for line in section.splitlines() if line.startswith("  ") and line[2] != " "
    ]
    assert listed == list(COMMANDS)
    assert cli.list_commands(click.Context(cli)) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_common_options_and_an_example(name: str) -> None:
    context = click.Context(cli, info_name="autospace")
    command = cli.get_command(context, name)
    assert command is not None
    assert command.name == name
    options = {option for one in command.params for option in one.opts}
    assert {"--json", "--seed", "-v", "--verbose"} <= options
    text = command.get_help(click.Context(command, info_name=name, parent=context))
    example = text.partition("Example")[2]
    assert f"autospace {name}" in example
    for word in example.split():
        if word.startswith("--") and not word.endswith(":"):
            assert word.rstrip(".,") in options | {"--help"}
