"""The picture of a family: one panel a metric, the same for the same family."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

import autospace
from autospace.cost import SMALLEST_CELL
from autospace.family_plot import family_svg
from autospace.genotype import REFERENCE_CELLS
from autospace.search_options import SearchOptions
from autospace.skeleton import SKELETONS
from autospace.space import SearchSpace
from autospace.steps import FamilyResult, open_device
from devices.errors import BudgetError
from latency import DeviceCard

SPACE = SearchSpace(SKELETONS["tiny"], ((*REFERENCE_CELLS, SMALLEST_CELL),) * 3)
OPTIONS = SearchOptions(steps=6, warmup=2, batch=8, proposals=2)


@pytest.fixture(scope="module")
def family(simulated_card: DeviceCard) -> FamilyResult:
    device = open_device(simulated_card.path)
    return autospace.search_pareto(
        SPACE, 3, budget="90%", latency="90%", device=device, options=OPTIONS, measure=False
    )


def _missed(family: FamilyResult) -> FamilyResult:
    """The same, with a first member that does not keep its limits."""
    first, *others = family.members
    best = replace(first.chosen.best, excess=0.2)
    return FamilyResult((replace(first, chosen=replace(first.chosen, best=best)), *others))


def test_the_function_gives_a_family(family: FamilyResult) -> None:
    assert family.kept and len(family.members) == 3
    family.check()
    for one in family.members:
        assert one.architecture.provenance["kept"]
        assert max(
            cost / limit.value for cost, limit in zip(one.expected, one.limits, strict=True)
        ) == pytest.approx(1, abs=1e-3)
    with pytest.raises(BudgetError, match=r"budget not kept by 1 of 3 networks: .*nearest"):
        _missed(family).check()


def test_the_picture_is_an_svg_and_stays_the_same(family: FamilyResult) -> None:
    svg = family_svg(family)
    assert ET.fromstring(svg).tag.endswith("svg")
    assert svg == family_svg(family)
    for words in ("multiply-adds", "latency, predicted (ms)", "limit kept", "limits"):
        assert words in svg
    assert "limit missed" not in svg and "dc:date" not in svg


def test_a_missed_limit_is_marked(family: FamilyResult) -> None:
    assert "limit missed" in family_svg(_missed(family))
