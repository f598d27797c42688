"""A runtime served from a child process, so that what goes wrong there stays there.

Converters and compilers crash, hang, print, phone home and write beside the model. Here they do so
in a child: confined to a temporary folder and offline (`devices.confinement`), with a time limit
for every call. A crash or a hang becomes one line; the next call gets a new child, in which models
that were loaded before are loaded again, so that whoever measures a thousand models loses one.

Compiling and running have a child each. What runs is then not slowed down by what converting has
loaded, and a converter that crashes does not take the loaded models with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from devices import errors
from devices.confinement import confined_environment
from devices.errors import AutospaceError, InvalidInputError, UnavailableError
from devices.onnx_files import one_line
from devices.runtimes.base import (
    CompiledGraph,
    CompiledModel,
    NodeTiming,
    Runtime,
    RuntimeSettings,
    RuntimeStatus,
)
from devices.wire import (
    Closed,
    TimedOut,
    arrays_from,
    arrays_to,
    graph_from,
    graph_to,
    receive,
    send,
    timings_from,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

__all__ = ["Child", "ContainedModel", "ContainedRuntime", "served"]

START_LIMIT_S = 120.0
"""For starting a child and importing the runtime, on a slow and busy machine."""
COMPILE_LIMIT_S = 300.0
RUN_LIMIT_S = 120.0
"""For loading a model, or one call of `CompiledModel`: at most some tens of runs."""
_LOG_TAIL = 4096


class Child:
    """A child process that serves one runtime; started at the first call, and again after a crash.

    Args:
        target: the runtime to serve, as ``MODULE:ATTRIBUTE``.
        label: what messages call it.
        kernel: False leaves confining it to Python's audit hook.

    Attributes:
        generation: counts the processes so far; a model that was loaded in an earlier one is gone.
        means: by what means the child is confined, once one was started.
    """

    def __init__(self, target: str, label: str, *, kernel: bool = True) -> None:
        self.label = label
        self.generation = 0
        self.means: Mapping[str, str] = {}
        self._target = target
        self._kernel = kernel
        self._running: _Running | None = None

    def call(
        self, message: Mapping[str, Any], blobs: Sequence[bytes] = (), *, limit_s: float
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Asks the child.

        Args:
            message: the call and its arguments.
            blobs: raw bytes that go with it.
            limit_s: how long the answer may take.

        Returns:
            What `devices.contained_child` answers.

        Raises:
            AutospaceError: of the kind that the runtime raised there.
            InvalidInputError: the child crashed, hung, or raised something else.
        """
        running = self.start()
        doing = _DOING.get(str(message["call"]), "working")
        try:
            send(running.writing, message, blobs)
            reply, raw = receive(running.reading, limit_s)
        except TimedOut:
            self.close()
            raise InvalidInputError(
                f"model: {self.label} did not finish {doing} within {limit_s:g} s and was stopped; "
                "leave this model out, or use another runtime."
            ) from None
        except Closed:
            how = running.how_it_ended(f"while {doing}")
            self.close()
            raise InvalidInputError(
                f"model: {self.label} {how}; leave this model out, or use another runtime."
            ) from None
        except BaseException:  # Ctrl-C: an answer that comes late must not be taken for the next
            self.close()
            raise
        if "error" in reply:
            raise _error(reply, self.label, doing)
        return reply, raw

    def start(self) -> _Running:
        """The running process.

        Raises:
            UnavailableError: it does not start.
        """
        if self._running is not None and self._running.process.poll() is None:
            return self._running
        self.close()
        running = _Running(self._target, self._kernel)
        self._running = running
        self.generation += 1
        try:
            message, _ = receive(running.reading, START_LIMIT_S)
            self.means = dict(message["ready"])
        except (Closed, TimedOut, KeyError) as error:
            ended = isinstance(error, Closed)
            how = running.how_it_ended("") if ended else "did not answer"
            self.close()
            raise UnavailableError(
                f"{self.label}: cannot start; its process {how}; install the package again."
            ) from None
        except BaseException:
            self.close()
            raise
        return running

    @property
    def alive(self) -> bool:
        """Whether a process is there."""
        return self._running is not None and self._running.process.poll() is None

    def close(self) -> None:
        """Ends the process and removes its folder."""
        if self._running is not None:
            self._running.end()
            self._running = None


