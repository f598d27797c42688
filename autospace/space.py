"""Search spaces and architectures: the two documents that evolution and search produce.

Both are frozen and hashable, know their skeleton, and are JSON files with a schema version.
The hash covers what the network is, not where it came from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from autospace.files import content_hash, read_document, write_json
from autospace.genotype import Block, Cell, MBConv, Zero, block_from_json
from autospace.graph import Node, distinct_blocks, network_nodes
from autospace.operations import KERNEL_READINGS, KernelReading
from autospace.skeleton import SKELETONS, Skeleton
from devices.errors import InvalidInputError

__all__ = ["PLAIN_BLOCK", "SCHEMA_VERSION", "Architecture", "SearchSpace"]

SCHEMA_VERSION = 1
PLAIN_BLOCK = MBConv(3, 6)
"""The release's networks hold plain MBConv blocks beside the cells: a candidate everywhere."""

_T = TypeVar("_T")
_SPACE = "autospace.space"
_ARCHITECTURE = "autospace.architecture"


@dataclass(frozen=True)
class Architecture:
    """One network: a skeleton and what each of its searchable blocks holds.

    Attributes:
        skeleton: the macro layout, its input and its classes (the target).
        blocks: one for each searchable block of the skeleton.
        kernel_reading: how the fused depthwise operations are built.
        provenance: where it came from (limits, costs, data, seed); not part of the hash.
    """

    skeleton: Skeleton
    blocks: tuple[Block, ...]
    kernel_reading: KernelReading = "kernel"
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)

    def __post_init__(self) -> None:
        _ = self.nodes

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every layer of the network, in order."""
        return network_nodes(self.skeleton, self.blocks, self.kernel_reading)

    @property
    def madds(self) -> int:
        """Multiply-adds for one image at the skeleton's resolution."""
        return sum(node.madds for node in self.nodes)

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return sum(node.params for node in self.nodes)

    @property
    def hash(self) -> str:
        """A stable short hash of the network, without its provenance."""
        return content_hash(
            {
                "skeleton": self.skeleton.to_json(),
                "kernel_reading": self.kernel_reading,
                "blocks": [block.to_json() for block in self.blocks],
            }
        )

    def for_skeleton(self, skeleton: Skeleton) -> Architecture:
        """The same blocks in another skeleton with as many of them (for example a proxy)."""
        return replace(self, skeleton=skeleton)

    def to_json(self) -> dict[str, Any]:
        """The document that `save` writes."""
        return {
            "format": _ARCHITECTURE,
            "schema_version": SCHEMA_VERSION,
            "skeleton": self.skeleton.to_json(),
            "kernel_reading": self.kernel_reading,
            "blocks": [block.to_json() for block in self.blocks],
            "hash": self.hash,
            "provenance": dict(self.provenance),
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Architecture:
        """Reads what `to_json` wrote, or the released network file.

        Raises:
            InvalidInputError: not an architecture, of a newer schema, or inconsistent.
        """
        if document.get("name") == "ProxylessNASNets":
            return _released_network(document)
        _check_header(document, _ARCHITECTURE, "an architecture")
        blocks = _list(document, "blocks")
        architecture = Architecture(
            skeleton=Skeleton.from_json(document.get("skeleton")),
            blocks=tuple(
                _at(f"block {index}", block_from_json, block) for index, block in enumerate(blocks)
            ),
            kernel_reading=_reading(document),
            provenance=_provenance(document),
        )
        _check_hash(document, architecture.hash)
        return architecture

    def save(self, path: Path) -> None:
        """Writes the architecture file at once."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: Path) -> Architecture:
        """Reads an architecture file, ours or the released network file.

        Raises:
            InvalidInputError: one line that names the file and the fault.
        """
        document = read_document(path, "an architecture file")
        return _at(str(path), Architecture.from_json, document)


@dataclass(frozen=True)
class SearchSpace:
    """The candidates of each layer, in a skeleton.

    Attributes:
        skeleton: the target's macro layout; blocks share layers by its ``sharing``.
        layers: the cells of each layer, best first, without duplicates.
        fitness: of each cell, in the same shape; empty where unknown.
        kernel_reading: how the fused depthwise operations are built.
        provenance: where it came from; not part of the hash.
    """

    skeleton: Skeleton
    layers: tuple[tuple[Cell, ...], ...]
    fitness: tuple[tuple[float, ...], ...] = field(default=(), compare=False)
    kernel_reading: KernelReading = "kernel"
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)

    def __post_init__(self) -> None:
        if len(self.layers) != self.skeleton.num_layers:
            raise InvalidInputError(
                f"{len(self.layers)} layers of cells; the {self.skeleton.name} skeleton needs "
                f"{self.skeleton.num_layers}"
            )
        for index, cells in enumerate(self.layers):
            if not cells:
                raise InvalidInputError(f"layer {index}: no cells; give at least one")
            seen: set[Cell] = set()
            for cell in cells:
                if cell.canonical() in seen:
                    raise InvalidInputError(
                        f"layer {index}: the cell {cell.label!r} stands twice; remove one"
                    )
                seen.add(cell.canonical())
        if self.fitness and [len(row) for row in self.fitness] != [
            len(cells) for cells in self.layers
        ]:
            raise InvalidInputError("fitness: not one value for each cell of each layer")

    def candidates(self, block: int) -> tuple[Block, ...]:
        """What a block (counted from 0) can hold: cells, the plain MBConv, and a skip.

        Runs of depthwise convolutions in the cells are fused, as in every network that was
        released; the skip stands only where the block has an outer shortcut. What computes the
        same as an earlier candidate is left out.
        """
        shape = self.skeleton.blocks[block]
        cells = (cell.fused() for cell in self.layers[self.skeleton.layer_of(block)])
        skip = (Zero(),) if shape.has_shortcut else ()
        return distinct_blocks((*cells, PLAIN_BLOCK, *skip), shape, self.kernel_reading)

    @cached_property
    def candidates_by_block(self) -> tuple[tuple[Block, ...], ...]:
        """The `candidates` of every block, in order: what a table of costs has rows for."""
        return tuple(self.candidates(block) for block in range(len(self.skeleton.blocks)))

    def architecture(self, choice: Sequence[int]) -> Architecture:
        """The network that has of each block the candidate with the index given for it."""
        blocks = (own[index] for own, index in zip(self.candidates_by_block, choice, strict=True))
        return Architecture(self.skeleton, tuple(blocks), self.kernel_reading)

    @property
    def hash(self) -> str:
        """A stable short hash of the space, without fitness and provenance."""
        return content_hash(
            {
                "skeleton": self.skeleton.to_json(),
                "kernel_reading": self.kernel_reading,
                "layers": [[cell.matrix() for cell in cells] for cells in self.layers],
            }
        )

    def to_json(self) -> dict[str, Any]:
        """The document that `save` writes."""
        return {
            "format": _SPACE,
            "schema_version": SCHEMA_VERSION,
            "skeleton": self.skeleton.to_json(),
            "kernel_reading": self.kernel_reading,
            "layers": [[cell.matrix() for cell in cells] for cells in self.layers],
            "fitness": [list(row) for row in self.fitness],
            "hash": self.hash,
            "provenance": dict(self.provenance),
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> SearchSpace:
        """Reads what `to_json` wrote, or the released search space.

        Raises:
            InvalidInputError: not a space, of a newer schema, or inconsistent.
        """
        if document.get("name") == "SuperProxylessNASNets":
            return _released_space(document)
        _check_header(document, _SPACE, "a search space")
        fitness = document.get("fitness") or []
        if not isinstance(fitness, list) or not all(
            isinstance(row, list) and all(type(value) in (int, float) for value in row)
            for row in fitness
        ):
            raise InvalidInputError("fitness: must be lists of numbers")
        space = SearchSpace(
            skeleton=Skeleton.from_json(document.get("skeleton")),
            layers=_layers(_list(document, "layers")),
            fitness=tuple(tuple(float(value) for value in row) for row in fitness),
            kernel_reading=_reading(document),
            provenance=_provenance(document),
        )
        _check_hash(document, space.hash)
        return space

    def save(self, path: Path) -> None:
        """Writes the space file at once."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: Path) -> SearchSpace:
        """Reads a space file, ours or the released one.

        Raises:
            InvalidInputError: one line that names the file and the fault.
        """
        return _at(str(path), SearchSpace.from_json, read_document(path, "a space file"))


def _layers(document: list[Any]) -> tuple[tuple[Cell, ...], ...]:
    layers = []
    for index, cells in enumerate(document):
        if not isinstance(cells, list):
            raise InvalidInputError(f"layer {index}: must be a list of cells")
        layers.append(
            tuple(
                _at(f"layer {index}, cell {place}", Cell.from_matrix, cell)
                for place, cell in enumerate(cells)
            )
        )
    return tuple(layers)


def _at(where: str, read: Callable[[Any], _T], value: Any) -> _T:
    """Calls a reader and puts the place before its error."""
    try:
        return read(value)
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error}") from None


