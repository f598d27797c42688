"""Comparing spaces: networks of equal latency, intervals by hand, and all of it in small."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autospace.events import silent
from autospace.genotype import Zero
from autospace.onnx_export import onnx_for_cost
from autospace.skeleton import SKELETONS
from autospace.space import SearchSpace
from autospace.steps import Device, open_device
from benchmarks.quality_networks import (
    Anchored,
    AsProfiled,
    BandNetwork,
    draw_band,
    reference_network,
)
from benchmarks.quality_report import rank_correlation, summary
from benchmarks.quality_spaces import SPACES, CandidateSpace, candidate_space, released_space
from benchmarks.space_quality import main
from devices.errors import UsageError
from devices.measurement import Measurement
from devices.visits import Visit
from latency import DeviceCard, profile_device

TINY = SKELETONS["tiny"]


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> DeviceCard:
    path = tmp_path_factory.mktemp("cards") / "device.card"
    return profile_device(path, runtime="simulated", rounds=2, probes=10)


def space(name: str, folder: Path, seed: int = 0) -> CandidateSpace:
    return candidate_space(name, seed, TINY, folder / f"{name.replace(' ', '-')}-{seed}.json")


# -- spaces


def test_all_spaces_have_the_same_freedom_in_depth(tmp_path: Path) -> None:
    for name in ("random cells", "MBConv"):
        found = space(name, tmp_path)
        for shape, blocks in zip(TINY.blocks, found.blocks, strict=True):
            assert (Zero() in blocks) == shape.has_shortcut
            assert len(set(blocks)) == 9 + shape.has_shortcut


def test_random_cells_depend_on_the_seed_and_are_kept(tmp_path: Path) -> None:
    first, again = space("random cells", tmp_path), space("random cells", tmp_path)
    assert first == again and first != space("random cells", tmp_path, seed=1)
    assert SearchSpace.load(tmp_path / "random-cells-0.json").skeleton == TINY


def test_released_cells_keep_their_relative_depth(reference_folder: Path) -> None:
    released = SearchSpace.load(reference_folder / "search_space.config")
    small = released_space(released, SKELETONS["small"])
    assert small.layers[0] == released.layers[0] and small.layers[-1] == released.layers[-1]
    assert len(small.layers) == SKELETONS["small"].num_layers


# -- networks


def test_networks_are_in_the_band_by_measurement(card: DeviceCard, tmp_path: Path) -> None:
    device = open_device(card.path, allow_mismatch=True)
    wanted = {space("random cells", tmp_path): 3, space("MBConv", tmp_path): 2}
    found = draw_band(wanted, device, 0.8, 0.05, seed=0, visits=4, progress=silent)
    assert [n.space for n in found] == ["random cells 0"] * 3 + ["MBConv"] * 2
    assert all(abs(n.share / 0.8 - 1) <= 0.05 for n in found)
    assert len({(n.space, n.architecture.hash) for n in found}) == 5
    assert [BandNetwork.from_json(json.loads(json.dumps(n.to_json()))) for n in found] == found


def test_networks_of_a_given_limit_are_within_it_in_milliseconds(
    card: DeviceCard, tmp_path: Path
) -> None:
    device = open_device(card.path, allow_mismatch=True)
    wanted = {space("random cells", tmp_path): 3}
    (own,) = draw_band(
        {next(iter(wanted)): 1}, device, 0.8, 0.05, seed=0, visits=4, progress=silent
    )
    reference_ms = 1.1 * own.measured_ms / own.share
    found = draw_band(
        wanted, device, 0.8, 0.05, seed=0, visits=4, progress=silent, reference_ms=reference_ms
    )
    assert len(found) == 3
    for network in found:
        assert network.share == pytest.approx(network.measured_ms / reference_ms)
        assert abs(network.share / 0.8 - 1) <= 0.05


def test_a_series_on_a_machine_of_another_speed_is_repeated_then_refused(
    card: DeviceCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real measurements, told as if the machine took three times its card's time at first."""
    device = open_device(card.path, allow_mismatch=True)
    model = {"it": onnx_for_cost(reference_network(space("MBConv", tmp_path)))}
    slow_series, plain = 2, Device.measure

    def slowed(self: Device, *args: Any, **more: Any) -> dict[str, Measurement]:
        nonlocal slow_series
        found = plain(replace(device), *args, **more)
        slow_series -= 1
        if slow_series < 0:
            return found
        return {
            name: replace(one, sentinel_reference_ms=one.sentinel_reference_ms / 3)
            for name, one in found.items()
        }

    monkeypatch.setattr(Device, "measure", slowed)
    slow = AsProfiled(device.card, device.warnings, device.here)
    (found,) = slow.measure(model, visits=4).values()
    assert slow_series == -1 and not found.disturbed
    slow_series = 1000
    with pytest.raises(UsageError, match=r"^it: the machine takes .* quieter"):
        slow.measure(model, visits=4)
    assert slow_series == 980


