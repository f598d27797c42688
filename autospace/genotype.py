"""Cells and the other blocks that a searchable layer can hold: frozen, hashable, JSON.

A cell is the 4×4 matrix of the released AutoSpace files (arXiv 2103.11833). For r > c the entry
``g[r][c]`` is the operation on the edge from node c to node r; ``g[0][3]`` is the index of the
expansion and ``g[1][3]`` the pair of mixing modes at nodes 2 and 3; all else is 0.

Proven by the files: the operations 1, 2, 3, 5; expansion index 1 is 3 and 2 is 6; the chain
0→1→2→3 is never broken. Inferred by this project: expansion index 0 is 1, without an expanding
convolution; mode 1 multiplies the chain's value with the sigmoid of the global average of each
other input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, ClassVar

from autospace.files import content_hash
from autospace.operations import Operation
from devices.errors import InvalidInputError

__all__ = [
    "EDGES",
    "EXPANSIONS",
    "REFERENCE_CELLS",
    "Block",
    "Cell",
    "MBConv",
    "Mix",
    "Zero",
    "block_from_json",
]

EDGES: tuple[tuple[int, int], ...] = ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))
"""Every edge of a cell as (to, from), in the order of `Cell.edges`."""

EXPANSIONS: tuple[int, ...] = (1, 3, 6)
"""Expansion ratios by their index in the file."""

_CHAIN = ((1, 0), (2, 1), (3, 2))
_NODES = 4


class Mix(IntEnum):
    """How a node with several inputs combines them."""

    ADD = 0
    GATE = 1


@dataclass(frozen=True, order=True)
class Cell:
    """A cell: six edges, an expansion, and the mixing at nodes 2 and 3.

    Attributes:
        edges: the operation on each edge, in the order of `EDGES`.
        expansion: 1, 3 or 6.
        mixes: how nodes 2 and 3 combine their inputs.
    """

    edges: tuple[Operation, ...]
    expansion: int
    mixes: tuple[Mix, Mix] = (Mix.ADD, Mix.ADD)
    kind: ClassVar[str] = "cell"

    def __post_init__(self) -> None:
        if len(self.edges) != len(EDGES):
            raise InvalidInputError(f"cell: {len(self.edges)} edges; a cell has {len(EDGES)}")
        if self.expansion not in EXPANSIONS:
            raise InvalidInputError(f"cell: expansion {self.expansion}; must be one of 1, 3, 6")
        for edge in _CHAIN:
            if self[edge] is Operation.NONE:
                raise InvalidInputError(
                    f"cell: the chain 0→1→2→3 is broken at {edge[1]}→{edge[0]}; "
                    "give that edge an operation other than none (1)"
                )

    def __getitem__(self, edge: tuple[int, int]) -> Operation:
        return self.edges[EDGES.index(edge)]

    def with_edge(self, edge: tuple[int, int], operation: Operation) -> Cell:
        """This cell with another operation on one edge, given as (to, from)."""
        index = EDGES.index(edge)
        return replace(self, edges=(*self.edges[:index], operation, *self.edges[index + 1 :]))

    def inputs(self, node: int) -> tuple[tuple[int, Operation], ...]:
        """The (source, operation) pairs that enter a node, the chain's edge last."""
        return tuple(
            (source, operation)
            for (to, source), operation in zip(EDGES, self.edges, strict=True)
            if to == node and operation is not Operation.NONE
        )

    @property
    def chain(self) -> tuple[Operation, Operation, Operation]:
        """The operations along 0→1→2→3."""
        return (self[1, 0], self[2, 1], self[3, 2])

    def canonical(self) -> Cell:
        """The same function with the modes of nodes that have one input set to `Mix.ADD`."""
        mixes = tuple(
            mix if len(self.inputs(node)) > 1 else Mix.ADD
            for node, mix in zip((2, 3), self.mixes, strict=True)
        )
        return replace(self, mixes=(mixes[0], mixes[1]))

    def simplified(self) -> Cell:
        """Without additions of a value to itself, a factor that the weights around make up for.

        >>> across = REFERENCE_CELLS[2].with_edge((3, 1), Operation.IDENTITY)
        >>> across.simplified() == REFERENCE_CELLS[2]
        True
        """
        cell = self
        equal_to = [0, 1, 2, 3]
        for node in (1, 2, 3):
            inputs = cell.inputs(node)
            if not all(operation is Operation.IDENTITY for _, operation in inputs):
                continue
            if len({equal_to[source] for source, _ in inputs}) > 1:
                continue
            if len(inputs) > 1:
                if self.mixes[node - 2] is not Mix.ADD:
                    continue
                for source, _ in inputs[:-1]:
                    cell = cell.with_edge((node, source), Operation.NONE)
            equal_to[node] = equal_to[node - 1]
        return cell

    def fused(self) -> Cell:
        """Runs of depthwise 3×3 along the chain fused: 5,5 → 7,2 and 5,5,5 → 9,2,2.

        The rule is read off the released network, where it holds for 13 of 13 evolved blocks.
        A run passes through node 2 only when that node has a single input. Additions of a value
        to itself are left out before (this project's choice; the released blocks hold none).

        >>> REFERENCE_CELLS[0].fused().chain
        (<Operation.DEPTHWISE_FIELD_7: 9>, <Operation.IDENTITY: 2>, <Operation.IDENTITY: 2>)
        """
        cell = self.simplified()
        edges = {edge: cell[edge] for edge in EDGES}

        def is_plain(edge: tuple[int, int]) -> bool:
            return edges[edge] is Operation.DEPTHWISE

        through_2 = len(cell.inputs(2)) == 1
        if all(is_plain(edge) for edge in _CHAIN) and through_2 and len(cell.inputs(3)) == 1:
            edges.update(
                zip(
                    _CHAIN,
                    (Operation.DEPTHWISE_FIELD_7, Operation.IDENTITY, Operation.IDENTITY),
                    strict=True,
                )
            )
        elif is_plain((1, 0)) and is_plain((2, 1)):
            edges[1, 0], edges[2, 1] = Operation.DEPTHWISE_FIELD_5, Operation.IDENTITY
        elif is_plain((2, 1)) and is_plain((3, 2)) and through_2:
            edges[2, 1], edges[3, 2] = Operation.DEPTHWISE_FIELD_5, Operation.IDENTITY
        fused = replace(cell, edges=tuple(edges[edge] for edge in EDGES))
        return fused if fused == self else fused.fused()

    def matrix(self) -> list[list[Any]]:
        """The 4×4 matrix as the released files write it."""
        matrix: list[list[Any]] = [[0] * _NODES for _ in range(_NODES)]
        for (to, source), operation in zip(EDGES, self.edges, strict=True):
            matrix[to][source] = int(operation)
        matrix[0][3] = EXPANSIONS.index(self.expansion)
        matrix[1][3] = [int(mix) for mix in self.mixes]
        return matrix

    @staticmethod
    def from_matrix(matrix: object) -> Cell:
        """Reads the 4×4 matrix of the released files.

        Args:
            matrix: nested lists, checked completely.

        Raises:
            InvalidInputError: wrong shape, an edge that is not from a lower to a higher node (so
                the graph would not be acyclic), an unknown operation, expansion or mode, or a
                broken chain.
        """
        if (
            not isinstance(matrix, Sequence)
            or len(matrix) != _NODES
            or any(not isinstance(row, Sequence) or len(row) != _NODES for row in matrix)
        ):
            raise InvalidInputError("cell: not a 4×4 matrix; write four rows of four entries")
        for row in range(_NODES):
            for column in range(row, _NODES):
                if (row, column) not in ((0, 3), (1, 3)) and matrix[row][column] != 0:
                    raise InvalidInputError(
                        f"cell: entry [{row}][{column}] is {matrix[row][column]!r}, an edge from "
                        f"node {column} to node {row}: not acyclic; entries on and above the "
                        "diagonal are 0"
                    )
        index, modes = matrix[0][3], matrix[1][3]
        if not _is_index(index, len(EXPANSIONS)):
            raise InvalidInputError(f"cell: expansion index {index!r}; must be 0, 1 or 2")
        if (
            not isinstance(modes, Sequence)
            or len(modes) != 2
            or not all(_is_index(mode, len(Mix)) for mode in modes)
        ):
            raise InvalidInputError(f"cell: mixing modes {modes!r}; must be a pair of 0 or 1")
        operations = []
        for to, source in EDGES:
            value = matrix[to][source]
            if type(value) is not int or value not in list(Operation):
                known = ", ".join(str(int(operation)) for operation in Operation)
                raise InvalidInputError(
                    f"cell: unknown operation {value!r} on edge {source}→{to}; known: {known}"
                )
            operations.append(Operation(value))
        return Cell(tuple(operations), EXPANSIONS[index], (Mix(modes[0]), Mix(modes[1])))

    def to_json(self) -> dict[str, Any]:
        """``{"cell": matrix}``."""
        return {"cell": self.matrix()}

    @property
    def hash(self) -> str:
        """A stable short hash of the cell."""
        return content_hash(self.to_json())

    @property
    def label(self) -> str:
        """A short name for tables: ``e6 dw3·dw3·id +0→2:1x1``."""
        text = f"e{self.expansion} " + "·".join(operation.label for operation in self.chain)
        for to, source in ((2, 0), (3, 0), (3, 1)):
            if self[to, source] is not Operation.NONE:
                sign = "*" if self.mixes[to - 2] is Mix.GATE else "+"
                text += f" {sign}{source}→{to}:{self[to, source].label}"
        return text


