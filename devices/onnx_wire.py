"""An ONNX model's bytes without the numbers of its weights, which are nearly all of them.

What a runtime makes of a network is told by shapes. Parsing a model of 100 MB copies all of it; to
walk over its outermost fields, the way protobuf writes them, takes as long as there are fields:
https://protobuf.dev/programming-guides/encoding. Field numbers are those of ONNX's `onnx.proto`.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["LARGEST_KEPT", "split_weights"]

LARGEST_KEPT = 16 * 1024
"""Bytes of a weight that stay where they are: small ones may be numbers to compute shapes with."""

_GRAPH = 7  # of ModelProto
_INITIALIZER = 5  # of GraphProto
_NAME, _RAW_DATA = 8, 9  # of TensorProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def split_weights(data: bytes) -> tuple[bytes, dict[str, memoryview]]:
    """A model's bytes without the raw data of large weights, and that data.

    Args:
        data: a serialised model.

    Returns:
        Bytes of a model that is the same but for weights of more than `LARGEST_KEPT` bytes, which
        have no content; and the raw content of those, by name. Data that is not kept raw stays.

    Raises:
        ValueError: these are no bytes of a protobuf message.
    """
    view = memoryview(data)
    weights: dict[str, memoryview] = {}
    pieces: list[bytes | memoryview] = []
    kept = 0
    for number, kind, start, content, end in _fields(data, 0, len(data)):
        if number == _GRAPH and kind == _BYTES and end - content > LARGEST_KEPT:
            graph = _split_graph(data, view, content, end, weights)
            pieces += (view[kept:start], _header(_GRAPH, sum(map(len, graph))), *graph)
            kept = end
    return b"".join((*pieces, view[kept:])), weights


def _split_graph(
    data: bytes, view: memoryview, at: int, stop: int, weights: dict[str, memoryview]
) -> list[bytes | memoryview]:
    """The pieces of a graph's message; adds to the weights what is left out."""
    pieces: list[bytes | memoryview] = []
    kept = at
    for number, kind, start, content, end in _fields(data, at, stop):
        if number != _INITIALIZER or kind != _BYTES or end - content <= LARGEST_KEPT:
            continue
        name, cuts = "", []
        for inner, form, begins, inside, ends in _fields(data, content, end):
            if inner == _NAME and form == _BYTES:
                name = data[inside:ends].decode("utf-8", errors="replace")
            elif inner == _RAW_DATA and form == _BYTES and ends - inside > LARGEST_KEPT:
                cuts.append((begins, inside, ends))
        if len(cuts) != 1:
            continue
        begins, inside, ends = cuts[0]
        length = begins - content + end - ends
        pieces += (view[kept:start], _header(_INITIALIZER, length))
        pieces += (view[content:begins], view[ends:end])
        weights[name] = view[inside:ends]
        kept = end
    pieces.append(view[kept:stop])
    return pieces


def _fields(data: bytes, at: int, stop: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Number, wire type, start, start of the content and end of each field of a message."""
    while at < stop:
        start = at
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            length, at = _varint(data, at)
            content, at = at, at + length
        elif kind == _VARINT:
            content = at
            _, at = _varint(data, at)
        elif kind == _FIXED64:
            content, at = at, at + 8
        elif kind == _FIXED32:
            content, at = at, at + 4
        else:
            raise ValueError(f"wire type {kind}")
        if at > stop:
            raise ValueError("a field that is longer than its message")
        yield number, kind, start, content, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    try:
        byte = data[at]
        if byte < 128:
            return byte, at + 1
        value, shift = byte & 127, 7
        while True:
            at += 1
            byte = data[at]
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at + 1
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
    except IndexError as error:
        raise ValueError("a number that is cut off") from error


def _header(number: int, length: int) -> bytes:
    """What stands before a field's bytes."""
    encoded = bytearray([number << 3 | _BYTES])
    while length > 127:
        encoded.append(length & 127 | 128)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)
