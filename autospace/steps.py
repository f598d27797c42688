"""The steps of the chain as functions: what the commands call, and notebooks can.

Each takes and returns the frozen data classes that the files hold. Limits and sizes are given as
people write them (``"500M"``, ``"5ms"``, ``"70%"``).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from autospace.accelerator import Accelerator, resolve_accelerator
from autospace.checks import hardly_learned
from autospace.cost import (
    Cost,
    CostTable,
    Limit,
    MaddsCost,
    Metric,
    reference_cost,
)
from autospace.coverage import CoveredLatencyCost, described, networks_with
from autospace.data import Data, load_data
from autospace.events import Progress, Watch, silent, unwatched
from autospace.files import check_writable, replacing, write_json
from autospace.operations import KernelReading
from autospace.quantities import parse_count, parse_fraction, parse_latency_ms
from autospace.seeding import Seed
from autospace.skeleton import Skeleton, find_skeleton
from autospace.space import Architecture, SearchSpace
from devices.errors import AutospaceError, BudgetError, InvalidInputError, UsageError
from devices.measurement import Measurement

if TYPE_CHECKING:
    import onnx

    from autospace.conversion import ConvertedFile
    from autospace.distributed import Ranks
    from autospace.evolution import EvolutionOptions
    from autospace.genotype import Block
    from autospace.onnx_export import ExportCheck
    from autospace.proxyless import SearchedNet, SearchOptions
    from autospace.training import TrainedNetwork, TrainOptions
    from autospace.verify import Chosen, Measure
    from devices.runtimes.base import RuntimeSettings
    from latency import DeviceCard, Prediction, Predictor
    from latency.compare import Compared

__all__ = [
    "STATISTICS",
    "Benchmark",
    "BenchmarkedModel",
    "Comparison",
    "Device",
    "Exported",
    "FamilyResult",
    "SearchResult",
    "benchmark",
    "compare",
    "evolve",
    "export",
    "limits_of",
    "measuring_on",
    "open_device",
    "predict",
    "profile",
    "search",
    "search_pareto",
    "target_skeleton",
    "train",
]

_PROXY_RESOLUTION = 64
_VISITS = 12
_PATIENCE_S = 60.0
_CANDIDATE_VISITS = 48
"""To each candidate of a search: what its bound is above it is lost of the limit."""
_MISSING_ROUNDS = 6
"""Visits to networks with what a card lacks; from three on a kernel counts as measured."""

STATISTICS = ("latency", "p50", "p90", "p99")
"""What a limit can be on: ``latency_ms``, or a percentile of all runs, slow phases included."""


@dataclass(frozen=True)
class Device:
    """A card that was opened and checked, with its predictor.

    Attributes:
        card: the card.
        warnings: what was found and allowed; to be repeated beside every figure.
        here: whether this machine is the card's device, so that it can measure.
    """

    card: DeviceCard
    warnings: tuple[str, ...]
    here: bool

    @property
    def description(self) -> str:
        """For output: device, runtime, threads, precision, batch."""
        return describe_card(self.card)

    @cached_property
    def predictor(self) -> Predictor:
        """Of latencies on this device; what it works out for one network serves the next.

        Raises:
            InvalidInputError: nothing was measured in the card yet.
        """
        from latency import Predictor

        return Predictor.from_card(self.card)

    def measure(
        self,
        models: Mapping[str, onnx.ModelProto],
        *,
        visits: int = _VISITS,
        seed: int = 0,
        progress: Progress = silent,
    ) -> dict[str, Measurement]:
        """Measures models on this device, interleaved.

        A machine that is slower than when it was profiled is waited for: as long as the profile
        took, and a minute at most.
        """
        from latency import measure_models

        return measure_models(
            models,
            runtime=self.card.runtime,
            settings=self.card.settings,
            visits=visits,
            seed=seed,
            reference_ms=self.card.sentinel_reference_ms,
            patience_s=min(_PATIENCE_S, self.card.elapsed_s),
            progress=progress,
        )


def describe_card(card: DeviceCard) -> str:
    """Device, runtime, threads, precision and batch of a card in one line."""
    settings = card.settings
    threads = f"{settings.threads} thread" + ("s" if settings.threads > 1 else "")
    name = "simulated device" if card.simulated else card.environment.get("cpu", "unknown CPU")
    return (
        f"{name} · {card.runtime} {card.runtime_version} · {threads} · {settings.precision} · "
        f"batch {settings.batch}"
    )


def open_device(path: Path, *, allow_mismatch: bool = False, batch: int | None = None) -> Device:
    """Opens a device card and checks that it speaks for this machine.

    Args:
        path: the card.
        allow_mismatch: turns differences into warnings.
        batch: the batch size that latency is asked for; None is the card's own.

    Raises:
        InvalidInputError: no card, or damaged.
        MismatchError: made elsewhere, and that was not allowed.
    """
    from latency import DeviceCard

    card = DeviceCard.open(path, samples=False)
    warnings = card.check_usable(allow_mismatch)
    here = card.is_this_machine()
    if batch is not None:
        asked = replace(card.settings, batch=batch)
        warnings = (*warnings, *card.check_settings(asked, allow_mismatch))
    # By name only: a run folder that was moved says the same.
    warnings = tuple(warning.replace(str(card.path), card.path.name) for warning in warnings)
    return Device(card, warnings, here)


def target_skeleton(
    name: str, data: Data, *, resolution: int | None = None, width_mult: float = 1.0
) -> Skeleton:
    """The macro layout at which costs are counted.

    ``mobile`` stays ImageNet's (224×224, 3 channels, 1000 classes) whatever is learned on, unless
    that is a folder of images; the small layouts take the data's channels and classes.

    Args:
        name: of the layout.
        data: what is learned on.
        resolution: another input size of the target.
        width_mult: multiplies every width.

    Raises:
        UsageError: unknown layout.
    """
    skeleton = find_skeleton(name)
    if name != "mobile" or data.name == "folder":
        skeleton = skeleton.for_data(
            resolution=skeleton.resolution,
            in_channels=data.channels,
            num_classes=data.num_classes,
        )
    return replace(skeleton, resolution=resolution or skeleton.resolution, width_mult=width_mult)


def load_proxy(
    name: str,
    root: Path | None,
    skeleton: Skeleton,
    resolution: int | None = None,
    accelerator: Accelerator = "cpu",
) -> Data:
    """The data at the input size to learn at: the target's own where it is small.

    Raises:
        UnavailableError: the accelerator is not here; before anything is read.
    """
    where = resolve_accelerator(accelerator)
    if resolution is None and skeleton.resolution <= _PROXY_RESOLUTION:
        resolution = skeleton.resolution
    channels = skeleton.in_channels if skeleton.in_channels in (1, 3) else None
    # A one-channel layout takes colour data as it is; a three-channel one repeats grey.
    channels = channels if channels == 3 else None
    data = load_data(name, root, resolution=resolution, channels=channels)
    return replace(data, accelerator=where)


def limits_of(
    budget: str | None,
    latency: str | None,
    costs: Mapping[str, Cost],
    *,
    device: Device | None = None,
    statistic: str = STATISTICS[0],
) -> tuple[Limit, ...]:
    """Limits as people write them.

    Args:
        budget: multiply-adds, or a percentage of the reference network's.
        latency: a time, or a percentage of the reference network's.
        costs: by metric.
        device: the opened card, for other statistics than ``latency``.
        statistic: what the latency limit is on; ``p50``, ``p90`` and ``p99``, disturbance
            included, are translated to ``latency_ms`` by the ratio measured in the card.

    Raises:
        UsageError: malformed, or a latency without a device card.
    """
    limits = []
    given: tuple[tuple[Metric, str | None, str, Callable[[str, str], float]], ...] = (
        ("madds", budget, "--budget", parse_count),
        ("latency_ms", latency, "--latency", parse_latency_ms),
    )
    for metric, text, option, parse in given:
        if text is None:
            continue
        if text.strip().endswith("%"):
            fraction = parse_fraction(text, option)
            if metric not in costs:
                raise UsageError(f"{option} {text}: needs a device card; add --device CARD")
            limits.append(Limit(metric, fraction * reference_cost(costs[metric]), text))
            continue
        value = parse(text, option)
        if metric not in costs:
            raise UsageError(f"{option} {text}: needs a device card; add --device CARD")
        if metric == "latency_ms" and statistic != STATISTICS[0] and device is not None:
            ratio = device.card.ratio(statistic)
            value, text = value / ratio, f"{statistic} {text} (÷ {ratio:.3f})"
        limits.append(Limit(metric, value, text))
    return tuple(limits)


def check_limit_texts(budget: str | None, latency: str | None) -> None:
    """Refuses malformed limits before anything is loaded.

    Raises:
        UsageError: malformed.
    """
    if budget is not None:
        parse = parse_fraction if budget.strip().endswith("%") else parse_count
        parse(budget, "--budget")
    if latency is not None:
        (parse_fraction if latency.strip().endswith("%") else parse_latency_ms)(
            latency, "--latency"
        )


def costs_of(
    skeleton: Skeleton, device: Device | None, reading: KernelReading = "kernel"
) -> dict[str, Cost]:
    """Every cost that can be counted: multiply-adds, and latency with a card."""
    costs: dict[str, Cost] = {"madds": MaddsCost(skeleton, reading)}
    if device is not None:
        costs["latency_ms"] = _latency_cost(skeleton, device.card, reading)
    return costs


def _latency_cost(
    skeleton: Skeleton, card: DeviceCard, reading: KernelReading
) -> CoveredLatencyCost:
    from latency import Predictor

    return CoveredLatencyCost(skeleton, Predictor.from_card(card), reading, card.settings.batch)


def profile(
    path: Path,
    *,
    runtime: str = "onnxruntime",
    settings: RuntimeSettings | None = None,
    minutes: float | None = 10,
    rounds: int | None = None,
    seed: int = 0,
    probes: int | None = None,
    space: SearchSpace | None = None,
    models: Mapping[str, onnx.ModelProto] | None = None,
    update: bool = False,
    progress: Progress = silent,
) -> DeviceCard:
    """Measures this device and keeps the result as a device card.

    Args:
        path: the card; an unfinished one goes on where it was.
        runtime: by name.
        settings: threads, precision and batch.
        minutes: how long.
        rounds: a fixed number of rounds instead.
        seed: of the probe networks and the order of visits.
        probes: how many probe networks; as many as the time allows if not given.
        space: its kernels are measured too, in networks drawn from it.
        models: other networks whose kernels are measured too, by name.
        update: add to a finished card.
        progress: is told as it goes.
    """
    from latency import profile_device

    batch = settings.batch if settings else 1
    return profile_device(
        path,
        runtime=runtime,
        settings=settings,
        minutes=minutes,
        rounds=rounds,
        probes=probes,
        seed=seed,
        extra_models={
            **(space_networks(space, Seed(seed), batch) if space else {}),
            **(models or {}),
        }
        or None,
        update=update,
        progress=progress,
    )


def space_networks(space: SearchSpace, seed: Seed, batch: int = 1) -> dict[str, onnx.ModelProto]:
    """Networks that between them hold every candidate of every block of a space."""
    from autospace.onnx_export import onnx_for_cost

    candidates = [space.candidates(index) for index in range(len(space.skeleton.blocks))]
    orders = [
        seed.generator("probes", index).permutation(len(blocks))
        for index, blocks in enumerate(candidates)
    ]
    networks = {}
    for number in range(max(map(len, candidates))):
        blocks = tuple(
            blocks[order[number % len(blocks)]]
            for blocks, order in zip(candidates, orders, strict=True)
        )
        architecture = Architecture(space.skeleton, blocks, space.kernel_reading)
        networks[f"space-{architecture.hash}"] = onnx_for_cost(architecture, batch)
    return networks


def predict(
    model: Path | onnx.ModelProto,
    device: Path | Device,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    allow_mismatch: bool = False,
) -> Prediction:
    """The latency of an ONNX model on a card's device.

    Args:
        model: the model or its file.
        device: an opened card or its file.
        shapes: of inputs with dynamic dimensions other than the batch, by name.
        allow_mismatch: turns differences between card and machine into warnings.

    Raises:
        InvalidInputError: no ONNX model, or no card.
        MismatchError: the card was made elsewhere.
    """
    if isinstance(device, Path):
        device = open_device(device, allow_mismatch=allow_mismatch)
    return device.predictor.predict(model, shapes)


def evolve(
    *,
    budget: str | None = None,
    latency: str | None = None,
    device: Device | None = None,
    statistic: str = STATISTICS[0],
    skeleton: Skeleton | str = "mobile",
    data: Data | None = None,
    options: EvolutionOptions | None = None,
    seed: int = 0,
    reading: KernelReading = "kernel",
    state: Path | None = None,
    log: Path | None = None,
    progress: Progress = silent,
    watch: Watch = unwatched,
) -> SearchSpace:
    """Evolves a search space for limits.

    Args:
        budget: multiply-adds at the target.
        latency: on the card's device; needs ``device``.
        device: an opened card.
        statistic: what the latency limit is on, one of `STATISTICS`.
        skeleton: the target's macro layout.
        data: what fitness is learned on; the embedded digits if not given.
        options: the open choices of the evolution.
        seed: of everything random.
        reading: how fused depthwise operations are built.
        state: where the state is saved as it goes.
        log: the JSON-lines log.
        progress: is told as it goes.
        watch: is given every new line of the log.

    Raises:
        UsageError: a malformed limit, or one below the smallest network.
    """
    from autospace.distributed import join
    from autospace.evolution import evolve_space

    check_limit_texts(budget, latency)
    if data is None:
        named = find_skeleton(skeleton) if isinstance(skeleton, str) else skeleton
        data = load_proxy("digits", None, named)
    ranks = join(data.accelerator)
    if isinstance(skeleton, str):
        skeleton = target_skeleton(skeleton, data)
    costs = costs_of(skeleton, device, reading)
    space = evolve_space(
        skeleton,
        data,
        costs,
        limits_of(budget, latency, costs, device=device, statistic=statistic),
        options=options,
        seed=Seed(seed),
        reading=reading,
        provenance={"device": device.description} if device else {},
        ranks=ranks,
        state=state,
        log=log,
        progress=progress,
        watch=watch,
    )
    ranks.leave()
    return space


@dataclass(frozen=True)
class SearchResult:
    """The end of a search, ready to be kept or refused.

    Attributes:
        architecture: the network, with its costs in the provenance.
        chosen: every candidate and the verdict.
        limits: as resolved.
        warnings: to be repeated.
        expected: the expected cost of each limit's metric, where the search ended.
    """

    architecture: Architecture
    chosen: Chosen
    limits: tuple[Limit, ...]
    warnings: tuple[str, ...]
    expected: tuple[float, ...] = ()

    def check(self) -> None:
        """Raises when the limits are not kept.

        Raises:
            BudgetError: names the nearest network's costs.
        """
        if not self.chosen.kept:
            raise BudgetError(
                f"budget not kept: {self.nearest}; raise the limit or evolve a space for it"
            )

    @property
    def nearest(self) -> str:
        """The limits, and what the network that was found costs."""
        best = self.chosen.best
        parts = []
        for limit in self.limits:
            if limit.metric == "madds":
                parts.append(f"{limit} (nearest {best.madds / 1e6:.4g}M)")
            elif best.measured is not None:
                parts.append(
                    f"{limit} (nearest {best.measured.latency_ms:.3g} ms, bound "
                    f"{best.measured.upper_ms():.3g} ms, measured)"
                )
            else:
                parts.append(f"{limit} (nearest {best.predicted_ms or 0:.3g} ms, predicted)")
        return " and ".join(parts)


def search(
    space: SearchSpace,
    *,
    budget: str | None = None,
    latency: str | None = None,
    device: Device | None = None,
    statistic: str = STATISTICS[0],
    data: Data | None = None,
    options: SearchOptions | None = None,
    seed: int = 0,
    measure: bool = True,
    state: Path | None = None,
    log: Path | None = None,
    record: Path | None = None,
    progress: Progress = silent,
    verifying: Progress | None = None,
) -> SearchResult:
    """Searches a space under limits and measures what it chose.

    Args:
        space: the candidates of each layer.
        budget: multiply-adds at the target.
        latency: on the card's device; needs ``device``.
        device: an opened card.
        statistic: what the latency limit is on, one of `STATISTICS`.
        data: what is learned on; the embedded digits if not given.
        options: how to search.
        seed: of everything random.
        measure: False leaves latency to the prediction.
        state: where the state is saved as it goes.
        log: the JSON-lines log.
        record: where candidates and their measurements are kept.
        progress: is told during the search.
        verifying: is told while candidates are ranked and measured.

    Returns:
        The result, kept or not; `SearchResult.check` raises when it is not.

    Raises:
        UsageError: a malformed limit, or one below the smallest network.
    """
    asked = _asked(
        space, budget, latency, device, statistic, data, options, seed, measure, state, progress
    )
    searched = asked.train(state=state, log=log, progress=progress)
    (found,) = asked.verified(
        [searched], measure, record, verifying or progress, searched.held_out_loss
    )
    return found


@dataclass(frozen=True)
class FamilyResult:
    """The end of a search for several limits.

    Attributes:
        members: tightest limits first; the last has the limits as given.
    """

    members: tuple[SearchResult, ...]

    @property
    def kept(self) -> bool:
        """Whether every member keeps its limits."""
        return all(member.chosen.kept for member in self.members)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Each once, to be repeated."""
        return tuple(dict.fromkeys(line for member in self.members for line in member.warnings))

    def check(self) -> None:
        """Raises when a member's limits are not kept.

        Raises:
            BudgetError: names the limits and the nearest networks' costs.
        """
        missed = [member.nearest for member in self.members if not member.chosen.kept]
        if missed:
            raise BudgetError(
                f"budget not kept by {len(missed)} of {len(self.members)} networks: "
                f"{'; '.join(missed)}; raise the limit or evolve a space for it"
            )

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The document ``pareto.json``.

        Args:
            names: of the members' architecture files.
        """
        return {
            "format": "autospace.pareto",
            "schema_version": 1,
            "kept": self.kept,
            "warnings": list(self.warnings),
            "members": [
                {
                    "architecture": name,
                    "limits": [limit.to_json() for limit in member.limits],
                    "params": member.architecture.params,
                    **member.chosen.best.to_json(),
                    "bound_ms": (
                        member.chosen.best.measured.upper_ms()
                        if member.chosen.best.measured
                        else None
                    ),
                    "candidates": [one.to_json() for row in member.chosen.rounds for one in row],
                }
                for name, member in zip(names, self.members, strict=True)
            ],
        }


def search_pareto(
    space: SearchSpace,
    count: int,
    *,
    budget: str | None = None,
    latency: str | None = None,
    device: Device | None = None,
    statistic: str = STATISTICS[0],
    data: Data | None = None,
    options: SearchOptions | None = None,
    seed: int = 0,
    measure: bool = True,
    state: Path | None = None,
    log: Path | None = None,
    record: Path | None = None,
    progress: Progress = silent,
    verifying: Progress | None = None,
) -> FamilyResult:
    """Searches a space for a family of networks: one for each of several limits.

    One supernet is trained; half of its paths are drawn for the limits given, the others for
    those of the family. For each limit α then goes on learning by itself, the exact solver
    proposes, and all proposals are measured interleaved.

    Args:
        space: the candidates of each layer.
        count: how many limits, evenly spaced in the logarithm from just above the smallest
            network up to those given; limits given together shrink together.
        budget: multiply-adds at the target, of the largest network.
        latency: on the card's device, of the largest network; needs ``device``.
        device: an opened card.
        statistic: what the latency limit is on, one of `STATISTICS`.
        data: what is learned on; the embedded digits if not given.
        options: how to search.
        seed: of everything random.
        measure: False leaves latency to the prediction.
        state: where the state is saved as it goes; the members' α beside it, as ``.family``.
        log: the JSON-lines log of the supernet's training.
        record: where candidates and their measurements are kept.
        progress: is told during the search.
        verifying: is told while candidates are ranked and measured.

    Returns:
        The family, kept or not; `FamilyResult.check` raises when a limit is not kept.

    Raises:
        UsageError: a malformed limit, one below the smallest network, or no room for so many.
    """
    from autospace.family import learn_family

    asked = _asked(
        space, budget, latency, device, statistic, data, options, seed, measure, state, progress
    )
    limits = asked.family(count)
    searched = asked.train(
        # As many for the last member, whose limits are those given, as for all others together.
        family=[*limits, *[limits[-1]] * (count - 2)],
        state=state,
        log=log,
        progress=lambda fraction, message: progress(0.7 * fraction, message),
    )
    family = learn_family(
        searched, asked.data, limits, options=asked.options, seed=Seed(seed), ranks=asked.ranks,
        state=family_state(state) if state else None,
        progress=lambda fraction, message: progress(0.7 + 0.3 * fraction, message),
    )  # fmt: skip
    return FamilyResult(
        asked.verified(family, measure, record, verifying or progress, searched.held_out_loss)
    )


def card_copy(state: Path) -> Path:
    """Where a card is completed for one search, beside the state of the search."""
    return state.with_name(f"{state.name}.card")


def family_state(state: Path) -> Path:
    """Where the members' α are kept, beside the state of the search."""
    return state.with_name(f"{state.name}.family")


