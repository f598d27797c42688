"""Reads fusion knowledge off compiled graphs: what a runtime made of which nodes, counted.

Each compiled graph is cut into *groups*: the fewest kernels and original nodes that belong
together, such as Conv and Relu and one nchwc.Conv. A group's nodes without names are its pattern,
its kernels written in terms of the pattern's tensors are its recipe. What is counted: which recipe
a pattern got, whether a group grew by the next node or stopped before it, which layout a node was
run in, and how tensors change their layout.

Sizes in a recipe (padded weights, shapes between its kernels) are *slots*: all expressions that
gave the observed number are noted, and each further observation strikes out those that it
contradicts. (Mitchell, *Version spaces*, 1977.) So the size of a channel block is found, not known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from devices.errors import InvalidInputError
from latency.fusion_graph import (
    BLOCKED,
    PLAIN,
    TURNED,
    UNKNOWN,
    Features,
    LiveGraph,
    Pattern,
    bare_text,
    turned,
    view_layout,
)
from latency.kernel import SEEN_ATTRIBUTES

if TYPE_CHECKING:
    import onnx

    from latency.kernel import KernelNode

__all__ = ["FusionLearner", "expressions", "value_of"]

Shape = tuple[int, ...]
Slots = dict[str, set[str]]

DEFAULTS = "defaults"
"""The question whether attributes that a model leaves out are written down."""
_VERSION = 1
_ROUNDINGS = (4, 8, 16, 32, 64)
_LISTS = ("kernel", "strides", "dilations", "pads")
ATTRIBUTE_OF = dict(zip(_LISTS, ("kernel_shape", "strides", "dilations", "pads"), strict=True))


class FusionLearner:
    """Counts over the compiled graphs seen so far; more graphs only add to them.

    Attributes:
        graphs: how many were read.
        cores: pattern -> the same without optional constants.
        kept: for each question ("static", "copy Identity"): how often a node was (kept, dropped).
        layouts: for each operation: cases of features and layouts.
        steps: for each pattern with one more node: cases of features and whether it was fused.
        conversions: for each pair of layouts: kernels that change one into the other.
        recipes: pattern -> layouts -> recipe -> how often, and the slots that are left; a recipe
            whose sizes follow different expressions is there more than once.
    """

    def __init__(self) -> None:
        self.graphs = 0
        self.cores: dict[str, str] = {}
        self.kept: dict[str, list[int]] = {}
        self.layouts: dict[str, dict[str, int]] = {}
        self.steps: dict[str, dict[str, int]] = {}
        self.conversions: dict[str, dict[str, int]] = {}
        self.recipes: dict[str, dict[str, dict[str, list[tuple[int, Slots]]]]] = {}

    def add(self, original: onnx.ModelProto, compiled: bytes) -> None:
        """Reads one more compiled graph.

        Args:
            original: the model before compilation, with fixed shapes; left alone.
            compiled: see `latency.executed`.

        Raises:
            InvalidInputError: the compiled graph is not readable.
        """
        _Lesson(self, original, compiled).learn()
        self.graphs += 1

    def merge(self, other: FusionLearner) -> None:
        """Adds what another learner has seen; the same as reading its graphs."""
        self.graphs += other.graphs
        self.cores |= other.cores
        for question, counts in other.kept.items():
            mine = self.kept.setdefault(question, [0, 0])
            mine[0] += counts[0]
            mine[1] += counts[1]
        for here, there in (
            (self.layouts, other.layouts),
            (self.steps, other.steps),
            (self.conversions, other.conversions),
        ):
            for key, cases in there.items():
                for case, count in cases.items():
                    _count(here, key, case, count)
        for pattern, by_layout in other.recipes.items():
            for layout, recipes in by_layout.items():
                for recipe, variants in recipes.items():
                    for count, slots in variants:
                        self.note_recipe(pattern, layout, recipe, slots, count)

    def note_recipe(
        self, pattern: str, layout: str, recipe: str, slots: Slots, count: int = 1
    ) -> None:
        """Counts a recipe and strikes out what its slots contradict."""
        variants = (
            self.recipes.setdefault(pattern, {}).setdefault(layout, {}).setdefault(recipe, [])
        )
        for index, (seen, left) in enumerate(variants):
            both = {key: left[key] & slots.get(key, set()) for key in left}
            if _possible(both):
                variants[index] = (seen + count, both)
                return
        variants.append((count, slots))

    def to_json(self) -> dict[str, Any]:
        """The counts as a JSON object, from which learning can go on."""
        return {
            "version": _VERSION,
            "graphs": self.graphs,
            "cores": self.cores,
            "kept": self.kept,
            "layouts": self.layouts,
            "steps": self.steps,
            "conversions": self.conversions,
            "recipes": {
                pattern: {
                    layout: {
                        recipe: [
                            [count, {k: sorted(v) for k, v in sorted(slots.items())}]
                            for count, slots in variants
                        ]
                        for recipe, variants in recipes.items()
                    }
                    for layout, recipes in by_layout.items()
                }
                for pattern, by_layout in self.recipes.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The learner from what `to_json` gave.

        Raises:
            InvalidInputError: it is not a learner's state, or a newer version's.
        """
        learner = cls()
        try:
            if data["version"] != _VERSION:
                raise ValueError("version")
            learner.graphs = int(data["graphs"])
            learner.cores = {str(k): str(v) for k, v in data["cores"].items()}
            learner.kept = {str(k): [int(a), int(b)] for k, (a, b) in data["kept"].items()}
            for name in ("layouts", "steps", "conversions"):
                table = {
                    str(key): {str(case): int(count) for case, count in cases.items()}
                    for key, cases in data[name].items()
                }
                for cases in table.values():
                    for case in cases:
                        json.loads(case)
                setattr(learner, name, table)
            for pattern, by_layout in data["recipes"].items():
                for layout, recipes in by_layout.items():
                    for recipe, variants in recipes.items():
                        json.loads(recipe)
                        for count, slots in variants:
                            sets = {str(k): {str(x) for x in v} for k, v in slots.items()}
                            learner.note_recipe(pattern, layout, recipe, sets, int(count))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInputError(
                "fusion counts: not readable; profile the device again."
            ) from error
        return learner


