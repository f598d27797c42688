"""A family of limits, and α for each from one supernet."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from autospace import family as family_module
from autospace.cost import SMALLEST_CELL, CostTable, Limit, MaddsCost
from autospace.data import Data, load_data
from autospace.family import family_limits, learn_family
from autospace.genotype import REFERENCE_CELLS
from autospace.proxyless import SearchedNet, search_space
from autospace.search_options import SearchOptions
from autospace.seeding import Seed
from autospace.skeleton import SKELETONS
from autospace.space import SearchSpace
from devices.errors import UsageError

SPACE = SearchSpace(SKELETONS["tiny"], ((*REFERENCE_CELLS, SMALLEST_CELL),) * 3)
OPTIONS = SearchOptions(steps=12, warmup=4, batch=16)
TABLE = CostTable("madds", 100.0, ((10.0, 400.0), (10.0, 300.0), (0.0, 200.0)))
OTHER = CostTable("latency_ms", 1.0, ((1.0, 9.0), (1.0, 9.0), (0.0, 20.0)))


# -- limits ----------------------------------------------------------------------------------------


def test_limits_are_evenly_spaced_in_the_logarithm() -> None:
    members = family_limits([TABLE], [Limit("madds", 600.0, "given")], 4)
    values = [limits[0].value for limits in members]
    assert values[0] == pytest.approx(1.25 * TABLE.smallest, rel=0.01)
    assert members[-1] == (Limit("madds", 600.0, "given"),)
    ratios = [b / a for a, b in pairwise(values)]
    assert ratios == pytest.approx([ratios[0]] * 3, rel=0.01)
    assert members[0][0].text == "150 multiply-adds"


def test_two_limits_shrink_together() -> None:
    given = [Limit("madds", 600.0, ""), Limit("latency_ms", 20.0, "")]
    members = family_limits([TABLE, OTHER], given, 3)
    assert [limits[1].metric for limits in members] == ["latency_ms"] * 3
    low, middle, high = members
    for place in (0, 1):
        assert middle[place].value == pytest.approx(
            (low[place].value * high[place].value) ** 0.5, rel=0.01
        )
    assert [limit.value for limit in low] == pytest.approx([150.0, 3.75])


def test_a_limit_without_room_stays_while_the_other_shrinks() -> None:
    given = [Limit("madds", 130.0, ""), Limit("latency_ms", 20.0, "")]
    members = family_limits([TABLE, OTHER], given, 3)
    assert [limits[0].value for limits in members] == [130.0] * 3
    assert members[0][1].value < members[1][1].value < members[2][1].value == 20.0


def test_a_limit_above_the_largest_network_begins_there() -> None:
    members = family_limits([TABLE], [Limit("madds", 1e9, "1G")], 3)
    assert members[1][0].value == pytest.approx((150 * TABLE.largest) ** 0.5, rel=0.01)
    assert members[2][0].text == "1G"


def test_no_room_is_said() -> None:
    with pytest.raises(UsageError, match=r"--pareto 4: no room for 4 limits below 155 .*network 1"):
        family_limits([TABLE], [Limit("madds", 155.0, "")], 4)
    with pytest.raises(UsageError, match="--pareto 1: a family has at least 2"):
        family_limits([TABLE], [Limit("madds", 600.0, "")], 1)


# -- α ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits", resolution=16)


def _searched(data: Data, **changes: object) -> tuple[SearchedNet, list[tuple[Limit, ...]]]:
    options = replace(OPTIONS, **changes)
    costs = {"madds": MaddsCost(SPACE.skeleton)}
    limits = [Limit("madds", 2.5e6, "2.5M")]
    table = costs["madds"].table(SPACE.candidates_by_block)
    members = family_limits([table], limits, 3)
    searched = search_space(SPACE, data, costs, limits, options=options, family=members)
    return searched, members


def _learn(searched, members, data, **more):
    return learn_family(searched, data, members, options=OPTIONS, seed=Seed(0), **more)


def test_each_member_keeps_its_limit_in_expectation(data: Data) -> None:
    searched, members = _searched(data, steps=30, warmup=2, alpha_every=1)
    before = {name: value.clone() for name, value in searched.net.state_dict().items()}
    family = _learn(searched, members, data)
    for member, limits in zip(family, members, strict=True):
        assert member.limits == limits
        (table,) = member.tables
        cost = table.expected(torch.float64).from_logits(member.alpha.double()).item()
        assert cost <= 1.05 * limits[0].value
    assert torch.equal(family[-1].alpha, searched.alpha)
    after = searched.net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_paths_for_a_family_are_smaller_than_for_its_last_member(data: Data) -> None:
    """Weights learn where they will be used: half of a family's limits are tight ones."""
    searched, members = _searched(data)
    (table,) = searched.tables
    options = replace(OPTIONS, warmup=0)
    means = []
    for family in ((), members):
        run = family_module.SearchRun(
            options, data, Seed(0), searched.net,
            torch.optim.SGD(searched.net.parameters(), lr=0.1),
            searched.limits, searched.tables, torch.zeros_like(searched.alpha)
            .masked_fill(searched.alpha.isneginf(), -torch.inf), family=family,
        )  # fmt: skip
        costs = []
        for run.step in range(100):
            costs.append(table.total(run.sampled_path()))
        means.append(sum(costs) / len(costs))
    assert means[1] < 0.8 * means[0]


def test_interrupted_it_ends_with_the_same_alpha(data: Data, tmp_path: Path) -> None:
    searched, members = _searched(data)
    whole = _learn(searched, members, data)

    def stop(fraction: float, message: str) -> None:
        if fraction > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _learn(searched, members, data, state=tmp_path / "state", progress=stop)
    messages: list[str] = []
    resumed = _learn(
        searched, members, data, state=tmp_path / "state",
        progress=lambda fraction, message: messages.append(message),
    )  # fmt: skip
    assert all(torch.equal(a.alpha, b.alpha) for a, b in zip(whole, resumed, strict=True))
    assert all(message.startswith("network 2 of 3") for message in messages)
