"""Output shapes of the operations that move or reduce data, told by integers among their inputs.

Like `latency.shape_rules`: what ONNX says, operation by operation, without asking it; what is not
certain is left to ONNX. Transformers consist of these to a third.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["has_move_rule", "moved_shapes"]

Shape = tuple[int, ...]
Numbers = tuple[int, ...]
Options = Mapping[str, Any]
Rule = Callable[[Shape, Sequence["Numbers | None"], Options, int], "Sequence[Shape] | None"]


def has_move_rule(op: str) -> bool:
    """Whether `moved_shapes` knows an operation of ONNX's own domain."""
    return op in _RULES


def moved_shapes(
    op: str,
    shape: Shape,
    further: Sequence[Numbers | None],
    options: Options,
    outputs: int,
) -> Sequence[Shape] | None:
    """The shapes of an operation's outputs, whose element type is that of its first input.

    Args:
        op: of ONNX's own domain, one that has a rule.
        shape: of the first input.
        further: the other inputs' numbers; for "Gather" their shape instead. None where an input
            is left out.
        options: see `latency.onnx_node.Node`.
        outputs: how many there are.

    Returns:
        A shape for each output, or None where no rule here says it for certain.
    """
    found = _RULES[op](shape, further, options, outputs)
    if found is None or len(found) != outputs or any(min(s, default=0) < 0 for s in found):
        return None
    return found


def _numbers(
    further: Sequence[Numbers | None], place: int, options: Options, name: str
) -> Numbers | None:
    """What newer operator sets have as an input and older ones as an attribute."""
    if place < len(further) and further[place] is not None:
        return further[place]
    found = options.get(name)
    return None if found is None else tuple(found)


def _places(axes: Sequence[int], rank: int) -> list[int] | None:
    """Axes counted from the front; None where one is none, or stands twice."""
    found = [axis + rank if axis < 0 else axis for axis in axes]
    if any(not 0 <= axis < rank for axis in found) or len({*found}) != len(found):
        return None
    return found


def _reshaped(
    shape: Shape, further: Sequence[Numbers | None], options: Options, outputs: int
) -> Sequence[Shape] | None:
    wanted = further[0] if further else None
    if wanted is None or wanted.count(-1) > 1:
        return None
    sides = []
    for place, side in enumerate(wanted):
        if side == 0 and not options.get("allowzero"):
            if place >= len(shape):
                return None
            side = shape[place]
        sides.append(side)
    total, known = math.prod(shape), math.prod(side for side in sides if side != -1)
    if -1 in sides:
        if not known or total % known:
            return None
        sides[sides.index(-1)] = total // known
    return [tuple(sides)] if math.prod(sides) == total else None


def _squeezed(
    shape: Shape, further: Sequence[Numbers | None], options: Options, outputs: int
) -> Sequence[Shape] | None:
    axes = _numbers(further, 0, options, "axes")
    if axes is None:
        return [tuple(side for side in shape if side != 1)]
    places = _places(axes, len(shape))
    if places is None or any(shape[place] != 1 for place in places):
        return None
    return [tuple(side for place, side in enumerate(shape) if place not in places)]


def _unsqueezed(
    shape: Shape, further: Sequence[Numbers | None], options: Options, outputs: int
) -> Sequence[Shape] | None:
    axes = _numbers(further, 0, options, "axes")
    places = None if axes is None else _places(axes, len(shape) + len(axes))
    if axes is None or places is None:
        return None
    rest = iter(shape)
    return [tuple(1 if i in places else next(rest) for i in range(len(shape) + len(axes)))]


def _sliced(
    shape: Shape, further: Sequence[Numbers | None], options: Options, outputs: int
) -> Sequence[Shape] | None:
    starts = _numbers(further, 0, options, "starts")
    ends = _numbers(further, 1, options, "ends")
    if starts is None or ends is None:
        return None
    axes = _numbers(further, 2, options, "axes")
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (further[3] if len(further) > 3 else None) or (1,) * len(starts)
    places = _places(axes, len(shape))
    if places is None or not len(starts) == len(ends) == len(places) == len(steps):
        return None
    if min(steps, default=1) < 1:
        return None  # backwards: what is beyond the ends counts otherwise than in Python
    sides = list(shape)
    for place, start, end, step in zip(places, starts, ends, steps, strict=True):
        sides[place] = len(range(*slice(start, end, step).indices(shape[place])))
    return [tuple(sides)]


def _parts(
    shape: Shape, further: Sequence[Numbers | None], options: Options, outputs: int
) -> Sequence[Shape] | None:
    places = _places([options.get("axis", 0)], len(shape))
    if places is None:
        return None
    (place,) = places
    sizes = _numbers(further, 0, options, "split")
    if sizes is None:
        if shape[place] % outputs:
            return None  # uneven parts differ between operator sets
        sizes = (shape[place] // outputs,) * outputs
    if sum(sizes) != shape[place]:
        return None
    return [(*shape[:place], size, *shape[place + 1 :]) for size in sizes]


def _gathered(
    shape: Shape, further: Sequence[Numbers | None], options: Options, outputs: int
) -> Sequence[Shape] | None:
    places = _places([options.get("axis", 0)], len(shape))
    if places is None or not further or further[0] is None:
        return None
    return [(*shape[: places[0]], *further[0], *shape[places[0] + 1 :])]


def _padded(
    shape: Shape, further: Sequence[Numbers | None], options: Options, outputs: int
) -> Sequence[Shape] | None:
    pads = _numbers(further, 0, options, "pads")
    axes = further[2] if len(further) > 2 else None
    places = _places(range(len(shape)) if axes is None else axes, len(shape))
    if pads is None or places is None or len(pads) != 2 * len(places):
        return None
    sides = list(shape)
    for index, place in enumerate(places):
        sides[place] += pads[index] + pads[len(places) + index]
    return [tuple(sides)]


def _reduced(
    shape: Shape, further: Sequence[Numbers | None], options: Options, outputs: int
) -> Sequence[Shape] | None:
    axes = _numbers(further, 0, options, "axes")
    if not axes:
        if options.get("noop_with_empty_axes"):
            return [shape]
        axes = tuple(range(len(shape)))
    places = _places(axes, len(shape))
    if places is None:
        return None
    if options.get("keepdims", 1):
        return [tuple(1 if place in places else side for place, side in enumerate(shape))]
    return [tuple(side for place, side in enumerate(shape) if place not in places)]


_RULES: Mapping[str, Rule] = {
    "Reshape": _reshaped,
    "Squeeze": _squeezed,
    "Unsqueeze": _unsqueezed,
    "Slice": _sliced,
    "Split": _parts,
    "Gather": _gathered,
    "Pad": _padded,
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"), _reduced),
}
