"""The released networks on a device: multiply-adds against measured milliseconds.

``python -m benchmarks.released --released FOLDER --device CARD [--output FILE.json]``. The folder
holds the two files of the AutoSpace release, `net_340M.config` and `search_space.config`. Compared
are the released network, networks with one MBConv6 in every block (windows of 3, 5 and 7), and for
each budget of the release's table (175 to 570 million multiply-adds, and 650 at 1.4 times the
width) the network of the released space that the exact solver finds closest below it; with
``--space FILE`` those of another space on the same skeleton, too. All are measured together,
interleaved; the released network is in both readings of its operations 7 and 9
(`--kernel-reading` of the other commands).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autospace.cost import Limit, MaddsCost
from autospace.files import write_json
from autospace.genotype import MBConv
from autospace.onnx_export import onnx_for_cost
from autospace.operations import KERNEL_READINGS
from autospace.select import select
from autospace.skeleton import SKELETONS
from autospace.space import Architecture, SearchSpace
from autospace.steps import Device, open_device
from benchmarks.conditions import results_file
from devices.errors import AutospaceError, UsageError

__all__ = ["BUDGETS", "Row", "derived", "main", "networks"]

BUDGETS = ((175e6, 1.0), (340e6, 1.0), (430e6, 1.0), (570e6, 1.0), (650e6, 1.4))
"""Multiply-adds and width of the release's table."""

_CLOSE = 0.98
"""Share of its budget that a derived network uses at least."""
_VISITS = 24


@dataclass(frozen=True)
class Row:
    """One network of the table.

    Attributes:
        name: what it is.
        params: trainable parameters.
        madds: multiply-adds at 224×224.
        predicted_ms: by the card.
        measured_ms: on the device.
        low_ms: lower end of its 90 % interval.
        high_ms: upper end of it.
    """

    name: str
    params: int
    madds: int
    predicted_ms: float
    measured_ms: float
    low_ms: float
    high_ms: float

    @property
    def ms_per_100m(self) -> float:
        """Milliseconds for a hundred million multiply-adds."""
        return self.measured_ms / self.madds * 1e8


def derived(space: SearchSpace, budget: float, width_mult: float) -> Architecture:
    """The network of a space that comes closest to a budget from below.

    The probabilities that a search would learn are left out: all candidates are equally likely, so
    that the first feasible network within the last 2 % of the budget is as good as any.

    Args:
        space: its candidates.
        budget: multiply-adds at the skeleton's resolution.
        width_mult: of the skeleton.

    Raises:
        UsageError: the budget is below the smallest network, or no network uses 98 % of it.
    """
    skeleton = replace(space.skeleton, width_mult=width_mult)
    candidates = space.candidates_by_block
    table = MaddsCost(skeleton, space.kernel_reading).table(candidates)
    even = [[1 / len(own)] * len(own) for own in candidates]
    limit = Limit("madds", budget, f"{budget / 1e6:g}M")
    found = select(even, [table], [limit], use=_CLOSE)
    if not found:
        raise UsageError(f"limit {limit}: no network of the space uses {_CLOSE:.0%} of it")
    blocks = tuple(own[index] for own, index in zip(candidates, found[0], strict=True))
    return Architecture(skeleton, blocks, space.kernel_reading)


def networks(folder: Path, other: SearchSpace | None = None) -> dict[str, Architecture]:
    """Every network of the table, by name.

    Args:
        folder: of the two released files.
        other: a space that networks are derived from, too.

    Raises:
        InvalidInputError: one of the two files is missing or no released file.
        UsageError: the other space is not on the released skeleton.
    """
    released = Architecture.load(folder / "net_340M.config")
    space = SearchSpace.load(folder / "search_space.config")
    mobile = SKELETONS["mobile"]
    if other is not None and other.skeleton != mobile:
        raise UsageError(
            f"--space: on the {other.skeleton.name} skeleton, not on mobile at 224×224"
        )
    found = {
        f"released 340M, {reading}": replace(released, kernel_reading=reading)
        for reading in KERNEL_READINGS
    }
    for window in (3, 5, 7):
        found[f"MBConv6 {window}×{window} everywhere"] = Architecture(
            mobile, (MBConv(window, 6),) * len(mobile.blocks)
        )
    spaces = {"space": space, **({"evolved": other} if other is not None else {})}
    for name, one in spaces.items():
        for budget, width in BUDGETS:
            wide = f" at {width}× width" if width != 1 else ""
            found[f"{name}, {budget / 1e6:.0f}M{wide}"] = derived(one, budget, width)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.released", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--released", type=Path, required=True, help="folder of the released files")
    add("--device", type=Path, required=True, help="device card of this machine")
    add("--space", type=Path, help="file of another space, to derive networks from it, too")
    add("--visits", type=int, default=_VISITS, help=f"of each network ({_VISITS})")
    add("--output", type=Path, help="JSON file (benchmarks/results/released-…)")
    given = parser.parse_args(arguments)
    try:
        device = open_device(given.device)
        other = SearchSpace.load(given.space) if given.space else None
        rows = _measured(networks(given.released, other), device, given.visits)
    except AutospaceError as error:
        print(f"released: error: {error}", file=sys.stderr)
        return error.exit_code
    result: dict[str, Any] = {
        "benchmark": "released",
        "device": device.description,
        "networks": [{**asdict(row), "ms_per_100m": row.ms_per_100m} for row in rows],
    }
    output = given.output or results_file("released", device.card)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, result)
    print(f"on {device.description}")
    print(
        f"{'network':<30}{'params':>9}{'MAdds':>9}{'predicted':>11}{'measured':>27}{'ms/100M':>9}"
    )
    for row in rows:
        span = f"{row.measured_ms:.2f} [{row.low_ms:.2f}, {row.high_ms:.2f}] ms"
        print(
            f"{row.name:<30}{row.params / 1e6:>8.2f}M{row.madds / 1e6:>8.1f}M"
            f"{row.predicted_ms:>8.2f} ms{span:>27}{row.ms_per_100m:>9.2f}"
        )
    print(f"written: {output}")
    return 0


def _measured(found: Mapping[str, Architecture], device: Device, visits: int) -> list[Row]:
    """Measures networks together."""
    batch, predictor = device.card.settings.batch, device.predictor
    models = {name: onnx_for_cost(network, batch) for name, network in found.items()}
    measured = device.measure(
        models, visits=visits, progress=lambda _, text: print(text, file=sys.stderr, flush=True)
    )
    return [
        Row(
            name,
            network.params,
            network.madds,
            predictor.predict(models[name]).latency_ms,
            measured[name].latency_ms,
            measured[name].low_ms,
            measured[name].high_ms,
        )
        for name, network in found.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
