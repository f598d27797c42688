"""Are evolved cells better than others at the same measured latency?

``python -m benchmarks.space_quality``. On one skeleton and one data set, networks are drawn from
an evolved space, from random cells, from MBConv blocks (windows 3, 5, 7; expansions 1, 3, 6) and
from the released space's cells, all with the same *measured* latency within a narrow band; each is
trained with the same short recipe from scratch and tested. Evolved and random spaces count with
several seeds. How well the short recipe ranks is measured on ten networks with one four times as
long. ``--ablations`` evolves without one ingredient at a time.

It takes hours, so everything is kept network by network in ``--folder``; killed, or stopped by
``--minutes``, the same command goes on. Networks are trained in turn, the first of every space
before the second of any, so that what is there can be compared at any time. Evolutions and
trainings run in ``--workers`` processes of one thread each; latency is measured while none of
them runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autospace.accelerator import Accelerator
from autospace.data import Data
from autospace.evolution_options import EvolutionOptions
from autospace.files import write_json
from autospace.skeleton import Skeleton, find_skeleton
from autospace.space import SearchSpace
from autospace.steps import (
    Device,
    evolve,
    load_proxy,
    open_device,
    target_skeleton,
    train,
)
from autospace.train_options import TrainOptions
from benchmarks.cards import profiled
from benchmarks.conditions import RESULTS
from benchmarks.frame import Say, add_long, add_training, framed, in_time, parser
from benchmarks.quality_networks import BandNetwork, draw_band
from benchmarks.quality_report import plot_distributions, rank_correlation, report_lines, summary
from benchmarks.quality_spaces import ABLATIONS, CandidateSpace, candidate_space
from benchmarks.work import Clock, do, now_and_then
from devices.errors import UsageError

__all__ = ["Plan", "main"]

_RANKED = 10
_LONGER = 4
_BAND_VISITS = 16


@dataclass(frozen=True)
class Plan:
    """What is compared, and how.

    Attributes:
        folder: where everything is kept.
        data: name of the data set.
        root: folder of its files; None for where they usually are.
        skeleton: name of the layout.
        target: latency of all networks, as a share of the reference network's.
        band: how far from it, as a part of it, either way.
        seeds: of evolved spaces and of random cells.
        per_seed: networks of each of them.
        unseeded: networks of MBConv blocks and of the released cells.
        ablations: names of what is left out, each evolved with the first seed.
        profile_minutes: of the card.
        evolution: options of every evolution.
        recipe: of every training.
        released: file of the released space; None leaves it out.
        workers: processes that evolve and train, of one thread each.
        accelerator: where spaces are evolved and networks trained.
    """

    folder: Path
    data: str = "fashion-mnist"
    root: Path | None = None
    skeleton: str = "small"
    target: float = 0.6
    band: float = 0.03
    seeds: tuple[int, ...] = (1, 2, 3)
    per_seed: int = 4
    unseeded: int = 8
    ablations: tuple[str, ...] = ()
    profile_minutes: float = 10.0
    evolution: EvolutionOptions = field(
        default_factory=lambda: EvolutionOptions(generations=240, warmup=80)
    )
    recipe: TrainOptions = field(
        default_factory=lambda: TrainOptions(epochs=2, batch=128, learning_rate=0.2, clipping=0.0)
    )
    released: Path | None = None
    workers: int = 2
    accelerator: Accelerator = "cpu"

    @property
    def card(self) -> Path:
        """The device card."""
        return self.folder / "device.card"

    @property
    def networks_file(self) -> Path:
        """The networks in the band."""
        return self.folder / "networks.json"

    def space_file(self, name: str, seed: int) -> Path:
        """A space that is random or was evolved."""
        return self.folder / "spaces" / f"{name.replace(' ', '-')}-{seed}.json"

    def trained_file(self, network: BandNetwork, epochs: int) -> Path:
        """What one training gave."""
        name = f"{network.space.replace(' ', '-')}-{network.number}-{epochs}e.json"
        return self.folder / "trained" / name


@dataclass(frozen=True)
class _Job:
    """One piece of work for a worker: an evolution, or a training of ``network``."""

    plan: Plan
    name: str
    seed: int = 0
    network: BandNetwork | None = None
    epochs: int = 0

    def run(self) -> None:
        """Does it, and keeps the result in the plan's folder."""
        plan = self.plan
        skeleton = find_skeleton(plan.skeleton)
        data = load_proxy(plan.data, plan.root, skeleton, accelerator=plan.accelerator)
        if self.network is not None:
            _train(plan, self.network, data, self.epochs)
            return
        path = plan.space_file(self.name, self.seed)
        change = ABLATIONS.get(self.name, lambda options: options)
        evolve(
            latency=f"{plan.target:.4%}",
            device=open_device(plan.card, allow_mismatch=True),  # only asked, never measured on
            skeleton=target_skeleton(plan.skeleton, data),
            data=data,
            options=change(plan.evolution),
            seed=self.seed,
            state=path.with_suffix(".state"),
            log=path.with_suffix(".jsonl"),
        ).save(path)
        path.with_suffix(".state").unlink(missing_ok=True)


