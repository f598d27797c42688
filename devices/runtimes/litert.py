"""LiteRT (formerly TensorFlow Lite), Google's phone runtime, with XNNPACK on this machine.

It converts from PyTorch: `devices.onnx_to_torch` makes the module and litert-torch the file, which
is the compiled graph. Images go in with their channels last, as LiteRT's kernels want them and as a
phone's camera gives them, so that the file begins with its first layer and not with a transpose.
It tells no times of single operations from Python.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from devices.contained import ContainedRuntime
from devices.errors import UnavailableError
from devices.onnx_files import ordered_inputs, random_inputs
from devices.preemption import timed_runs
from devices.runtimes.base import (
    CompiledGraph,
    CompiledModel,
    NodeTiming,
    RuntimeSettings,
    RuntimeStatus,
    refusals,
)
from devices.runtimes.from_torch import FromTorch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from devices.onnx_files import InputSpec

__all__ = ["LiteRt", "LiteRtHere", "LiteRtModel"]

_CHANNELS_LAST = (0, 2, 3, 1)


class LiteRtHere(FromTorch):
    """LiteRT in this process; `LiteRt` is the same in a child."""

    name: ClassVar[str] = "litert"

    def status(self) -> RuntimeStatus:
        """Usable when runtime and converter are installed; importing them is left for later."""
        return self.status_by_packages(
            "ai-edge-litert", "litert-torch", install="pip install 'autospace[litert]'"
        )

    def converted(self, module: Any, inputs: tuple[InputSpec, ...]) -> bytes:
        """Converted by litert-torch; see the base class."""
        return _converted(module, inputs)

    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> LiteRtModel:
        """Loads the file.

        Raises:
            InvalidInputError: the graph is another runtime's, or is refused.
            UnavailableError: the package is not installed.
        """
        self.require(settings)
        self.check_compiled(compiled)
        return LiteRtModel(compiled, settings)

    def files(self, compiled: CompiledGraph) -> dict[str, bytes]:
        """One model file, whose images have their channels last."""
        return {".tflite": compiled.data}


class LiteRt(ContainedRuntime):
    """LiteRT in a child process, and its converter, which prints pages."""

    name: ClassVar[str] = "litert"
    source: ClassVar[Literal["onnx", "torch"]] = "torch"
    inner: ClassVar[str] = "devices.runtimes.litert:LiteRtHere"


class LiteRtModel(CompiledModel):
    """One interpreter."""

    def __init__(self, compiled: CompiledGraph, settings: RuntimeSettings) -> None:
        """Loads the file.

        Args:
            compiled: from `LiteRtHere.compile`.
            settings: threads, precision, batch.
        """
        self._compiled = compiled
        self._threads = settings.threads
        self._interpreter: Any = None
        with refusals("model", "litert"):
            from ai_edge_litert.interpreter import Interpreter

            self._interpreter = Interpreter(
                model_content=compiled.data, num_threads=settings.threads
            )
            self._interpreter.allocate_tensors()
            signature = self._interpreter.get_signature_list()["serving_default"]
            details = {
                detail["name"].rsplit(":", 1)[0].removeprefix("serving_default_"): detail["index"]
                for detail in self._interpreter.get_input_details()
            }
            # Arguments are called args_0, args_1, … in the module's order.
            ordered = sorted(signature["inputs"], key=lambda name: int(name.rsplit("_", 1)[1]))
            self._inputs = [details[name] for name in ordered]
            places = [d["index"] for d in self._interpreter.get_output_details()]
            self._outputs = places
            self._feed(random_inputs(compiled.inputs))

    def run(self, count: int) -> list[float]:
        """Times `count` runs; see the base class."""
        interpreter = self._open()
        with refusals("model", "litert"):
            runs = timed_runs(interpreter.invoke, count, self._threads)
        return self.counted_ms(runs, count)

    def profile(self, count: int) -> dict[str, NodeTiming]:
        """Refuses: LiteRT tells no times of single operations from Python.

        Raises:
            UnavailableError: always.
        """
        raise UnavailableError("runtime 'litert': has no times of operations; time whole runs.")

    def infer(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
        """Runs once; see the base class."""
        interpreter = self._open()
        with refusals(f"inputs {sorted(inputs)}", "litert"):
            self._feed(inputs)
            interpreter.invoke()
            return [interpreter.get_tensor(place) for place in self._outputs]

    def close(self) -> None:
        """Frees the interpreter."""
        self._interpreter = None

    def _feed(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> None:
        import numpy as np

        arrays = ordered_inputs(self._compiled.inputs, inputs)
        for place, array in zip(self._inputs, arrays, strict=True):
            laid = array.transpose(_CHANNELS_LAST) if array.ndim == 4 else array
            self._interpreter.set_tensor(place, np.ascontiguousarray(laid))

    def _open(self) -> Any:
        if self._interpreter is None:
            raise UnavailableError("model: already closed; load it again.")
        return self._interpreter


def _converted(module: Any, inputs: tuple[InputSpec, ...]) -> bytes:
    """The model file of a module, with the channels of its images last."""
    import tempfile
    from pathlib import Path

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import litert_torch

        examples, images = [], []
        for place, array in enumerate(random_inputs(inputs).values()):
            if array.ndim == 4:
                images.append(place)
                array = array.transpose(_CHANNELS_LAST)
            examples.append(torch.from_numpy(array.copy()))
        if images:
            module = litert_torch.to_channel_last_io(module, args=images)
        made = litert_torch.convert(module.eval(), tuple(examples))
        with tempfile.TemporaryDirectory(prefix="autospace-litert-") as folder:
            path = Path(folder, "model.tflite")
            made.export(str(path))
            return path.read_bytes()