@dataclass(frozen=True)
class _Asked:
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
    def _candidates(self) -> list[tuple[Block, ...]]:
        return [self.space.candidates(index) for index in range(len(self.space.skeleton.blocks))]

    @cached_property
    def tables(self) -> list[CostTable]:
        return [self.costs[limit.metric].table(self._candidates) for limit in self.limits]

    def latency_table(self, searched: SearchedNet) -> CostTable | None:
        """What was searched with; that of the card where latency is not limited."""
        limited = (table for table in searched.tables if table.metric == "latency_ms")
        if table := next(limited, None):
            return table
        return self.costs["latency_ms"].table(self._candidates) if self.device else None

    def family(self, count: int) -> list[tuple[Limit, ...]]:
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
        from devices.measurement import slow_warning

        best = chosen.best
        if best.measured and (slow := slow_warning([best.measured])) is not None:
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


def _asked(
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
) -> _Asked:
    from autospace.distributed import join
    from autospace.proxyless import SearchOptions

    check_limit_texts(budget, latency)
    data = data or load_proxy("digits", None, space.skeleton)
    ranks = join(data.accelerator)
    options = options or SearchOptions()
    options.check()
    costs = costs_of(space.skeleton, device, space.kernel_reading)
    completed: tuple[str, ...] = ()
    if device is not None and latency is not None:
        # Before the limits: a percentage of the reference must not rest on a guess either.
        latency_cost, completed = _covered(space, device, seed, measure, state, ranks, progress)
        costs["latency_ms"] = latency_cost
    limits = limits_of(budget, latency, costs, device=device, statistic=statistic)
    return _Asked(space, device, data, options, costs, limits, seed, ranks, completed)