@dataclass(frozen=True, order=True)
class MBConv:
    """A plain inverted bottleneck: expand, one depthwise convolution with the stride, project.

    Attributes:
        kernel: 3, 5 or 7.
        expansion: expansion ratio; 1 has no expanding convolution.
    """

    kernel: int = 3
    expansion: int = 6
    kind: ClassVar[str] = "mbconv"

    def __post_init__(self) -> None:
        if self.kernel not in (3, 5, 7):
            raise InvalidInputError(f"mbconv: kernel {self.kernel}; must be 3, 5 or 7")
        if not 1 <= self.expansion <= 12:
            raise InvalidInputError(f"mbconv: expansion {self.expansion}; must be 1 to 12")

    def to_json(self) -> dict[str, Any]:
        """``{"mbconv": {"kernel": 3, "expansion": 6}}``."""
        return {"mbconv": {"kernel": self.kernel, "expansion": self.expansion}}

    @property
    def label(self) -> str:
        """A short name for tables: ``MBConv6 3x3``."""
        return f"MBConv{self.expansion} {self.kernel}x{self.kernel}"


@dataclass(frozen=True, order=True)
class Zero:
    """A block left out: its input passes on. Only where input and output have one shape."""

    kind: ClassVar[str] = "zero"

    def to_json(self) -> dict[str, Any]:
        """``{"zero": true}``."""
        return {"zero": True}

    @property
    def label(self) -> str:
        """A short name for tables."""
        return "skip"


