"""Run by `test_distributed` under torchrun, and alone: some steps of a search in float64."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from autospace.checkpoint import load_checkpoint
from autospace.cost import SMALLEST_CELL, Limit, MaddsCost
from autospace.data import Data, load_data
from autospace.distributed import join, share_norms
from autospace.genotype import REFERENCE_CELLS
from autospace.network import weight_decay_groups
from autospace.proxyless import SearchOptions, SearchRun
from autospace.seeding import Seed
from autospace.skeleton import SKELETONS
from autospace.space import SearchSpace
from autospace.supernet import GatedNet

STEPS = 20


class Doubled(Data):
    """Images in float64."""

    def training_batch(self, *arguments, **more):
        images, labels = super().training_batch(*arguments, **more)
        return images.double(), labels


def main(rule: str, batch: int, output: Path, stop: int) -> None:
    """Goes on from the state beside the output if there is one, up to the step in question."""
    ranks = join()
    space = SearchSpace(SKELETONS["tiny"], ((*REFERENCE_CELLS, SMALLEST_CELL),) * 3)
    candidates = [space.candidates(index) for index in range(len(space.skeleton.blocks))]
    plain = load_data("digits", resolution=16)
    data = Doubled(**{one.name: getattr(plain, one.name) for one in dataclasses.fields(plain)})
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
        options, data, seed, net, optimizer, [Limit("madds", 1.5e6, "")], [table], alpha,
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
    tensors = {name: value.detach().contiguous() for name, value in net.named_parameters()}
    save_file({**tensors, "alpha": alpha}, output.with_name(f"{output.name}-{ranks.rank}"))
    ranks.leave()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
