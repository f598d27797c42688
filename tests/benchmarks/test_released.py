"""Networks at the release's budgets, from the released space and from an evolved one."""

from __future__ import annotations

from pathlib import Path

import pytest

from autospace.evolution_options import EvolutionOptions
from autospace.skeleton import SKELETONS
from autospace.space import SearchSpace
from autospace.steps import evolve
from benchmarks.released import BUDGETS, derived, networks
from devices.errors import UsageError


@pytest.mark.parametrize(("budget", "width"), BUDGETS)
def test_networks_of_the_released_space_are_just_below_their_budget(
    reference_folder: Path, budget: float, width: float
) -> None:
    space = SearchSpace.load(reference_folder / "search_space.config")
    network = derived(space, budget, width)
    assert 0.98 * budget <= network.madds <= budget
    assert network.skeleton.width_mult == width and network.skeleton.resolution == 224


def test_so_are_those_of_an_evolved_space(reference_folder: Path) -> None:
    options = EvolutionOptions(
        generations=2, warmup=1, population=12, steps=1, batch=8, exam=0, kept=9
    )
    space = evolve(budget="500M", options=options)
    found = networks(reference_folder, space)
    evolved = {name: network for name, network in found.items() if name.startswith("evolved")}
    assert len(evolved) == len(BUDGETS)
    for (budget, _), network in zip(BUDGETS, evolved.values(), strict=True):
        assert 0.98 * budget <= network.madds <= budget


def test_spaces_of_other_skeletons_are_refused(reference_folder: Path) -> None:
    tiny = SearchSpace(SKELETONS["tiny"], (SearchSpace.load(
        reference_folder / "search_space.config"
    ).layers[0],) * 3)  # fmt: skip
    with pytest.raises(UsageError, match="tiny skeleton"):
        networks(reference_folder, tiny)
