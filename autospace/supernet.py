"""The two networks that hold many candidates at once: for evolution and for search.

`EvolvingNet` stacks the sampled cells of a layer in parallel and adds their outputs with weights
(AutoSpace, arXiv 2103.11833, Eq. 3). `GatedNet` keeps one path active (ProxylessNAS, arXiv
1812.00332, section 3.2), so that memory does not grow with the number of candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from autospace.genotype import EXPANSIONS, Block, Cell
from autospace.graph import INPUT, Node, block_nodes, network_nodes
from autospace.network import ConvBN, NodeGraph, apply_node, initialise, last_uses, node_module
from autospace.operations import KernelReading, Operation
from autospace.skeleton import BlockShape, Skeleton
from autospace.space import PLAIN_BLOCK

__all__ = ["EvolvingNet", "GatedNet"]


def _outer_parts(skeleton: Skeleton) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """The nodes before and after the searchable blocks."""
    nodes = network_nodes(skeleton, [PLAIN_BLOCK] * len(skeleton.blocks))
    before = [node for node in nodes if node.name == "stem" or node.name.startswith("first")]
    after = [node for node in nodes if node.name in ("head", "pool", "classifier")]
    return tuple(before), tuple(after)


_Origin = tuple[Any, ...]


def _plain(expansion: int) -> Cell:
    """A cell that only expands and projects."""
    identity, none = Operation.IDENTITY, Operation.NONE
    return Cell((identity, none, identity, none, none, identity), expansion)


class _CellBank(nn.Module):
    """One block's weights for every operation on every edge, shared by all cells.

    A mutated cell so inherits the weights of every edge that it keeps, and what two of the
    sampled cells have in common (the expansion, a common beginning) is computed once. Batch norm
    uses the batch's own statistics: the bank only ever trains.
    """

    def __init__(self, shape: BlockShape, reading: KernelReading):
        super().__init__()
        self.shape = shape
        self.reading = reading
        self.bank = nn.ModuleDict()
        for node in self._every_node():
            if node.key not in self.bank:
                module = node_module(node, track=False)
                if module is not None:
                    self.bank[node.key] = module
        self._nodes = lru_cache(4096)(self._cell_nodes)

    def begin_as_identity(self) -> None:
        """Where a shortcut goes past the cells, lets these add nothing until they have learned.

        The scale of a cell's last batch norm begins at 0 (Goyal et al., *Accurate, Large Minibatch
        SGD*, arXiv 1706.02677, section 5.1): gradients then reach the first layers through few
        others. Without it the mobile layout learned nothing at a proxy's input size.
        """
        if not self.shape.has_shortcut:
            return
        for expansion in EXPANSIONS:
            end = self.bank[self._cell_nodes(_plain(expansion))[-1].key]
            assert isinstance(end, ConvBN)
            nn.init.zeros_(end.norm.weight)

    def _every_node(self) -> Iterator[Node]:
        for expansion in EXPANSIONS:
            plain = _plain(expansion)
            operations = [Operation.DEPTHWISE]
            if expansion != max(EXPANSIONS):  # dense edges at expansion 6: in no released cell
                operations.append(Operation.DENSE)
            for operation in operations:
                for edge in ((1, 0), (2, 0), (2, 1), (3, 1), (3, 2)):
                    yield from self._cell_nodes(plain.with_edge(edge, operation))

    def _cell_nodes(self, cell: Cell) -> tuple[Node, ...]:
        return block_nodes(cell, self.shape, reading=self.reading, shortcut=False)

    def forward(self, x: Tensor, cells: Sequence[Cell], weights: Tensor) -> Tensor:
        """Eq. 3: the weighted sum of the cells' outputs.

        Args:
            x: shape ``(batch, in_channels, h, w)``.
            cells: the sampled cells.
            weights: shape ``(len(cells),)``.

        Returns:
            Shape ``(batch, out_channels, h', w')``, with the outer shortcut where there is one.
        """
        known: dict[_Origin, Tensor] = {}
        total: Tensor | None = None
        for cell, weight in zip(cells, weights, strict=True):
            value = x
            for node, name, sources in self._named(cell):
                if name not in known:
                    inputs = [known.get(source, x) for source in sources]
                    module = self.bank[node.key] if node.key in self.bank else None
                    known[name] = apply_node(node, module, inputs)
                value = known[name]
            part = value * weight
            total = part if total is None else total + part
        assert total is not None
        return total + x if self.shape.has_shortcut else total

    def madds(self, cells: Sequence[Cell]) -> int:
        """Multiply-adds of one image through the stacked cells."""
        named = {name: node for cell in cells for node, name, _ in self._named(cell)}
        return sum(node.madds for node in named.values())

    def _named(self, cell: Cell) -> Iterator[tuple[Node, _Origin, list[_Origin]]]:
        """The cell's nodes, named by how they are computed, so that equal parts of two meet."""
        names: dict[str, _Origin] = {INPUT: (INPUT,)}
        for node in self._nodes(cell):
            sources = [names[source] for source in node.inputs]
            names[node.name] = (node.kind, node.key, *sources)
            yield node, names[node.name], sources


