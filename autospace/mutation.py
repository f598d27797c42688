"""Random cells, and cells with one gene changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autospace.genotype import EXPANSIONS, REFERENCE_CELLS, Cell, Mix
from autospace.operations import SEARCH_OPERATIONS, Operation

__all__ = ["mutated", "random_cell"]

_FREE_EDGES = ((1, 0), (2, 0), (2, 1), (3, 1), (3, 2))
_CHAIN = ((1, 0), (2, 1), (3, 2))


def random_cell(random: np.random.Generator) -> Cell:
    """A valid cell, each gene uniform among what is allowed."""
    cell = REFERENCE_CELLS[0]
    expansion = int(random.choice(EXPANSIONS))
    cell = replace(cell, expansion=expansion)
    for edge in _FREE_EDGES:
        cell = cell.with_edge(edge, _choose(random, _allowed(edge, expansion)))
    mixes = random.integers(0, 2, 2)
    return replace(cell, mixes=(Mix(int(mixes[0])), Mix(int(mixes[1])))).canonical()


def mutated(cell: Cell, random: np.random.Generator) -> Cell:
    """The cell with one gene changed to another allowed value.

    The genes are the five free edges, the expansion, and the mixing of each node that has more
    than one input. A change of expansion to 6 turns dense edges, which 6 does not allow, into
    depthwise ones.
    """
    genes: list[Any] = [*_FREE_EDGES, "expansion"]
    genes += [node for node in (2, 3) if len(cell.inputs(node)) > 1]
    gene = genes[int(random.integers(len(genes)))]
    if gene == "expansion":
        ratios = [value for value in EXPANSIONS if value != cell.expansion]
        expansion = ratios[int(random.integers(len(ratios)))]
        child = replace(cell, expansion=expansion)
        for edge in _FREE_EDGES:
            if child[edge] not in _allowed(edge, expansion):
                child = child.with_edge(edge, Operation.DEPTHWISE)
    elif isinstance(gene, tuple):
        others = [op for op in _allowed(gene, cell.expansion) if op is not cell[gene]]
        child = cell.with_edge(gene, _choose(random, others))
    else:
        mixes = list(cell.mixes)
        mixes[gene - 2] = Mix(1 - mixes[gene - 2])
        child = replace(cell, mixes=(mixes[0], mixes[1]))
    return child.canonical()


def _allowed(edge: tuple[int, int], expansion: int) -> list[Operation]:
    return [
        operation
        for operation in SEARCH_OPERATIONS
        if not (operation is Operation.NONE and edge in _CHAIN)
        and not (operation is Operation.DENSE and expansion == max(EXPANSIONS))
    ]


def _choose(random: np.random.Generator, operations: Sequence[Operation]) -> Operation:
    return operations[int(random.integers(len(operations)))]