def measure(plan: Plan, clock: Clock, progress: Callable[[str], None]) -> None:
    """Does everything that is not there yet."""
    data = load_proxy(plan.data, plan.root, find_skeleton(plan.skeleton))
    (plan.folder / "spaces").mkdir(parents=True, exist_ok=True)
    device = profiled(plan.card, plan.profile_minutes, now_and_then(progress, "profile"))
    clock.check()
    evolve_all(plan, clock, progress)
    clock.check()
    _in_band(plan, _spaces(plan, target_skeleton(plan.skeleton, data)), device,
                        now_and_then(progress, "band"))  # fmt: skip
    clock.check()
    train_drawn(plan, clock, progress)


def evolve_all(plan: Plan, clock: Clock, progress: Callable[[str], None]) -> None:
    """Evolves the spaces that are not there yet, for the card that is."""
    evolutions = [("evolved", seed) for seed in plan.seeds]
    evolutions += [(name, plan.seeds[0]) for name in plan.ablations]
    (plan.folder / "spaces").mkdir(parents=True, exist_ok=True)
    do(
        [_Job(plan, n, seed) for n, seed in evolutions if not plan.space_file(n, seed).is_file()],
        plan.workers, clock, lambda text: progress(f"evolution {text}"),
    )  # fmt: skip


def train_drawn(plan: Plan, clock: Clock, progress: Callable[[str], None]) -> None:
    """Trains the networks that were drawn, where that is not done yet."""
    networks = _networks(plan)
    by_turn = sorted(networks, key=lambda n: n.number)
    _train_all(plan, by_turn, plan.recipe.epochs, clock, progress)
    _train_all(plan, _ranked(plan, networks), _LONGER * plan.recipe.epochs, clock, progress)


def _train_all(
    plan: Plan,
    networks: Sequence[BandNetwork],
    epochs: int,
    clock: Clock,
    progress: Callable[[str], None],
) -> None:
    jobs = [
        _Job(plan, f"{n.space} {n.number}", network=n, epochs=epochs)
        for n in networks
        if _accuracy(plan, n, epochs) is None
    ]
    do(jobs, plan.workers, clock, lambda text: progress(f"{epochs} epochs, {text}"))


def _spaces(plan: Plan, skeleton: Skeleton) -> dict[CandidateSpace, int]:
    """Every space with how many networks are wanted of it; the evolved ones are there already."""
    released = SearchSpace.load(plan.released) if plan.released else None
    wanted: list[tuple[str, int, int]] = [
        *(("evolved", seed, plan.per_seed) for seed in plan.seeds),
        *(("random cells", seed, plan.per_seed) for seed in plan.seeds),
        ("MBConv", 0, plan.unseeded),
        *([("released", 0, plan.unseeded)] if released else []),
        *((name, plan.seeds[0], plan.per_seed) for name in plan.ablations),
    ]
    return {
        candidate_space(name, seed, skeleton, plan.space_file(name, seed), released): count
        for name, seed, count in wanted
    }


