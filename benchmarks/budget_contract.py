"""Is a limit a contract? A hundred searches under random limits, each measured again afterwards.

``python -m benchmarks.budget_contract``. Limits on latency, multiply-adds or both are drawn between
20 and 90 % of the way from the smallest to the largest network of a space. Three supernets are
trained, one for each kind of limits; for every search α goes on learning from its supernet under
the limits drawn (`autospace.family`), and a network is chosen, measured and recalibrated as in
``autospace search`` (`autospace.verify`). Then the network is exported, and the *file* is measured
in a series of its own, interleaved with the files of other searches, and its multiply-adds are
counted from its ONNX nodes.

A miss is a network that its search called kept, and whose cost in that second series lies above a
limit with the whole of its interval. Searches that said themselves that they found nothing are
counted apart. Everything is kept search by search in ``--folder``; killed, or stopped by
``--minutes``, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from autospace.cost import CostTable, Limit, MaddsCost, Metric, format_cost
from autospace.data import Data, Split
from autospace.events import Progress
from autospace.family import learn_family
from autospace.files import check_writable, content_hash, read_document, write_json
from autospace.genotype import REFERENCE_CELLS
from autospace.inspecting import inspect_file
from autospace.proxyless import SearchedNet, search_space
from autospace.recalibration import Recalibration
from autospace.search_options import SearchOptions
from autospace.seeding import Seed
from autospace.select import select
from autospace.skeleton import find_skeleton
from autospace.space import Architecture, SearchSpace
from autospace.steps import (
    Device,
    benchmark,
    export,
    load_proxy,
    measuring_on,
    target_skeleton,
)
from autospace.verify import Chosen, choose_networks
from benchmarks.cards import completed, covered_cost, profiled
from benchmarks.conditions import RESULTS
from benchmarks.contract_report import CLOSE, report_lines, summary
from benchmarks.frame import Say, add_long, framed, in_time, parser
from benchmarks.search_step import cells
from benchmarks.work import Clock, now_and_then
from devices.errors import InvalidInputError, UsageError
from devices.measurement import Measurement

__all__ = ["KINDS", "Plan", "drawn_limits", "main"]

KINDS: Mapping[str, tuple[Metric, ...]] = {
    "latency": ("latency_ms",),
    "multiply-adds": ("madds",),
    "both": ("latency_ms", "madds"),
}
"""What is limited, in turn."""

_RANGE = (0.2, 0.9)
_FAMILY = (0.2, 0.45)
"""Where on the way from the smallest to the largest network a supernet's paths are drawn, too."""
_CELLS = 9
_GROUP = 10
"""Files that are measured again together."""


@dataclass(frozen=True)
class Plan:
    """What is searched, and how.

    Attributes:
        folder: where everything is kept.
        data: name of the data set.
        root: folder of its files; None for where they usually are.
        skeleton: name of the layout.
        searches: how many.
        space: file of the space; None for the reference cells and mutations of them.
        options: of every search.
        ranked: held-out images that rank the candidates.
        profile_minutes: of the card.
        visits: to each file when it is measured again.
    """

    folder: Path
    data: str = "fashion-mnist"
    root: Path | None = None
    skeleton: str = "small"
    searches: int = 100
    space: Path | None = None
    options: SearchOptions = field(default_factory=lambda: SearchOptions(steps=300, warmup=100))
    ranked: int = 2000
    profile_minutes: float = 5.0
    visits: int = 24

    @property
    def card(self) -> Path:
        """The device card."""
        return self.folder / "device.card"

    def search_file(self, number: int) -> Path:
        """What one search found."""
        return self.folder / "searches" / f"{number:03}.json"

    def model_file(self, number: int) -> Path:
        """The network of one search as ONNX."""
        return self.folder / "models" / f"{number:03}.onnx"

    def again_file(self, number: int) -> Path:
        """What was measured afterwards."""
        return self.folder / "again" / f"{number:03}.json"


def drawn_limits(kind: str, tables: Sequence[CostTable], seed: Seed) -> tuple[Limit, ...]:
    """Random limits, each uniform between 20 and 90 % of its metric's range.

    Args:
        kind: one of `KINDS`.
        tables: one for each of its metrics.
        seed: of the draw.
    """
    shares = seed.generator("limits").uniform(*_RANGE, size=len(tables))
    return _limits_at(KINDS[kind], tables, [float(share) for share in shares])


