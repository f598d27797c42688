"""The graph that fusion rules look at: the nodes that can reach the runtime, and their tensors.

Dropped beforehand is what a runtime finds out before it runs (constants, copies of a tensor), as
far as the runtime was seen to drop it. Transpositions between channels first and channels last are
*views*: whether they cost anything depends on the layouts on both sides, so that they are turned
into work only where a layout has to change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from latency.kernel import operation_name
from latency.onnx_node import Node
from latency.static import StaticGraph

if TYPE_CHECKING:
    import onnx

__all__ = [
    "BLOCKED",
    "LAYOUTS",
    "PLAIN",
    "TURNED",
    "UNKNOWN",
    "Features",
    "LiveGraph",
    "LiveNode",
    "Pattern",
    "bare_label",
    "bare_text",
    "turned",
    "view_layout",
]

Shape = tuple[int, ...]
Features = dict[str, int | str]

PLAIN = "p"
"""As the original has it."""
BLOCKED = "b"
"""Channels in blocks, in the layout domain of the runtime."""
TURNED = "t"
"""Channels last, where the original has channels first."""
_BLOCKED_VIEW = "B"
_TURNED_VIEW = "i"
LAYOUTS = (PLAIN, TURNED, BLOCKED, _TURNED_VIEW, _BLOCKED_VIEW)
UNKNOWN = "u"
"""Of a tensor that is not there yet."""
_TO_LAST = (0, 2, 3, 1)
_TO_FIRST = (0, 3, 1, 2)
# Layout of a transposition's input -> what the output then has without any work.
_VIEWS: dict[Shape, dict[str, str]] = {
    _TO_LAST: {PLAIN: _TURNED_VIEW, TURNED: PLAIN, BLOCKED: _BLOCKED_VIEW},
    _TO_FIRST: {PLAIN: TURNED, _TURNED_VIEW: PLAIN, _BLOCKED_VIEW: BLOCKED},
}
_COPIES = {"Identity", "Dropout"}
_MAY_COPY = {
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Expand",
    "Slice",
    "Pad",
    "Concat",
    "Sum",
}
_MAX_AHEAD = 100
"""Nodes looked at in search of a later transposition."""
_COMMUTATIVE = {"Add", "Mul"}
_VARIADIC = {"Concat", "Sum", "Max", "Min", "Mean"}
_PLAIN_TYPES = (1, 2, 3)  # of AttributeProto: float, int, string
_SCHEMA_VERSION = 17
"""Of ONNX's operator set, for what hardly changes: defaults, and which inputs are optional."""
_TELLING = ("axis", "axes", "perm")
"""Attributes without which a pattern means something else."""
_WINDOW = ("kernel_shape", "strides", "dilations", "pads")


def bare_label(label: str) -> str:
    """A node's label without the attributes."""
    return label.partition("[")[0]


def bare_text(text: str) -> str:
    """A pattern without the attributes of its labels."""
    parts = (part.rpartition("(") for part in text.split(";"))
    return ";".join(f"{bare_label(label)}({refs}" for label, _, refs in parts)


def view_layout(perm: Shape, layout: str) -> str | None:
    """Layout of a transposition's output when its input has the given one and nothing is done."""
    return _VIEWS.get(perm, {}).get(layout)


def turned(shape: Shape, layout: str) -> Shape:
    """Shape of a tensor as it is stored in a layout."""
    if len(shape) == 4:
        if layout == TURNED:
            return tuple(shape[axis] for axis in _TO_LAST)
        if layout in (_TURNED_VIEW, _BLOCKED_VIEW):
            return tuple(shape[axis] for axis in _TO_FIRST)
    return shape


@dataclass(frozen=True)
class LiveNode:
    """A node that may reach the runtime.

    Attributes:
        name: of the original node.
        op: its operation, with the domain in front when that is not ONNX's own.
        label: operation with the attributes that a pattern depends on.
        inputs: tensors with copies resolved; "" for one that is left out.
        outputs: tensors.
        attributes: as plain values, defaults filled in.
        defaults: names of the attributes that were filled in.
        variadic: whether the operation takes any number of inputs.
        required: how many inputs it cannot do without.
    """

    name: str
    op: str
    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    defaults: frozenset[str]
    variadic: bool
    required: int

    @property
    def commutative(self) -> bool:
        """Whether the order of its inputs does not matter."""
        return self.op in _COMMUTATIVE


@dataclass(frozen=True)
class Pattern:
    """A connected group of nodes, written without names.

    Attributes:
        text: equal for groups of the same structure.
        core: the text without optional constants: equal with and without a bias.
        order: positions of the nodes, as the text has them.
        externals: tensors that the group reads, in the order of the text's numbers.
    """

    text: str
    core: str
    order: tuple[int, ...]
    externals: tuple[str, ...]


