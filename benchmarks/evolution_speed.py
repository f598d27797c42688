"""What a step of the evolution costs, against its operations and against other ways to do it.

``python -m benchmarks.evolution_speed``. A weight step counts three times the multiply-adds of its
forward pass (outputs, gradients of inputs, gradients of weights), an α step with two (no
gradients of weights); what the stacked cells share counts once. The rate is set against that of a
large matrix product with as many threads in the same minutes. Other ways are the same steps with
the memory laid out plainly, with bfloat16 where PyTorch's autocast uses it, with every cell
computed for itself, and with all gradients as oneDNN computes them (`autospace.depthwise`). All
of them take turns, with the same cells and images, and medians count.

A random search that evaluates as many cells trains whole networks with as many cells as a network
has layers; ``--epochs`` says for how long.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autospace.data import Data
from autospace.evolution_options import EvolutionOptions
from autospace.files import write_json
from autospace.genotype import REFERENCE_CELLS, Cell, MBConv
from autospace.mutation import mutated
from autospace.network import ConvBN, build_network
from autospace.seeding import Seed
from autospace.skeleton import Skeleton, find_skeleton
from autospace.space import Architecture
from autospace.steps import evolve, load_proxy, target_skeleton
from autospace.supernet import EvolvingNet
from benchmarks.conditions import RESULTS
from devices.errors import AutospaceError

__all__ = ["main"]

_PRODUCT = 1536
"""Side of the square matrices whose product tells what the processor can do."""

Stack = list[list[Cell]]


@dataclass(frozen=True)
class Way:
    """A way to compute a step.

    Attributes:
        name: in the table.
        channels_last: layout of weights and feature maps.
        bf16: whether under autocast to bfloat16.
        apart: whether every cell is computed for itself, what it shares with others included.
        small_images: whether depthwise convolutions of small images have gradients of their own.
    """

    name: str
    channels_last: bool = True
    bf16: bool = False
    apart: bool = False
    small_images: bool = True

    def context(self) -> AbstractContextManager[Any]:
        """In which its forward pass runs."""
        return torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext()


WAYS = (
    Way("as it is"),
    Way("plain layout", channels_last=False),
    Way("bfloat16", bf16=True),
    Way("cells apart", apart=True),
    Way("oneDNN's gradients", small_images=False),
)


def _as_onednn_does(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, ConvBN):
            layer.depthwise = False


class _Steps:
    """A network that is trained in one way."""

    def __init__(self, way: Way, skeleton: Skeleton) -> None:
        self.way = way
        self.net = EvolvingNet(skeleton, "kernel", Seed(0).torch_generator("weights"))
        if not way.channels_last:
            self.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        if not way.small_images:
            _as_onednn_does(self.net)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9)

    def weight_step(self, images: Tensor, labels: Tensor, cells: Stack, alpha: Tensor) -> None:
        """As the evolution's: forward, backward, and a step of the weights."""
        self.optimizer.zero_grad(set_to_none=True)
        self._loss(images, labels, cells, torch.softmax(alpha, 1)).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def alpha_step(self, images: Tensor, labels: Tensor, cells: Stack, alpha: Tensor) -> None:
        """As the evolution's: the loss's gradient by α alone."""
        free = alpha.clone().requires_grad_()
        for parameter in self.net.parameters():
            parameter.requires_grad_(False)
        torch.autograd.grad(self._loss(images, labels, cells, torch.softmax(free, 1)), free)
        for parameter in self.net.parameters():
            parameter.requires_grad_(True)

    def _loss(self, images: Tensor, labels: Tensor, cells: Stack, weights: Tensor) -> Tensor:
        if self.way.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        else:
            images = images.contiguous()
        with self.way.context():
            logits = self._apart(images, cells, weights) if self.way.apart else None
            logits = self.net(images, cells, weights) if logits is None else logits
        return functional.cross_entropy(logits.float(), labels)

    def _apart(self, x: Tensor, cells: Stack, weights: Tensor) -> Tensor:
        net = self.net
        x = net.before(x)
        for index, block in enumerate(net.blocks):
            layer = net.skeleton.layer_of(index)
            parts = [
                block(x, [cell], weights[layer, place : place + 1])
                for place, cell in enumerate(cells[layer])
            ]
            summed = torch.stack(parts).sum(0)
            if net.skeleton.blocks[index].has_shortcut:
                summed = summed - (len(parts) - 1) * x  # each part has added it
            x = summed
        return net.after(x)  # type: ignore[no-any-return]


