"""What a search works with, resolved: its space, data, costs and limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from autospace.checks import hardly_learned
from autospace.cost import Cost, CostTable, Limit
from autospace.data import Data
from autospace.events import Progress
from autospace.seeding import Seed
from autospace.space import Architecture, SearchSpace
from autospace.steps.covering import covered_latency
from autospace.steps.device import Device
from autospace.steps.found import SearchResult
from autospace.steps.limits import check_limit_texts, costs_of, limits_of
from autospace.steps.target import load_proxy
from autospace.steps.trial import tried_latency
from devices.measurement import Measurement

if TYPE_CHECKING:
    from autospace.distributed import Ranks
    from autospace.proxyless import SearchedNet
    from autospace.search_options import SearchOptions
    from autospace.verify import Chosen, Measure

__all__ = ["Asked", "ask", "measuring_on"]

_FAR = 2.0
"""A card is not off by such a factor: what is beyond is refused before anything is measured."""
_CANDIDATE_VISITS = 48
"""To each candidate of a search: what its bound is above it is lost of the limit."""


@dataclass(frozen=True)
class Asked:
    """What a search works with, resolved."""

    space: SearchSpace
    device: Device | None
    data: Data
    options: SearchOptions
    costs: Mapping[str, Cost]
    limits: tuple[Limit, ...]
    seed: int
    ranks: Ranks
    completed: tuple[str, ...] = ()

    @cached_property
    def tables(self) -> list[CostTable]:
        """What each candidate of each block costs, a table a limit."""
        return [
            self.costs[limit.metric].table(self.space.candidates_by_block) for limit in self.limits
        ]

    def latency_table(self, searched: SearchedNet) -> CostTable | None:
        """What was searched with; that of the card where latency is not limited."""
        limited = (table for table in searched.tables if table.metric == "latency_ms")
        if table := next(limited, None):
            return table
        return (
            self.costs["latency_ms"].table(self.space.candidates_by_block) if self.device else None
        )

    def family(self, count: int) -> list[tuple[Limit, ...]]:
        """The limits of so many networks, tightest first.

        Raises:
            UsageError: one below the smallest network, or no room for so many.
        """
        from autospace.family import family_limits
        from autospace.select import check_limits

        check_limits(self.tables, self.limits)
        return family_limits(self.tables, self.limits, count)

    def train(
        self,
        *,
        family: Sequence[Sequence[Limit]] = (),
        state: Path | None,
        log: Path | None,
        progress: Progress,
    ) -> SearchedNet:
        """Trains the supernet, with paths for a family's limits where there are any."""
        from autospace.proxyless import search_space

        return search_space(
            self.space, self.data, self.costs, self.limits, options=self.options,
            seed=Seed(self.seed), family=family, ranks=self.ranks, state=state, log=log,
            progress=progress,
        )  # fmt: skip

    def measuring(self, measure: bool) -> tuple[Measure | None, list[str]]:
        """What measures candidates, if anything can, and what has to be said."""
        from autospace.select import slack_limits

        warnings = list(self.device.warnings) if self.device else []
        warnings += self.completed
        warnings += slack_limits(self.tables, self.limits)
        if self.device is None or not measure:
            return None, warnings
        if not self.device.here:
            return None, [*warnings, "not measured: this machine is not the card's device"]
        return measuring_on(self.device, self.seed), warnings

    def verified(
        self,
        family: Sequence[SearchedNet],
        measure: bool,
        record: Path | None,
        progress: Progress,
        loss: float | None,
    ) -> tuple[SearchResult, ...]:
        """The first process alone: ranks, measures and chooses.

        Args:
            family: the supernet with the architecture parameters of each member.
            measure: whether to measure.
            record: where candidates and their measurements are kept.
            progress: is told as it goes.
            loss: the supernet's on held-out data.
        """
        from autospace.verify import choose_networks

        self.ranks.leave()
        measuring, warnings = self.measuring(measure)
        poor = hardly_learned(
            loss,
            self.data.num_classes,
            "the choice among networks that fit says little; search with more --steps, at another "
            "--resolution, or with another --option learning_rate",
        )
        warnings += [poor] if poor else []
        chosen = choose_networks(
            family, self.data, self.latency_table(family[0]), options=self.options,
            seed=Seed(self.seed), measure=measuring, record=record, progress=progress,
        )  # fmt: skip
        return tuple(
            self.result(one, member, warnings) for one, member in zip(chosen, family, strict=True)
        )

    def result(
        self, chosen: Chosen, searched: SearchedNet, warnings: Sequence[str]
    ) -> SearchResult:
        """What was chosen, with its costs in the architecture's provenance."""
        from devices.measurement import speed_warning

        best = chosen.best
        if best.measured and (slow := speed_warning([best.measured])) is not None:
            warnings = [*warnings, slow]
        architecture = replace(
            best.architecture,
            provenance={
                "space": self.space.hash,
                "limits": [limit.to_json() for limit in searched.limits],
                "kept": best.kept,
                "madds": best.madds,
                "params": best.architecture.params,
                "predicted_ms": best.predicted_ms,
                "measured_ms": best.measured.latency_ms if best.measured else None,
                "validation_accuracy": best.validation_accuracy,
                "device": self.device.description if self.device else None,
                "data": self.data.description,
                "seed": self.seed,
                "warnings": list(warnings),
            },
        )
        return SearchResult(
            architecture, chosen, searched.limits, tuple(warnings), searched.expected
        )


