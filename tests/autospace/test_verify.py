from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from autospace.cost import SMALLEST_CELL, CostTable, Limit, MaddsCost
from autospace.data import load_data
from autospace.genotype import REFERENCE_CELLS
from autospace.proxyless import SearchedNet
from autospace.search_options import SearchOptions
from autospace.seeding import Seed
from autospace.skeleton import SKELETONS
from autospace.space import SearchSpace
from autospace.supernet import GatedNet
from autospace.verify import choose_networks
from devices.measurement import Measurement
from devices.visits import Visit

SPACE = SearchSpace(SKELETONS["tiny"], ((*REFERENCE_CELLS, SMALLEST_CELL),) * 3)
OPTIONS = SearchOptions(proposals=3, rounds=4)


@pytest.fixture(scope="module")
def data():
    return load_data("digits", resolution=16)


def _searched(limits) -> tuple[SearchedNet, CostTable]:
    candidates = SPACE.candidates_by_block
    net = GatedNet(SPACE.skeleton, candidates, "kernel", torch.Generator().manual_seed(0))
    alpha = torch.full((6, max(map(len, candidates))), -torch.inf)
    for index, blocks in enumerate(candidates):
        alpha[index, : len(blocks)] = torch.linspace(0, 1, len(blocks))
    madds = MaddsCost(SPACE.skeleton).table(candidates)
    latency = CostTable(
        "latency_ms", madds.fixed / 1e6, tuple(tuple(v / 1e6 for v in row) for row in madds.values)
    )
    tables = tuple(madds if limit.metric == "madds" else latency for limit in limits)
    return SearchedNet(SPACE, net, alpha, tables, tuple(limits)), latency


def _device(slower: float, calls: list[int]):
    """A device on which everything takes `slower` times what the table says."""

    def measure(networks):
        calls.append(len(networks))
        return {
            name: Measurement(
                name=name,
                visits=(Visit((architecture.madds / 1e6 * slower,) * 5, 1.0, 1.0),) * 8,
                sentinel_reference_ms=1.0,
                runtime="simulated",
                runtime_version="1",
                simulated=True,
            )
            for name, architecture in networks.items()
        }

    return measure


def test_multiply_adds_alone_need_no_device(data):
    searched, _ = _searched([Limit("madds", 2e6, "2M")])
    (chosen,) = choose_networks([searched], data, None, options=OPTIONS, seed=Seed(0))
    assert chosen.kept
    assert chosen.best.madds <= 2e6
    assert chosen.best.measured is None
    assert len(chosen.rounds) == 1


@pytest.mark.parametrize("slower", [0.7, 1.0, 1.4])
def test_the_table_is_recalibrated_until_a_measured_network_fits(data, slower):
    searched, latency = _searched([Limit("latency_ms", 2.0, "2ms")])
    calls: list[int] = []
    (chosen,) = choose_networks(
        [searched], data, latency, options=OPTIONS, seed=Seed(0), measure=_device(slower, calls)
    )
    assert chosen.kept
    assert chosen.best.measured.upper_ms() <= 2.0
    everyone = [one for row in chosen.rounds for one in row]
    assert any(one.kept and one.excess > -0.05 for one in everyone), "the budget should be used"
    if slower != 1.0:
        last = chosen.recalibrations[-1]
        predicted = chosen.best.predicted_ms
        assert last.factor * predicted + last.offset_ms == pytest.approx(
            slower * predicted, rel=0.02
        )


def test_a_candidate_that_has_no_fast_kernel_is_avoided(data):
    """It costs twenty times its prediction, in one block; everything else is as predicted."""
    searched, latency = _searched([Limit("latency_ms", 2.0, "2ms")])
    slow = SPACE.candidates(2)[0]
    plain = _device(1.0, [])

    def measure(networks):
        found = {}
        for name, one in plain(networks).items():
            if networks[name].blocks[2] == slow:
                more = 19 * latency.values[2][0]
                visits = tuple(replace(v, samples_ms=(v.samples_ms[0] + more,) * 5)
                               for v in one.visits)  # fmt: skip
                one = replace(one, visits=visits)
            found[name] = one
        return found

    alpha = searched.alpha.clone()
    alpha[2, 0] += 9  # and the search likes it best
    (chosen,) = choose_networks(
        [replace(searched, alpha=alpha)], data, latency, options=OPTIONS, seed=Seed(0),
        measure=measure,
    )  # fmt: skip
    assert any(one.choice[2] == 0 for one in chosen.rounds[0])
    assert chosen.kept and chosen.best.choice[2] != 0
    assert chosen.best.measured.latency_ms > 0.95 * 2.0
    assert sum(one.choice[2] == 0 for one in chosen.rounds[-1]) == 0


