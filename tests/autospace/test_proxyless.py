from __future__ import annotations

import dataclasses
import signal

import numpy as np
import pytest
import torch

from autospace import proxyless
from autospace.checkpoint import load_checkpoint
from autospace.cost import SMALLEST_CELL, Limit, MaddsCost
from autospace.data import load_data
from autospace.events import SaveClock
from autospace.genotype import REFERENCE_CELLS
from autospace.proxyless import SearchRun, search_space
from autospace.search_options import SearchOptions
from autospace.seeding import Seed
from autospace.skeleton import SKELETONS
from autospace.space import SearchSpace
from autospace.supernet import GatedNet
from devices.errors import AutospaceError, UsageError

SPACE = SearchSpace(SKELETONS["tiny"], ((*REFERENCE_CELLS, SMALLEST_CELL),) * 3)
OPTIONS = SearchOptions(steps=12, warmup=4, batch=16)
LIMITS = (Limit("madds", 2e6, "given"),)


@pytest.fixture(scope="module")
def data():
    return load_data("digits", resolution=16)


def _search(data, limit=2e6, options=OPTIONS, seed=0, **more):
    costs = {"madds": MaddsCost(SPACE.skeleton)}
    limits = [Limit("madds", limit, "given")]
    return search_space(SPACE, data, costs, limits, options=options, seed=Seed(seed), **more)


def _run(data, options, limits=LIMITS):
    """A search before its first step; the last blocks of α's rows are padding."""
    candidates = SPACE.candidates_by_block
    net = GatedNet(SPACE.skeleton, candidates, "kernel", torch.Generator().manual_seed(0))
    alpha = torch.full((len(candidates), max(map(len, candidates))), -torch.inf)
    for index, blocks in enumerate(candidates):
        alpha[index, : len(blocks)] = torch.linspace(0, 0.5, len(blocks))
    table = MaddsCost(SPACE.skeleton).table(candidates)
    optimizer = torch.optim.SGD(net.parameters(), lr=options.learning_rate, momentum=0.9)
    tables = [table] * len(limits)
    return SearchRun(options, data, Seed(0), net, optimizer, limits, tables, alpha)


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


class _Read:
    """A cost whose table is read anew each time, as a compiled network's is."""

    def __init__(self, share: float) -> None:
        self.share, self.random = share, np.random.default_rng()

    def table(self, candidates):
        table = MaddsCost(SPACE.skeleton).table(candidates)
        return dataclasses.replace(
            table,
            values=tuple(
                tuple(value * (1.001 if self.random.random() < self.share else 1) for value in row)
                for row in table.values
            ),
        )


@pytest.mark.parametrize(("share", "kept"), [(0.1, True), (1.0, False)])
def test_a_table_read_a_little_differently_is_no_other_card(data, tmp_path, share, kept):
    """A search goes on with the table that it began with; with another card it begins anew."""
    limits, state, steps = [Limit("madds", 2e6, "given")], tmp_path / "state", []

    def stop(fraction, message):
        steps.append(fraction)
        if fraction >= 0.6 and len(steps) < 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_space(SPACE, data, {"madds": _Read(0)}, limits, options=OPTIONS, state=state,
                     progress=stop)  # fmt: skip
    first = list(steps)
    steps[:] = [0.0] * 20
    resumed = search_space(SPACE, data, {"madds": _Read(share)}, limits, options=OPTIONS,
                           state=state, progress=stop)  # fmt: skip
    plain = MaddsCost(SPACE.skeleton).table(SPACE.candidates_by_block)
    assert (resumed.tables[0] == plain) == kept
    assert (min(steps[20:]) >= first[-1]) == kept


@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.7, 0.9])
def test_the_multiplier_brings_the_expectation_to_the_limit(data, share):
    """From above and from below; the loss hardly matters in so few steps."""
    table = MaddsCost(SPACE.skeleton).table(SPACE.candidates_by_block)
    limit = table.smallest + share * (table.largest - table.smallest)
    options = SearchOptions(steps=150, warmup=1, alpha_every=1, batch=8, alpha_rate=0.1)
    searched = _search(data, limit=limit, options=options)
    final = [line["expected"]["madds"] for line in searched.log[-20:]]
    # The farthest limit is not quite reached by these steps, half as large as usual.
    assert 0.94 * limit <= sum(final) / len(final) <= 1.02 * limit
    assert searched.expected == pytest.approx((limit,), rel=1e-5)


@pytest.mark.parametrize("shares", [(0.2, 0.9), (0.5, 0.5), (0.9, 0.3), (0.8, 0.9)])
def test_of_two_limits_the_tightest_is_met_and_none_exceeded(data, shares):
    """Each a share of its own range; the second cost grows with the blocks' order."""
    candidates = SPACE.candidates_by_block
    plain = MaddsCost(SPACE.skeleton)

    class Other(MaddsCost):
        metric = "latency_ms"

        @property
        def fixed(self):
            return 1.0

        def block(self, index, block):
            return super().block(index, block) ** 0.5 * (1 + index) / 1e3

    costs = {"madds": plain, "latency_ms": Other(SPACE.skeleton)}
    limits = []
    for (metric, cost), share in zip(costs.items(), shares, strict=True):
        table = cost.table(candidates)
        value = table.smallest + share * (table.largest - table.smallest)
        limits.append(Limit(metric, value, f"{share:.0%} of the range"))
    options = SearchOptions(steps=120, warmup=1, alpha_every=1, batch=8, alpha_rate=0.1)
    searched = search_space(SPACE, data, costs, limits, options=options, seed=Seed(0))
    used = [cost / limit.value for cost, limit in zip(searched.expected, limits, strict=True)]
    assert max(used) == pytest.approx(1, abs=1e-4)
    # Before α is put onto the limit, it is near to it.
    tail = [
        max(line["expected"][limit.metric] / limit.value for limit in limits)
        for line in searched.log[-20:]
    ]
    assert sum(tail) / len(tail) == pytest.approx(1, abs=0.03)


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


