"""What a cell computes in its layer: cells that agree in it are one candidate."""

from __future__ import annotations

from autospace.genotype import Cell
from autospace.graph import block_function
from autospace.operations import KernelReading
from autospace.skeleton import Skeleton

__all__ = ["LayerFunction", "layer_function"]

LayerFunction = tuple[int, ...]


def layer_function(
    skeleton: Skeleton, layer: int, cell: Cell, reading: KernelReading
) -> LayerFunction:
    """What a cell, fused, computes in each block of a layer; two that agree are one candidate."""
    return tuple(
        block_function(cell.fused(), shape, reading)
        for index, shape in enumerate(skeleton.blocks)
        if skeleton.layer_of(index) == layer
    )