def test_no_network_is_measured_twice(data):
    searched, latency = _searched([Limit("latency_ms", 2.0, "2ms")])
    calls: list[int] = []
    (chosen,) = choose_networks(
        [searched], data, latency, options=OPTIONS, seed=Seed(0), measure=_device(1.4, calls)
    )
    hashes = [one.architecture.hash for row in chosen.rounds for one in row]
    assert len(hashes) == len(set(hashes)) == sum(calls)


def test_a_device_too_slow_gives_the_nearest_and_says_so(data):
    searched, latency = _searched([Limit("latency_ms", 2.0, "2ms")])
    (chosen,) = choose_networks(
        [searched], data, latency, options=OPTIONS, seed=Seed(0), measure=_device(50, [])
    )
    assert not chosen.kept
    nearest = min((one for row in chosen.rounds for one in row), key=lambda one: one.excess)
    assert chosen.best == nearest


def test_luck_with_the_images_leaves_no_limit_unused(data, monkeypatch):
    """Accuracies that tell nothing: what uses the limit is taken."""
    searched, latency = _searched([Limit("latency_ms", 2.0, "2ms")])
    random = np.random.default_rng(0)
    monkeypatch.setattr(
        "autospace.verify.classified_right",
        lambda network, data, split: random.random(len(split)) < 0.5,
    )
    (chosen,) = choose_networks(
        [searched], data, latency, options=OPTIONS, seed=Seed(0), measure=_device(1.0, [])
    )
    fitting = [one for row in chosen.rounds for one in row if one.kept]
    assert len(fitting) > 1
    assert chosen.best.use == max(one.use for one in fitting) > 0.98


def test_a_clearly_better_network_may_use_a_little_less(data, monkeypatch):
    """Ranked by a judge without noise, to whom every next proposal is a little worse."""
    searched, latency = _searched([Limit("latency_ms", 2.0, "2ms")])
    asked: list[int] = []

    def right(network, data, split):
        asked.append(len(asked))
        return np.arange(len(split)) > len(split) * 0.05 * len(asked)

    monkeypatch.setattr("autospace.verify.classified_right", right)
    (chosen,) = choose_networks(
        [searched], data, latency, options=OPTIONS, seed=Seed(0), measure=_device(1.0, [])
    )
    fitting = [one for row in chosen.rounds for one in row if one.kept]
    most = max(one.use for one in fitting)
    alike = [one for one in fitting if one.use > 0.98 * most]
    assert chosen.best.validation_accuracy == max(one.validation_accuracy for one in alike)
    assert chosen.best.use < most


def test_bounds_count_with_every_network_that_was_measured(data):
    """The device's noise costs a margin, which grows with the number of networks compared."""
    searched, latency = _searched([Limit("latency_ms", 2.0, "2ms")])

    def measure(networks):
        plain = _device(1.2, [])(networks)
        return {name: replace(one, simulated=False) for name, one in plain.items()}

    (chosen,) = choose_networks(
        [searched], data, latency, options=OPTIONS, seed=Seed(0), measure=measure
    )
    everyone = [one for row in chosen.rounds for one in row]
    assert chosen.kept and len(chosen.rounds) > 1
    for one in everyone:
        bound = one.measured.upper_ms(1 - 0.05 / len(everyone))
        assert one.excess == pytest.approx(bound / 2.0 - 1)
        assert one.use == pytest.approx(one.measured.latency_ms / 2.0)
    assert -0.02 < chosen.best.excess <= 0, "proposals should leave that margin, and no more"


def test_measurements_of_an_interrupted_verification_are_kept(data, tmp_path):
    searched, latency = _searched([Limit("latency_ms", 2.0, "2ms")])
    record = tmp_path / "verification.json"
    first_calls: list[int] = []
    options = replace(OPTIONS, rounds=1)
    choose_networks(
        [searched], data, latency, options=options, seed=Seed(0),
        measure=_device(1.4, first_calls), record=record,
    )  # fmt: skip
    again: list[int] = []
    choose_networks(
        [searched], data, latency, options=options, seed=Seed(0),
        measure=_device(9.9, again), record=record,
    )  # fmt: skip
    assert first_calls and not again


