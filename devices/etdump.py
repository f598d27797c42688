"""Reads the event trace that ExecuTorch writes (ETDump), as far as times are concerned.

The format is a FlatBuffer whose schema is in the package (``executorch/devtools/etdump``). Its own
reader starts a program for every trace, which takes longer than what was measured. Times are in
nanoseconds. XNNPACK tells the time of each of its kernels in whole microseconds, cut off.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from devices.errors import InvalidInputError
from devices.kernel_trace import TraceEvent

__all__ = ["read_trace"]

_NATIVE = "native_call_"
_IDENTIFIER = b"ED00"
_SIZE = 4
"""Bytes in front that tell how long the rest is."""
# Places of fields in their tables.
_RUNS, _EVENTS, _PROFILED = 1, 3, 0
_NAME, _INSTRUCTION, _KERNEL, _START, _END = 0, 2, 4, 6, 7


def read_trace(data: bytes) -> tuple[tuple[TraceEvent, ...], ...]:
    """The kernels of each run, in the order of execution.

    Args:
        data: content of the file that ``write_etdump_result_to_file`` writes.

    Raises:
        InvalidInputError: it is no trace.
    """
    if data[8:12] != _IDENTIFIER:
        raise InvalidInputError("trace: is not ExecuTorch's; install the package again.")
    try:
        runs = [tuple(_events(data, run)) for run in _tables(data, _table(data, _SIZE), _RUNS)]
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise InvalidInputError(
            "trace: ExecuTorch's is not readable; install the package again."
        ) from error
    return tuple(run for run in runs if run)


def _events(data: bytes, run: int) -> Iterator[TraceEvent]:
    for event in _tables(data, run, _EVENTS):
        place = _field(data, event, _PROFILED)
        if not place:
            continue
        table = _table(data, place)
        name, kernel = _text(data, table, _NAME), _text(data, table, _KERNEL)
        if not kernel and not name.startswith(_NATIVE):
            continue
        start, end = (_number(data, table, field, "<Q", 0) for field in (_START, _END))
        # What was cut off is half a microsecond in the mean.
        spent_ns = end - start + (500 if kernel else 0)
        yield TraceEvent(
            instruction=_number(data, table, _INSTRUCTION, "<i", -1),
            op=kernel or name.removeprefix(_NATIVE),
            delegated=bool(kernel),
            time_ms=spent_ns / 1e6,
        )


# -- FlatBuffers: tables point to a list of where their fields are, relative to themselves


def _table(data: bytes, place: int) -> int:
    return place + int(struct.unpack_from("<I", data, place)[0])


def _field(data: bytes, table: int, field: int) -> int:
    """Where a field lies; 0 when it is left out."""
    places = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, places)[0]
    offset = 4 + 2 * field
    own = struct.unpack_from("<H", data, places + offset)[0] if offset < size else 0
    return table + int(own) if own else 0


def _number(data: bytes, table: int, field: int, kind: str, missing: int) -> int:
    place = _field(data, table, field)
    return int(struct.unpack_from(kind, data, place)[0]) if place else missing


def _text(data: bytes, table: int, field: int) -> str:
    place = _field(data, table, field)
    if not place:
        return ""
    start = _table(data, place)
    length = struct.unpack_from("<I", data, start)[0]
    return data[start + 4 : start + 4 + length].decode()


def _tables(data: bytes, table: int, field: int) -> list[int]:
    place = _field(data, table, field)
    if not place:
        return []
    start = _table(data, place)
    count = struct.unpack_from("<I", data, start)[0]
    return [_table(data, start + 4 + 4 * i) for i in range(count)]
