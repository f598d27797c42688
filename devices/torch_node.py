"""An ONNX node as those see it who turn it into PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from devices.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx

__all__ = ["Function", "Handlers", "NodeReading"]

Function = Callable[..., Any]
"""What a node computes, of its inputs that are not constants."""


@dataclass
class NodeReading:
    """A node as its handler sees it.

    Attributes:
        node: the ONNX node.
        options: its attributes.
        constants: the arrays whose values are known while reading, by name.
        shapes: of the tensors, as far as they are known.
        opset: of the default domain.
        known: places of the inputs that were read as constants, which the call does not take.
    """

    node: onnx.NodeProto
    options: Mapping[str, Any]
    constants: Mapping[str, npt.NDArray[Any]]
    shapes: Mapping[str, tuple[int, ...]]
    opset: int
    known: set[int] = field(default_factory=set)

    @property
    def label(self) -> str:
        """How errors name it."""
        return f"model node {self.node.name or self.node.output[0]!r} ({self.node.op_type})"

    def refuse(self, what: str) -> InvalidInputError:
        """The error that says that `what` of this node is not known."""
        return InvalidInputError(
            f"{self.label}: {what} cannot be turned into PyTorch; export the model without it, or "
            "use a runtime that reads ONNX."
        )

    def name(self, place: int) -> str:
        """The input at a place; empty where it is left out."""
        return self.node.input[place] if place < len(self.node.input) else ""

    def constant(self, place: int, option: str | None = None) -> npt.NDArray[Any] | None:
        """The value of an input that has to be known while reading, or of the older attribute."""
        self.known.add(place)
        if name := self.name(place):
            if name not in self.constants:
                raise self.refuse(f"input {name!r}, which is computed and not a constant,")
            return self.constants[name]
        if option is not None and option in self.options:
            return np.asarray(self.options[option])
        return None

    def integers(self, place: int, option: str | None = None) -> list[int] | None:
        """As `constant`, in whole numbers."""
        value = self.constant(place, option)
        return None if value is None else [int(v) for v in value.reshape(-1)]

    def rank(self, place: int = 0) -> int:
        """How many axes an input has."""
        shape = self.shapes.get(self.name(place))
        if shape is None:
            raise self.refuse("an input of unknown shape")
        return len(shape)


class Handlers(dict[str, Callable[[NodeReading], Function]]):
    """Functions that read nodes, by operation."""

    def of(self, *names: str) -> Callable[[Callable[[NodeReading], Function]], Any]:
        """Decorates the function that reads nodes of these operations."""

        def register(handler: Callable[[NodeReading], Function]) -> Any:
            self.update(dict.fromkeys(names, handler))
            return handler

        return register