class EvolvingNet(nn.Module):
    """A network whose every layer computes several sampled cells at once.

    Args:
        skeleton: with the data's input size and classes.
        reading: how fused depthwise operations are built.
        generator: of the initial weights.
    """

    def __init__(self, skeleton: Skeleton, reading: KernelReading, generator: torch.Generator):
        super().__init__()
        before, after = _outer_parts(skeleton)
        self.skeleton = skeleton
        self.before = NodeGraph(before, track=False)
        self.blocks = nn.ModuleList(_CellBank(shape, reading) for shape in skeleton.blocks)
        self.after = NodeGraph(after, track=False)
        initialise(self, generator)
        for bank in self.blocks:
            assert isinstance(bank, _CellBank)
            bank.begin_as_identity()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, cells: Sequence[Sequence[Cell]], weights: Tensor) -> Tensor:
        """Logits of the stacked network.

        Args:
            x: shape ``(batch, channels, size, size)``.
            cells: K cells for each layer.
            weights: shape ``(layers, K)``, on any device.

        Returns:
            Shape ``(batch, classes)``.
        """
        weights = weights.to(x.device)
        x = self.before(x)
        for index, block in enumerate(self.blocks):
            layer = self.skeleton.layer_of(index)
            x = block(x, cells[layer], weights[layer])
        return self.after(x)  # type: ignore[no-any-return]

    def madds(self, cells: Sequence[Sequence[Cell]]) -> int:
        """Multiply-adds of one image through the stacked network, forward.

        What the cells of a block have in common counts once, as it is computed once.

        Args:
            cells: K cells for each layer.
        """
        stacked = sum(
            block.madds(cells[self.skeleton.layer_of(index)])
            for index, block in enumerate(self.blocks)
            if isinstance(block, _CellBank)
        )
        return stacked + sum(node.madds for node in (*self.before.nodes, *self.after.nodes))


class _Candidates(nn.Module):
    """One block's candidates; only the asked-for one computes."""

    def __init__(
        self, shape: BlockShape, blocks: Sequence[Block], reading: KernelReading, share: bool
    ):
        super().__init__()
        self.layers = nn.ModuleDict()
        self.paths: list[tuple[tuple[Node, str], ...]] = []
        self._drop: list[tuple[tuple[str, ...], ...]] = []
        for index, block in enumerate(blocks):
            path = []
            nodes = block_nodes(block, shape, reading=reading)
            self._drop.append(last_uses(nodes))
            for node in nodes:
                key = node.key if share else f"{index}/{node.name}"
                module = None if key in self.layers else node_module(node, track=False)
                if module is not None:
                    self.layers[key] = module
                path.append((node, key))
            self.paths.append(tuple(path))

    def begin_as_identity(self) -> None:
        """Lets every candidate add nothing to the shortcut until it has learned.

        See `_CellBank.begin_as_identity`.
        """
        for path in self.paths:
            layers = [self.layers[key] for _, key in path if key in self.layers]
            ends = [layer for layer in layers if isinstance(layer, ConvBN)][-1:]
            for end in ends:  # a candidate that computes nothing has none
                nn.init.zeros_(end.norm.weight)

    def forward(self, x: Tensor, index: int) -> Tensor:
        """Maps ``(batch, in_channels, h, w)`` through one candidate."""
        values = {INPUT: x}
        for (node, key), drop in zip(self.paths[index], self._drop[index], strict=True):
            module = self.layers[key] if key in self.layers else None
            x = apply_node(node, module, [values[name] for name in node.inputs])
            values[node.name] = x
            for name in drop:
                del values[name]
        return x


