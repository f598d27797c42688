"""Applies fusion rules to one network: groups its nodes, then writes out the kernels.

Nodes are gone through in the model's order. For each that is not yet part of a group the layouts
are decided, then the group grows as long as the rules have seen it grow. Kernels are written
afterwards, in an order in which they can run, with the changes of layout that they need in front
of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devices.errors import InvalidInputError
from latency.decision import decide
from latency.fusion_graph import (
    LAYOUTS,
    PLAIN,
    UNKNOWN,
    LiveGraph,
    LiveNode,
    Pattern,
    bare_label,
    bare_text,
    turned,
    view_layout,
)
from latency.fusion_learn import DEFAULTS, expressions, value_of
from latency.kernel import SEEN_ATTRIBUTES, Kernel, KernelGraph, KernelNode, family_of

if TYPE_CHECKING:
    import onnx

    from latency.fusion import FusionRules

__all__ = ["apply_rules", "explain"]

Shape = tuple[int, ...]

_IDLE = ("static", "copy Identity", "copy Dropout", "copy Cast")
"""Nodes that do nothing at run time; a reshape that changes no shape may yet be executed."""
_MAX_TRIES = 2000
"""Patterns tried in growing one group, so that a strange graph ends too."""
_LISTS = ("kernel", "strides", "dilations", "pads")


def apply_rules(rules: FusionRules, model: onnx.ModelProto) -> KernelGraph:
    """The kernels that the runtime would run for a model.

    Args:
        rules: what the runtime does.
        model: with fixed shapes; left alone.

    Returns:
        The kernels in an order in which they can run.

    Raises:
        InvalidInputError: nothing in the model depends on its inputs.
    """
    return explain(rules, model)[0]


def explain(rules: FusionRules, model: onnx.ModelProto) -> tuple[KernelGraph, tuple[str, ...]]:
    """As `apply_rules`, with the patterns that were never seen.

    Returns:
        The kernels, and the unknown patterns, each once, sorted.
    """
    return _Application(rules, model).result()


@dataclass(frozen=True)
class _Group:
    """Nodes that become kernels together."""

    pattern: Pattern
    recipe: Mapping[str, Any] | None


class _Application:
    """One network on its way through the rules."""

    def __init__(self, rules: FusionRules, model: onnx.ModelProto) -> None:
        """Reads the graph.

        Args:
            rules: what the runtime does.
            model: with fixed shapes; left alone.

        Raises:
            InvalidInputError: nothing in the model depends on its inputs.
        """
        from devices.onnx_files import name_nodes

        self.rules = rules
        model = name_nodes(model)
        self.graph = LiveGraph.of(model, lambda kind, _: self._drops(kind))
        if not self.graph.nodes:
            raise InvalidInputError("model: no node is left to run; export it again.")
        self.unknown: set[str] = set()
        self.by_core = _indexed(rules.recipes, str)
        self.by_bare = _indexed(rules.recipes, bare_text)
        self.native = dict.fromkeys(self.graph.inputs, PLAIN)
        self.claimed: set[int] = set()
        self.kernels: list[KernelNode] = []
        # (live tensor, layout) -> the kernel that makes it, -1 for an input of the network.
        self.made: dict[tuple[str, str], int] = dict.fromkeys(
            ((name, PLAIN) for name in self.graph.inputs), -1
        )
        self.names: Counter[str] = Counter()

    def result(self) -> tuple[KernelGraph, tuple[str, ...]]:
        """The kernels, and the patterns that were never seen."""
        groups = []
        for position in range(len(self.graph.nodes)):
            if position not in self.claimed:
                groups.append(self._group(position))
        for group in self._scheduled(groups):
            self._emit(group)
        for tensor in dict.fromkeys(self.graph.outputs):
            self._ensure(tensor, PLAIN, self._maker(tensor))
        return KernelGraph(tuple(self.kernels)), tuple(sorted(self.unknown))

    def _drops(self, kind: str) -> bool:
        """Whether the runtime drops a kind of node.

        A kind that was never seen is taken as its like; where none was, a runtime that fuses
        anything at all is taken to drop constants and copies too.
        """
        if kind in self.rules.dropped:
            return self.rules.dropped[kind]
        if kind not in _IDLE:
            return False
        known = [self.rules.dropped[other] for other in _IDLE if other in self.rules.dropped]
        if known:
            return sum(known) * 2 >= len(known)
        return any(";" in pattern for pattern in self.rules.recipes)

    def _maker(self, tensor: str) -> tuple[str, ...]:
        return (self.graph.nodes[max(self._position(tensor), 0)].name,)

    # -- which nodes belong together

    def _group(self, head: int) -> _Group:
        graph, node = self.graph, self.graph.nodes[head]
        layouts = [self._layout_of(name) for name in graph.dynamic(node)]
        tree = self.rules.layouts.get(node.label, self.rules.layouts.get(bare_label(node.label)))
        outcome = f"{PLAIN}>{PLAIN}"
        if tree is not None:
            outcome = decide(tree, graph.head_features(head, layouts))
        self.tries = _MAX_TRIES
        order = self._grown((head,), outcome)
        for twin in graph.neighbours((head,), self._is_twin(head)) if len(order or ()) < 2 else ():
            found = self._grown((twin,), outcome)
            if found is not None and head in found:
                order = found
                break
        pattern = graph.pattern(order or (head,))
        recipe = self._recipe(pattern, outcome) if order else self._similar(pattern, outcome)
        if recipe is None:
            self.unknown.add(pattern.text)
        self.claimed.update(pattern.order)
        self._note_layouts(pattern, recipe)
        return _Group(pattern, recipe)

    def _grown(self, order: tuple[int, ...], outcome: str) -> tuple[int, ...] | None:
        """The largest known group that begins with these nodes, or None."""
        graph = self.graph
        for position in graph.neighbours(order, lambda p: p not in self.claimed):
            self.tries -= 1
            if self.tries < 0:
                break
            core = graph.pattern((*order, position)).core
            tree = self.rules.steps.get(bare_text(core))
            if tree is None:
                continue
            features = graph.step_features(order, position, outcome, self._layout_of)
            features["core"] = core
            if decide(tree, features) == "1" and not self._circular(order, position):
                found = self._grown((*order, position), outcome)
                if found is not None:
                    return found
        known = self._recipe(graph.pattern(order), outcome) is not None
        return order if known else None

    def _is_twin(self, head: int) -> Callable[[int], bool]:
        """Whether a node does the same as the head to the same tensor."""
        node = self.graph.nodes[head]

        def check(position: int) -> bool:
            other = self.graph.nodes[position]
            same = other.op == node.op and other.inputs[:1] == node.inputs[:1]
            return same and position not in self.claimed

        return check

    def _circular(self, order: Sequence[int], position: int) -> bool:
        """Whether a node waits for something else that waits for the group."""
        graph = self.graph
        waiting = [n for n in graph.nodes[position].inputs if n]
        seen: set[int] = set()
        first = True
        while waiting:
            name = waiting.pop()
            while name in graph.views:
                name = graph.views[name][0]
            source = graph.producer.get(name, -1)
            if source < min(order) or source in seen:
                continue
            if source in order:
                if first or name in graph.nodes[position].inputs:
                    continue
                return True
            seen.add(source)
            waiting.extend(n for n in graph.nodes[source].inputs if n)
            if any(graph.producer.get(n, -1) in order for n in graph.nodes[source].inputs):
                return True
        return False

    def _recipe(self, pattern: Pattern, outcome: str) -> Mapping[str, Any] | None:
        """The pattern's recipe, or that of the most similar pattern in the same layout.

        A grouped convolution with an activation that was seen only with dense ones fuses as those
        do, and its weights are kept as those of a grouped one without the activation.
        """
        exact = self.rules.recipes.get(pattern.text, {}).get(outcome)
        exact = exact or self.by_core.get((pattern.core, outcome))
        if exact is not None:
            return exact
        similar = self.by_bare.get((bare_text(pattern.core), outcome))
        head = self.by_core.get((pattern.core.partition(";")[0], outcome))
        return _combined(similar, head) if similar is not None and head is not None else None

    def _similar(self, pattern: Pattern, outcome: str) -> Mapping[str, Any] | None:
        """A recipe for a pattern that was not seen in this layout, or not with these axes."""
        recipes = self.rules.recipes
        by_layout = recipes.get(pattern.text)
        if by_layout is None:
            bare = bare_text(pattern.text)
            for text, options in recipes.items():
                if bare_text(text) == bare and outcome in options:
                    return options[outcome]
            return None
        return max(by_layout.values(), key=lambda recipe: int(recipe["n"]))

    def _layout_of(self, tensor: str) -> str:
        if tensor in self.graph.views:
            source, perm = self.graph.views[tensor]
            return view_layout(perm, self._layout_of(source)) or UNKNOWN
        return self.native.get(tensor, UNKNOWN)

    def _note_layouts(self, pattern: Pattern, recipe: Mapping[str, Any] | None) -> None:
        for number, position in enumerate(pattern.order):
            for index, name in enumerate(self.graph.nodes[position].outputs):
                self.native[name] = PLAIN
                for ref in (
                    r for kernel in (recipe or {}).get("kernels", ()) for r in kernel["out"]
                ):
                    place, _, layout = ref.rpartition(":")
                    if place in (f"n{number}.{index}", f"n{number}.*"):
                        self.native[name] = layout

    def _scheduled(self, groups: Sequence[_Group]) -> list[_Group]:
        """Groups in an order in which each comes after what it reads.

        It is that of a search backwards from the outputs, later inputs first, as runtimes order
        their nodes; where several orders are possible, most of the runtime's is met.
        """
        owner = {position: i for i, g in enumerate(groups) for position in g.pattern.order}
        needs: list[list[int]] = []
        for index, group in enumerate(groups):
            found = {owner[p] for p in map(self._position, group.pattern.externals) if p >= 0}
            needs.append(sorted(found - {index}))
        read = {source for sources in needs for source in sources}
        done: set[int] = set()
        ordered: list[_Group] = []
        stack = [(index, False) for index in range(len(groups)) if index not in read]
        while stack:
            index, ready = stack.pop()
            if ready:
                ordered.append(groups[index])
            elif index not in done:
                done.add(index)
                stack.append((index, True))
                stack.extend((source, False) for source in needs[index])
        return ordered + [group for i, group in enumerate(groups) if i not in done]

    def _position(self, tensor: str) -> int:
        """Position of the node that a tensor comes from, views looked through; -1 for none."""
        while tensor in self.graph.views:
            tensor = self.graph.views[tensor][0]
        return self.graph.producer.get(tensor, -1)

    # -- kernels

    def _emit(self, group: _Group) -> None:
        if group.recipe is None:
            for position in group.pattern.order:
                self._emit_node(position)
            return
        known = expressions(self.graph, group.pattern)
        slots = group.recipe["slots"]
        shapes: dict[str, Shape] = {}
        places: dict[str, int] = {}
        for number, spec in enumerate(group.recipe["kernels"]):
            names = self._names_of(group.pattern, spec["nodes"])
            inputs: list[Shape] = []
            sources: list[int] = []
            wanted = [pair for ref in spec["in"] for pair in self._externals(group.pattern, ref)]
            for tensor, layout in sorted(wanted, key=lambda pair: -self._position(pair[0])):
                self._ensure(tensor, layout, names)
            for ref in spec["in"]:
                if ref.startswith("k"):
                    inputs.append(shapes.get(ref, ()))
                    sources.append(places.get(ref, -1))
                    continue
                for tensor, layout in self._externals(group.pattern, ref):
                    sources.append(self._ensure(tensor, layout, names))
                    inputs.append(turned(self.graph.shape(tensor), layout))
            outputs: list[Shape] = []
            dtype = ""
            here = len(self.kernels)
            for i, ref in enumerate(spec["out"]):
                if not ref:
                    outputs.append(_sized(f"{number}.o{i}", slots, known) or ())
                for tensor, layout in self._results(group.pattern, ref):
                    outputs.append(turned(self.graph.shape(tensor), layout))
                    self.made.setdefault((tensor, layout), here)
                    dtype = dtype or self.graph.static.dtypes.get(tensor, "")
            for i, shape in enumerate(outputs):
                shapes[f"k{number}.{i}"] = shape
                places[f"k{number}.{i}"] = here
            if not dtype and group.pattern.externals:
                dtype = self.graph.static.dtypes.get(group.pattern.externals[0], "")
            lists: dict[str, Shape] = {
                key: tuple(
                    int(n) for n in value_of(slots.get(f"{number}.{key}", "=[]"), known) or ()
                )
                for key in _LISTS
            }
            groups = int(value_of(slots.get(f"{number}.groups", "=1"), known) or 1)
            op = str(spec["op"])
            attributes = {
                key: value_of(slots.get(f"{number}.a.{key}", "=0"), known) for key in spec["attrs"]
            }
            if self.rules.dropped.get(DEFAULTS) and op == self._leader(group.pattern, spec).op:
                attributes = self._written(self._leader(group.pattern, spec))
            kernel = Kernel(
                family=family_of(
                    op.rpartition(".")[2], lists["kernel"], groups, inputs, spec["w"] > 0
                ),
                op=op,
                inputs=tuple(inputs),
                outputs=tuple(outputs),
                weights=_weights(number, spec, slots, known),
                groups=groups,
                activation=str(spec["act"]),
                fused_add=bool(spec["add"]),
                dtype=dtype or "float32",
                attributes=_text(attributes),
                kernel=lists["kernel"],
                strides=lists["strides"],
                dilations=lists["dilations"],
                pads=lists["pads"],
            )
            self._append(kernel, names, sources)

    def _emit_node(self, position: int) -> None:
        """A node that no rule speaks of: one kernel, as the model has it."""
        node, graph = self.graph.nodes[position], self.graph
        names = (node.name,)
        data = [n for n in node.inputs if n and n not in graph.weights]
        inputs = [graph.shape(name) for name in data]
        sources = [self._ensure(name, PLAIN, names) for name in data]
        for name in node.outputs:
            self.made[name, PLAIN] = len(self.kernels)
        window = tuple(node.attributes.get("kernel_shape", ()))
        weights = tuple(graph.shape(n) for n in node.inputs if n in graph.weights)
        groups = int(node.attributes.get("group", 1))
        kernel = Kernel(
            family=family_of(node.op.rpartition(".")[2], window, groups, inputs, bool(weights)),
            op=node.op,
            inputs=tuple(inputs),
            outputs=tuple(graph.shape(name) for name in node.outputs),
            weights=weights,
            kernel=window,
            strides=tuple(node.attributes.get("strides", ())),
            dilations=tuple(node.attributes.get("dilations", ())),
            pads=tuple(node.attributes.get("pads", ())),
            groups=groups,
            dtype=graph.static.dtypes.get(node.outputs[0], "float32")
            if node.outputs
            else "float32",
            attributes=_text(self._written(node)),
        )
        self._append(kernel, names, sources)

    def _leader(self, pattern: Pattern, spec: Mapping[str, Any]) -> LiveNode:
        """The node that a kernel of a group does the work of."""
        first = next(iter(spec["nodes"]), 0)
        return self.graph.nodes[pattern.order[first if first < len(pattern.order) else 0]]

    def _written(self, node: LiveNode) -> dict[str, Any]:
        """A node's attributes as the runtime writes them down."""
        unwritten = node.defaults if self.rules.dropped.get(DEFAULTS) else frozenset[str]()
        return {
            key: value
            for key, value in node.attributes.items()
            if key not in SEEN_ATTRIBUTES and key not in unwritten
        }

    def _ensure(self, tensor: str, layout: str, names: tuple[str, ...]) -> int:
        """The kernel that makes a tensor in a layout; a change of layout is added where needed."""
        if (tensor, layout) in self.made:
            return self.made[tensor, layout]
        if tensor in self.graph.views:
            viewed, perm = self.graph.views[tensor]
            for stored in LAYOUTS:
                if (viewed, stored) in self.made and view_layout(perm, stored) == layout:
                    return self.made[viewed, stored]
        native, conversions = self._layout_of(tensor), self.rules.conversions
        change = conversions.get(f"{native}>{layout}")
        source, shape = self._root(tensor), self.graph.shape(tensor)
        before, attributes = turned(shape, native), ""
        if change is None and layout != PLAIN and f"{PLAIN}>{layout}" in conversions:
            change = conversions[f"{PLAIN}>{layout}"]
            source, before = self._ensure(tensor, PLAIN, names), shape
        if native == layout or (change is None and tensor not in self.graph.views):
            return source
        if change is None:
            viewed, perm = self.graph.views[tensor]
            source, before = self._ensure(viewed, PLAIN, names), self.graph.shape(viewed)
            attributes = _text({"perm": list(perm)})
        if tensor in self.graph.views:
            names = (*self.graph.copies.get(tensor, ()), *names)
        op = str(change["op"]) if change else "Transpose"
        kernel = Kernel(
            family=family_of(op.rpartition(".")[2], (), 1, [before], False),
            op=op,
            inputs=(before,),
            outputs=(turned(shape, layout),),
            dtype=self.graph.static.dtypes.get(tensor, "float32"),
            attributes=str(change["attributes"]) if change else attributes,
        )
        self.made[tensor, layout] = len(self.kernels)
        self._append(kernel, names[:1], [source])
        return self.made[tensor, layout]

    def _root(self, tensor: str) -> int:
        """The kernel that makes a tensor in the layout that it is made in."""
        while tensor in self.graph.views:
            tensor = self.graph.views[tensor][0]
        return self.made.get((tensor, self.native.get(tensor, PLAIN)), -1)

    def _externals(self, pattern: Pattern, ref: str) -> list[tuple[str, str]]:
        place, _, layout = ref.rpartition(":")
        if not place.startswith("x"):
            return []
        if place == "x*":
            return [(tensor, layout) for tensor in pattern.externals]
        number = int(place[1:])
        return [(pattern.externals[number], layout)] if number < len(pattern.externals) else []

    def _results(self, pattern: Pattern, ref: str) -> list[tuple[str, str]]:
        place, _, layout = ref.rpartition(":")
        if not place:
            return []
        number, _, index = place[1:].partition(".")
        outputs = self.graph.nodes[pattern.order[int(number)]].outputs
        if index == "*":
            return [(tensor, layout) for tensor in outputs]
        return [(outputs[int(index)], layout)] if int(index) < len(outputs) else []

    def _names_of(self, pattern: Pattern, places: Sequence[int]) -> tuple[str, ...]:
        positions = [pattern.order[i] for i in places if i < len(pattern.order)]
        names = [self.graph.nodes[p].name for p in positions or pattern.order]
        for position in positions:
            for tensor in self.graph.nodes[position].inputs:
                names += self.graph.copies.pop(tensor, []) if tensor not in self.graph.views else []
        return tuple(names)

    def _append(self, kernel: Kernel, names: tuple[str, ...], sources: Sequence[int]) -> None:
        name = names[0]
        self.names[name] += 1
        if self.names[name] > 1:
            name = f"{name}#{self.names[name]}"
        self.kernels.append(KernelNode(kernel, name, names, tuple(sources)))