def _covered(
    space: SearchSpace,
    device: Device,
    seed: int,
    measure: bool,
    state: Path | None,
    ranks: Ranks,
    progress: Progress,
) -> tuple[Cost, tuple[str, ...]]:
    """Latency with a measurement behind every entry of the space's table, and what to say of it.

    Raises:
        InvalidInputError: entries are missing, and nothing can be measured here.
    """
    candidates = [space.candidates(index) for index in range(len(space.skeleton.blocks))]
    cost = _latency_cost(space.skeleton, device.card, space.kernel_reading)
    missing = cost.missing(candidates)
    if not missing:
        return cost, ()
    card, words = device.card.path, described(missing)
    remedy = f"'autospace profile-device --update --space SPACE -o {card.name}'"
    if not measure or not device.here:
        why = "--no-measure forbids to" if device.here else "this machine cannot"
        raise InvalidInputError(
            f"{card.name}: never measured {words}, which the space needs, and {why} measure them "
            f"now; add them to the card with {remedy}"
        )
    if ranks.size > 1 and state is None:
        raise UsageError(
            f"{card.name}: lacks {words}, and {ranks.size} processes need a place to share what "
            f"is measured; give a state, or add them to the card with {remedy}"
        )
    progress(0.0, f"measuring {words}, which {card.name} lacks")
    if not ranks.first:
        ranks.wait()  # then everything is measured, and the card is opened at once
    with TemporaryDirectory() as folder:
        copy = card_copy(state) if state else Path(folder) / card.name
        if not copy.exists():
            with replacing(copy) as temporary:
                shutil.copyfile(card, temporary)
        fuller = profile(
            copy, runtime=device.card.runtime, settings=device.card.settings, minutes=None,
            rounds=_MISSING_ROUNDS, probes=0, seed=seed, update=True,
            models=networks_with(missing, space, device.card.settings.batch),
        )  # fmt: skip
        if ranks.first:
            ranks.wait()
        cost = _latency_cost(space.skeleton, fuller, space.kernel_reading)
        still = cost.missing(candidates)
    if still:
        raise InvalidInputError(
            f"{card.name}: {described(still)} could not be measured, and the space needs them; "
            "profile for longer, or take another space"
        )
    return cost, (f"{card.name} lacks {words}: measured for this search; keep them with {remedy}",)


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


