"""The search spaces that `benchmarks.space_quality` compares, on one skeleton.

Each is a list of candidate blocks for every block of the skeleton. All may also skip a block that
has a shortcut, so that all have the same freedom in depth; what differs are the cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autospace.data import Data
from autospace.evolution import EvolutionOptions, random_cell
from autospace.genotype import REFERENCE_CELLS, Block, Cell, MBConv, Zero
from autospace.operations import KernelReading
from autospace.seeding import Seed
from autospace.skeleton import Skeleton
from autospace.space import SearchSpace
from autospace.steps import Device, evolve

__all__ = [
    "ABLATIONS",
    "SPACES",
    "CandidateSpace",
    "candidate_space",
    "evolved",
    "released_space",
]

ABLATIONS: Mapping[str, Callable[[EvolutionOptions], EvolutionOptions]] = {
    "no reference": lambda options: replace(options, references=False),
    "random fitness": lambda options: replace(options, fitness="random"),
    "no constraint": lambda options: replace(options, constraint_rate=0.0),
    "overwrite": lambda options: replace(options, momentum=0.0),
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
    name: str,
    seed: int,
    skeleton: Skeleton,
    folder: Path,
    make: Callable[[str, int, Path], SearchSpace],
    released: SearchSpace | None = None,
) -> CandidateSpace:
    """One of the spaces.

    Args:
        name: one of `SPACES`.
        seed: of what is random in it.
        skeleton: of its networks.
        folder: where evolved spaces are kept, and found again.
        make: evolves a space that is not there yet, by name and seed, with its state at a path.
        released: the released space, for "released".

    Raises:
        ValueError: "released" without the released space.
    """
    if name == "MBConv":
        grid = tuple(MBConv(window, ratio) for window in _WINDOWS for ratio in _EXPANSIONS)
        return _spread(name, 0, skeleton, [grid] * len(skeleton.blocks), "kernel")
    if name == "released":
        if released is None:
            raise ValueError("the released space is not here")
        return _of_space(name, 0, released_space(released, skeleton))
    path = folder / f"{name.replace(' ', '-')}-{seed}.json"
    if not path.is_file():
        if name == "random cells":
            space = _random_space(skeleton, Seed(seed).child("random cells"))
        else:
            space = make(name, seed, path.with_suffix(".state"))
        space.save(path)
    return _of_space(name, seed, SearchSpace.load(path))


def released_space(released: SearchSpace, skeleton: Skeleton) -> SearchSpace:
    """The released cells on another skeleton: layers at the same relative depth."""
    last, ours = len(released.layers) - 1, skeleton.num_layers - 1
    layers = tuple(released.layers[round(i * last / max(ours, 1))] for i in range(ours + 1))
    return SearchSpace(skeleton, layers, kernel_reading=released.kernel_reading)


def evolved(
    skeleton: Skeleton,
    data: Data,
    device: Device,
    latency: str,
    options: EvolutionOptions,
    progress: Callable[[float, str], None],
) -> Callable[[str, int, Path], SearchSpace]:
    """What evolves a space for `candidate_space`, with or without an ablation."""

    def make(name: str, seed: int, state: Path) -> SearchSpace:
        changed = ABLATIONS[name](options) if name in ABLATIONS else options
        return evolve(
            latency=latency, device=device, skeleton=skeleton, data=data, options=changed,
            seed=seed, state=state, log=state.with_suffix(".jsonl"),
            progress=lambda share, text: progress(share, f"{name} {seed}: {text}"),
        )  # fmt: skip

    return make


def _random_space(skeleton: Skeleton, seed: Seed) -> SearchSpace:
    """As many random cells a layer as an evolved space has cells."""
    count = EvolutionOptions().kept + len(REFERENCE_CELLS)
    layers = []
    for layer in range(skeleton.num_layers):
        random = seed.generator("cells", layer)
        cells: dict[Cell, None] = {}
        while len(cells) < count:
            cells.setdefault(random_cell(random))
        layers.append(tuple(cells))
    return SearchSpace(skeleton, tuple(layers))


def _of_space(name: str, seed: int, space: SearchSpace) -> CandidateSpace:
    skeleton = space.skeleton
    cells = [space.layers[skeleton.layer_of(i)] for i in range(len(skeleton.blocks))]
    return _spread(name, seed, skeleton, cells, space.kernel_reading)


def _spread(
    name: str,
    seed: int,
    skeleton: Skeleton,
    cells: Sequence[Sequence[Block]],
    reading: KernelReading,
) -> CandidateSpace:
    blocks = tuple(
        (*own, *((Zero(),) if shape.has_shortcut else ()))
        for own, shape in zip(cells, skeleton.blocks, strict=True)
    )
    return CandidateSpace(name, seed, skeleton, blocks, reading)
