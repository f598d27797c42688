"""Differentiable evolution of the search space (AutoSpace, arXiv 2103.11833, figure 2).

The paper's: a population of cells with a fitness for each layer; K cells sampled by tournament
and mutated; their weighted sum trained on the data (Eq. 3), α by gradient (Eq. 4), fitness
written back (Eq. 5); a reference family in the population; a cost term in the fitness.

This project's choices, where the paper's numbers are not public: softmax weights; half of the
sampled cells are mutated, by one gene, and inherit their parent's fitness; α learns on the
validation split by gradient steps normalised with one running scale for all α; fitness is a
moving average; a cell dearer than twice the dearest reference is rejected; the least fit cell
that is not a reference makes room. The cost enters as expectation over the softmax, with a
multiplier that grows while a limit is exceeded and shrinks while it is kept.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from autospace.checkpoint import (
    Checkpoint,
    optimizer_tensors,
    restore_optimizer,
    saved_state,
)
from autospace.checks import check_rules, finite_loss
from autospace.cost import Cost, Limit, check_reachable, format_cost, reference_cost
from autospace.data import Data
from autospace.events import Journal, Progress, SaveClock, Watch, silent, unwatched
from autospace.files import content_hash
from autospace.genotype import EXPANSIONS, REFERENCE_CELLS, Cell, Mix
from autospace.network import weight_decay_groups
from autospace.operations import SEARCH_OPERATIONS, KernelReading, Operation
from autospace.seeding import Seed
from autospace.skeleton import Skeleton
from autospace.space import SearchSpace
from autospace.supernet import EvolvingNet

__all__ = ["EvolutionOptions", "Individual", "evolve_space", "mutated", "random_cell"]

_FREE_EDGES = ((1, 0), (2, 0), (2, 1), (3, 1), (3, 2))
_CHAIN = ((1, 0), (2, 1), (3, 2))
_KIND = "autospace.evolution"
_LEAST_RATE = 0.2


@dataclass(frozen=True)
class EvolutionOptions:
    """The open choices of the evolution.

    Attributes:
        generations: how often cells are sampled, mutated, trained and written back.
        warmup: generations before α learns, so that no cell is judged on random weights.
        population: cells in each layer's population (P).
        sampled: cells that are stacked in a layer (K; 4 in the paper's figure).
        anchors: how many of them are reference cells, in turn; half of them in the warm-up. They
            keep the features learning while everything around them changes.
        tournament: cells among which the fittest is taken.
        steps: weight steps in a generation, each followed by an α step after the warm-up.
        batch: images in a step.
        learning_rate: of the weights (SGD, Nesterov momentum 0.9, cosine to a fifth).
        weight_decay: of the weights.
        alpha_rate: size of an α step, relative to the running scale of its gradients.
        momentum: of the fitness' moving average (Eq. 5): 0 overwrites.
        constraint_rate: how fast the multiplier of a limit grows.
        constraint_most: the multiplier at most: how much more the cost may count than the loss.
        kept: evolved cells of each layer that enter the space, beside the references.
        patience: generations that the space is compared over, to tell whether it still changes.
        settled: share of the space's evolved cells that were in it ``patience`` generations ago at
            which it has converged, and the evolution stops; above 1 it never does.
        references: whether the reference family is in the populations; without it they begin with
            random cells, there are no anchors, and as many more evolved cells are kept.
        fitness: "gradient" learns α (Eq. 4); "random" draws it, to see what learning is worth.
    """

    generations: int = 60
    warmup: int = 20
    population: int = 50
    sampled: int = 4
    anchors: int = 1
    tournament: int = 5
    steps: int = 4
    batch: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 4e-5
    alpha_rate: float = 0.05
    momentum: float = 0.5
    constraint_rate: float = 0.2
    constraint_most: float = 1.5
    kept: int = 6
    patience: int = 20
    settled: float = 0.9
    references: bool = True
    fitness: Literal["gradient", "random"] = "gradient"

    def check(self) -> None:
        """Refuses options that contradict each other.

        Raises:
            UsageError: names the option and the rule.
        """
        check_rules(
            "evolve",
            (
                (self.generations >= 1, f"generations {self.generations}: at least 1"),
                (0 <= self.warmup < self.generations, f"warmup {self.warmup}: below generations"),
                (self.sampled >= 2, f"sampled {self.sampled}: at least 2 cells compete"),
                (
                    0 <= self.anchors < self.sampled,
                    f"anchors {self.anchors}: from 0 to below sampled ({self.sampled})",
                ),
                (self.tournament >= 1, f"tournament {self.tournament}: at least 1"),
                (
                    self.population >= max(self.tournament, self.sampled, len(REFERENCE_CELLS) + 1),
                    f"population {self.population}: at least the tournament ({self.tournament}), "
                    f"the sampled cells ({self.sampled}) and one more than the references",
                ),
                (self.steps >= 1, f"steps {self.steps}: at least 1"),
                (self.batch >= 2, f"batch {self.batch}: at least 2"),
                (0 <= self.momentum < 1, f"momentum {self.momentum}: from 0 to below 1"),
                (
                    0 < self.learning_rate < float("inf"),
                    f"learning_rate {self.learning_rate}: above 0 and finite",
                ),
                (self.kept >= 1, f"kept {self.kept}: at least 1"),
                (self.patience >= 1, f"patience {self.patience}: at least 1"),
                (0 < self.settled <= 2, f"settled {self.settled}: above 0, at most 2"),
                (
                    self.fitness in ("gradient", "random"),
                    f"fitness {self.fitness!r}: gradient or random",
                ),
            ),
        )


@dataclass(frozen=True)
class Individual:
    """A cell in a population.

    Attributes:
        cell: the cell.
        fitness: moving average of its α; a mutated cell begins with its parent's.
        trials: generations in which it was stacked with α learning.
    """

    cell: Cell
    fitness: float = 0.0
    trials: int = 0


def random_cell(random: np.random.Generator) -> Cell:
    """A valid cell, each gene uniform among what is allowed."""
    cell = REFERENCE_CELLS[0]
    expansion = int(random.choice(EXPANSIONS))
    cell = replace(cell, expansion=expansion)
    for edge in _FREE_EDGES:
        cell = cell.with_edge(edge, _choose(random, _allowed(edge, expansion)))
    mixes = random.integers(0, 2, 2)
    return replace(cell, mixes=(Mix(int(mixes[0])), Mix(int(mixes[1])))).canonical()


def mutated(cell: Cell, random: np.random.Generator) -> Cell:
    """The cell with one gene changed to another allowed value.

    The genes are the five free edges, the expansion, and the mixing of each node that has more
    than one input. A change of expansion to 6 turns dense edges, which 6 does not allow, into
    depthwise ones.
    """
    genes: list[Any] = [*_FREE_EDGES, "expansion"]
    genes += [node for node in (2, 3) if len(cell.inputs(node)) > 1]
    gene = genes[int(random.integers(len(genes)))]
    if gene == "expansion":
        ratios = [value for value in EXPANSIONS if value != cell.expansion]
        expansion = ratios[int(random.integers(len(ratios)))]
        child = replace(cell, expansion=expansion)
        for edge in _FREE_EDGES:
            if child[edge] not in _allowed(edge, expansion):
                child = child.with_edge(edge, Operation.DEPTHWISE)
    elif isinstance(gene, tuple):
        others = [op for op in _allowed(gene, cell.expansion) if op is not cell[gene]]
        child = cell.with_edge(gene, _choose(random, others))
    else:
        mixes = list(cell.mixes)
        mixes[gene - 2] = Mix(1 - mixes[gene - 2])
        child = replace(cell, mixes=(mixes[0], mixes[1]))
    return child.canonical()


def _allowed(edge: tuple[int, int], expansion: int) -> list[Operation]:
    return [
        operation
        for operation in SEARCH_OPERATIONS
        if not (operation is Operation.NONE and edge in _CHAIN)
        and not (operation is Operation.DENSE and expansion == max(EXPANSIONS))
    ]


def _choose(random: np.random.Generator, operations: Sequence[Operation]) -> Operation:
    return operations[int(random.integers(len(operations)))]


@dataclass
class _Evolution:
    """The state of a run: everything that a checkpoint has to hold."""

    options: EvolutionOptions
    target: Skeleton
    data: Data
    costs: Mapping[str, Cost]
    limits: Sequence[Limit]
    seed: Seed
    reading: KernelReading
    net: EvolvingNet
    optimizer: torch.optim.Optimizer
    populations: list[list[Individual]]
    ceilings: list[dict[str, float]] = field(default_factory=list)
    multipliers: dict[str, float] = field(default_factory=dict)
    scale: float = 0.0
    generation: int = 0
    cells_tried: int = 0
    last: Mapping[str, Any] = field(default_factory=dict)
    history: list[list[list[str]]] = field(default_factory=list)
    """The cells of the space after each of the last generations, by layer, the oldest first."""

    # -- one generation ---------------------------------------------------------------------

    def run_generation(self) -> dict[str, Any]:
        """Samples, trains and writes back once; returns the log line."""
        options, generation = self.options, self.generation
        learning = generation >= options.warmup
        sampled = [self._sample(layer) for layer in range(self.target.num_layers)]
        cells = [[individual.cell for individual in row] for row in sampled]
        for cost in self.costs.values():
            cost.prepare(
                (block, cell)
                for layer, row in enumerate(cells)
                for block in cost.blocks_of(layer)
                for cell in row
            )
        tables: dict[str, Tensor] = {
            limit.metric: torch.tensor(
                [[self.costs[limit.metric].layer(i, c) for c in row] for i, row in enumerate(cells)]
            )
            for limit in self.limits
        }
        alpha = torch.tensor([[individual.fitness for individual in row] for row in sampled])
        losses: list[float] = []
        alpha_losses: list[float] = []
        expected: dict[str, float] = {}
        for step in range(options.steps):
            losses.append(self._weight_step(cells, alpha, generation * options.steps + step))
            if learning:
                loss, expected = self._alpha_step(cells, alpha, tables, generation, step)
                alpha_losses.append(loss)
        if learning:
            if options.fitness == "random":
                drawn = self.seed.generator("random fitness", generation).standard_normal(
                    alpha.shape
                )
                alpha = torch.from_numpy(drawn).float()
            self._write_back(sampled, alpha)
            self.cells_tried += sum(map(len, sampled))
            space = [[one.cell.hash for one in self._evolved(row)] for row in self.populations]
            self.history = [*self.history[-options.patience :], space]
        self.generation += 1
        line = self._log_line(losses, alpha_losses, expected)
        self.last = line
        return line

    def _sample(self, layer: int) -> list[Individual]:
        """K different cells: references, then tournament winners, every second of them mutated."""
        options = self.options
        random = self.seed.generator("sample", self.generation, layer)
        population = self.populations[layer]
        by_cell = {individual.cell: individual for individual in population}
        anchors = options.anchors if self.generation >= options.warmup else options.sampled // 2
        first = self.generation % len(REFERENCE_CELLS)
        chosen = [
            by_cell[REFERENCE_CELLS[(first + place) % len(REFERENCE_CELLS)]]
            for place in range(min(max(anchors, options.anchors), len(REFERENCE_CELLS)))
            if options.references
        ]
        while len(chosen) < options.sampled:
            taken = {individual.cell for individual in chosen}
            rest = [individual for individual in population if individual.cell not in taken]
            entrants = random.choice(len(rest), min(options.tournament, len(rest)), replace=False)
            parent = max((rest[int(i)] for i in entrants), key=lambda one: one.fitness)
            child = None
            if len(chosen) % 2 == 1:
                known = {individual.cell for individual in population} | taken
                child = self._child(parent, known, layer, random)
            chosen.append(child or parent)
        return chosen

    def _child(
        self, parent: Individual, known: set[Cell], layer: int, random: np.random.Generator
    ) -> Individual | None:
        """A mutation that is new and not too dear; None when ten tries find none."""
        for _ in range(10):
            cell = mutated(parent.cell, random)
            if cell not in known and self._affordable(cell, layer):
                return Individual(cell, parent.fitness)
        return None

    def _affordable(self, cell: Cell, layer: int) -> bool:
        # Multiply-adds stand in for latency here: a new cell is compiled only once it is stacked.
        return self.costs["madds"].layer(layer, cell) <= self.ceilings[layer]["madds"]

    # -- learning -----------------------------------------------------------------------------

    def _weight_step(self, cells: list[list[Cell]], alpha: Tensor, step: int) -> float:
        images, labels = self.data.training_batch(
            self.data.train, self.options.batch, step, self.seed.child("train")
        )
        total = self.options.generations * self.options.steps
        # Not to zero: the shared weights have to follow each new stack of cells to the end.
        share = _LEAST_RATE + (1 - _LEAST_RATE) * 0.5 * (1 + np.cos(np.pi * step / total))
        for group in self.optimizer.param_groups:
            group["lr"] = share * self.options.learning_rate
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(
            self.net(images, cells, torch.softmax(alpha, 1)), labels, label_smoothing=0.1
        )
        value = finite_loss(loss, f"evolve, weight step {step}")
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return value

    def _alpha_step(
        self,
        cells: list[list[Cell]],
        alpha: Tensor,
        tables: Mapping[str, Tensor],
        generation: int,
        step: int,
    ) -> tuple[float, dict[str, float]]:
        """Eq. 4 with the cost term; changes ``alpha`` in place."""
        place = (generation - self.options.warmup) * self.options.steps + step
        images, labels = self.data.training_batch(
            self.data.validation, self.options.batch, place, self.seed.child("alpha")
        )
        free = alpha.clone().requires_grad_()
        weights = torch.softmax(free, 1)
        for parameter in self.net.parameters():
            parameter.requires_grad_(False)
        try:
            loss = functional.cross_entropy(self.net(images, cells, weights), labels)
            value = finite_loss(loss, f"evolve, α step {place}")
            (gradient,) = torch.autograd.grad(loss, free, retain_graph=bool(tables))
        finally:
            for parameter in self.net.parameters():
                parameter.requires_grad_(True)
        square = float(gradient.square().mean())
        self.scale = square if place == 0 else 0.95 * self.scale + 0.05 * square
        direction = gradient / (self.scale**0.5 + 1e-12)
        expected: dict[str, float] = {}
        for limit in self.limits:
            table = tables[limit.metric]
            cost = (weights * table).sum() + self.costs[limit.metric].fixed
            (slope,) = torch.autograd.grad(cost / limit.value, free, retain_graph=True)
            excess = cost.item() / limit.value - 1
            multiplier = self.multipliers.get(limit.metric, 0.0)
            multiplier += self.options.constraint_rate * min(max(excess, -0.5), 0.5)
            multiplier = min(max(0.0, multiplier), self.options.constraint_most)
            self.multipliers[limit.metric] = multiplier
            # Both directions have a typical entry of 1, so that the multiplier is their ratio:
            # unbounded, the cost decides alone and the least costly cells win untrained.
            typical = float(slope.square().mean()) ** 0.5
            direction = direction + multiplier * slope / (typical + 1e-12)
            expected[limit.metric] = cost.item()
        alpha -= self.options.alpha_rate * direction
        alpha -= alpha.mean(1, keepdim=True) - free.detach().mean(1, keepdim=True)
        return value, expected

    def _write_back(self, sampled: list[list[Individual]], alpha: Tensor) -> None:
        """Eq. 5: fitness as a moving average of α; new cells enter, the least fit leave."""
        momentum = self.options.momentum
        for layer, row in enumerate(sampled):
            population = {individual.cell: individual for individual in self.populations[layer]}
            for individual, value in zip(row, alpha[layer].tolist(), strict=True):
                population[individual.cell] = Individual(
                    individual.cell,
                    momentum * individual.fitness + (1 - momentum) * value,
                    individual.trials + 1,
                )
            members = sorted(population.values(), key=lambda one: one.fitness, reverse=True)
            for individual in reversed(list(members)):
                if len(members) <= self.options.population:
                    break
                if not self.options.references or individual.cell not in REFERENCE_CELLS:
                    members.remove(individual)
            self.populations[layer] = members

    def _evolved(self, row: Sequence[Individual]) -> list[Individual]:
        """The fittest cells of a population, those tried first; references count apart."""
        tried = sorted(row, key=lambda one: (one.trials > 0, one.fitness, one.cell), reverse=True)
        if not self.options.references:
            return tried[: self.options.kept + len(REFERENCE_CELLS)]
        return [one for one in tried if one.cell not in REFERENCE_CELLS][: self.options.kept]

    @property
    def unchanged(self) -> float | None:
        """Share of the space's evolved cells that were in it ``patience`` generations ago."""
        if len(self.history) <= self.options.patience:
            return None
        then, now = self.history[0], self.history[-1]
        stayed = sum(len({*old} & {*new}) for old, new in zip(then, now, strict=True))
        return stayed / sum(map(len, now))

    @property
    def converged(self) -> bool:
        """Whether the space has stopped changing."""
        unchanged = self.unchanged
        return unchanged is not None and unchanged >= self.options.settled

    # -- what a person and the report want to see ---------------------------------------------

    def _log_line(
        self, losses: list[float], alpha_losses: list[float], expected: Mapping[str, float]
    ) -> dict[str, Any]:
        everyone = [individual for row in self.populations for individual in row]
        fitness = [individual.fitness for individual in everyone]
        operations = Counter(op.label for one in everyone for op in one.cell.edges)
        shares = np.array(list(operations.values())) / sum(operations.values())
        tops = [max(row, key=lambda one: one.fitness).cell for row in self.populations]
        return {
            "generation": self.generation,
            "train_loss": float(np.mean(losses)),
            "validation_loss": float(np.mean(alpha_losses)) if alpha_losses else None,
            "best_fitness": max(fitness),
            "median_fitness": float(np.median(fitness)),
            "reference_share": sum(cell in REFERENCE_CELLS for cell in tops) / len(tops),
            "distinct_cells": len({individual.cell for individual in everyone}),
            "operation_entropy_bits": float(-(shares * np.log2(shares)).sum()),
            "cells_tried": self.cells_tried,
            "unchanged": self.unchanged,
            "expected": dict(expected),
            "multipliers": dict(self.multipliers),
        }

    # -- state ---------------------------------------------------------------------------------

    def save(self, path: Path, digest: str, lines: int) -> None:
        tensors = {f"net/{name}": value for name, value in self.net.state_dict().items()}
        tensors |= {
            f"optimizer/{name}": value for name, value in optimizer_tensors(self.optimizer).items()
        }
        meta = {
            "digest": digest,
            "lines": lines,
            "generation": self.generation,
            "cells_tried": self.cells_tried,
            "scale": self.scale,
            "multipliers": self.multipliers,
            "history": self.history,
            "last": dict(self.last),
            "costs": {metric: cost.snapshot() for metric, cost in self.costs.items()},
            "populations": [
                [[one.cell.matrix(), one.fitness, one.trials] for one in row]
                for row in self.populations
            ],
        }
        Checkpoint(_KIND, tensors, meta).save(path)

    def restore(self, checkpoint: Checkpoint) -> None:
        self.net.load_state_dict(checkpoint.part("net"))
        restore_optimizer(self.optimizer, checkpoint.part("optimizer"))
        meta = checkpoint.meta
        self.generation = meta["generation"]
        self.cells_tried = meta["cells_tried"]
        self.scale = meta["scale"]
        self.multipliers = dict(meta["multipliers"])
        self.history = [[list(layer) for layer in space] for space in meta["history"]]
        self.last = meta["last"]
        for metric, snapshot in meta["costs"].items():
            self.costs[metric].restore(snapshot)
        self.populations = [
            [Individual(Cell.from_matrix(matrix), fit, trials) for matrix, fit, trials in row]
            for row in meta["populations"]
        ]

    def space(self) -> SearchSpace:
        """The fittest evolved cells that were tried, and the references."""
        layers, fitness = [], []
        for row in self.populations:
            kept = self._evolved(row)
            if self.options.references:
                by_cell = {one.cell: one for one in row}
                kept += [by_cell[cell] for cell in REFERENCE_CELLS]
            layers.append(tuple(one.cell for one in kept))
            fitness.append(tuple(round(one.fitness, 6) for one in kept))
        return SearchSpace(self.target, tuple(layers), tuple(fitness), self.reading)


def evolve_space(
    target: Skeleton,
    data: Data,
    costs: Mapping[str, Cost],
    limits: Sequence[Limit],
    *,
    options: EvolutionOptions | None = None,
    seed: Seed | None = None,
    reading: KernelReading = "kernel",
    provenance: Mapping[str, Any] | None = None,
    state: Path | None = None,
    log: Path | None = None,
    progress: Progress = silent,
    watch: Watch = unwatched,
) -> SearchSpace:
    """Evolves the cells of a skeleton under limits.

    Args:
        target: the skeleton at which costs are counted.
        data: on which fitness is learned (a proxy where it is not the target's own).
        costs: by metric; ``madds`` is always needed, ``latency_ms`` for such a limit.
        limits: upper bounds that all hold for the expected network.
        options: the open choices.
        seed: of everything random.
        reading: how fused depthwise operations are built.
        provenance: kept in the space, beside what is added here.
        state: where the state is saved as it goes, and resumed from if it is there.
        log: the JSON-lines log.
        progress: is told after every generation.
        watch: is given every new line of the log.

    Returns:
        The space: for each layer the fittest evolved cells and the reference family.

    Raises:
        UsageError: options that contradict each other, or a limit below the smallest network.
        AutospaceError: the loss is no longer a number.
    """
    options = options or EvolutionOptions()
    seed = (seed or Seed(0)).child("evolve")
    options.check()
    check_reachable(costs, limits)
    proxy = target.for_data(
        resolution=data.resolution, in_channels=data.channels, num_classes=data.num_classes
    )
    net = EvolvingNet(proxy, reading, seed.torch_generator("weights"))
    optimizer = torch.optim.SGD(
        weight_decay_groups(net.named_parameters(), options.weight_decay),
        lr=options.learning_rate,
        momentum=0.9,
        nesterov=True,
    )
    ceilings = [
        {"madds": 2 * max(costs["madds"].layer(layer, cell) for cell in REFERENCE_CELLS)}
        for layer in range(target.num_layers)
    ]
    run = _Evolution(
        options, target, data, costs, limits, seed, reading, net, optimizer,
        populations=[_first_population(options, seed, layer) for layer in range(target.num_layers)],
        ceilings=ceilings,
    )  # fmt: skip
    digest = content_hash(
        [target.to_json(), asdict(options), seed.root, reading, data.description,
         [[limit.to_json(), reference_cost(costs[limit.metric])] for limit in limits]]
    )  # fmt: skip
    saved = saved_state(state, _KIND, digest)
    if saved is not None:
        run.restore(saved)
    journal = Journal(log, keep=saved.meta["lines"] if saved else 0)
    clock = SaveClock()
    started_s, tried_before = time.monotonic(), run.cells_tried
    try:
        while run.generation < options.generations and not run.converged:
            line = run.run_generation()
            journal.add(line)
            watch(line)
            progress(run.generation / options.generations, _message(line, limits, options))
            if state is not None and clock.due():
                run.save(state, digest, len(journal.lines))
    except KeyboardInterrupt:
        if state is not None:
            run.save(state, digest, len(journal.lines))
        raise
    minutes = (time.monotonic() - started_s) / 60
    if run.generation < options.generations:
        progress(1.0, f"converged after {run.generation} generations")
    return replace(
        run.space(),
        provenance={
            **(provenance or {}),
            "limits": [limit.to_json() for limit in limits],
            "data": data.description,
            "target": f"{target.name} at {target.resolution}×{target.resolution}",
            "options": asdict(options),
            "seed": seed.root,
            "expected": run.last["expected"],
            "generations": run.generation,
            "converged": run.converged,
            "cells_tried": run.cells_tried,
            "cells_per_minute": round((run.cells_tried - tried_before) / max(minutes, 1e-9), 1),
        },
    )


def _first_population(options: EvolutionOptions, seed: Seed, layer: int) -> list[Individual]:
    """The references, then their mutations of growing distance; without them, random cells."""
    random = seed.generator("population", layer)
    if not options.references:
        drawn: dict[Cell, None] = {}
        while len(drawn) < options.population:
            drawn.setdefault(random_cell(random))
        return [Individual(cell) for cell in drawn]
    cells = dict.fromkeys(REFERENCE_CELLS)
    while len(cells) < options.population:
        members = list(cells)
        cells.setdefault(mutated(members[int(random.integers(len(members)))], random))
    return [Individual(cell) for cell in cells]


def _message(line: Mapping[str, Any], limits: Sequence[Limit], options: EvolutionOptions) -> str:
    parts = [f"generation {line['generation']}/{options.generations}"]
    if line["validation_loss"] is None:
        parts.append(f"warm-up, loss {line['train_loss']:.3f}")
    else:
        parts.append(f"loss {line['validation_loss']:.3f}")
        parts.append(f"fitness {line['best_fitness']:.2f}/{line['median_fitness']:.2f}")
        parts.append(f"{line['reference_share']:.0%} led by references")
        parts.append(f"{line['distinct_cells']} cells")
        for limit in limits:
            expected = format_cost(limit.metric, line["expected"][limit.metric])
            parts.append(f"E {expected} of {limit}")
    return " · ".join(parts)
