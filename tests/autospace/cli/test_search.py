"""``autospace search``: one network, and a family of them."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from autospace import family, steps
from autospace.cli import main
from autospace.cost import SMALLEST_CELL
from autospace.genotype import REFERENCE_CELLS
from autospace.skeleton import SKELETONS
from autospace.space import Architecture, SearchSpace
from devices.measurement import Measurement
from devices.visits import Visit
from latency import DeviceCard

SPACE = SearchSpace(SKELETONS["tiny"], ((*REFERENCE_CELLS, SMALLEST_CELL),) * 3)
QUICK = (
    "search", "--space", "space.json", "--steps", "8", "--warmup", "2", "--batch-size", "8",
    "--proposals", "2",
)  # fmt: skip


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, simulated_card: DeviceCard, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    SPACE.save(tmp_path / "space.json")
    (tmp_path / "card").write_bytes(simulated_card.path.read_bytes())
    return tmp_path


def made(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"space.json", "card"}


# -- one network -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ("--update-rule", "full_v2"),
        ("--option", "update_rule=full_v2", "--option", "share_weights=false"),
    ],
)
def test_the_update_rule_can_be_set(folder: Path, options: tuple[str, ...]) -> None:
    assert run(*QUICK, "--budget", "2M", *options) == 0
    assert Architecture.load(folder / "architecture.json").madds <= 2e6
    assert made(folder) == {"architecture.json"}


@pytest.mark.parametrize("more", [(), ("--pareto", "2")])
def test_who_has_learned_hardly_anything_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    """Six steps of eight images are no better than guessing, and the choice then says little."""
    assert run(*QUICK, "--budget", "2M", *more) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("and that of guessing 2.3: hardly anything was learned") == 1
    assert "search with more --steps" in said


def test_a_limit_above_the_largest_network_is_met_and_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*QUICK, "--budget", "100M") == 0
    said = capsys.readouterr()
    assert "100M multiply-adds: above the largest network of the space, 5." in said.err
    largest = (
        sum(
            max(Architecture(SPACE.skeleton, _one(index, block)).madds for block in blocks)
            - Architecture(SPACE.skeleton, _one(0, SPACE.candidates(0)[0])).madds
            for index, blocks in enumerate(map(SPACE.candidates, range(6)))
        )
        + Architecture(SPACE.skeleton, _one(0, SPACE.candidates(0)[0])).madds
    )
    assert f"{largest / 1e6:.4g}M" in said.out  # among the candidates of the table


def _one(index, block):
    """The first candidate everywhere, but in one block."""
    blocks = [SPACE.candidates(place)[0] for place in range(6)]
    blocks[index] = block
    return tuple(blocks)


# -- a family --------------------------------------------------------------------------------------

FAMILY = {"architecture-1.json", "architecture-2.json", "architecture-3.json",
          "pareto.json", "pareto.svg"}  # fmt: skip


def test_a_family_of_multiply_adds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*QUICK, "--budget", "2.5M", "--pareto", "3") == 0
    assert made(folder) == FAMILY
    document = json.loads((folder / "pareto.json").read_text())
    limits = [one["limits"][0]["value"] for one in document["members"]]
    assert limits == sorted(limits) and limits[-1] == 2.5e6 and document["kept"]
    for one in document["members"]:
        network = Architecture.load(folder / one["architecture"])
        assert network.hash == one["hash"] and network.madds == one["madds"]
        assert network.madds <= one["limits"][0]["value"] and one["kept"]
        assert network.provenance["limits"] == one["limits"]
    text = capsys.readouterr().out
    assert "3 of 3 limits kept" in text and "architecture-1.json" in text
    assert ET.parse(folder / "pareto.svg").getroot().tag.endswith("svg")


def test_a_family_under_two_limits_is_measured(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(
        *QUICK, "--budget", "90%", "--latency", "90%", "--device", "card", "--pareto", "3",
        "-o", "mine.json", "--json",
    ) == 0  # fmt: skip
    document = json.loads(capsys.readouterr().out)
    assert document["pareto"] == "pareto.json"
    assert {key: document[key] for key in ("kept", "members")} == {
        key: value for key, value in json.loads((folder / "pareto.json").read_text()).items()
        if key in ("kept", "members")
    }  # fmt: skip
    for one in document["members"]:
        assert [limit["metric"] for limit in one["limits"]] == ["madds", "latency_ms"]
        assert one["measured"] and one["bound_ms"] <= one["limits"][1]["value"]
    assert [one["architecture"] for one in document["members"]] == [
        "mine-1.json", "mine-2.json", "mine-3.json"
    ]  # fmt: skip
    svg = (folder / "pareto.svg").read_text()
    assert "latency, measured (ms)" in svg and "multiply-adds" in svg


def test_a_family_with_a_limit_that_is_not_kept_exits_with_3(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device on which small networks take far longer than predicted, and large ones do not."""

    def measuring(device: steps.Device, seed: int) -> object:
        def measure(networks):
            return {
                name: Measurement(
                    name=name,
                    visits=(Visit((max(0.3, 1e-7 * one.madds),) * 5, 1.0, 1.0),) * 8,
                    sentinel_reference_ms=1.0,
                    runtime="simulated",
                    runtime_version="1",
                    simulated=True,
                )
                for name, one in networks.items()
            }

        return measure

    monkeypatch.setattr("autospace.steps.asked.measuring_on", measuring)
    code = run(*QUICK, "--latency", "0.5ms", "--device", "card", "--pareto", "3")
    said = capsys.readouterr()
    assert code == 3
    assert made(folder) == FAMILY
    document = json.loads((folder / "pareto.json").read_text())
    assert not document["kept"]
    kept = [one["kept"] for one in document["members"]]
    assert not kept[0] and kept[-1]
    line = said.err.splitlines()[-1]
    assert f"budget not kept by {kept.count(False)} of 3 networks: " in line and "nearest" in line
    assert f"{sum(kept)} of 3 limits kept" in said.out


