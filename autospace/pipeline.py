"""The whole chain in one run folder, resumable at any moment.

A stage is done when ``state.json`` says so; a stage cut off goes on from its own saved state. A
second process in the same folder is refused, and so is another configuration.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from autospace import steps
from autospace.accelerator import resolve_accelerator
from autospace.config import RunConfig
from autospace.cost import check_reachable
from autospace.data import Data, load_data
from autospace.events import Progress
from autospace.files import read_document, replacing, write_json, write_text
from autospace.genotype import REFERENCE_CELLS, Cell
from autospace.mutation import mutated
from autospace.seeding import Seed
from autospace.skeleton import Skeleton, find_skeleton
from autospace.space import Architecture, SearchSpace
from autospace.training import TrainedNetwork
from devices.errors import BudgetError, InvalidInputError, UsageError
from devices.measurement import Measurement, speed_warning

__all__ = ["STAGES", "Reporter", "newest_network", "run_pipeline"]

STAGES = ("profile", "evolve", "search", "train", "export", "benchmark", "report")

_EXTRA_CELLS = 5
_MOST_MEASUREMENTS = 3

Reporter = Callable[[str], AbstractContextManager[Progress]]
"""Opens a progress display for a stage."""


@dataclass
class _Run:
    """A run folder that this process holds."""

    folder: Path
    config: RunConfig
    reporter: Reporter
    note: Callable[[str], None]
    state: dict[str, Any]
    _data: Data | None = None

    def path(self, name: str) -> Path:
        return self.folder / name

    def work(self, name: str) -> Path:
        (self.folder / "work").mkdir(exist_ok=True)
        return self.folder / "work" / name

    @property
    def data(self) -> Data:
        if self._data is None:
            skeleton = find_skeleton(self.config.target.skeleton)
            root = Path(self.config.data.root).expanduser() if self.config.data.root else None
            where = resolve_accelerator(self.config.data.accelerator, '[data] accelerator = "{}"')
            data = load_data(
                self.config.data.name,
                root,
                resolution=self.config.target.resolution or skeleton.resolution,
            )
            self._data = replace(data, accelerator=where)
        return self._data

    @property
    def target(self) -> Skeleton:
        """The layout on the very data of the run: nothing is a proxy here."""
        target = find_skeleton(self.config.target.skeleton).for_data(
            resolution=self.data.resolution,
            in_channels=self.data.channels,
            num_classes=self.data.num_classes,
        )
        return replace(target, width_mult=self.config.target.width_mult)

    def device(self) -> steps.Device:
        return steps.open_device(self.path("device.card"))

    def done(self, stage: str) -> bool:
        return stage in self.state["stages"]

    def finish(self, stage: str, seconds: float) -> None:
        self.state["stages"][stage] = {"seconds": round(seconds, 1)}
        write_json(self.path("state.json"), self.state)

    def reopen(self, stage: str) -> None:
        """Forgets that a stage, and those after it, were done."""
        for name in STAGES[STAGES.index(stage) :]:
            self.state["stages"].pop(name, None)
        write_json(self.path("state.json"), self.state)


def run_pipeline(
    config: RunConfig,
    folder: Path,
    *,
    reporter: Reporter,
    note: Callable[[str], None],
    config_text: str = "",
) -> dict[str, Any]:
    """Runs, or goes on with, the whole chain.

    Args:
        config: what to do.
        folder: the run folder; made if it is missing.
        reporter: opens a progress display for each stage.
        note: says one line.
        config_text: the configuration as written, kept in the folder.

    Returns:
        The verdict, as in ``verdict.json``; its ``kept`` says whether every limit was kept.

    Raises:
        UsageError: another run or process holds the folder, or a limit is impossible.
        AutospaceError: a stage failed.
    """
    run = _Run(folder, config, reporter, note, {})
    if not (folder / "state.json").exists():
        _check_possible(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot be made ({error.strerror}); choose another with -o"
        ) from None
    with _held(folder):
        run.state = _state(folder, config)
        if config_text and not run.path("config.toml").exists():
            write_text(run.path("config.toml"), config_text)
        actions: dict[str, Callable[[_Run, Progress], None]] = {
            "profile": _profile,
            "evolve": _evolve,
            "search": _search,
            "train": _train,
            "export": _export,
            "benchmark": _benchmark,
        }
        for stage, action in actions.items():
            if stage == "benchmark" and run.done(stage) and _left_open(run):
                note("benchmark: once more, since it left open whether the limit is kept")
                run.reopen(stage)
            if run.done(stage):
                note(f"{stage}: done before ({run.state['stages'][stage]['seconds']:g} s)")
            else:
                started_s = time.monotonic()
                with reporter(stage) as progress:
                    action(run, progress)
                run.finish(stage, time.monotonic() - started_s)
            if stage == "search" and not _search_kept(run):
                _write_verdict(run, None)
                break
        verdict = _read_verdict(run)
        if not run.done("report"):
            from autospace.report import build_report

            started_s = time.monotonic()
            with reporter("report"):
                build_report(folder)
            run.finish("report", time.monotonic() - started_s)
        shutil.rmtree(folder / "work", ignore_errors=True)
        return verdict


def _check_possible(run: _Run) -> None:
    """Refuses a run that would only fail later, before its folder is made.

    Raises:
        AutospaceError: no data, no card or runtime, or a budget below the smallest network.
    """
    from devices.runtimes import get_runtime

    if run.config.device.card:
        steps.open_device(Path(run.config.device.card).expanduser())
    else:
        get_runtime(run.config.device.runtime).require()
    costs = steps.costs_of(run.target, None)
    check_reachable(costs, steps.limits_of(run.config.target.budget or None, None, costs))


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Holds the folder for this process."""
    import fcntl

    try:
        lock = (folder / "run.lock").open("w")
    except OSError as error:
        raise UsageError(
            f"{folder}: not writable ({error.strerror}); choose another with -o"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{folder}: another process is running in it; wait for it, or choose another with "
                "-o"
            ) from None
        yield


