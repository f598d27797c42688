"""What a step of the search costs, in memory and in time, with more and more candidates.

``python -m benchmarks.search_step``. ProxylessNAS keeps one path active, so that a step with many
candidates should keep no more than one with a single candidate, and take no longer than training
that one network. Both are shown on the search's own steps (`autospace.proxyless.SearchRun`).

*Memory.* Every allocation and release of PyTorch's CPU allocator during a step is taken from the
profiler; their running sum's highest point is the step's peak. So all of it counts that a step
takes for itself: images, feature maps kept for the backward pass, temporaries of every operation,
gradients of the weights. What is there before and after it, weights and momentum, is reported
apart: that does grow with the candidates. Buffers that oneDNN allocates by itself, inside of one
operation, are not seen. A step is compared with that of a supernet which holds nothing but the
very candidates of its active path, since paths differ in size; α steps with weight steps too, as
an α step with a single candidate, which has nothing to learn, keeps less than either.

*Time.* A weight step against a training step of the network on its path, taken out of the
supernet, with as many images and an optimizer of its own; an α step against one of the network on
its active path. They take turns, and medians of the ratios count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from autospace.cost import Limit, MaddsCost
from autospace.data import Data
from autospace.files import check_writable
from autospace.genotype import REFERENCE_CELLS, Cell
from autospace.mutation import mutated
from autospace.network import weight_decay_groups
from autospace.proxyless import SearchRun
from autospace.search_options import SearchOptions
from autospace.seeding import Seed
from autospace.skeleton import Skeleton, find_skeleton
from autospace.steps import load_proxy
from autospace.supernet import GatedNet
from benchmarks.conditions import RESULTS
from benchmarks.frame import Say, framed, parser
from devices.errors import UsageError

__all__ = ["GOALS", "main"]

_AT = 9
"""The number of candidates for which there are goals."""

GOALS = {
    "weights_memory": 1.15,
    "two_memory": 1.15,
    "weights_time": 1.1,
    "two_time": 2.3,
    "amortised_time": 1.4,
}
"""The most that each ratio may be with nine candidates."""

_WARM_UP = 3
"""Rounds that are not counted: the momentum's memory is touched, oneDNN chooses its kernels."""

_WEIGHT_STEPS = 5
"""Weight steps to one α step, as in the paper, in the amortised figure."""

Step = Callable[[], object]


def cells(count: int) -> list[Cell]:
    """Different cells, the same first ones for any count: references and mutations of them."""
    random = Seed(0).generator("cells")
    found = dict.fromkeys(REFERENCE_CELLS)
    while len(found) < count:
        cell = REFERENCE_CELLS[int(random.integers(len(REFERENCE_CELLS)))]
        for _ in range(int(random.integers(1, 5))):
            cell = mutated(cell, random)
        found.setdefault(cell.canonical())
    return list(found)[:count]


def search_run(
    skeleton: Skeleton, candidates: Sequence[Sequence[Cell]], data: Data, options: SearchOptions
) -> SearchRun:
    """A search that is about to make its first step; the limit is in the middle of the range."""
    net = GatedNet(skeleton, candidates, "kernel", Seed(0).torch_generator("weights"))
    table = MaddsCost(skeleton).table(candidates)
    limit = Limit("madds", (table.smallest + table.largest) / 2, "half")
    optimizer = torch.optim.SGD(
        weight_decay_groups(net.named_parameters(), options.weight_decay),
        lr=options.learning_rate, momentum=0.9, nesterov=True,
    )  # fmt: skip
    # The optimizer's state is there from the beginning, so that no step is charged for it.
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    alpha = torch.zeros(len(candidates), max(map(len, candidates)))
    return SearchRun(options, data, Seed(0), net, optimizer, [limit], [table], alpha)


