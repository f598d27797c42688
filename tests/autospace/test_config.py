"""Configurations: every mistake is named with its field."""

from pathlib import Path

import pytest

from autospace.config import RunConfig, TargetConfig, load_config
from devices.errors import AutospaceError, InvalidInputError, UsageError

CONFIGS = Path(__file__).parents[2] / "configs"


def _load(folder: Path, text: str) -> RunConfig:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    config = _load(tmp_path, '[target]\nbudget = "4M"\n')
    assert config == RunConfig(target=TargetConfig(budget="4M"))
    assert config.to_json()["target"]["skeleton"] == "small"


def test_values_are_read(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        """
        seed = 7
        [target]
        skeleton = "tiny"
        latency = "70%"
        width_mult = 2
        [data]
        name = "fashion-mnist"
        [device]
        rounds = 2
        [evolve]
        population = 24
        [search]
        proposals = 3
        [train]
        epochs = 2
        [benchmark]
        visits = 8
        """,
    )
    assert (config.seed, config.target.skeleton, config.target.latency) == (7, "tiny", "70%")
    assert config.target.width_mult == 2.0
    assert (config.data.name, config.device.rounds) == ("fashion-mnist", 2)
    assert (config.evolve.population, config.search.proposals) == (24, 3)
    assert (config.train.epochs, config.benchmark.visits) == (2, 8)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_configurations_that_we_ship_are_good(path: Path) -> None:
    assert load_config(path).target != TargetConfig()


def test_there_are_configurations() -> None:
    assert (CONFIGS / "quickstart.toml").is_file()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[target]\nskelton = "tiny"', r"\[target\] skelton: unknown; did you mean 'skeleton'"),
        ('[target]\nzzzzzz = "tiny"', r"\[target\] zzzzzz: unknown; known: skeleton, resolution"),
        ("[targt]\n", "targt: unknown; did you mean 'target'"),
        ("sed = 3", "sed: unknown; did you mean 'seed'"),
        ("[evolve]\npopulations = 3", r"\[evolve\] populations: unknown; did you mean 'popul"),
        ("target = 3", r"target: must be a section, \[target\]"),
        ("[target]\nbudget = 500", r'\[target\] budget = 500: .*string; write budget = "500"'),
        ('seed = "0"', "seed = '0': .*integer"),
        ("seed = 1.5", "seed = 1.5: .*integer"),
        ("seed = true", "seed = True: .*integer"),
        ("[evolve]\npopulation = [3]", r"\[evolve\] population = \[3\]: .*integer"),
        ('[device]\nminutes = "long"', r"\[device\] minutes = 'long': .*number"),
        ("[device]\nminutes = inf", r"\[device\] minutes = inf: must be a finite number"),
        ("[target]\nwidth_mult = nan", r"\[target\] width_mult = nan: must be a finite number"),
        ('[search]\nconstraint = "soft"', r"\[search\] constraint = 'soft'"),
        ('[target]\nbudget = "4M"\nwidth_mult = 100', "width_mult is 100.0; must be 0.05 to 20"),
        ('[target]\nbudget = "4M"\nresolution = 3', "resolution is 3; must be 4 to 4096"),
    ],
)
def test_wrong_fields_and_types(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why) as caught:
        _load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'run.toml'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[target]\n", "no limit; set budget, latency or both"),
        ('[target]\nbudget = "500X"', "unknown unit 'X'; write 500M"),
        ('[target]\nlatency = "5"', "no unit; write 5ms"),
        ('[target]\nlatency = "-5%"', "greater than zero"),
        ('[target]\nbudget = "4M"\nskeleton = "tinny"', "did you mean 'tiny'"),
        ('[target]\nbudget = "4M"\n[data]\nname = "digit"', "did you mean 'digits'"),
        ('[target]\nbudget = "4M"\n[device]\nruntime = "onnx"', "runtime 'onnx': unknown"),
        ('[target]\nbudget = "4M"\n[device]\nminutes = 0', r"\[device\] minutes 0.0: above 0"),
        ('[target]\nbudget = "4M"\n[device]\nrounds = -1', r"\[device\] rounds -1"),
        ('[target]\nbudget = "4M"\n[device]\nthreads = 0', r"\[device\] threads 0: at least 1"),
        ('[target]\nbudget = "4M"\n[evolve]\npopulation = 1', "evolve: population 1"),
        ('[target]\nbudget = "4M"\n[search]\nsteps = 0', "search: steps 0"),
        ('[target]\nbudget = "4M"\n[train]\nepochs = 0', "train: epochs 0"),
        ('[target]\nbudget = "4M"\n[benchmark]\nvisits = 1', "visits 1: at least 4"),
        ('seed = -1\n[target]\nbudget = "4M"', "seed -1: must be 0 to 2147483647"),
        ('seed = 9999999999\n[target]\nbudget = "4M"', "seed 9999999999: must be 0 to"),
    ],
)
def test_values_that_cannot_be_run(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        _load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'run.toml'}: ")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"# only a remark\n", "empty"),
        (b"[target\n", "not valid TOML .*line 1"),
        (b'budget = "5M', "not valid TOML"),
        (b'{"target": 1}', "not valid TOML"),
        (b"\xff\xfe\x00", "not valid TOML"),
        (b"seed = 1\nseed = 2\n", "not valid TOML"),
    ],
)
def test_not_a_configuration(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=why) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_missing_and_folder(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(AutospaceError, match=why):
            load_config(path)
