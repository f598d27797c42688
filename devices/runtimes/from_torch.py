"""What runtimes that convert from PyTorch have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from devices.onnx_files import (
    fix_shapes,
    input_specs,
    name_nodes,
    ordered_inputs,
    parse_onnx,
    random_inputs,
)
from devices.runtimes.base import CompiledGraph, Runtime, RuntimeSettings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

    Calibration = Sequence[Sequence[npt.NDArray[np.generic]]]

__all__ = ["Converted", "FromTorch"]

_RANDOM_RUNS = 4
"""Runs on random inputs where none are given: scales do not change times."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What a converter made.

    Attributes:
        data: the compiled graph in the runtime's own format.
        executed: see `CompiledGraph.executed`.
    """

    data: bytes
    executed: bytes | None = None


class FromTorch(Runtime):
    """A runtime whose converter takes a PyTorch module."""

    source: ClassVar[Literal["onnx", "torch"]] = "torch"

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        """Converts a model; in eight bits with scales found on random inputs, see `quantise`.

        Raises:
            InvalidInputError: the model is unreadable, has dynamic dimensions, or is refused.
            UnavailableError: the package or the precision is not available.
        """
        return self._compiled(model, settings, None)

    def quantise(
        self,
        model: bytes,
        settings: RuntimeSettings,
        calibration: Mapping[str, npt.NDArray[np.generic]],
    ) -> CompiledGraph:
        """Converts a model to eight bits; see the base class."""
        return self._compiled(model, settings, calibration)

    @abstractmethod
    def converted(
        self, model: onnx.ModelProto, settings: RuntimeSettings, calibration: Calibration
    ) -> Converted:
        """The compiled graph of a model.

        Args:
            model: rewritten, with fixed shapes and a name on every node.
            settings: threads, precision, batch.
            calibration: inputs of some runs, in the model's order, to find scales on; there are
                none but for eight bits.

        Raises:
            InvalidInputError: it is refused.
        """

    def _compiled(
        self,
        model: bytes,
        settings: RuntimeSettings,
        calibration: Mapping[str, npt.NDArray[np.generic]] | None,
    ) -> CompiledGraph:
        status = self.require(settings)
        proto = self.rewritten(fix_shapes(parse_onnx(model), settings.batch), settings)
        proto = name_nodes(proto)
        inputs = input_specs(proto)
        runs: list[list[npt.NDArray[np.generic]]] = []
        if settings.precision == "int8":
            given = [random_inputs(inputs, seed) for seed in range(_RANDOM_RUNS)]
            if calibration is not None:
                count = min((len(array) for array in calibration.values()), default=0)
                given = [
                    {k: array[run] for k, array in calibration.items()} for run in range(count)
                ]
            runs = [list(ordered_inputs(inputs, one)) for one in given]
        made = self.converted(proto, settings, runs)
        return CompiledGraph(
            runtime=self.name,
            version=status.version or "",
            data=made.data,
            inputs=inputs,
            outputs=tuple(value.name for value in proto.graph.output),
            executed=made.executed,
        )
