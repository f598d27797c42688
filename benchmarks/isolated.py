"""The usual way to predict: each kernel measured alone, in a model of its own, and summed.

A kernel becomes a model of one layer (a convolution with its bias, activation and residual add, a
pooling, a matrix product, ...) in plain layout, as exporters would write it. The runtime then does
with it what it does with any model, layout changes included. What an empty model takes is taken
off each kernel. Layout changes and reshapes are no layers: they do not exist there, and count
nothing. A kernel that cannot be built alone counts with what the predictor says, and is named.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.accuracy import Answer, Truth
from benchmarks.truth import new_card
from devices.errors import InvalidInputError
from devices.runtimes import get_runtime
from devices.runtimes.base import RuntimeSettings
from latency.card import DeviceCard
from latency.card_rows import CardVisit
from latency.card_writer import CardWriter
from latency.graph_builder import IR_VERSION, OPSET
from latency.graph_store import GraphStore
from latency.kernel import Kernel
from latency.measure import Visitor, compile_named

if TYPE_CHECKING:
    import onnx

__all__ = ["FREE", "VISITS", "Isolated", "choose", "isolated_model", "measure_isolated"]

FREE = ("reorder", "reshape")
"""Families that are no layers of their own."""
VISITS = 3
EMPTY = "empty call"
SLOWEST_MS = 60.0
"""Networks above this are not taken: their kernels alone would take longest to measure."""

Progress = Callable[[str], None]


def choose(truths: Sequence[Truth], mobile: int, torchvision: int) -> tuple[str, ...]:
    """Networks whose kernels are measured alone: evenly spread over the latencies of a group."""
    names: list[str] = []
    for group, count in (("mobile", mobile), ("torchvision", torchvision)):
        own = [t for t in truths if t.group == group and t.whole_ms <= SLOWEST_MS]
        ordered = sorted(own, key=lambda t: (t.whole_ms, t.name))
        places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
        names += [ordered[place].name for place in dict.fromkeys(places.tolist())]
    return tuple(names)


def measure_isolated(
    path: Path,
    truths: Sequence[Truth],
    names: Sequence[str],
    settings: RuntimeSettings,
    progress: Progress,
    runtime: str = "onnxruntime",
    seed: int = 0,
) -> DeviceCard:
    """Measures every distinct kernel of some networks alone; goes on where an earlier run ended.

    Args:
        path: of the card that the measurements go to, each network of it a kernel alone.
        truths: holds the networks.
        names: of the networks, see `choose`; what an unfinished card was begun with is kept.
        settings: threads, precision, batch.
        progress: called with a line of text.
        runtime: name of the runtime.
        seed: of the order of visits.
    """
    engine = get_runtime(runtime)
    engine.require(settings)
    if path.exists():
        card = DeviceCard.open(path)
        if card.complete:
            return card
        names = card.arguments["networks"]
        writer = CardWriter(path)
    else:
        writer = new_card(path, engine, settings, names)
    kernels = _distinct([t for t in truths if t.name in set(names)])
    with ExitStack() as stack:
        stack.enter_context(writer)
        store = stack.enter_context(GraphStore.temporary())
        visitor = stack.enter_context(Visitor(engine, settings))
        numbers = {name: known[0] for name, known in writer.networks().items()}
        for name, kernel in {EMPTY: None, **kernels}.items():
            model = isolated_model(kernel) if kernel else _empty_model()
            if model is None:
                continue
            try:
                # Attention has windows or heads where images have their batch.
                own = replace(settings, batch=kernel.inputs[0][0]) if kernel else settings
                store.put(name, compile_named(engine, name, model, own))
            except InvalidInputError as error:
                progress(str(error))
                continue
            if name not in numbers:
                numbers[name] = writer.add_network(name, "extra", "", None, ())
        progress(f"{len(numbers)} kernels alone, {VISITS} visits each")
        started = monotonic() - float(writer.get("elapsed_s", 0.0))
        waiting = [name for name in numbers if name in store]
        for round_ in range(VISITS):
            visited = writer.visited()
            for place in np.random.default_rng([seed, round_]).permutation(len(waiting)):
                name = waiting[int(place)]
                if (round_, numbers[name]) in visited:
                    continue
                visit = visitor.visit(store.get(name)).visit
                elapsed_s = 0.0 if engine.simulated else monotonic() - started
                found = CardVisit(round_, elapsed_s, visit, np.zeros((0, 0), np.float32))
                writer.add_visit(numbers[name], found, elapsed_s)
        writer.finish({}, {})
    return DeviceCard.open(path)


@dataclass(frozen=True)
class Isolated:
    """What the kernels take alone.

    Attributes:
        networks: names of those whose kernels were measured.
        empty_ms: what a model with nothing in it takes.
        kernel_ms: by signature; the empty model is taken off.
    """

    networks: tuple[str, ...]
    empty_ms: float
    kernel_ms: Mapping[str, float]

    @classmethod
    def from_card(cls, card: DeviceCard) -> Isolated:
        """Condenses the card of `measure_isolated`."""
        alone = {n.name: card.measurement(n).latency_ms for n in card.networks if n.visits}
        empty_ms = alone.pop(EMPTY)
        times = {name: max(time_ms - empty_ms, 0.0) for name, time_ms in alone.items()}
        return cls(tuple(card.arguments["networks"]), empty_ms, times)

    def answers(
        self, truths: Sequence[Truth], predicted: Mapping[str, Answer]
    ) -> dict[str, Answer]:
        """The sums, for the networks whose kernels were measured."""
        found = {}
        for truth in truths:
            if truth.name not in self.networks:
                continue
            total_ms = self.empty_ms
            for node, own_ms in zip(
                truth.graph.kernels, predicted[truth.name].kernel_ms, strict=True
            ):
                if node.kernel.family not in FREE:
                    total_ms += self.kernel_ms.get(node.kernel.signature, own_ms)
            found[truth.name] = Answer(total_ms)
        return found

    def not_built(self, truths: Sequence[Truth]) -> dict[str, int]:
        """Operations of kernels that could not be measured alone, and how many such kernels."""
        kernels = _distinct([t for t in truths if t.name in self.networks])
        missing = Counter(k.op for name, k in kernels.items() if name not in self.kernel_ms)
        return dict(sorted(missing.items()))


def _distinct(truths: Sequence[Truth]) -> dict[str, Kernel]:
    nodes = (node for truth in truths for node in truth.graph.kernels)
    return {n.kernel.signature: n.kernel for n in nodes if n.kernel.family not in FREE}


# -- models of one layer


def isolated_model(kernel: Kernel) -> onnx.ModelProto | None:
    """A model of the kernel alone, in plain layout; None where that is not possible."""
    if kernel.dtype != "float32" or not kernel.inputs or not kernel.outputs:
        return None
    layer = _Layer(kernel)
    bare = kernel.op.rpartition(".")[2]
    if kernel.family.startswith("conv_"):
        layer.conv()
    elif bare in ("Gemm", "FusedGemm"):
        layer.gemm()
    elif bare in _BY_SHAPE:
        _BY_SHAPE[bare](layer)
    elif kernel.activation or kernel.fused_add:
        return None
    else:
        layer.plain()
    return layer.model()


def _empty_model() -> onnx.ModelProto:
    layer = _Layer(Kernel("reshape", "Identity", ((1, 8),), ((1, 8),)))
    layer.plain()
    return layer.model()


class _Layer:
    """Writes one layer; its data inputs are the model's inputs."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.attributes: dict[str, Any] = json.loads(kernel.attributes or "{}")
        self.attributes.pop("primitive", None)  # the runtime's own choice, no part of the model
        self.inputs = [f"input{i}" for i in range(len(kernel.inputs))]
        self.outputs = [f"output{i}" for i in range(len(kernel.outputs))]
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        import onnx

        def values(names: Sequence[str], shapes: Sequence[Sequence[int]]) -> list[Any]:
            kind = onnx.TensorProto.FLOAT
            return [
                onnx.helper.make_tensor_value_info(name, kind, list(shape))
                for name, shape in zip(names, shapes, strict=True)
            ]

        domains = {node.domain for node in self.nodes}
        graph = onnx.helper.make_graph(
            self.nodes,
            "kernel",
            values(self.inputs, self.kernel.inputs),
            values(self.outputs, self.kernel.outputs),
            self.weights,
        )
        return onnx.helper.make_model(
            graph,
            opset_imports=[onnx.helper.make_opsetid(d, 1 if d else OPSET) for d in sorted(domains)],
            ir_version=IR_VERSION,
        )

    def conv(self) -> None:
        kernel = self.kernel
        channels_in, channels_out = kernel.inputs[0][1], kernel.output[1]
        # Blocked layouts pad channels, and with them the groups of depthwise convolutions.
        groups = channels_in if kernel.groups > channels_in else kernel.groups
        names = [
            self.inputs[0],
            self._random("weight", (channels_out, channels_in // groups, *kernel.kernel)),
        ]
        if len(kernel.weights) > 1:
            names.append(self._random("bias", (channels_out,)))
        self._chain(
            ("Conv", names, {**self._window(), "group": groups}),
            residual=self.inputs[1] if kernel.fused_add else None,
        )

    def gemm(self) -> None:
        weights = [self._random(f"weight{i}", s) for i, s in enumerate(self.kernel.weights)]
        self._chain(("Gemm", [*self.inputs, *weights], self.attributes))

    def plain(self) -> None:
        """The operation as it is, weights behind the data."""
        domain, _, op = self.kernel.op.rpartition(".")
        options = {**self.attributes, **self._window()}
        weights = [
            self._random(f"weight{i}", shape, positive=op == "BatchNormalization")
            for i, shape in enumerate(self.kernel.weights)
        ]
        self._node(
            op,
            [*self.inputs, *weights],
            self.outputs,
            options,
            domain="com.microsoft" if domain == "microsoft" else "",
        )

    def clip(self) -> None:
        bounds = [self._array(f"bound{i}", np.float32(6 * i)) for i in range(2)]
        self._node("Clip", [self.inputs[0], *bounds], self.outputs, {})

    def expand(self) -> None:
        self._with_integers("Expand", self.kernel.output)

    def pad(self) -> None:
        pairs = zip(self.kernel.inputs[0], self.kernel.output, strict=True)
        after = [out - own for own, out in pairs]
        self._with_integers("Pad", [0] * len(after) + after)

    def slice(self) -> None:
        shape, out = self.kernel.inputs[0], self.kernel.output
        axes = [axis for axis, (a, b) in enumerate(zip(shape, out, strict=True)) if a != b] or [0]
        self._with_integers("Slice", [0] * len(axes), [out[axis] for axis in axes], axes)

    def split(self) -> None:
        axis = int(self.attributes.get("axis", 0))
        self._with_integers("Split", [shape[axis] for shape in self.kernel.outputs])

    def gather(self) -> None:
        if len(self.kernel.weights) != 1:
            return self.plain()
        index = np.zeros(self.kernel.weights[0], dtype=np.int64)
        names = [self.inputs[0], self._array("index", index)]
        self._node("Gather", names, self.outputs, self.attributes)

    def _chain(
        self, first: tuple[str, list[str], dict[str, Any]], residual: str | None = None
    ) -> None:
        """A layer, the residual added to it, and the activation, as far as there are any."""
        op, names, options = first
        steps: list[tuple[str, list[str], dict[str, Any]]] = []
        if residual:
            steps.append(("Add", [residual], {}))
        if self.kernel.activation == "Clip":
            bounds = [self._array(f"bound{i}", np.float32(6 * i)) for i in range(2)]
            steps.append(("Clip", bounds, {}))
        elif self.kernel.activation:
            steps.append((self.kernel.activation, [], {}))
        tensors = [*(f"step{i}" for i in range(len(steps))), self.outputs[0]]
        self._node(op, names, tensors[:1], options)
        for place, (op, further, options) in enumerate(steps):
            self._node(op, [tensors[place], *further], [tensors[place + 1]], options)

    def _window(self) -> dict[str, Any]:
        kernel = self.kernel
        names = ("kernel_shape", "strides", "pads", "dilations")
        values = (kernel.kernel, kernel.strides, kernel.pads, kernel.dilations)
        skip = ("dilations",) if kernel.op.endswith("AveragePool") else ()
        return {n: list(v) for n, v in zip(names, values, strict=True) if v and n not in skip}

    def _with_integers(self, op: str, *values: Sequence[int]) -> None:
        further = [
            self._array(f"values{i}", np.array(v, dtype=np.int64)) for i, v in enumerate(values)
        ]
        self._node(op, [self.inputs[0], *further], self.outputs, self.attributes)

    def _node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        options: Mapping[str, Any],
        domain: str = "",
    ) -> None:
        import onnx

        name = f"{op}{len(self.nodes)}"
        self.nodes.append(
            onnx.helper.make_node(op, list(inputs), list(outputs), name, domain=domain, **options)
        )

    def _random(self, name: str, shape: Sequence[int], positive: bool = False) -> str:
        size = math.prod(shape)
        block = np.random.default_rng(0).standard_normal(min(size, 65_536), dtype=np.float32)
        block = block / np.float32(math.sqrt(max(math.prod(shape[1:]), 1)))
        return self._array(name, np.resize(np.abs(block) + 0.1 if positive else block, shape))

    def _array(self, name: str, values: Any) -> str:
        import onnx

        self.weights.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name


_BY_SHAPE: dict[str, Callable[[_Layer], None]] = {
    "Clip": _Layer.clip,
    "Expand": _Layer.expand,
    "Pad": _Layer.pad,
    "Slice": _Layer.slice,
    "Split": _Layer.split,
    "Gather": _Layer.gather,
}
"""Operations whose constant inputs follow from the shapes."""
