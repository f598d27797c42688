"""Limits as contracts: verdicts by hand, limits drawn, and all of it in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autospace.cost import CostTable
from autospace.seeding import Seed
from autospace.skeleton import SKELETONS
from autospace.space import SearchSpace
from autospace.steps import space_networks
from benchmarks import budget_contract
from benchmarks.budget_contract import drawn_limits, main
from benchmarks.contract_report import report_lines, summary, verdict
from benchmarks.search_step import cells
from devices.measurement import Measurement
from devices.visits import Visit
from latency import profile_device

TINY = SKELETONS["tiny"]
LATENCY = CostTable("latency_ms", 1.0, ((1.0, 9.0), (1.0, 9.0)))
MADDS = CostTable("madds", 100.0, ((10.0, 400.0), (10.0, 300.0)))


# -- figures ---------------------------------------------------------------------------------------


def measured(latency_ms: float) -> dict[str, Any]:
    """Eight visits that agree: the interval is the floor's, ± 2.2 %."""
    visits = (Visit((latency_ms,), 1.0, 1.0),) * 8
    return Measurement("x", visits, 1.0, "onnxruntime", "1").to_json()


def found(number: int, limit_ms: float = 1.0, **changes: Any) -> dict[str, Any]:
    return {
        "number": number, "kind": "both", "kept": True, "refused": None, "data": "some",
        "device": "this", "offered": True, "excess": -0.01, "closest": -0.005, "rounds": 1,
        "seconds": 9.0,
        "limits": [
            {"metric": "latency_ms", "value": limit_ms, "text": "1 ms"},
            {"metric": "madds", "value": 1000.0, "text": "1k"},
        ],
        "expected": [limit_ms, 500.0], **changes,
    }  # fmt: skip


def test_only_what_is_above_with_all_of_its_interval_is_missed() -> None:
    within = verdict(found(0), {"madds": 900, "measured": measured(0.98)})
    assert within["share"] == pytest.approx(0.98) and within["missed"] == []
    unsure = verdict(found(0), {"madds": 900, "measured": measured(1.015)})
    assert unsure["share"] == pytest.approx(1.015) and unsure["sure"] < 1
    assert unsure["missed"] == []
    sure = verdict(found(0), {"madds": 900, "measured": measured(1.05)})
    assert sure["missed"] == ["latency_ms"] and 1.02 < sure["sure"] < 1.05
    counted = verdict(found(0), {"madds": 1001, "measured": measured(0.5)})
    assert counted["missed"] == ["madds"]


def test_two_series_are_compared() -> None:
    pairs = [
        (found(0, measured_ms=first), {"madds": 900, "measured": measured(0.98)})
        for first in (0.98, 0.97, 1.0)
    ]
    result = {"wanted": 3, "skeleton": "tiny", **summary(pairs)}
    low, middle, high = result["series_quantiles"]
    assert middle == pytest.approx(0.0) and -0.02 < low < -0.01 and 0.005 < high < 0.01
    assert "second series" in report_lines(result)[-1]


def test_summary_by_hand() -> None:
    again = {"madds": 900, "measured": measured(0.98)}
    pairs = [
        (found(0), again),
        (found(1, offered=False), {"madds": 900, "measured": measured(0.5)}),
        (found(2), {"madds": 900, "measured": measured(1.10)}),
        (found(3, kept=False), again),
        (found(4, kept=False, refused="no network keeps both", expected=[1.5, 1.0]), {}),
        (found(5, expected=[0.97, 500.0]), {}),
    ]
    result = {"wanted": 7, "skeleton": "tiny", **summary(pairs)}
    assert (result["searches"], result["judged"], result["waiting"]) == (6, 3, 1)
    assert (result["not_kept"], result["refused"], result["not_kept_but_within"]) == (2, 1, 1)
    goals = result["goals"]
    assert goals["misses"]["found"] == 1 and not goals["misses"]["met"]
    assert goals["slack"]["found"] == pytest.approx((0.02 - 0.10) / 2)
    assert goals["expectation"]["found"] == pytest.approx(0.5)
    assert result["series_quantiles"] is None
    assert result["slack_to_bound"] == pytest.approx(0.01)
    assert result["slack_of_closest"] == pytest.approx(0.005)
    assert result["expectation_within"] == 4
    text = "\n".join(report_lines(result))
    assert "misses beyond the interval: 1 (goal 0): MISS" in text
    assert "search 2, 1 ms and 1k: +10.0%, for sure +7" in text
    assert "not yet: 1 searches" in text and "not yet: 1 files" in text
    assert report_lines({"wanted": 7, **summary([])}) == ["not yet: 7 searches"]


def test_limits_are_drawn_from_the_middle_of_the_range() -> None:
    for number in range(50):
        seed = Seed(0).child(number)
        time, count = drawn_limits("both", [LATENCY, MADDS], seed)
        assert (time.metric, count.metric) == ("latency_ms", "madds")
        assert 0.2 <= (time.value - 3) / 16 <= 0.9 and 0.2 <= (count.value - 120) / 680 <= 0.9
        assert drawn_limits("both", [LATENCY, MADDS], seed) == (time, count)


# -- all of it -------------------------------------------------------------------------------------


def test_all_of_it_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = SearchSpace(TINY, (tuple(cells(9)),) * TINY.num_layers)
    profile_device(
        tmp_path / "device.card", runtime="simulated", rounds=3, probes=10,
        extra_models=space_networks(space, Seed(0)),
    )  # fmt: skip
    command = ["--quick", "--folder", str(tmp_path)]
    assert main([*command, "--searches", "1"]) == 0
    first = (tmp_path / "searches" / "000.json").stat().st_mtime_ns
    assert main([*command, "--minutes", "0.00001"]) == 0
    captured = capsys.readouterr()
    assert "not yet: 2 searches" in captured.out and "out of time" in captured.err
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["searches"] == 3 and result["judged"] + result["not_kept"] == 3
    assert result["waiting"] == 0
    assert [row["kind"] for row in result["rows"]] == ["latency", "multiply-adds", "both"]
    assert result["goals"]["misses"]["met"] and result["goals"]["expectation"]["met"]
    assert (tmp_path / "searches" / "000.json").stat().st_mtime_ns == first
    assert len(list((tmp_path / "models").glob("00?.onnx"))) == len(
        list((tmp_path / "again").iterdir())
    )
    assert json.loads((tmp_path / "budget-contract-digits-tiny.json").read_text()) == result
    assert main([*command, "--report-only"]) == 0
    assert "mean slack" in capsys.readouterr().out
    space = SearchSpace(TINY, (tuple(cells(10)),) * TINY.num_layers)
    space.save(tmp_path / "other.json")
    assert main([*command, "--space", str(tmp_path / "other.json")]) == 2
    assert "holds searches of another space" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--searches", "0"), "--searches 0: must be above 0"),
        (("--minutes", "nan"), "--minutes nan: must be above 0"),
        (("--data", "nothing"), "--data 'nothing': unknown"),
        (("--output", "/nowhere/at/all"), "does not exist"),
    ],
)
def test_bad_arguments_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], why: str
) -> None:
    assert main([*arguments, "--folder", str(tmp_path / "x")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("budget_contract: error: ") and why in line


def test_ctrl_c_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(budget_contract, "measure", interrupted)
    assert main(["--quick", "--folder", str(tmp_path)]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert "interrupted; the same command goes on" in line
