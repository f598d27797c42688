"""How fast `latency.ExpectedLatency` is on one core, beside what memory allows.

``python -m benchmarks.expected_latency [--table CARD] [--json]``. Two tables: 20 layers of 7
candidates, and the mobile skeleton's by a device card, with nine cells a layer (the references and
six drawn at random), a plain block and a skip where the layout has them. Without a card a small one
is made with the simulated runtime; the speed does not depend on the entries.

The expectation has to read every probability once, and its gradient has to be written once. A plain
copy of the same tensor, into memory that is there already, does one of each: its rate bounds
forward and backward together, and twice its rate bounds forward alone (the copy moves twice the
bytes). From logits the bounds are the same, although exponentials and sums come on top. Cases are
timed in turn, and each counts with the 10th percentile of its times.

Exit code 1 if a single architecture's cost is not the per-network sum of the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autospace.cost import CostTable, LatencyCost
from autospace.genotype import REFERENCE_CELLS, Cell
from autospace.mutation import random_cell
from autospace.skeleton import SKELETONS
from autospace.space import SearchSpace
from autospace.steps import open_device
from devices.errors import AutospaceError
from latency import DeviceCard, Predictor, profile_device
from latency.expected import ExpectedCost

__all__ = ["Agreement", "Result", "Speed", "agreement", "main", "measure", "mobile_table", "speed"]

_RANDOM_CELLS = 6
_NETWORKS = 1000
_MOST_ERROR = 1e-12
"""Relative; sums of some twenty float64 numbers in different order are within 1e-14."""
_MOST_ERROR_FLOAT32 = 1e-5


@dataclass(frozen=True)
class Speed:
    """Architectures a second on one core, in float32.

    Attributes:
        copy: of the probabilities into memory that is there already, which is the limit.
        forward: from probabilities.
        forward_backward: the same, and the gradient with respect to them.
        logits_forward: from logits.
        logits_forward_backward: the same, and the gradient with respect to them.
        gigabytes_per_s: that the copy moved, read and written.
    """

    copy: float
    forward: float
    forward_backward: float
    logits_forward: float
    logits_forward_backward: float
    gigabytes_per_s: float

    @property
    def of_limit(self) -> dict[str, float]:
        """Each rate as a share of what memory allows."""
        return {
            "forward": self.forward / (2 * self.copy),
            "forward_backward": self.forward_backward / self.copy,
            "logits_forward": self.logits_forward / (2 * self.copy),
            "logits_forward_backward": self.logits_forward_backward / self.copy,
        }


@dataclass(frozen=True)
class Agreement:
    """The largest relative differences from ``CostTable.total`` over random architectures.

    Attributes:
        architectures: how many.
        single: of ``of``, float64.
        one_hot: of ``forward`` on one-hot probabilities, float32.
    """

    architectures: int
    single: float
    one_hot: float

    @property
    def holds(self) -> bool:
        """Whether both are rounding."""
        return self.single <= _MOST_ERROR and self.one_hot <= _MOST_ERROR_FLOAT32


def mobile_table(card: DeviceCard, seed: int = 0) -> CostTable:
    """The table of a search over the mobile skeleton, in milliseconds by the card."""
    random = np.random.default_rng(seed)
    skeleton = SKELETONS["mobile"]
    layers = []
    for _ in range(skeleton.num_layers):
        cells: dict[Cell, None] = {}
        while len(cells) < _RANDOM_CELLS:
            cell = random_cell(random)
            if cell not in REFERENCE_CELLS:
                cells[cell] = None
        layers.append((*cells, *REFERENCE_CELLS))
    space = SearchSpace(skeleton, tuple(layers))
    cost = LatencyCost(skeleton, Predictor.from_card(card), batch=card.settings.batch)
    return cost.table(space.candidates_by_block)


def speed(expected: ExpectedCost, batch: int, rounds: int, seed: int = 0) -> Speed:
    """Times the expectation of a batch and its gradient, beside a copy.

    Args:
        expected: of one table.
        batch: architectures at once.
        rounds: how often each case is timed.
        seed: of the logits.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, *expected.valid.shape)
    logits = torch.randn(shape, generator=generator).masked_fill(~expected.valid, -torch.inf)
    probabilities = torch.softmax(logits, -1)
    source, target = probabilities.clone(), torch.empty(shape)
    upstream = torch.rand(batch, generator=generator)
    for leaf in (logits, probabilities):
        leaf.requires_grad_()

    def forward(function: Callable[[Tensor], Tensor], leaf: Tensor) -> None:
        with torch.no_grad():
            function(leaf)

    def both(function: Callable[[Tensor], Tensor], leaf: Tensor) -> None:
        torch.autograd.grad(function(leaf), leaf, upstream)

    rates = _rates(
        {
            "copy": lambda: target.copy_(source),
            "forward": lambda: forward(expected.forward, probabilities),
            "forward_backward": lambda: both(expected.forward, probabilities),
            "logits_forward": lambda: forward(expected.from_logits, logits),
            "logits_forward_backward": lambda: both(expected.from_logits, logits),
        },
        batch,
        rounds,
    )
    moved = 2 * source.element_size() * source[0].numel()
    return Speed(**rates, gigabytes_per_s=rates["copy"] * moved / 1e9)