def _in_band(
    plan: Plan,
    spaces: Mapping[CandidateSpace, int],
    device: Device,
    progress: Callable[[float, str], None],
) -> list[BandNetwork]:
    """The networks of all spaces; draws those of spaces that have too few."""
    known = _networks(plan)
    have = {space: sum(n.space == space.label for n in known) for space in spaces}
    # A space's networks are drawn once and together: later ones would see another machine.
    missing = {space: count for space, count in spaces.items() if not have[space]}
    if missing:
        found = draw_band(
            missing, device, plan.target, plan.band, seed=0, visits=_BAND_VISITS, progress=progress
        )
        known += found
        plan.networks_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(plan.networks_file, {"networks": [n.to_json() for n in known]})
    return known


def _networks(plan: Plan) -> list[BandNetwork]:
    if not plan.networks_file.is_file():
        return []
    return [
        BandNetwork.from_json(n) for n in json.loads(plan.networks_file.read_text())["networks"]
    ]


def _train(plan: Plan, network: BandNetwork, data: Data, epochs: int) -> None:
    """Trains a network and keeps what came out."""
    path = plan.trained_file(network, epochs)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = TrainOptions(**{**asdict(plan.recipe), "epochs": epochs})
    state = path.with_suffix(".state")
    trained = train(network.architecture, data=data, options=options, state=state)
    write_json(
        path,
        {
            "space": network.space,
            "number": network.number,
            "hash": network.architecture.hash,
            "epochs": epochs,
            "accuracy": trained.accuracy,
            "seconds": trained.meta["seconds"],
            "accelerator": data.accelerator,
        },
    )
    state.unlink(missing_ok=True)


def _ranked(plan: Plan, networks: Sequence[BandNetwork]) -> list[BandNetwork]:
    """Ten networks that are trained longer: evenly spread over the short recipe's ranking."""
    done = [(_accuracy(plan, n, plan.recipe.epochs), i) for i, n in enumerate(networks)]
    order = [i for accuracy, i in sorted((a, i) for a, i in done if a is not None)]
    if len(order) <= _RANKED:
        return [networks[i] for i in order]
    return [networks[order[round(k * (len(order) - 1) / (_RANKED - 1))]] for k in range(_RANKED)]


def _trained(plan: Plan, network: BandNetwork, epochs: int) -> Mapping[str, Any] | None:
    path = plan.trained_file(network, epochs)
    if not path.is_file():
        return None
    document: Mapping[str, Any] = json.loads(path.read_text())
    # A file of another network of that number says nothing about this one.
    return document if document["hash"] == network.architecture.hash else None


def _accuracy(plan: Plan, network: BandNetwork, epochs: int) -> float | None:
    trained = _trained(plan, network, epochs)
    return float(trained["accuracy"]) if trained else None


def compute(plan: Plan) -> dict[str, Any]:
    """Everything that the networks trained so far say."""
    networks = _networks(plan)
    short = {n: _accuracy(plan, n, plan.recipe.epochs) for n in networks}
    errors: dict[str, dict[int, list[float]]] = {}
    missing: dict[str, int] = {}
    for network, accuracy in short.items():
        name, _, seed = network.space.rpartition(" ")
        if not seed.isdigit():
            name, seed = network.space, "0"
        own = errors.setdefault(name, {}).setdefault(int(seed), [])
        if accuracy is None:
            missing[network.space] = missing.get(network.space, 0) + 1
        else:
            own.append(1 - accuracy)
    pairs = [
        (accuracy, long)
        for n, accuracy in short.items()
        if accuracy is not None
        and (long := _accuracy(plan, n, _LONGER * plan.recipe.epochs)) is not None
    ]
    data = load_proxy(plan.data, plan.root, find_skeleton(plan.skeleton))
    device = open_device(plan.card, allow_mismatch=True)
    return {
        "benchmark": "space_quality",
        "data": data.description,
        "skeleton": plan.skeleton,
        "device": device.description,
        "target": plan.target,
        "band": plan.band,
        "recipe": f"{plan.recipe.epochs} epochs of batch {plan.recipe.batch}",
        "options": {"evolution": asdict(plan.evolution), "recipe": asdict(plan.recipe)},
        "spaces": summary(errors, "evolved"),
        "errors": {name: {str(s): own for s, own in by.items()} for name, by in errors.items()},
        "rank": {
            "networks": len(pairs),
            "long_epochs": _LONGER * plan.recipe.epochs,
            "correlation": rank_correlation([a for a, _ in pairs], [b for _, b in pairs]),
            "pairs": pairs,
        },
        "missing": [f"{count} networks of {name}" for name, count in sorted(missing.items())],
        "networks": [
            {
                **n.to_json(),
                "hash": n.architecture.hash,
                "accuracy": accuracy,
                "trained_on": (_trained(plan, n, plan.recipe.epochs) or {}).get("accelerator"),
            }
            for n, accuracy in short.items()
        ],
    }


