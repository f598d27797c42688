"""The search spaces that `benchmarks.space_quality` compares, on one skeleton.

Each is a list of candidate blocks for every block of the skeleton. All may also skip a block that
has a shortcut, so that all have the same freedom in depth; what differs are the cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autospace.evolution_options import EvolutionOptions
from autospace.genotype import Block, Cell, MBConv, Zero
from autospace.graph import distinct_blocks
from autospace.layer_function import LayerFunction, layer_function
from autospace.mutation import random_cell
from autospace.operations import KernelReading
from autospace.seeding import Seed
from autospace.skeleton import Skeleton
from autospace.space import SearchSpace

__all__ = [
    "ABLATIONS",
    "SPACES",
    "CandidateSpace",
    "candidate_space",
    "released_space",
]

ABLATIONS: Mapping[str, Callable[[EvolutionOptions], EvolutionOptions]] = {
    "no reference": lambda options: replace(options, references="none"),
    "random fitness": lambda options: replace(options, fitness="random"),
    "no constraint": lambda options: replace(options, constraint=False),
    "overwrite": lambda options: replace(options, momentum=0.0),
    "no exam": lambda options: replace(options, exam=0),
    "no headroom": lambda options: replace(options, headroom=1.0),
    "study": lambda options: replace(options, study=4.0),
    "references compete": lambda options: replace(options, references="compete"),
    "always stacked": lambda options: replace(options, single=0.0),
}
"""What is changed in the evolution, one thing at a time."""

SPACES = ("evolved", "random cells", "MBConv", "released", *ABLATIONS)
"""Every space, in the order of the tables."""

_SEEDED = {"evolved", "random cells", *ABLATIONS}
_WINDOWS = (3, 5, 7)
_EXPANSIONS = (1, 3, 6)


@dataclass(frozen=True)
class CandidateSpace:
    """What each block of a network may hold.

    Attributes:
        name: one of `SPACES`.
        seed: of its evolution, or of its random cells; 0 where nothing is random.
        skeleton: of its networks.
        blocks: for each block of the skeleton, its candidates.
        reading: how fused depthwise operations are built.
    """

    name: str
    seed: int
    skeleton: Skeleton
    blocks: tuple[tuple[Block, ...], ...]
    reading: KernelReading

    @property
    def label(self) -> str:
        """Its name, with the seed where that makes a difference."""
        return f"{self.name} {self.seed}" if self.name in _SEEDED else self.name


def candidate_space(
    name: str, seed: int, skeleton: Skeleton, path: Path, released: SearchSpace | None = None
) -> CandidateSpace:
    """One of the spaces.

    Args:
        name: one of `SPACES`.
        seed: of what is random in it.
        skeleton: of its networks.
        path: the file of an evolved space; random cells are kept there, and found again.
        released: the released space, for "released".

    Raises:
        ValueError: "released" without the released space.
        InvalidInputError: an evolved space that is not there.
    """
    if name == "MBConv":
        grid = tuple(MBConv(window, ratio) for window in _WINDOWS for ratio in _EXPANSIONS)
        return _spread(name, 0, skeleton, [grid] * len(skeleton.blocks), "kernel")
    if name == "released":
        if released is None:
            raise ValueError("the released space is not here")
        return _of_space(name, 0, released_space(released, skeleton))
    if name == "random cells" and not path.is_file():
        _random_space(skeleton, Seed(seed).child("random cells")).save(path)
    return _of_space(name, seed, SearchSpace.load(path))


def released_space(released: SearchSpace, skeleton: Skeleton) -> SearchSpace:
    """The released cells on another skeleton: layers at the same relative depth."""
    last, ours = len(released.layers) - 1, skeleton.num_layers - 1
    layers = tuple(released.layers[round(i * last / max(ours, 1))] for i in range(ours + 1))
    return SearchSpace(skeleton, layers, kernel_reading=released.kernel_reading)


def _random_space(skeleton: Skeleton, seed: Seed) -> SearchSpace:
    """As many random cells a layer as an evolved space has cells."""
    count = EvolutionOptions().kept
    layers = []
    for layer in range(skeleton.num_layers):
        random = seed.generator("cells", layer)
        cells: dict[LayerFunction, Cell] = {}
        while len(cells) < count:
            cell = random_cell(random)
            cells.setdefault(layer_function(skeleton, layer, cell, "kernel"), cell)
        layers.append(tuple(cells.values()))
    return SearchSpace(skeleton, tuple(layers))


def _of_space(name: str, seed: int, space: SearchSpace) -> CandidateSpace:
    skeleton = space.skeleton
    cells = [
        [cell.fused() for cell in space.layers[skeleton.layer_of(i)]]
        for i in range(len(skeleton.blocks))
    ]
    return _spread(name, seed, skeleton, cells, space.kernel_reading)


def _spread(
    name: str,
    seed: int,
    skeleton: Skeleton,
    cells: Sequence[Sequence[Block]],
    reading: KernelReading,
) -> CandidateSpace:
    blocks = tuple(
        distinct_blocks((*own, *((Zero(),) if shape.has_shortcut else ())), shape, reading)
        for own, shape in zip(cells, skeleton.blocks, strict=True)
    )
    return CandidateSpace(name, seed, skeleton, blocks, reading)