class _Running:
    """One process with its pipes and its folder."""

    def __init__(self, target: str, kernel: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="autospace-child-"))
        self.log = self.folder / "output.log"
        child_reads, self.writing = os.pipe()
        self.reading, child_writes = os.pipe()
        arguments = [target, str(child_reads), str(child_writes)]
        try:
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "devices.contained_child", *arguments]
                    + ([] if kernel else ["--no-kernel"]),
                    cwd=self.folder,
                    env=confined_environment(self.folder),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(child_reads, child_writes),
                    start_new_session=True,  # Ctrl-C is the parent's to handle
                )
        finally:
            os.close(child_reads)
            os.close(child_writes)
        self._end = weakref.finalize(
            self, _end, self.process, self.folder, (self.reading, self.writing)
        )

    def how_it_ended(self, doing: str) -> str:
        """What became of the process: ``crashed while running (SIGSEGV)``, and its last line."""
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return f"stopped answering {doing}".rstrip()
        last = ""
        with contextlib.suppress(OSError):
            lines = self.log.read_bytes()[-_LOG_TAIL:].decode(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "")
        said = f": {one_line(ValueError(last), 120)}" if last else ""
        if code < 0:
            return " ".join(f"crashed {doing} ({_signal_name(-code)}{said})".split())
        return " ".join(f"ended {doing} with exit code {code}{said}".split())

    def end(self) -> None:
        self._end()


