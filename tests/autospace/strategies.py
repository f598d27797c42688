"""Hypothesis strategies for cells, blocks and skeletons."""

from hypothesis import strategies as st

from autospace.genotype import EDGES, EXPANSIONS, Block, Cell, MBConv, Mix, Zero
from autospace.operations import SEARCH_OPERATIONS, Operation
from autospace.skeleton import BlockShape, Skeleton, Stage

_CHAIN = ((1, 0), (2, 1), (3, 2))


def _cells(operations: tuple[Operation, ...]) -> st.SearchStrategy[Cell]:
    along = [operation for operation in operations if operation is not Operation.NONE]
    return st.builds(
        Cell,
        st.tuples(*(st.sampled_from(along if edge in _CHAIN else operations) for edge in EDGES)),
        st.sampled_from(EXPANSIONS),
        st.tuples(st.sampled_from(Mix), st.sampled_from(Mix)),
    )


cells = _cells(tuple(Operation))
"""Any valid cell, the fused operations included."""

search_cells = _cells(SEARCH_OPERATIONS)
"""What evolution can make."""

mbconvs = st.builds(MBConv, st.sampled_from((3, 5, 7)), st.integers(1, 6))

block_shapes = st.builds(
    BlockShape, st.integers(1, 6), st.integers(1, 6), st.sampled_from((1, 2)), st.integers(1, 13)
)


def blocks_for(shape: BlockShape) -> st.SearchStrategy[Block]:
    """What can stand at a place."""
    anywhere = cells | mbconvs
    return anywhere | st.just(Zero()) if shape.has_shortcut else anywhere


skeletons = st.builds(
    Skeleton,
    name=st.just("drawn"),
    resolution=st.integers(5, 21),
    in_channels=st.integers(1, 3),
    num_classes=st.integers(2, 5),
    stem_width=st.integers(1, 4),
    stem_stride=st.sampled_from((1, 2)),
    first_width=st.integers(0, 4),
    stages=st.lists(
        st.builds(Stage, st.integers(1, 5), st.integers(1, 2), st.sampled_from((1, 2))),
        min_size=1,
        max_size=2,
    ).map(tuple),
    head_width=st.integers(1, 9),
    width_mult=st.sampled_from((1.0, 0.5, 1.4)),
    sharing=st.integers(1, 3),
)