def _combined(recipe: Mapping[str, Any], head: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """One pattern's kernel with the sizes of another's, or None where they do not fit."""
    kernels = (*recipe["kernels"], *head["kernels"])
    if len(kernels) != 2 or kernels[0]["op"].split(".")[-1] != kernels[1]["op"].split(".")[-1]:
        return None
    own = {key.partition("@")[0] for key in head["slots"]}
    others = {k: v for k, v in recipe["slots"].items() if k.partition("@")[0] not in own}
    return {**recipe, "slots": {**others, **head["slots"]}}


def _indexed(
    recipes: Mapping[str, Mapping[str, Mapping[str, Any]]], key_of: Callable[[str], str]
) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The most frequent recipe of the patterns that are one to `key_of`, by key and layout."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for by_layout in recipes.values():
        for layout, recipe in by_layout.items():
            key = (key_of(str(recipe["core"])), layout)
            if key not in found or int(recipe["n"]) > int(found[key]["n"]):
                found[key] = recipe
    return found


def _sized(key: str, slots: Mapping[str, str], known: Mapping[str, Any]) -> Shape | None:
    """The shape that a slot has in a group, or None where the group lacks what it comes from."""
    if key in slots:
        whole = value_of(slots[key], known)
        return tuple(int(n) for n in whole) if isinstance(whole, list) else None
    sizes: list[int] = []
    while f"{key}@{len(sizes)}" in slots:
        size = value_of(slots[f"{key}@{len(sizes)}"], known)
        if not isinstance(size, int):
            return None
        sizes.append(size)
    return tuple(sizes) if sizes else None


def _weights(
    number: int, spec: Mapping[str, Any], slots: Mapping[str, str], known: Mapping[str, Any]
) -> tuple[Shape, ...]:
    """Shapes of a kernel's weights; those of a bias that this group does not have are left out."""
    shapes = (_sized(f"{number}.w{i}", slots, known) for i in range(int(spec["w"])))
    return tuple(shape for shape in shapes if shape is not None)


def _text(attributes: Mapping[str, Any]) -> str:
    if not attributes:
        return ""
    return json.dumps(dict(attributes), sort_keys=True, separators=(",", ":"))