def _end(process: subprocess.Popen[bytes], folder: Path, descriptors: tuple[int, int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    with contextlib.suppress(ProcessLookupError):  # converters that it started go with it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


class ContainedRuntime(Runtime):
    """A runtime whose work is done by another one in a child process.

    Attributes:
        inner: the runtime that does the work, as ``MODULE:ATTRIBUTE``; its `status` is asked here,
            so it must be cheap and safe.
        compile_limit_s: how long compiling may take.
        run_limit_s: how long loading, or one call of a model, may take.
    """

    inner: ClassVar[str]
    compile_limit_s: float = COMPILE_LIMIT_S
    run_limit_s: float = RUN_LIMIT_S

    def __init__(self) -> None:
        label = f"runtime {self.name!r}"
        self._compiling = Child(self.inner, label)
        self._running = Child(self.inner, label)

    def start_compiling(self) -> None:
        """Starts the child that compiles, if there is none; it ends with the thread that did so.

        Raises:
            UnavailableError: it does not start.
        """
        self._compiling.start()

    def status(self) -> RuntimeStatus:
        """That of the runtime that does the work."""
        return self.here().status()

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        """Compiles in a child; see the base class.

        Raises:
            InvalidInputError: the model is refused, or the child crashed or hung over it.
            UnavailableError: the runtime or the precision is not available here.
        """
        self.require(settings)
        message = {"call": "compile", "settings": settings.to_json()}
        reply, blobs = self._compiling.call(message, [model], limit_s=self.compile_limit_s)
        return graph_from(reply["graph"], blobs)

    def rewritten(self, model: onnx.ModelProto, settings: RuntimeSettings) -> onnx.ModelProto:
        """As the runtime that does the work."""
        return self.here().rewritten(model, settings)

    def quantise(
        self,
        model: bytes,
        settings: RuntimeSettings,
        calibration: Mapping[str, npt.NDArray[np.generic]],
    ) -> CompiledGraph:
        """Quantises in a child; see the base class."""
        self.require(settings)
        rows, arrays = arrays_to(calibration)
        message = {"call": "quantise", "settings": settings.to_json(), "arrays": rows}
        reply, blobs = self._compiling.call(message, [model, *arrays], limit_s=self.compile_limit_s)
        return graph_from(reply["graph"], blobs)

    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> ContainedModel:
        """Loads in a child; see the base class.

        Raises:
            InvalidInputError: the graph is another runtime's, or the child crashed or hung over it.
            UnavailableError: the runtime is not available here.
        """
        self.require(settings)
        self.check_compiled(compiled)
        return ContainedModel(self._running, compiled, settings, profiling, self.run_limit_s)

    def files(self, compiled: CompiledGraph) -> dict[str, bytes]:
        """See the base class."""
        return self.here().files(compiled)

    def here(self) -> Runtime:
        """The runtime that does the work, in this process; whatever it does is not contained."""
        return served(self.inner)

    def close(self) -> None:
        """Ends the children; they start again when they are needed."""
        self._compiling.close()
        self._running.close()


class ContainedModel(CompiledModel):
    """A model that is loaded in a child process."""

    def __init__(
        self,
        child: Child,
        compiled: CompiledGraph,
        settings: RuntimeSettings,
        profiling: bool,
        limit_s: float,
    ) -> None:
        """Loads it.

        Args:
            child: where.
            compiled: what.
            settings: threads, precision, batch.
            profiling: whether `profile` will be called.
            limit_s: how long one call may take.
        """
        self._child = child
        self._compiled: CompiledGraph | None = compiled
        self._settings = settings
        self._profiling = profiling
        self._limit_s = limit_s
        self._earlier = 0
        self._in_child = 0
        self._load(compiled)

    def run(self, count: int) -> list[float]:
        """Times `count` runs in the child; see the base class."""
        reply, _ = self._call({"call": "run", "count": count})
        self._in_child = int(reply["preempted"])
        self.preempted = self._earlier + self._in_child
        return [float(ms) for ms in reply["times_ms"]]

    def profile(self, count: int) -> dict[str, NodeTiming]:
        """Times each node in the child; see the base class."""
        reply, _ = self._call({"call": "profile", "count": count})
        return timings_from(reply["timings"])

    def infer(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
        """Runs once in the child; see the base class."""
        rows, blobs = arrays_to(inputs)
        reply, raw = self._call({"call": "infer", "arrays": rows}, blobs)
        return list(arrays_from(reply["arrays"], raw).values())

    def close(self) -> None:
        """Frees the model, if its child still lives."""
        if self._compiled is None:
            return
        self._compiled = None
        if self._child.generation == self._generation:
            with contextlib.suppress(AutospaceError):
                self._child.call({"call": "close", "model": self._number}, limit_s=self._limit_s)

    def _load(self, compiled: CompiledGraph) -> None:
        fields, blobs = graph_to(compiled)
        message = {
            "call": "load",
            "graph": fields,
            "settings": self._settings.to_json(),
            "profiling": self._profiling,
        }
        reply, _ = self._child.call(message, blobs, limit_s=self._limit_s)
        self._number = int(reply["model"])
        self._generation = self._child.generation
        self._earlier, self._in_child = self._earlier + self._in_child, 0

    def _call(
        self, message: dict[str, Any], blobs: Sequence[bytes] = ()
    ) -> tuple[dict[str, Any], list[bytes]]:
        if self._compiled is None:
            raise UnavailableError("model: already closed; load it again.")
        self._child.start()
        if self._child.generation != self._generation:  # another model took that process with it
            self._load(self._compiled)
        message["model"] = self._number
        return self._child.call(message, blobs, limit_s=self._limit_s)


def served(target: str) -> Runtime:
    """The runtime of a target, ``MODULE:ATTRIBUTE``."""
    module, attribute = target.split(":")
    made: Runtime = getattr(import_module(module), attribute)()
    return made


_DOING = {
    "compile": "compiling",
    "quantise": "quantising",
    "load": "loading",
    "run": "running",
    "profile": "profiling",
    "infer": "running",
    "close": "closing",
}


def _error(reply: Mapping[str, Any], label: str, doing: str) -> AutospaceError:
    text = one_line(ValueError(str(reply.get("text", ""))), 400)
    if reply["error"] in errors.__all__:
        kind: type[AutospaceError] = getattr(errors, reply["error"])
        return kind(text)
    return InvalidInputError(f"model: {label} failed while {doing} ({text}).")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