def ask(
    space: SearchSpace,
    budget: str | None,
    latency: str | None,
    device: Device | None,
    statistic: str,
    data: Data | None,
    options: SearchOptions | None,
    seed: int,
    measure: bool,
    state: Path | None,
    progress: Progress,
) -> Asked:
    """Resolves what `search` and `search_pareto` are given, and completes the card for the space.

    Raises:
        UsageError: a malformed limit, or one below the smallest network.
        InvalidInputError: the card lacks what the space needs, and it cannot be measured here.
    """
    from autospace.distributed import join
    from autospace.search_options import SearchOptions

    check_limit_texts(budget, latency)
    data = data or load_proxy("digits", None, space.skeleton)
    ranks = join(data.accelerator)
    options = options or SearchOptions()
    options.check()
    costs = costs_of(space.skeleton, device, space.kernel_reading)
    completed: tuple[str, ...] = ()
    if device is not None and latency is not None:
        # Before the limits: a percentage of the reference must not rest on a guess either.
        covered, completed = covered_latency(space, device, seed, measure, state, ranks, progress)
        costs["latency_ms"] = covered
        if measure and device.here:
            _refuse_far_below(space, costs, limits_of(None, latency, costs, device=device))
            costs["latency_ms"], said = tried_latency(
                covered, space, device, seed, state, ranks, progress
            )
            completed += said
    limits = limits_of(budget, latency, costs, device=device, statistic=statistic)
    return Asked(space, device, data, options, costs, limits, seed, ranks, completed)


def _refuse_far_below(
    space: SearchSpace, costs: Mapping[str, Cost], limits: Sequence[Limit]
) -> None:
    """Refuses a limit that the smallest network exceeds however far its prediction may be off."""
    from autospace.select import check_limits

    for limit in limits:
        table = costs[limit.metric].table(space.candidates_by_block)
        if table.smallest > _FAR * limit.value:
            check_limits([table], [limit])


def measuring_on(device: Device, seed: int) -> Measure:
    """What measures a search's candidates on a device of this machine."""
    from autospace.onnx_export import onnx_for_cost

    def measure(networks: Mapping[str, Architecture]) -> Mapping[str, Measurement]:
        models = {
            name: onnx_for_cost(architecture, device.card.settings.batch)
            for name, architecture in networks.items()
        }
        return device.measure(models, visits=_CANDIDATE_VISITS, seed=seed)

    return measure