class _BinaryGates(torch.autograd.Function):
    """Passes the active candidate's output on; its backward tells what each gate is worth.

    What it keeps, the block's input and output, the neighbouring layers keep as well.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        gates: Tensor,
        block: nn.Module,
        active: int,
        asked: tuple[int, ...],
    ) -> Tensor:
        """The output ``y`` of the active candidate on ``x``; ``gates`` has one entry for each."""
        ctx.save_for_backward(y, x, gates)
        ctx.block, ctx.active, ctx.asked = block, active, asked
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """∂L/∂g_k = <∂L/∂output, candidate_k(x)>, candidate by candidate."""
        (slope,) = slopes
        y, x, gates = ctx.saved_tensors
        own = torch.zeros_like(gates)
        with torch.no_grad():
            for place, index in enumerate(ctx.asked):
                output = y if index == ctx.active else ctx.block(x, index)
                own[place] = (slope * output).sum()
        return slope, None, own, None, None, None


class GatedNet(nn.Module):
    """A network with every candidate of every block, of which one path computes.

    Args:
        skeleton: with the data's input size and classes.
        candidates: for each block, what it can hold.
        reading: how fused depthwise operations are built.
        generator: of the initial weights.
        share: whether the cells of a block share the weights of equal operations on equal edges
            (this project's choice: a short search then trains every weight often); otherwise
            each candidate has its own (the paper's).
    """

    def __init__(
        self,
        skeleton: Skeleton,
        candidates: Sequence[Sequence[Block]],
        reading: KernelReading,
        generator: torch.Generator,
        *,
        share: bool = True,
    ):
        super().__init__()
        before, after = _outer_parts(skeleton)
        self.skeleton = skeleton
        self.reading: KernelReading = reading
        self.candidates = tuple(tuple(blocks) for blocks in candidates)
        self.before = NodeGraph(before, track=False)
        self.blocks = nn.ModuleList(
            _Candidates(shape, blocks, reading, share)
            for blocks, shape in zip(self.candidates, skeleton.blocks, strict=True)
        )
        self.after = NodeGraph(after, track=False)
        initialise(self, generator)
        for block, shape in zip(self.blocks, skeleton.blocks, strict=True):
            assert isinstance(block, _Candidates)
            if shape.has_shortcut:
                block.begin_as_identity()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, path: Sequence[int]) -> Tensor:
        """Logits of one path.

        Args:
            x: shape ``(batch, channels, size, size)``.
            path: the active candidate of each block.
        """
        x = self.before(x)
        for block, index in zip(self.blocks, path, strict=True):
            x = block(x, index)
        return self.after(x)  # type: ignore[no-any-return]

    def forward_gated(
        self, x: Tensor, path: Sequence[int], asked: Sequence[Sequence[int]], gates: Tensor
    ) -> Tensor:
        """Logits of one path, with binary gates that receive gradients.

        Each block's output stands for Σ_k g_k · candidate_k(x), where g is 1 for the active
        candidate and 0 for the others; so the gradient by g_k is the scalar product of the
        output's gradient and candidate_k(x). Candidates that are not active are computed one by
        one when that gradient is there, without a graph: no more is kept than for the path alone.

        Args:
            x: shape ``(batch, channels, size, size)``.
            path: the active candidate of each block.
            asked: for each block the candidates whose gates receive gradients.
            gates: shape ``(blocks, most asked)``; receives the loss's gradient by each asked-for
                gate, 0 where fewer are asked for. Its values are not read: the path says them.
                It can be on any device.
        """
        gates = gates.to(x.device)
        x = self.before(x)
        for block, active, wanted, row in zip(self.blocks, path, asked, gates, strict=True):
            y = block(x, active)
            x = _BinaryGates.apply(y, x.detach(), row, block, active, tuple(wanted))  # type: ignore[no-untyped-call]
        return self.after(x)  # type: ignore[no-any-return]

    def extract(self, path: Sequence[int]) -> NodeGraph:
        """One path as a network of its own, with copied weights and fresh running statistics.

        Args:
            path: the candidate of each block.

        Returns:
            A network like `autospace.network.build_network` makes, for the supernet's data, on
            its device.
        """
        blocks = [
            candidates[index] for candidates, index in zip(self.candidates, path, strict=True)
        ]
        network = NodeGraph(network_nodes(self.skeleton, blocks, self.reading))
        sources: dict[str, nn.Module] = {**self.before.layers, **self.after.layers}
        for number, (block, index) in enumerate(zip(self.blocks, path, strict=True)):
            assert isinstance(block, _Candidates)
            for node, key in block.paths[index]:
                if key in block.layers:
                    sources[node.name.replace("block", f"block{number}", 1)] = block.layers[key]
        with torch.no_grad():
            for name, layer in network.layers.items():
                given = dict(sources[name].named_parameters())
                for parameter_name, parameter in layer.named_parameters():
                    parameter.copy_(given[parameter_name])
        device = next(self.parameters()).device
        return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
