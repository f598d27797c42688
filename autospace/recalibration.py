"""How a latency table is corrected by networks that were measured.

First by a line through predicted and measured, for what a card is off as a whole. What the line
leaves goes to single entries of the table: a runtime may have no fast kernel for an operation that
its card knows too little of, and then some candidates cost many times their prediction. Either a
few entries move, found by sparse Bayesian learning (Tipping, 2001): each has a prior of a width of
its own around no move, and the widths are those that make the measurements most likely, which is
zero for most. Or all move a little, each by about the same part of itself. What explains the
measurements best counts, and only if it does so by more than chance. (Ours; neither paper
recalibrates.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autospace.cost import CostTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Choice", "Recalibration", "Shift"]

Choice = tuple[int, ...]
"""A network by its candidate in each block."""

_PULL = 0.1
_CARDS_OFF = 0.2
_NOISES = (0.005, 0.01, 0.02, 0.04, 0.08)
"""How far two measurements of a network differ, as a part of it."""
_EVIDENCE = 3.0
"""By how much, in logarithms of odds, each entry that moves has to explain them better."""
_SCALES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""How far all entries alike may be off, as parts of themselves."""
_STEPS = 60
"""Of the fixed-point iteration for the widths."""
_GONE = 1e-9
"""What is known of an entry whose prior has no width."""
_SMALL = 0.02
"""Moves below this part of a typical entry are none."""
_PASSES = 3
"""Of line and entries by turns."""
_LEAST = 0.1
"""An entry keeps this part of its prediction."""


@dataclass(frozen=True)
class Shift:
    """What one entry of a table is off by, beyond the line.

    Attributes:
        block: index of the block.
        candidate: index of its candidate.
        shift_ms: what it costs more.
    """

    block: int
    candidate: int
    shift_ms: float


@dataclass(frozen=True)
class Recalibration:
    """How predictions are corrected: ``factor · predicted + offset``, and some entries beyond it.

    Attributes:
        factor: on every entry of the table.
        offset_ms: on its fixed part.
        shifts: of single entries, the largest first.
    """

    factor: float = 1.0
    offset_ms: float = 0.0
    shifts: tuple[Shift, ...] = ()

    @staticmethod
    def fit(
        table: CostTable, choices: Sequence[Choice], measured_ms: Sequence[float]
    ) -> Recalibration:
        """From networks that were measured.

        Args:
            table: of predicted milliseconds.
            choices: the networks; at least one.
            measured_ms: of each.
        """
        measured = np.asarray(measured_ms, dtype=float)
        predicted = np.array([table.total(choice) for choice in choices])
        ratios = measured / predicted
        nearest = float(ratios[np.argmin(np.abs(np.log(ratios)))])
        starts = (line_through(predicted, measured), (nearest, 0.0))
        return max(
            (_fitted(table, choices, measured, Recalibration(*start)) for start in starts),
            key=lambda found: found[0],
        )[1]

    def of(self, table: CostTable) -> CostTable:
        """The table, corrected."""
        whole = table.recalibrated(self.factor, self.offset_ms)
        if not self.shifts:
            return whole
        rows = [list(row) for row in whole.values]
        for one in self.shifts:
            rows[one.block][one.candidate] += one.shift_ms
        return CostTable(whole.metric, whole.fixed, tuple(map(tuple, rows)))

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Recalibration:
        """From what `to_json` gave."""
        return Recalibration(
            float(document["factor"]),
            float(document["offset_ms"]),
            tuple(Shift(**one) for one in document["shifts"]),
        )


def _fitted(
    table: CostTable,
    choices: Sequence[Choice],
    measured: NDArray[np.float64],
    line: Recalibration,
) -> tuple[float, Recalibration]:
    """The correction that is found from a line, and how likely that makes the measurements."""
    predicted = np.array([table.total(choice) for choice in choices])
    evidence, shifts = _shifts(line.of(table), choices, measured)
    for _ in range(_PASSES):  # a line that slow entries have bent is straight without them
        if not shifts:
            break
        moves = {(one.block, one.candidate): one.shift_ms for one in shifts}
        moved = [sum(moves.get(place, 0.0) for place in enumerate(choice)) for choice in choices]
        rest = np.maximum(measured - np.array(moved), _LEAST * measured)
        line = Recalibration(*line_through(predicted, rest))
        evidence, shifts = _shifts(line.of(table), choices, measured)
    evidence -= 0.5 * (math.log(line.factor) / _CARDS_OFF) ** 2
    return evidence, Recalibration(line.factor, line.offset_ms, shifts)