def test_measurements_of_another_device_do_not_count(data, tmp_path):
    """The same search on a card with other times: what the old record holds is measured anew."""
    searched, latency = _searched([Limit("latency_ms", 2.0, "2ms")])
    record, options = tmp_path / "verification.json", replace(OPTIONS, rounds=1)
    calls: list[int] = []
    for table in (latency, latency.recalibrated(1.01, 0.0)):
        choose_networks(
            [searched], data, table, options=options, seed=Seed(0),
            measure=_device(1.4, calls), record=record,
        )  # fmt: skip
    assert len(calls) == 2


def test_a_limit_above_everything_has_the_largest_network_among_its_candidates(data):
    searched, _ = _searched([Limit("madds", 1e9, "1G")])
    (table,) = searched.tables
    (chosen,) = choose_networks([searched], data, None, options=OPTIONS, seed=Seed(0))
    assert table.largest in {one.madds for one in chosen.rounds[0]}
    assert len(chosen.rounds[0]) == OPTIONS.proposals and chosen.kept


# -- several limits at once ------------------------------------------------------------------------


def _family(*values) -> tuple[list[SearchedNet], CostTable]:
    searched, latency = _searched([Limit("latency_ms", values[0], "")])
    return [
        replace(searched, limits=(Limit("latency_ms", value, f"{value}ms"),)) for value in values
    ], latency


def test_a_family_is_measured_together_and_each_limit_is_kept(data):
    family, latency = _family(0.7, 1.2, 2.0)
    calls: list[int] = []
    chosen = choose_networks(
        family, data, latency, options=OPTIONS, seed=Seed(0), measure=_device(1.3, calls)
    )
    for one, member in zip(chosen, family, strict=True):
        assert one.kept
        assert one.best.measured.upper_ms() <= member.limits[0].value
    # One call a round; in the first all members' proposals, each network once.
    hashes = {one.architecture.hash for c in chosen for one in c.rounds[0]}
    assert calls[0] == len(hashes) > OPTIONS.proposals
    assert len(calls) == max(len(one.rounds) for one in chosen)
    everyone = {one.architecture.hash for c in chosen for row in c.rounds for one in row}
    assert sum(calls) == len(everyone)


def test_one_table_is_recalibrated_by_all_of_a_family(data):
    """What no member could tell by itself: a slope and an offset."""
    family, latency = _family(0.6, 2.0)

    def measure(networks):
        plain = _device(1.0, [])(networks)
        return {
            name: replace(
                one, visits=tuple(replace(v, samples_ms=(1.2 * v.samples_ms[0] + 0.1,) * 5)
                                  for v in one.visits)
            )
            for name, one in plain.items()
        }  # fmt: skip

    chosen = choose_networks(family, data, latency, options=OPTIONS, seed=Seed(0), measure=measure)
    last = max((one for one in chosen), key=lambda one: len(one.rounds)).recalibrations[-1]
    assert len(chosen[0].rounds) > 1 or len(chosen[1].rounds) > 1
    assert last.factor == pytest.approx(1.2, rel=0.05)
    assert last.offset_ms == pytest.approx(0.1, abs=0.05)


def test_another_member_s_candidate_serves_where_its_own_fail(data):
    """On a device that is far slower, only what was proposed for the tighter limit fits."""
    family, latency = _family(0.6, 1.0)
    options = replace(OPTIONS, rounds=1)
    chosen = choose_networks(
        family, data, latency, options=options, seed=Seed(0), measure=_device(1.6, [])
    )
    assert not any(one.kept for one in chosen[1].rounds[0])
    assert chosen[1].best.choice in {one.choice for one in chosen[0].rounds[0]}
    assert chosen[1].kept and not chosen[0].kept


def test_a_family_s_measurements_are_kept_for_another_try(data, tmp_path):
    family, latency = _family(0.7, 2.0)
    record, options = tmp_path / "verification.json", replace(OPTIONS, rounds=1)
    calls: list[int] = []
    for slower in (1.0, 9.9):
        choose_networks(
            family, data, latency, options=options, seed=Seed(0),
            measure=_device(slower, calls), record=record,
        )  # fmt: skip
    assert len(calls) == 1
