"""Networks of several spaces with the same measured latency.

Networks are drawn uniformly, block by block, and kept if their predicted latency is in the band;
those are measured together, interleaved, with the reference network among them. A network counts
if its *measured* latency, as a share of the reference's, is in the band. What predictions are off
by in a space is corrected for the next draw.

The reference's latency is that of the same series, so that a slow hour cancels out; or, where a
limit in milliseconds was already given to a search, the one that it was worked out from. Networks
are then compared with what the search was held to, and every series has to find the machine about
as fast as its card says (`AsProfiled`): the reference network alone has come out 20 %
slower in an hour in which smaller ones hardly were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from autospace.cost import LatencyCost
from autospace.events import Progress, silent
from autospace.genotype import REFERENCE_CELLS
from autospace.onnx_export import onnx_for_cost
from autospace.seeding import Seed
from autospace.space import Architecture
from autospace.steps import Device
from benchmarks.quality_spaces import CandidateSpace
from devices.errors import UsageError
from devices.measurement import Measurement
from latency import Predictor

if TYPE_CHECKING:
    import onnx

__all__ = ["Anchored", "AsProfiled", "BandNetwork", "draw_band", "reference_network"]

_DRAWS = 200_000
_ROUNDS = 6
_SPARE = 1.5
"""Networks measured for each that is wanted."""
_REFERENCE = "reference"
_TRIES = 20


@dataclass(frozen=True)
class BandNetwork:
    """A network whose measured latency is in the band.

    Attributes:
        space: label of the space that it was drawn from.
        number: among those of its space, from 0.
        architecture: the network.
        predicted_ms: by the card.
        measured_ms: on the device.
        share: of the reference network's latency in the same series.
    """

    space: str
    number: int
    architecture: Architecture
    predicted_ms: float
    measured_ms: float
    share: float

    def to_json(self) -> dict[str, Any]:
        """Every field, and what the network costs."""
        return {
            "space": self.space,
            "number": self.number,
            "predicted_ms": self.predicted_ms,
            "measured_ms": self.measured_ms,
            "share": self.share,
            "madds": self.architecture.madds,
            "params": self.architecture.params,
            "architecture": self.architecture.to_json(),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> BandNetwork:
        """From what `to_json` gave."""
        return BandNetwork(
            str(data["space"]),
            int(data["number"]),
            Architecture.from_json(data["architecture"]),
            float(data["predicted_ms"]),
            float(data["measured_ms"]),
            float(data["share"]),
        )


def reference_network(space: CandidateSpace) -> Architecture:
    """The network that latencies are shares of: MBConv6 with 5×5 windows in every block."""
    return Architecture(space.skeleton, (REFERENCE_CELLS[1].fused(),) * len(space.skeleton.blocks))


def draw_band(
    wanted: Mapping[CandidateSpace, int],
    device: Device,
    target: float,
    band: float,
    *,
    seed: int,
    visits: int,
    progress: Progress,
    reference_ms: float | None = None,
) -> list[BandNetwork]:
    """Draws networks of each space.

    Args:
        wanted: spaces on one skeleton, each with how many networks.
        device: that measures.
        target: share of the reference network's latency.
        band: how far from it a network may be, as a part of it, either way.
        seed: of the draws and of the order of visits.
        visits: of each network.
        progress: is told as it goes.
        reference_ms: the reference network's latency; that of each series by default.

    Returns:
        Fewer of a space than asked for where six rounds do not find as many.
    """
    predictor = device.predictor
    batch = device.card.settings.batch
    base = onnx_for_cost(reference_network(next(iter(wanted))), batch)
    base_ms = reference_ms or predictor.predict(base).latency_ms
    sources = [_Source(space, count, predictor, batch) for space, count in wanted.items()]
    for round_ in range(_ROUNDS):
        drawn: dict[str, tuple[_Source, _Drawn]] = {}
        for source in sources:
            random = Seed(seed).generator("draw", source.space.label, round_)
            for one in source.draw(target * base_ms, band, random):
                drawn[f"{source.space.label} {one.network.hash}"] = source, one
        if not drawn:
            break
        models = {key: onnx_for_cost(one.network, batch) for key, (_, one) in drawn.items()}
        if reference_ms is None:
            models[_REFERENCE] = base
        measured = device.measure(models, visits=visits, seed=seed + round_, progress=progress)
        of_ms = reference_ms or measured[_REFERENCE].latency_ms
        for key, (source, one) in drawn.items():
            latency_ms = measured[key].latency_ms
            share = latency_ms / of_ms
            source.ratios.append(share / (one.predicted_ms / base_ms))
            if abs(share / target - 1) <= band:
                source.keep(one, latency_ms, share)
    return [network for source in sources for network in source.found]


@dataclass(frozen=True)
class AsProfiled(Device):
    """A device all of whose measurements find the machine about as fast as its card says."""

    def measure(
        self,
        models: Mapping[str, onnx.ModelProto],
        *,
        visits: int = 12,
        seed: int = 0,
        progress: Progress = silent,
    ) -> dict[str, Measurement]:
        """Measures models, interleaved, as often as needed; see the base class.

        Raises:
            UsageError: twenty series, each with its patience, found the machine otherwise.
        """
        for _ in range(_TRIES):
            found = super().measure(models, visits=visits, seed=seed, progress=progress)
            disturbed = [one for one in found.values() if one.disturbed]
            if not disturbed:
                return found
            worst = max(disturbed, key=lambda one: abs(math.log(one.slowdown)))
            now = f"{worst.slowdown:.2f} times its card's time"
            progress(1.0, f"the machine takes {now}: measured again")
        raise UsageError(
            f"{worst.name}: the machine takes {now}, in each of {_TRIES} series; call it again in "
            "a quieter hour"
        )


@dataclass(frozen=True)
class Anchored(Device):
    """A device that measures relative to networks that it has measured before.

    On some machines like networks of one kind come out 10 % faster in one hour and 10 % slower in
    another, whatever a sentinel of another kind says of them. *Anchors* are networks of the same
    kind whose latencies were measured on a machine as fast as its card says. They are visited in
    every round, and what all of them take in it, relative to those latencies, is how slow the
    machine was for such networks just then; every visit of the round is divided by it.

    Attributes:
        anchors: models by name.
        anchors_ms: their latencies, measured before.
    """

    anchors: Mapping[str, onnx.ModelProto] = field(default_factory=dict)
    anchors_ms: Mapping[str, float] = field(default_factory=dict)
    patience_s: float | None = 0.0

    def measure(
        self,
        models: Mapping[str, onnx.ModelProto],
        *,
        visits: int = 12,
        seed: int = 0,
        progress: Progress = silent,
    ) -> dict[str, Measurement]:
        """Measures models, interleaved with the anchors; see the base class.

        Returns:
            Measurements whose samples are as if the machine had been as fast as its card says.
        """
        every = {**self.anchors, **models}
        found = super().measure(every, visits=visits, seed=seed, progress=progress)
        slow = np.array(
            [
                [visit.median_ms / anchor_ms for visit in found[name].visits]
                for name, anchor_ms in self.anchors_ms.items()
            ]
        )
        slowdowns = np.exp(np.median(np.log(slow), axis=0))
        return {name: _at_card_speed(found[name], slowdowns.tolist()) for name in models}


def _at_card_speed(measured: Measurement, slowdowns: Sequence[float]) -> Measurement:
    """A measurement with each visit divided by how slow the machine was in its round."""
    reference_ms = measured.sentinel_reference_ms
    visits = tuple(
        replace(
            visit,
            samples_ms=tuple(sample / slowdown for sample in visit.samples_ms),
            sentinel_before_ms=reference_ms,
            sentinel_after_ms=reference_ms,
        )
        for visit, slowdown in zip(measured.visits, slowdowns, strict=True)
    )
    return replace(measured, visits=visits)


@dataclass(frozen=True)
class _Drawn:
    """A network that by prediction is in the band."""

    network: Architecture
    predicted_ms: float


class _Source:
    """One space, and what was found in it."""

    def __init__(self, space: CandidateSpace, count: int, predictor: Predictor, batch: int) -> None:
        self.space = space
        self.count = count
        self.table = LatencyCost(space.skeleton, predictor, space.reading, batch).table(
            space.blocks
        )
        self.found: list[BandNetwork] = []
        self.seen: set[str] = set()
        self.ratios: list[float] = []
        """Measured over predicted, both as shares of the reference network's."""

    def draw(self, target_ms: float, band: float, random: np.random.Generator) -> list[_Drawn]:
        """Networks not drawn before that are in the band by prediction, corrected."""
        missing = math.ceil(_SPARE * (self.count - len(self.found)))
        if missing <= 0:
            return []
        sizes = [len(row) for row in self.table.values]
        choices = np.stack([random.integers(size, size=_DRAWS) for size in sizes], axis=1)
        costs = np.full(_DRAWS, self.table.fixed)
        for block, row in enumerate(self.table.values):
            costs += np.array(row)[choices[:, block]]
        off = float(np.median(self.ratios)) if self.ratios else 1.0
        drawn: list[_Drawn] = []
        for place in np.flatnonzero(np.abs(costs * off / target_ms - 1) <= band):
            blocks = tuple(row[i] for row, i in zip(self.space.blocks, choices[place], strict=True))
            network = Architecture(self.space.skeleton, blocks, self.space.reading)
            if network.hash not in self.seen:
                self.seen.add(network.hash)
                drawn.append(_Drawn(network, float(costs[place])))
            if len(drawn) == missing:
                break
        return drawn

    def keep(self, one: _Drawn, latency_ms: float, share: float) -> None:
        """Takes a network in whose measured latency is in the band, if there is room."""
        if len(self.found) < self.count:
            self.found.append(
                BandNetwork(
                    self.space.label,
                    len(self.found),
                    one.network,
                    one.predicted_ms,
                    latency_ms,
                    share,
                )
            )
