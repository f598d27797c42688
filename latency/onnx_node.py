"""An ONNX node as plain Python: each look at a field of a protobuf message makes a new object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

__all__ = ["Node"]

_MAX_SEQUENCE = 16
"""Attributes with more numbers than this say nothing about shapes or times."""
_FLOAT, _INT, _STRING, _FLOATS, _INTS = 1, 2, 3, 6, 7  # of `AttributeProto.AttributeType`


class Node:
    """A node, read once.

    Attributes:
        proto: what it was read from.
        name: may be empty.
        op_type: operation.
        domain: of the operation; empty for ONNX's own.
        input: names of the tensors read, "" where one is left out.
        output: names of the tensors made.
        given: the inputs that are not left out.
    """

    __slots__ = ("_options", "domain", "given", "input", "name", "op_type", "output", "proto")

    def __init__(self, proto: onnx.NodeProto) -> None:
        self.proto = proto
        self.name: str = proto.name
        self.op_type: str = proto.op_type
        self.domain: str = proto.domain
        self.input: tuple[str, ...] = tuple(proto.input)
        self.output: tuple[str, ...] = tuple(proto.output)
        self.given = self.input if "" not in self.input else tuple(filter(None, self.input))
        self._options: dict[str, Any] | None = None

    @property
    def attribute(self) -> Sequence[onnx.AttributeProto]:
        """The attributes as ONNX keeps them."""
        return tuple(self.proto.attribute)

    @property
    def options(self) -> dict[str, Any]:
        """The attributes as plain values; to be left alone.

        Text is decoded, sequences are lists; tensors, graphs, sequences of text and those of more
        than 16 numbers are left out.
        """
        if self._options is None:
            self._options = dict(self._plain())
        return self._options

    def _plain(self) -> Iterator[tuple[str, Any]]:
        for attribute in self.proto.attribute:
            kind = attribute.type
            if kind == _INT:
                yield attribute.name, attribute.i
            elif kind == _INTS:
                if len(attribute.ints) <= _MAX_SEQUENCE:
                    yield attribute.name, list(attribute.ints)
            elif kind == _FLOAT:
                yield attribute.name, attribute.f
            elif kind == _STRING:
                yield attribute.name, attribute.s.decode("utf-8", errors="replace")
            elif kind == _FLOATS and len(attribute.floats) <= _MAX_SEQUENCE:
                yield attribute.name, list(attribute.floats)