def train(
    architecture: Architecture,
    *,
    data: Data | None = None,
    options: TrainOptions | None = None,
    seed: int = 0,
    state: Path | None = None,
    log: Path | None = None,
    progress: Progress = silent,
) -> TrainedNetwork:
    """Trains an architecture and tests it on data that training never saw.

    Raises:
        UsageError: an impossible recipe.
    """
    from autospace.training import train_network

    data = data or load_proxy("digits", None, architecture.skeleton)
    return train_network(
        architecture, data, options=options, seed=Seed(seed), state=state, log=log,
        progress=progress,
    )  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """A converted network.

    Attributes:
        path: the ONNX file.
        architecture: what it computes.
        trained: whether the weights were trained.
        warnings: to be repeated.
        files: what was written, with how far each is from PyTorch.
        accuracy: of the network itself on the images that files were judged by; None where these
            have no labels.
    """

    path: Path
    architecture: Architecture
    trained: bool
    warnings: tuple[str, ...]
    files: tuple[ConvertedFile, ...]
    accuracy: float | None

    @property
    def check(self) -> ExportCheck:
        """How far the first file's outputs are from PyTorch's."""
        return self.files[0].check


def export(
    source: Path | Architecture | TrainedNetwork,
    path: Path,
    *,
    batch: int = 1,
    data: Data | None = None,
    seed: int = 0,
    formats: Sequence[str] = ("onnx",),
    precision: str = "fp32",
) -> Exported:
    """Writes a network for one or more runtimes and compares the files' outputs with PyTorch's.

    Args:
        source: a checkpoint, an architecture, or their file.
        path: the ONNX file; files of other formats lie beside it, with their own endings.
        batch: its fixed batch size.
        data: real images for the comparison and the calibration; drawn at random if not given.
        seed: of untrained weights and random images.
        formats: of `autospace.conversion.CONVERTERS`, at least one.
        precision: "fp32", "fp16" or "int8".

    Raises:
        InvalidInputError: neither an architecture nor a checkpoint.
        UsageError: the file cannot be written.
        AutospaceError: the outputs differ; that file is not written.
        UnavailableError: a format's runtime is not installed, or has not that precision.
    """
    import numpy as np

    from autospace.conversion import (
        CALIBRATION_IMAGES,
        LOWERING,
        SUFFIXES,
        check_precision,
        convert,
        quantised,
    )
    from autospace.network import build_network
    from autospace.onnx_export import (
        architecture_metadata,
        build_onnx,
        folded_weights,
        outputs_of,
        whole_batches,
    )
    from autospace.training import TrainedNetwork
    from devices.onnx_half import half_precision

    check_writable(path)
    for kind in formats:
        check_precision(kind, precision)
    if isinstance(source, Path):
        source = read_network(source)
    warnings: list[str] = []
    metadata: dict[str, str] = {}
    if isinstance(source, TrainedNetwork):
        architecture, network = source.architecture, source.network
        trained = True
        for key in ("mean", "std", "data"):
            if key in source.meta:
                metadata[f"autospace.{key}"] = str(source.meta[key])
        metadata["autospace.test_accuracy"] = str(source.accuracy)
    else:
        architecture, network, trained = source, build_network(source, seed), False
        warnings.append("the weights are untrained: an architecture file holds none")
    network.eval()
    skeleton = architecture.skeleton
    model = build_onnx(
        architecture.nodes,
        folded_weights(network),
        batch=batch,
        metadata={**metadata, **architecture_metadata(architecture)},
    )
    fits = data is not None and (data.channels, data.resolution) == (
        skeleton.in_channels,
        skeleton.resolution,
    )
    labels = None
    if data is not None and fits:
        count = min(len(data.test), 64 if precision == "fp32" else 1000)
        images, truth = (part.numpy() for part in data.batch(data.test, np.arange(count)))
        count = min(len(data.train), CALIBRATION_IMAGES)
        calibration = data.batch(data.train, np.arange(count))[0].numpy()
        if trained:
            labels = truth
    else:
        shape = (8, skeleton.in_channels, skeleton.resolution, skeleton.resolution)
        images = Seed(seed).generator("export").normal(size=shape).astype(np.float32)
        calibration = images
        if precision == "int8":
            warnings.append("calibrated with random images: activations of real ones may not fit")
    images = whole_batches(images, batch)
    expected = outputs_of(network, images, batch)
    calibration = whole_batches(calibration, batch)
    lowered = model
    if set(formats) - set(LOWERING[precision]):
        if precision == "fp16":
            lowered = half_precision(model)
        elif precision == "int8":
            lowered = quantised(model, calibration)
    if labels is not None:
        labels = np.resize(labels, len(images))
    files = []
    for kind in formats:
        own = model if kind in LOWERING[precision] else lowered
        named = kind == "onnx" or path.name.endswith(SUFFIXES[kind])
        target = path if named else path.with_suffix(SUFFIXES[kind])
        files.append(
            convert(
                own, kind, target, precision=precision, images=images, expected=expected,
                labels=labels, calibration=calibration,
            )
        )  # fmt: skip
    accuracy = None if labels is None else float((expected.argmax(1) == labels).mean())
    return Exported(path, architecture, trained, tuple(warnings), tuple(files), accuracy)


