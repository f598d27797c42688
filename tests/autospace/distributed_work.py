"""Run by `test_distributed` under torchrun, and alone: searches and an evolution in float64."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from autospace.checkpoint import load_checkpoint
from autospace.cost import SMALLEST_CELL, Limit, MaddsCost
from autospace.data import Data, load_data
from autospace.distributed import Ranks, join, share_norms
from autospace.evolution import evolve_space
from autospace.evolution_options import EvolutionOptions
from autospace.genotype import REFERENCE_CELLS
from autospace.network import weight_decay_groups
from autospace.proxyless import SearchRun
from autospace.search_options import SearchOptions
from autospace.seeding import Seed
from autospace.skeleton import SKELETONS, Stage
from autospace.space import SearchSpace
from autospace.supernet import GatedNet

STEPS = 20
GENERATIONS = 5
SKELETON = dataclasses.replace(
    SKELETONS["tiny"], stem_width=8, stages=(Stage(8, 1, 2), Stage(8, 2, 2)), head_width=32
)
"""Few and narrow blocks: what is compared does not depend on how large it is."""


class Doubled(Data):
    """Images in float64."""

    def training_batch(self, *arguments, **more):
        images, labels = super().training_batch(*arguments, **more)
        return images.double(), labels


def search(ranks: Ranks, rule: str, batch: int, output: Path, stop: int) -> None:
    """Goes on from the state beside the output if there is one, up to the step in question."""
    space = SearchSpace(SKELETON, ((*REFERENCE_CELLS, SMALLEST_CELL),) * SKELETON.num_layers)
    candidates = space.candidates_by_block
    data = doubled()
    options = SearchOptions(
        steps=STEPS, warmup=4, batch=batch, alpha_every=2, update_rule=rule, learning_rate=0.02
    )
    seed = Seed(0)
    net = GatedNet(space.skeleton, candidates, "kernel", seed.torch_generator("weights")).double()
    if ranks.size > 1:
        share_norms(net)
    optimizer = torch.optim.SGD(
        weight_decay_groups(net.named_parameters(), options.weight_decay),
        lr=options.learning_rate, momentum=0.9, nesterov=True,
    )  # fmt: skip
    alpha = torch.full((len(candidates), max(map(len, candidates))), -torch.inf).double()
    for row, blocks in zip(alpha, candidates, strict=True):
        row[: len(blocks)] = 0
    table = MaddsCost(space.skeleton).table(candidates)
    run = SearchRun(
        options, data, seed, net, optimizer, [Limit("madds", 3e5, "")], [table], alpha,
        ranks=ranks,
    )  # fmt: skip
    state = output.with_suffix(".state")
    if state.exists():
        run.restore(load_checkpoint(state, "autospace.search", "a state"))
    ranks.wait()
    while run.step < stop:
        run.run_step()
    if ranks.first:
        run.save(state, "", 0)
    ranks.wait()  # until it can be read
    tensors = {name: value.detach().contiguous() for name, value in net.named_parameters()}
    save_file({**tensors, "alpha": alpha}, output.with_name(f"{output.name}-{ranks.rank}"))


def evolve(ranks: Ranks, output: Path, stops: Sequence[int]) -> None:
    """Breaks off after the generations in question, goes on, and keeps the space."""
    torch.set_default_dtype(torch.float64)
    options = EvolutionOptions(
        generations=GENERATIONS, warmup=1, population=8, sampled=3, steps=4, batch=9,
        learning_rate=0.02, exam=1, settling=0.2,
    )  # fmt: skip
    for stop in (*stops, GENERATIONS + 1):

        def told(fraction: float, message: str, stop: int = stop) -> None:
            if fraction * GENERATIONS >= stop:
                raise KeyboardInterrupt

        try:
            space = evolve_space(
                SKELETON, doubled(), {"madds": MaddsCost(SKELETON)}, [Limit("madds", 4e5, "")],
                options=options, ranks=ranks, state=output.with_suffix(".state"), progress=told,
            )  # fmt: skip
        except KeyboardInterrupt:
            ranks.wait()  # until the first has saved
    document = {"cells": space.to_json()["layers"], "fitness": space.fitness}
    output.with_name(f"{output.name}-{ranks.rank}.json").write_text(json.dumps(document))


def doubled() -> Data:
    """Digits in float64."""
    plain = load_data("digits", resolution=16)
    return Doubled(**{one.name: getattr(plain, one.name) for one in dataclasses.fields(plain)})


def main(folder: Path) -> None:
    """All of it: in one go alone, with several processes broken off and gone on with."""
    ranks = join()
    together = ranks.size > 1
    for rule, batch, stops in (("two", 24, (11, STEPS)), ("full_v2", 17, (STEPS,))):
        for stop in stops if together else (STEPS,):
            search(ranks, rule, batch, folder / f"{rule}-{ranks.size}", stop)
    evolve(ranks, folder / f"evolve-{ranks.size}", (2,) if together else ())
    ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
