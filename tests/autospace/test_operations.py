"""The ids of the released files, and how the fused ones are built."""

import pytest

from autospace.operations import (
    KERNEL_READINGS,
    SEARCH_OPERATIONS,
    KernelReading,
    Operation,
    depthwise_kernel,
)


def test_the_released_ids() -> None:
    assert {operation.name: int(operation) for operation in Operation} == {
        "NONE": 1,
        "IDENTITY": 2,
        "DENSE": 3,
        "DEPTHWISE": 5,
        "DEPTHWISE_FIELD_5": 7,
        "DEPTHWISE_FIELD_7": 9,
    }
    assert [int(operation) for operation in SEARCH_OPERATIONS] == [1, 2, 3, 5]


@pytest.mark.parametrize("reading", KERNEL_READINGS)
@pytest.mark.parametrize("operation", [one for one in Operation if one.is_depthwise])
def test_both_readings_see_the_same_field(operation: Operation, reading: KernelReading) -> None:
    kernel, dilation = depthwise_kernel(operation, reading)
    assert dilation * (kernel - 1) + 1 == int(operation.label[2:])
    assert dilation == 1 if reading == "kernel" else kernel == 3


def test_only_depthwise_operations_have_a_kernel() -> None:
    with pytest.raises(KeyError):
        depthwise_kernel(Operation.DENSE, "kernel")


def test_labels_are_unique() -> None:
    assert len({operation.label for operation in Operation}) == len(Operation)
