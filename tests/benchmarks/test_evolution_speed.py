"""The benchmark of the evolution's step: its ways compute the same, and its figures add up."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from autospace.evolution_options import EvolutionOptions
from autospace.skeleton import SKELETONS
from benchmarks.evolution_speed import WAYS, _stack, _Steps, compute, main

TINY = SKELETONS["tiny"]


def test_all_ways_have_the_same_loss() -> None:
    random = np.random.default_rng(0)
    images = torch.rand((8, TINY.in_channels, 16, 16))
    labels = torch.arange(8) % TINY.num_classes
    cells = [_stack(random, 3) for _ in range(TINY.num_layers)]
    weights = torch.softmax(torch.randn((TINY.num_layers, 3)), 1)
    losses = {}
    for way in WAYS:
        loss = _Steps(way, TINY)._loss(images, labels, cells, weights)
        losses[way.name] = loss.item()
    plain = losses.pop("as it is")
    assert losses["plain layout"] == pytest.approx(plain, rel=1e-3)
    assert losses["bfloat16"] == pytest.approx(plain, rel=0.1)
    assert losses["cells apart"] == pytest.approx(plain, rel=1e-3)
    assert losses["oneDNN's gradients"] == pytest.approx(plain, rel=1e-5)


def test_rates_are_operations_by_time() -> None:
    found = {
        "forward_madds": [1e9, 1e9],
        "product_gflops": 100.0,
        "one_network_s": [0.1, 0.2],
        "ways": {"as it is": {"weights": [0.3, 0.3], "alpha": [0.2, 0.2]}},
    }
    own = compute(found, EvolutionOptions(steps=4, sampled=4), 5)["ways"]["as it is"]
    assert own["gflops"] == pytest.approx(20) and own["share_of_product"] == pytest.approx(0.2)
    # Eight steps of a quarter of a second on average judge 20 cells.
    assert own["cells_per_minute"] == pytest.approx(60 / 2.0 * 20)


def test_from_beginning_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.json"
    arguments = ["--skeleton", "tiny", "--data", "digits", "--rounds", "2", "--generations", "2"]
    assert main([*arguments, "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert set(result["ways"]) == {way.name for way in WAYS}
    for way in result["ways"].values():
        assert way["weight_step_s"] > 0 and way["alpha_step_s"] > 0
        assert 0 < way["share_of_product"] < 1
    assert result["evolution"]["cells_per_minute"] > result["random_search"]["cells_per_minute"]
    text = capsys.readouterr().out
    assert "| bfloat16 |" in text and "a random search" in text


def test_unknown_data_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
