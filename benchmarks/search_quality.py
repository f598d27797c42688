"""Is a searched network better than others at the same measured latency?

``python -m benchmarks.search_quality``. For two limits, as shares of the reference network's
measured latency, and for each seed: a space is evolved under the limit, or taken from ``--space``,
and searched, as a user would; ten networks are drawn from the same space within the limit; and
torchvision's mobile networks are scaled in width to it (`benchmarks.rivals`). *Within the limit*
means for all of them that their latency is between 94 and 100 % of it, on a machine about as fast
as its card says. In the end all networks of a limit are measured anew in one interleaved series,
relative to the random ones (`quality_networks.Anchored`), and it is by this that their shares of
the limit are told. All are then trained with the same short
recipe and tested on images that neither the evolution, the search nor the training has seen; the
searched networks and the best random ones twice, because the best of ten is partly the luckiest
training.

It takes hours, so everything is kept network by network in ``--folder``; killed, or stopped by
``--minutes``, the same command goes on. All of the first seed is trained before any of the second,
so that what is there can be compared at any time. Evolutions, supernets and trainings run in
``--workers`` processes of one thread each; latency is measured while none of them runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from autospace.accelerator import Accelerator
from autospace.cost import Cost
from autospace.data import Data
from autospace.distributed import ALONE
from autospace.events import Progress, silent
from autospace.evolution_options import EvolutionOptions
from autospace.files import content_hash, read_document, write_json
from autospace.onnx_export import onnx_for_cost
from autospace.proxyless import SearchedNet, search_space
from autospace.search_options import SearchOptions
from autospace.seeding import Seed
from autospace.skeleton import Skeleton, find_skeleton
from autospace.space import Architecture, SearchSpace
from autospace.steps import (
    Device,
    costs_of,
    evolve,
    limits_of,
    load_proxy,
    open_device,
    search,
    target_skeleton,
    tried_latency,
)
from autospace.train_options import TrainOptions
from autospace.training import accuracy, recalibrate_norms, train_module, train_network
from benchmarks.cards import completed, profiled
from benchmarks.conditions import RESULTS
from benchmarks.frame import Say, add_long, add_training, framed, in_time, parser
from benchmarks.quality_networks import Anchored, AsProfiled, draw_band, reference_network
from benchmarks.quality_report import rank_correlation, summary
from benchmarks.quality_spaces import CandidateSpace
from benchmarks.rivals import RIVALS, Rival
from benchmarks.search_report import report_lines
from benchmarks.work import Clock, do, now_and_then
from devices.errors import UsageError
from devices.measurement import Measurement

__all__ = ["Contestant", "Plan", "Setting", "main"]

_REFERENCE = "reference"
_USED = 0.94
"""Of the limit, at least: what counts as the same latency."""
_WIDTHS = tuple(float(width) for width in np.geomspace(0.05, 3.0, 60))
_FEW = 5


@dataclass(frozen=True)
class Plan:
    """What is compared, and how.

    Attributes:
        folder: where everything is kept.
        data: name of the data set.
        root: folder of its files; None for where they usually are.
        skeleton: name of the layout.
        space: file of the space; None evolves one for each limit and seed.
        targets: limits on latency, as shares of the reference network's.
        seeds: of evolutions, searches, draws and trainings.
        random: networks drawn for each limit and seed.
        repeats: trainings more of each searched network, and of the best random one.
        rivals: families of `benchmarks.rivals`.
        profile_minutes: of the card.
        visits: to each network of the series that decides.
        patience_s: how long each series waits for the machine to be as fast as its card says.
        evolution: options of every evolution.
        search: options of every search.
        recipe: of every training.
        workers: processes that evolve and train, of one thread each.
        accelerator: where spaces are evolved and networks trained.
    """

    folder: Path
    data: str = "fashion-mnist"
    root: Path | None = None
    skeleton: str = "small"
    space: Path | None = None
    targets: tuple[float, ...] = (0.75, 1.0)
    seeds: tuple[int, ...] = (1, 2, 3)
    random: int = 10
    repeats: int = 1
    rivals: tuple[str, ...] = tuple(RIVALS)
    profile_minutes: float = 10.0
    visits: int = 24
    patience_s: float = 300.0
    evolution: EvolutionOptions = field(
        default_factory=lambda: EvolutionOptions(generations=240, warmup=80)
    )
    search: SearchOptions = field(default_factory=lambda: SearchOptions(steps=3000, warmup=1200))
    recipe: TrainOptions = field(
        default_factory=lambda: TrainOptions(epochs=2, batch=128, learning_rate=0.2, clipping=0.0)
    )
    workers: int = 2
    accelerator: Accelerator = "cpu"

    @property
    def card(self) -> Path:
        """The device card."""
        return self.folder / "device.card"

    @property
    def settings(self) -> list[Setting]:
        """Every limit with every seed; all limits of the first seed first."""
        return [Setting(self, target, seed) for seed in self.seeds for target in self.targets]

    def networks_file(self, target: float) -> Path:
        """The networks that are compared under a limit."""
        return self.folder / f"networks-{target:g}.json"

    def load_data(self, accelerator: Accelerator = "cpu") -> Data:
        """What is learned, and where."""
        skeleton = find_skeleton(self.skeleton)
        return load_proxy(self.data, self.root, skeleton, accelerator=accelerator)

    def reference_ms(self) -> float:
        """The reference network's latency, once it was measured."""
        document = read_document(self.folder / "reference.json", "a measured reference network")
        return Measurement.from_json(document).latency_ms


