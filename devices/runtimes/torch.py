"""PyTorch itself as a runtime: eager on the processor, CUDA graphs on an NVIDIA GPU.

The ONNX model becomes a module (`devices.onnx_to_torch`). Each operation is a call of its own and
nothing is fused, so on the processor this says what a network costs where PyTorch is what runs it.
PyTorch tells no times of single operations here: cards work them out from whole networks.

On a GPU runs are timed between two CUDA events, after warm-up, as replays of a CUDA graph where
the network can be captured, so that launching kernels from Python is not what is measured; 32-bit
arithmetic is kept at 32 bits (no TF32). The GPU's name is part of the version, so that a card of
one GPU is refused on another, and clocks and temperature are kept in the card (`devices.gpu`). What
has run on one: docs/torch.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ctypes.util import find_library
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any, ClassVar

from devices.errors import InvalidInputError, UnavailableError
from devices.gpu import gpu_state
from devices.onnx_files import (
    fix_shapes,
    input_specs,
    name_nodes,
    one_line,
    ordered_inputs,
    parse_onnx,
    random_inputs,
    to_bytes,
)
from devices.preemption import timed_runs
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
    import torch

__all__ = ["TorchCudaModel", "TorchCudaRuntime", "TorchModel", "TorchRuntime"]

_WARM_UP = 3
_INSTALL = "pip install torch"


class TorchRuntime(Runtime):
    """PyTorch's eager mode on this machine's processor."""

    name: ClassVar[str] = "torch"

    def status(self) -> RuntimeStatus:
        """Usable when the package is installed; importing it is left for later."""
        try:
            version: str | None = package_version("torch")
        except PackageNotFoundError:
            version = None
        return self._status(version, None if version else NOT_INSTALLED)

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        """Checks that the model can be turned into a module, and keeps it as ONNX.

        Raises:
            InvalidInputError: the model is unreadable, has dynamic dimensions, or an operation that
                is not known; the message names its node.
            UnavailableError: the package or the precision is not available.
        """
        from devices.onnx_to_torch import torch_module

        status = self.require(settings)
        proto = name_nodes(fix_shapes(parse_onnx(model), settings.batch))
        torch_module(proto)
        return CompiledGraph(
            runtime=self.name,
            version=status.version or "",
            data=to_bytes(proto),
            inputs=input_specs(proto),
            outputs=tuple(value.name for value in proto.graph.output),
        )

    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> CompiledModel:
        """Builds the module.

        Raises:
            InvalidInputError: the graph is another runtime's, or is refused.
            UnavailableError: the package is not installed.
        """
        self.require(settings)
        self.check_compiled(compiled)
        return TorchModel(compiled, settings)

    def _status(self, version: str | None, reason: str | None) -> RuntimeStatus:
        return RuntimeStatus(
            name=self.name,
            usable=reason is None,
            version=version if reason is None else None,
            reason=reason,
            install=_INSTALL if reason == NOT_INSTALLED else None,
            precisions=("fp32",),
            per_op_times=False,
            source=self.source,
        )


class TorchCudaRuntime(TorchRuntime):
    """PyTorch on the first NVIDIA GPU that it sees."""

    name: ClassVar[str] = "torch-cuda"

    def status(self) -> RuntimeStatus:
        """Usable when PyTorch sees a GPU; without a driver it is not even asked."""
        own = super().status()
        if not own.usable:
            return own
        if find_library("cuda") is None:
            return self._status(None, "no NVIDIA driver here")
        import torch

        if not torch.cuda.is_available():
            return self._status(None, "PyTorch sees no NVIDIA GPU")
        return self._status(f"{torch.__version__} on {torch.cuda.get_device_name(0)}", None)

    def device_state(self) -> Mapping[str, Any] | None:
        """The GPU's clocks and temperature; see the base class."""
        return gpu_state()

    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> CompiledModel:
        """Builds the module on the GPU; see the base class."""
        self.require(settings)
        self.check_compiled(compiled)
        return TorchCudaModel(compiled, settings)


