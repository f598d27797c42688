from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autospace.cost import Limit, MaddsCost, reference_cost, smallest_cost
from autospace.data import load_data
from autospace.evolution import (
    EvolutionOptions,
    _first_population,
    evolve_space,
    mutated,
    random_cell,
)
from autospace.genotype import EDGES, REFERENCE_CELLS
from autospace.operations import SEARCH_OPERATIONS, Operation
from autospace.seeding import Seed
from autospace.skeleton import SKELETONS
from devices.errors import UsageError

OPTIONS = EvolutionOptions(generations=4, warmup=2, population=8, steps=1, batch=16)


@pytest.fixture(scope="module")
def data():
    return load_data("digits", resolution=16)


def _evolve(data, limit=2.5e6, seed=0, options=OPTIONS, **more):
    skeleton = SKELETONS["tiny"]
    limits = [Limit("madds", limit, "given")]
    costs = {"madds": MaddsCost(skeleton)}
    return evolve_space(skeleton, data, costs, limits, options=options, seed=Seed(seed), **more)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31))
def test_mutation_changes_one_thing_and_stays_valid(seed):
    random = np.random.default_rng(seed)
    parent = random_cell(random)
    child = mutated(parent, random)
    assert child == child.canonical()
    for edge in EDGES:
        assert child[edge] in SEARCH_OPERATIONS
        if child.expansion == 6:
            assert child[edge] is not Operation.DENSE
    assert child[3, 0] is Operation.NONE
    if child.expansion == parent.expansion:
        changed = sum(child[edge] is not parent[edge] for edge in EDGES)
        assert changed <= 1


def test_mutations_reach_every_gene():
    random = np.random.default_rng(0)
    cell = REFERENCE_CELLS[0]
    seen = {mutated(cell, random) for _ in range(400)}
    assert {child.expansion for child in seen} == {1, 3, 6}
    for edge in ((1, 0), (2, 0), (2, 1), (3, 1), (3, 2)):
        assert any(child[edge] is not cell[edge] for child in seen)


def test_the_first_population_is_distinct_and_begins_with_the_references():
    population = _first_population(EvolutionOptions(population=30), Seed(0), 0)
    cells = [one.cell for one in population]
    assert tuple(cells[:3]) == REFERENCE_CELLS
    assert len(set(cells)) == 30


def test_a_space_holds_evolved_cells_and_every_reference(data):
    space = _evolve(data)
    assert len(space.layers) == SKELETONS["tiny"].num_layers
    for layer, fitness in zip(space.layers, space.fitness, strict=True):
        assert layer[-3:] == REFERENCE_CELLS
        assert len(set(layer)) == len(layer) > 3
        evolved = fitness[:-3]
        assert len(evolved) <= 6
    assert space.provenance["cells_tried"] == 2 * 3 * 4
    assert "digits" in space.provenance["data"]


def test_same_seed_same_space_and_another_seed_another(data):
    first, again, other = _evolve(data), _evolve(data), _evolve(data, seed=1)
    assert (first, first.fitness) == (again, again.fitness)
    assert first != other


def test_interrupted_anywhere_it_ends_in_the_same_space(data, tmp_path):
    whole = _evolve(data, log=tmp_path / "whole.jsonl")

    class Stop(KeyboardInterrupt):
        pass

    for stop_at in (1, 3, OPTIONS.generations):
        state, log = tmp_path / f"{stop_at}.state", tmp_path / f"{stop_at}.jsonl"

        def stop(fraction, message, at=stop_at):
            if fraction >= at / OPTIONS.generations:
                raise Stop

        with pytest.raises(KeyboardInterrupt):
            _evolve(data, state=state, log=log, progress=stop)
        assert state.exists()
        resumed = _evolve(data, state=state, log=log)
        assert (resumed, resumed.fitness) == (whole, whole.fitness)
        assert log.read_text() == (tmp_path / "whole.jsonl").read_text()
        assert _evolve(data, state=state).provenance["expected"] == whole.provenance["expected"]


def test_a_tight_limit_pulls_the_expected_cost_down(data):
    options = EvolutionOptions(
        generations=14, warmup=1, population=12, steps=2, batch=16, alpha_rate=0.3
    )
    cost = MaddsCost(SKELETONS["tiny"])
    loose = _evolve(data, limit=100e6, options=options)
    tight = _evolve(data, limit=0.25 * reference_cost(cost), options=options)
    expected = [space.provenance["expected"]["madds"] for space in (loose, tight)]
    assert expected[1] < 0.8 * expected[0]


def test_without_references_populations_are_random_and_keep_as_many_cells(data):
    options = replace(OPTIONS, references=False, population=30)
    first = [one.cell for one in _first_population(options, Seed(0), 0)]
    assert len(set(first)) == 30 and not set(first) & set(REFERENCE_CELLS)
    space = _evolve(data, options=replace(OPTIONS, references=False))
    assert not any(set(layer) & set(REFERENCE_CELLS) for layer in space.layers)
    assert [len(layer) for layer in space.layers] == [OPTIONS.population] * len(space.layers)
    few = _evolve(data, options=replace(options, kept=2))
    assert [len(layer) for layer in few.layers] == [5] * len(few.layers)


def test_random_fitness_does_not_learn(data):
    """The same cells are tried and judged whatever the data say; the seed alone decides."""

    class Shuffled:
        def __getattr__(self, name):
            return getattr(data, name)

        def training_batch(self, *args, **kwargs):
            images, labels = data.training_batch(*args, **kwargs)
            return images, labels.flip(0)

    options = replace(OPTIONS, fitness="random")
    drawn, other = _evolve(data, options=options), _evolve(Shuffled(), options=options)
    assert (drawn.layers, drawn.fitness) == (other.layers, other.fitness)
    learned = _evolve(data)
    assert learned.fitness != _evolve(Shuffled()).fitness


def test_a_limit_below_the_smallest_network_names_it(data):
    smallest = smallest_cost(MaddsCost(SKELETONS["tiny"]))
    with pytest.raises(UsageError, match=r"below the smallest network.*160K"):
        _evolve(data, limit=0.9 * smallest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"population": 4}, "population 4"),
        ({"generations": 0}, "generations 0"),
        ({"warmup": 4}, "warmup 4"),
        ({"sampled": 1}, "sampled 1"),
        ({"momentum": 1.0}, "momentum 1.0"),
        ({"fitness": "none"}, "fitness 'none'"),
    ],
)
def test_contradicting_options_are_named(data, change, message):
    with pytest.raises(UsageError, match=message):
        _evolve(data, options=replace(OPTIONS, **change))
