from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from autospace.cost import Limit, MaddsCost, reference_cost, smallest_cost
from autospace.data import load_data
from autospace.evolution import _Evolution, _first_population, evolve_space
from autospace.evolution_options import EvolutionOptions
from autospace.genotype import REFERENCE_CELLS
from autospace.layer_function import layer_function
from autospace.seeding import Seed
from autospace.skeleton import SKELETONS
from devices.errors import UsageError

OPTIONS = EvolutionOptions(
    generations=4, warmup=2, population=8, steps=1, batch=16, study=2.0, exam=1
)


@pytest.fixture(scope="module")
def data():
    return load_data("digits", resolution=16)


def _evolve(data, limit=2.5e6, seed=0, options=OPTIONS, **more):
    skeleton = SKELETONS["tiny"]
    limits = [Limit("madds", limit, "given")]
    costs = {"madds": MaddsCost(skeleton)}
    return evolve_space(skeleton, data, costs, limits, options=options, seed=Seed(seed), **more)


def test_the_first_population_is_distinct_and_begins_with_the_references():
    tiny = SKELETONS["tiny"]
    population = _first_population(EvolutionOptions(population=30), Seed(0), 0, tiny, "kernel")
    cells = [one.cell for one in population]
    assert tuple(cells[:3]) == REFERENCE_CELLS
    assert len({layer_function(tiny, 0, cell, "kernel") for cell in cells}) == 30


def test_references_stay_in_the_space_where_that_is_asked_for(data):
    space = _evolve(data, options=replace(OPTIONS, references="stay"))
    assert len(space.layers) == SKELETONS["tiny"].num_layers
    for layer, fitness in zip(space.layers, space.fitness, strict=True):
        assert layer[-3:] == REFERENCE_CELLS
        assert len(set(layer)) == len(layer) > 3
        evolved = fitness[:-3]
        assert len(evolved) <= 6 and list(evolved) == sorted(evolved, reverse=True)
    assert space.provenance["cells_tried"] == 2 * 3 * 4
    assert "digits" in space.provenance["data"]


def test_references_compete_with_the_others(data):
    space = _evolve(data, options=replace(OPTIONS, kept=4, references="compete"))
    for layer, fitness in zip(space.layers, space.fitness, strict=True):
        assert len(layer) == 4 and list(fitness) == sorted(fitness, reverse=True)
    assert any(cell not in REFERENCE_CELLS for layer in space.layers for cell in layer)


def test_same_seed_same_space_and_another_seed_another(data):
    first, again, other = _evolve(data), _evolve(data), _evolve(data, seed=1)
    assert (first, first.fitness) == (again, again.fitness)
    assert first != other


def test_interrupted_anywhere_it_ends_in_the_same_space(data, tmp_path):
    whole = _evolve(data, log=tmp_path / "whole.jsonl")

    class Stop(KeyboardInterrupt):
        pass

    for stop_at in (0.05, 0.15, 0.4, 1.0):  # two generations, and within and after the study
        state, log = tmp_path / f"{stop_at}.state", tmp_path / f"{stop_at}.jsonl"

        def stop(fraction, message, at=stop_at):
            if fraction >= at:
                raise Stop

        with pytest.raises(KeyboardInterrupt):
            _evolve(data, state=state, log=log, progress=stop)
        assert state.exists()
        resumed = _evolve(data, state=state, log=log)
        assert (resumed, resumed.fitness) == (whole, whole.fitness)
        assert log.read_text() == (tmp_path / "whole.jsonl").read_text()
        assert _evolve(data, state=state).provenance["expected"] == whole.provenance["expected"]


def test_interrupted_within_a_generation_it_ends_in_the_same_space(data, tmp_path, monkeypatch):
    """Weights that learned from a part of a generation are no state to go on from."""
    whole = _evolve(data)
    step = _Evolution._weight_step

    for broken in (2, OPTIONS.weight_steps + 2):

        def stop(self, cells, weights, number, single, at=broken):
            loss = step(self, cells, weights, number, single)
            if number == at:
                raise KeyboardInterrupt
            return loss

        state = tmp_path / f"{broken}.state"
        with monkeypatch.context() as patched:
            patched.setattr(_Evolution, "_weight_step", stop)
            with pytest.raises(KeyboardInterrupt):
                _evolve(data, state=state)
        resumed = _evolve(data, state=state)
        assert (resumed, resumed.fitness) == (whole, whole.fitness)


