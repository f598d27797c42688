"""How good latency predictions are, beside simpler methods: measures, and reports.

``python -m benchmarks.predictor_accuracy [--threads 1] [--minutes 30]``. First the device is
profiled as any user would do it (probe networks only); rounds of the truth (`benchmarks.truth`) are
measured in pauses of the profile and after it, so that both see the machine in the same state; then
kernels alone (`benchmarks.isolated`), sweeps (`benchmarks.sweeps`) and the speed of predicting.
Everything measured is kept in a folder as it is measured: killed at any time, the same command goes
on. ``--report-only`` measures nothing and reports what the folder holds. Shorter profiles are what
the first minutes of the long one were.

``--space-only`` judges by networks of the search space alone, and leaves kernels alone and sweeps
out: with ``--minutes 10 --mobile 40 --visits 8`` profile and truth take about a quarter of an hour.

The exit code is 0 whether or not the goals are met; a miss is printed as one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.accuracy import (
    GROUPS,
    Answer,
    Truth,
    answers,
    by_family,
    by_group,
    floor,
    groups_of,
    own_calibration,
    read_truth,
    summed,
)
from benchmarks.accuracy_goals import goals
from benchmarks.accuracy_report import plot_scatter, plot_sweeps, report_lines
from benchmarks.baselines import flops_constant, network_roofline
from benchmarks.conditions import results_file
from benchmarks.error_split import error_split
from benchmarks.fusion_match import fusion_match
from benchmarks.isolated import Isolated, choose, measure_isolated
from benchmarks.networks import (
    MOBILE_SIDES,
    Network,
    mobile_networks,
    small_networks,
    torchvision_networks,
    write_whole,
)
from benchmarks.prediction_speed import expected_latency_speed, prediction_speed
from benchmarks.sweeps import SWEEPS, Sweep, sweep_figures, sweep_networks
from benchmarks.truth import MAX_VISITS, MIN_VISITS, TruthSeries
from devices.errors import AutospaceError, InvalidInputError
from devices.runtimes.base import RuntimeSettings
from latency import DeviceCard, Predictor, profile_device

__all__ = ["Plan", "compute", "main", "measure"]

_HERE = Path(__file__).parent
_QUICK_TORCHVISION = ("mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        folder: for networks and cards.
        settings: threads, precision, batch.
        minutes: of profiling.
        pauses: minutes of profiling after which rounds of the truth are measured, so that both see
            the same machine: it may be some percent faster an hour later.
        pause_rounds: how many in each pause.
        curve: minutes of the shorter profiles that are judged too.
        mobile: networks drawn from the mobile search space.
        sides: their input sizes.
        small: networks of the layout `small`.
        torchvision: names of torchvision's models; None for all.
        max_visits: to a network of the truth whose halves do not agree.
        isolated: mobile and torchvision networks whose kernels are measured alone.
        sweeps: which.
        runtime: name of the runtime.
    """

    folder: Path
    settings: RuntimeSettings
    minutes: float = 30.0
    pauses: tuple[float, ...] = (3.0, 10.0, 20.0)
    pause_rounds: int = 2
    curve: tuple[float, ...] = (3.0, 10.0, 30.0)
    mobile: int = 220
    sides: tuple[int, ...] = MOBILE_SIDES
    small: int = 24
    torchvision: tuple[str, ...] | None = None
    max_visits: int = MAX_VISITS
    isolated: tuple[int, int] = (30, 12)
    sweeps: tuple[Sweep, ...] = SWEEPS
    runtime: str = "onnxruntime"

    @property
    def profile_card(self) -> Path:
        """The card that is judged."""
        return self.folder / "profile.card"

    @property
    def truth_card(self) -> Path:
        """The truth."""
        return self.folder / "truth.card"

    @property
    def isolated_card(self) -> Path:
        """Kernels alone."""
        return self.folder / "isolated.card"

    @property
    def sweeps_card(self) -> Path:
        """The sweeps' networks."""
        return self.folder / "sweeps.card"

    @property
    def speed_file(self) -> Path:
        """How fast predictions were."""
        return self.folder / "speed.json"

    def networks(self, progress: Progress) -> list[Network]:
        """The networks of the truth, as files; made where they are missing."""
        folder = self.folder / "networks"
        folder.mkdir(parents=True, exist_ok=True)
        return [
            *mobile_networks(self.mobile, folder, sides=self.sides),
            *small_networks(self.small, folder),
            *torchvision_networks(folder, progress, self.torchvision),
        ]