def expressions(graph: LiveGraph, pattern: Pattern) -> dict[str, Any]:
    """Every number and shape of a group that a kernel's sizes may come from, by its expression.

    "x0" is the shape of the first external tensor, "n1.0" that of an output of the second node,
    "c0.1" of a constant, "a0.pads" an attribute; "x0@1" is one dimension, "x0@1^16" the same
    rounded up to a multiple of 16, "x0@:-1" the product of all dimensions but the last.
    """
    shapes: dict[str, Shape] = {}
    found: dict[str, Any] = {}
    for number, name in enumerate(pattern.externals):
        shapes[f"x{number}"] = graph.shape(name)
    for number, position in enumerate(pattern.order):
        node = graph.nodes[position]
        for index, name in enumerate(node.outputs):
            shapes[f"n{number}.{index}"] = graph.shape(name)
        constants = [(i, name) for i, name in enumerate(node.inputs) if name in graph.weights]
        if node.commutative:
            constants = [(i, name) for i, (_, name) in enumerate(constants)]
        for index, name in constants:
            if name in graph.static.shapes:
                shapes[f"c{number}.{index}"] = graph.shape(name)
                values = graph.static.values.get(name)
                if values is not None and values.size <= 16 and values.dtype.kind in "iu":
                    found[f"v{number}.{index}"] = values.tolist()
                    if values.size == 1:
                        found[f"v{number}.{index}@0"] = int(values.reshape(()))
        for key, value in node.attributes.items():
            found[f"a{number}.{key}"] = value
            if key == "group":
                found |= {f"a{number}.group^{r}": -(-value // r) * r for r in _ROUNDINGS}
    for name, shape in shapes.items():
        found[name] = list(shape)
        found[f"#{name}"] = len(shape)
        if len(shape) > 1:
            found[f"{name}@:-1"] = math.prod(shape[:-1])
            found[f"{name}@:"] = math.prod(shape)
        for axis, size in enumerate(shape):
            found[f"{name}@{axis}"] = size
            if name[0] != "n":
                found |= {f"{name}@{axis}^{r}": -(-size // r) * r for r in _ROUNDINGS}
    return found


def value_of(expression: str, known: Mapping[str, Any]) -> Any:
    """What an expression is in a group; None where it does not apply."""
    if expression.startswith("="):
        return json.loads(expression[1:])
    return known.get(expression)


def _may_be_groups(expression: str) -> bool:
    """A number of groups is an attribute, or all channels: not any size that is just equal."""
    exact = expression.partition("^")[0]
    return exact.endswith(".group") or (exact[0] == "c" and exact.endswith("@0"))


def _possible(slots: Slots) -> bool:
    """Whether every slot still has an expression, as a whole or for each dimension."""
    dimensions = {key.partition("@")[0] for key in slots if "@" in key}
    return all(found or key in dimensions for key, found in slots.items())


def _count(table: dict[str, dict[str, int]], key: str, case: str, count: int = 1) -> None:
    cases = table.setdefault(key, {})
    cases[case] = cases.get(case, 0) + count


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


class _Lesson:
    """One original and its compiled graph."""

    def __init__(self, learner: FusionLearner, original: onnx.ModelProto, compiled: bytes) -> None:
        from devices.onnx_files import name_nodes, parse_skeleton
        from latency.kernel_reading import KernelReader

        self.learner = learner
        original = name_nodes(original)
        graph_of_runtime, weights = parse_skeleton(compiled, "compiled graph")
        self.reader = reader = KernelReader(original, graph_of_runtime, weights)
        self.kernels: list[KernelNode] = reader.kernels()
        kept = {
            name
            for node, kernel in zip(reader.nodes, self.kernels, strict=True)
            for name in kernel.nodes
            if name in reader.original.by_name
            and reader.original.by_name[name].op_type == node.op_type
        }
        self.graph = graph = LiveGraph.of(original, lambda _, name: name not in kept)
        for question, name in graph.facts:
            counts = learner.kept.setdefault(question, [0, 0])
            counts[0 if name in kept else 1] += 1
        self.position = {node.name: i for i, node in enumerate(graph.nodes)}
        self._learn_defaults()
        self.blocked = self._blocked()
        self.equal = self._equal()
        self.native = self._native()
        self.head_of: dict[int, int] = {}

    def learn(self) -> None:
        groups = self._groups()
        for members, indices in groups:
            self.head_of.update((position, min(members)) for position in members)
            del indices
        self._learn_conversions()
        for members, indices in groups:
            parts = self.graph.ordered(members)
            if len(parts) == 1:
                self._learn_group(parts[0], indices)

    def _learn_defaults(self) -> None:
        """Whether the runtime writes down attributes that the model leaves out."""
        for item, compiled in zip(self.kernels, self.reader.nodes, strict=True):
            node = self.graph.nodes[self.position.get(item.nodes[0], 0)]
            left_out = node.defaults - SEEN_ATTRIBUTES
            if node.op == item.kernel.op and left_out:
                written = any(attribute.name in left_out for attribute in compiled.attribute)
                self.learner.kept.setdefault(DEFAULTS, [0, 0])[0 if written else 1] += 1

    # -- tensors of the compiled graph

    def _is_reorder(self, index: int) -> bool:
        return self.reader.nodes[index].op_type in ("ReorderInput", "ReorderOutput")

    def _is_change(self, index: int) -> bool:
        """Whether a kernel does nothing but bring a tensor into another layout."""
        node = self.reader.nodes[index]
        if node.op_type == "Transpose":
            source = self.equal.get(node.input[0])
            return source is not None and source == self.equal.get(node.output[0])
        return self._is_reorder(index)

    def _blocked(self) -> set[str]:
        """Compiled tensors with their channels in blocks."""
        domains = {n.domain for i, n in enumerate(self.reader.nodes) if self._is_reorder(i)}
        domains |= {n.domain for n in self.reader.nodes if n.domain.endswith((".nchwc", ".nhwc"))}
        blocked: set[str] = set()
        for node in self.reader.nodes:
            data = [name for name in node.input if name not in self.reader.weights]
            inside = node.domain in domains and node.op_type != "ReorderOutput"
            # Operations of ONNX's own go on in the layout that they get; others say theirs.
            goes_on = node.domain not in domains and not self.reader.told
            if inside or (goes_on and any(name in blocked for name in data)):
                blocked.update(node.output)
        return blocked

    def _equal(self) -> dict[str, str]:
        """Compiled tensor -> the live tensor with the same values, in some layout."""
        graph, found = self.graph, {}
        for name, original in self.reader.equal.items():
            target = graph.resolve(original)
            if target in graph.producer or target in graph.views or target in graph.inputs:
                shape, other = self.reader.shapes.get(name), graph.shape(target)
                if shape is None or shape == other or shape == turned(other, TURNED):
                    found[name] = target
        return found

    def _layout(self, name: str) -> str:
        """Layout of a compiled tensor, seen from the live tensor that it equals."""
        if name in self.blocked:
            return BLOCKED
        shape = self.reader.shapes.get(name)
        other = self.graph.shape(self.equal.get(name, ""))
        return TURNED if shape is not None and shape != other and other else PLAIN

    def _native(self) -> dict[str, str]:
        """Layout in which each live tensor is made."""
        native = dict.fromkeys(self.graph.inputs, PLAIN)
        for index, node in enumerate(self.reader.nodes):
            if not self._is_change(index):
                for name in node.output:
                    if name in self.equal and self.equal[name] not in self.graph.views:
                        native.setdefault(self.equal[name], self._layout(name))
        return native

    def _layout_of(self, tensor: str) -> str:
        """Layout in which a live tensor is there before anything is done for its readers."""
        if tensor in self.graph.views:
            source, perm = self.graph.views[tensor]
            return view_layout(perm, self._layout_of(source)) or UNKNOWN
        return self.native.get(tensor, UNKNOWN)

    def _as(self, tensor: str, name: str) -> str | None:
        """Layout of the compiled tensor seen from this live tensor, or None if they are not one."""
        equal = self.equal.get(name)
        if equal is None:
            return None
        if equal == tensor:
            return self._layout(name)
        if tensor in self.graph.views and self.graph.views[tensor][0] == equal:
            return view_layout(self.graph.views[tensor][1], self._layout(name))
        if equal in self.graph.views and self.graph.views[equal][0] == tensor:
            perm, layout = self.graph.views[equal][1], self._layout(name)
            options = (PLAIN, BLOCKED, TURNED)
            return next((o for o in options if view_layout(perm, o) == layout), None)
        return None

    # -- groups

    def _groups(self) -> list[tuple[list[int], list[int]]]:
        """Positions of live nodes and of compiled nodes that belong together."""
        parent = list(range(len(self.reader.nodes)))

        def find(index: int) -> int:
            while parent[index] != index:
                parent[index] = parent[parent[index]]
                index = parent[index]
            return index

        owner: dict[int, int] = {}
        maker: dict[str, int] = {}
        for index, node in enumerate(self.reader.nodes):
            for name in node.input:
                if name in maker and name not in self.equal:
                    parent[find(index)] = find(maker[name])
            maker.update((name, index) for name in node.output)
            if self._is_change(index):
                continue
            for name in self.kernels[index].nodes:
                position = self.position.get(name)
                if position is not None:
                    parent[find(index)] = find(owner.setdefault(position, index))
        members: dict[int, list[int]] = {}
        for position, index in owner.items():
            members.setdefault(find(index), []).append(position)
        indices: dict[int, list[int]] = {}
        for index in range(len(parent)):
            if not self._is_change(index):
                indices.setdefault(find(index), []).append(index)
        return [(sorted(found), indices[root]) for root, found in members.items()]

    def _learn_conversions(self) -> None:
        for index, node in enumerate(self.reader.nodes):
            kernel = self.kernels[index].kernel
            source, target = self.equal.get(node.input[0]), self.equal.get(node.output[0])
            if source is None or target is None:
                continue
            is_view = target in self.graph.views and self.graph.views[target][0] == source
            if not self._is_change(index) and not (is_view and node.op_type == "Transpose"):
                continue
            before = self._as(target, node.input[0])
            after = self._layout(node.output[0])
            if before is not None and before != after:
                case = _dump({"op": kernel.op, "attributes": kernel.attributes})
                _count(self.learner.conversions, f"{before}>{after}", case)

    def _learn_group(self, order: Sequence[int], indices: Sequence[int]) -> None:
        pattern = self.graph.pattern(order)
        recipe = self._recipe(pattern, indices)
        if recipe is None:
            return
        kernels, slots, layouts = recipe
        head = self.graph.nodes[order[0]]
        data = self.graph.dynamic(head)
        reads = "".join(sorted({layouts.get(name, UNKNOWN) for name in data}))
        outcome = f"{reads}>{layouts['']}"
        features = self.graph.head_features(order[0], [self._layout_of(name) for name in data])
        _count(self.learner.layouts, head.label, _dump([features, outcome]))
        self.learner.cores[pattern.text] = pattern.core
        self.learner.note_recipe(pattern.text, outcome, _dump(kernels), slots)
        for length in range(1, len(order)):
            self._note_step(order[:length], order[length], outcome, True)
        for position in self.graph.neighbours(order, lambda p: p > order[0]):
            self._note_step(order, position, outcome, False)

    def _note_step(self, order: Sequence[int], position: int, outcome: str, fused: bool) -> None:
        def layout_of(tensor: str) -> str:
            root = tensor
            while root in self.graph.views:
                root = self.graph.views[root][0]
            head = self.head_of.get(self.graph.producer.get(root, -1), -1)
            return self._layout_of(tensor) if head < order[0] else UNKNOWN

        features = self.graph.step_features(order, position, outcome, layout_of)
        core = self.graph.pattern((*order, position)).core
        features["core"] = core
        _count(self.learner.steps, bare_text(core), _dump([features, "1" if fused else "0"]))

    def _recipe(
        self, pattern: Pattern, indices: Sequence[int]
    ) -> tuple[list[dict[str, Any]], Slots, dict[str, str]] | None:
        """The kernels of a group in terms of its pattern, their slots, and the layouts."""
        known = expressions(self.graph, pattern)
        made: dict[str, str] = {}
        layouts: dict[str, str] = {}
        kernels: list[dict[str, Any]] = []
        slots: Slots = {}
        for number, index in enumerate(indices):
            node, kernel = self.reader.nodes[index], self.kernels[index].kernel
            inputs = []
            for name in node.input:
                if not name or name in self.reader.weights:
                    continue
                ref = made.get(name) or self._external(pattern, name, layouts)
                if ref is None:
                    return None
                inputs.append(ref)
            outputs = []
            for i, name in enumerate(n for n in node.output if n):
                made[name] = f"k{number}.{i}"
                ref = self._made(pattern, name)
                if ref:
                    layouts[""] = ref.rpartition(":")[2]
                else:
                    _shape_slots(slots, f"{number}.o{i}", kernel.outputs[i], known)
                outputs.append(ref)
            numbers = [f"x{i}" for i in range(len(pattern.externals))]
            ends = {ref.rpartition(":")[2] for ref in inputs}
            variadic = self.graph.nodes[pattern.order[0]].variadic and len(ends) == 1
            if variadic and [ref.rpartition(":")[0] for ref in inputs] == numbers:
                inputs = [f"x*:{ends.pop()}"]
            ends = {ref.rpartition(":")[2] for ref in outputs}
            whole = [f"n0.{i}" for i in range(len(self.graph.nodes[pattern.order[0]].outputs))]
            if len(whole) > 1 and [ref.rpartition(":")[0] for ref in outputs] == whole:
                outputs = [f"n0.*:{ends.pop()}"]
            for i, shape in enumerate(kernel.weights):
                _shape_slots(slots, f"{number}.w{i}", shape, known)
            for key in _LISTS:
                values = list(getattr(kernel, key))
                # A kernel without a window never has one, whatever of the original is empty too.
                _slot(slots, f"{number}.{key}", values, known if values else {})
            groups = {e: v for e, v in known.items() if _may_be_groups(e)}
            _slot(slots, f"{number}.groups", kernel.groups, groups)
            attributes = json.loads(kernel.attributes) if kernel.attributes else {}
            for key, value in attributes.items():
                _slot(slots, f"{number}.a.{key}", value, known)
            places = [self.position[n] for n in self.kernels[index].nodes if n in self.position]
            kernels.append(
                {
                    "op": kernel.op,
                    "in": inputs,
                    "out": outputs,
                    "w": len(kernel.weights),
                    "act": kernel.activation,
                    "add": int(kernel.fused_add),
                    "attrs": sorted(attributes),
                    "nodes": [pattern.order.index(p) for p in places if p in pattern.order],
                }
            )
        return (kernels, slots, layouts) if "" in layouts else None

    def _external(self, pattern: Pattern, name: str, layouts: dict[str, str]) -> str | None:
        for number, tensor in enumerate(pattern.externals):
            layout = self._as(tensor, name)
            if layout is not None:
                layouts[tensor] = layout
                return f"x{number}:{layout}"
        return None

    def _made(self, pattern: Pattern, name: str) -> str:
        """Which of the pattern's outputs a compiled tensor is, with its layout; "" for none."""
        for number, position in enumerate(pattern.order):
            for index, tensor in enumerate(self.graph.nodes[position].outputs):
                layout = self._as(tensor, name)
                if layout is not None:
                    return f"n{number}.{index}:{layout}"
        return ""


def _slot(slots: Slots, key: str, value: Any, known: Mapping[str, Any]) -> None:
    found = {name for name, other in known.items() if type(other) is type(value) and other == value}
    slots[key] = found | {f"={_dump(value)}"}


def _shape_slots(slots: Slots, key: str, shape: Iterable[int], known: Mapping[str, Any]) -> None:
    shape = list(shape)
    _slot(slots, key, shape, known)
    for axis, size in enumerate(shape):
        _slot(slots, f"{key}@{axis}", size, known)


def features_of(case: str) -> tuple[Features, str]:
    """Features and outcome of a stored case."""
    features, outcome = json.loads(case)
    return features, outcome
