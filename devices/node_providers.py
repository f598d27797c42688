"""Which of ONNX Runtime's execution providers really ran each node, read from a session's profile.

ONNX Runtime gives nodes that a provider does not know to the CPU without a word, and goes on when a
provider does not load at all. A time measured then is not the GPU's. The profile names the provider
of every node that ran, so it is the profile that is asked, not the session.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from devices.errors import InvalidInputError, UnavailableError

__all__ = ["CPU", "NodeRun", "check_providers", "node_runs"]

CPU = "CPUExecutionProvider"
_KERNEL_TIME = "_kernel_time"
_WHOLE = frozenset({"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"})
_NAMED = 3
"""Nodes that a message names."""


@dataclass(frozen=True, slots=True)
class NodeRun:
    """One node as it ran.

    Attributes:
        node: its name in the graph that ran.
        op: its operation.
        provider: as ONNX Runtime calls it, such as "CUDAExecutionProvider".
        outputs: element types of its outputs, such as "float" and "int64".
    """

    node: str
    op: str
    provider: str
    outputs: tuple[str, ...]

    @property
    def computes_shapes(self) -> bool:
        """Whether it gives whole numbers only: shapes and indices, no feature maps."""
        return bool(self.outputs) and _WHOLE.issuperset(self.outputs)


def node_runs(events: Iterable[Mapping[str, Any]]) -> tuple[NodeRun, ...]:
    """Every node that ran, once, in the order of execution.

    Args:
        events: the session's profile (a list of Chrome trace events), of any number of runs.
    """
    found: dict[str, NodeRun] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_KERNEL_TIME):
            continue
        node = name.removesuffix(_KERNEL_TIME)
        about = event.get("args", {})
        shapes = about.get("output_type_shape", [])
        outputs = tuple(str(kind) for output in shapes for kind in output)
        provider = str(about.get("provider", ""))
        found[node] = NodeRun(node, str(about.get("op_name", "")), provider, outputs)
    return tuple(found.values())


def check_providers(runs: Iterable[NodeRun], wanted: str, runtime: str) -> None:
    """Refuses what did not run on the provider that was asked for.

    ONNX Runtime computes shapes on the CPU by design, whatever the provider: a node there that
    gives whole numbers only is allowed. No other one is.

    Args:
        runs: from `node_runs`.
        wanted: the provider.
        runtime: its name among the runtimes, for the message.

    Raises:
        UnavailableError: no node ran on it; the provider was not there.
        InvalidInputError: some nodes ran elsewhere; the message names them.
    """
    seen = tuple(runs)
    if not any(run.provider == wanted for run in seen):
        others = sorted({run.provider for run in seen}) or ["nothing"]
        raise UnavailableError(
            f"runtime {runtime!r}: {wanted} ran no node, {', '.join(others)} did; install what the "
            "provider needs, or use another runtime."
        )
    astray = [
        run
        for run in seen
        if run.provider != wanted and not (run.provider == CPU and run.computes_shapes)
    ]
    if astray:
        names = ", ".join(f"{run.node!r} ({run.op}, {run.provider})" for run in astray[:_NAMED])
        more = f" and {len(astray) - _NAMED} more" if len(astray) > _NAMED else ""
        raise InvalidInputError(
            f"model: {wanted} did not run {names}{more}; replace those operations, or use another "
            "runtime."
        )