class TorchModel(CompiledModel):
    """A module with random inputs on the processor."""

    device: ClassVar[str] = "cpu"

    def __init__(self, compiled: CompiledGraph, settings: RuntimeSettings) -> None:
        """Builds the module.

        Args:
            compiled: from `TorchRuntime.compile`.
            settings: threads, precision, batch.
        """
        import torch

        self._settings = settings
        self._inputs = compiled.inputs
        self._module: Any = self._built(compiled)
        arrays = random_inputs(compiled.inputs)
        self._given = [torch.from_numpy(arrays[n]).to(self.device) for n, _, _ in compiled.inputs]

    def run(self, count: int) -> list[float]:
        """Times `count` runs; see the base class."""
        module, given = self._open(), self._given
        with self._ready():
            runs = timed_runs(lambda: module(*given), count, self._settings.threads)
        return self.counted_ms(runs, count)

    def profile(self, count: int) -> dict[str, NodeTiming]:
        """Refuses; see the base class.

        Raises:
            UnavailableError: always.
        """
        raise UnavailableError("runtime 'torch': tells no times of single operations.")

    def infer(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
        """Runs once; see the base class."""
        import numpy as np
        import torch

        module = self._open()
        given = [
            torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
            for array in ordered_inputs(self._inputs, inputs)
        ]
        with self._ready():
            found = module(*given)
        outputs = found if isinstance(found, tuple | list) else (found,)
        return [np.asarray(output.cpu().numpy()) for output in outputs]

    def close(self) -> None:
        """Frees the module."""
        self._module = None

    def _built(self, compiled: CompiledGraph) -> Any:
        """What is called with the inputs."""
        from devices.onnx_to_torch import torch_module

        return torch_module(parse_onnx(compiled.data)).to(self.device)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """Without gradients, with as many threads as asked for; both are the process's own."""
        import torch

        threads = torch.get_num_threads()
        if threads != self._settings.threads:
            torch.set_num_threads(self._settings.threads)
        try:
            with torch.inference_mode():
                yield
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise InvalidInputError(f"model: torch refused ({one_line(error)}).") from error
        finally:
            if threads != self._settings.threads:
                torch.set_num_threads(threads)

    def _open(self) -> Any:
        if self._module is None:
            raise UnavailableError("model: already closed; load it again.")
        return self._module


class TorchCudaModel(TorchModel):
    """A module on the GPU, captured as a CUDA graph at its first run."""

    device: ClassVar[str] = "cuda"

    def __init__(self, compiled: CompiledGraph, settings: RuntimeSettings) -> None:
        """Builds the module; see the base class."""
        super().__init__(compiled, settings)
        self._once: Callable[[], Any] | None = None

    def run(self, count: int) -> list[float]:
        """Times `count` runs by events on the GPU; see the base class."""
        import torch

        with self._ready(), _exact():
            if self._once is None:
                self._once = self._captured()
            times = []
            for _ in range(count):
                before = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                after = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                before.record()
                self._once()
                after.record()
                after.synchronize()
                times.append(float(before.elapsed_time(after)))
        return times

    def infer(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
        """Runs once, in the arithmetic that is timed; see the base class."""
        with _exact():
            return super().infer(inputs)

    def _captured(self) -> Callable[[], Any]:
        """One run as a CUDA graph, warmed up; the module itself where it cannot be captured."""
        import torch

        module, given = self._open(), self._given
        aside: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                module(*given)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                module(*given)
        except RuntimeError:  # it waits for the GPU somewhere, or copies to the processor
            torch.cuda.synchronize()
            return lambda: module(*given)
        graph.replay()
        torch.cuda.synchronize()
        return graph.replay

    def close(self) -> None:
        """Frees the module and its graph."""
        self._once = None
        super().close()


@contextmanager
def _exact() -> Iterator[None]:
    """Without TF32, which keeps 10 of 23 bits of each factor; the process's settings come back."""
    import torch

    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = False
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