def test_a_step_of_full_v2_is_the_gradient_of_all_gates(data):
    """Eq. 4 over all candidates of a block, against autograd through the softmax."""
    run = _run(data, SearchOptions(update_rule="full_v2", batch=16, warmup=1, steps=4))
    before = run.alpha.clone()
    slope = torch.randn(before.shape, generator=torch.Generator().manual_seed(1))
    free = before.clone().requires_grad_()
    (torch.softmax(free, 1) * slope).sum().backward()
    run._move(torch.arange(before.shape[1]).expand_as(before), slope)
    real = before.isfinite()
    expected = -run.options.alpha_rate * free.grad / run.scale**0.5
    moved = (run.alpha - before).masked_fill(~real, 0)
    # Up to what is common to a block's candidates, which its softmax does not see.
    common = ((moved - expected) * real).sum(1) / real.sum(1)
    assert torch.allclose(moved, (expected + common[:, None]) * real, atol=1e-5)
    assert run.scale == pytest.approx(free.grad[real].square().mean().item(), rel=1e-5)
    assert torch.allclose(before.logsumexp(1), run.alpha.logsumexp(1), atol=1e-5)


def test_full_v2_moves_candidates_that_two_leaves_alone(data):
    moved = {}
    for rule in ("two", "full_v2"):
        run = _run(data, SearchOptions(update_rule=rule, batch=16, warmup=1, steps=4), limits=())
        before = run.alpha.clone()
        run.alpha_step()
        moved[rule] = int(((run.alpha - before).abs() > 1e-9).sum())
    assert moved["two"] <= 2 * len(SPACE.skeleton.blocks)
    assert moved["full_v2"] > moved["two"]


def test_full_v2_searches_and_resumes(data, tmp_path):
    options = SearchOptions(steps=8, warmup=2, batch=16, update_rule="full_v2")
    whole = _search(data, options=options)

    def stop(fraction, message):
        if fraction >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _search(data, options=options, state=tmp_path / "state", progress=stop)
    resumed = _search(data, options=options, state=tmp_path / "state")
    assert torch.equal(whole.alpha, resumed.alpha)


# -- losses that are no numbers --------------------------------------------------------------------


def _poisoned(data, step):
    """The same data, until the training images of one step are no numbers."""

    class Poisoned(type(data)):
        def training_batch(self, split, batch, place, seed, **more):
            images, labels = super().training_batch(split, batch, place, seed, **more)
            if split is self.train and place == step:
                images = images * float("nan")
            return images, labels

    return Poisoned(**{one.name: getattr(data, one.name) for one in dataclasses.fields(data)})


def test_a_loss_that_is_no_number_keeps_the_state_before_it(data, tmp_path, monkeypatch):
    monkeypatch.setattr(proxyless, "SaveClock", lambda: SaveClock(every_s=0.0))
    state = tmp_path / "state"
    with pytest.raises(AutospaceError, match="weight step 8: the loss is nan") as error:
        _search(_poisoned(data, 7), state=state)
    assert "the state of step 6 is kept" in str(error.value)
    # With images that are numbers again it goes on, and ends as if nothing had been.
    whole, resumed = _search(data), _search(data, state=state)
    assert torch.equal(whole.alpha, resumed.alpha)
    states = whole.net.state_dict(), resumed.net.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_weights_that_are_no_numbers_are_not_saved(data, tmp_path):
    run = _run(data, OPTIONS)
    run.save(tmp_path / "state", "digest", 0)
    good = (tmp_path / "state").read_bytes()
    # A weight that the coming path does not use: no loss tells.
    with torch.no_grad():
        run.weights[-1][0] = float("inf")
    run.save(tmp_path / "state", "digest", 0)
    assert (tmp_path / "state").read_bytes() == good


def test_a_learning_rate_beyond_reason_says_which_step(data):
    options = SearchOptions(steps=12, warmup=4, batch=16, learning_rate=1e30)
    with pytest.raises(AutospaceError, match=r"search, .*step \d+: .*lower the learning rate"):
        _search(data, options=options)


def test_ctrl_c_waits_for_the_end_of_a_step(data, tmp_path, monkeypatch):
    """A signal in the middle of a step: what is saved is a whole one, and nothing is lost."""
    whole = _search(data)
    # A test runner's worker may ignore the signal; a terminal's process has this handler.
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)
    plain = proxyless.SearchRun.weight_step

    def interrupted(self, proven=lambda: None):
        def kill():
            proven()
            if self.step == 6:
                signal.raise_signal(signal.SIGINT)

        return plain(self, kill)

    monkeypatch.setattr(proxyless.SearchRun, "weight_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _search(data, state=tmp_path / "state")
    monkeypatch.undo()
    saved = load_checkpoint(tmp_path / "state", "autospace.search", "a state")
    assert saved.meta["step"] == 7
    resumed = _search(data, state=tmp_path / "state")
    assert torch.equal(whole.alpha, resumed.alpha)


def test_a_limit_below_the_space_names_its_smallest_network(data):
    with pytest.raises(UsageError, match="below the smallest network of the space, 160K"):
        _search(data, limit=1e5)


def test_contradicting_options_are_named(data):
    with pytest.raises(UsageError, match="warmup 12: below steps"):
        _search(data, options=SearchOptions(steps=12, warmup=12))
