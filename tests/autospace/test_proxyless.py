from __future__ import annotations

import pytest
import torch

from autospace.cost import SMALLEST_CELL, Limit, MaddsCost
from autospace.data import load_data
from autospace.genotype import REFERENCE_CELLS
from autospace.proxyless import SearchOptions, search_space
from autospace.seeding import Seed
from autospace.skeleton import SKELETONS
from autospace.space import SearchSpace
from devices.errors import UsageError

SPACE = SearchSpace(SKELETONS["tiny"], ((*REFERENCE_CELLS, SMALLEST_CELL),) * 3)
OPTIONS = SearchOptions(steps=12, warmup=4, batch=16)


@pytest.fixture(scope="module")
def data():
    return load_data("digits", resolution=16)


def _search(data, limit=2e6, options=OPTIONS, seed=0, **more):
    costs = {"madds": MaddsCost(SPACE.skeleton)}
    limits = [Limit("madds", limit, "given")]
    return search_space(SPACE, data, costs, limits, options=options, seed=Seed(seed), **more)


def test_probabilities_are_of_each_block_s_candidates(data):
    searched = _search(data)
    for index, row in enumerate(searched.probabilities):
        assert len(row) == len(SPACE.candidates(index))
        assert sum(row) == pytest.approx(1, abs=1e-5)
        assert min(row) > 0


def test_alpha_waits_for_the_warm_up(data):
    searched = _search(data, options=SearchOptions(steps=4, warmup=3, alpha_every=5, batch=16))
    finite = searched.alpha[searched.alpha.isfinite()]
    assert finite.abs().max() < 0.01
    assert searched.log == ()


def test_same_seed_same_result(data):
    first, again, other = _search(data), _search(data), _search(data, seed=1)
    assert torch.equal(first.alpha, again.alpha)
    states = first.net.state_dict(), again.net.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(first.alpha, other.alpha)


def test_interrupted_it_ends_with_the_same_weights(data, tmp_path):
    whole = _search(data, log=tmp_path / "whole.jsonl")

    def stop(fraction, message):
        if fraction >= 0.6:
            raise KeyboardInterrupt

    state, log = tmp_path / "state", tmp_path / "log.jsonl"
    with pytest.raises(KeyboardInterrupt):
        _search(data, state=state, log=log, progress=stop)
    resumed = _search(data, state=state, log=log)
    assert torch.equal(whole.alpha, resumed.alpha)
    states = whole.net.state_dict(), resumed.net.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert log.read_text() == (tmp_path / "whole.jsonl").read_text()


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_multiplier_brings_the_expectation_to_the_limit(data, share):
    """From above and from below 50 % of the range; the loss hardly matters in so few steps."""
    table = MaddsCost(SPACE.skeleton).table([SPACE.candidates(index) for index in range(6)])
    limit = table.smallest + share * (table.largest - table.smallest)
    options = SearchOptions(steps=150, warmup=1, alpha_every=1, batch=8, alpha_rate=0.1)
    searched = _search(data, limit=limit, options=options)
    final = [line["expected"]["madds"] for line in searched.log[-20:]]
    assert sum(final) / len(final) <= 1.02 * limit


@pytest.mark.parametrize("constraint", ["mul#log", "add#linear"])
def test_the_fixed_forms_pull_downwards(data, constraint):
    expected = []
    for weight in (1e-6, 3.0):
        options = SearchOptions(
            steps=40, warmup=1, alpha_every=1, batch=8, constraint=constraint,
            constraint_weight=weight,
        )  # fmt: skip
        searched = _search(data, limit=1e6, options=options)
        expected.append(searched.log[-1]["expected"]["madds"])
    assert expected[1] < expected[0]


def test_a_limit_below_the_space_names_its_smallest_network(data):
    with pytest.raises(UsageError, match="below the smallest network of the space, 160K"):
        _search(data, limit=1e5)


def test_contradicting_options_are_named(data):
    with pytest.raises(UsageError, match="warmup 12: below steps"):
        _search(data, options=SearchOptions(steps=12, warmup=12))
