"""What a runtime executes of a network, as an ONNX graph from which kernels are read.

A runtime that times its operations also tells which these are (`CompiledGraph.executed`): ONNX
Runtime writes its graph in ONNX, others are translated into it. For a runtime that tells neither,
what every runtime fuses is fused (`devices.runtimes.onnxruntime.plainly_fused`), and a kernel is
what is then left as a node: no operation of the runtime, but what its time is explained by. Such
kernels do not depend on the runtime, so nothing has to be compiled to know them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.errors import InvalidInputError
from devices.onnx_files import to_bytes
from devices.runtimes.onnxruntime import plainly_fused

if TYPE_CHECKING:
    import onnx

    from devices.runtimes.base import CompiledGraph, Runtime, RuntimeSettings

__all__ = ["executed_graph", "executed_here"]


def executed_graph(
    model: onnx.ModelProto, compiled: CompiledGraph | None, per_op_times: bool
) -> bytes:
    """The graph that a network's kernels are read from, as serialised ONNX.

    Args:
        model: the original, with fixed shapes.
        compiled: from the runtime's `compile`; it is not looked at without `per_op_times`.
        per_op_times: whether the runtime tells the times of its operations.

    Raises:
        InvalidInputError: the runtime, though it times operations, does not tell which; or the
            model is refused.
    """
    if not per_op_times:
        return plainly_fused(to_bytes(model))
    if compiled is None or compiled.executed is None:
        raise InvalidInputError(
            "model: what its runtime executes of it cannot be told; take another one, or another "
            "runtime."
        )
    return compiled.executed


def executed_here(
    model: onnx.ModelProto, runtime: Runtime, settings: RuntimeSettings, per_op_times: bool
) -> bytes:
    """As `executed_graph`; the model is compiled where that is needed."""
    compiled = runtime.compile(to_bytes(model), settings) if per_op_times else None
    return executed_graph(model, compiled, per_op_times)
