"""The operations on the edges of a cell, by the ids of the released AutoSpace files.

Proven by the files (arXiv 2103.11833, released ``net_340M`` and its search space): ids 1, 2, 3
and 5, and that 7 and 9 occur in networks only, where they stand for fused runs of depthwise
3×3 convolutions. What 7 and 9 look like as one kernel is a reading (`KernelReading`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, get_args

__all__ = [
    "KERNEL_READINGS",
    "SEARCH_OPERATIONS",
    "KernelReading",
    "Operation",
    "depthwise_kernel",
]

KernelReading = Literal["dilated", "kernel"]
"""How ids 7 and 9 are built: 3×3 with dilation 2 and 3 (``dilated``: reproduces the release's
parameter and multiply-add counts) or as 5×5 and 7×7 (``kernel``: this project's default)."""

KERNEL_READINGS: tuple[KernelReading, ...] = get_args(KernelReading)


class Operation(IntEnum):
    """One operation on an edge; the value is the id in the released files."""

    NONE = 1
    IDENTITY = 2
    DENSE = 3
    DEPTHWISE = 5
    DEPTHWISE_FIELD_5 = 7
    DEPTHWISE_FIELD_7 = 9

    @property
    def label(self) -> str:
        """A short name for drawings and tables."""
        return _LABELS[self]

    @property
    def is_depthwise(self) -> bool:
        """Whether the operation is a depthwise convolution of any receptive field."""
        return self >= Operation.DEPTHWISE


_LABELS = {
    Operation.NONE: "none",
    Operation.IDENTITY: "id",
    Operation.DENSE: "1x1",
    Operation.DEPTHWISE: "dw3",
    Operation.DEPTHWISE_FIELD_5: "dw5",
    Operation.DEPTHWISE_FIELD_7: "dw7",
}

SEARCH_OPERATIONS = (
    Operation.NONE,
    Operation.IDENTITY,
    Operation.DENSE,
    Operation.DEPTHWISE,
)
"""What evolution mutates among: the released space uses exactly these four."""


def depthwise_kernel(operation: Operation, reading: KernelReading) -> tuple[int, int]:
    """Kernel size and dilation of a depthwise operation.

    Args:
        operation: a depthwise operation.
        reading: how ids 7 and 9 are built.

    Returns:
        ``(kernel size, dilation)``.

    >>> depthwise_kernel(Operation.DEPTHWISE_FIELD_7, "dilated")
    (3, 3)
    >>> depthwise_kernel(Operation.DEPTHWISE_FIELD_7, "kernel")
    (7, 1)
    """
    field = {
        Operation.DEPTHWISE: 3,
        Operation.DEPTHWISE_FIELD_5: 5,
        Operation.DEPTHWISE_FIELD_7: 7,
    }[operation]
    return (3, (field - 1) // 2) if reading == "dilated" else (field, 1)
