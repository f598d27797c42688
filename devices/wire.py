"""Messages between a process and its child: JSON with raw bytes behind it, never pickle.

A child runs other people's code, so what it says is data and nothing else: numbers, text, and
arrays of plain numbers whose bytes are taken as they are.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from devices.runtimes.base import CompiledGraph, NodeTiming

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "Closed",
    "TimedOut",
    "arrays_from",
    "arrays_to",
    "graph_from",
    "graph_to",
    "receive",
    "send",
    "timings_from",
    "timings_to",
]

_HEAD = struct.Struct("<QQ")
"""Bytes of the JSON text, and of everything behind it."""
_LARGEST = 2**33
_PLAIN_KINDS = "fiub"
_PIECE = 1 << 20


class Closed(Exception):
    """The other side is gone, or talks nonsense."""


class TimedOut(Exception):
    """The other side did not answer in time."""


def send(descriptor: int, message: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Writes a message.

    Args:
        descriptor: of a pipe.
        message: what JSON can hold.
        blobs: raw bytes that go with it.

    Raises:
        Closed: nobody reads.
    """
    text = json.dumps({**message, "blobs": [len(blob) for blob in blobs]}).encode()
    try:
        for part in (_HEAD.pack(len(text), sum(map(len, blobs))), text, *blobs):
            view = memoryview(part)
            while view:
                view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise Closed from error


def receive(descriptor: int, limit_s: float | None = None) -> tuple[dict[str, Any], list[bytes]]:
    """Reads a message.

    Args:
        descriptor: of a pipe.
        limit_s: how long to wait for all of it; for ever when left out.

    Returns:
        The message and its blobs.

    Raises:
        Closed: the other side is gone, or what came is no message.
        TimedOut: the message was not there in time.
    """
    until = None if limit_s is None else time.monotonic() + limit_s
    size, behind = _HEAD.unpack(_read(descriptor, _HEAD.size, until))
    if max(size, behind) > _LARGEST:
        raise Closed
    try:
        message = json.loads(_read(descriptor, size, until))
        lengths = [int(length) for length in message.pop("blobs")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Closed from error
    if sum(lengths) != behind or any(length < 0 for length in lengths):
        raise Closed
    return message, [_read(descriptor, length, until) for length in lengths]


def graph_to(graph: CompiledGraph) -> tuple[dict[str, Any], list[bytes]]:
    """A compiled graph as JSON and bytes."""
    fields = {
        "runtime": graph.runtime,
        "version": graph.version,
        "inputs": [[name, list(shape), dtype] for name, shape, dtype in graph.inputs],
        "outputs": list(graph.outputs),
    }
    return fields, [graph.data] if graph.executed is None else [graph.data, graph.executed]


def graph_from(fields: Mapping[str, Any], blobs: Sequence[bytes]) -> CompiledGraph:
    """A compiled graph from what `graph_to` gave."""
    return CompiledGraph(
        runtime=str(fields["runtime"]),
        version=str(fields["version"]),
        data=blobs[0],
        inputs=tuple(
            (str(name), tuple(int(size) for size in shape), str(dtype))
            for name, shape, dtype in fields["inputs"]
        ),
        outputs=tuple(str(name) for name in fields["outputs"]),
        executed=blobs[1] if len(blobs) > 1 else None,
    )


def timings_to(timings: Mapping[str, NodeTiming]) -> list[list[Any]]:
    """Node timings as JSON, in their order."""
    return [[name, timing.op, list(timing.samples_ms)] for name, timing in timings.items()]


def timings_from(rows: Sequence[Sequence[Any]]) -> dict[str, NodeTiming]:
    """Node timings from what `timings_to` gave."""
    return {
        str(name): NodeTiming(str(op), tuple(float(ms) for ms in samples))
        for name, op, samples in rows
    }


def arrays_to(
    arrays: Mapping[str, npt.NDArray[np.generic]],
) -> tuple[list[list[Any]], list[bytes]]:
    """Arrays by name as JSON and bytes."""
    rows = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
    return rows, [array.tobytes() for array in arrays.values()]


def arrays_from(
    rows: Sequence[Sequence[Any]], blobs: Sequence[bytes]
) -> dict[str, npt.NDArray[np.generic]]:
    """Arrays by name from what `arrays_to` gave.

    Raises:
        ValueError: the bytes are not as many as the shape says, or no plain numbers.
    """
    import numpy as np

    found: dict[str, npt.NDArray[np.generic]] = {}
    for (name, kind, shape), blob in zip(rows, blobs, strict=True):
        dtype = np.dtype(kind)
        if dtype.kind not in _PLAIN_KINDS:
            raise ValueError(f"element type {kind!r} is not plain")
        found[str(name)] = np.frombuffer(blob, dtype).reshape(shape)
    return found


def _read(descriptor: int, size: int, until: float | None) -> bytes:
    parts = bytearray()
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    while len(parts) < size:
        if until is not None:
            left = until - time.monotonic()
            if left <= 0 or not waiting.poll(left * 1e3):
                raise TimedOut
        try:
            part = os.read(descriptor, min(size - len(parts), _PIECE))
        except OSError as error:
            raise Closed from error
        if not part:
            raise Closed
        parts += part
    return bytes(parts)
