"""What blocks and networks cost at the target: multiply-adds, exactly, and latency, by the card.

Every cost is a sum over blocks plus a fixed part (stem, head, classifier, call overhead), so a
table of blocks × candidates is all that the differentiable term and the exact solver need.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from autospace.genotype import REFERENCE_CELLS, Block, Cell, Zero, block_from_json
from autospace.graph import block_nodes
from autospace.operations import KernelReading, Operation
from autospace.quantities import format_count, format_ms
from autospace.skeleton import Skeleton
from autospace.space import PLAIN_BLOCK, Architecture
from devices.errors import UsageError

if TYPE_CHECKING:
    import torch

    from latency import Predictor
    from latency.expected import ExpectedCost

__all__ = [
    "SMALLEST_CELL",
    "Cost",
    "CostTable",
    "LatencyCost",
    "Limit",
    "MaddsCost",
    "Metric",
    "check_reachable",
    "format_cost",
    "reference_cost",
    "smallest_cost",
]

Metric = Literal["madds", "latency_ms"]

SMALLEST_CELL = Cell(
    (
        Operation.IDENTITY,
        Operation.NONE,
        Operation.IDENTITY,
        Operation.NONE,
        Operation.NONE,
        Operation.IDENTITY,
    ),
    1,
)
"""Nothing but the projection: no valid cell has fewer multiply-adds."""


@dataclass(frozen=True)
class Limit:
    """An upper bound that the final network has to keep.

    Attributes:
        metric: what is bounded.
        value: in multiply-adds or milliseconds.
        text: as the user wrote it.
    """

    metric: Metric
    value: float
    text: str

    def __str__(self) -> str:
        return f"{format_cost(self.metric, self.value)}"

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return {"metric": self.metric, "value": self.value, "text": self.text}


def format_cost(metric: Metric, value: float) -> str:
    """A cost with its unit.

    >>> format_cost("madds", 5e8)
    '500M multiply-adds'
    """
    return f"{format_count(value)} multiply-adds" if metric == "madds" else format_ms(value)


@dataclass(frozen=True)
class CostTable:
    """Costs of every candidate of every block.

    Attributes:
        metric: the unit.
        fixed: the part that every network has.
        values: for each block, one cost for each of its candidates.
    """

    metric: Metric
    fixed: float
    values: tuple[tuple[float, ...], ...]

    def total(self, choice: Sequence[int]) -> float:
        """The cost of one network, given by its candidate indices."""
        return self.fixed + sum(row[index] for row, index in zip(self.values, choice, strict=True))

    @property
    def smallest(self) -> float:
        """The cost of the cheapest network."""
        return self.fixed + sum(min(row) for row in self.values)

    @property
    def largest(self) -> float:
        """The cost of the dearest network."""
        return self.fixed + sum(max(row) for row in self.values)

    def recalibrated(self, factor: float, offset: float) -> CostTable:
        """Every entry times a factor, and the fixed part moved, by what was measured."""
        return CostTable(
            self.metric,
            max(0.0, self.fixed * factor + offset),
            tuple(tuple(value * factor for value in row) for row in self.values),
        )

    def reads_like(self, other: CostTable) -> bool:
        """Whether both come from the same card and candidates.

        A runtime may order a network's nodes anew when it is compiled again, and a reading then
        differs in some entries; another card differs in nearly all.
        """
        if [len(row) for row in self.values] != [len(row) for row in other.values]:
            return False
        own, others = np.concatenate(self.values), np.concatenate(other.values)
        return self.metric == other.metric and bool(np.mean(own == others) >= 0.5)

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return {"metric": self.metric, "fixed": self.fixed, "values": self.values}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> CostTable:
        """From what `to_json` gave."""
        return CostTable(
            document["metric"], document["fixed"], tuple(tuple(row) for row in document["values"])
        )

    def expected(self, dtype: torch.dtype | None = None) -> ExpectedCost:
        """The differentiable expectation over choices, batched; loads torch.

        Args:
            dtype: what it is computed in; float32 unless told.

        Returns:
            `latency.ExpectedLatency` for milliseconds, its unit-neutral base for multiply-adds.

        Raises:
            InvalidInputError: no blocks, or an entry that is negative or not finite.
        """
        import torch

        from latency.expected import ExpectedCost, ExpectedLatency

        kind = ExpectedLatency if self.metric == "latency_ms" else ExpectedCost
        return kind(self.values, self.fixed, dtype=dtype or torch.float32)


class Cost(ABC):
    """A cost that adds up over blocks."""

    metric: ClassVar[Metric]

    def __init__(self, skeleton: Skeleton, reading: KernelReading):
        self.skeleton = skeleton
        self.reading: KernelReading = reading

    @property
    @abstractmethod
    def fixed(self) -> float:
        """The part that every network of the skeleton has."""

    @abstractmethod
    def block(self, index: int, block: Block) -> float:
        """The cost of a block (counted from 0) holding this."""

    def prepare(self, requests: Iterable[tuple[int, Block]]) -> None:  # noqa: B027
        """Announces blocks that will be asked for, so that they can be worked out together."""

    def snapshot(self) -> Any:
        """What was worked out so far, as JSON, where a later answer could depend on it."""
        return None

    def restore(self, snapshot: Any) -> None:  # noqa: B027
        """Puts back a `snapshot`, so that resumed work sees the very same costs."""

    def layer(self, layer: int, cell: Cell) -> float:
        """The cost of a cell in every block of a layer."""
        return sum(self.block(index, cell) for index in self.blocks_of(layer))

    def blocks_of(self, layer: int) -> tuple[int, ...]:
        """The blocks that share a layer's population."""
        return tuple(
            index
            for index in range(len(self.skeleton.blocks))
            if self.skeleton.layer_of(index) == layer
        )

    def network(self, blocks: Sequence[Block]) -> float:
        """The cost of a whole network."""
        self.prepare(enumerate(blocks))
        return self.fixed + sum(self.block(index, block) for index, block in enumerate(blocks))

    def table(self, candidates: Sequence[Sequence[Block]]) -> CostTable:
        """The costs of every candidate of every block."""
        self.prepare((index, block) for index, blocks in enumerate(candidates) for block in blocks)
        return CostTable(
            self.metric,
            self.fixed,
            tuple(
                tuple(self.block(index, block) for block in blocks)
                for index, blocks in enumerate(candidates)
            ),
        )


