"""ExecuTorch's traces, written here as its schema says."""

from __future__ import annotations

import flatbuffers
import pytest

from devices.errors import InvalidInputError
from devices.etdump import read_trace
from devices.kernel_trace import TraceEvent


def _trace(runs: list[list[tuple[str, str, int, int, int]]]) -> bytes:
    """A trace of events: name, kernel of a delegate, instruction, start and end in nanoseconds."""
    builder = flatbuffers.Builder(256)
    tables = []
    for run in runs:
        events = []
        for name, kernel, instruction, start, end in run:
            texts = [builder.CreateString(text) if text else 0 for text in (name, kernel)]
            builder.StartObject(8)
            builder.PrependUOffsetTRelativeSlot(0, texts[0], 0)
            builder.PrependInt32Slot(2, instruction, -1)
            builder.PrependUOffsetTRelativeSlot(4, texts[1], 0)
            builder.PrependUint64Slot(6, start, 0)
            builder.PrependUint64Slot(7, end, 0)
            profiled = builder.EndObject()
            builder.StartObject(3)
            builder.PrependUOffsetTRelativeSlot(0, profiled, 0)
            events.append(builder.EndObject())
        builder.StartVector(4, len(events), 4)
        for event in reversed(events):
            builder.PrependUOffsetTRelative(event)
        listed = builder.EndVector()
        builder.StartObject(4)
        builder.PrependUOffsetTRelativeSlot(3, listed, 0)
        tables.append(builder.EndObject())
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    listed = builder.EndVector()
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(1, listed, 0)
    builder.FinishSizePrefixed(builder.EndObject(), file_identifier=b"ED00")
    return bytes(builder.Output())


def test_kernels_of_each_run() -> None:
    run = [
        ("native_call_mean.out", "", 0, 1_000, 4_200),
        ("OPERATOR_CALL", "", 0, 900, 4_300),
        ("", "Add (ND) #1", 1, 5_000, 8_000),
        ("", "Sigmoid (NC) #1", 1, 8_000, 8_000),
        ("DELEGATE_CALL", "", 1, 4_500, 9_000),
        ("Method::execute", "", 0, 0, 9_500),
    ]
    found = read_trace(_trace([[("Method::init", "", 0, 0, 5)], run, run]))
    # Whole microseconds of XNNPACK's are half a microsecond too short in the mean.
    kernels = (
        TraceEvent(0, "mean.out", False, 0.0032),
        TraceEvent(1, "Add (ND) #1", True, 0.0035),
        TraceEvent(1, "Sigmoid (NC) #1", True, 0.0005),
    )
    assert found == (kernels, kernels)
    assert [kernel.name for kernel in kernels][:2] == ["0:mean.out", "1:Add (ND) #1"]


def test_no_run() -> None:
    assert read_trace(_trace([])) == ()


@pytest.mark.parametrize(
    "data", [b"", b"garbage, and more of it", _trace([[("a", "b", 0, 0, 9)]])[:60]]
)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="trace"):
        read_trace(data)
