"""What runtimes that convert from PyTorch have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from devices.onnx_files import fix_shapes, input_specs, parse_onnx
from devices.runtimes.base import CompiledGraph, Runtime, RuntimeSettings, refusals

if TYPE_CHECKING:
    from devices.onnx_files import InputSpec

__all__ = ["FromTorch"]


class FromTorch(Runtime):
    """A runtime whose converter takes a PyTorch module."""

    source: ClassVar[Literal["onnx", "torch"]] = "torch"

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        """Makes a module of the ONNX model, and converts that.

        Raises:
            InvalidInputError: the model is unreadable, has dynamic dimensions, or is refused.
            UnavailableError: the package or the precision is not available.
        """
        from devices.onnx_to_torch import torch_module

        status = self.require(settings)
        proto = fix_shapes(parse_onnx(model), settings.batch)
        inputs = input_specs(proto)
        module = torch_module(proto)
        with refusals("model", self.name):
            data = self.converted(module, inputs)
        return CompiledGraph(
            runtime=self.name,
            version=status.version or "",
            data=data,
            inputs=inputs,
            outputs=tuple(value.name for value in proto.graph.output),
        )

    @abstractmethod
    def converted(self, module: Any, inputs: tuple[InputSpec, ...]) -> bytes:
        """The compiled graph of a module, in the runtime's own format.

        Args:
            module: `devices.onnx_to_torch.OnnxModule`.
            inputs: name, shape and numpy type name of each input.
        """
