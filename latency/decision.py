"""Small decision trees over counted cases: what decides, read off examples instead of written down.

A runtime's choices (which layout, fused or not) are exact functions of a few features. A tree
grown until its leaves are pure finds such functions from examples, and is a few numbers of JSON.
(Quinlan, *Induction of decision trees*, 1986; splits by Gini impurity.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Case", "decide", "grow_tree", "outcomes"]

Features = Mapping[str, int | str]
Case = tuple[Features, str, int]
"""Features, what happened, and how often it was seen."""
Tree = str | list[Any]
"""An outcome, or `[feature, value, tree_if_so, tree_if_not]`: for numbers "so" is at most the
value, for words it is equality."""

_DEPTH = 12


def grow_tree(cases: Sequence[Case], depth: int = _DEPTH) -> Tree:
    """The tree that decides the cases as they were seen.

    Args:
        cases: at least one; a feature that a case lacks counts as 0.
        depth: of the tree, at most.

    Returns:
        A JSON value.
    """
    counts = _count(cases)
    best = max(sorted(counts), key=lambda name: counts[name])
    if len(counts) == 1 or depth == 0:
        return best
    found = _best_split(cases, _impurity(counts))
    if found is None:
        return best
    name, value = found
    sides: tuple[list[Case], list[Case]] = ([], [])
    for case in cases:
        sides[0 if _holds(case[0].get(name, 0), value) else 1].append(case)
    return [name, value, grow_tree(sides[0], depth - 1), grow_tree(sides[1], depth - 1)]


def decide(tree: Tree, features: Features) -> str:
    """What a tree says of a case."""
    while not isinstance(tree, str):
        name, value, yes, no = tree
        tree = yes if _holds(features.get(name, 0), value) else no
    return tree


def outcomes(tree: Tree) -> set[str]:
    """All that a tree may say.

    Raises:
        ValueError: it is not a tree.
    """
    if isinstance(tree, str):
        return {tree}
    name, value, yes, no = tree
    if not isinstance(name, str) or not isinstance(value, int | str):
        raise ValueError("not a decision tree")
    return outcomes(yes) | outcomes(no)


def _holds(feature: int | str, value: int | str) -> bool:
    if isinstance(value, int):
        return isinstance(feature, int) and feature <= value
    return feature == value


def _count(cases: Sequence[Case]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for _, outcome, count in cases:
        counts[outcome] += count
    return counts


def _impurity(counts: Mapping[str, int]) -> float:
    total = sum(counts.values())
    return total - sum(n * n for n in counts.values()) / total if total else 0.0


def _best_split(cases: Sequence[Case], before: float) -> tuple[str, int | str] | None:
    """The question that leaves the least impurity; the first of equals, so that runs agree."""
    best: tuple[float, str, int | str] | None = None
    for name in sorted({name for features, _, _ in cases for name in features}):
        groups: dict[int | str, Counter[str]] = {}
        for features, outcome, count in cases:
            groups.setdefault(features.get(name, 0), Counter())[outcome] += count
        if len(groups) < 2:
            continue
        total = _count(cases)
        numbers = sorted(value for value in groups if isinstance(value, int))
        words = sorted(value for value in groups if isinstance(value, str))
        running: Counter[str] = Counter()
        questions: list[int | str] = [*numbers, *words]
        for value in questions:
            if isinstance(value, int):
                running = running + groups[value]
                inside = running
            else:
                inside = groups[value]
            outside = total - inside
            if not outside:
                continue
            after = _impurity(inside) + _impurity(outside)
            if after < before - 1e-9 and (best is None or after < best[0] - 1e-9):
                best = (after, name, value)
    return best[1:] if best else None