def _state(folder: Path, config: RunConfig) -> dict[str, Any]:
    path = folder / "state.json"
    if path.exists():
        state = read_document(path, "a run's state")
        if not isinstance(state.get("stages"), dict) or not isinstance(state.get("config"), dict):
            raise InvalidInputError(f"{path}: damaged; remove the folder and run again")
        before, after = _with_defaults(state["config"], RunConfig().to_json()), config.to_json()
        if before != after:
            raise UsageError(
                f"{folder}: holds a run with another configuration ({_difference(before, after)}); "
                "choose another folder with -o"
            )
        return state
    others = [one.name for one in folder.iterdir() if one.name != "run.lock"]
    if others:
        raise UsageError(
            f"{folder}: holds other files ({others[0]!r}) and no run; choose another folder with -o"
        )
    state = {
        "config": config.to_json(),
        "seed": config.seed,
        "versions": _versions(),
        "stages": {},
    }
    write_json(path, state)
    return state


def _with_defaults(document: Any, defaults: Any) -> Any:
    """A configuration of an older version, with the fields that it did not know yet."""
    if not isinstance(document, dict) or not isinstance(defaults, dict):
        return document
    filled = {
        key: _with_defaults(document.get(key, value), value) for key, value in defaults.items()
    }
    return {**document, **filled}


def _difference(before: Any, after: Any, where: str = "") -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in after:
            if before.get(key) != after[key]:
                return _difference(before.get(key), after[key], f"{where}.{key}".strip("."))
    return f"{where}: {before!r} there, {after!r} asked for"