def read_network(path: Path) -> Architecture | TrainedNetwork:
    """Reads an architecture file or a checkpoint, told apart by their content.

    Raises:
        InvalidInputError: neither.
    """
    from autospace.training import TrainedNetwork

    if path.is_dir():
        raise InvalidInputError(
            f"{path}: is a folder, not an architecture or a checkpoint; name the file in it"
        )
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise InvalidInputError(
            f"{path}: no such file; expected an architecture or a checkpoint"
        ) from None
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror})") from None
    # safetensors: eight bytes of header length, then the header, a JSON object.
    if start[5:] == b"\0\0\0{":
        return TrainedNetwork.load(path)
    return Architecture.load(path)


@dataclass(frozen=True)
class BenchmarkedModel:
    """One model, predicted and measured.

    Attributes:
        name: its file's name.
        predicted: by the card.
        measured: on this machine.
    """

    name: str
    predicted: Prediction
    measured: Measurement

    @property
    def error(self) -> float:
        """Predicted divided by measured, minus 1."""
        return self.predicted.latency_ms / self.measured.latency_ms - 1


@dataclass(frozen=True)
class Benchmark:
    """What `benchmark` found.

    Attributes:
        models: in the order given.
        device: in words.
        warnings: to be repeated.
    """

    models: tuple[BenchmarkedModel, ...]
    device: str
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The document that ``benchmark`` writes, with raw samples."""
        return {
            "device": self.device,
            "warnings": list(self.warnings),
            "models": [
                {
                    "name": model.name,
                    "error": model.error,
                    "predicted": model.predicted.to_json(),
                    "measured": model.measured.to_json(),
                }
                for model in self.models
            ],
        }

    def save(self, path: Path) -> None:
        """Writes the result file at once."""
        write_json(path, self.to_json())


def benchmark(
    models: Sequence[Path],
    device: Device,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    visits: int = 16,
    seed: int = 0,
    progress: Progress = silent,
) -> Benchmark:
    """Measures ONNX models on this machine, interleaved, beside what the card predicts.

    Args:
        models: ONNX files.
        device: an opened card of this machine.
        shapes: of inputs with dynamic dimensions other than the batch, by name.
        visits: to each model.
        seed: of the order of visits.
        progress: is told as it goes.

    Raises:
        InvalidInputError: no ONNX model, or the runtime refuses it.
        MismatchError: this machine is not the card's device.
        UnavailableError: the card's runtime is not installed.
    """
    from devices.errors import MismatchError
    from devices.measurement import slow_warning
    from devices.runtimes import get_runtime
    from latency.measure import naming

    if not device.here:
        get_runtime(device.card.runtime).require(device.card.settings)
        raise MismatchError(
            f"{device.card.path}: this machine is not the card's device, so nothing can be "
            "measured for it here; profile this machine with 'autospace profile-device'"
        )
    loaded = _fixed_models(models, shapes or {}, device.card.settings.batch)
    predictor = device.predictor
    predicted = {}
    for name, model in loaded.items():
        with naming(name):
            predicted[name] = predictor.predict(model)
    measured = device.measure(loaded, visits=visits, seed=seed, progress=progress)
    slow = slow_warning(measured.values())
    return Benchmark(
        tuple(BenchmarkedModel(name, predicted[name], measured[name]) for name in loaded),
        device.description,
        device.warnings if slow is None else (*device.warnings, slow),
    )


def data_of(
    network: Architecture | TrainedNetwork, name: str | None, root: Path | None
) -> tuple[Data | None, str | None]:
    """The images that a network's files are judged by.

    Args:
        network: whose input they have to fit.
        name: of a data set; None for the one that the network was trained on.
        root: the folder of its files.

    Returns:
        The data, None where there are none; and then why, where that is worth saying.

    Raises:
        UsageError: the data set that was named is unknown.
        InvalidInputError: its files are missing or broken.
    """
    from autospace.training import TrainedNetwork

    architecture = network.architecture if isinstance(network, TrainedNetwork) else network
    skeleton = architecture.skeleton
    own = network.meta.get("data") if isinstance(network, TrainedNetwork) else None
    if name is None and own is None:
        return None, None
    try:
        found = load_data(
            name or str(own).partition(" at ")[0],
            root,
            resolution=skeleton.resolution,
            channels=skeleton.in_channels,
        )
    except AutospaceError as error:
        if name is not None:
            raise
        return None, f"compared on random images: {error}"
    return found, None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        settings: threads, precision and batch.
        rows: network by network, in each of the runtimes.
    """

    settings: RuntimeSettings
    rows: tuple[Compared, ...]

    def to_json(self) -> dict[str, Any]:
        """The document that ``benchmark --runtime`` writes, with raw samples."""
        return {
            "settings": self.settings.to_json(),
            "models": [row.to_json() for row in self.rows],
        }

    def save(self, path: Path) -> None:
        """Writes the result file at once."""
        write_json(path, self.to_json())


