"""Cells as the released files write them, and every way in which a matrix can be wrong."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import cells, mbconvs, search_cells

from autospace.genotype import (
    EDGES,
    EXPANSIONS,
    REFERENCE_CELLS,
    Block,
    Cell,
    MBConv,
    Mix,
    Zero,
    block_from_json,
)
from autospace.operations import Operation
from devices.errors import InvalidInputError

MATRIX: list[list[Any]] = [[0, 0, 0, 2], [5, 0, 0, [0, 1]], [1, 5, 0, 0], [1, 2, 3, 0]]


@given(cells)
def test_matrix_round_trip(cell: Cell) -> None:
    matrix = json.loads(json.dumps(cell.matrix()))
    assert Cell.from_matrix(matrix) == cell
    assert Cell.from_matrix(matrix).hash == cell.hash
    assert matrix[0][3] == EXPANSIONS.index(cell.expansion)


@given(cells | mbconvs | st.just(Zero()))
def test_json_round_trip(block: Block) -> None:
    assert block_from_json(json.loads(json.dumps(block.to_json()))) == block
    assert block.label


@given(cells, cells)
def test_equal_cells_hash_alike(one: Cell, two: Cell) -> None:
    assert (one == two) == (one.hash == two.hash)
    assert (one == two) == (len({one, two}) == 1)


def test_the_matrix_is_read_as_the_design_says() -> None:
    cell = Cell.from_matrix(MATRIX)
    assert cell.expansion == 6
    assert cell.mixes == (Mix.ADD, Mix.GATE)
    assert cell.chain == (Operation.DEPTHWISE, Operation.DEPTHWISE, Operation.DENSE)
    assert cell[3, 1] is Operation.IDENTITY
    assert cell[2, 0] is cell[3, 0] is Operation.NONE
    assert cell.inputs(3) == ((1, Operation.IDENTITY), (2, Operation.DENSE))
    assert cell.label == "e6 dw3·dw3·1x1 *1→3:id"


def test_matrices_are_stable() -> None:
    assert Cell.from_matrix(MATRIX).hash == "5c9ef4aa3773d8af"


@pytest.mark.parametrize(
    ("row", "column", "value", "why"),
    [
        (0, 0, 2, "from node 0 to node 0: not acyclic"),
        (0, 1, 5, "from node 1 to node 0: not acyclic"),
        (0, 2, 5, "not acyclic"),
        (1, 1, 1, "not acyclic"),
        (1, 2, 5, "not acyclic"),
        (2, 2, 5, "not acyclic"),
        (2, 3, 5, "from node 3 to node 2: not acyclic"),
        (3, 3, "2", "not acyclic"),
        (3, 3, None, "not acyclic"),
        (0, 3, 3, "expansion index 3"),
        (0, 3, -1, "expansion index -1"),
        (0, 3, True, "expansion index True"),
        (0, 3, 2.0, "expansion index 2.0"),
        (0, 3, [0], "expansion index"),
        (1, 3, 0, "mixing modes 0"),
        (1, 3, [0], "mixing modes"),
        (1, 3, [0, 2], "mixing modes"),
        (1, 3, [0, True], "mixing modes"),
        (1, 3, "01", "mixing modes"),
        (1, 3, None, "mixing modes"),
        (1, 0, 4, "unknown operation 4 on edge 0→1; known: 1, 2, 3, 5, 7, 9"),
        (2, 0, 0, "unknown operation 0 on edge 0→2"),
        (3, 1, -1, "unknown operation -1"),
        (3, 1, "5", "unknown operation '5'"),
        (3, 1, 5.0, "unknown operation 5.0"),
        (3, 1, True, "unknown operation True"),
        (3, 1, [5], "unknown operation"),
        (3, 1, None, "unknown operation None"),
        (1, 0, 1, "the chain 0→1→2→3 is broken at 0→1"),
        (2, 1, 1, "broken at 1→2"),
        (3, 2, 1, "broken at 2→3"),
    ],
)
def test_invalid_entries(row: int, column: int, value: Any, why: str) -> None:
    matrix = copy.deepcopy(MATRIX)
    matrix[row][column] = value
    with pytest.raises(InvalidInputError) as caught:
        Cell.from_matrix(matrix)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "matrix",
    [
        None,
        3,
        "cell",
        {},
        [],
        MATRIX[:3],
        [*MATRIX, [0] * 4],
        [row[:3] for row in MATRIX],
        [0, 0, 0, 0],
        [*MATRIX[:3], None],
        [*MATRIX[:3], {"0": 1}],
    ],
)
def test_not_a_matrix(matrix: object) -> None:
    with pytest.raises(InvalidInputError, match="not a 4×4 matrix"):
        Cell.from_matrix(matrix)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-1, 10) | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=20,
    )
)
def test_whatever_json_holds_is_a_block_or_a_line(document: object) -> None:
    for value in (document, {"cell": document}, {"mbconv": document}, {"zero": document}):
        try:
            block = block_from_json(value)
        except InvalidInputError as error:
            assert "\n" not in str(error)
        else:
            assert block_from_json(block.to_json()) == block


def test_cells_check_themselves() -> None:
    with pytest.raises(InvalidInputError, match="5 edges; a cell has 6"):
        Cell((Operation.IDENTITY,) * 5, 6)
    with pytest.raises(InvalidInputError, match="expansion 4"):
        Cell((Operation.IDENTITY,) * 6, 4)
    with pytest.raises(InvalidInputError, match="broken"):
        REFERENCE_CELLS[0].with_edge((2, 1), Operation.NONE)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"mbconv": {"kernel": 4, "expansion": 6}}, "kernel 4"),
        ({"mbconv": {"kernel": 3, "expansion": 0}}, "expansion 0"),
        ({"mbconv": {"kernel": 3, "expansion": 13}}, "expansion 13"),
        ({"mbconv": {"kernel": "3", "expansion": 6}}, "whole numbers"),
        ({"mbconv": {"kernel": 3}}, "unknown"),
        ({"zero": 1}, "unknown"),
        ({"zero": True, "cell": MATRIX}, "unknown"),
        ({"pool": 3}, "must be cell, mbconv"),
        ({}, "unknown"),
        (None, "unknown"),
    ],
)
def test_invalid_blocks(document: object, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        block_from_json(document)


@given(cells)
def test_canonical_cells(cell: Cell) -> None:
    canonical = cell.canonical()
    assert canonical.canonical() == canonical
    assert (canonical.edges, canonical.expansion) == (cell.edges, cell.expansion)
    for node in (2, 3):
        alone = len(cell.inputs(node)) == 1
        assert canonical.mixes[node - 2] is (Mix.ADD if alone else cell.mixes[node - 2])


def _field(cell: Cell) -> int:
    """The receptive field of the chain, in pixels."""
    return 1 + sum(int(one.label[2:]) - 1 for one in cell.chain if one.is_depthwise)


@given(search_cells)
def test_fusion_keeps_field_and_connections(cell: Cell) -> None:
    fused = cell.fused()
    assert _field(fused) == _field(cell)
    assert fused.fused() == fused
    assert (fused.expansion, fused.mixes) == (cell.expansion, cell.mixes)
    for edge in ((2, 0), (3, 0), (3, 1)):
        assert fused[edge] == cell[edge] or (cell[edge], fused[edge]) == (
            Operation.IDENTITY, Operation.NONE,
        )  # fmt: skip
    assert sum(one.is_depthwise for one in fused.chain) <= sum(
        one.is_depthwise for one in cell.chain
    )


@given(search_cells)
def test_simplified_cells_hold_no_more_and_are_simple(cell: Cell) -> None:
    simple = cell.simplified()
    assert simple.simplified() == simple
    assert (simple.chain, simple.expansion, simple.mixes) == (
        cell.chain,
        cell.expansion,
        cell.mixes,
    )
    for node in (2, 3):
        assert {*simple.inputs(node)} <= {*cell.inputs(node)}


@pytest.mark.parametrize(
    ("chain", "across", "left"),
    [
        ((2, 2, 5), {(2, 0): 2}, {}),
        ((5, 2, 2), {(3, 1): 2}, {}),
        ((2, 2, 2), {(2, 0): 2, (3, 0): 2, (3, 1): 2}, {}),
        ((5, 2, 2), {(3, 0): 2}, {(3, 0): 2}),
        ((5, 2, 2), {(3, 0): 2, (3, 1): 2}, {(3, 0): 2, (3, 1): 2}),
        ((2, 2, 5), {(2, 0): 3}, {(2, 0): 3}),
        # What fusing makes equal is then left out as well.
        ((5, 5, 2), {(3, 1): 2}, {}),
    ],
)
def test_a_value_is_not_added_to_itself(
    chain: tuple[int, int, int],
    across: dict[tuple[int, int], int],
    left: dict[tuple[int, int], int],
) -> None:
    fused = _chain(*chain, across=across).fused()
    kept = {edge: int(fused[edge]) for edge in ((2, 0), (3, 0), (3, 1)) if int(fused[edge]) != 1}
    assert kept == left
    assert replace(_chain(*chain, across=across), mixes=(Mix.GATE, Mix.GATE)).simplified().inputs(
        2
    ) == _chain(*chain, across=across).inputs(2)


def _chain(*ids: int, across: dict[tuple[int, int], int] | None = None) -> Cell:
    along = dict(zip(((1, 0), (2, 1), (3, 2)), ids, strict=True)) | (across or {})
    return Cell(tuple(Operation(along.get(edge, 1)) for edge in EDGES), 6)


@pytest.mark.parametrize(
    ("chain", "across", "fused"),
    [
        ((5, 5, 5), {}, (9, 2, 2)),
        ((5, 5, 2), {}, (7, 2, 2)),
        ((5, 5, 3), {}, (7, 2, 3)),
        ((2, 5, 5), {}, (2, 7, 2)),
        ((5, 2, 5), {}, (5, 2, 5)),
        ((5, 2, 2), {}, (5, 2, 2)),
        # Node 2 has a second input: nothing passes through it, what ends there may fuse.
        ((5, 5, 5), {(2, 0): 2}, (7, 2, 5)),
        ((2, 5, 5), {(2, 0): 2}, (2, 5, 5)),
        # Node 3 has a second input: the run of three stops before it.
        ((5, 5, 5), {(3, 0): 2}, (7, 2, 5)),
    ],
)
def test_the_fusion_rule(
    chain: tuple[int, int, int], across: dict[tuple[int, int], int], fused: tuple[int, int, int]
) -> None:
    assert tuple(map(int, _chain(*chain, across=across).fused().chain)) == fused


def test_the_reference_family() -> None:
    assert [_field(cell) for cell in REFERENCE_CELLS] == [7, 5, 3]
    assert all(cell.expansion == 6 for cell in REFERENCE_CELLS)
    assert [MBConv().label, Zero().label] == ["MBConv6 3x3", "skip"]