def step_peak(step: Step) -> int:
    """The most bytes that a step takes at any moment, beyond what was taken before it."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler speaks without being asked
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    kineto = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in kineto.events() if event.name() == "[memory]"]
    taken = np.cumsum([event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())])
    return int(max(0, taken.max(initial=0)))


def held(run: SearchRun) -> dict[str, int]:
    """Bytes of what stays from step to step."""
    state = run.optimizer.state_dict()["state"].values()
    return {
        "parameters": sum(weight.nbytes for weight in run.weights),
        "optimizer": sum(v.nbytes for one in state for v in one.values() if v is not None),
    }


def measure_memory(
    skeleton: Skeleton, data: Data, options: SearchOptions, count: int, paths: int
) -> dict[str, Any]:
    """Peaks of the steps of a supernet with so many candidates a block, and of single ones.

    Args:
        skeleton: for the data.
        data: what is learned.
        options: of the search; the batch is what matters.
        count: candidates a block.
        paths: how many steps of each kind.

    Returns:
        Bytes: what is held, and for each kind of step its peaks beside those of the supernet
        that holds the active path's candidates alone.
    """
    options = replace(options, update_rule="two")
    full = replace(options, update_rule="full_v2")
    own = cells(count)
    run = search_run(skeleton, [own] * len(skeleton.blocks), data, options)
    kinds = ("weights", "two", "full_v2")
    peaks: dict[str, list[int]] = {kind: [] for kind in kinds}
    alone: dict[str, list[int]] = {kind: [] for kind in kinds}
    trained: list[int] = []
    for _ in range(paths):
        single = _alone(skeleton, data, options, own, run.sampled_path())
        peaks["weights"].append(step_peak(run.weight_step))
        alone["weights"].append(step_peak(single.weight_step))
        single = _alone(skeleton, data, options, own, _active(run))
        trained.append(step_peak(single.weight_step))
        for kind, rule in (("two", options), ("full_v2", full)):
            run.options = single.options = rule
            before = run.alpha.clone()
            peaks[kind].append(step_peak(run.alpha_step))
            alone[kind].append(step_peak(single.alpha_step))
            run.alpha.copy_(before)
        run.options = options
    return {**held(run), "peaks": peaks, "alone": alone, "trained_alone": trained}


def _active(run: SearchRun) -> list[int]:
    """The active path of the coming α step."""
    pairs = run.sampled_pairs()
    return [active for active, _ in pairs]


def _alone(
    skeleton: Skeleton, data: Data, options: SearchOptions, own: Sequence[Cell], path: Sequence[int]
) -> SearchRun:
    """A supernet of which every block has one candidate."""
    return search_run(skeleton, [[own[index]] for index in path], data, options)


def measure_times(
    skeleton: Skeleton,
    data: Data,
    options: SearchOptions,
    counts: Sequence[int],
    rounds: int,
    progress: Callable[[str], None],
) -> dict[int, dict[str, list[float]]]:
    """Seconds of steps in turns.

    Args:
        skeleton: for the data.
        data: what is learned.
        options: of the search.
        counts: candidates a block, one supernet each.
        rounds: that count.
        progress: is told of each.

    Returns:
        For each count the seconds of each kind of step, and of the training steps beside them.
    """
    options = replace(options, update_rule="two")
    runs = {
        count: search_run(skeleton, [cells(count)] * len(skeleton.blocks), data, options)
        for count in counts
    }
    kinds = ("weights", "beside_weights", "two", "full_v2", "beside_alpha")
    times: dict[int, dict[str, list[float]]] = {
        count: {kind: [] for kind in kinds} for count in counts
    }
    for turn in range(_WARM_UP + rounds):
        order = np.random.default_rng([0, turn])
        for place in order.permutation(len(counts)):
            count = counts[int(place)]
            found = _turn(runs[count], data, options, order)
            if turn >= _WARM_UP:
                for kind, seconds in found.items():
                    times[count][kind].append(seconds)
        progress(f"round {turn + 1} of {_WARM_UP + rounds}")
    return times


def _turn(
    run: SearchRun, data: Data, options: SearchOptions, order: np.random.Generator
) -> dict[str, float]:
    """One step of each kind and the training steps that they are compared with."""

    def full_v2() -> None:
        run.options = replace(options, update_rule="full_v2")
        run.alpha_step()
        run.options = options

    trained = _training(run, run.sampled_path(), data, options)
    found: dict[str, float] = _in_turns(
        {"weights": run.weight_step, "beside_weights": trained}, order
    )
    trained = _training(run, _active(run), data, options)
    before = run.alpha.clone()
    found |= _in_turns({"two": run.alpha_step, "beside_alpha": trained}, order)
    run.alpha.copy_(before)  # paths stay uniform: what is compared are steps, not searches
    found |= _in_turns({"full_v2": full_v2}, order)
    run.alpha.copy_(before)
    return found


def _training(run: SearchRun, path: Sequence[int], data: Data, options: SearchOptions) -> Step:
    """A training step of one path as a network of its own, which has made a step before."""
    network = run.net.extract(path)
    network.train()
    optimizer = torch.optim.SGD(
        weight_decay_groups(network.named_parameters(), options.weight_decay),
        lr=options.learning_rate, momentum=0.9, nesterov=True,
    )  # fmt: skip
    seed, place = Seed(0).child("train"), run.step

    def step() -> None:
        images, labels = data.training_batch(data.train, options.batch, place, seed)
        loss = functional.cross_entropy(
            network(images), labels, label_smoothing=options.label_smoothing
        )
        loss.item()  # as in a real one, which looks whether it is a number
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    return step


def _in_turns(steps: dict[str, Step], order: np.random.Generator) -> dict[str, float]:
    """Seconds of each, in random order."""
    names = list(steps)
    found = {}
    for place in order.permutation(len(names)):
        started_s = time.perf_counter()
        steps[names[int(place)]]()
        found[names[int(place)]] = time.perf_counter() - started_s
    return found


def compute(memory: dict[str, Any], times: dict[str, list[float]]) -> dict[str, Any]:
    """What was measured with one number of candidates, as ratios.

    Args:
        memory: from `measure_memory`.
        times: from `measure_times`, of this number.
    """

    def memory_ratio(kind: str, beside: Sequence[int]) -> float:
        return max(a / b for a, b in zip(memory["peaks"][kind], beside, strict=True))

    def time_ratio(kind: str, beside: str) -> float:
        pairs = zip(times[kind], times[beside], strict=True)
        return statistics.median(a / b for a, b in pairs)

    weights_time, two_time = (
        time_ratio("weights", "beside_weights"),
        time_ratio("two", "beside_alpha"),
    )
    return {
        "parameters_mib": memory["parameters"] / 2**20,
        "optimizer_mib": memory["optimizer"] / 2**20,
        "peak_mib": {
            kind: statistics.median(values) / 2**20 for kind, values in memory["peaks"].items()
        },
        "weights_memory": memory_ratio("weights", memory["alone"]["weights"]),
        "two_memory": memory_ratio("two", memory["alone"]["two"]),
        "full_v2_memory": memory_ratio("full_v2", memory["alone"]["full_v2"]),
        "two_memory_of_training": memory_ratio("two", memory["trained_alone"]),
        "full_v2_memory_of_training": memory_ratio("full_v2", memory["trained_alone"]),
        "training_step_s": statistics.median(times["beside_weights"]),
        "weights_time": weights_time,
        "two_time": two_time,
        "full_v2_time": time_ratio("full_v2", "beside_alpha"),
        "amortised_time": weights_time + two_time / _WEIGHT_STEPS,
    }


def goals(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal with what came out, for nine candidates; none without them."""
    own = found.get(str(_AT))
    if own is None:
        return []
    return [
        {"figure": name, "at_most": most, "found": own[name], "met": own[name] <= most}
        for name, most in GOALS.items()
    ]