@dataclass(frozen=True)
class Setting:
    """One search: a limit and a seed.

    Attributes:
        plan: of the benchmark.
        target: the limit, as a share of the reference network's latency.
        seed: of everything random.
    """

    plan: Plan
    target: float
    seed: int

    @property
    def name(self) -> str:
        """For output and for files."""
        return f"{self.target:g}-{self.seed}"

    @property
    def latency(self) -> str:
        """The limit, as it is written."""
        return f"{self.target * self.plan.reference_ms():.6f}ms"

    @property
    def space_file(self) -> Path:
        """The space."""
        return self.plan.space or self.plan.folder / "spaces" / f"{self.name}.json"

    def file(self, what: str) -> Path:
        """Something that is kept of this search."""
        return self.plan.folder / what / f"{self.name}.json"

    @property
    def state(self) -> Path:
        """The trained supernet."""
        return self.file("searches").with_suffix(".state")

    def supernet(self, data: Data) -> SearchedNet:
        """The trained supernet; trained now, where it is not there yet."""
        space = SearchSpace.load(self.space_file)
        device = open_device(self.plan.card)
        costs = self.costs(space, device)
        return search_space(
            space, data, costs, limits_of(None, self.latency, costs, device=device),
            options=self.plan.search, seed=Seed(self.seed), state=self.state,
        )  # fmt: skip

    def costs(
        self, space: SearchSpace, device: Device, progress: Progress = silent
    ) -> dict[str, Cost]:
        """As a search has them; the first call measures networks of the space, as a search does."""
        costs = costs_of(space.skeleton, device, space.kernel_reading)
        costs["latency_ms"], _ = tried_latency(
            costs["latency_ms"], space, device, self.seed, self.state, ALONE, progress
        )
        return costs