def compare(
    models: Sequence[Path],
    runtimes: Sequence[str],
    settings: RuntimeSettings,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    visits: int = 16,
    seed: int = 0,
    progress: Progress = silent,
) -> Comparison:
    """Measures ONNX models on this machine in several runtimes, interleaved.

    Args:
        models: ONNX files.
        runtimes: names.
        settings: threads, precision, batch.
        shapes: of inputs with dynamic dimensions other than the batch, by name.
        visits: to each model in each runtime.
        seed: of the order of visits.
        progress: is told as it goes.

    Raises:
        InvalidInputError: no ONNX model, or a runtime refuses it.
        UsageError: an unknown runtime, or one named twice.
        UnavailableError: a runtime is not installed.
    """
    from latency.compare import compare_models

    loaded = _fixed_models(models, shapes or {}, settings.batch)
    rows = compare_models(loaded, runtimes, settings, visits=visits, seed=seed, progress=progress)
    return Comparison(settings, rows)


def _fixed_models(
    paths: Sequence[Path], shapes: Mapping[str, Sequence[int]], batch: int
) -> dict[str, onnx.ModelProto]:
    """Models by their file's name, with fixed shapes."""
    from devices.onnx_files import fix_shapes, read_onnx, shapes_by_model
    from latency.measure import naming

    loaded: dict[str, onnx.ModelProto] = {}
    for path in paths:
        name = path.name if path.name not in loaded else str(path)
        loaded[name] = read_onnx(path)
    for name, own in shapes_by_model(loaded, shapes).items():
        with naming(name):
            loaded[name] = fix_shapes(loaded[name], batch, own)
    return loaded