def measure(
    skeleton: Skeleton,
    data: Data,
    options: EvolutionOptions,
    rounds: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Times of all ways in turns.

    Args:
        skeleton: for the data.
        data: what is learned.
        options: batch and number of stacked cells.
        rounds: turns; the first is thrown away.
        progress: is told of each.

    Returns:
        Seconds of each way's steps and of a training step of one network (MBConv6 5×5
        everywhere) without and with oneDNN's gradients, the operations of a forward pass, the
        matrix product's rate.
    """
    ways = [_Steps(way, skeleton) for way in WAYS]
    reference = Architecture(skeleton, (MBConv(5),) * len(skeleton.blocks))
    networks = [build_network(reference, 0) for _ in range(2)]
    _as_onednn_does(networks[1])
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.01, momentum=0.9) for one in networks]
    square = torch.randn(_PRODUCT, _PRODUCT)
    times: dict[str, dict[str, list[float]]] = {
        way.name: {"weights": [], "alpha": []} for way in WAYS
    }
    forward: list[float] = []
    rates: list[float] = []
    alone: list[list[float]] = []
    for turn in range(rounds + 1):
        random = np.random.default_rng([0, turn])
        cells = [_stack(random, options.sampled) for _ in range(skeleton.num_layers)]
        alpha = torch.from_numpy(random.standard_normal((len(cells), options.sampled))).float()
        images, labels = data.training_batch(data.train, options.batch, turn, Seed(turn))
        found: dict[str, dict[str, float]] = {}
        for place in random.permutation(len(ways)):
            steps = ways[int(place)]
            found[steps.way.name] = {
                "weights": _seconds(lambda: steps.weight_step(images, labels, cells, alpha)),  # noqa: B023
                "alpha": _seconds(lambda: steps.alpha_step(images, labels, cells, alpha)),  # noqa: B023
            }

        def one_network(which: int) -> None:
            optimizers[which].zero_grad(set_to_none=True)
            functional.cross_entropy(networks[which](images), labels).backward()  # type: ignore[no-untyped-call]  # noqa: B023
            optimizers[which].step()

        own_s = [_seconds(lambda: one_network(which)) for which in range(2)]  # noqa: B023
        product_s = _seconds(lambda: torch.mm(square, square))
        progress(f"round {turn} of {rounds}")
        if turn == 0:  # memory is laid out, code is chosen
            continue
        forward.append(options.batch * ways[0].net.madds(cells))
        rates.append(2 * _PRODUCT**3 / product_s / 1e9)
        alone.append(own_s)
        for name, own in found.items():
            for kind, seconds in own.items():
                times[name][kind].append(seconds)
    return {
        "forward_madds": forward,
        "product_gflops": statistics.median(rates),
        "one_network_s": [statistics.median(own) for own in zip(*alone, strict=True)],
        "ways": times,
    }


def compute(found: dict[str, Any], options: EvolutionOptions, layers: int) -> dict[str, Any]:
    """What the times say, by way."""
    ways = {}
    for name, own in found["ways"].items():
        weights_s, alpha_s = (statistics.median(own[kind]) for kind in ("weights", "alpha"))
        rates = [
            2 * passes * madds / seconds / 1e9
            for kind, passes in (("weights", 3), ("alpha", 2))
            for madds, seconds in zip(found["forward_madds"], own[kind], strict=True)
        ]
        generation_s = options.steps * (weights_s + alpha_s)
        ways[name] = {
            "weight_step_s": weights_s,
            "alpha_step_s": alpha_s,
            "gflops": statistics.median(rates),
            "share_of_product": statistics.median(rates) / found["product_gflops"],
            "cells_per_minute": 60 / generation_s * options.sampled * layers,
        }
    return {
        "forward_gmadds": statistics.median(found["forward_madds"]) / 1e9,
        "product_gflops": found["product_gflops"],
        "one_network_step_s": found["one_network_s"][0],
        "one_network_step_onednn_s": found["one_network_s"][1],
        "ways": ways,
    }


def _stack(random: np.random.Generator, count: int) -> list[Cell]:
    """Different cells: a reference, and others some mutations away from one."""
    cells = {REFERENCE_CELLS[int(random.integers(len(REFERENCE_CELLS)))]: None}
    while len(cells) < count:
        cell = REFERENCE_CELLS[int(random.integers(len(REFERENCE_CELLS)))]
        for _ in range(int(random.integers(1, 5))):
            cell = mutated(cell, random)
        cells.setdefault(cell)
    return list(cells)


def _seconds(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def report_lines(result: dict[str, Any]) -> list[str]:
    """The result as a person reads it."""
    lines = [
        f"{result['skeleton']}, {result['data']}, batch {result['batch']}, {result['sampled']} "
        f"cells stacked, {result['threads']} threads; forward {result['forward_gmadds']:.2f} G "
        f"multiply-adds; a matrix product runs at {result['product_gflops']:.0f} GFLOP/s",
        "",
        "| steps | weights | α | GFLOP/s | of a product's | cells a minute |",
        "|---|---|---|---|---|---|",
    ]
    for name, way in result["ways"].items():
        lines.append(
            f"| {name} | {way['weight_step_s']:.3f} s | {way['alpha_step_s']:.3f} s "
            f"| {way['gflops']:.1f} | {way['share_of_product']:.0%} "
            f"| {way['cells_per_minute']:.0f} |"
        )
    evolved = result["evolution"]
    lines += [
        "",
        f"a training step of MBConv6 5×5 everywhere: {result['one_network_step_s']:.3f} s; with "
        f"oneDNN's gradients {result['one_network_step_onednn_s']:.3f} s",
        f"the evolution itself, {evolved['generations']} generations: "
        f"{evolved['cells_per_minute']:.0f} cells a minute after the warm-up",
        f"a random search with {result['random_search']['epochs']} epochs a network: "
        f"{result['random_search']['cells_per_minute']:.2f} cells a minute; as many cells cost it "
        f"{result['random_search']['times_as_long']:.0f} times as long",
    ]
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evolution_speed",
        description=(__doc__ or "").split("\n")[0],
    )
    add = parser.add_argument
    add("--skeleton", default="small", help="name of the layout (small)")
    add("--data", default="fashion-mnist", help="what is learned (fashion-mnist)")
    add("--data-root", type=Path, help="folder of its files")
    add("--rounds", type=int, default=12, help="turns of all ways (12)")
    add("--generations", type=int, default=10, help="of the evolution that is timed (10)")
    add("--epochs", type=int, default=2, help="for which a random search trains a network (2)")
    add("--output", type=Path, help="JSON file (benchmarks/results/…)")
    add("--json", action="store_true", help="print the JSON object instead of the table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and reports; returns the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if min(given.rounds, given.generations, given.epochs) < 1:
        parser.error("--rounds, --generations and --epochs must be at least 1")

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    options = EvolutionOptions()
    try:
        data = load_proxy(given.data, given.data_root, find_skeleton(given.skeleton))
        skeleton = target_skeleton(given.skeleton, data)
        proxy = skeleton.for_data(
            resolution=data.resolution, in_channels=data.channels, num_classes=data.num_classes
        )
        found = measure(proxy, data, options, given.rounds, progress)
        result = compute(found, options, proxy.num_layers)
        # It must not stop early: the count of its generations is what is timed.
        timed = replace(options, generations=given.generations + 1, warmup=1, settled=2, exam=0)
        moments: list[float] = []
        evolve(
            budget="90%", skeleton=skeleton, data=data, options=timed,
            watch=lambda line: moments.append(time.perf_counter()),
        )  # fmt: skip
    except AutospaceError as error:
        print(f"evolution_speed: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("evolution_speed: interrupted; nothing was written.", file=sys.stderr)
        return 130
    # The first generation is the warm-up's, and lays out the memory.
    rate = 60 * options.sampled * proxy.num_layers * given.generations / (moments[-1] - moments[0])
    network_s = given.epochs * len(data.train) / options.batch * result["one_network_step_s"]
    searched = 60 * proxy.num_layers / network_s
    result = {
        "benchmark": "evolution_speed",
        "skeleton": given.skeleton,
        "data": data.description,
        "batch": options.batch,
        "sampled": options.sampled,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **result,
        "evolution": {"generations": given.generations, "cells_per_minute": rate},
        "random_search": {
            "epochs": given.epochs,
            "cells_per_minute": searched,
            "times_as_long": rate / searched,
        },
    }
    output = given.output or RESULTS / f"evolution-speed-{given.skeleton}-{given.data}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, result)
    print(json.dumps(result, indent=1) if given.json else "\n".join(report_lines(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