@dataclass(frozen=True)
class Contestant:
    """A network that is trained and compared.

    Attributes:
        kind: "searched", "random", or one of `RIVALS`.
        target: the limit that it is within.
        seed: of its search or draw, and of its training.
        number: among those of its kind, limit and seed.
        network: what it is.
        latency_ms: measured.
        share: that this is of the limit.
    """

    kind: str
    target: float
    seed: int
    number: int
    network: Architecture | Rival
    latency_ms: float = 0.0
    share: float = 0.0

    @property
    def name(self) -> str:
        """For output and for files."""
        return f"{self.kind}-{self.target:g}-{self.seed}-{self.number}"

    def model(self, batch: int) -> Any:
        """As it is measured."""
        if isinstance(self.network, Rival):
            return self.network.onnx(batch)
        return onnx_for_cost(self.network, batch)

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        rival = isinstance(self.network, Rival)
        return {
            **{key: getattr(self, key) for key in ("kind", "target", "seed", "number")},
            "latency_ms": self.latency_ms,
            "share": self.share,
            "params": self.network.params,
            "rival" if rival else "architecture": self.network.to_json(),
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Contestant:
        """From what `to_json` gave."""
        network = (
            Rival.from_json(document["rival"])
            if "rival" in document
            else Architecture.from_json(document["architecture"])
        )
        keys = ("kind", "target", "seed", "number", "latency_ms", "share")
        return Contestant(network=network, **{key: document[key] for key in keys})


# -- work for other processes ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Evolution:
    """Evolves the space of a search."""

    setting: Setting

    @property
    def name(self) -> str:
        return self.setting.name

    def run(self) -> None:
        setting, plan = self.setting, self.setting.plan
        data, path = plan.load_data(plan.accelerator), setting.space_file
        evolve(
            latency=setting.latency, device=open_device(plan.card, allow_mismatch=True),
            skeleton=target_skeleton(plan.skeleton, data), data=data, options=plan.evolution,
            seed=setting.seed, state=path.with_suffix(".state"), log=path.with_suffix(".jsonl"),
        ).save(path)  # fmt: skip
        path.with_suffix(".state").unlink(missing_ok=True)


@dataclass(frozen=True)
class _Supernet:
    """Trains the supernet of a search."""

    setting: Setting

    @property
    def name(self) -> str:
        return self.setting.name

    def run(self) -> None:
        self.setting.supernet(self.setting.plan.load_data())


@dataclass(frozen=True)
class _Ranking:
    """Held-out accuracies of a search's random networks, with its supernet's weights."""

    setting: Setting
    networks: tuple[Contestant, ...]

    @property
    def name(self) -> str:
        return self.setting.name

    def run(self) -> None:
        data = self.setting.plan.load_data()
        supernet = self.setting.supernet(data)
        found: dict[str, float] = {}
        for one in self.networks:
            assert isinstance(one.network, Architecture)
            choice = [
                blocks.index(block)
                for blocks, block in zip(
                    supernet.net.candidates, one.network.blocks, strict=True
                )
            ]  # fmt: skip
            network = supernet.net.extract(choice)
            recalibrate_norms(network, data, Seed(self.setting.seed))
            found[one.network.hash] = accuracy(network, data, data.validation)
        write_json(self.setting.file("ranks"), found)


@dataclass(frozen=True)
class _Training:
    """Trains one network; once more, with other weights and batches, in later turns."""

    plan: Plan
    one: Contestant
    turn: int = 0

    @property
    def name(self) -> str:
        return self.one.name + (f"-again-{self.turn}" if self.turn else "")

    @property
    def _seed(self) -> Seed:
        seed = Seed(self.one.seed)
        return seed.child("again", self.turn) if self.turn else seed

    @property
    def file(self) -> Path:
        return self.plan.folder / "trained" / f"{self.name.replace(' ', '-')}.json"

    @property
    def accuracy(self) -> float | None:
        """On the test split; None if it was not trained yet."""
        if not self.file.is_file():
            return None
        document = _read(self.file)
        # A file of another network of that name, or of another recipe, says nothing here.
        return float(document["accuracy"]) if document["of"] == self._of else None

    @property
    def _of(self) -> str:
        return content_hash([self.one.network.hash, asdict(self.plan.recipe)])

    def run(self) -> None:
        data, seed = self.plan.load_data(self.plan.accelerator), self._seed
        network, state = self.one.network, self.file.with_suffix(".state")
        if isinstance(network, Rival):
            child = seed.child("train")
            meta = train_module(
                network.build(child.integer("weights")), data, identity=network.hash,
                options=self.plan.recipe, seed=child, state=state,
            )  # fmt: skip
            right, seconds = meta["accuracy"], meta["seconds"]
        else:
            trained = train_network(network, data, options=self.plan.recipe, seed=seed, state=state)
            right, seconds = trained.accuracy, trained.meta["seconds"]
        write_json(self.file, {"of": self._of, "accuracy": right, "seconds": seconds,
                               "accelerator": data.accelerator})  # fmt: skip
        state.unlink(missing_ok=True)


# -- all of it -------------------------------------------------------------------------------------


@dataclass
class _Bench:
    """What all steps share."""

    plan: Plan
    say: Say

    @cached_property
    def data(self) -> Data:
        return self.plan.load_data()

    @cached_property
    def skeleton(self) -> Skeleton:
        if self.plan.space is not None:
            return SearchSpace.load(self.plan.space).skeleton
        return target_skeleton(self.plan.skeleton, self.data)

    @property
    def device(self) -> Device:
        told = now_and_then(self.say, "profile")
        device = profiled(self.plan.card, self.plan.profile_minutes, told)
        return AsProfiled(device.card, device.warnings, device.here, self.plan.patience_s)

    def measure(self, models: Mapping[str, Any], visits: int) -> dict[str, Measurement]:
        return self.device.measure(
            models, visits=visits, progress=now_and_then(self.say, f"{len(models)} networks")
        )

    @cached_property
    def reference(self) -> Any:
        """The network that limits are shares of, as it is measured."""
        space = CandidateSpace(_REFERENCE, 0, self.skeleton, (), "kernel")
        return onnx_for_cost(reference_network(space), self.device.card.settings.batch)

    def measure_reference(self) -> None:
        """Measures the reference network, once."""
        path = self.plan.folder / "reference.json"
        if not path.is_file():
            found = self.measure({_REFERENCE: self.reference}, 2 * self.plan.visits)
            write_json(path, found[_REFERENCE].to_json())

    def anchored(self, settings: Sequence[Setting]) -> Device:
        """The device, measuring relative to the random networks of searches, if they have any."""
        anchors = [one for setting in settings for one in self.chosen_random(setting)]
        if not anchors:
            return self.device
        return Anchored(
            self.device.card, (), True,
            anchors={one.network.hash: one.model(self._batch) for one in anchors},
            anchors_ms={one.network.hash: one.latency_ms for one in anchors},
        )  # fmt: skip

    def chosen_random(self, setting: Setting) -> list[Contestant]:
        """The random networks of a search; drawn and measured now, if they are not there yet."""
        return self.chosen(f"random-{setting.name}", partial(self.random, setting))

    def search(self, setting: Setting) -> None:
        """Verifies what a supernet has learned, on this machine."""
        found = search(
            SearchSpace.load(setting.space_file), latency=setting.latency,
            device=self.anchored([setting]),
            data=self.data, options=self.plan.search, seed=setting.seed, state=setting.state,
            record=setting.file("searches").with_suffix(".verification"),
            progress=now_and_then(self.say, f"search {setting.name}"),
        )  # fmt: skip
        kept = "kept" if found.chosen.kept else "NOT kept"
        self.say(f"search {setting.name}: {setting.latency} {kept}")
        found.architecture.save(setting.file("searches"))

    def random(self, setting: Setting) -> list[Contestant]:
        """Networks of the searched space, drawn evenly."""
        plan, space = self.plan, SearchSpace.load(setting.space_file)
        blocks = space.candidates_by_block
        source = CandidateSpace(
            f"random {setting.name}", 0, space.skeleton, blocks, space.kernel_reading
        )
        found = draw_band(
            {source: plan.random}, self.device, setting.target * (1 + _USED) / 2, (1 - _USED) / 2,
            seed=setting.seed, visits=plan.visits,
            progress=now_and_then(self.say, f"random networks {setting.name}"),
            reference_ms=plan.reference_ms(),
        )  # fmt: skip
        return [
            Contestant(
                "random",
                setting.target,
                setting.seed,
                one.number,
                one.architecture,
                one.measured_ms,
                one.share / setting.target,
            )
            for one in found
        ]

    def rivals(self, family: str, target: float) -> list[Contestant]:
        """Of one family, the width whose measured latency is nearest to the middle of the band.

        It is trained once for each seed. Latency grows with the width, so that few of the networks
        have to be measured.
        """
        data, visits = self.data, max(4, self.plan.visits // 3)
        wanted_ms = target * (1 + _USED) / 2 * self.plan.reference_ms()
        distinct: dict[str, Rival] = {}
        for width in _WIDTHS:
            rival = Rival(family, width, data.resolution, data.channels, data.num_classes)
            distinct.setdefault(rival.shape, rival)
        rivals = list(distinct.values())

        def measured_ms(some: Sequence[Rival]) -> list[float]:
            models = {f"{family} × {one.width:.3f}": one.onnx(self._batch) for one in some}
            return [own.latency_ms for own in self.measure(models, visits).values()]

        while len(rivals) > _FEW:
            middle = len(rivals) // 2
            slower = measured_ms([rivals[middle]])[0] > wanted_ms
            rivals = rivals[: middle + 1] if slower else rivals[middle:]
        off = [abs(own / wanted_ms - 1) for own in measured_ms(rivals)]
        nearest = rivals[int(np.argmin(off))]
        return [Contestant(family, target, seed, 0, nearest) for seed in self.plan.seeds]

    @property
    def _batch(self) -> int:
        return self.device.card.settings.batch

    def chosen(self, name: str, choose: Callable[[], list[Contestant]]) -> list[Contestant]:
        """Networks that others are compared with, chosen once."""
        path = self.plan.folder / "chosen" / f"{name}.json"
        if not path.is_file():
            write_json(path, {"networks": [one.to_json() for one in choose()]})
        return [Contestant.from_json(one) for one in _read(path)["networks"]]

    def networks(self, clock: Clock) -> None:
        """Chooses what is compared, and measures all of one limit in one series."""
        plan = self.plan
        for target in plan.targets:
            if plan.networks_file(target).is_file():
                continue
            contestants: list[Contestant] = []
            for family in plan.rivals:
                clock.check()
                contestants += self.chosen(
                    f"{family}-{target:g}", partial(self.rivals, family, target)
                )
            for setting in plan.settings:
                if setting.target == target:
                    clock.check()
                    found = Architecture.load(setting.file("searches"))
                    contestants.append(Contestant("searched", target, setting.seed, 0, found))
                    contestants += self.chosen_random(setting)
            clock.check()
            models = {one.network.hash: one.model(self._batch) for one in contestants}
            settings = [one for one in plan.settings if one.target == target]
            measured = self.anchored(settings).measure(
                models, visits=plan.visits,
                progress=now_and_then(self.say, f"{len(models)} networks"),
            )  # fmt: skip
            limit_ms = target * plan.reference_ms()
            own = [
                replace(one, latency_ms=ms, share=ms / limit_ms)
                for one in contestants
                for ms in [measured[one.network.hash].latency_ms]
            ]
            write_json(plan.networks_file(target), {"networks": [one.to_json() for one in own]})

    def run(self, clock: Clock) -> None:
        """Does everything that is not there yet."""
        plan, say = self.plan, self.say
        self.check_folder()
        _ = self.device
        clock.check()
        self.measure_reference()
        settings = plan.settings
        self.evolve(clock)
        open_ = [one for one in settings if not one.file("searches").is_file()]
        for path in dict.fromkeys(one.space_file for one in open_):
            clock.check()
            completed(
                self.device, SearchSpace.load(path), say, now_and_then(say, "completing the card")
            )
        for one in open_:
            clock.check()
            space, device = SearchSpace.load(one.space_file), self.anchored([one])
            one.costs(space, device, now_and_then(say, one.name))
        do(map(_Supernet, open_), plan.workers, clock, lambda text: say(f"supernet {text}"))
        for one in open_:
            clock.check()
            self.search(one)
        clock.check()
        self.networks(clock)
        every = list(_contestants(plan))
        do(
            [
                _Ranking(setting, tuple(_of(every, "random", setting)))
                for setting in settings
                if not setting.file("ranks").is_file()
            ],
            plan.workers, clock, lambda text: say(f"ranked {text}"),
        )  # fmt: skip
        self.train(clock)

    def evolve(self, clock: Clock) -> None:
        """Evolves the spaces that are not there yet, for the card and limits that are."""
        plan = self.plan
        do(
            [_Evolution(one) for one in plan.settings if not one.space_file.is_file()],
            plan.workers, clock, lambda text: self.say(f"evolution {text}"),
        )  # fmt: skip

    def train(self, clock: Clock) -> None:
        """Trains what was chosen, all of the first seed before any of the second."""
        plan = self.plan
        by_turn = sorted(_contestants(plan), key=lambda one: (one.seed, one.number))

        def train(trainings: Sequence[_Training]) -> None:
            do(
                [one for one in trainings if one.accuracy is None],
                plan.workers, clock, lambda text: self.say(f"trained {text}"),
            )  # fmt: skip

        train([_Training(plan, one) for one in by_turn])
        train([job for again in _again(plan, by_turn).values() for job in again])

    def check_folder(self) -> None:
        """Keeps what everything depends on, and refuses to mix it with something else.

        Raises:
            UsageError: the folder holds results of another data set, space or of other options.
        """
        plan, path = self.plan, self.plan.folder / "plan.json"
        own = {
            "data": self.data.description,
            "skeleton": self.skeleton.to_json(),
            "space": SearchSpace.load(plan.space).hash if plan.space else None,
            "evolution": asdict(plan.evolution),
            "search": asdict(plan.search),
            "targets": list(plan.targets),
            "seeds": list(plan.seeds),
            "random": plan.random,
            "rivals": list(plan.rivals),
        }
        for name in ("spaces", "searches", "chosen", "ranks", "trained"):
            (plan.folder / name).mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_json(path, own)
        elif _read(path) != own:
            raise UsageError(
                f"{plan.folder}: holds networks of another data set, space or of other options; "
                "give another --folder"
            )


def _contestants(plan: Plan) -> Iterator[Contestant]:
    """All that is compared, once it was chosen."""
    for target in plan.targets:
        if plan.networks_file(target).is_file():
            for one in _read(plan.networks_file(target))["networks"]:
                yield Contestant.from_json(one)


def _again(plan: Plan, every: Sequence[Contestant]) -> dict[Contestant, list[_Training]]:
    """What is trained again: of each search its network, and the best random one once it is known.

    The best of many is partly the luckiest training, which another one takes away.
    """
    found: list[Contestant] = []
    for setting in plan.settings:
        drawn = _of(every, "random", setting)
        known = [_Training(plan, one).accuracy for one in drawn]
        right = [accuracy for accuracy in known if accuracy is not None]
        found += _of(every, "searched", setting)
        if drawn and len(right) == len(drawn):
            found.append(drawn[int(np.argmax(right))])
    turns = range(1, plan.repeats + 1)
    return {one: [_Training(plan, one, turn) for turn in turns] for one in found}


def _of(every: Sequence[Contestant], kind: str, setting: Setting) -> list[Contestant]:
    return [
        one
        for one in every
        if (one.kind, one.target, one.seed) == (kind, setting.target, setting.seed)
    ]


def _read(path: Path) -> dict[str, Any]:
    return dict(read_document(path, "a result of search_quality"))


def compute(plan: Plan) -> dict[str, Any]:
    """Everything that the networks trained so far say."""
    every = list(_contestants(plan))
    known = {one: _Training(plan, one).accuracy for one in every}
    again = {one: [job.accuracy for job in jobs] for one, jobs in _again(plan, every).items()}
    limits = []
    for target in plan.targets:
        own = [one for one in every if one.target == target]
        if own:
            limits.append(_under(plan, target, own, known, again))
    device = open_device(plan.card, allow_mismatch=True) if plan.card.is_file() else None
    missing = sum(accuracy is None for accuracy in known.values())
    repeats = sum(one.kind == "searched" for one in every) * plan.repeats
    repeats += len({(one.target, one.seed) for one in every if one.kind == "random"}) * plan.repeats
    missing += repeats - sum(one is not None for own in again.values() for one in own)
    return {
        "benchmark": "search_quality",
        "data": plan.load_data().description,
        "skeleton": plan.skeleton,
        "space": str(plan.space.name) if plan.space else "evolved for each limit and seed",
        "device": device.description if device else None,
        "reference_ms": plan.reference_ms() if limits else None,
        "recipe": f"{plan.recipe.epochs} epochs of batch {plan.recipe.batch}",
        "options": {
            "evolution": asdict(plan.evolution),
            "search": asdict(plan.search),
            "recipe": asdict(plan.recipe),
        },
        "seeds": list(plan.seeds),
        "random": plan.random,
        "limits": limits,
        "missing": missing if limits else None,
        "repeats": plan.repeats,
        "networks": [
            {**one.to_json(), "accuracy": known[one], "again": again.get(one, [])} for one in every
        ],
    }


def _under(
    plan: Plan,
    target: float,
    own: Sequence[Contestant],
    known: Mapping[Contestant, float | None],
    again: Mapping[Contestant, Sequence[float | None]],
) -> dict[str, Any]:
    """What is known of the networks of one limit."""
    errors: dict[str, dict[int, list[float]]] = {}

    def add(kind: str, seed: int, accuracies: Sequence[float | None]) -> None:
        if right := [accuracy for accuracy in accuracies if accuracy is not None]:
            errors.setdefault(kind, {}).setdefault(seed, []).extend(1 - one for one in right)

    for one in own:
        add(one.kind, one.seed, [known[one]])
        if one.kind == "searched":
            add(one.kind, one.seed, again.get(one, ()))
    best = f"best of {plan.random} random"
    for one in own:
        if one.kind == "random":
            add(f"{best}, trained again", one.seed, again.get(one, ()))
    if drawn := errors.get("random"):
        errors[best] = {seed: [min(found)] for seed, found in drawn.items()}
    shares: dict[str, list[float]] = {}
    for one in own:
        shares.setdefault(one.kind, []).append(one.share)
    return {
        "target": target,
        "latency_ms": target * plan.reference_ms(),
        "found": summary(errors, "searched"),
        "errors": {kind: {str(s): e for s, e in by.items()} for kind, by in errors.items()},
        "shares": {kind: [min(found), max(found)] for kind, found in shares.items()},
        "ranking": [
            correlation
            for setting in plan.settings
            if setting.target == target
            and (correlation := _ranking(setting, _of(own, "random", setting), known)) is not None
        ],
    }


def _ranking(
    setting: Setting, drawn: Sequence[Contestant], known: Mapping[Contestant, float | None]
) -> float | None:
    """How a supernet's accuracies rank random networks, against their trained ones."""
    if not setting.file("ranks").is_file():
        return None
    ranks = _read(setting.file("ranks"))
    pairs = [
        (ranks[one.network.hash], trained)
        for one in drawn
        if (trained := known[one]) is not None and one.network.hash in ranks
    ]
    return rank_correlation([a for a, _ in pairs], [b for _, b in pairs])


def _plan(given: argparse.Namespace) -> Plan:
    data = "digits" if given.quick else given.data
    common: dict[str, Any] = {
        "folder": given.folder or Path(__file__).parent.parent / "build" / f"search-quality-{data}",
        "data": data,
        "root": given.data_root,
        "space": given.space,
        "workers": given.workers,
        "accelerator": given.accelerator,
    }
    if given.workers < 1:
        raise UsageError(f"--workers {given.workers}: must be at least 1")
    if given.quick:
        return Plan(
            **common, skeleton="tiny", targets=(0.8,), seeds=(1,), random=2,
            rivals=("MNASNet", "ShuffleNetV2"), profile_minutes=0.2,
            visits=6, patience_s=10.0, evolution=EvolutionOptions(
                generations=3, warmup=1, population=10, batch=16, exam=1
            ),
            search=SearchOptions(steps=6, warmup=2, batch=16, proposals=2, rounds=2),
            recipe=TrainOptions(epochs=1),
        )  # fmt: skip
    if not all(0 < target < float("inf") for target in given.targets):
        raise UsageError("--targets: must be above 0")
    return Plan(
        **common,
        targets=tuple(given.targets),
        seeds=tuple(given.seeds),
        recipe=TrainOptions(epochs=given.epochs, batch=128, learning_rate=0.2, clipping=0.0),
    )


def _parser() -> argparse.ArgumentParser:
    made = parser("search_quality", __doc__)
    add_long(made, "build/search-quality-DATA")
    add_training(made)
    add = made.add_argument
    add("--data", default="fashion-mnist", help="what is learned (fashion-mnist)")
    add("--space", type=Path, help="file of the space (evolved for each limit and seed)")
    add("--targets", type=float, nargs="+", default=[0.75, 1.0],
        help="limits, as shares of the reference network's latency (0.75 1)")  # fmt: skip
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of everything random (1 2 3)")
    add("--epochs", type=int, default=2, help="of every training (2)")
    add("--workers", type=int, default=2, help="processes that evolve and train (2)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is missing, and reports; returns the exit code."""
    given = _parser().parse_args(arguments)

    def work(say: Say) -> tuple[Mapping[str, Any], Path]:
        plan = _plan(given)
        name = f"search-quality-{plan.data}-{plan.skeleton}-{plan.recipe.epochs}e.json"
        output = given.output or (plan.folder if given.quick else RESULTS) / name
        bench = _Bench(plan, say)
        only = bench.train if given.train_only else bench.evolve if given.evolve_only else None
        in_time(given, say, only or bench.run)
        return compute(plan), output

    return framed("search_quality", given, work, report_lines)


if __name__ == "__main__":
    sys.exit(main())