_NAMES = {
    "weights_memory": "peak of a weight step, of that with 1 candidate",
    "two_memory": "peak of an α step of two, of that with 1 candidate",
    "weights_time": "time of a weight step, of a training step",
    "two_time": "time of an α step of two, of a training step",
    "amortised_time": f"one α step to {_WEIGHT_STEPS} weight steps, of training steps",
}


def report_lines(result: Mapping[str, Any]) -> list[str]:
    """The result as a person reads it."""
    lines = [
        f"{result['skeleton']}, {result['data']}, batch {result['batch']}, "
        f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}; memory: the largest "
        f"ratio of {result['paths']} paths; time: medians of {result['rounds']} ratios",
        "",
        "| candidates | parameters + momentum | peak: weights, α two, α full_v2 "
        "| of 1 candidate's: weights, two, full_v2 "
        "| time of a training step: weights, two, full_v2 | amortised |",
        "|---|---|---|---|---|---|",
    ]
    for count, own in result["candidates"].items():
        peak = own["peak_mib"]
        lines.append(
            f"| {count} | {own['parameters_mib']:.1f} + {own['optimizer_mib']:.1f} MiB "
            f"| {peak['weights']:.1f}, {peak['two']:.1f}, {peak['full_v2']:.1f} MiB "
            f"| {own['weights_memory']:.3f}, {own['two_memory']:.3f}, "
            f"{own['full_v2_memory']:.3f} "
            f"| {own['weights_time']:.2f}, {own['two_time']:.2f}, {own['full_v2_time']:.2f} "
            f"| {own['amortised_time']:.2f} |"
        )
    if result["goals"]:
        lines += ["", f"goals with {_AT} candidates:"]
    for goal in result["goals"]:
        verdict = "met" if goal["met"] else "MISS"
        lines.append(
            f"  {verdict}: {_NAMES[goal['figure']]}: {goal['found']:.3f}, at most "
            f"{goal['at_most']:g}"
        )
    return lines