def _limits_at(
    metrics: Sequence[Metric], tables: Sequence[CostTable], shares: Sequence[float]
) -> tuple[Limit, ...]:
    limits = []
    for metric, table, share in zip(metrics, tables, shares, strict=True):
        value = table.smallest + share * (table.largest - table.smallest)
        limits.append(Limit(metric, value, format_cost(metric, value)))
    return tuple(limits)


class _First:
    """The first images of a split."""

    def __init__(self, split: Split, count: int):
        self._images, self._count = split.images, min(count, len(split))

    def __len__(self) -> int:
        return self._count

    def take(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._images.take(indices)


@dataclass
class _Bench:
    """What all searches share; everything is made when it is first asked for."""

    plan: Plan
    data: Data
    progress: Say

    def told(self, label: str) -> Progress:
        """A line now and then."""
        return now_and_then(self.progress, label)

    @cached_property
    def space(self) -> SearchSpace:
        """The space, on the layout of the data."""
        if self.plan.space is not None:
            return SearchSpace.load(self.plan.space)
        skeleton = target_skeleton(self.plan.skeleton, self.data)
        return SearchSpace(skeleton, (tuple(cells(_CELLS)),) * skeleton.num_layers)

    @cached_property
    def few(self) -> Data:
        """The data with fewer held-out images: ranking is not what is judged here."""
        validation = self.data.validation
        first = _First(validation, self.plan.ranked)
        return replace(self.data, validation=Split(first, validation.labels[: len(first)]))

    @cached_property
    def device(self) -> Device:
        """This machine, profiled with the networks of the space: no candidate goes unmeasured."""
        found = profiled(
            self.plan.card, self.plan.profile_minutes, self.told("profile"), self.space
        )
        return completed(found, self.space, self.progress, self.told("profile"))

    @cached_property
    def tables(self) -> Mapping[Metric, CostTable]:
        """What every candidate of the space costs; read once, as limits are drawn by it."""
        path, space = self.plan.folder / "tables.json", self.space
        if not path.is_file():
            candidates = space.candidates_by_block
            latency = covered_cost(self.device, space).table(candidates)
            madds = MaddsCost(space.skeleton, space.kernel_reading).table(candidates)
            write_json(path, {"latency_ms": latency.to_json(), "madds": madds.to_json()})
        document = _read(path)
        return {metric: CostTable.from_json(document[metric]) for metric in get_args(Metric)}

    def supernet(self, kind: str) -> SearchedNet:
        """The trained supernet of one kind of limits."""
        if kind not in self._supernets:
            metrics = KINDS[kind]
            tables = [self.tables[metric] for metric in metrics]
            family = [
                _limits_at(metrics, tables, [share] * len(tables))
                for share in (*_FAMILY, _RANGE[1], _RANGE[1])
            ]
            self._supernets[kind] = search_space(
                self.space, self.data, self._costs, family[-1], options=self.plan.options,
                family=family, state=self.plan.folder / f"supernet-{kind}.state",
                progress=self.told(f"supernet for {kind}"),
            )  # fmt: skip
        return self._supernets[kind]

    @cached_property
    def _supernets(self) -> dict[str, SearchedNet]:
        return {}

    @cached_property
    def _costs(self) -> dict[str, Any]:
        """The tables where `search_space` looks for costs."""
        return {metric: _Tabled(table) for metric, table in self.tables.items()}

    def search(self, number: int) -> dict[str, Any]:
        """One search, from the draw of its limits to a measured network."""
        started_s = time.monotonic()
        kind = list(KINDS)[number % len(KINDS)]
        tables = [self.tables[metric] for metric in KINDS[kind]]
        seed = Seed(0).child("search", number)
        limits = drawn_limits(kind, tables, seed)
        found: dict[str, Any] = {
            "number": number,
            "kind": kind,
            "limits": [limit.to_json() for limit in limits],
            "data": self.data.description,
            "space": self.space.hash,
            "device": self.device.description,
        }
        member, _ = learn_family(
            self.supernet(kind), self.data, [limits, self.supernet(kind).limits],
            options=self.plan.options, seed=seed, progress=self.told(f"search {number}"),
        )  # fmt: skip
        found["expected"] = list(member.expected)
        latency = "latency_ms" in KINDS[kind]
        record = self.plan.search_file(number).with_suffix(".verification")
        try:
            (chosen,) = choose_networks(
                [member], self.few, self.tables["latency_ms"] if latency else None,
                options=self.plan.options, seed=seed, record=record,
                measure=measuring_on(self.device, number) if latency else None,
                progress=self.told(f"search {number}"),
            )  # fmt: skip
        except UsageError as error:  # two limits that no network of the space keeps together
            record.unlink(missing_ok=True)
            return {**found, "kept": False, "refused": str(error)}
        best = chosen.best
        record.unlink(missing_ok=True)
        return {
            **found,
            "kept": chosen.kept,
            "refused": None,
            "architecture": best.architecture.to_json(),
            "madds": best.madds,
            "predicted_ms": best.predicted_ms,
            "measured_ms": best.measured.latency_ms if best.measured else None,
            "bound_ms": best.measured.upper_ms() if best.measured else None,
            "excess": best.excess,
            "closest": max(
                (one.excess for row in chosen.rounds for one in row if one.kept), default=None
            ),
            "rounds": len(chosen.rounds),
            "offered": _offered(member, chosen),
            "seconds": round(time.monotonic() - started_s, 1),
        }

    def again(self, numbers: Sequence[int]) -> None:
        """Exports what searches found, and counts and measures the files together."""
        documents = {number: _read(self.plan.search_file(number)) for number in numbers}
        models = self.plan.folder / "models"
        models.mkdir(exist_ok=True)
        batch = self.device.card.settings.batch
        reference = models / "reference.onnx"
        fused = REFERENCE_CELLS[1].fused()
        skeleton = self.space.skeleton
        export(Architecture(skeleton, (fused,) * len(skeleton.blocks)), reference, batch=batch)
        for number, document in documents.items():
            architecture = Architecture.from_json(document["architecture"])
            export(architecture, self.plan.model_file(number), batch=batch, seed=number)
        timed = [number for number in numbers if documents[number]["kind"] != "multiply-adds"]
        measured: dict[int, Measurement] = {}
        reference_ms = None
        if timed:
            found = benchmark(
                [reference, *map(self.plan.model_file, timed)], self.device,
                visits=self.plan.visits, seed=10_000 + min(timed),
                progress=self.told(f"measuring {len(timed)} files again"),
            )  # fmt: skip
            first, *others = (model.measured for model in found.models)
            reference_ms = first.latency_ms
            measured = dict(zip(timed, others, strict=True))
        for number in numbers:
            path = self.plan.again_file(number)
            path.parent.mkdir(exist_ok=True)
            own = measured.get(number)
            write_json(
                path,
                {
                    "number": number,
                    "hash": content_hash(documents[number]["architecture"]),
                    "madds": inspect_file(self.plan.model_file(number))["madds"],
                    "measured": own.to_json() if own else None,
                    "reference_ms": reference_ms,
                },
            )


@dataclass(frozen=True)
class _Tabled:
    """A cost that is a table already: read once, the same for every supernet."""

    own: CostTable

    def table(self, candidates: object) -> CostTable:
        return self.own


def _offered(member: SearchedNet, chosen: Chosen) -> bool:
    """Whether the space has a network that uses a limit up to what counts as close.

    By exact selection with the table, corrected by what this search measured.
    """
    measured = [
        (one.choice, one.measured.latency_ms)
        for row in chosen.rounds
        for one in row
        if one.measured is not None
    ]
    tables = [
        Recalibration.fit(table, *zip(*measured, strict=True)).of(table)
        if measured and table.metric == "latency_ms"
        else table
        for table in member.tables
    ]
    try:
        return bool(select(member.probabilities, tables, member.limits, use=1 - CLOSE))
    except UsageError:  # below the smallest network, as corrected
        return False


def measure(plan: Plan, clock: Clock, progress: Say) -> None:
    """Does everything that is not there yet."""
    data = load_proxy(plan.data, plan.root, find_skeleton(plan.skeleton))
    (plan.folder / "searches").mkdir(parents=True, exist_ok=True)
    bench = _Bench(plan, data, progress)
    _check_folder(plan, bench)
    for number in range(plan.searches):
        if not plan.search_file(number).is_file():
            clock.check()
            found = bench.search(number)
            write_json(plan.search_file(number), found)
            progress(f"search {number + 1} of {plan.searches}: {_said(found)}")
        if (number + 1) % _GROUP == 0 or number + 1 == plan.searches:
            waiting = [one for one in range(number + 1) if _unmeasured(plan, one)]
            for start in range(0, len(waiting), _GROUP):
                clock.check()
                bench.again(waiting[start : start + _GROUP])


def _check_folder(plan: Plan, bench: _Bench) -> None:
    """Keeps what the searches depend on, and refuses to mix them with others.

    Raises:
        UsageError: the folder holds searches of another space, data set or other options.
    """
    path = plan.folder / "plan.json"
    own = {
        "data": bench.data.description,
        "space": bench.space.hash,
        "options": asdict(plan.options),
        "ranked": plan.ranked,
    }
    if not path.exists():
        write_json(path, own)
    elif _read(path) != own:
        raise UsageError(
            f"{plan.folder}: holds searches of another space, data set or other options; give "
            "another --folder"
        )


def _unmeasured(plan: Plan, number: int) -> bool:
    """Whether a search found a network whose file was not measured yet."""
    document = _read(plan.search_file(number))
    if document["refused"] is not None:
        return False
    path = plan.again_file(number)
    return not path.is_file() or _read(path)["hash"] != content_hash(document["architecture"])


def _said(found: Mapping[str, Any]) -> str:
    limits = " and ".join(limit["text"] for limit in found["limits"])
    if found["refused"] is not None:
        return f"{limits}: refused"
    return f"{limits}: {'kept' if found['kept'] else 'not kept'}, {-found['excess']:.1%} left"


def _read(path: Path) -> dict[str, Any]:
    return dict(read_document(path, "a result of budget_contract"))


def compute(plan: Plan) -> dict[str, Any]:
    """Everything that the searches made so far say."""
    pairs = []
    for number in range(plan.searches):
        if plan.search_file(number).is_file():
            again = plan.again_file(number)
            pairs.append((_read(plan.search_file(number)), _read(again) if again.is_file() else {}))
    return {
        "benchmark": "budget_contract",
        "skeleton": plan.skeleton,
        "options": asdict(plan.options),
        "visits": plan.visits,
        "wanted": plan.searches,
        **summary(pairs),
    }


def _plan(given: argparse.Namespace, progress: Say) -> Plan:
    if given.searches is not None and given.searches < 1:
        raise UsageError(f"--searches {given.searches}: must be above 0")
    folder = given.folder or Path(__file__).parent.parent / "build" / "budget-contract"
    common: dict[str, Any] = {"folder": folder, "root": given.data_root, "space": given.space}
    if given.quick:
        return Plan(
            **common, data="digits", skeleton="tiny", searches=given.searches or len(KINDS),
            options=SearchOptions(steps=6, warmup=2, batch=16, proposals=2, rounds=2),
            ranked=50, profile_minutes=0.3, visits=6,
        )  # fmt: skip
    data = given.data or "fashion-mnist"
    skeleton = "tiny" if data == "digits" else "small"
    if given.data is None:
        try:
            load_proxy(data, given.data_root, find_skeleton(skeleton))
        except InvalidInputError as error:
            progress(f"{error}; the digits instead, on the tiny layout")
            data, skeleton = "digits", "tiny"
    return Plan(**common, data=data, skeleton=skeleton, searches=given.searches or 100)


def _parser() -> argparse.ArgumentParser:
    made = parser("budget_contract", __doc__)
    add_long(made, "build/budget-contract")
    add = made.add_argument
    add("--searches", type=int, help="how many (100)")
    add("--data", help="what is learned (fashion-mnist, or digits where its files are missing)")
    add("--space", type=Path, help="file of the space (the reference cells and mutations of them)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is missing, and reports; returns the exit code."""
    given = _parser().parse_args(arguments)

    def work(say: Say) -> tuple[Mapping[str, Any], Path]:
        plan = _plan(given, say)
        name = f"budget-contract-{plan.data}-{plan.skeleton}.json"
        output = given.output or (plan.folder if given.quick else RESULTS) / name
        if given.output:
            check_writable(output)
        in_time(given, say, lambda clock: measure(plan, clock, say))
        return compute(plan), output

    return framed("budget_contract", given, work, report_lines)


if __name__ == "__main__":
    sys.exit(main())
