"""Runtimes that are known by name but that this version cannot use yet.

They are listed so that a person who asks for one learns in one line where it stands, instead of
reading "unknown".
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import ClassVar, NoReturn

from devices.errors import UnavailableError
from devices.runtimes.base import CompiledGraph, CompiledModel, Runtime, RuntimeSettings
from devices.runtimes.base import RuntimeStatus as Status

__all__ = ["PlannedRuntime", "TensorRt"]


class PlannedRuntime(Runtime):
    """A runtime without an implementation: it has a status, and refuses everything else."""

    package: ClassVar[str]
    per_op_times: ClassVar[bool] = True
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    extra: ClassVar[str | None] = None

    def status(self) -> Status:
        """Never usable; says whether the package at least is installed."""
        try:
            version: str | None = package_version(self.package)
        except PackageNotFoundError:
            version = None
        return Status(
            name=self.name,
            usable=False,
            version=version,
            reason="not supported by this version yet",
            install=f"pip install 'autospace[{self.extra}]'" if self.extra else None,
            precisions=self.precisions,
            per_op_times=self.per_op_times,
            source=self.source,
        )

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        """Refuses.

        Raises:
            UnavailableError: always.
        """
        self._refuse()

    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> CompiledModel:
        """Refuses.

        Raises:
            UnavailableError: always.
        """
        self._refuse()

    def _refuse(self) -> NoReturn:
        self.require()
        raise UnavailableError(f"runtime {self.name!r}: not supported yet; choose another.")


class TensorRt(PlannedRuntime):
    """NVIDIA's TensorRT."""

    name: ClassVar[str] = "tensorrt"
    package: ClassVar[str] = "tensorrt"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int8")
    extra: ClassVar[str | None] = "tensorrt"