class MaddsCost(Cost):
    """Multiply-adds at the skeleton's resolution, exact."""

    metric = "madds"

    def __init__(self, skeleton: Skeleton, reading: KernelReading = "kernel"):
        super().__init__(skeleton, reading)
        self._known: dict[tuple[int, Block], float] = {}
        plain = [PLAIN_BLOCK] * len(skeleton.blocks)
        whole = Architecture(skeleton, tuple(plain), reading).madds
        self._fixed = whole - sum(self.block(index, PLAIN_BLOCK) for index in range(len(plain)))

    @property
    def fixed(self) -> float:
        """Stem, first block, head and classifier."""
        return self._fixed

    def block(self, index: int, block: Block) -> float:
        """The multiply-adds of one block."""
        key = (index, block)
        if key not in self._known:
            nodes = block_nodes(block, self.skeleton.blocks[index], reading=self.reading)
            self._known[key] = float(sum(node.madds for node in nodes))
        return self._known[key]


class LatencyCost(Cost):
    """Latency in milliseconds, as the card's predictor sees each block inside a network.

    A block's cost is read in context: whole networks are compiled that hold the asked-for blocks,
    and each kernel's time goes to the block whose ONNX nodes it came from. One compilation serves
    one new candidate of every block at once.
    """

    metric = "latency_ms"

    def __init__(
        self,
        skeleton: Skeleton,
        predictor: Predictor,
        reading: KernelReading = "kernel",
        batch: int = 1,
    ):
        super().__init__(skeleton, reading)
        self._predictor = predictor
        self._batch = batch
        self._known: dict[tuple[int, Block], float] = {}
        self._fixed: list[float] = []

    @property
    def fixed(self) -> float:
        """The median over the compiled networks of what belongs to no block."""
        if not self._fixed:
            self.prepare([(0, PLAIN_BLOCK)])
        return float(np.median(self._fixed))

    def block(self, index: int, block: Block) -> float:
        """The predicted milliseconds of one block."""
        if isinstance(block, Zero):
            return 0.0
        if (index, block) not in self._known:
            self.prepare([(index, block)])
        return self._known[index, block]

    def prepare(self, requests: Iterable[tuple[int, Block]]) -> None:
        """Compiles as few networks as cover the requests that are not known yet."""
        waiting: dict[int, list[Block]] = {}
        for index, block in requests:
            known = (index, block) in self._known or block in waiting.get(index, [])
            if not known and not isinstance(block, Zero):
                waiting.setdefault(index, []).append(block)
        for round_ in range(max(map(len, waiting.values()), default=0)):
            blocks: list[Block] = [PLAIN_BLOCK] * len(self.skeleton.blocks)
            asked = {
                index: wanted[round_] for index, wanted in waiting.items() if round_ < len(wanted)
            }
            for index, block in asked.items():
                blocks[index] = block
            self._read(tuple(blocks))

    def snapshot(self) -> Any:
        """Every block's cost as it was read, and the fixed part of every compiled network."""
        return {
            "fixed": self._fixed,
            "known": [
                [index, block.to_json(), value] for (index, block), value in self._known.items()
            ],
        }

    def restore(self, snapshot: Any) -> None:
        """Puts back a `snapshot`: a block's cost depends slightly on what it was compiled with."""
        self._fixed = list(snapshot["fixed"])
        self._known = {
            (index, block_from_json(block)): value for index, block, value in snapshot["known"]
        }

    def _read(self, blocks: tuple[Block, ...]) -> None:
        from autospace.onnx_export import onnx_for_cost, owner_of

        model = onnx_for_cost(Architecture(self.skeleton, blocks, self.reading), self._batch)
        prediction = self._predictor.predict_quickly(model)
        spent = np.zeros(len(blocks))
        for kernel in prediction.kernels:
            owner = owner_of(kernel.nodes) or ""
            if owner.startswith("block"):
                spent[int(owner.removeprefix("block"))] += kernel.latency_ms
        self._fixed.append(prediction.latency_ms - float(spent.sum()))
        for index, block in enumerate(blocks):
            self._known.setdefault((index, block), float(spent[index]))


def reference_cost(cost: Cost) -> float:
    """The cost of the network that holds one reference cell in every block: MBConv6 5×5."""
    return cost.network([REFERENCE_CELLS[1].fused()] * len(cost.skeleton.blocks))


def smallest_cost(cost: Cost) -> float:
    """The cost of the smallest network that the skeleton allows."""
    return cost.network(
        [Zero() if shape.has_shortcut else SMALLEST_CELL for shape in cost.skeleton.blocks]
    )


def check_reachable(costs: Mapping[str, Cost], limits: Sequence[Limit]) -> None:
    """Refuses limits below the smallest network of the skeleton.

    Raises:
        UsageError: names the limit and the smallest network's cost.
    """
    for limit in limits:
        smallest = smallest_cost(costs[limit.metric])
        if limit.value < smallest:
            raise UsageError(
                f"limit {limit}: below the smallest network of the "
                f"{costs[limit.metric].skeleton.name} skeleton, "
                f"{format_cost(limit.metric, smallest)}; raise the limit or take a smaller skeleton"
            )
