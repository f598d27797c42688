from __future__ import annotations

from autospace.genotype import REFERENCE_CELLS
from autospace.layer_function import layer_function
from autospace.operations import Operation
from autospace.skeleton import SKELETONS


def test_cells_that_compute_the_same_are_one_candidate():
    """Two genes that make one function at stride 1 differ where the stride is inside the cell."""
    first = REFERENCE_CELLS[2]
    last = first.with_edge((1, 0), Operation.IDENTITY).with_edge((3, 2), Operation.DEPTHWISE)
    tiny = SKELETONS["tiny"]
    assert [shape.stride for shape in tiny.blocks] == [2, 1, 2, 1, 1, 1]
    for layer, same in ((0, False), (2, True)):
        functions = {layer_function(tiny, layer, cell, "kernel") for cell in (first, last)}
        assert (len(functions) == 1) == same