def test_a_tight_limit_pulls_the_expected_cost_down(data):
    options = EvolutionOptions(
        generations=14, warmup=1, population=12, steps=2, batch=16, alpha_rate=0.3, exam=1,
        headroom=1.0,
    )  # fmt: skip
    cost = MaddsCost(SKELETONS["tiny"])
    loose = _evolve(data, limit=100e6, options=options)
    tight = _evolve(data, limit=0.25 * reference_cost(cost), options=options)
    expected = [space.provenance["expected"]["madds"] for space in (loose, tight)]
    assert expected[1] <= 0.25 * reference_cost(cost) * (1 + 1e-3)
    assert expected[1] < 0.8 * expected[0]
    roomy = _evolve(
        data, limit=0.25 / 1.2 * reference_cost(cost), options=replace(options, headroom=1.2)
    )
    assert roomy.provenance["expected"]["madds"] == pytest.approx(expected[1], rel=1e-6)
    assert roomy.layers == tight.layers
    free = _evolve(
        data, limit=0.25 * reference_cost(cost), options=replace(options, constraint=False)
    )
    assert free.layers == loose.layers


def test_the_largest_population_is_there_to_be_found():
    options, tiny = replace(OPTIONS, population=500), SKELETONS["tiny"]
    for own in (options, replace(options, references="none")):
        assert len(_first_population(own, Seed(0), 2, tiny, "kernel")) == 500


def test_without_references_populations_are_random_and_keep_as_many_cells(data):
    options = replace(OPTIONS, references="none", population=30)
    tiny = SKELETONS["tiny"]
    first = [one.cell for one in _first_population(options, Seed(0), 0, tiny, "kernel")]
    assert len(set(first)) == 30 and not set(first) & set(REFERENCE_CELLS)
    space = _evolve(data, options=replace(OPTIONS, references="none"))
    assert not any(set(layer) & set(REFERENCE_CELLS) for layer in space.layers)
    assert [len(layer) for layer in space.layers] == [OPTIONS.population] * len(space.layers)
    few = _evolve(data, options=replace(options, kept=2))
    assert [len(layer) for layer in few.layers] == [2] * len(few.layers)


def test_populations_hold_no_function_twice(data, tmp_path):
    options = replace(OPTIONS, generations=12, population=12, kept=9, settling=0.0)
    space = _evolve(data, options=options)
    for layer, cells in enumerate(space.layers):
        functions = {layer_function(space.skeleton, layer, cell, "kernel") for cell in cells}
        assert len(functions) == len(cells)


def test_nothing_mutates_at_the_end(data):
    """The populations of the last generations hold no cell that was not there before."""
    distinct = []
    options = replace(OPTIONS, generations=10, settling=0.5, settled=2.0, population=40)
    _evolve(data, options=options, watch=lambda line: distinct.append(line["distinct_cells"]))
    assert len(set(distinct)) > 1
    assert len(set(distinct[4:])) == 1


def test_mutants_begin_between_their_parent_and_the_median(data):
    from autospace.evolution import Individual, _Evolution

    skeleton, costs = SKELETONS["tiny"], {"madds": MaddsCost(SKELETONS["tiny"])}
    first = _first_population(OPTIONS, Seed(0), 0, skeleton, "kernel")
    population = [Individual(one.cell, float(i)) for i, one in enumerate(first)]
    for inherit, value in ((1.0, 7.0), (0.0, 3.5), (0.5, 5.25)):
        run = _Evolution(
            replace(OPTIONS, inherit=inherit), skeleton, data, costs, [], Seed(0), "kernel",
            None, None, [population], ceilings=[{"madds": float("inf")}],
        )  # fmt: skip
        child = run._child(population[-1], set(), 0, np.random.default_rng(0))
        assert child.value == value and child.trials == 0


def test_steps_of_alpha_have_one_unit():
    from autospace.evolution import _Evolution

    slope = torch.tensor([[1.0, 2.0, 4.0, 5.0], [1.0, 1.0, 1.0, 1.0]])
    for unit in (1.0, 1e6):
        run = _Evolution(
            OPTIONS, SKELETONS["tiny"], None, {}, [], Seed(0), "kernel", None, None, []
        )
        step = run._natural(unit * slope)
        assert torch.allclose(step.sum(1), torch.zeros(2), atol=1e-6)
        assert step.square().mean() == pytest.approx(1.0)
        assert torch.allclose(step[0] / step[0, 3], torch.tensor([-1.0, -0.5, 0.5, 1.0]))
        assert not step[1].any()


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
