"""ExecuTorch, PyTorch's phone runtime, with XNNPACK on this machine's processor.

It converts from PyTorch: `devices.onnx_to_torch` makes the module, `torch.export` its graph, and
XNNPACK takes what it has kernels for; the rest runs in ExecuTorch's own, which are slow, as on a
phone. The compiled graph is the program file. The number of threads belongs to the process and is
set through a private call, for there is no other.

Its event trace (ETDump) is not used: inside XNNPACK, where nearly all time goes, it counts whole
microseconds, so that most kernels of a small network take 0, and it names kernels without saying
which of the model's nodes they are. Kernel times come from whole networks instead.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

__all__ = ["ExecuTorch", "ExecuTorchHere", "ExecuTorchModel"]


class ExecuTorchHere(FromTorch):
    """ExecuTorch in this process; `ExecuTorch` is the same in a child."""

    name: ClassVar[str] = "executorch"
    python_parts: ClassVar[tuple[str, ...]] = ("executorch.extension.pybindings.portable_lib",)

    def status(self) -> RuntimeStatus:
        """Usable when the package is installed; importing it is left for later."""
        return self.status_by_packages("executorch", install="pip install 'autospace[executorch]'")

    def converted(self, module: Any, inputs: tuple[InputSpec, ...]) -> bytes:
        """Lowered to XNNPACK; see the base class."""
        return _lowered(module, inputs)

    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> ExecuTorchModel:
        """Loads the program.

        Raises:
            InvalidInputError: the graph is another runtime's, or is refused.
            UnavailableError: the package is not installed.
        """
        self.require(settings)
        self.check_compiled(compiled)
        return ExecuTorchModel(compiled, settings)

    def files(self, compiled: CompiledGraph) -> dict[str, bytes]:
        """One program file."""
        return {".pte": compiled.data}


class ExecuTorch(ContainedRuntime):
    """ExecuTorch in a child process, where a failed check inside it may abort."""

    name: ClassVar[str] = "executorch"
    source: ClassVar[Literal["onnx", "torch"]] = "torch"
    inner: ClassVar[str] = "devices.runtimes.executorch:ExecuTorchHere"


class ExecuTorchModel(CompiledModel):
    """One loaded program."""

    def __init__(self, compiled: CompiledGraph, settings: RuntimeSettings) -> None:
        """Loads it.

        Args:
            compiled: from `ExecuTorchHere.compile`.
            settings: threads, precision, batch.
        """
        self._compiled = compiled
        self._threads = settings.threads
        self._method: Any = None
        with _quiet(), refusals("model", "executorch"):
            from executorch.extension.pybindings import portable_lib

            if portable_lib._threadpool_get_thread_count() != settings.threads:
                portable_lib._unsafe_reset_threadpool(settings.threads)
            # The program reads the weights from these bytes, so they have to stay.
            self._program = portable_lib._load_program_from_buffer(compiled.data)
            self._method = self._program.load_method("forward")
            self._feed = self._tensors(random_inputs(compiled.inputs))
            self._method.set_inputs(self._feed)

    def run(self, count: int) -> list[float]:
        """Times `count` runs; see the base class."""
        method = self._open()
        with refusals("model", "executorch"):
            runs = timed_runs(method.execute, count, self._threads)
        return self.counted_ms(runs, count)

    def profile(self, count: int) -> dict[str, NodeTiming]:
        """Refuses: its times of single operations are not tied to the model's nodes here.

        Raises:
            UnavailableError: always.
        """
        raise UnavailableError(
            "runtime 'executorch': gives no times of operations here; time whole runs."
        )

    def infer(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
        """Runs once; see the base class."""
        method = self._open()
        tensors = self._tensors(inputs)
        with refusals(f"inputs {sorted(inputs)}", "executorch"):
            method.set_inputs(tensors)
            method.execute()
            found = [tensor.numpy() for tensor in method.get_outputs(clone_outputs=True)]
            method.set_inputs(self._feed)
        return found

    def close(self) -> None:
        """Frees the program."""
        self._method = self._program = None
        self._feed = []

    def _tensors(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[Any]:
        import numpy as np
        import torch

        arrays = ordered_inputs(self._compiled.inputs, inputs)
        return [torch.from_numpy(np.array(array)) for array in arrays]

    def _open(self) -> Any:
        if self._method is None:
            raise UnavailableError("model: already closed; load it again.")
        return self._method


def _lowered(module: Any, inputs: tuple[InputSpec, ...]) -> bytes:
    """The program file of a module."""
    import torch

    with _quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
        from executorch.exir.passes import MemoryPlanningPass

        examples = tuple(torch.from_numpy(array) for array in random_inputs(inputs).values())
        program = torch.export.export(module, examples)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        # Inputs with memory of their own keep their values from run to run.
        planning = MemoryPlanningPass(alloc_graph_input=False)
        config = ExecutorchBackendConfig(memory_planning_pass=planning)
        return bytes(lowered.to_executorch(config=config).buffer)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the package's chatter about what it could not load and does not need."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
