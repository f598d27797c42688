"""Entries of a latency table that no measurement stands behind: named, and measured."""

from dataclasses import replace
from pathlib import Path

import pytest

from autospace.cost import SMALLEST_CELL
from autospace.coverage import CoveredLatencyCost, described, networks_with
from autospace.genotype import REFERENCE_CELLS, MBConv, Zero
from autospace.search_options import SearchOptions
from autospace.skeleton import SKELETONS
from autospace.space import SearchSpace
from autospace.steps import card_copy, open_device, search
from devices.errors import InvalidInputError
from latency import DeviceCard, Predictor, profile_device

SPACE = SearchSpace(SKELETONS["tiny"], ((*REFERENCE_CELLS, SMALLEST_CELL),) * 3)
CANDIDATES = SPACE.candidates_by_block
OPTIONS = SearchOptions(steps=6, warmup=2, batch=8, proposals=2)


@pytest.fixture(scope="module")
def short_card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card of three probes, among which some of the space's operations do not occur."""
    path = tmp_path_factory.mktemp("short") / "short.card"
    profile_device(path, runtime="simulated", rounds=2, probes=3)
    return path


def _cost(card: DeviceCard) -> CoveredLatencyCost:
    return CoveredLatencyCost(SPACE.skeleton, Predictor.from_card(card))


def test_nothing_is_missing_from_a_card_that_has_seen_every_operation(
    simulated_card: DeviceCard,
) -> None:
    assert _cost(simulated_card).missing(CANDIDATES) == {}


def test_what_is_missing_is_named_by_block_and_operation(short_card: Path) -> None:
    cost = _cost(DeviceCard.open(short_card))
    missing = cost.missing(CANDIDATES)
    # Pooling stands only where a cell without an operation meets a stride.
    pooled = {place for place, names in missing.items() if "AveragePool" in names}
    strided = {i for i, shape in enumerate(SPACE.skeleton.blocks) if shape.stride == 2}
    assert pooled and {index for index, _ in pooled} <= strided
    assert "Gemm" in missing[None, None]
    assert not any(isinstance(block, Zero) for _, block in missing)
    words = described(missing)
    assert words.startswith("AveragePool, ") and "block 0: " in words and " more)" in words
    # What was not asked for is not named, though the networks that were compiled held it.
    few = cost.missing([(MBConv(),)] * len(CANDIDATES))
    assert {block for _, block in few} <= {MBConv(), None}


def test_networks_hold_every_candidate_in_question(short_card: Path) -> None:
    missing = _cost(DeviceCard.open(short_card)).missing(CANDIDATES)
    networks = networks_with(missing, SPACE)
    most = max(sum(index == place for index, _ in missing) for place in range(len(CANDIDATES)))
    assert len(networks) == most
    assert len(networks_with({(None, None): frozenset({"Gemm"})}, SPACE)) == 1


def test_a_search_measures_what_is_missing(short_card: Path, tmp_path: Path) -> None:
    device, state = open_device(short_card), tmp_path / "state"
    before = short_card.read_bytes()
    found = search(SPACE, latency="90%", device=device, options=OPTIONS, state=state)
    assert any("short.card lacks AveragePool" in line for line in found.warnings)
    assert short_card.read_bytes() == before
    assert _cost(DeviceCard.open(card_copy(state))).missing(CANDIDATES) == {}
    # The simulated device's times are exact, so the prediction is once it is measured.
    best = found.chosen.best
    assert best.predicted_ms == pytest.approx(best.measured.latency_ms, rel=0.03)
    again = search(SPACE, latency="90%", device=device, options=OPTIONS, state=state)
    assert again.architecture == found.architecture


def test_without_a_place_for_it_the_card_is_completed_out_of_sight(short_card: Path) -> None:
    found = search(SPACE, latency="90%", device=open_device(short_card), options=OPTIONS)
    assert found.chosen.best.predicted_ms


@pytest.mark.parametrize("here", [True, False])
def test_what_cannot_be_measured_is_refused(short_card: Path, here: bool) -> None:
    device = replace(open_device(short_card), here=here)
    why = "--no-measure forbids" if here else "this machine cannot"
    with pytest.raises(InvalidInputError, match=f"never measured AveragePool.*{why}.*--update"):
        search(SPACE, latency="90%", device=device, options=OPTIONS, measure=not here)


def test_multiply_adds_alone_do_not_ask(short_card: Path) -> None:
    device = open_device(short_card)
    found = search(SPACE, budget="2M", device=device, options=OPTIONS, measure=False)
    assert not any("lacks" in line for line in found.warnings)
