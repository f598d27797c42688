"""What a step of the evolution costs, beside its floating-point operations and beside one cell.

``python -m benchmarks.evolution_step [--skeleton small] [--batch 96]``. A weight step (forward,
backward, update) and an α step (forward, backward to α and no further) with 1, 2, 4 and 8 stacked
cells a layer, in single precision and in bfloat16 (autocast), channels last and not. Operations are
counted by PyTorch (`torch.utils.flop_counter`: convolutions and matrix products, as they are
executed, so what stacked cells share counts once). The limit is the rate of a large square matrix
product in the same precision. Cases take turns; each counts with the lower quartile of its times.

Then what the evolution is compared with: how long a random search would take that trains one
network for every ``layers`` cells tried, each for as many steps as the short recipe of
`benchmarks.space_quality` has.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from autospace.evolution import EvolutionOptions, random_cell
from autospace.files import write_json
from autospace.seeding import Seed
from autospace.skeleton import find_skeleton
from autospace.supernet import EvolvingNet
from devices.errors import AutospaceError

__all__ = ["Case", "main", "measure"]

_STACKED = (1, 2, 4, 8)
_SIDE = 2048
_SHORT_RECIPE_STEPS = 2 * 60_000 // 128


@dataclass(frozen=True)
class Case:
    """One way to run one kind of step.

    Attributes:
        step: "weights" or "alpha".
        cells: stacked in each layer.
        precision: "fp32" or "bf16".
        channels_last: memory layout of weights and images.
        step_ms: lower quartile.
        gflops: floating-point operations of a step, in billions.
    """

    step: str
    cells: int
    precision: str
    channels_last: bool
    step_ms: float
    gflops: float

    @property
    def gflops_per_s(self) -> float:
        """The rate that was reached."""
        return self.gflops / self.step_ms * 1e3


def _autocast(precision: str) -> AbstractContextManager[Any]:
    if precision == "bf16":
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()


def _step(
    net: EvolvingNet, cells: int, batch: int, kind: str, precision: str, layout: torch.memory_format
) -> Callable[[], None]:
    """A step to be timed, on images of noise: what they show makes no difference."""
    skeleton = net.skeleton
    random = np.random.default_rng(0)
    stack = [[random_cell(random) for _ in range(cells)] for _ in range(skeleton.num_layers)]
    generator = torch.Generator().manual_seed(0)
    shape = (batch, skeleton.in_channels, skeleton.resolution, skeleton.resolution)
    images = torch.randn(shape, generator=generator).contiguous(memory_format=layout)
    labels = torch.randint(skeleton.num_classes, (batch,), generator=generator)
    alpha = torch.zeros(skeleton.num_layers, cells, requires_grad=kind == "alpha")
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def run() -> None:
        net.requires_grad_(kind == "weights")
        with _autocast(precision):
            logits = net(images, stack, torch.softmax(alpha, 1))
        loss = functional.cross_entropy(logits.float(), labels)
        if kind == "alpha":
            torch.autograd.grad(loss, alpha)
            return
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return run


def measure(skeleton_name: str, batch: int, rounds: int) -> tuple[list[Case], dict[str, float]]:
    """Times every case.

    Returns:
        The cases, and the rate of a large matrix product by precision, in GFLOP/s.
    """
    skeleton = find_skeleton(skeleton_name)
    if skeleton.resolution > 64:
        skeleton = skeleton.for_data(resolution=32, in_channels=3, num_classes=10)
    steps: dict[tuple[str, int, str, bool], Callable[[], None]] = {}
    for last in (True, False):
        net = EvolvingNet(skeleton, "kernel", Seed(0).torch_generator("weights"))
        layout = torch.channels_last if last else torch.contiguous_format
        net.to(memory_format=layout)  # type: ignore[call-overload]
        for precision in ("fp32", "bf16"):
            for kind in ("weights", "alpha"):
                for cells in _STACKED:
                    key = kind, cells, precision, last
                    steps[key] = _step(net, cells, batch, kind, precision, layout)
    times = _in_turn(steps, rounds)
    cases = []
    for key, run in steps.items():
        with FlopCounterMode(display=False) as counter:
            run()
        cases.append(Case(*key, times[key], counter.get_total_flops() / 1e9))
    return cases, _limits(rounds)


def _in_turn(steps: dict[Any, Callable[[], None]], rounds: int) -> dict[Any, float]:
    """Milliseconds of each, its lower quartile, after one run that does not count."""
    times: dict[Any, list[float]] = {key: [] for key in steps}
    for round_ in range(rounds + 1):
        for key, run in steps.items():
            started = time.perf_counter()
            run()
            if round_:
                times[key].append(1e3 * (time.perf_counter() - started))
    return {key: float(np.quantile(own, 0.25)) for key, own in times.items()}


def _limits(rounds: int) -> dict[str, float]:
    found = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left = torch.ones(_SIDE, _SIDE, dtype=dtype)
        times = _in_turn({"product": lambda matrix=left: matrix @ matrix}, rounds)
        found[precision] = 2 * _SIDE**3 / times["product"] / 1e6
    return found


def _report(
    cases: Sequence[Case], limits: dict[str, float], skeleton: str, batch: int
) -> dict[str, Any]:
    options = EvolutionOptions()
    layers = find_skeleton(skeleton).num_layers
    by_key = {(c.step, c.cells, c.precision, c.channels_last): c for c in cases}

    def of(step: str, cells: int) -> Case:
        return by_key[step, cells, "fp32", True]

    stacked_ms = of("weights", options.sampled).step_ms + of("alpha", options.sampled).step_ms
    per_generation = options.sampled * layers
    cells_per_minute = 6e4 / (options.steps * stacked_ms) * per_generation
    # One network tries a cell in every layer.
    network_s = of("weights", 1).step_ms * _SHORT_RECIPE_STEPS / 1e3
    return {
        "benchmark": "evolution_step",
        "skeleton": skeleton,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "matrix_product_gflops_per_s": limits,
        "cases": [{**asdict(case), "gflops_per_s": case.gflops_per_s} for case in cases],
        "evolution_cells_per_minute": cells_per_minute,
        "random_search_cells_per_minute": 60 / network_s * layers,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evolution_step", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--skeleton", default="small", help="layout; large ones at 32×32 (small)")
    add("--batch", type=int, default=96, help="images in a step (96)")
    add("--rounds", type=int, default=12, help="that every case is timed in (12)")
    add("--output", type=Path, help="JSON file")
    add("--json", action="store_true", help="print the JSON object instead of the table")
    given = parser.parse_args(arguments)
    try:
        cases, limits = measure(given.skeleton, given.batch, given.rounds)
    except AutospaceError as error:
        print(f"evolution_step: error: {error}", file=sys.stderr)
        return error.exit_code
    result = _report(cases, limits, given.skeleton, given.batch)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.output, result)
    if given.json:
        print(json.dumps(result, indent=1))
        return 0
    print(f"{given.skeleton} skeleton, batch {given.batch}, {result['threads']} threads")
    for precision, rate in limits.items():
        print(f"large matrix product, {precision}: {rate:.0f} GFLOP/s")
    print(f"{'step':<9}{'cells':>5}  {'':<18}{'ms':>8}{'GFLOP':>8}{'GFLOP/s':>9}{'of limit':>9}")
    for case in cases:
        how = f"{case.precision}{', channels last' if case.channels_last else ''}"
        share = case.gflops_per_s / limits[case.precision]
        print(
            f"{case.step:<9}{case.cells:>5}  {how:<20}{case.step_ms:>6.1f}{case.gflops:>8.2f}"
            f"{case.gflops_per_s:>9.1f}{share:>9.1%}"
        )
    print(
        f"cells tried a minute: {result['evolution_cells_per_minute']:.0f} by the evolution, "
        f"{result['random_search_cells_per_minute']:.1f} by training networks of random cells"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
