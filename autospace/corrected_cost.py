"""A latency that is corrected by networks which were measured before the search."""

from __future__ import annotations

from collections.abc import Iterable

from autospace.cost import Cost
from autospace.genotype import Block
from autospace.recalibration import Recalibration
from autospace.space import SearchSpace

__all__ = ["CorrectedCost"]


class CorrectedCost(Cost):
    """What another cost says, corrected.

    Args:
        cost: of latency.
        recalibration: of its table for the space.
        space: whose blocks and candidates the recalibration counts.
    """

    metric = "latency_ms"

    def __init__(self, cost: Cost, recalibration: Recalibration, space: SearchSpace) -> None:
        super().__init__(cost.skeleton, cost.reading)
        self._cost = cost
        self._line = recalibration
        self._shifts = {
            (one.block, space.candidates_by_block[one.block][one.candidate]): one.shift_ms
            for one in recalibration.shifts
        }

    @property
    def fixed(self) -> float:
        """The corrected part that every network of the skeleton has."""
        return max(0.0, self._cost.fixed * self._line.factor + self._line.offset_ms)

    def block(self, index: int, block: Block) -> float:
        """The corrected milliseconds of one block."""
        own = self._cost.block(index, block) * self._line.factor
        return own + self._shifts.get((index, block), 0.0)

    def prepare(self, requests: Iterable[tuple[int, Block]]) -> None:
        """As the cost that is corrected."""
        self._cost.prepare(requests)
