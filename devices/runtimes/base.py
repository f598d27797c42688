"""What every runtime has to offer, kept as small as a transport.

A runtime turns a model file into the graph that it really runs (`Runtime.compile`), and loads that
graph (`Runtime.load`) as a `CompiledModel` that can be timed, profiled and asked for its outputs.
Compilation and loading are apart because measuring interleaves many models: each is compiled once
and loaded again for every short visit, so that memory stays bounded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from devices.errors import AutospaceError, InvalidInputError, UnavailableError, UsageError
from devices.onnx_files import one_line
from devices.preemption import Run, chosen

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

__all__ = [
    "NOT_INSTALLED",
    "PRECISIONS",
    "CompiledGraph",
    "CompiledModel",
    "NodeTiming",
    "Runtime",
    "RuntimeSettings",
    "RuntimeStatus",
    "refusals",
]

PRECISIONS = ("fp32", "fp16", "int8")
"""Precisions that a setting may name; which of them work is the runtime's to say."""


NOT_INSTALLED = "not installed"
"""The reason that an install line cures."""


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """How a model is run; part of a device card's identity.

    Attributes:
        threads: worker threads inside one operation, at least 1.
        precision: one of `PRECISIONS`.
        batch: images in one run, at least 1; a model's symbolic batch dimension is set to it.

    Raises:
        UsageError: a value breaks its rule.
    """

    threads: int = 1
    precision: str = "fp32"
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("threads", "batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"{name} {value!r}: must be a whole number; give 1 or more.")
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"precision {self.precision!r}: unknown; choose one of {', '.join(PRECISIONS)}."
            )

    def to_json(self) -> dict[str, Any]:
        """The settings as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The settings from what `to_json` gave.

        Raises:
            InvalidInputError: a field is missing, unknown or breaks its rule.
        """
        try:
            return cls(**data)
        except (TypeError, UsageError) as error:
            raise InvalidInputError(
                f"runtime settings {data!r}: not readable; make the file again."
            ) from error


@dataclass(frozen=True, slots=True)
class RuntimeStatus:
    """Whether a runtime works on this machine, and what to do when it does not.

    Attributes:
        name: as the user writes it.
        usable: whether models can be run with it now.
        version: of the installed package, or None.
        reason: why it is not usable, or None.
        install: the command that would install it, or None where there is none.
        precisions: of `PRECISIONS`, those that it runs.
        per_op_times: whether it reports the time of each operation; if so, it also tells what is
            executed (`CompiledGraph.executed`).
        source: what it converts from.
        simulated: whether its times are computed instead of measured.
        sets_threads: whether the number of threads can be chosen.
    """

    name: str
    usable: bool
    version: str | None
    reason: str | None
    install: str | None
    precisions: tuple[str, ...]
    per_op_times: bool
    source: Literal["onnx", "torch"]
    simulated: bool = False
    sets_threads: bool = True

    def to_json(self) -> dict[str, Any]:
        """The status as a JSON object."""
        return {**asdict(self), "precisions": list(self.precisions)}


@dataclass(frozen=True, slots=True)
class CompiledGraph:
    """A model as the runtime really runs it, with fusions and layouts decided.

    Attributes:
        runtime: name of the runtime that compiled it.
        version: version of that runtime.
        data: the compiled graph in the runtime's own format (for ONNX Runtime: ONNX).
        inputs: name, shape and numpy type name of each input.
        outputs: names of the outputs.
        executed: what is executed, as ONNX: a node for each operation that is timed, named as
            `CompiledModel.profile` names it, over tensors of the original's names where they have
            the original's values; see docs/adr/0015-runtimes-that-say-less.md. None where the
            runtime does not tell.
    """

    runtime: str
    version: str
    data: bytes
    inputs: tuple[tuple[str, tuple[int, ...], str], ...]
    outputs: tuple[str, ...]
    executed: bytes | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class NodeTiming:
    """The times of one node of the compiled graph.

    Attributes:
        op: operation name, as the runtime calls it.
        samples_ms: one time for each profiled run.
    """

    op: str
    samples_ms: tuple[float, ...]