Block = Cell | MBConv | Zero
"""What a searchable layer can hold."""


def block_from_json(document: object) -> Block:
    """Reads a block written by ``to_json``.

    Raises:
        InvalidInputError: not one of the three kinds, or an invalid one.
    """
    if isinstance(document, Mapping) and len(document) == 1:
        (kind, value), *_ = document.items()
        if kind == "cell":
            return Cell.from_matrix(value)
        if (
            kind == "mbconv"
            and isinstance(value, Mapping)
            and set(value)
            == {
                "kernel",
                "expansion",
            }
        ):
            if not all(type(number) is int for number in value.values()):
                raise InvalidInputError("mbconv: kernel and expansion must be whole numbers")
            return MBConv(value["kernel"], value["expansion"])
        if kind == "zero" and value is True:
            return Zero()
    raise InvalidInputError(
        f"block {document!r:.60}: unknown; must be cell, mbconv (kernel, expansion) or zero"
    )


def _is_index(value: object, length: int) -> bool:
    return type(value) is int and 0 <= value < length


def _reference(*chain: Operation) -> Cell:
    along = dict(zip(_CHAIN, chain, strict=True))
    return Cell(tuple(along.get(edge, Operation.NONE) for edge in EDGES), 6)


REFERENCE_CELLS: tuple[Cell, Cell, Cell] = (
    _reference(Operation.DEPTHWISE, Operation.DEPTHWISE, Operation.DEPTHWISE),
    _reference(Operation.DEPTHWISE, Operation.DEPTHWISE, Operation.IDENTITY),
    _reference(Operation.DEPTHWISE, Operation.IDENTITY, Operation.IDENTITY),
)
"""The reference family: MBConv6 with receptive field 7, 5 and 3, as in every released layer."""
