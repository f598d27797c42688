"""How far a card moves when something else runs on the machine while the device is profiled.

The same probes are profiled five times, on one core: with nothing else running, with a process that
multiplies matrices or one that streams memory on another core, and with each of them on the very
same core. Then each network's `latency_ms` is compared with that of the quiet card, and beside it
the plain median over all samples, which is what a measurement without sentinel and low quantiles
would have said.

    python -m benchmarks.disturbance --output benchmarks/results/disturbance.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

from devices.visits import ACCEPT_RATIO
from latency import DeviceCard, profile_device
from latency.card_rows import ANCHOR

__all__ = ["CONDITIONS", "compare", "main"]

CONDITIONS = (
    "quiet",
    "compute, other core",
    "memory, other core",
    "compute, same core",
    "memory, same core",
)

_LOADS = {
    "compute": ("import numpy\na = numpy.random.rand(600, 600).astype('f4')\nwhile True: a @ a"),
    "memory": (
        "import numpy\na = numpy.zeros(50_000_000, 'f4'); b = a.copy()\nwhile True: b[:] = a"
    ),
}


def _profile(path: str, core: int, rounds: int, probes: int) -> None:
    os.sched_setaffinity(0, {core})
    profile_device(path, rounds=rounds, probes=probes, seed=11)


@contextmanager
def _load(kind: str | None, core: int) -> Iterator[None]:
    """A real competing process, pinned to a core; none for no kind."""
    if kind is None:
        yield
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {{{core}}})\n{_LOADS[kind]}"],
        env=environment,
    )
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError("the competing load ended by itself")
    finally:
        process.kill()
        process.wait()


def compare(quiet: DeviceCard, loaded: DeviceCard) -> dict[str, Any]:
    """How far the networks of a card moved.

    Args:
        quiet: profiled undisturbed.
        loaded: the same probes, profiled beside a load.

    Returns:
        Shares of visits accepted, and of the networks' absolute shift the median, the 90th
        percentile and the largest, for `latency_ms` and for the median of all samples.
    """
    before = {n.name: quiet.measurement(n) for n in quiet.networks if n.kind != ANCHOR}
    after = {n.name: loaded.measurement(n) for n in loaded.networks if n.kind != ANCHOR}
    slowdowns = [
        visit.visit.slowdown(loaded.sentinel_reference_ms)
        for network in loaded.networks
        for visit in network.visits
    ]
    shifts = [after[name].latency_ms / before[name].latency_ms - 1 for name in before]
    naive = [after[name].p50_ms / before[name].latency_ms - 1 for name in before]
    return {
        "sentinel_ratio": loaded.sentinel_reference_ms / quiet.sentinel_reference_ms,
        "accepted": sum(s <= ACCEPT_RATIO for s in slowdowns) / len(slowdowns),
        "latency_ms": _spread(shifts),
        "median_of_samples": _spread(naive),
    }


def _spread(shifts: Sequence[float]) -> dict[str, float]:
    absolute = sorted(abs(shift) for shift in shifts)
    return {
        "signed_median": sorted(shifts)[len(shifts) // 2],
        "median": absolute[len(absolute) // 2],
        "p90": quantiles(absolute, n=10)[-1] if len(absolute) > 1 else absolute[0],
        "largest": absolute[-1],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Profiles under each condition and prints how far the card moved."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--probes", type=int, default=24)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("two cores are needed", file=sys.stderr)
        return 1
    found: dict[str, Any] = {}
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="autospace-disturbance-") as folder:
        cards: dict[str, DeviceCard] = {}
        # The second quiet card tells how far a card moves by itself.
        for number, condition in enumerate((*CONDITIONS, "quiet again")):
            kind, _, place = condition.partition(", ")
            path = Path(folder) / f"{number}.card"
            core = cores[1] if place == "other core" else cores[0]
            with _load(kind if kind in _LOADS else None, core):
                process = spawn.Process(
                    target=_profile,
                    args=(str(path), cores[0], options.rounds, options.probes),
                )
                process.start()
                process.join()
            if process.exitcode:
                return 1
            cards[condition] = DeviceCard.open(path)
            if condition == "quiet":
                continue
            found[condition] = compare(cards["quiet"], cards[condition])
            ours, naive = found[condition]["latency_ms"], found[condition]["median_of_samples"]
            print(
                f"{condition:20s} accepted {found[condition]['accepted']:4.0%}  latency_ms moved "
                f"{ours['median']:6.1%} (median) {ours['p90']:6.1%} (p90)  signed "
                f"{ours['signed_median']:+.1%}  median of samples {naive['median']:6.1%} "
                f"{naive['p90']:6.1%}",
                flush=True,
            )
        settings = {"rounds": options.rounds, "probes": options.probes}
        card = cards["quiet"]
        document = {
            "settings": settings,
            "runtime": f"{card.runtime} {card.runtime_version}",
            "device": card.environment,
            "conditions": found,
        }
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.output.with_suffix(".tmp")
        temporary.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
        temporary.replace(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
