"""From a searched supernet to networks whose cost was measured.

The exact solver proposes; held-out accuracy with the supernet's weights ranks; the device
measures. What was measured recalibrates the latency table, and the choice is repeated. The
network taken is the most accurate of those whose one-sided 95 % bound, corrected for the number
of candidates, keeps the limit.

A family (one supernet, several limits) is verified together: all candidates of a round are
measured interleaved, all of them recalibrate the one table, and each may serve any limit that it
keeps and uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from autospace.cost import CostTable
from autospace.data import Data
from autospace.events import Progress, silent
from autospace.files import content_hash, write_json
from autospace.proxyless import SearchedNet, SearchOptions
from autospace.seeding import Seed
from autospace.select import largest_network, select
from autospace.space import Architecture
from autospace.training import accuracy, recalibrate_norms
from devices.errors import InvalidInputError, UsageError
from devices.measurement import Measurement

__all__ = [
    "Candidate",
    "Chosen",
    "Measure",
    "Recalibration",
    "choose_family",
    "choose_network",
]

Measure = Callable[[Mapping[str, Architecture]], Mapping[str, Measurement]]
"""Measures networks on the device, interleaved; names are the architectures' hashes."""

_SLACK = 0.05
_ROOM = 0.965
_PULL = 0.1
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Candidate:
    """One proposed network and what became known of it.

    Attributes:
        choice: candidate indices.
        architecture: at the target.
        log_probability: Σ log p, by which the solver proposed it.
        validation_accuracy: with the supernet's weights and recomputed batch norm.
        madds: multiply-adds at the target.
        predicted_ms: by the card's table, before any recalibration; None without a card.
        measured: on the device; None where it could not be measured.
        kept: whether every limit is kept, by measurement where there is one.
        excess: the largest ratio of a cost's bound to its limit, minus 1.
    """

    choice: tuple[int, ...]
    architecture: Architecture
    log_probability: float
    validation_accuracy: float
    madds: int
    predicted_ms: float | None
    measured: Measurement | None
    kept: bool
    excess: float

    def to_json(self) -> dict[str, Any]:
        """Every field, the architecture by its hash."""
        return {
            "hash": self.architecture.hash,
            "choice": list(self.choice),
            "log_probability": self.log_probability,
            "validation_accuracy": self.validation_accuracy,
            "madds": self.madds,
            "predicted_ms": self.predicted_ms,
            "measured": self.measured.to_json() if self.measured else None,
            "kept": self.kept,
            "excess": self.excess,
        }


@dataclass(frozen=True)
class Recalibration:
    """How predictions are corrected by what was measured: ``factor · predicted + offset``.

    Attributes:
        factor: on every entry of the table.
        offset_ms: on its fixed part.
    """

    factor: float = 1.0
    offset_ms: float = 0.0

    @staticmethod
    def fit(predicted_ms: Sequence[float], measured_ms: Sequence[float]) -> Recalibration:
        """The line through predicted and measured, in relative least squares.

        Few or equal predictions cannot tell a slope from an offset; a weak pull towards the plain
        median ratio decides then.
        """
        predicted, measured = np.asarray(predicted_ms), np.asarray(measured_ms)
        ratio = float(np.median(measured / predicted))
        typical = float(np.median(measured))
        rows = np.stack([predicted / measured, 1 / measured], 1)
        pull = np.array([[typical / ratio, 0.0], [0.0, 1.0]]) * (_PULL / typical)
        goal = np.concatenate([np.ones(len(rows)), pull @ [ratio, 0.0]])
        factor, offset = np.linalg.lstsq(np.concatenate([rows, pull]), goal, rcond=None)[0]
        return Recalibration(float(factor), float(offset))


@dataclass(frozen=True)
class Chosen:
    """The end of a search.

    Attributes:
        best: the most accurate candidate that keeps every limit, or else the nearest one.
        rounds: the candidates of each round.
        recalibrations: of the latency table, as it was used in each round.
    """

    best: Candidate
    rounds: tuple[tuple[Candidate, ...], ...]
    recalibrations: tuple[Recalibration, ...]

    @property
    def kept(self) -> bool:
        """Whether the best candidate keeps every limit."""
        return self.best.kept


def choose_network(
    searched: SearchedNet,
    data: Data,
    latency_table: CostTable | None,
    *,
    options: SearchOptions,
    seed: Seed,
    measure: Measure | None = None,
    record: Path | None = None,
    progress: Progress = silent,
) -> Chosen:
    """Proposes, ranks, measures and recalibrates until a measured network fits.

    Args:
        searched: the trained supernet.
        data: candidates are ranked on its validation split.
        latency_table: predicted milliseconds, for comparing with what is measured.
        options: proposals a round and the most rounds.
        seed: of the batches that recompute batch norm.
        measure: on the device; None leaves latency limits to the prediction.
        record: ``verification.json``; networks measured in it are not measured again.
        progress: is told as it goes.

    Raises:
        UsageError: no network of the space keeps the limits.
    """
    (chosen,) = choose_family(
        [searched], data, latency_table, options=options, seed=seed, measure=measure,
        record=record, progress=progress,
    )  # fmt: skip
    return chosen


