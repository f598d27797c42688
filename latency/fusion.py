"""Fusion rules: from a network to the kernels that a runtime would run, without the runtime.

A card is often used where its runtime is not: for a phone's card on a workstation, say, whose own
ONNX Runtime would build other kernels. So while a device is profiled, what the runtime makes of the
probe networks is read (`latency.fusion_learn`) and kept in the card; here it is applied to networks
that were never compiled. Nothing in this module knows a runtime's rules: which layers fuse, which
channel counts go into blocked layouts, how weights are padded are all decisions learned from
examples. What was never seen becomes one kernel a node, and is named.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from devices.errors import InvalidInputError
from latency.decision import Case, grow_tree, outcomes
from latency.fusion_graph import bare_label
from latency.fusion_learn import ATTRIBUTE_OF, FusionLearner, features_of, value_of

if TYPE_CHECKING:
    import onnx

__all__ = ["FusionLearner", "FusionRules"]

Tree = str | list[Any]

_VERSION = 1


@dataclass(frozen=True)
class FusionRules:
    """What a runtime makes of a network's nodes; use `learn` or `from_json`.

    Attributes:
        graphs: compiled graphs that it was learned from.
        dropped: for each question ("static", "copy Identity") whether such nodes are dropped.
        layouts: operation -> tree that decides the layouts it reads and writes, as "b>b".
        steps: pattern with one more node -> tree that decides whether it is fused ("1").
        conversions: pair of layouts -> the kernel between them.
        recipes: pattern -> layouts -> kernels, as `latency.fusion_learn` writes them.
    """

    graphs: int
    dropped: Mapping[str, bool]
    layouts: Mapping[str, Tree]
    steps: Mapping[str, Tree]
    conversions: Mapping[str, Mapping[str, str]]
    recipes: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @classmethod
    def learn(cls, pairs: Iterable[tuple[onnx.ModelProto, bytes]]) -> Self:
        """Rules from networks and their compiled graphs.

        Args:
            pairs: models with fixed shapes, each with see `latency.executed`.

        Raises:
            InvalidInputError: a compiled graph is not readable.
        """
        learner = FusionLearner()
        for original, compiled in pairs:
            learner.add(original, compiled)
        return cls.of(learner)

    @classmethod
    def of(cls, learner: FusionLearner) -> Self:
        """The rules that follow from what a learner has counted."""
        by_op: dict[str, dict[str, int]] = {}
        for label, cases in learner.layouts.items():
            for case, count in cases.items():
                place = by_op.setdefault(bare_label(label), {})
                place[case] = place.get(case, 0) + count
        steps = {key: _cases(cases) for key, cases in learner.steps.items()}
        return cls(
            graphs=learner.graphs,
            dropped={q: gone > kept for q, (kept, gone) in sorted(learner.kept.items())},
            layouts={
                label: grow_tree(_cases(cases))
                for label, cases in sorted({**by_op, **learner.layouts}.items())
            },
            steps={
                key: grow_tree(cases)
                for key, cases in sorted(steps.items())
                if any(outcome == "1" for _, outcome, _ in cases)
            },
            conversions={
                pair: json.loads(max(sorted(cases), key=lambda case: cases[case]))
                for pair, cases in sorted(learner.conversions.items())
            },
            recipes=_resolved(learner),
        )

    def to_json(self) -> dict[str, Any]:
        """The rules as a JSON object."""
        return {
            "version": _VERSION,
            "graphs": self.graphs,
            "dropped": dict(self.dropped),
            "layouts": dict(self.layouts),
            "steps": dict(self.steps),
            "conversions": {k: dict(v) for k, v in self.conversions.items()},
            "recipes": {k: {o: dict(r) for o, r in v.items()} for k, v in self.recipes.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The rules from what `to_json` gave.

        Raises:
            InvalidInputError: it is not a set of rules, or a newer version's.
        """
        try:
            if data["version"] != _VERSION:
                raise ValueError("version")
            for table in ("layouts", "steps"):
                for tree in data[table].values():
                    outcomes(tree)
            for conversion in data["conversions"].values():
                if not isinstance(conversion["op"], str):
                    raise ValueError("conversion")
                json.loads(conversion["attributes"] or "{}")
            for pattern, by_layout in data["recipes"].items():
                for recipe in by_layout.values():
                    _check_recipe(recipe, nodes=pattern.count(";") + 1)
            return cls(
                graphs=int(data["graphs"]),
                dropped={str(k): bool(v) for k, v in data["dropped"].items()},
                layouts=dict(data["layouts"]),
                steps=dict(data["steps"]),
                conversions=dict(data["conversions"]),
                recipes=dict(data["recipes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise InvalidInputError(
                "fusion rules: not readable; profile the device again."
            ) from error


def _cases(counted: Mapping[str, int]) -> list[Case]:
    return [(*features_of(case), count) for case, count in sorted(counted.items())]


def _resolved(learner: FusionLearner) -> dict[str, dict[str, dict[str, Any]]]:
    """The most frequent recipe of each pattern, with one expression for each slot.

    Where several expressions are left (all sizes seen were multiples of the block, say), the one
    that holds in most of the operation's other recipes is taken.
    """
    votes: Counter[tuple[str, str, str]] = Counter()
    best: dict[tuple[str, str], tuple[list[dict[str, Any]], int, dict[str, set[str]]]] = {}
    for pattern, by_layout in learner.recipes.items():
        for layout, recipes in by_layout.items():
            options = [(n, text, slots) for text in sorted(recipes) for n, slots in recipes[text]]
            count, text, slots = max(options, key=lambda option: option[0])
            best[pattern, layout] = (json.loads(text), count, slots)
            for key, left in slots.items():
                voters = _voters(pattern, layout, json.loads(text), key)
                votes.update((voters, key.partition(".")[2], found) for found in left)
    resolved: dict[str, dict[str, dict[str, Any]]] = {}
    for (pattern, layout), (kernels, count, slots) in sorted(best.items()):
        chosen: dict[str, tuple[int, str]] = {}
        for key, left in sorted(slots.items()):
            voters, slot = _voters(pattern, layout, kernels, key), key.partition(".")[2]
            ranked = sorted(
                (
                    e.startswith("=") and e != "=1",
                    -votes[voters, slot, e],
                    not _namesake(slot, e),
                    len(e),
                    e,
                )
                for e in left
            )
            if ranked:
                chosen[key] = (-ranked[0][1], ranked[0][-1])
        resolved.setdefault(pattern, {})[layout] = {
            "n": count,
            "core": learner.cores.get(pattern, pattern),
            "kernels": kernels,
            "slots": _settled(chosen),
        }
    return resolved


def _voters(pattern: str, layout: str, kernels: Sequence[Mapping[str, Any]], key: str) -> str:
    """Recipes whose slot of that name should follow the same expression."""
    return f"{pattern.partition('(')[0]} {layout} {kernels[int(key.partition('.')[0])]['op']}"


def _namesake(slot: str, expression: str) -> bool:
    """Whether an expression is called after the slot: same attribute, or weight of that number."""
    if slot.startswith("w"):
        number, _, axis = slot[1:].partition("@")
        name, _, rest = expression.partition("@")
        return name.endswith(f".{int(number) + 1}") and rest.partition("^")[0] == axis
    wanted = ATTRIBUTE_OF.get(slot, slot.removeprefix("a."))
    return expression.partition("^")[0].endswith(f".{wanted}")


def _settled(chosen: Mapping[str, tuple[int, str]]) -> dict[str, str]:
    """One expression a slot; a shape is a tensor's, or follows dimension by dimension.

    A tensor's shape is taken only if that was contradicted no more often than its dimensions were.
    """
    whole = set()
    for key, (votes, expression) in chosen.items():
        sizes = [v for other, (v, _) in chosen.items() if other.startswith(f"{key}@")]
        if "@" not in key and not expression.startswith("=") and votes >= min(sizes, default=0):
            whole.add(key)
    shaped = {key.partition("@")[0] for key in chosen if "@" in key}
    return {
        key: expression
        for key, (_, expression) in chosen.items()
        if key in whole or (key not in shaped and key.partition("@")[0] not in whole)
    }


_REFERENCE = re.compile(r"|x(\d+|\*):\w|k\d+\.\d+|n(?P<node>\d+)\.(\d+|\*):\w")


def _check_recipe(recipe: Mapping[str, Any], nodes: int) -> None:
    """Raises what `from_json` turns into an error when a recipe is not one."""
    int(recipe["n"]), str(recipe["core"])
    for kernel in recipe["kernels"]:
        for ref in (*kernel["in"], *kernel["out"]):
            found = _REFERENCE.fullmatch(ref)
            if found is None or int(found["node"] or 0) >= nodes:
                raise ValueError("reference")
        if not isinstance(kernel["op"], str) or not isinstance(kernel["act"], str):
            raise ValueError("operation")
        [int(n) for n in (kernel["w"], *kernel["nodes"], kernel["add"])]
        [str(key) for key in kernel["attrs"]]
    if not recipe["kernels"]:
        raise ValueError("no kernels")
    for expression in recipe["slots"].values():
        value_of(expression, {})