def _list(document: Mapping[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    if not isinstance(value, list):
        raise InvalidInputError(f"{name!r} is missing or not a list")
    return value


def _check_header(document: Mapping[str, Any], expected: str, what: str) -> None:
    found = document.get("format")
    if found != expected:
        named = f"format {found!r}" if found else "a JSON file of another kind"
        raise InvalidInputError(f"not {what} ({named}); expected format {expected!r}")
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InvalidInputError(
            f"schema version {version!r}; this version of autospace reads {SCHEMA_VERSION}"
        )


def _check_hash(document: Mapping[str, Any], expected: str) -> None:
    """A file edited by hand keeps the hash of what it was; leaving it out says that one knows."""
    found = document.get("hash", expected)
    if found != expected:
        raise InvalidInputError(
            f"hash {found!r} is not that of the content ({expected}): the file was edited; remove "
            "its 'hash' to use it as it is"
        )


def _reading(document: Mapping[str, Any]) -> KernelReading:
    reading: Literal["dilated", "kernel"]
    for reading in KERNEL_READINGS:
        if document.get("kernel_reading") == reading:
            return reading
    raise InvalidInputError(
        f"kernel_reading {document.get('kernel_reading')!r}; must be dilated or kernel"
    )


def _provenance(document: Mapping[str, Any]) -> dict[str, Any]:
    provenance = document.get("provenance", {})
    if not isinstance(provenance, dict):
        raise InvalidInputError("provenance: must be a JSON object")
    return provenance


def _released_space(document: Mapping[str, Any]) -> SearchSpace:
    """Reads the released search space; one of its layers holds a reference cell twice."""
    layers = _layers(_list(document, "blocks"))
    distinct = tuple(
        tuple({cell.canonical(): cell for cell in reversed(cells)}.values())[::-1]
        for cells in layers
    )
    repeats = sum(map(len, layers)) - sum(map(len, distinct))
    return SearchSpace(
        skeleton=SKELETONS["mobile"],
        layers=distinct,
        kernel_reading="dilated",
        provenance={"source": "released AutoSpace search space", "repeats_dropped": repeats},
    )


def _released_network(document: Mapping[str, Any]) -> Architecture:
    """Reads the released ``net_340M`` file: its first block is the skeleton's fixed one."""
    blocks: list[Block] = []
    for index, entry in enumerate(_list(document, "blocks")[1:]):
        layer = entry.get("mobile_inverted_conv") if isinstance(entry, dict) else None
        layer = layer if isinstance(layer, dict) else {}
        name = layer.get("name")
        if name == "Motif":
            try:
                matrix = json.loads(layer["build_graph"])
            except (KeyError, TypeError, json.JSONDecodeError):
                raise InvalidInputError(f"block {index}: 'build_graph' is not a matrix") from None
            blocks.append(_at(f"block {index}", Cell.from_matrix, matrix))
        elif name == "ZeroLayer":
            blocks.append(Zero())
        elif name == "MBInvertedConvLayer":
            try:
                blocks.append(MBConv(int(layer["kernel_size"]), int(layer["expand_ratio"])))
            except (KeyError, TypeError, ValueError):
                raise InvalidInputError(f"block {index}: incomplete MBInvertedConvLayer") from None
        else:
            raise InvalidInputError(f"block {index}: unknown layer {name!r}")
    return Architecture(
        skeleton=SKELETONS["mobile"],
        blocks=tuple(blocks),
        kernel_reading="dilated",
        provenance={"source": "released AutoSpace network"},
    )