@dataclass
class _Member:
    """One limit's part of the verification."""

    searched: SearchedNet
    rounds: list[tuple[Candidate, ...]] = field(default_factory=list)
    used: list[Recalibration] = field(default_factory=list)
    best: Candidate | None = None
    done: bool = False

    @property
    def seen(self) -> list[tuple[int, ...]]:
        return [one.choice for row in self.rounds for one in row]


def choose_family(
    family: Sequence[SearchedNet],
    data: Data,
    latency_table: CostTable | None,
    *,
    options: SearchOptions,
    seed: Seed,
    measure: Measure | None = None,
    record: Path | None = None,
    progress: Progress = silent,
) -> tuple[Chosen, ...]:
    """Proposes, ranks, measures and recalibrates for several limits at once.

    Args:
        family: one supernet with the α and the limits of each member.
        data: candidates are ranked on its validation split.
        latency_table: predicted milliseconds, for comparing with what is measured.
        options: proposals a round for each member, and the most rounds.
        seed: of the batches that recompute batch norm.
        measure: on the device; None leaves latency limits to the prediction.
        record: networks measured in it are not measured again.
        progress: is told as it goes.

    Returns:
        One for each member. Its best may have been proposed for another member; its rounds hold
        what was proposed for it.

    Raises:
        UsageError: no network of the space keeps a member's limits.
    """
    seed = seed.child("verify")
    members = [_Member(searched) for searched in family]
    recalibration = Recalibration()
    accuracies: dict[tuple[int, ...], float] = {}
    digest = _digest(family, latency_table)
    known = _measured_before(record, digest)
    for number in range(1, options.rounds + 1):
        proposed: list[tuple[_Member, list[tuple[int, ...]]]] = []
        for member in members:
            if not member.done:
                searched = member.searched
                choices = _proposals(searched, recalibration, options.proposals, member.seen)
                member.done = not choices
                proposed.append((member, choices))
        every = list(dict.fromkeys(one for _, choices in proposed for one in choices))
        if not every:
            break

        def told(share: float, message: str, number: int = number) -> None:
            progress((number - 1 + share) / options.rounds, f"round {number}: {message}")

        fresh = [choice for choice in every if choice not in accuracies]
        for place, choice in enumerate(fresh):
            told(0.5 * place / len(fresh), f"candidate {place + 1} of {len(fresh)}")
            network = family[0].net.extract(choice)
            recalibrate_norms(network, data, seed)
            accuracies[choice] = accuracy(network, data, data.validation)
        architectures = {choice: family[0].architecture(choice) for choice in every}
        if measure is not None:
            asked = {a.hash: a for a in architectures.values() if a.hash not in known}
            if asked:
                told(0.5, f"measuring {len(asked)} networks")
                known.update(measure(asked))
        for member, choices in proposed:
            if not choices:
                continue
            candidates = tuple(
                _judged(
                    choice, architectures[choice], member.searched, accuracies[choice],
                    latency_table, known.get(architectures[choice].hash), len(every),
                )
                for choice in choices
            )  # fmt: skip
            member.rounds.append(candidates)
            member.used.append(recalibration)
            member.best = _better(member.best, candidates)
            member.done = any(one.kept and one.excess > -_SLACK for one in candidates)
        if record is not None:
            _write(record, members, digest)
        if measure is None or latency_table is None:
            break
        recalibration = _recalibrated(members)
        if all(member.done for member in members):
            break
    for member in members:
        _take_from_others(member, members, latency_table)
    if record is not None:
        _write(record, members, digest)
    kept = [member.best is not None and member.best.kept for member in members]
    ends = {len(kept): "verified", 0: "no candidate keeps the limits"}
    progress(1.0, ends.get(sum(kept), f"{sum(kept)} of {len(kept)} limits kept"))
    return tuple(
        Chosen(_found(member), tuple(member.rounds), tuple(member.used)) for member in members
    )


def _found(member: _Member) -> Candidate:
    if member.best is None:
        limits = " and ".join(map(str, member.searched.limits))
        raise UsageError(f"search: no network of the space keeps {limits}; raise a limit")
    return member.best


def _recalibrated(members: Sequence[_Member]) -> Recalibration:
    """The line through all networks that were measured, each once."""
    pairs = {
        one.choice: (one.predicted_ms, one.measured.latency_ms)
        for member in members
        for row in member.rounds
        for one in row
        if one.measured is not None and one.predicted_ms
    }
    return Recalibration.fit(*zip(*pairs.values(), strict=True))


