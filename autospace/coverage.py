"""Which entries of a latency table no card's measurement stands behind, and how to measure them.

A predictor answers for an operation that its card has never seen with a roofline, as wide as that
is. In a table that a search minimises, such an entry would be a guess among measurements: the
search would buy it or shun it for no reason. So these entries are named, and measured before the
search where this machine is the device; elsewhere the search is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from autospace.cost import LatencyCost
from autospace.genotype import Block
from autospace.operations import KernelReading
from autospace.skeleton import Skeleton
from autospace.space import PLAIN_BLOCK, Architecture, SearchSpace

if TYPE_CHECKING:
    import onnx

    from latency import Predictor

__all__ = ["CoveredLatencyCost", "Missing", "described", "networks_with"]

_SHOWN = 3

Missing = Mapping[tuple[int | None, Block | None], frozenset[str]]
"""By block of the skeleton and what it holds (None and None for stem, head and classifier): the
operations that were never measured."""


class CoveredLatencyCost(LatencyCost):
    """A `LatencyCost` that remembers what rests on operations which were never measured."""

    def __init__(
        self,
        skeleton: Skeleton,
        predictor: Predictor,
        reading: KernelReading = "kernel",
        batch: int = 1,
    ):
        super().__init__(skeleton, predictor, reading, batch)
        self._guessed: dict[tuple[int | None, Block | None], set[str]] = {}

    def missing(self, candidates: Sequence[Sequence[Block]]) -> Missing:
        """What has no measurement behind it.

        Args:
            candidates: for each block, what it can hold.
        """
        self.table(candidates)
        asked = {(index, block) for index, blocks in enumerate(candidates) for block in blocks}
        return {
            place: frozenset(names)
            for place, names in self._guessed.items()
            if place in asked or place == (None, None)
        }

    def _read(self, blocks: tuple[Block, ...]) -> None:
        from autospace.onnx_export import owner_of

        plain = self._predictor
        watched = _Watched(plain)
        self._predictor = watched  # type: ignore[assignment]
        try:
            super()._read(blocks)
        finally:
            self._predictor = plain
        for operation, nodes in watched.guessed:
            owner = owner_of(nodes) or ""
            index = int(owner.removeprefix("block")) if owner.startswith("block") else None
            place = (index, blocks[index] if index is not None else None)
            self._guessed.setdefault(place, set()).add(operation)


class _Watched:
    """A predictor whose guesses are written down."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.guessed: list[tuple[str, Sequence[str]]] = []

    def predict_quickly(self, model: onnx.ModelProto) -> object:
        prediction = self._predictor.predict_quickly(model)
        self.guessed += [
            (one.kernel.op, one.nodes) for one in prediction.kernels if one.source == "roofline"
        ]
        return prediction


def described(missing: Missing) -> str:
    """The operations and the first candidates that hold them, in a few words."""
    operations = sorted(set().union(*missing.values()))
    named = [
        f"block {index}: {block.label}"
        for index, block in missing
        if index is not None and block is not None
    ]
    more = len(named) - _SHOWN
    text = ", ".join(operations)
    if named:
        text += f" (in {'; '.join(named[:_SHOWN])}{f'; and {more} more' if more > 0 else ''})"
    return text


def networks_with(
    missing: Missing, space: SearchSpace, batch: int = 1
) -> dict[str, onnx.ModelProto]:
    """Networks that between them hold every candidate in question.

    Args:
        missing: from `CoveredLatencyCost.missing`.
        space: of the candidates.
        batch: their fixed batch size.
    """
    from autospace.onnx_export import onnx_for_cost

    waiting: dict[int, list[Block]] = {}
    for index, block in missing:
        if index is not None and block is not None:
            waiting.setdefault(index, []).append(block)
    networks = {}
    for number in range(max([1, *map(len, waiting.values())])):
        blocks = tuple(
            waiting[index][number] if number < len(waiting.get(index, [])) else PLAIN_BLOCK
            for index in range(len(space.skeleton.blocks))
        )
        architecture = Architecture(space.skeleton, blocks, space.kernel_reading)
        networks[f"space-{architecture.hash}"] = onnx_for_cost(architecture, batch)
    return networks
