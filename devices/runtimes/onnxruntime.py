"""ONNX Runtime on this machine's processor.

The graph is optimised once, at the highest level, and written out by the runtime itself
(`optimized_model_filepath`). Every later load takes that graph with all optimisation switched off:
it runs equally fast (the fusions are in the file), in the order of the file, and loads quicker.
Times of single nodes come from the runtime's own profiler (`enable_profiling`), whole milliseconds
from a clock around `run`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from devices.errors import InvalidInputError, UnavailableError
from devices.onnx_files import (
    fix_shapes,
    input_specs,
    name_nodes,
    one_line,
    parse_onnx,
    random_inputs,
    to_bytes,
)
from devices.onnx_order import depth_first
from devices.preemption import Run, chosen, timed_runs, without_waiting
from devices.runtimes.base import (
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
    import onnx

__all__ = ["OnnxRuntime", "OnnxRuntimeModel", "ort_refusals", "plainly_fused", "session_options"]

_PROVIDERS = ("CPUExecutionProvider",)
_PROFILE_WARM_UP = 3
"""The second run lays out the memory that all later ones use: it took up to 2.4 times as long."""
_FATAL_ONLY = 4
_KERNEL_TIME = "_kernel_time"
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE = re.compile(r"^/\S+:\d+ .*?\) (?=[A-Z])")
_OPSET = re.compile(r"Opset (\d+) is under development.* for domain (\S+) is till opset (\d+)")
_ADVICE = {
    "model IR version": "save it again with an older onnx package",
    "No Op registered": "replace that operation, or export with another opset",
    "is not a registered function": "replace that operation",
    "is not a graph input": "export it again",
    "No opset import": "export it again",
    "Protobuf serialization failed": "free some space for temporary files, or set TMPDIR",
    "Type 'tensor(": "export it with float32",
    "Invalid tensor data type": "export it again",
}


class OnnxRuntime(Runtime):
    """ONNX Runtime with its CPU provider."""

    name: ClassVar[str] = "onnxruntime"

    def status(self) -> RuntimeStatus:
        """Usable when the package is installed; importing it is left for later."""
        found = [
            self.status_by_packages(package, install="pip install onnxruntime", per_op_times=True)
            for package in ("onnxruntime", "onnxruntime-gpu")  # either has the CPU provider
        ]
        return next((status for status in found if status.usable), found[0])

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        """Optimises with `ORT_ENABLE_ALL` and reads back the graph that the runtime wrote.

        Raises:
            InvalidInputError: the model is unreadable, has dynamic dimensions, or is refused.
            UnavailableError: the package or the precision is not available.
        """
        status = self.require(settings)
        proto = name_nodes(fix_shapes(parse_onnx(model), settings.batch))
        data, outputs = _optimised(proto, settings, "ORT_ENABLE_ALL")
        return CompiledGraph(
            runtime=self.name,
            version=status.version or "",
            data=data,
            inputs=input_specs(proto),
            outputs=outputs,
            executed=data,
        )

    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> OnnxRuntimeModel:
        """Loads the optimised graph as it is, without optimising again.

        Raises:
            InvalidInputError: the graph is another runtime's, or is refused.
            UnavailableError: the package is not installed.
        """
        self.require(settings)
        self.check_compiled(compiled)
        return OnnxRuntimeModel(compiled, settings, profiling)


class OnnxRuntimeModel(CompiledModel):
    """One inference session.

    Its profiler can only be switched off, not on. A session whose profiler was ended runs as fast
    as one that never had any, within 1 %, and lies at the same place in memory as when its nodes
    were timed.
    """

    def __init__(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> None:
        """Opens the session.

        Args:
            compiled: from `OnnxRuntime.compile`.
            settings: threads, precision, batch.
            profiling: whether to begin with the profiler on.
        """
        self._compiled = compiled
        self._settings = settings
        self._feed = random_inputs(compiled.inputs)
        self._session: Any = None
        self._profile_folder: tempfile.TemporaryDirectory[str] | None = None
        self._runs = 0
        self._start(profiling)

    def run(self, count: int) -> list[float]:
        """Times `count` runs; see the base class."""
        session, feed = self._open(), self._feed
        with ort_refusals("model"):
            runs = timed_runs(lambda: session.run(None, feed), count, self._settings.threads)
        self._runs += len(runs)
        return self.counted_ms(runs, count)

    def profile(self, count: int) -> dict[str, NodeTiming]:
        """Times each node in `count` runs; see the base class."""
        self._open()
        if self._profile_folder is None:
            self._start(profiling=True)
        session, feed, threads = self._open(), self._feed, self._settings.threads
        with ort_refusals("model"):
            while self._runs < _PROFILE_WARM_UP:
                session.run(None, feed)
                self._runs += 1
            runs = timed_runs(lambda: session.run(None, feed), count, threads)
        self._runs += len(runs)
        events = json.loads(Path(session.end_profiling()).read_bytes())
        self._forget_profile()
        return _node_timings(events, runs, count)

    def infer(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
        """Runs once; see the base class."""
        session = self._open()
        with ort_refusals(f"inputs {sorted(inputs)}"):
            return list(session.run(None, dict(inputs)))

    def close(self) -> None:
        """Frees the session."""
        if self._session is not None and self._profile_folder is not None:
            self._session.end_profiling()
        self._session = None
        self._forget_profile()

    def _start(self, profiling: bool) -> None:
        self._session = None
        options = _reload_options(self._settings)
        if profiling:
            self._profile_folder = tempfile.TemporaryDirectory(prefix="autospace-ort-")
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._profile_folder.name) / "profile")
        try:
            self._session = _session(self._compiled.data, options)
        except InvalidInputError:
            self._forget_profile()
            raise
        self._runs = 0

    def _forget_profile(self) -> None:
        if self._profile_folder is not None:
            self._profile_folder.cleanup()
            self._profile_folder = None

    def _open(self) -> Any:
        if self._session is None:
            raise UnavailableError("model: already closed; load it again.")
        return self._session


def plainly_fused(model: bytes, batch: int = 1) -> bytes:
    """A model with what every runtime fuses, fused: for runtimes that do not tell what they run.

    Constants are folded, batch norms are in their convolutions, and activations and written-out
    GELUs and layer norms are one node each or part of the convolution in front; residual adds and
    layouts, on which runtimes differ, are left as they are. (ONNX Runtime's "extended" level.)

    Args:
        model: a serialised ONNX model.
        batch: what a symbolic batch dimension is set to.

    Returns:
        A serialised ONNX model.

    Raises:
        InvalidInputError: the model is unreadable, has dynamic dimensions, or is refused.
    """
    proto = name_nodes(fix_shapes(parse_onnx(model), batch))
    return _optimised(proto, RuntimeSettings(batch=batch), "ORT_ENABLE_EXTENDED")[0]


def _optimised(
    proto: onnx.ModelProto, settings: RuntimeSettings, level: str
) -> tuple[bytes, tuple[str, ...]]:
    """The graph that the runtime writes at a level of optimisation, and its outputs' names."""
    with tempfile.TemporaryDirectory(prefix="autospace-ort-") as folder:
        target = Path(folder) / "optimised.onnx"
        options = session_options(settings)
        options.graph_optimization_level = getattr(_import().GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(target)
        session = _session(to_bytes(proto), options)
        outputs = tuple(value.name for value in session.get_outputs())
        del session
        return _settled(target.read_bytes()), outputs


def _import() -> Any:
    import onnxruntime

    return onnxruntime


def session_options(settings: RuntimeSettings) -> Any:
    """Options of a session that all of this runtime's kinds share; imports the package."""
    ort = _import()
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Idle workers of one session would otherwise spin on the cores that the next one is timed on.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _reload_options(settings: RuntimeSettings) -> Any:
    options = session_options(settings)
    options.graph_optimization_level = _import().GraphOptimizationLevel.ORT_DISABLE_ALL
    # As in the file. By default it would run the branches of a graph the other way round.
    options.execution_order = _import().ExecutionOrder.PRIORITY_BASED
    return options


def _session(model: bytes, options: Any) -> Any:
    with ort_refusals("model"):
        return _import().InferenceSession(model, options, providers=list(_PROVIDERS))


@contextmanager
def ort_refusals(subject: str) -> Iterator[None]:
    """Turns what the runtime raises into one line; a wrong shape shows only when it runs."""
    try:
        yield
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise InvalidInputError(f"{subject}: onnxruntime refused ({_said(error)}).") from error


def _said(error: BaseException) -> str:
    """What the runtime says, without its prefix and place in its source, and what to do."""
    words = " ".join(str(error).split())
    text = _SOURCE.sub("", _PREFIX.sub("", words))
    newer = _OPSET.search(text)
    if newer is not None:
        own, domain, known = newer.groups()
        return f"opset {own} of {domain} is newer than its {known}; export with opset {known}"
    for sign, advice in _ADVICE.items():
        if sign in text:
            return f"{one_line(ValueError(text)).rstrip('.')}; {advice}"
    return one_line(ValueError(text) if text else error)


def _settled(data: bytes) -> bytes:
    """A graph that the runtime wrote, with unique names of nodes, the same ones every time.

    So is the order; see `devices.onnx_order`.
    """
    proto = parse_onnx(data)
    for node in proto.graph.node:
        if node.op_type == "ReorderOutput":
            node.name = f"{node.output[0]}/{node.op_type}"
    nodes = depth_first(proto.graph)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return to_bytes(name_nodes(proto))


def _node_timings(
    events: list[dict[str, Any]], runs: Sequence[Run], count: int
) -> dict[str, NodeTiming]:
    """Times by node from a profile; the runs that warm up are dropped, and those that waited most.

    Args:
        events: as the profiler wrote them, of any number of runs.
        runs: the last ones of them.
        count: how many of those to keep.
    """
    samples: dict[str, list[float]] = {}
    ops: dict[str, str] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_KERNEL_TIME):
            continue
        node = name.removesuffix(_KERNEL_TIME)
        ops[node] = str(event["args"].get("op_name", ""))
        samples.setdefault(node, []).append(float(event["dur"]) / 1e3)
    timed = {
        node: times[-len(runs) :] for node, times in samples.items() if len(times) >= len(runs)
    }
    undisturbed = without_waiting(timed, [run.waiting_ms for run in runs])
    kept = chosen(runs, count)
    return {
        node: NodeTiming(ops[node], tuple(times[place] for place in kept))
        for node, times in undisturbed.items()
    }