def _versions() -> dict[str, str]:
    import platform

    versions = {"python": platform.python_version()}
    for name in ("autospace", "torch", "torchvision", "onnx", "onnxruntime", "numpy", "scipy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


# -- stages ----------------------------------------------------------------------------------------


def _profile(run: _Run, progress: Progress) -> None:
    from devices.runtimes.base import RuntimeSettings

    wanted, card = run.config.device, run.path("device.card")
    if wanted.card:
        source = Path(wanted.card).expanduser()
        steps.open_device(source)
        with replacing(card) as temporary:
            shutil.copyfile(source, temporary)
        return
    steps.profile(
        card,
        runtime=wanted.runtime,
        settings=RuntimeSettings(threads=wanted.threads),
        minutes=None if wanted.rounds else wanted.minutes,
        rounds=wanted.rounds or None,
        seed=run.config.seed,
        space=_likely_space(run.target, Seed(run.config.seed)),
        progress=progress,
    )


def _likely_space(target: Skeleton, seed: Seed) -> SearchSpace:
    """The references and some of their mutations: kernels that evolution will ask for."""
    layers: list[tuple[Cell, ...]] = []
    for layer in range(target.num_layers):
        random = seed.generator("likely", layer)
        cells = dict.fromkeys(REFERENCE_CELLS)
        while len(cells) < len(REFERENCE_CELLS) + _EXTRA_CELLS:
            parent = list(cells)[int(random.integers(len(cells)))]
            cells.setdefault(mutated(mutated(parent, random), random))
        layers.append(tuple(cells))
    return SearchSpace(target, tuple(layers))


def _evolve(run: _Run, progress: Progress) -> None:
    space = steps.evolve(
        budget=run.config.target.budget or None,
        latency=run.config.target.latency or None,
        statistic=run.config.target.statistic,
        device=run.device(),
        skeleton=run.target,
        data=run.data,
        options=run.config.evolve,
        seed=run.config.seed,
        state=run.work("evolve.safetensors"),
        log=run.path("evolve.jsonl"),
        progress=progress,
    )
    # How fast this process was does not belong into a result that a resumed run reproduces.
    provenance = {k: v for k, v in space.provenance.items() if k != "cells_per_minute"}
    replace(space, provenance=provenance).save(run.path("space.json"))


def _search(run: _Run, progress: Progress) -> None:
    result = steps.search(
        SearchSpace.load(run.path("space.json")),
        budget=run.config.target.budget or None,
        latency=run.config.target.latency or None,
        statistic=run.config.target.statistic,
        device=run.device(),
        data=run.data,
        options=run.config.search,
        seed=run.config.seed,
        state=run.work("search.safetensors"),
        log=run.path("search.jsonl"),
        record=run.path("verification.json"),
        progress=lambda fraction, message: progress(0.7 * fraction, message),
        verifying=lambda fraction, message: progress(0.7 + 0.3 * fraction, message),
    )
    result.architecture.save(run.path("architecture.json"))


def _search_kept(run: _Run) -> bool:
    return bool(Architecture.load(run.path("architecture.json")).provenance.get("kept"))


def _train(run: _Run, progress: Progress) -> None:
    trained = steps.train(
        Architecture.load(run.path("architecture.json")),
        data=run.data,
        options=run.config.train,
        seed=run.config.seed,
        state=run.work("train.safetensors"),
        log=run.path("train.jsonl"),
        progress=progress,
    )
    meta = {key: value for key, value in trained.meta.items() if key != "seconds"}
    replace(trained, meta=meta).save(run.path("checkpoint.safetensors"))


def _export(run: _Run, progress: Progress) -> None:
    exported = steps.export(
        run.path("checkpoint.safetensors"),
        run.path("model.onnx"),
        batch=run.device().card.settings.batch,
        data=run.data,
        seed=run.config.seed,
    )
    write_json(run.path("export.json"), exported.check.to_json())
    progress(1.0, f"largest difference {exported.check.max_error:.2g}")


def _benchmark(run: _Run, progress: Progress) -> None:
    """Fresh measurements; more of them while they cannot tell whether the limit is kept.

    An earlier call's, which left the limit open, are not used: neither its visits nor their order.
    """
    device, visits = run.device(), run.config.benchmark.visits
    before = _read_verdict(run)["measurements"] if run.path("verdict.json").exists() else 0
    limit_ms = next((one["value"] for one in _limits(run) if one["metric"] == "latency_ms"), None)
    for attempt in range(_MOST_MEASUREMENTS):
        result = steps.benchmark(
            [run.path("model.onnx")],
            device,
            visits=visits * 2**attempt,
            seed=run.config.seed + before + attempt,
            progress=progress,
        )
        if limit_ms is None or not _undecided(result.models[0].measured, limit_ms):
            break
    write_json(run.path("benchmark.json"), result.to_json())
    _write_verdict(run, result.models[0], before + attempt + 1)


def _left_open(run: _Run) -> bool:
    """Whether measuring again may end otherwise."""
    return any(one.get("open") for one in _read_verdict(run)["limits"])


def _read_verdict(run: _Run) -> dict[str, Any]:
    found = read_document(run.path("verdict.json"), "a verdict")
    return {"measurements": 1, **found}  # of an older version


def _undecided(measured: Measurement, limit_ms: float) -> bool:
    """Whether more visits may tell if the limit is kept: the network's interval contains it."""
    return measured.low_ms <= limit_ms < measured.upper_ms()


def _may_change(measured: Measurement, limit_ms: float) -> bool:
    """Whether a later measurement may end otherwise: also where this machine was slow just then."""
    missed = measured.upper_ms() > limit_ms
    slow = missed and speed_warning([measured]) is not None
    return slow or _undecided(measured, limit_ms)


def _limits(run: _Run) -> list[dict[str, Any]]:
    limits: list[dict[str, Any]] = Architecture.load(run.path("architecture.json")).provenance[
        "limits"
    ]
    return limits


def _write_verdict(
    run: _Run, measured: steps.BenchmarkedModel | None, measurements: int = 0
) -> None:
    """``verdict.json``: of the exported and measured network, or of the nearest candidate.

    Args:
        run: its folder.
        measured: the exported network.
        measurements: series of visits to it until now, earlier calls included.
    """
    architecture = Architecture.load(run.path("architecture.json"))
    found = dict(architecture.provenance)
    device = run.device()
    measurement: Measurement | None = measured.measured if measured else _nearest(run)
    trained = TrainedNetwork.load(run.path("checkpoint.safetensors")) if measured else None
    limits = []
    for limit in found["limits"]:
        if limit["metric"] == "madds":
            value = bound = float(architecture.madds)
        elif measurement is not None:
            value, bound = measurement.latency_ms, measurement.upper_ms()
        else:
            value = bound = found["predicted_ms"]
        exported = measured.measured if measured and limit["metric"] == "latency_ms" else None
        limits.append({
            **limit, "found": value, "bound": bound, "kept": bound <= limit["value"],
            "open": exported is not None and _may_change(exported, limit["value"]),
        })  # fmt: skip
    kept = all(limit["kept"] for limit in limits) and measured is not None
    prediction = measured.predicted if measured else None
    card = device.card.path
    warnings = [
        warning.replace(str(card), card.name)
        for warning in (*device.warnings, *(prediction.warnings if prediction else ()))
    ]
    slow = speed_warning([measurement] if measurement else [])
    if slow is not None:
        warnings.append(slow)
    if measured is None:
        warnings.append("no network of the space kept the limits; this is the nearest one")
    write_json(
        run.path("verdict.json"),
        {
            "kept": kept,
            "accuracy": trained.accuracy if trained else None,
            "params": architecture.params,
            "madds": architecture.madds,
            "predicted_ms": prediction.latency_ms if prediction else found["predicted_ms"],
            "predicted_low_ms": prediction.low_ms if prediction else None,
            "predicted_high_ms": prediction.high_ms if prediction else None,
            "coverage": prediction.coverage if prediction else None,
            "measured_ms": measurement.latency_ms if measurement else None,
            "measured_low_ms": measurement.low_ms if measurement else None,
            "measured_high_ms": measurement.high_ms if measurement else None,
            "slow": slow,
            "measurements": measurements,
            "limits": limits,
            "data": run.data.description,
            "target": f"{run.target.name} at {run.target.resolution}×{run.target.resolution}",
            "device": device.description,
            "simulated": device.card.simulated,
            "export": (
                read_document(run.path("export.json"), "an export check") if measured else None
            ),
            "seed": run.config.seed,
            "hash": architecture.hash,
            "warnings": list(dict.fromkeys(warnings)),
            "seconds": round(sum(one["seconds"] for one in run.state["stages"].values()), 1),
        },
    )


def _nearest(run: _Run) -> Measurement | None:
    """The measurement of the architecture that came nearest."""
    wanted = Architecture.load(run.path("architecture.json")).hash
    for row in read_document(run.path("verification.json"), "a verification record")["rounds"]:
        for one in row["candidates"]:
            if one["hash"] == wanted and one["measured"]:
                return Measurement.from_json(one["measured"])
    return None


def check_verdict(verdict: dict[str, Any]) -> None:
    """Raises when a verdict says that a limit was not kept.

    Raises:
        BudgetError: names the limits that were missed.
    """
    from autospace.cost import format_cost

    missed = [limit for limit in verdict["limits"] if not limit["kept"]]
    if missed:
        parts = [
            f"{format_cost(one['metric'], one['found'])} (95 % bound "
            f"{format_cost(one['metric'], one['bound'])}) for a limit of "
            f"{format_cost(one['metric'], one['value'])}"
            for one in missed
        ]
        remedy = verdict.get("slow") or (
            "the interval contains the limit: run the same command again, and it is measured again"
            if all(one.get("open") for one in missed)
            else "raise the limit and run again"
        )
        raise BudgetError(f"budget not kept: {' and '.join(parts)}; {remedy}")
    if not verdict["kept"]:
        raise BudgetError("budget not kept: the search found no network; see the report")


def newest_network(folder: Path) -> tuple[Path, Path]:
    """The newest trained or searched network of a run in this folder, and where to export it.

    Looks at the folder itself, its subfolders and theirs.

    Returns:
        The checkpoint or architecture file, and the ONNX file's path in this folder.

    Raises:
        UsageError: there is none.
    """
    found: list[tuple[float, Path]] = []
    for pattern in ("", "*/", "*/*/"):
        for name in ("checkpoint.safetensors", "architecture.json"):
            for path in folder.glob(f"{pattern}{name}"):
                found.append((path.stat().st_mtime, path))
    if not found:
        raise UsageError(
            f"export: no run in {str(folder.resolve())!r}; name an architecture or a checkpoint"
        )
    newest_folder = max(found)[1].parent
    checkpoint = newest_folder / "checkpoint.safetensors"
    source = checkpoint if checkpoint.exists() else newest_folder / "architecture.json"
    return source, folder / "model.onnx"