@dataclass
class LiveGraph:
    """The nodes that may reach the runtime.

    Attributes:
        static: shapes, types and constants of the whole original.
        nodes: in the original's order.
        producer: position of the node that makes a tensor.
        consumers: positions of the nodes that read a tensor.
        outputs: tensors that leave the graph.
        inputs: tensors that enter it.
        views: tensor made by a view -> what it views, and the permutation.
        viewers: tensor -> the views of it.
        copies: names of the dropped nodes that stand in front of a tensor's readers.
        facts: what could be dropped or kept, as (question, name of the node).
        alias: dropped copy -> the tensor that it is a copy of.
        weights: tensors that are constant when the network runs.
    """

    static: StaticGraph
    nodes: list[LiveNode] = field(default_factory=list)
    producer: dict[str, int] = field(default_factory=dict)
    consumers: dict[str, list[int]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    views: dict[str, tuple[str, Shape]] = field(default_factory=dict)
    viewers: dict[str, list[str]] = field(default_factory=dict)
    copies: dict[str, list[str]] = field(default_factory=dict)
    facts: list[tuple[str, str]] = field(default_factory=list)
    alias: dict[str, str] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, model: onnx.ModelProto, dropped: Callable[[str, str], bool]) -> LiveGraph:
        """The live part of a model.

        Args:
            model: with fixed shapes and unique node names; left alone.
            dropped: asked for each node that a runtime might drop, with the kind of node and its
                name.
        """
        graph = cls(StaticGraph(model))
        graph.weights = {tensor.name for tensor in model.graph.initializer}
        graph.inputs = [v.name for v in model.graph.input if v.name not in graph.weights]
        for position, node in enumerate(model.graph.node):
            graph._add(node, position, dropped)
        graph.outputs = [graph.resolve(value.name) for value in model.graph.output]
        return graph

    def resolve(self, tensor: str) -> str:
        """The tensor that this one is a copy of, or itself."""
        return self.alias.get(tensor, tensor)

    def shape(self, tensor: str) -> Shape:
        """Shape of a tensor; empty where it is not known."""
        return self.static.shapes.get(tensor, ())

    def dynamic(self, node: LiveNode) -> list[str]:
        """The tensors that a node reads and that are not constant, each once."""
        found = (name for name in node.inputs if name and name not in self.weights)
        return list(dict.fromkeys(found))

    def uses(self, tensor: str) -> int:
        """How many nodes read a tensor; leaving the graph counts as one."""
        direct = len(self.consumers.get(tensor, ())) + self.outputs.count(tensor)
        return direct + sum(self.uses(name) for name in self.viewers.get(tensor, ()))

    def pattern(self, order: Sequence[int]) -> Pattern:
        """The group of nodes at these positions, written without names."""
        inside = {
            tensor: f"{number}.{index}" if index else str(number)
            for number, position in enumerate(order)
            for index, tensor in enumerate(self.nodes[position].outputs)
        }
        externals: dict[str, int] = {}
        parts: list[str] = []
        cores: list[str] = []
        for position in order:
            node = self.nodes[position]
            refs: list[str] = []
            for name in node.inputs:
                if name in inside:
                    refs.append(inside[name])
                elif not name:
                    refs.append("")
                elif name in self.weights:
                    refs.append("s" if math.prod(self.static.shapes.get(name, (2,))) == 1 else "c")
                else:
                    number = externals.setdefault(name, len(externals))
                    refs.append("x*" if node.variadic else f"x{number}")
            if node.variadic:
                refs = sorted(set(refs))
            elif node.commutative:
                refs.sort()
            parts.append(f"{node.label}({','.join(refs)})")
            tail = [ref for ref in refs[node.required :] if ref not in ("c", "s", "")]
            cores.append(f"{node.label}({','.join(refs[: node.required] + tail)})")
        return Pattern(";".join(parts), ";".join(cores), tuple(order), tuple(externals))

    def neighbours(self, order: Sequence[int], pool: Callable[[int], bool]) -> list[int]:
        """Positions of the nodes that touch a group and are in the pool, in order."""
        found: set[int] = set()
        constants = self.weights
        for position in order:
            node = self.nodes[position]
            for tensor in node.outputs:
                found.update(self.consumers.get(tensor, ()))
            for tensor in node.inputs:
                if tensor in self.producer:
                    found.add(self.producer[tensor])
                # What takes the same tensor apart: slices that become one split.
                for twin in self.consumers.get(tensor, ()) if tensor not in constants else ():
                    if self.nodes[twin].op == node.op:
                        found.add(twin)
        return sorted(p for p in found if p not in order and pool(p))

    def ordered(self, members: Iterable[int]) -> list[list[int]]:
        """Members sorted so that each touches those before it; one list for each connected part."""
        left = set(members)
        parts = []
        while left:
            order = [min(left)]
            left.discard(order[0])
            while near := self.neighbours(order, left.__contains__):
                order.append(near[0])
                left.discard(near[0])
            parts.append(order)
        return parts

    def _add(
        self, node: onnx.NodeProto, position: int, dropped: Callable[[str, str], bool]
    ) -> None:
        name = node.name
        inputs = tuple(self.resolve(tensor) for tensor in node.input)
        if position in self.static.folded:
            self.facts.append(("static", name))
            if dropped("static", name):
                self.weights.update(node.output)
                return
        live = [t for t in inputs if t and t not in self.weights]
        attributes = _attributes_of(node, self.shape(inputs[1]) if len(inputs) > 1 else ())
        defaults = frozenset(attributes) - {attribute.name for attribute in node.attribute}
        perm = tuple(attributes.get("perm", ())) if node.op_type == "Transpose" else ()
        if live and self._copies(node, live, perm):
            self.facts.append((f"copy {node.op_type}", name))
            if dropped(f"copy {node.op_type}", name):
                self.alias[node.output[0]] = live[0]
                self.copies.setdefault(live[0], []).append(name)
                return
        if perm in _VIEWS and live:
            self.views[node.output[0]] = (live[0], perm)
            self.viewers.setdefault(live[0], []).append(node.output[0])
            self.copies.setdefault(node.output[0], []).append(name)
            return
        op = operation_name(node.op_type, node.domain, attributes)
        telling = [f"{key}={attributes[key]}" for key in _TELLING if key in attributes]
        if node.op_type == "Slice" and len(inputs) > 1 and inputs[1] in self.static.values:
            telling.append("first" if not self.static.values[inputs[1]].any() else "later")
            if any(
                (self.static.values[t] != 1).any() for t in inputs[4:] if t in self.static.values
            ):
                telling.append("strided")
        if int(attributes.get("group", 1)) > 1:
            each = self.shape(inputs[1])[1:2] if len(inputs) > 1 else ()
            telling.append("depthwise" if each == (1,) else "grouped")
        label = f"{op}[{' '.join(telling)}]".replace(" ", "") if telling else op
        outputs = tuple(tensor for tensor in node.output if tensor)
        variadic = not node.domain and node.op_type in _VARIADIC
        required = _required(node, len(inputs))
        found = LiveNode(name, op, label, inputs, outputs, attributes, defaults, variadic, required)
        self.nodes.append(found)
        for tensor in found.outputs:
            self.producer[tensor] = len(self.nodes) - 1
        for tensor in dict.fromkeys(inputs):
            if tensor:
                self.consumers.setdefault(tensor, []).append(len(self.nodes) - 1)

    def _copies(self, node: onnx.NodeProto, live: list[str], perm: Shape) -> bool:
        if len(set(live)) != 1 or len(live) != 1:
            return False
        source, target = self.static.shapes.get(live[0]), self.static.shapes.get(node.output[0])
        if node.op_type in _COPIES:
            return True
        if node.op_type == "Cast":
            return self.static.dtypes.get(live[0]) == self.static.dtypes.get(node.output[0])
        if node.op_type == "Transpose":
            return perm == tuple(range(len(perm)))
        same = source is not None and source == target
        return same and node.op_type in _MAY_COPY

    # -- what decisions depend on

    def head_features(self, position: int, layouts: Sequence[str]) -> Features:
        """What the layout of a node may depend on.

        Args:
            position: of the node.
            layouts: in which its data inputs are there.
        """
        node = self.nodes[position]
        data = self.dynamic(node)
        shapes = [self.shape(name) for name in data]
        output = self.shape(node.outputs[0]) if node.outputs else ()
        features: Features = {
            "layouts": "".join(sorted(set(layouts))),
            "first": layouts[0] if layouts else "",
            "same": int(len(set(shapes)) <= 1),
            "rank": len(shapes[0]) if shapes else 0,
        }
        if TURNED in layouts:
            features["ahead"] = int(self._view_ahead(position))
        channels = [shape[1] for shape in shapes if len(shape) > 2]
        if channels and len(output) > 1:
            features |= _alignment("in", min(channels, key=_power_of_two))
            features["in_low"] = min(channels).bit_length()
            features |= _alignment("out", output[1])
        window = node.attributes.get("kernel_shape")
        if window:
            group = int(node.attributes.get("group", 1))
            features["window"] = math.prod(window)
            features["stride"] = max(node.attributes["strides"], default=1)
            features["dilation"] = max(node.attributes["dilations"], default=1)
            if group > 1 and channels and len(output) > 1:
                features |= _alignment("group_in", channels[0] // group)
                features |= _alignment("group_out", output[1] // group)
            features["group"] = int(group > 1)
        return features

    def _distance_to_end(self, node: LiveNode) -> int:
        """0 where a node's output leaves the graph, 1 where that of a reader does, else 2."""
        if any(name in self.outputs for name in node.outputs):
            return 0
        readers = (p for name in node.outputs for p in self.consumers.get(name, ()))
        return 2 - any(name in self.outputs for p in readers for name in self.nodes[p].outputs)

    def _view_ahead(self, position: int) -> bool:
        """Whether elementwise nodes alone lead from a node to a view that undoes another."""
        waiting, seen = [position], {position}
        while waiting and len(seen) < _MAX_AHEAD:
            node = self.nodes[waiting.pop()]
            for tensor in node.outputs:
                if any(self.views[name][1] == _TO_LAST for name in self.viewers.get(tensor, ())):
                    return True
                for reader in self.consumers.get(tensor, ()):
                    shape = self.shape(self.nodes[reader].outputs[0])
                    same = self.nodes[reader].op in _COMMUTATIVE and shape == self.shape(tensor)
                    if same and reader not in seen:
                        seen.add(reader)
                        waiting.append(reader)
        return False

    def step_features(
        self, order: Sequence[int], position: int, outcome: str, layout_of: Callable[[str], str]
    ) -> Features:
        """What it may depend on whether a node is fused into the group before it.

        Args:
            order: positions of the group.
            position: of the node.
            outcome: layouts in which the group reads and writes.
            layout_of: layout of a tensor that is there already, or "u".
        """
        node = self.nodes[position]
        inside = {tensor for p in order for tensor in self.nodes[p].outputs}
        joined = [name for name in node.inputs if name in inside]
        others = [name for name in self.dynamic(node) if name not in inside]
        features: Features = {
            "outcome": outcome,
            "leaves": self._distance_to_end(node),
            "uses": min(max((self.uses(name) for name in joined), default=0), 3),
            "rank": len(self.shape(joined[0])) if joined else 0,
            "side": next((i for i, name in enumerate(node.inputs) if name in inside), -1),
        }
        if others:
            other = others[0]
            source = self.producer.get(self.views.get(other, (other,))[0], -1)
            features["other"] = layout_of(other)
            features["other_op"] = self.nodes[source].op if source >= 0 else "input"
            features["ready"] = int(source < order[0])
            features["same"] = int(bool(joined) and self.shape(other) == self.shape(joined[0]))
            features["other_uses"] = min(self.uses(other), 3)
        return features


def _power_of_two(number: int) -> int:
    """Largest power of two, up to 64, that divides the number."""
    return math.gcd(number, 64)


def _alignment(name: str, channels: int) -> Features:
    return {f"{name}_step": _power_of_two(channels), f"{name}_bits": min(channels.bit_length(), 9)}


def _attributes_of(node: onnx.NodeProto, weight: Shape) -> dict[str, Any]:
    import onnx

    values = dict(Node(node).options)
    if node.op_type in ("Conv", "ConvTranspose") and "kernel_shape" not in values:
        values["kernel_shape"] = list(weight[2:])
    window = values.get("kernel_shape")
    if isinstance(window, list):
        for key, default in zip(_WINDOW[1:], (1, 1, 0), strict=True):
            count = len(window) * (2 if key == "pads" else 1)
            values.setdefault(key, [default] * count)
    schema = _schema(node)
    for key, attribute in schema.attributes.items() if schema else ():
        if key not in values and attribute.default_value.type in _PLAIN_TYPES:
            values[key] = onnx.helper.get_attribute_value(attribute.default_value)
            if isinstance(values[key], bytes):
                values[key] = values[key].decode()
    return values


def _schema(node: onnx.NodeProto) -> onnx.defs.OpSchema | None:
    import onnx

    try:
        return onnx.defs.get_schema(node.op_type, _SCHEMA_VERSION, node.domain)
    except onnx.defs.SchemaError:
        return None


def _required(node: onnx.NodeProto, count: int) -> int:
    """How many of the inputs the operation cannot do without."""
    import onnx

    schema = _schema(node)
    if schema is None:
        return count
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    return sum(parameter.option != optional for parameter in schema.inputs[:count])