def measure(plan: Plan, progress: Progress) -> None:
    """Measures what is missing in the folder."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    networks = plan.networks(progress)
    stops = (*plan.pauses, None)
    card = _profile_until(plan, stops[0], progress)
    with _truth_series(plan, plan.truth_card, networks, progress, "truth") as series:
        for index, stop in enumerate(stops[1:], 1):
            series.measure(index * plan.pause_rounds)
            card = _profile_until(plan, stop, progress)
        series.measure()
    truths = read_truth(DeviceCard.open(plan.truth_card))
    if any(plan.isolated):
        measure_isolated(
            plan.isolated_card,
            truths,
            choose(truths, *plan.isolated),
            plan.settings,
            lambda text: progress(f"alone, {text}"),
            runtime=plan.runtime,
        )
    if plan.sweeps:
        _measure_sweeps(plan, progress)
    progress("speed of predicting")
    predictor, _ = _fitted(plan, card, None)
    speed: dict[str, Any] = {
        group: prediction_speed(predictor, own, networks)
        for group in GROUPS
        if (own := [t for t in truths if t.group == group])
    }
    speed["expected_latency"] = expected_latency_speed(card)
    write_whole(plan.speed_file, json.dumps(speed).encode())


def _measure_sweeps(plan: Plan, progress: Progress) -> None:
    folder = plan.folder / "sweeps"
    folder.mkdir(exist_ok=True)
    sweeps = list(sweep_networks(folder, plan.settings.batch, plan.sweeps))
    with _truth_series(plan, plan.sweeps_card, sweeps, progress, "sweeps", MIN_VISITS) as series:
        series.measure()


class _Pause(Exception):
    """Profiling is interrupted, as by a user, and goes on later."""


def _profile_until(plan: Plan, pause: float | None, progress: Progress) -> DeviceCard:
    """Profiles until so many minutes are spent, or to the end; the card."""
    report = _by_tenths(progress, "profile")
    if pause is not None and plan.profile_card.exists():
        card = DeviceCard.open(plan.profile_card)
        if card.complete or (_minutes(card) or 0.0) >= pause:
            return card

    def stop(share: float, text: str) -> None:
        report(share, text)
        if pause is not None and share * plan.minutes >= pause:
            raise _Pause

    try:
        return profile_device(
            plan.profile_card,
            runtime=plan.runtime,
            settings=plan.settings,
            minutes=plan.minutes,
            progress=stop,
        )
    except _Pause:
        return DeviceCard.open(plan.profile_card)


def _truth_series(
    plan: Plan,
    path: Path,
    networks: Sequence[Network],
    progress: Progress,
    label: str,
    max_visits: int | None = None,
) -> TruthSeries:
    return TruthSeries(
        path,
        networks,
        plan.settings,
        lambda text: progress(f"{label}, {text}"),
        max_visits=max_visits or plan.max_visits,
        runtime=plan.runtime,
    )


def compute(plan: Plan, progress: Progress) -> dict[str, Any]:
    """All figures from what the folder holds, as a JSON object; measures nothing.

    Raises:
        InvalidInputError: the profile or the truth is missing.
    """
    card = DeviceCard.open(plan.profile_card)
    # The machine's speed moves between two series: the truth is told at that of the profile.
    truth_card = DeviceCard.open(plan.truth_card).at_speed_of(card)
    truths = read_truth(truth_card)
    if not truths:
        raise InvalidInputError(f"{plan.truth_card}: nothing measured yet; measure the truth.")
    total = card.arguments["minutes"]
    curve: list[dict[str, Any]] = []
    for minutes in (*(m for m in sorted(plan.curve) if m < total), None):
        progress(f"fit to {minutes or total:g} minutes")
        predictor, fit_s = _fitted(plan, card, minutes)
        given = answers(predictor, truths)
        curve.append(
            {
                "minutes": minutes or total,
                "networks": sum(bool(n.visits) for n in predictor.card.networks),
                "fit_s": fit_s,
                "calibration": predictor.validation["calibration"],
                "validation": {
                    key: value
                    for key, value in predictor.validation.items()
                    if isinstance(value, float | int)
                },
                "groups": by_group(truths, given),
            }
        )
    # Where the runtime times no kernels, there is nothing that could be summed or split.
    sums = summed(predictor.calibration, truths) if truth_card.per_op_times else {}
    own_sums = summed(own_calibration(truths), truths) if truth_card.per_op_times else {}
    flops, roofline = flops_constant(card, truths), network_roofline(card, truths)
    families = by_family(truths, given)
    sweeps, isolated = _read_sweeps(plan, predictor), _read_isolated(plan, truths, given)
    rules = card.fusion_rules
    files = {path.stem: path for path in (plan.folder / "networks").glob("*.onnx")}
    result: dict[str, Any] = {
        "benchmark": "predictor_accuracy",
        "conditions": _conditions(card),
        "warnings": _warnings(plan, card, truth_card, isolated),
        "profile": _profile(card),
        "truth": _truth(plan, truth_card, truths),
        "order": _order(plan),
        "summation": by_group(truths, sums),
        "summation_own_calibration": by_group(truths, own_sums),
        "curve": curve,
        "families": families,
        "error_split": {
            group: error_split(own, given, predictor.calibration)
            for group, own in groups_of(truths if truth_card.per_op_times else ()).items()
        },
        "methods": {
            "predictor": curve[-1]["groups"],
            "flops": by_group(truths, flops),
            "roofline": by_group(truths, roofline),
        },
        "isolated": isolated,
        "sweeps": sweeps,
        "speed": json.loads(plan.speed_file.read_bytes()) if plan.speed_file.is_file() else None,
        "fusion": fusion_match(rules, truths, files, card.settings.batch) if rules else None,
        "networks": [
            {
                "name": t.name,
                "group": t.group,
                "family": t.family,
                "measured_ms": t.whole_ms,
                "repeatability": t.repeatability,
                "stable": t.stable,
                "visits": t.visits,
                "summed_ms": sums[t.name].latency_ms if sums else None,
                "predicted_ms": given[t.name].latency_ms,
                "low_ms": given[t.name].low_ms,
                "high_ms": given[t.name].high_ms,
                "coverage": given[t.name].coverage,
                "flops_ms": flops[t.name].latency_ms,
                "roofline_ms": roofline[t.name].latency_ms,
            }
            for t in truths
        ],
    }
    return {**result, "goals": [goal.to_json() for goal in goals(result)]}


def _fitted(plan: Plan, card: DeviceCard, minutes: float | None) -> tuple[Predictor, float]:
    """The predictor of a card's first minutes, and how long its fit took; kept in the folder.

    Args:
        plan: says where.
        card: the whole profile.
        minutes: None for all of it.
    """
    sources = hashlib.sha256(card.fingerprint.encode())
    for path in sorted((_HERE.parent / "latency").glob("*.py")):
        sources.update(path.read_bytes())  # another version of the code fits anew
    label = "all" if minutes is None else f"{minutes:g}"
    path = plan.folder / f"fit-{label}min-{sources.hexdigest()[:12]}.bin"
    part = card if minutes is None else card.first(minutes)
    if path.is_file():
        data = path.read_bytes()
        found = Predictor.from_bytes(part, data[8:])
        if found is not None:
            return found, int.from_bytes(data[:8], "little") / 1e3
    started = perf_counter()
    fitted = Predictor.fit(part)
    fit_s = perf_counter() - started
    for old in plan.folder.glob(f"fit-{label}min-*.bin"):
        old.unlink()
    write_whole(path, round(1e3 * fit_s).to_bytes(8, "little") + fitted.to_bytes())
    return fitted, fit_s


def _read_sweeps(plan: Plan, predictor: Predictor) -> list[dict[str, Any]]:
    if not plan.sweeps_card.is_file():
        return []
    truths = read_truth(DeviceCard.open(plan.sweeps_card).at_speed_of(predictor.card))
    return sweep_figures(truths, answers(predictor, truths), predictor.calibration)


def _read_isolated(
    plan: Plan, truths: Sequence[Truth], given: dict[str, Answer]
) -> dict[str, Any] | None:
    """Kernels alone, beside the predictor on the same networks; None until all are measured."""
    if not plan.isolated_card.is_file():
        return None
    card = DeviceCard.open(plan.isolated_card)
    if not card.complete:
        return None
    alone = Isolated.from_card(card)
    found = alone.answers(truths, given)
    same = {name: given[name] for name in found}
    return {
        "networks": len(found),
        "names": sorted(found),
        "kernels": len(alone.kernel_ms),
        "empty_ms": alone.empty_ms,
        "not_built": alone.not_built(truths),
        "methods": {"predictor": by_group(truths, same), "isolated": by_group(truths, found)},
    }


def _conditions(card: DeviceCard) -> dict[str, Any]:
    environment = card.environment
    return {
        "runtime": card.runtime,
        "runtime_version": card.runtime_version,
        **card.settings.to_json(),
        "simulated": card.simulated,
        "per_op_times": card.per_op_times,
        **{key: environment[key] for key in ("cpu", "cpu_revision", "vector", "logical_cores")},
    }


def _profile(card: DeviceCard) -> dict[str, Any]:
    visited = [n for n in card.networks if n.visits]
    return {
        "arguments": {k: card.arguments[k] for k in ("minutes", "seed")},
        "fingerprint": card.fingerprint,
        "complete": card.complete,
        "networks": len(visited),
        "kernels": len({k.signature for n in visited for k in n.kernels}),
        "visits": sum(len(n.visits) for n in visited),
    }


def _truth(plan: Plan, card: DeviceCard, truths: Sequence[Truth]) -> dict[str, Any]:
    known = {t.name for t in truths}
    failed = sorted((plan.folder / "networks").glob("*.failed"))
    return {
        "floor": floor(truths),
        "floor_by_group": {
            group: floor([t for t in truths if t.group == group]) for group in GROUPS
        },
        "complete": card.complete,
        "minutes": _minutes(card),
        "not_measured": [name for name in card.arguments["networks"] if name not in known],
        "not_exported": {path.stem: path.read_text().split("\n")[0][:120] for path in failed},
    }


def _order(plan: Plan) -> list[dict[str, Any]]:
    """What was measured, in the order of beginning, with the minutes that it took."""
    steps = []
    for name, path in (
        ("profile", plan.profile_card),
        ("truth", plan.truth_card),
        ("kernels alone", plan.isolated_card),
        ("sweeps", plan.sweeps_card),
    ):
        if path.is_file():
            card = DeviceCard.open(path)
            if any(n.visits for n in card.networks):
                began = card.summary()["created"]
                steps.append({"step": name, "began": began, "minutes": _minutes(card)})
    return sorted(steps, key=lambda step: str(step["began"] or ""))


def _minutes(card: DeviceCard) -> float | None:
    last_s = max((v.at_s for n in card.networks for v in n.visits), default=0.0)
    return last_s / 60 if last_s else None


def _warnings(
    plan: Plan, card: DeviceCard, truth: DeviceCard, isolated: dict[str, Any] | None
) -> list[str]:
    found = []
    if not card.complete:
        found.append("the profile is unfinished.")
    if not truth.complete:
        found.append("the truth is unfinished; networks with too few visits count as unstable.")
    if isolated is None and any(plan.isolated):
        found.append("kernels alone are not measured, or not all of them.")
    if card.simulated or truth.simulated:
        found.append("simulated; the figures say nothing about a real device.")
    for name in ("runtime", "runtime_version", "settings"):
        if getattr(card, name) != getattr(truth, name):
            found.append(f"profile and truth differ in {name.replace('_', ' ')}.")
    return found


def _by_tenths(progress: Progress, label: str) -> Callable[[float, str], None]:
    """Progress of a profile in ten lines."""
    seen = {-1}

    def report(share: float, text: str) -> None:
        if (tenth := int(10 * share)) not in seen:
            seen.add(tenth)
            progress(f"{label}, {10 * tenth} %, {text}")

    return report


def _plan(given: argparse.Namespace) -> Plan:
    settings = RuntimeSettings(threads=given.threads)
    name = f"predictor-accuracy{'-quick' if given.quick else ''}-{given.threads}t"
    if given.runtime != Plan.runtime:
        name += f"-{given.runtime}"
    folder = given.folder or _HERE.parent / "build" / name
    plan = _quick_plan(given, folder, settings)
    if not given.quick:
        plan = Plan(
            folder,
            settings,
            minutes=given.minutes or 30.0,
            curve=given.curve or (3.0, 10.0, 30.0),
            mobile=220 if given.mobile is None else given.mobile,
            small=Plan.small if given.small is None else given.small,
            max_visits=given.visits or MAX_VISITS,
            runtime=given.runtime,
        )
    if given.space_only:
        plan = replace(plan, torchvision=(), isolated=(0, 0), sweeps=())
    # A pause at the very end is none: what follows the profile is measured then anyway.
    return replace(plan, pauses=tuple(p for p in plan.pauses if p < plan.minutes))


def _quick_plan(given: argparse.Namespace, folder: Path, settings: RuntimeSettings) -> Plan:
    return Plan(
        folder,
        settings,
        minutes=given.minutes or 0.2,
        pauses=(0.1,),
        curve=given.curve or (0.1,),
        mobile=6 if given.mobile is None else given.mobile,
        small=2 if given.small is None else given.small,
        sides=(32, 64),
        torchvision=_QUICK_TORCHVISION,
        max_visits=MIN_VISITS,
        isolated=(1, 1),
        sweeps=SWEEPS[:1],
        runtime=given.runtime,
    )


def _minutes_list(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predictor_accuracy",
        description=(__doc__ or "").split("\n")[0],
    )
    add = parser.add_argument
    add("--threads", type=int, default=1, help="of the runtime")
    add("--minutes", type=float, help="of profiling (30)")
    add("--curve", type=_minutes_list, help="minutes of shorter profiles (3,10,30)")
    add("--mobile", type=int, help="networks of the mobile search space (220)")
    add("--small", type=int, help="networks of the layout small, 16 to 48 pixels (24)")
    add("--visits", type=int, help="to a network of the truth, at most (24; at least 8)")
    add("--space-only", action="store_true", help="the truth is networks of the space, no more")
    add("--folder", type=Path, help="for networks and cards (build/predictor-accuracy-…)")
    add("--output", type=Path, help="JSON file; plots lie beside it (benchmarks/results/…)")
    add("--runtime", default="onnxruntime", help="what runs the networks")
    add("--quick", action="store_true", help="a minute's try of everything, of no worth")
    add("--report-only", action="store_true", help="measure nothing")
    add("--json", action="store_true", help="print the JSON object instead of tables")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is missing, and reports; returns the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.visits is not None and given.visits < MIN_VISITS:
        parser.error(f"--visits {given.visits}: must be {MIN_VISITS} or more; give {MIN_VISITS}.")

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        plan = _plan(given)
        if not given.report_only:
            measure(plan, progress)
        result = compute(plan, progress)
        usual = results_file("predictor-accuracy", DeviceCard.open(plan.profile_card))
        output = given.output or (plan.folder / usual.name if given.quick else usual)
    except AutospaceError as error:
        print(f"predictor_accuracy: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("predictor_accuracy: interrupted; the same command goes on.", file=sys.stderr)
        return 130
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, (json.dumps(result, indent=1) + "\n").encode())
    plot_scatter(result, output.with_name(f"{output.stem}-scatter.svg"))
    if result["sweeps"]:
        plot_sweeps(result, output.with_name(f"{output.stem}-sweeps.svg"))
    if given.json:
        print(json.dumps(result, indent=1))
    else:
        print("\n".join((*report_lines(result), f"written: {output}")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
