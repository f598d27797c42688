"""A runtime that computes its times instead of measuring them, for dry runs and tests.

The latency of a node is a roofline: its operations over a peak rate, plus the bytes that it reads
and writes over a bandwidth, plus a constant; a run adds a constant of its own. No time passes. The
graph is run as written, without fusion. Everything made with it is marked simulated, and no figure
from it says anything about a real device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from devices.errors import InvalidInputError, UnavailableError
from devices.onnx_files import (
    fix_shapes,
    inferred,
    input_specs,
    name_nodes,
    one_line,
    parse_onnx,
    random_inputs,
)
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

__all__ = ["SimulatedModel", "SimulatedRuntime"]

VERSION = "1"
PEAK_GFLOPS = 50.0
"""Operations a second of one thread, in units of 1e9; one multiply-add counts as two."""
BANDWIDTH_GBPS = 10.0
"""Bytes a second, in units of 1e9, whatever the number of threads."""
NODE_MS = 0.003
"""Constant part of every node."""
RUN_MS = 0.010
"""Constant part of every run, outside the nodes."""


class SimulatedRuntime(Runtime):
    """The roofline as a runtime.

    Args:
        noise: standard deviation of the logarithm of a run's time; 0 for none.
        seed: of the noise, which depends on the model and on nothing else.
        per_op_times: whether to be a runtime that tells the times of single nodes.
    """

    name: ClassVar[str] = "simulated"
    simulated: ClassVar[bool] = True

    def __init__(self, noise: float = 0.0, seed: int = 0, per_op_times: bool = True) -> None:
        self.noise = noise
        self.seed = seed
        self.per_op_times = per_op_times

    def status(self) -> RuntimeStatus:
        """Always usable."""
        return RuntimeStatus(
            name=self.name,
            usable=True,
            version=VERSION,
            reason=None,
            install=None,
            precisions=("fp32",),
            per_op_times=self.per_op_times,
            source=self.source,
            simulated=True,
        )

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        """Keeps the graph as it is, once its shapes are fixed and its nodes named.

        Raises:
            InvalidInputError: the model is unreadable, has dynamic dimensions or wrong shapes.
        """
        self.require(settings)
        proto = inferred(name_nodes(fix_shapes(parse_onnx(model), settings.batch)))
        data = proto.SerializeToString(deterministic=True)
        return CompiledGraph(
            runtime=self.name,
            version=VERSION,
            data=data,
            inputs=input_specs(proto),
            outputs=tuple(value.name for value in proto.graph.output),
            executed=data if self.per_op_times else None,
        )

    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> SimulatedModel:
        """Reads the nodes' times off the graph."""
        self.check_compiled(compiled)
        return SimulatedModel(compiled, settings, self.noise, self.seed, self.per_op_times)


class SimulatedModel(CompiledModel):
    """A graph with its computed times."""

    def __init__(
        self,
        compiled: CompiledGraph,
        settings: RuntimeSettings,
        noise: float,
        seed: int,
        per_op_times: bool = True,
    ) -> None:
        """Computes the time of each node.

        Args:
            compiled: from `SimulatedRuntime.compile`.
            settings: threads count; the peak rate grows with them.
            noise: standard deviation of the logarithm of a run's time.
            seed: of the noise.
            per_op_times: whether to tell them.
        """
        import numpy as np

        self._compiled: CompiledGraph | None = compiled
        self._proto = parse_onnx(compiled.data)
        self._node_ms = _node_times_ms(self._proto, settings.threads)
        self._noise = noise
        self._per_op_times = per_op_times
        digest = hashlib.sha256(compiled.data).digest()
        self._rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])

    def run(self, count: int) -> list[float]:
        """Computed times, with the noise asked for; see the base class."""
        self._check_open()
        total_ms = RUN_MS + math.fsum(ms for _, ms in self._node_ms.values())
        return [total_ms * factor for factor in self._factors(count)]

    def profile(self, count: int) -> dict[str, NodeTiming]:
        """Computed times of each node; see the base class."""
        self._check_open()
        if not self._per_op_times:
            raise UnavailableError("runtime 'simulated': tells no times of single operations here.")
        factors = self._factors(count)
        return {
            name: NodeTiming(op, tuple(ms * factor for factor in factors))
            for name, (op, ms) in self._node_ms.items()
        }

    def infer(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
        """Runs ONNX's reference implementation, which is slow; see the base class."""
        from onnx.reference import ReferenceEvaluator

        self._check_open()
        try:
            return list(ReferenceEvaluator(self._proto).run(None, dict(inputs)))
        except Exception as error:  # the reference raises whatever numpy raises
            raise InvalidInputError(
                f"inputs {sorted(inputs)}: the reference refused them ({one_line(error)})."
            ) from error

    def close(self) -> None:
        """Marks the model as closed."""
        self._compiled = None

    def random_inputs(self) -> dict[str, npt.NDArray[np.generic]]:
        """Inputs of the right shapes from a fixed seed."""
        return random_inputs(self._check_open().inputs)

    def _check_open(self) -> CompiledGraph:
        if self._compiled is None:
            raise UnavailableError("model: already closed; load it again.")
        return self._compiled

    def _factors(self, count: int) -> list[float]:
        if self._noise == 0:
            return [1.0] * count
        return [float(x) for x in self._rng.lognormal(0.0, self._noise, count)]


def _node_times_ms(model: onnx.ModelProto, threads: int) -> dict[str, tuple[str, float]]:
    """Operation and roofline time of each node by its name, constants left out."""
    shapes, sizes = _tensors(model)
    times = {}
    for node in model.graph.node:
        if node.op_type == "Constant":
            continue
        moved = sum(_bytes(name, shapes, sizes) for name in (*node.input, *node.output))
        operations = _operations(node, shapes)
        times[node.name] = (
            node.op_type,
            operations / (PEAK_GFLOPS * 1e6 * threads) + moved / (BANDWIDTH_GBPS * 1e6) + NODE_MS,
        )
    return times


def _tensors(model: onnx.ModelProto) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Shape and bytes per element of every tensor whose shape is known."""
    import onnx

    shapes: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, int] = {}
    for tensor in model.graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        sizes[tensor.name] = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            shapes[value.name] = tuple(max(d.dim_value, 1) for d in kind.shape.dim)
            sizes[value.name] = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    return shapes, sizes


def _bytes(name: str, shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]) -> int:
    return math.prod(shapes[name]) * sizes[name] if name in shapes else 0


def _operations(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Floating-point operations: two for each multiply-add, else one for each output element."""
    elements = sum(math.prod(shapes[name]) for name in node.output if name in shapes)
    if node.op_type == "Conv" and node.input[1] in shapes:
        return 2 * elements * math.prod(shapes[node.input[1]][1:])
    if node.op_type in ("Gemm", "MatMul") and node.input[0] in shapes:
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return 2 * elements * shapes[node.input[0]][-2 if transposed else -1]
    return elements
