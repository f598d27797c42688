"""ExecuTorch, PyTorch's phone runtime, with XNNPACK on this machine's processor.

It converts from PyTorch: `devices.onnx_to_torch` makes the module, `torch.export` its graph, and
XNNPACK takes what it has kernels for; the rest runs in ExecuTorch's own, which are slow, as on a
phone. The compiled graph is the program file. The number of threads belongs to the process and is
set through a private call, for there is no other.

Times of single kernels come from its event trace (`devices.etdump`), and which of the model's nodes
they stand for from what XNNPACK was given (`devices.executorch_kernels`). Inside XNNPACK they are
whole microseconds: kernels that take less are not told apart.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from devices.contained import ContainedRuntime
from devices.errors import UnavailableError
from devices.kernel_trace import TraceEvent, kernel_timings
from devices.onnx_files import input_specs, ordered_inputs, random_inputs
from devices.preemption import timed_runs
from devices.runtimes.base import (
    PRECISIONS,
    CompiledGraph,
    CompiledModel,
    NodeTiming,
    RuntimeSettings,
    RuntimeStatus,
    refusals,
)
from devices.runtimes.from_torch import Converted, FromTorch
from devices.xnnpack import small_windows

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

    from devices.runtimes.from_torch import Calibration

__all__ = ["ExecuTorch", "ExecuTorchHere", "ExecuTorchModel"]

_WARM_UP = 3
"""Runs before those that a profile counts."""


class ExecuTorchHere(FromTorch):
    """ExecuTorch in this process; `ExecuTorch` is the same in a child."""

    name: ClassVar[str] = "executorch"
    python_parts: ClassVar[tuple[str, ...]] = ("executorch.extension.pybindings.portable_lib",)

    def status(self) -> RuntimeStatus:
        """Usable when the package is installed; importing it is left for later."""
        return self.status_by_packages(
            "executorch",
            install="pip install 'autospace[executorch]'",
            precisions=PRECISIONS,
            per_op_times=True,
        )

    def rewritten(self, model: onnx.ModelProto, settings: RuntimeSettings) -> onnx.ModelProto:
        """Large windows as XNNPACK has kernels for them."""
        return small_windows(model, settings)

    def converted(
        self, model: onnx.ModelProto, settings: RuntimeSettings, calibration: Calibration
    ) -> Converted:
        """Lowered to XNNPACK; see the base class."""
        return _lowered(model, settings.precision, calibration)

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
    slow_to_compile: ClassVar[bool] = True


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
        """Times each kernel in `count` runs of the program loaded anew; see the base class."""
        self._open()
        with _quiet(), refusals("model", "executorch"):
            tracer = _Tracer(self._compiled.data, self._feed)
            timed_runs(tracer.method.execute, _WARM_UP, self._threads)
            runs = timed_runs(tracer.method.execute, count, self._threads)
            traced = tracer.runs()[-len(runs) :]
        return kernel_timings(traced, runs, count)

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


class _Tracer:
    """A program that was loaded with its event trace on."""

    def __init__(self, data: bytes, feed: list[Any]) -> None:
        from executorch.extension.pybindings import portable_lib

        self._program = portable_lib._load_program_from_buffer(data, enable_etdump=True)
        if not self._program.has_etdump():
            raise UnavailableError(
                "runtime 'executorch': was built without its event trace; install it from PyPI."
            )
        self.method = self._program.load_method("forward")
        self.method.set_inputs(feed)

    def runs(self) -> tuple[tuple[TraceEvent, ...], ...]:
        """The kernels of each run so far; it cannot run again."""
        from devices.etdump import read_trace

        with tempfile.TemporaryDirectory(prefix="autospace-executorch-") as folder:
            path = Path(folder, "trace.etdp")
            self._program.write_etdump_result_to_file(str(path))
            return read_trace(path.read_bytes())


def _lowered(model: onnx.ModelProto, precision: str, calibration: Calibration) -> Converted:
    """The program file of a model, and the kernels that it executes."""
    import torch
    from torch.fx.traceback import preserve_node_meta

    from devices.executed_onnx import executed_onnx
    from devices.executorch_kernels import NODE_KEY, executed_operations
    from devices.onnx_to_torch import torch_module

    module: Any = torch_module(model).annotated(NODE_KEY)
    with _quiet(), refusals("model", "executorch"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
        from executorch.exir.passes import MemoryPlanningPass

        arrays = random_inputs(input_specs(model))
        examples = tuple(torch.from_numpy(array) for array in arrays.values())
        with preserve_node_meta():
            if precision == "fp16":
                module = _halved(module)
            elif precision == "int8":
                module = _quantised(module, examples, calibration)
            program = torch.export.export(module, examples)
        with _parts() as parts:
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        # Inputs with memory of their own keep their values from run to run.
        planning = MemoryPlanningPass(alloc_graph_input=False)
        config = ExecutorchBackendConfig(memory_planning_pass=planning)
        made = lowered.to_executorch(config=config)
        data = bytes(made.buffer)
        tracer = _Tracer(data, list(examples))
        tracer.method.execute()
        (run,) = tracer.runs()
        operations = executed_operations(model, made.exported_program(), parts, run)
        return Converted(data, executed_onnx(model, operations))


def _halved(module: Any) -> Any:
    """A module that computes in 16 bits; inputs and outputs keep 32."""
    import torch

    class Halved(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module.half()

        def forward(self, *inputs: torch.Tensor) -> Any:
            found = self.inner(*(x.half() if x.is_floating_point() else x for x in inputs))
            several = isinstance(found, tuple)
            outputs = tuple(
                y.float() if y.is_floating_point() else y for y in (found if several else (found,))
            )
            return outputs if several else outputs[0]

    return Halved()


def _quantised(module: Any, examples: tuple[Any, ...], calibration: Calibration) -> Any:
    """A module that computes in eight bits wherever XNNPACK can.

    Args:
        module: in 32 bits.
        examples: of its inputs.
        calibration: inputs of some runs.
    """
    import numpy as np
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    # Activations get a scale for each tensor, weights one for each channel.
    config = get_symmetric_quantization_config(is_per_channel=True)
    quantizer = XNNPACKQuantizer().set_global(config)
    prepared = prepare_pt2e(torch.export.export(module, examples).module(), quantizer)
    for run in calibration:
        prepared(*(torch.from_numpy(np.array(array)) for array in run))
    return convert_pt2e(prepared)


@contextmanager
def _parts() -> Iterator[dict[bytes, Any]]:
    """Collects what XNNPACK is given: its graphs, by their serialised form."""
    from executorch.backends.xnnpack import xnnpack_preprocess

    found: dict[bytes, Any] = {}
    serialize = xnnpack_preprocess.serialize_xnnpack_binary

    def collecting(graph: Any, constants: Any) -> Any:
        data = serialize(graph, constants)
        found[bytes(data)] = graph
        return data

    xnnpack_preprocess.serialize_xnnpack_binary = collecting
    try:
        yield found
    finally:
        xnnpack_preprocess.serialize_xnnpack_binary = serialize


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