def _parser() -> argparse.ArgumentParser:
    made = parser("search_step", __doc__)
    add = made.add_argument
    add("--skeleton", default="small", help="name of the layout (small)")
    add("--data", default="digits", help="what is learned (digits)")
    add("--data-root", type=Path, help="folder of its files")
    add("--candidates", type=int, nargs="+", default=[1, 3, 9, 27], help="a block (1 3 9 27)")
    add("--batch", type=int, default=64, help="images in a step (64)")
    add("--rounds", type=int, default=20, help="ratios of times that count (20)")
    add("--paths", type=int, default=5, help="steps whose memory is counted (5)")
    return made


def _checked(given: argparse.Namespace) -> argparse.Namespace:
    """The arguments, made small where ``--quick`` asks for it.

    Raises:
        UsageError: a count that makes no sense.
    """
    if given.quick:
        given.skeleton, given.batch, given.rounds, given.paths = "tiny", 8, 2, 1
        given.candidates = [1, 9]
    for name, least in (("rounds", 1), ("paths", 1), ("batch", 2)):
        value = getattr(given, name)
        if value < least:
            raise UsageError(f"--{name} {value}: must be at least {least}")
    for count in given.candidates:
        if not 1 <= count <= 200:
            raise UsageError(f"--candidates {count}: must be 1 to 200")
    given.candidates = sorted(set(given.candidates))
    if given.output is None:
        threads = torch.get_num_threads()
        given.output = RESULTS / f"search-step-{given.skeleton}-b{given.batch}-{threads}t.json"
        given.output.parent.mkdir(parents=True, exist_ok=True)
    check_writable(given.output)
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and reports; returns the exit code."""
    given = _parser().parse_args(arguments)

    def work(say: Say) -> tuple[Mapping[str, Any], Path]:
        output: Path = _checked(given).output
        skeleton = find_skeleton(given.skeleton)
        data = load_proxy(given.data, given.data_root, skeleton)
        proxy = skeleton.for_data(
            resolution=data.resolution, in_channels=data.channels, num_classes=data.num_classes
        )
        options = SearchOptions(steps=10**6, warmup=0, batch=given.batch)
        memory = {}
        for count in given.candidates:
            memory[count] = measure_memory(proxy, data, options, count, given.paths)
            say(f"memory with {count} candidates")
        times = measure_times(proxy, data, options, given.candidates, given.rounds, say)
        found = {str(count): compute(memory[count], times[count]) for count in given.candidates}
        return {
            "benchmark": "search_step",
            "skeleton": given.skeleton,
            "data": data.description,
            "batch": given.batch,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "paths": given.paths,
            "rounds": given.rounds,
            "candidates": found,
            "goals": goals(found),
            "raw": {"memory_bytes": memory, "times_s": times},
        }, output

    return framed("search_step", given, work, report_lines, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