class CompiledModel(ABC):
    """A compiled graph, loaded and ready to run; a context manager that frees it.

    Attributes:
        preempted: how many of the times that `run` gave so far are of runs that lost their
            processor to another program; see `devices.preemption`.
    """

    preempted: int = 0

    def counted_ms(self, runs: Sequence[Run], count: int) -> list[float]:
        """The times that count, of the runs of one call of `run`; adds to `preempted`.

        Args:
            runs: as from `devices.preemption.timed_runs`.
            count: how many were asked for.

        Returns:
            Milliseconds, `count` values.
        """
        kept = [runs[place] for place in chosen(runs, count)]
        self.preempted += sum(run.preempted for run in kept)
        return [run.latency_ms for run in kept]

    @abstractmethod
    def run(self, count: int) -> list[float]:
        """Runs the model and times each run, with nothing else switched on.

        Args:
            count: how many runs.

        Returns:
            Milliseconds of each run, `count` values.
        """

    @abstractmethod
    def profile(self, count: int) -> dict[str, NodeTiming]:
        """Runs the model with the runtime's own profiler on, and switches that off again.

        Args:
            count: how many runs, after some that warm up and are dropped.

        Returns:
            Times of each node of the compiled graph by its name, in the order of execution.

        Raises:
            UnavailableError: the runtime has no times of single operations.
        """

    @abstractmethod
    def infer(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
        """Runs the model once on given inputs.

        Args:
            inputs: one array for each input, of the input's shape and type.

        Returns:
            The outputs in the model's order.

        Raises:
            InvalidInputError: an input is missing or does not fit.
        """

    @abstractmethod
    def close(self) -> None:
        """Frees what the model holds; it cannot be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Runtime(ABC):
    """One way to run models on this machine.

    Attributes:
        name: as the user writes it.
        source: what it converts from.
        simulated: whether its times are computed instead of measured; whatever is made with it is
            marked so.
        slow_to_compile: whether compiling takes seconds, so that tables of hundreds of networks are
            made without it where a card's fusion rules allow.
        python_parts: modules that running needs from Python alone; their memory does not count as
            the model's.
    """

    name: ClassVar[str]
    python_parts: ClassVar[tuple[str, ...]] = ()
    source: ClassVar[Literal["onnx", "torch"]] = "onnx"
    simulated: ClassVar[bool] = False
    slow_to_compile: ClassVar[bool] = False

    @abstractmethod
    def status(self) -> RuntimeStatus:
        """Whether it works here; never raises."""

    @abstractmethod
    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        """Optimises a model for this machine.

        Args:
            model: a serialised ONNX model.
            settings: threads, precision, batch.

        Returns:
            The graph that will really run.

        Raises:
            InvalidInputError: the model is not readable, or the runtime refuses it.
            UnavailableError: the runtime or the precision is not available here.
        """

    def rewritten(self, model: onnx.ModelProto, settings: RuntimeSettings) -> onnx.ModelProto:
        """The same model in operations that the runtime has fast kernels for.

        `compile` begins with it, and whoever reads kernels off a compiled graph compares it with
        this model. Rewriting again changes nothing.

        Args:
            model: with fixed shapes; left alone.
            settings: threads, precision, batch.

        Raises:
            InvalidInputError: its shapes are wrong, or it is too large to copy.
        """
        return model

    def device_state(self) -> Mapping[str, Any] | None:
        """Clocks and temperature of what it runs on at this moment, where they can be told.

        Returns:
            Numbers and texts by name, such as ``sm_mhz``; None where nothing tells them.
        """
        return None

    def quantise(
        self,
        model: bytes,
        settings: RuntimeSettings,
        calibration: Mapping[str, npt.NDArray[np.generic]],
    ) -> CompiledGraph:
        """Compiles a 32-bit model to eight bits, with scales found on inputs.

        Args:
            model: a serialised ONNX model.
            settings: as for `compile`, with precision "int8".
            calibration: inputs of several runs, by name, of shape `(runs, *shape of the input)`.

        Raises:
            InvalidInputError: the model is refused, or the inputs do not fit it.
            UnavailableError: the runtime quantises no model itself, or is not available here.
        """
        raise UnavailableError(
            f"runtime {self.name!r}: quantises no model itself; export it as ONNX in int8."
        )

    @abstractmethod
    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> CompiledModel:
        """Makes a compiled graph ready to run, with random inputs from a fixed seed.

        Args:
            compiled: from `compile`.
            settings: as it was compiled with.
            profiling: whether `CompiledModel.profile` will be called; the runtime's profiler may
                then be on until it was, so that one loading serves both.

        Raises:
            InvalidInputError: the graph was compiled by another runtime or version.
            UnavailableError: the runtime is not available here.
        """

    def files(self, compiled: CompiledGraph) -> dict[str, bytes]:
        """What a program for this runtime ships, from a compiled graph: content by file ending.

        Raises:
            UnavailableError: the runtime has no files of its own.
        """
        raise UnavailableError(
            f"runtime {self.name!r}: has no files of its own; export the model as ONNX."
        )

    def status_by_packages(
        self,
        *packages: str,
        install: str,
        precisions: tuple[str, ...] = ("fp32",),
        per_op_times: bool = False,
    ) -> RuntimeStatus:
        """The status of a runtime that is usable where its packages are; imports none of them.

        Args:
            packages: all have to be installed; the version is the first one's.
            install: the command that installs them.
            precisions: of `PRECISIONS`, those that it runs.
            per_op_times: whether it reports the time of each operation.
        """
        try:
            version, *_ = [package_version(package) for package in packages]
        except PackageNotFoundError:
            version = None
        return RuntimeStatus(
            name=self.name,
            usable=version is not None,
            version=version,
            reason=None if version else NOT_INSTALLED,
            install=None if version else install,
            precisions=precisions,
            per_op_times=per_op_times,
            source=self.source,
        )

    def require(self, settings: RuntimeSettings | None = None) -> RuntimeStatus:
        """The status, when the runtime can be used as asked.

        Raises:
            UnavailableError: the runtime is not usable, or does not run the precision.
        """
        status = self.status()
        if not status.usable:
            installable = (
                status.install and status.version is None and status.reason == NOT_INSTALLED
            )
            hint = f"install it with: {status.install}" if installable else "choose another"
            raise UnavailableError(f"runtime {self.name!r}: {status.reason}; {hint}.")
        if settings is not None and settings.precision not in status.precisions:
            raise UnavailableError(
                f"precision {settings.precision!r}: runtime {self.name!r} runs "
                f"{', '.join(status.precisions)} here; choose one of those."
            )
        return status

    def check_compiled(self, compiled: CompiledGraph) -> None:
        """Refuses a graph that this runtime, in this version, did not compile.

        Raises:
            InvalidInputError: it is another's.
        """
        version = self.status().version
        if (compiled.runtime, compiled.version) != (self.name, version):
            raise InvalidInputError(
                f"compiled graph of {compiled.runtime} {compiled.version}: cannot be loaded by "
                f"{self.name} {version}; compile the model again."
            )


@contextmanager
def refusals(subject: str, runtime: str) -> Iterator[None]:
    """Whatever a runtime's own code raises becomes one line; its exceptions share no base class.

    Args:
        subject: what was being worked on, as in "model".
        runtime: its name.
    """
    try:
        yield
    except AutospaceError:
        raise
    except Exception as error:
        raise InvalidInputError(f"{subject}: {runtime} refused ({one_line(error)}).") from error
