from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from autospace.genotype import EDGES, REFERENCE_CELLS
from autospace.mutation import mutated, random_cell
from autospace.operations import SEARCH_OPERATIONS, Operation


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
