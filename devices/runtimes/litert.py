"""LiteRT (formerly TensorFlow Lite), Google's phone runtime, with XNNPACK on this machine.

It converts from PyTorch: `devices.onnx_to_torch` makes the module and litert-torch the file, which
is the compiled graph. Images go in with their channels last, as LiteRT's kernels want them and as a
phone's camera gives them, so that the file begins with its first layer and not with a transpose.
It tells no times of single operations from Python.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from devices.contained import ContainedRuntime
from devices.errors import AutospaceError, InvalidInputError, UnavailableError
from devices.onnx_files import fix_shapes, input_specs, one_line, parse_onnx, random_inputs
from devices.preemption import chosen, timed_runs
from devices.runtimes.base import (
    NOT_INSTALLED,
    CompiledGraph,
    CompiledModel,
    NodeTiming,
    Runtime,
    RuntimeSettings,
    RuntimeStatus,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["LiteRt", "LiteRtHere", "LiteRtModel"]

_CHANNELS_LAST = (0, 2, 3, 1)


class LiteRtHere(Runtime):
    """LiteRT in this process; `LiteRt` is the same in a child."""

    name: ClassVar[str] = "litert"
    source: ClassVar[Literal["onnx", "torch"]] = "torch"

    def status(self) -> RuntimeStatus:
        """Usable when runtime and converter are installed; importing them is left for later."""
        versions = {}
        for package in ("ai-edge-litert", "litert-torch"):
            try:
                versions[package] = package_version(package)
            except PackageNotFoundError:
                versions[package] = ""
        usable = all(versions.values())
        return RuntimeStatus(
            name=self.name,
            usable=usable,
            version=versions["ai-edge-litert"] if usable else None,
            reason=None if usable else NOT_INSTALLED,
            install=None if usable else "pip install 'autospace[litert]'",
            precisions=("fp32",),
            per_op_times=False,
            source=self.source,
        )

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        """Converts through PyTorch.

        Raises:
            InvalidInputError: the model is unreadable, has dynamic dimensions, or is refused.
            UnavailableError: the package or the precision is not available.
        """
        status = self.require(settings)
        proto = fix_shapes(parse_onnx(model), settings.batch)
        inputs = input_specs(proto)
        from devices.onnx_to_torch import torch_module

        module = torch_module(proto)
        with _refusals("model"):
            data = _converted(module, inputs)
        return CompiledGraph(
            runtime=self.name,
            version=status.version or "",
            data=data,
            inputs=inputs,
            outputs=tuple(value.name for value in proto.graph.output),
        )

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

    def status(self) -> RuntimeStatus:
        """See `LiteRtHere.status`."""
        return LiteRtHere().status()


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
        with _refusals("model"):
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
        with _refusals("model"):
            runs = timed_runs(interpreter.invoke, count, self._threads)
        kept = [runs[place] for place in chosen(runs, count)]
        self.preempted += sum(run.preempted for run in kept)
        return [run.latency_ms for run in kept]

    def profile(self, count: int) -> dict[str, NodeTiming]:
        """Refuses: LiteRT tells no times of single operations from Python.

        Raises:
            UnavailableError: always.
        """
        raise UnavailableError("runtime 'litert': has no times of operations; time whole runs.")

    def infer(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
        """Runs once; see the base class."""
        interpreter = self._open()
        with _refusals(f"inputs {sorted(inputs)}"):
            self._feed(inputs)
            interpreter.invoke()
            return [interpreter.get_tensor(place) for place in self._outputs]

    def close(self) -> None:
        """Frees the interpreter."""
        self._interpreter = None

    def _feed(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> None:
        import numpy as np

        specs = self._compiled.inputs
        for place, (name, shape, dtype) in zip(self._inputs, specs, strict=True):
            array = inputs.get(name)
            if array is None or array.shape != shape or array.dtype.name != dtype:
                given = "missing" if array is None else f"{array.dtype.name} {array.shape}"
                raise InvalidInputError(
                    f"inputs {sorted(inputs)}: {name!r} is {given}; give {dtype} {shape}."
                )
            laid = array.transpose(_CHANNELS_LAST) if len(shape) == 4 else array
            self._interpreter.set_tensor(place, np.ascontiguousarray(laid))

    def _open(self) -> Any:
        if self._interpreter is None:
            raise UnavailableError("model: already closed; load it again.")
        return self._interpreter


def _converted(module: Any, inputs: tuple[tuple[str, tuple[int, ...], str], ...]) -> bytes:
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


@contextmanager
def _refusals(subject: str) -> Iterator[None]:
    try:
        yield
    except AutospaceError:
        raise
    except Exception as error:  # the converter and the interpreter raise what they like
        raise InvalidInputError(f"{subject}: litert refused ({one_line(error)}).") from error