def _slowed(visits: tuple[Visit, ...]) -> tuple[Visit, ...]:
    slow = (1.0, 1.4) * len(visits)
    return tuple(
        replace(visit, samples_ms=tuple(times * ms for ms in visit.samples_ms))
        for visit, times in zip(visits, slow, strict=False)
    )


def test_anchors_tell_how_slow_the_machine_is_for_such_networks(
    card: DeviceCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real measurements, told as if every second round took networks 1.4 times as long."""
    device = open_device(card.path, allow_mismatch=True)
    drawn = draw_band({space("random cells", tmp_path): 5}, device, 0.8, 0.05, seed=0, visits=4,
                      progress=silent)  # fmt: skip
    models = {one.architecture.hash: onnx_for_cost(one.architecture) for one in drawn}
    told, plain = device.measure(models, visits=4), Device.measure
    own, *others = models

    def restless(self: Device, *args: Any, **more: Any) -> dict[str, Measurement]:
        found = plain(self, *args, **more)
        assert all(len(one.visits) == 4 for one in found.values())
        return {name: replace(one, visits=_slowed(one.visits)) for name, one in found.items()}

    monkeypatch.setattr(Device, "measure", restless)
    seen = device.measure(models, visits=4)[own]
    assert seen.latency_ms > 1.15 * told[own].latency_ms  # the sentinel saw nothing
    anchors_ms = {name: told[name].latency_ms for name in others}
    anchored = Anchored(
        device.card, (), True, anchors={name: models[name] for name in others},
        anchors_ms=anchors_ms,
    )  # fmt: skip
    found = anchored.measure({own: models[own]}, visits=4)
    assert list(found) == [own]
    assert found[own].latency_ms == pytest.approx(told[own].latency_ms, rel=0.02)
    twice = {name: 2 * ms for name, ms in anchors_ms.items()}
    found = replace(anchored, anchors_ms=twice).measure({own: models[own]}, visits=4)
    assert found[own].latency_ms == pytest.approx(2 * told[own].latency_ms, rel=0.02)


# -- figures


def test_summary_by_hand() -> None:
    errors = {
        "evolved": {0: [0.10, 0.11, 0.10, 0.11], 1: [0.10, 0.12, 0.11, 0.10]},
        "MBConv": {0: [0.20, 0.22, 0.21, 0.21]},
        "released": {0: []},
    }
    found = summary(errors, "evolved")
    assert set(found) == {"evolved", "MBConv"}
    assert found["evolved"]["networks"] == 8 and found["evolved"]["seeds"] == 2
    assert found["evolved"]["mean"] == pytest.approx(np.mean([0.10, 0.11] * 3 + [0.12, 0.10]))
    behind = found["MBConv"]["behind"]
    assert behind["mean"] == pytest.approx(0.21 - found["evolved"]["mean"])
    assert behind["best"] == pytest.approx(0.10)
    low, high = behind["mean_interval"]
    assert 0.09 < low < behind["mean"] < high < 0.12
    assert summary(errors, "evolved") == found


def test_intervals_widen_where_seeds_differ() -> None:
    """Networks of one evolution are alike: eight of two seeds are no eight independent ones."""
    alike = summary({"a": {0: [0.1, 0.2] * 4, 1: [0.1, 0.2] * 4}}, "a")["a"]["mean_interval"]
    apart = summary({"a": {0: [0.1] * 8, 1: [0.2] * 8}}, "a")["a"]["mean_interval"]
    assert apart[1] - apart[0] > 1.5 * (alike[1] - alike[0])


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)


# -- all of it


def test_all_of_it_in_small(
    card: DeviceCard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(card.path, tmp_path / "device.card")
    command = ["--quick", "--folder", str(tmp_path)]
    assert main([*command, "--minutes", "0.001"]) == 0
    assert "not yet" in capsys.readouterr().out or not (tmp_path / "networks.json").exists()
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["spaces"]) == {"evolved", "random cells", "MBConv"} <= set(SPACES)
    assert all(own["networks"] == 2 for own in result["spaces"].values())
    assert result["missing"] == [] and result["rank"]["networks"] == 6
    trained = sorted((tmp_path / "trained").iterdir())
    assert len(trained) == 12 and all(path.suffix == ".json" for path in trained)
    times = [path.stat().st_mtime_ns for path in trained]
    assert main([*command]) == 0
    assert [path.stat().st_mtime_ns for path in trained] == times
    printed = capsys.readouterr().out
    assert len(re.findall(r"^(met |MISS) evolved better than", printed, re.M)) == 4
    assert (tmp_path / "space-quality-digits-tiny-1e.svg").is_file()
    trained[0].unlink()
    shutil.rmtree(tmp_path / "spaces")  # is not needed to train what was drawn
    assert main([*command, "--evolve-only", "--accelerator", "auto"]) == 0
    assert [path.name for path in (tmp_path / "spaces").glob("*.json")] == ["evolved-0.json"]
    assert main([*command, "--train-only"]) == 0
    assert json.loads(trained[0].read_text())["accelerator"] == "cpu"
    assert [path.stat().st_mtime_ns for path in trained[1:]] == times[1:]
