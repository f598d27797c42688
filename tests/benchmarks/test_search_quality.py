"""Comparing a searched network with others: figures by hand, and all of it in small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.search_quality import Contestant, main
from benchmarks.search_report import report_lines
from latency import DeviceCard, profile_device


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> DeviceCard:
    path = tmp_path_factory.mktemp("cards") / "device.card"
    return profile_device(path, runtime="simulated", rounds=2, probes=10)


def test_the_report_says_who_is_behind() -> None:
    def found(mean: float, low: float, high: float) -> dict[str, object]:
        return {"networks": 3, "seeds": 3, "mean": 0.1 + mean, "mean_interval": [0.1, 0.12],
                "behind": {"mean": mean, "mean_interval": [low, high]}}  # fmt: skip

    searched = found(0, 0, 0)
    del searched["behind"]
    limit = {
        "target": 0.6, "latency_ms": 0.15, "shares": {"searched": [0.97, 0.98]}, "ranking": [0.5],
        "found": {"searched": searched, "MNASNet": found(0.01, 0.005, 0.02),
                  "best of 10 random": found(0.001, -0.002, 0.004)},
    }  # fmt: skip
    lines = report_lines({
        "limits": [limit], "data": "d", "skeleton": "small", "recipe": "r", "space": "s",
        "device": "x", "reference_ms": 0.25, "missing": 4,
    })  # fmt: skip
    text = "\n".join(lines)
    assert "met  searched better than MNASNet" in text
    assert "MISS searched better than best of 10 random" in text
    assert "1.00% [0.50%, 2.00%]" in text and "Spearman 0.50" in text
    assert "97.0% to 98.0%" in text and "not yet: 4 trainings" in text
    assert report_lines({"limits": []}) == ["not yet: networks of equal latency"]


def test_bad_arguments_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--minutes", "-1"], ["--workers", "0"], ["--targets", "0"],
                      ["--space", str(tmp_path / "none.json")]):  # fmt: skip
        assert main(["--folder", str(tmp_path / "x"), "--data", "digits", *arguments]) in (1, 2)
        error = capsys.readouterr().err.strip()
        assert error.startswith("search_quality: error: ") and "\n" not in error


def test_all_of_it_in_small(
    card: DeviceCard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(card.path, tmp_path / "device.card")
    command = ["--quick", "--folder", str(tmp_path)]
    assert main([*command, "--minutes", "0.0001"]) == 0
    assert "not yet" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (limit,) = result["limits"]
    assert set(limit["found"]) == {
        "searched", "random", "best of 2 random", "best of 2 random, trained again", "MNASNet",
        "ShuffleNetV2",
    }  # fmt: skip
    assert limit["found"]["searched"]["networks"] == 2, "it is trained twice"
    assert result["missing"] == 0
    contestants = [Contestant.from_json(one) for one in result["networks"]]
    assert [one.kind for one in contestants].count("random") == 2
    assert all(
        0.9 < one.share <= 1.001 for one in contestants if one.kind in ("searched", "random")
    )
    trained = sorted((tmp_path / "trained").iterdir())
    assert len(trained) == len(contestants) + 2 and all(path.suffix == ".json" for path in trained)
    drawn = [one for one in result["networks"] if one["kind"] == "random"]
    best = max(drawn, key=lambda one: one["accuracy"])
    assert [len(one["again"]) for one in drawn] == [int(one is best) for one in drawn]
    assert limit["errors"]["best of 2 random, trained again"] == {"1": [1 - best["again"][0]]}
    times = [path.stat().st_mtime_ns for path in trained]
    assert main(command) == 0
    assert "behind searched" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in trained] == times
    # One network's result is lost: it alone is trained again.
    trained[0].unlink()
    assert main([*command, "--report-only"]) == 0
    assert "not yet: 1 trainings" in capsys.readouterr().out
    assert main([*command, "--train-only", "--accelerator", "auto"]) == 0
    after = [path.stat().st_mtime_ns for path in trained]
    assert after[1:] == times[1:] and after[0] > times[0]
    assert main([*command, "--space", str(tmp_path / "spaces" / "0.8-1.json")]) == 2
    assert "another --folder" in capsys.readouterr().err
