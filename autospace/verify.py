"""From a searched supernet to networks whose cost was measured.

The exact solver proposes; held-out accuracy with the supernet's weights ranks; the device
measures. What was measured recalibrates the latency table, and the choice is repeated until a
network uses the limit. A network keeps a limit if its one-sided 95 % bound does, corrected for
the number of networks measured; what series of visits are apart is in it, for the exported file
will be measured again. Which of those that keep it is taken, `autospace.ranking` says.

A family (one supernet, several limits) is verified together: all candidates of a round are
measured interleaved, all of them recalibrate the one table, and each may serve any limit that it
keeps and uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autospace.cost import CostTable
from autospace.data import Data
from autospace.events import Progress, silent
from autospace.files import content_hash, write_json
from autospace.proxyless import SearchedNet
from autospace.ranking import preferred
from autospace.recalibration import Choice, Recalibration
from autospace.search_options import SearchOptions
from autospace.seeding import Seed
from autospace.select import largest_network, select, smallest_network
from autospace.space import Architecture
from autospace.training import classified_right, recalibrate_norms
from devices.errors import InvalidInputError, UsageError
from devices.measurement import Measurement

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Candidate", "Chosen", "Measure", "choose_networks"]

Measure = Callable[[Mapping[str, Architecture]], Mapping[str, Measurement]]
"""Measures networks on the device, interleaved; names are the architectures' hashes."""

_CONFIDENCE = 0.95
_CLOSE = 0.01
"""A network whose bound is within this part below a limit uses it: no more rounds."""
_MARGIN = 0.03
"""What a measurement's bound is above it before there is one to tell."""
_USES = (0.985, 0.95, 0.0)
"""Shares of a limit that proposals have to use: less only where there are not enough."""


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
        use: the largest share of a limit that is used, by measurement where there is one.
        excess: the largest ratio of a cost's bound to its limit, minus 1.
    """

    choice: Choice
    architecture: Architecture
    log_probability: float
    validation_accuracy: float
    madds: int
    predicted_ms: float | None
    measured: Measurement | None
    use: float
    excess: float

    @property
    def kept(self) -> bool:
        """Whether every limit is kept, by the bound of what was measured."""
        return self.excess <= 0

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
            "use": self.use,
            "excess": self.excess,
        }


@dataclass(frozen=True)
class Chosen:
    """The end of a search.

    Attributes:
        best: the preferred candidate of those that keep every limit, or else the nearest one.
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


