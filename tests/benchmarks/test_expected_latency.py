"""The benchmark compares what it says, and fails when the sums do not agree."""

import json
from dataclasses import replace

import pytest

from autospace.cost import CostTable
from benchmarks import expected_latency
from benchmarks.expected_latency import Agreement, Speed, measure

TABLE = CostTable("latency_ms", 0.5, ((1.0, 2.0), (0.25,), (3.0, 0.0, 4.0)))


def test_every_figure_of_a_table() -> None:
    result = measure("small", TABLE, batch=8, rounds=2)
    assert (result.layers, result.candidates, result.padded) == (3, 3, 3)
    assert result.agreement.holds
    assert result.agreement.architectures == 1000
    found = json.loads(json.dumps(result.to_json()))
    assert found["agreement"]["holds"] is True
    assert all(rate > 0 for rate in found["speed"]["of_limit"].values())
    assert "holds" in str(result) and "of limit" in str(result)


def test_shares_are_of_the_bytes_that_have_to_move() -> None:
    found = Speed(10.0, 10.0, 5.0, 4.0, 2.0, gigabytes_per_s=1.0).of_limit
    assert found == {
        "forward": 0.5,
        "forward_backward": 0.5,
        "logits_forward": 0.2,
        "logits_forward_backward": 0.2,
    }


def test_another_sum_is_no_rounding() -> None:
    rounding = Agreement(1000, 1e-15, 1e-7)
    assert rounding.holds
    assert not replace(rounding, single=1e-9).holds
    assert not replace(rounding, one_hot=1e-3).holds


@pytest.mark.parametrize("holds", [True, False])
def test_the_exit_code_says_whether_the_sums_agree(monkeypatch, capsys, holds: bool) -> None:
    monkeypatch.setattr(expected_latency, "_card_table", lambda path: ("a table", TABLE))
    if not holds:
        monkeypatch.setattr(CostTable, "total", lambda self, choice: 1.0)
    assert expected_latency.main(["--batch", "4", "--rounds", "1", "--json"]) == int(not holds)
    assert len(json.loads(capsys.readouterr().out)["tables"]) == 2


def test_a_card_that_is_not_there_is_named(capsys, tmp_path) -> None:
    assert expected_latency.main(["--table", str(tmp_path / "none.card")]) == 1
    assert "none.card: no such file" in capsys.readouterr().err