def _rates(cases: dict[str, Callable[[], object]], batch: int, rounds: int) -> dict[str, float]:
    times_s: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(rounds + 2):
        for name, run in cases.items():
            started = time.perf_counter()
            run()
            if round_ >= 2:  # the first two allocate and warm the caches
                times_s[name].append(time.perf_counter() - started)
    return {name: batch / float(np.quantile(times, 0.1)) for name, times in times_s.items()}


def agreement(table: CostTable, count: int = _NETWORKS, seed: int = 0) -> Agreement:
    """Compares single architectures with the per-network sum of the table."""
    expected = table.expected()
    random = np.random.default_rng(seed)
    choices = np.stack([random.integers(0, len(row), count) for row in table.values], 1)
    sums = np.array([table.total(choice.tolist()) for choice in choices])
    index = torch.from_numpy(choices)
    one_hot = torch.nn.functional.one_hot(index, expected.valid.shape[1]).float()

    def largest(found: Tensor) -> float:
        return float(np.max(np.abs(found.double().numpy() / sums - 1)))

    return Agreement(count, largest(expected.of(index)), largest(expected(one_hot)))


@dataclass(frozen=True)
class Result:
    """One table's figures.

    Attributes:
        table: where its entries are from.
        layers: how many.
        candidates: in the largest layer.
        padded: places without a candidate.
        agreement: with the per-network sum.
        speed: of the expectation.
    """

    table: str
    layers: int
    candidates: int
    padded: int
    agreement: Agreement
    speed: Speed

    def to_json(self) -> dict[str, Any]:
        """Every field, whether the sums agree, and the shares of the limit."""
        found = asdict(self)
        found["agreement"]["holds"] = self.agreement.holds
        found["speed"]["of_limit"] = self.speed.of_limit
        return found

    def __str__(self) -> str:
        rows = [f"{self.table}: {self.layers} layers of up to {self.candidates} candidates"]
        rows[0] += f", {self.padded} places padded"
        shares = self.speed.of_limit
        for name, share in shares.items():
            rate = getattr(self.speed, name)
            words = name.replace("_", " ").replace("forward backward", "forward and backward")
            rows.append(f"  {words:<28}{rate / 1e6:7.2f} M architectures/s  {share:4.0%} of limit")
        rows.append(
            f"  {'plain copy (the limit)':<28}{self.speed.copy / 1e6:7.2f} M architectures/s  "
            f"{self.speed.gigabytes_per_s:.1f} GB/s"
        )
        rows.append(
            f"  per-network sum of {self.agreement.architectures} architectures: largest relative "
            f"difference {self.agreement.single:.1e} (float64), {self.agreement.one_hot:.1e} "
            f"(float32): {'holds' if self.agreement.holds else 'DOES NOT HOLD'}"
        )
        return "\n".join(rows)


def measure(label: str, table: CostTable, batch: int, rounds: int) -> Result:
    """Everything about one table."""
    expected = table.expected()
    layers, candidates = expected.valid.shape
    padded = int((~expected.valid).sum())
    return Result(
        label, layers, candidates, padded, agreement(table), speed(expected, batch, rounds)
    )


def _card_table(path: Path | None) -> tuple[str, CostTable]:
    """The mobile skeleton's table, and what to call it."""
    if path is not None:
        device = open_device(path, allow_mismatch=True)
        return f"{path.name}: {device.description}", mobile_table(device.card)
    with tempfile.TemporaryDirectory() as folder:
        card = profile_device(
            Path(folder) / "simulated.card", runtime="simulated", rounds=2, probes=10
        )
        return "no card given: a small one of the simulated runtime", mobile_table(card)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the figures; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.expected_latency", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--table", type=Path, metavar="CARD", help="a device card")
    parser.add_argument("--batch", type=int, default=16384, help="architectures at once")
    parser.add_argument("--rounds", type=int, default=40, help="how often each case is timed")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    given = parser.parse_args(arguments)
    if given.batch < 1 or given.rounds < 1:
        parser.error(f"--batch {given.batch} --rounds {given.rounds}: at least 1 each")
    torch.set_num_threads(1)
    try:
        label, by_card = _card_table(given.table)
    except AutospaceError as error:
        print(f"expected_latency: error: {error}", file=sys.stderr)
        return error.exit_code
    entries = np.random.default_rng(0).random((20, 7)).tolist()
    plain = CostTable("latency_ms", 0.5, tuple(map(tuple, entries)))
    results = [
        measure(name, table, given.batch, given.rounds)
        for name, table in (("random entries", plain), (f"mobile skeleton, {label}", by_card))
    ]
    if given.json:
        tables = [result.to_json() for result in results]
        print(json.dumps({"batch": given.batch, "threads": 1, "tables": tables}, indent=2))
    else:
        print(f"1 thread, float32, {given.batch} architectures at once")
        print("\n".join(map(str, results)))
    return 0 if all(result.agreement.holds for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