def line_through(
    predicted: NDArray[np.float64], measured: NDArray[np.float64]
) -> tuple[float, float]:
    """Slope and offset, in relative least squares.

    Few, equal or noisy pairs cannot tell a slope from an offset. So both are drawn towards the
    plain median ratio, from which a card is off by a fifth or so, the more the farther the pairs
    are from any line; and a slope that no card can be off by is not believed.
    """
    ratio = float(np.median(measured / predicted))
    typical = float(np.median(measured))
    rows = np.stack([predicted / measured, 1 / measured], 1)

    def fitted(pull: float) -> NDArray[np.float64]:
        towards = pull * np.diag([1 / ratio, 1 / typical])
        goal = np.concatenate([np.ones(len(rows)), towards @ [ratio, 0.0]])
        found = np.linalg.lstsq(np.concatenate([rows, towards]), goal, rcond=None)[0]
        return np.asarray(found)

    off = rows @ fitted(_PULL) - 1
    noise = float(np.sqrt(off @ off / max(1, len(off) - 2)))
    factor, offset = fitted(max(_PULL, noise / _CARDS_OFF))
    if not ratio / 2 < factor < 2 * ratio:
        return ratio, 0.0
    return float(factor), float(offset)


def _shifts(
    table: CostTable, choices: Sequence[Choice], measured: NDArray[np.float64]
) -> tuple[float, tuple[Shift, ...]]:
    """What the table's entries are off by, as far as the networks tell, and its evidence."""
    used = sorted({place for choice in choices for place in enumerate(choice)})
    entries = np.array([table.values[block][candidate] for block, candidate in used])
    used = [place for place, entry in zip(used, entries, strict=True) if entry > 0]
    entries = entries[entries > 0]
    holds = np.array([[choice[b] == c for b, c in used] for choice in choices], dtype=float)
    left = measured - np.array([table.total(choice) for choice in choices])
    plain = max(_evidence(left, np.diag((noise * measured) ** 2)) for noise in _NOISES)
    if len(choices) < 2 or not used:
        return plain, ()
    few = [_few(left, holds, noise * measured, entries.mean()) for noise in _NOISES]
    sizes = np.maximum(entries, entries.mean())
    many = [
        _moved(left, holds, (scale * sizes) ** 2, noise * measured)
        for noise in _NOISES
        for scale in _SCALES
    ]
    found = [*few, *((evidence - _EVIDENCE, moved) for evidence, moved in many)]
    best, moved = max(found, key=lambda one: one[0])
    if best <= plain:
        return plain, ()
    moved = np.maximum(moved, (_LEAST - 1) * entries)
    shifts = [
        Shift(block, candidate, float(shift))
        for (block, candidate), shift in zip(used, moved, strict=True)
        if shift
    ]
    return best, tuple(sorted(shifts, key=lambda one: -abs(one.shift_ms)))


def _few(
    left: NDArray[np.float64],
    holds: NDArray[np.float64],
    noise: NDArray[np.float64],
    typical: float,
) -> tuple[float, NDArray[np.float64]]:
    """How well a few entries explain what is left, and by how much each is then moved.

    Args:
        left: of each network.
        holds: networks × entries, 1 where a network has an entry.
        noise: of each network.
        typical: an entry's cost, from which the widths of the priors start.

    Returns:
        The evidence, less `_EVIDENCE` for each entry that is moved; and the moves.
    """
    widths = np.full(holds.shape[1], typical**2)
    moved = np.zeros(holds.shape[1])
    for _ in range(_STEPS):
        spread = (holds * widths) @ holds.T + np.diag(noise**2)
        moved = widths * (holds.T @ np.linalg.solve(spread, left))
        known = widths * np.einsum("ne,ne->e", holds, np.linalg.solve(spread, holds))
        widths = np.where(known > _GONE, moved**2 / np.maximum(known, _GONE), 0.0)
    kept = np.abs(moved) > _SMALL * typical
    evidence, moved = _moved(left, holds, np.where(kept, widths, 0.0), noise)
    return evidence - _EVIDENCE * kept.sum(), moved


def _moved(
    left: NDArray[np.float64],
    holds: NDArray[np.float64],
    widths: NDArray[np.float64],
    noise: NDArray[np.float64],
) -> tuple[float, NDArray[np.float64]]:
    """The evidence for priors of these widths (squared), and by how much entries are then moved."""
    spread = (holds * widths) @ holds.T + np.diag(noise**2)
    return _evidence(left, spread), widths * (holds.T @ np.linalg.solve(spread, left))


def _evidence(left: NDArray[np.float64], spread: NDArray[np.float64]) -> float:
    """Logarithm of how likely it is, up to a constant, that so much is left."""
    factor = np.linalg.cholesky(spread)
    scaled = np.linalg.solve(factor, left)
    return float(-0.5 * scaled @ scaled - np.log(np.diag(factor)).sum())