def choose_networks(
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
    """Proposes, ranks, measures and recalibrates until each limit is used and kept.

    Args:
        family: a supernet with the α and the limits of each member; one member is a plain search.
        data: candidates are ranked on its validation split.
        latency_table: predicted milliseconds, for comparing with what is measured.
        options: proposals a round for each member, and the most rounds.
        seed: of the batches that recompute batch norm.
        measure: on the device; None leaves latency limits to the prediction.
        record: ``verification.json``; networks measured in it are not measured again.
        progress: is told as it goes.

    Returns:
        One for each member. Its best may have been proposed for another member; its rounds hold
        what was proposed for it.

    Raises:
        UsageError: no network of the space keeps a member's limits.
    """
    members = [_Member(searched) for searched in family]
    known = _Known(family[0], data, latency_table, seed.child("verify"))
    digest = _digest(family, latency_table)
    known.measured.update(_measured_before(record, digest))
    recalibration, margin = Recalibration(), _MARGIN
    for number in range(1, options.rounds + 1):
        for member in members:
            if not member.done:
                member.propose(recalibration, margin, options.proposals)
        if all(member.done for member in members):
            break
        every = _choices(members)
        fresh = known.not_yet(every)

        def told(share: float, message: str, number: int = number) -> None:
            progress((number - 1 + share) / options.rounds, f"round {number}: {message}")

        for place, choice in enumerate(fresh):
            told(0.5 * place / len(fresh), f"candidate {place + 1} of {len(fresh)}")
            known.rank(choice)
        if measure is not None:
            asked = {a.hash: a for a in map(known.architecture, fresh)}
            asked = {name: a for name, a in asked.items() if name not in known.measured}
            if asked:
                told(0.5, f"measuring {len(asked)} networks")
                known.measured.update(measure(asked))
        for member in members:
            own = [known.judged(one, member.searched, len(every)) for one in member.seen]
            member.done = member.done or any(-_CLOSE < one.excess <= 0 for one in own)
        if record is not None:
            _write(record, members, [None] * len(members), known, digest)
        if measure is None or latency_table is None or all(member.done for member in members):
            break
        coming = options.proposals * sum(not member.done for member in members)
        recalibration = known.recalibration(latency_table, every)
        margin = known.margin(every, len(every) + coming)
    chosen = [_best(member, members, known) for member in members]
    if record is not None:
        _write(record, members, chosen, known, digest)
    kept = sum(one.kept for one in chosen)
    ends = {len(chosen): "verified", 0: "no candidate keeps the limits"}
    progress(1.0, ends.get(kept, f"{kept} of {len(chosen)} limits kept"))
    return tuple(
        Chosen(best, _judged_rounds(member, members, known), tuple(member.used))
        for best, member in zip(chosen, members, strict=True)
    )


@dataclass
class _Member:
    """One limit's part of the verification.

    Attributes:
        searched: the supernet with this limit's α.
        rounds: what was proposed in each.
        used: how the table was corrected for it.
        done: whether more proposals would not help, or there are none.
    """

    searched: SearchedNet
    rounds: list[list[Choice]] = field(default_factory=list)
    used: list[Recalibration] = field(default_factory=list)
    done: bool = False

    @property
    def seen(self) -> list[Choice]:
        return [choice for row in self.rounds for choice in row]

    def propose(self, recalibration: Recalibration, margin: float, count: int) -> None:
        """Adds a round of new networks that use a limit well, if there are any.

        The plainly most probable one is among the first, and so is the largest where it keeps
        every limit: there is nothing that it would have to save.

        Args:
            recalibration: of the latency table.
            margin: by which a measurement has to be below a latency limit, see `_Known.margin`.
            count: how many.
        """
        searched, seen = self.searched, self.seen
        tables = [
            recalibration.of(table) if table.metric == "latency_ms" else table
            for table in searched.tables
        ]
        limits = [
            replace(limit, value=limit.value / (1 + margin))
            if limit.metric == "latency_ms"
            else limit
            for limit in searched.limits
        ]
        found: list[Choice] = []
        try:
            if not seen:
                found = select(searched.probabilities, tables, limits, 1)
            largest = largest_network(tables, limits)
            if largest is not None and len(found) < count and largest not in (*seen, *found):
                found.append(largest)
            for use in _USES:
                if len(found) < count:
                    found += select(
                        searched.probabilities, tables, limits, count - len(found),
                        use=use, exclude=[*seen, *found],
                    )  # fmt: skip
        except UsageError:
            # The very smallest network may fit by measurement though not by the prediction; and
            # what is slow in all that were measured may be in no other network.
            if not seen:
                found = select(searched.probabilities, searched.tables, searched.limits, count)
            elif (smallest := smallest_network(tables, limits)) not in seen:
                found = [smallest]
        if found:
            self.rounds.append(found)
            self.used.append(recalibration)
        self.done = not found


class _Known:
    """What became known of networks, each by its choice of candidates.

    Args:
        searched: the supernet; its limits do not matter.
        data: its validation split ranks.
        latency_table: predicted milliseconds.
        seed: of the batches that recompute batch norm.
    """

    def __init__(
        self, searched: SearchedNet, data: Data, latency_table: CostTable | None, seed: Seed
    ) -> None:
        self._searched = searched
        self._data = data
        self._table = latency_table
        self._seed = seed
        self._right: dict[Choice, NDArray[np.bool_]] = {}
        self.measured: dict[str, Measurement] = {}
        """By the architecture's hash."""

    def architecture(self, choice: Choice) -> Architecture:
        """At the target."""
        return self._searched.architecture(choice)

    def not_yet(self, choices: Iterable[Choice]) -> list[Choice]:
        """Those that were not ranked yet."""
        return [choice for choice in choices if choice not in self._right]

    def rank(self, choice: Choice) -> None:
        """Classifies the held-out images with the supernet's weights."""
        network = self._searched.net.extract(choice)
        recalibrate_norms(network, self._data, self._seed)
        self._right[choice] = classified_right(network, self._data, self._data.validation)

    def judged(self, choice: Choice, searched: SearchedNet, compared: int) -> Candidate:
        """A network against limits.

        Args:
            choice: the network; it was ranked.
            searched: the limits, and the probabilities under them.
            compared: how many networks were measured: one of many keeps a limit by luck.
        """
        architecture = self.architecture(choice)
        predicted = self._table.total(choice) if self._table else None
        measured = self.measured.get(architecture.hash)
        use, excess = 0.0, -1.0
        for limit in searched.limits:
            if limit.metric == "madds":
                cost = bound = float(architecture.madds)
            elif measured is not None:
                cost, bound = measured.latency_ms, measured.upper_ms(_level(compared))
            else:
                assert predicted is not None
                cost = bound = predicted
            use, excess = max(use, cost / limit.value), max(excess, bound / limit.value - 1)
        return Candidate(
            choice=choice,
            architecture=architecture,
            log_probability=float(
                sum(
                    np.log(max(row[index], 1e-12))
                    for row, index in zip(searched.probabilities, choice, strict=True)
                )
            ),
            validation_accuracy=float(self._right[choice].mean()),
            madds=architecture.madds,
            predicted_ms=predicted,
            measured=measured,
            use=use,
            excess=excess,
        )

    def preferred(self, candidates: Sequence[Candidate]) -> Candidate:
        """The one to take of some that keep the limits."""
        ordered = sorted(candidates, key=lambda one: -one.log_probability)
        right = [self._right[one.choice] for one in ordered]
        return ordered[preferred(right, [one.use for one in ordered])]

    def recalibration(self, table: CostTable, choices: Iterable[Choice]) -> Recalibration:
        """Of the latency table, by those that were measured."""
        pairs = [
            (choice, measured.latency_ms)
            for choice in choices
            if (measured := self.measured.get(self.architecture(choice).hash))
        ]
        return Recalibration.fit(table, *zip(*pairs, strict=True))

    def margin(self, choices: Iterable[Choice], compared: int) -> float:
        """How far a measurement has to be below a limit, when so many networks are compared."""
        found = [self.measured.get(self.architecture(choice).hash) for choice in choices]
        ratios = [one.upper_ms(_level(compared)) / one.latency_ms for one in found if one]
        return float(np.median(ratios)) - 1


def _level(compared: int) -> float:
    return 1 - (1 - _CONFIDENCE) / compared


def _choices(members: Iterable[_Member]) -> list[Choice]:
    """All that was proposed, each once."""
    return list(dict.fromkeys(choice for member in members for choice in member.seen))


def _judged_rounds(
    member: _Member, members: Sequence[_Member], known: _Known
) -> tuple[tuple[Candidate, ...], ...]:
    compared = len(_choices(members))
    return tuple(
        tuple(known.judged(choice, member.searched, compared) for choice in row)
        for row in member.rounds
    )


def _best(member: _Member, members: Sequence[_Member], known: _Known) -> Candidate:
    """The network to take for one limit; while none keeps it, the one nearest to it.

    What another limit's candidates turned out to be may serve this one better.

    Raises:
        UsageError: nothing was ever proposed.
    """
    every = _choices(members)
    if not every:
        limits = " and ".join(map(str, member.searched.limits))
        raise UsageError(f"search: no network of the space keeps {limits}; raise a limit")
    judged = [known.judged(choice, member.searched, len(every)) for choice in every]
    kept = [one for one in judged if one.kept]
    if kept:
        return known.preferred(kept)
    return min(judged, key=lambda one: (one.excess, -one.validation_accuracy))


def _digest(family: Sequence[SearchedNet], latency_table: CostTable | None) -> str:
    """Of what was asked and of the card's table: another device's measurements do not count."""
    limits = [limit.to_json() for searched in family for limit in searched.limits]
    table = [latency_table.fixed, latency_table.values] if latency_table else None
    return content_hash([family[0].space.hash, limits, table])


def _write(
    record: Path,
    members: Sequence[_Member],
    chosen: Sequence[Candidate | None],
    known: _Known,
    digest: str,
) -> None:
    """A record of one search as it always was; a family's has one for each member."""
    documents = [
        {
            "rounds": [
                {
                    "round": number,
                    "factor": recalibration.factor,
                    "offset_ms": recalibration.offset_ms,
                    "shifts": [asdict(shift) for shift in recalibration.shifts],
                    "candidates": [one.to_json() for one in row],
                }
                for number, (row, recalibration) in enumerate(
                    zip(_judged_rounds(member, members, known), member.used, strict=True), 1
                )
            ],
            "chosen": best.architecture.hash if best and best.kept else None,
        }
        for member, best in zip(members, chosen, strict=True)
    ]
    if len(documents) == 1:
        write_json(record, {"digest": digest, **documents[0]})
    else:
        write_json(record, {"digest": digest, "members": documents})


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