@pytest.mark.parametrize("where", ["training", "α", "verifying"])
def test_an_interrupted_family_goes_on_and_ends_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    command = (*QUICK, "--budget", "2.5M", "--pareto", "3")
    assert run(*command) == 0
    whole = {name: (folder / name).read_bytes() for name in FAMILY}
    for name in FAMILY:
        (folder / name).unlink()
    from autospace import proxyless, verify

    target = {
        "training": (proxyless.SearchRun, "alpha_step"),
        "α": (family, "_continued"),
        "verifying": (verify, "classified_right"),
    }[where]
    plain, calls = getattr(*target), []

    def interrupted(*arguments, **more):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(*target, interrupted)
        assert run(*command) == 130
    assert where == "training" or "architecture.json.state" in made(folder)
    assert run(*command) == 0
    assert made(folder) == FAMILY
    assert {name: (folder / name).read_bytes() for name in FAMILY} == whole


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--budget", "2M", "--pareto", "1"), "1 is not in the range"),
        (("--budget", "2M", "--pareto", "x"), "not a valid integer"),
        (("--budget", "170k", "--pareto", "6"), "--pareto 6: no room for 6 limits below 170K"),
        (("--budget", "1k", "--pareto", "6"), "below the smallest network of the space, 160K"),
        (("--budget", "2M", "--pareto", "3", "-o", "no/where.json"), "'no' does not exist"),
        (("--budget", "2M", "--update-rule", "three"), "is not one of 'two', 'full_v2'"),
        (("--budget", "2M", "--option", "alpha_rate=0"), "alpha_rate 0.0: above 0"),
        (("--budget", "2M", "--option", "stepz=3"), "did you mean 'steps'?"),
    ],
)
def test_bad_requests_end_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], why: str
) -> None:
    assert run(*QUICK, *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert why in lines[-1] and not made(folder)
    assert [line for line in lines[:-1] if not line.startswith("target: ")] == []


def test_a_picture_cannot_be_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pareto.svg").mkdir()
    assert run(*QUICK, "--budget", "2M", "--pareto", "3") == 2
    assert "pareto.svg: is a folder" in capsys.readouterr().err