def _take_from_others(
    member: _Member, members: Sequence[_Member], latency_table: CostTable | None
) -> None:
    """What another limit's candidates turned out to be may serve this one better.

    Only those count that use this limit as well, unless nothing else keeps it: a supernet's
    accuracies tell less between networks of different size, as small ones learn sooner.
    """
    own = set(member.seen)
    others = {
        one.choice: one for other in members for row in other.rounds for one in row
        if one.choice not in own
    }  # fmt: skip
    judged = [
        _judged(
            one.choice, one.architecture, member.searched, one.validation_accuracy,
            latency_table, one.measured, len(own) + len(others),
        )
        for one in others.values()
    ]  # fmt: skip
    kept = member.best is not None and member.best.kept
    useful = [one for one in judged if not kept or one.excess > -2 * _SLACK]
    if useful:
        member.best = _better(member.best, useful)


def _proposals(
    searched: SearchedNet, recalibration: Recalibration, count: int, seen: Sequence[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """New networks that use a limit well.

    The plainly most probable one is always among them, and so is the largest where it keeps every
    limit: there is nothing that it would have to save.
    """
    tables = [
        table.recalibrated(recalibration.factor, recalibration.offset_ms)
        if table.metric == "latency_ms"
        else table
        for table in searched.tables
    ]
    # Room for the measurement's own interval: the bound, not the estimate, has to fit.
    limits = [
        replace(limit, value=limit.value * _ROOM) if limit.metric == "latency_ms" else limit
        for limit in searched.limits
    ]
    try:
        found = select(searched.probabilities, tables, limits, 1, exclude=seen) if not seen else []
        largest = largest_network(tables, limits)
        if largest is not None and len(found) < count and largest not in (*seen, *found):
            found.append(largest)
        for use in (1 - _SLACK / 2, 1 - 2 * _SLACK, 0.0):
            if len(found) < count:
                found += select(
                    searched.probabilities, tables, limits, count - len(found),
                    use=use, exclude=[*seen, *found],
                )  # fmt: skip
        return found
    except UsageError:
        # The very smallest network may fit by measurement though not by the narrowed prediction.
        if seen:
            return []
        return select(searched.probabilities, searched.tables, searched.limits, count)


def _judged(
    choice: tuple[int, ...],
    architecture: Architecture,
    searched: SearchedNet,
    validation_accuracy: float,
    latency_table: CostTable | None,
    measured: Measurement | None,
    compared: int,
) -> Candidate:
    predicted = latency_table.total(choice) if latency_table else None
    excess = -1.0
    for limit in searched.limits:
        if limit.metric == "madds":
            bound = float(architecture.madds)
        elif measured is not None:
            bound = measured.upper_ms(1 - (1 - _CONFIDENCE) / compared)
        else:
            assert predicted is not None
            bound = predicted
        excess = max(excess, bound / limit.value - 1)
    probabilities = searched.probabilities
    return Candidate(
        choice=choice,
        architecture=architecture,
        log_probability=float(
            sum(
                np.log(max(row[index], 1e-12))
                for row, index in zip(probabilities, choice, strict=True)
            )
        ),
        validation_accuracy=validation_accuracy,
        madds=architecture.madds,
        predicted_ms=predicted,
        measured=measured,
        kept=excess <= 0,
        excess=excess,
    )


def _better(best: Candidate | None, candidates: Sequence[Candidate]) -> Candidate:
    """The most accurate that keeps the limits; while none does, the one nearest to them."""

    def rank(one: Candidate) -> tuple[bool, float, float]:
        if one.kept:
            return (True, one.validation_accuracy, one.log_probability)
        return (False, -one.excess, one.validation_accuracy)

    return max([*([best] if best else []), *candidates], key=rank)


def _digest(family: Sequence[SearchedNet], latency_table: CostTable | None) -> str:
    """Of what was asked and of the card's table: another device's measurements do not count."""
    limits = [limit.to_json() for searched in family for limit in searched.limits]
    table = [latency_table.fixed, latency_table.values] if latency_table else None
    return content_hash([family[0].space.hash, limits, table])


def _write(record: Path, members: Sequence[_Member], digest: str) -> None:
    """A record of one search as it always was; a family's has one for each member."""
    documents = [_record(member) for member in members]
    if len(documents) == 1:
        write_json(record, {"digest": digest, **documents[0]})
    else:
        write_json(record, {"digest": digest, "members": documents})


def _record(member: _Member) -> dict[str, Any]:
    best = member.best
    return {
        "rounds": [
            {
                "round": number,
                "factor": recalibration.factor,
                "offset_ms": recalibration.offset_ms,
                "candidates": [one.to_json() for one in row],
            }
            for number, (row, recalibration) in enumerate(
                zip(member.rounds, member.used, strict=True), 1
            )
        ],
        "chosen": best.architecture.hash if best and best.kept else None,
    }


def _measured_before(record: Path | None, digest: str) -> dict[str, Measurement]:
    """What an interrupted verification already measured."""
    from autospace.files import read_document

    if record is None or not record.exists():
        return {}
    try:
        document = read_document(record, "a verification record")
        if document["digest"] != digest:
            return {}
        return {
            one["hash"]: Measurement.from_json(one["measured"])
            for member in document.get("members", [document])
            for row in member["rounds"]
            for one in row["candidates"]
            if one["measured"]
        }
    except (InvalidInputError, KeyError, TypeError):
        return {}