def _plan(given: argparse.Namespace) -> Plan:
    folder = given.folder or Path(__file__).parent.parent / "build" / f"space-quality-{given.data}"
    common: dict[str, Any] = {
        "folder": folder,
        "data": given.data,
        "root": given.data_root,
        "released": given.released,
        "workers": given.workers,
        "accelerator": given.accelerator,
        "ablations": _ablations(given.ablations),
    }
    if given.quick:
        return Plan(
            **{**common, "data": "digits"},
            skeleton="tiny",
            target=0.8,
            band=0.1,
            seeds=(0,),
            per_seed=2,
            unseeded=2,
            profile_minutes=0.2,
            evolution=EvolutionOptions(generations=3, warmup=1, population=10, batch=16, exam=1),
            recipe=TrainOptions(epochs=1),
        )
    if given.generations < 2:
        raise UsageError(f"--generations {given.generations}: must be at least 2")
    return Plan(
        **common,
        target=given.target,
        evolution=EvolutionOptions(generations=given.generations, warmup=given.generations // 3),
        recipe=TrainOptions(epochs=given.epochs, batch=128, learning_rate=0.2, clipping=0.0),
    )


def _ablations(given: Sequence[str] | None) -> tuple[str, ...]:
    """The named ones, all where none is named, none without the option."""
    return () if given is None else tuple(given) or tuple(ABLATIONS)


def _parser() -> argparse.ArgumentParser:
    made = parser("space_quality", __doc__)
    add_long(made, "build/space-quality-DATA")
    add_training(made)
    add = made.add_argument
    add("--data", default="fashion-mnist", help="what is learned (fashion-mnist)")
    add("--target", type=float, default=0.6, help="latency, as a share of the reference's (0.6)")
    add("--epochs", type=int, default=2, help="of the short recipe (2)")
    add("--generations", type=int, default=240, help="of every evolution (240)")
    add("--released", type=Path, help="file of the released space, to compare with it too")
    known = ", ".join(ABLATIONS)
    add("--ablations", nargs="*", choices=ABLATIONS, metavar="NAME",
        help=f"evolve without one ingredient at a time, too: {known} (all)")  # fmt: skip
    add("--workers", type=int, default=2, help="processes that evolve and train (2)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is missing, and reports; returns the exit code."""
    given = _parser().parse_args(arguments)

    def work(say: Say) -> tuple[Mapping[str, Any], Path]:
        plan = _plan(given)
        done = train_drawn if given.train_only else evolve_all if given.evolve_only else measure
        in_time(given, say, lambda clock: done(plan, clock, say))
        result = compute(plan)
        name = f"space-quality-{plan.data}-{plan.skeleton}-{plan.recipe.epochs}e.json"
        output = given.output or (plan.folder if given.quick else RESULTS) / name
        errors = {
            name: [error for own in by.values() for error in own]
            for name, by in result["errors"].items()
        }
        if drawn := {name: own for name, own in errors.items() if own}:
            output.parent.mkdir(parents=True, exist_ok=True)
            plot_distributions(drawn, output.with_suffix(".svg"))
        return result, output

    return framed("space_quality", given, work, report_lines)


if __name__ == "__main__":
    sys.exit(main())
