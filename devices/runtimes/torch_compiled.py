"""PyTorch's compiler as a runtime, on the processor.

The compiler behind `torch.compile` (Inductor) writes C++ for a network and has it compiled. Here it
does so ahead of time (`torch.export`, then AOTInductor), because a network that is measured is
loaded again for every short visit: what `torch.compile` makes would be gone with the process, this
is one file. Compiling takes tens of seconds a network and needs a C++ compiler, so a card has few
probes. It happens in a child process (`devices.contained`): offline, with a time limit, and
with the compiler's files in a folder that is removed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from devices.contained import ContainedRuntime
from devices.onnx_files import fix_shapes, input_specs, name_nodes, parse_onnx, random_inputs
from devices.runtimes.base import (
    NOT_INSTALLED,
    CompiledGraph,
    CompiledModel,
    RuntimeSettings,
    RuntimeStatus,
    refusals,
)
from devices.runtimes.torch import TorchModel, TorchRuntime

__all__ = ["CompiledTorchModel", "TorchCompiled", "TorchCompiledHere"]

_FILE = "network.pt2"


class TorchCompiledHere(TorchRuntime):
    """The compiler in this process; `TorchCompiled` is the same in a child."""

    name: ClassVar[str] = "torch-compiled"

    def status(self) -> RuntimeStatus:
        """Usable where PyTorch and a C++ compiler are; imports neither."""
        own = super().status()
        compiler = os.environ.get("CXX", "g++")  # as Inductor looks for it
        if own.reason == NOT_INSTALLED or shutil.which(compiler):
            return own
        return self._status(None, f"no C++ compiler {compiler!r} here (or name one in CXX)")

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        """Compiles the network for as many threads as the settings say.

        Raises:
            InvalidInputError: the model is unreadable, has dynamic dimensions, or an operation that
                is not known; or the compiler refuses it.
            UnavailableError: the package, the C++ compiler or the precision is not available.
        """
        import torch

        from devices.onnx_to_torch import torch_module

        status = self.require(settings)
        proto = name_nodes(fix_shapes(parse_onnx(model), settings.batch))
        module, inputs = torch_module(proto), input_specs(proto)
        arrays = random_inputs(inputs)
        given = tuple(torch.from_numpy(arrays[name]) for name, _, _ in inputs)
        with (
            refusals("model", "torch's compiler"),
            _threads(settings.threads),
            tempfile.TemporaryDirectory(prefix="autospace-torch-") as folder,
        ):
            file = Path(folder) / _FILE
            with torch.no_grad():
                _compiled_into(torch.export.export(module, given), file)
            data = file.read_bytes()
        return CompiledGraph(
            runtime=self.name,
            version=status.version or "",
            data=data,
            inputs=inputs,
            outputs=tuple(value.name for value in proto.graph.output),
        )

    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> CompiledModel:
        """Loads what was compiled; see the base class."""
        self.require(settings)
        self.check_compiled(compiled)
        return CompiledTorchModel(compiled, settings)

    def files(self, compiled: CompiledGraph) -> dict[str, bytes]:
        """One package, for `torch._inductor.aoti_load_package` and its C++ counterpart."""
        return {".pt2": compiled.data}


class TorchCompiled(ContainedRuntime):
    """PyTorch's compiler in a child process."""

    name: ClassVar[str] = "torch-compiled"
    inner: ClassVar[str] = "devices.runtimes.torch_compiled:TorchCompiledHere"


class CompiledTorchModel(TorchModel):
    """A compiled network with random inputs on the processor."""

    def _built(self, compiled: CompiledGraph) -> Any:
        from torch._inductor import aoti_load_package

        with (
            refusals("model", "torch"),
            tempfile.TemporaryDirectory(prefix="autospace-torch-") as folder,
        ):
            file = Path(folder) / _FILE
            file.write_bytes(compiled.data)
            return aoti_load_package(str(file))


def _compiled_into(program: Any, file: Path) -> None:
    """Compiles an exported program; the file appears."""
    from torch._inductor import aoti_compile_and_package, config

    with config.patch(compile_threads=1):  # its pool of compiling processes would outlive the call
        aoti_compile_and_package(program, package_path=str(file))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """The compiler writes the number of threads into its loops: that of the moment."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
