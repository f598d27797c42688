"""Differentiable evolution of the search space (AutoSpace, arXiv 2103.11833, figure 2).

The paper's: a population of cells with a fitness for each layer; K cells sampled by tournament
and mutated; their weighted sum trained on the data (Eq. 3), α by gradient (Eq. 4), fitness
written back (Eq. 5); a reference family in the population; a cost term in the fitness.

This project's choices, where the paper's numbers are not public: softmax weights; half of the
sampled cells are mutated, by one gene, and begin between their parent and the median; α learns on
the validation split by natural gradient steps in units of one running scale for all α; a cell
dearer than twice the dearest reference is rejected; the least fit cell that is not a reference
makes room. A cell's *value* is the moving average of its α; its *fitness* is the value less the
price of its cost, and the prices are the multipliers at which the expected network of the
populations keeps every limit, times the headroom (`autospace.price`). What is known exactly is so
not learned from noisy steps, and a price that was once too high leaves no trace. At the end the
last populations sit an exam (`autospace.exam`), which decides their values; before it the shared
weights may go on learning in networks of single cells (the study).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from autospace.checkpoint import (
    Checkpoint,
    optimizer_tensors,
    restore_optimizer,
    saved_state,
)
from autospace.checks import finite_loss
from autospace.clipping import clip_gradients
from autospace.cost import Cost, Limit, check_reachable, format_cost, reference_cost
from autospace.data import Data
from autospace.distributed import ALONE, Ranks, share_norms
from autospace.events import (
    Journal,
    Progress,
    SaveClock,
    Watch,
    silent,
    undivided,
    unwatched,
)
from autospace.evolution_options import EvolutionOptions
from autospace.exam import examine
from autospace.files import content_hash
from autospace.genotype import REFERENCE_CELLS, Cell
from autospace.layer_function import LayerFunction, layer_function
from autospace.mutation import mutated, random_cell
from autospace.network import weight_decay_groups
from autospace.operations import KernelReading
from autospace.price import expected_costs, fair_prices, fitness
from autospace.seeding import Seed
from autospace.skeleton import Skeleton
from autospace.space import SearchSpace
from autospace.supernet import EvolvingNet

__all__ = ["Individual", "evolve_space"]

_KIND = "autospace.evolution"
_LEAST_RATE = 0.2
_LAST_LOSSES = 10
_SPREAD = 3.0
"""Standard deviation of the values after the exam: prices then trade off sharply."""


@dataclass(frozen=True)
class Individual:
    """A cell in a population.

    Attributes:
        cell: the cell.
        value: moving average of its α: what it is worth, whatever it costs.
        trials: generations in which it was stacked with α learning.
    """

    cell: Cell
    value: float = 0.0
    trials: int = 0


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
    prices: NDArray[np.float64] | None = None
    scale: float = 0.0
    generation: int = 0
    studied: int = 0
    """Steps of the study that are done."""
    cells_tried: int = 0
    last: Mapping[str, Any] = field(default_factory=dict)
    ranks: Ranks = ALONE
    """The processes that share each batch; all of them sample the same cells."""
    history: list[list[list[str]]] = field(default_factory=list)
    """The cells of the space after each of the last generations, by layer, the oldest first."""

    # -- one generation ---------------------------------------------------------------------

    def run_generation(self) -> dict[str, Any]:
        """Samples, trains and writes back once; returns the log line."""
        options, generation = self.options, self.generation
        learning = generation >= options.warmup
        sampled = [self._sample(layer) for layer in range(self.target.num_layers)]
        cells = [[individual.cell for individual in row] for row in sampled]
        self._prepare(cells)
        alpha = torch.tensor([[individual.value for individual in row] for row in sampled])
        penalty = self._penalties(cells)
        losses: list[float] = []
        alpha_losses: list[float] = []
        for step in range(options.steps):
            weights = torch.softmax(alpha - penalty, 1)
            place = generation * options.steps + step
            losses.append(self._weight_step(cells, weights, place, options.single))
            if learning:
                loss = self._alpha_step(cells, alpha, penalty, generation, step)
                alpha_losses.append(loss)
        if learning:
            if options.fitness == "random":
                drawn = self.seed.generator("random fitness", generation).standard_normal(
                    alpha.shape
                )
                alpha = torch.from_numpy(drawn).float()
            self._write_back(sampled, alpha)
            self.cells_tried += sum(map(len, sampled))
            space = [[one.cell.hash for one in self._kept(i)] for i in range(len(sampled))]
            self.history = [*self.history[-options.patience :], space]
        self.generation += 1
        line = self._log_line(losses, alpha_losses)
        self.last = line
        return line

    # -- cost and fitness -----------------------------------------------------------------------

    def _prepare(self, cells: Sequence[Sequence[Cell]]) -> None:
        """Announces cells, so that their latencies are worked out together."""
        for cost in self.costs.values():
            cost.prepare(
                (block, cell.fused())
                for layer, row in enumerate(cells)
                for block in cost.blocks_of(layer)
                for cell in row
            )

    def _shares(self, layer: int, cells: Sequence[Cell]) -> NDArray[np.float64]:
        """Costs as shares of what the limits allow, shape ``(limits, cells)``.

        Cells cost what they will in a network: runs of depthwise convolutions fused.
        """
        return np.array(
            [
                [
                    self.costs[limit.metric].layer(layer, cell.fused()) / self._allowed(limit)
                    for cell in cells
                ]
                for limit in self.limits
            ]
        ).reshape(len(self.limits), len(cells))

    def _allowed(self, limit: Limit) -> float:
        """What the expected network may cost."""
        return self.options.headroom * limit.value

    def _penalties(self, cells: Sequence[Sequence[Cell]]) -> Tensor:
        """Price times cost, shape ``(layers, K)``."""
        prices = self._prices()
        rows = [prices @ self._shares(layer, row) for layer, row in enumerate(cells)]
        return torch.from_numpy(np.stack(rows)).float()

    def _prices(self) -> NDArray[np.float64]:
        return np.zeros(len(self.limits)) if self.prices is None else self.prices

    def _fitness(self, layer: int, row: Sequence[Individual]) -> list[float]:
        """Value less the price of the cost, of some cells of a layer."""
        values = np.array([one.value for one in row])
        found = fitness(values, self._shares(layer, [one.cell for one in row]), self._prices())
        return [float(x) for x in found]

    def _ranked(self, layer: int, row: Sequence[Individual]) -> list[Individual]:
        """Some cells of a layer, the fittest first."""
        by_fitness = zip(self._fitness(layer, row), row, strict=True)
        return [one for _, one in sorted(by_fitness, key=lambda p: (p[0], p[1].cell), reverse=True)]

    def _expect(self) -> dict[str, float]:
        """Sets the prices; returns what the expected network of the populations costs."""
        self._prepare([[one.cell for one in row] for row in self.populations])
        values = [np.array([one.value for one in row]) for row in self.populations]
        shares = [
            self._shares(layer, [one.cell for one in row])
            for layer, row in enumerate(self.populations)
        ]
        fixed = np.array([self.costs[one.metric].fixed / self._allowed(one) for one in self.limits])
        # While all values are alike the cheapest cells would lead, and they alone would be trained.
        if self.options.constraint and self.generation > self.options.warmup:
            self.prices = fair_prices(values, shares, fixed, self._prices())
        spent = expected_costs(values, shares, fixed, self._prices())
        return {
            limit.metric: float(share) * self._allowed(limit)
            for limit, share in zip(self.limits, spent, strict=True)
        }

    # -- sampling -------------------------------------------------------------------------------

    def _sample(self, layer: int) -> list[Individual]:
        """K different cells: references, then tournament winners, every second of them mutated.

        While the population settles, those that were tried least instead.
        """
        options = self.options
        random = self.seed.generator("sample", self.generation, layer)
        population = self.populations[layer]
        by_cell = {individual.cell: individual for individual in population}
        anchors = options.anchors if self.generation >= options.warmup else options.sampled // 2
        first = self.generation % len(REFERENCE_CELLS)
        mutating = self.generation < options.generations * (1 - options.settling)
        chosen = [
            by_cell[REFERENCE_CELLS[(first + place) % len(REFERENCE_CELLS)]]
            for place in range(min(max(anchors, options.anchors), len(REFERENCE_CELLS)))
            if options.references != "none"
        ]
        while len(chosen) < options.sampled:
            taken = {individual.cell for individual in chosen}
            rest = [individual for individual in population if individual.cell not in taken]
            if not mutating:
                order = random.permutation(len(rest))
                chosen.append(min((rest[int(i)] for i in order), key=lambda one: one.trials))
                continue
            entrants = random.choice(len(rest), min(options.tournament, len(rest)), replace=False)
            parent = self._ranked(layer, [rest[int(i)] for i in entrants])[0]
            child = None
            if len(chosen) % 2 == 1:
                known = {self._function(layer, one.cell) for one in (*population, *chosen)}
                child = self._child(parent, known, layer, random)
            chosen.append(child or parent)
        return chosen

    def _child(
        self, parent: Individual, known: set[LayerFunction], layer: int, random: np.random.Generator
    ) -> Individual | None:
        """A mutation that computes something new, not too dear; None when ten tries find none."""
        inherit = self.options.inherit
        usual = float(np.median([one.value for one in self.populations[layer]]))
        for _ in range(10):
            cell = mutated(parent.cell, random)
            if self._function(layer, cell) not in known and self._affordable(cell, layer):
                return Individual(cell, inherit * parent.value + (1 - inherit) * usual)
        return None

    def _function(self, layer: int, cell: Cell) -> LayerFunction:
        return layer_function(self.target, layer, cell, self.reading)

    def _affordable(self, cell: Cell, layer: int) -> bool:
        # Multiply-adds stand in for latency here: a new cell is compiled only once it is stacked.
        return self.costs["madds"].layer(layer, cell.fused()) <= self.ceilings[layer]["madds"]

    # -- learning -----------------------------------------------------------------------------

    def _weight_step(
        self, cells: list[list[Cell]], weights: Tensor, step: int, single: float
    ) -> float:
        images, labels = self.data.training_batch(
            self.data.train, self.options.batch, step, self.seed.child("train")
        )
        total = self.options.weight_steps + self.options.study_steps
        # Not to zero: the shared weights have to follow each new stack of cells to the end.
        share = _LEAST_RATE + (1 - _LEAST_RATE) * 0.5 * (1 + np.cos(np.pi * step / total))
        for group in self.optimizer.param_groups:
            group["lr"] = share * self.options.learning_rate
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        random = self.seed.generator("single", step)
        if random.random() < single:
            cells = [[row[int(random.integers(len(row)))]] for row in cells]
            weights = torch.ones(len(cells), 1)
        images, labels, share = self.ranks.share(images, labels)
        loss = share * functional.cross_entropy(
            self.net(images, cells, weights), labels, label_smoothing=0.1
        )
        value = finite_loss(self.ranks.total(loss), f"evolve, weight step {step}")
        loss.backward()  # type: ignore[no-untyped-call]
        self.ranks.sum(own.grad for own in self.net.parameters() if own.grad is not None)
        clip_gradients(self.net.parameters(), self.options.clipping)
        self.optimizer.step()
        return value

    def _alpha_step(
        self,
        cells: list[list[Cell]],
        alpha: Tensor,
        penalty: Tensor,
        generation: int,
        step: int,
    ) -> float:
        """Eq. 4; changes ``alpha`` in place."""
        place = (generation - self.options.warmup) * self.options.steps + step
        images, labels = self.data.training_batch(
            self.data.validation, self.options.batch, place, self.seed.child("alpha")
        )
        images, labels, share = self.ranks.share(images, labels)
        weights = torch.softmax(alpha - penalty, 1).requires_grad_()
        for parameter in self.net.parameters():
            parameter.requires_grad_(False)
        try:
            loss = share * functional.cross_entropy(self.net(images, cells, weights), labels)
            value = finite_loss(self.ranks.total(loss), f"evolve, α step {place}")
            (slope,) = torch.autograd.grad(loss, weights)
            self.ranks.sum([slope])
        finally:
            for parameter in self.net.parameters():
                parameter.requires_grad_(True)
        alpha -= self.options.alpha_rate * self._natural(slope)
        return value

    def _natural(self, slope: Tensor) -> Tensor:
        """The natural gradient with respect to α, in units of its own running scale.

        With w a softmax it is ∂/∂w, up to a constant a layer: what a cell is judged by does not
        depend on the weight that it has. The mean of each layer's step is 0.

        Args:
            slope: ∂/∂w of the loss, shape ``(layers, K)``.
        """
        step: Tensor = slope - slope.mean(1, keepdim=True)
        square = float(step.square().mean())
        self.scale = 0.95 * self.scale + 0.05 * square if self.scale else square
        return step.div(self.scale**0.5 + 1e-12)

    def _write_back(self, sampled: list[list[Individual]], alpha: Tensor) -> None:
        """Eq. 5: values as moving averages of α; new cells enter, the least fit leave."""
        momentum = self.options.momentum
        for layer, row in enumerate(sampled):
            population = {individual.cell: individual for individual in self.populations[layer]}
            for individual, value in zip(row, alpha[layer].tolist(), strict=True):
                population[individual.cell] = Individual(
                    individual.cell,
                    momentum * individual.value + (1 - momentum) * value,
                    individual.trials + 1,
                )
            members = self._ranked(layer, list(population.values()))
            for individual in reversed(list(members)):
                if len(members) <= self.options.population:
                    break
                if self.options.references == "none" or individual.cell not in REFERENCE_CELLS:
                    members.remove(individual)
            self.populations[layer] = members

    def _kept(self, layer: int) -> list[Individual]:
        """The cells of a population that enter the space: the fittest, those tried first."""
        ranked = self._ranked(layer, self.populations[layer])
        tried = sorted(ranked, key=lambda one: one.trials == 0)
        if self.options.references != "stay":
            return tried[: self.options.kept]
        by_cell = {one.cell: one for one in ranked}
        family = [by_cell[cell] for cell in REFERENCE_CELLS]
        others = [one for one in tried if one not in family]
        return others[: self.options.kept - len(family)] + family

    @property
    def unchanged(self) -> float | None:
        """Share of the space's cells that were in it ``patience`` generations ago."""
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

    @property
    def share_done(self) -> float:
        """Of the weight steps; those that an early end leaves out are as good as done."""
        options = self.options
        evolved = options.weight_steps if self.converged else self.generation * options.steps
        return (evolved + self.studied) / (options.weight_steps + options.study_steps)

    def study(self) -> float:
        """One weight step on a network of single cells of the last populations; its loss."""
        cells = [[one.cell for one in row] for row in self.populations]
        place = self.options.weight_steps + self.studied
        loss = self._weight_step(cells, torch.ones(0), place, single=1.0)
        self.studied += 1
        return loss

    def examine(self, progress: Progress) -> None:
        """Replaces every value by what the exam says, in standard deviations of all effects."""
        cells = [[one.cell for one in row] for row in self.populations]
        effects = examine(
            self.net, cells, self.data, batches=self.options.exam, batch=self.options.batch,
            seed=self.seed, ranks=self.ranks,
            progress=lambda share: progress(1.0, f"exam, {share:.0%}"),
        )  # fmt: skip
        unit = float(np.std(np.concatenate(effects))) / _SPREAD + 1e-12
        self.populations = [
            [
                replace(one, value=float(-effect) / unit, trials=max(one.trials, 1))
                for one, effect in zip(row, own, strict=True)
            ]
            for row, own in zip(self.populations, effects, strict=True)
        ]
        self.last = {**self.last, "expected": self._expect()}

    # -- what a person and the report want to see ---------------------------------------------

    def _log_line(self, losses: list[float], alpha_losses: list[float]) -> dict[str, Any]:
        expected = self._expect()
        everyone = [individual for row in self.populations for individual in row]
        every_fitness = [self._fitness(i, row) for i, row in enumerate(self.populations)]
        flat = [value for row in every_fitness for value in row]
        operations = Counter(op.label for one in everyone for op in one.cell.edges)
        shares = np.array(list(operations.values())) / sum(operations.values())
        tops = [
            row[int(np.argmax(own))].cell
            for row, own in zip(self.populations, every_fitness, strict=True)
        ]
        return {
            "generation": self.generation,
            "train_loss": float(np.mean(losses)),
            "validation_loss": float(np.mean(alpha_losses)) if alpha_losses else None,
            "best_fitness": max(flat),
            "median_fitness": float(np.median(flat)),
            "reference_share": sum(cell in REFERENCE_CELLS for cell in tops) / len(tops),
            "distinct_cells": len({individual.cell for individual in everyone}),
            "operation_entropy_bits": float(-(shares * np.log2(shares)).sum()),
            "cells_tried": self.cells_tried,
            "unchanged": self.unchanged,
            "expected": expected,
            "allowed": {limit.metric: self._allowed(limit) for limit in self.limits},
            "prices": {
                limit.metric: float(price)
                for limit, price in zip(self.limits, self._prices(), strict=True)
            },
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
            "studied": self.studied,
            "cells_tried": self.cells_tried,
            "scale": self.scale,
            "prices": self._prices().tolist(),
            "history": self.history,
            "last": dict(self.last),
            "costs": {metric: cost.snapshot() for metric, cost in self.costs.items()},
            "populations": [
                [[one.cell.matrix(), one.value, one.trials] for one in row]
                for row in self.populations
            ],
        }
        Checkpoint(_KIND, tensors, meta).save(path)

    def restore(self, checkpoint: Checkpoint) -> None:
        self.net.load_state_dict(checkpoint.part("net"))
        restore_optimizer(self.optimizer, checkpoint.part("optimizer"))
        meta = checkpoint.meta
        self.generation = meta["generation"]
        self.studied = meta["studied"]
        self.cells_tried = meta["cells_tried"]
        self.scale = meta["scale"]
        self.prices = np.array(meta["prices"], dtype=np.float64)
        self.history = [[list(layer) for layer in space] for space in meta["history"]]
        self.last = meta["last"]
        for metric, snapshot in meta["costs"].items():
            self.costs[metric].restore(snapshot)
        self.populations = [
            [Individual(Cell.from_matrix(matrix), value, trials) for matrix, value, trials in row]
            for row in meta["populations"]
        ]

    def space(self) -> SearchSpace:
        """The cells that are kept, the fittest first."""
        kept = [self._kept(layer) for layer in range(len(self.populations))]
        return SearchSpace(
            self.target,
            tuple(tuple(one.cell for one in row) for row in kept),
            tuple(
                tuple(round(x, 6) for x in self._fitness(layer, row))
                for layer, row in enumerate(kept)
            ),
            self.reading,
        )


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
    ranks: Ranks = ALONE,
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
        limits: upper bounds of the networks that the space is for; times ``options.headroom``
            all of them hold for the expected network.
        options: the open choices.
        seed: of everything random.
        reading: how fused depthwise operations are built.
        provenance: kept in the space, beside what is added here.
        ranks: the processes that share each batch; only the first writes files.
        state: where the state is saved as it goes, and resumed from if it is there.
        log: the JSON-lines log.
        progress: is told after every generation.
        watch: is given every new line of the log.

    Returns:
        The space: for each layer the cells that are kept, the fittest first.

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
    net = EvolvingNet(proxy, reading, seed.torch_generator("weights")).to(data.accelerator)
    if ranks.size > 1:
        share_norms(net)
    optimizer = torch.optim.SGD(
        weight_decay_groups(net.named_parameters(), options.weight_decay),
        lr=options.learning_rate,
        momentum=0.9,
        nesterov=True,
    )
    ceilings = [
        {"madds": 2 * max(costs["madds"].layer(layer, cell.fused()) for cell in REFERENCE_CELLS)}
        for layer in range(target.num_layers)
    ]
    run = _Evolution(
        options, target, data, costs, limits, seed, reading, net, optimizer,
        populations=[
            _first_population(options, seed, layer, target, reading)
            for layer in range(target.num_layers)
        ],
        ceilings=ceilings, ranks=ranks,
    )  # fmt: skip
    digest = content_hash(
        [target.to_json(), asdict(options), seed.root, reading, data.description,
         [[limit.to_json(), reference_cost(costs[limit.metric])] for limit in limits]]
    )  # fmt: skip
    saved = saved_state(state, _KIND, digest)
    if saved is not None:
        run.restore(saved)
    ranks.wait()  # until all have read what the first will write over
    journal = Journal(log if ranks.first else None, keep=saved.meta["lines"] if saved else 0)
    clock = SaveClock()

    def save() -> None:
        if state is not None and ranks.first:
            run.save(state, digest, len(journal.lines))

    whole = True
    started_s, tried_before = time.monotonic(), run.cells_tried
    try:
        while run.generation < options.generations and not run.converged:
            with undivided():
                whole = False
                line = run.run_generation()
                journal.add(line)
                whole = True
            watch(line)
            progress(run.share_done, _message(line, limits, options))
            if clock.due():
                save()
        minutes, tried = (time.monotonic() - started_s) / 60, run.cells_tried - tried_before
        while run.studied < options.study_steps:
            with undivided():
                whole = False
                loss = run.study()
                whole = True
            if run.studied % options.steps == 0:
                share = run.studied / options.study_steps
                progress(run.share_done, f"study of single cells, {share:.0%} · loss {loss:.3f}")
            if clock.due():
                save()
    except KeyboardInterrupt:
        if whole:  # where Ctrl-C could not wait, a part of a generation is left to be done again
            save()
        raise
    save()
    # The state stays that of before the exam: interrupted in it, it is sat again, alike.
    if options.examined:
        run.examine(progress)
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
            "validation_loss": _usual_loss(journal.lines),
            "generations": run.generation,
            "converged": run.converged,
            "cells_tried": run.cells_tried,
            "cells_per_minute": round(tried / max(minutes, 1e-9), 1) if tried else None,
        },
    )


def _usual_loss(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Median of the last held-out losses; None where there was none."""
    losses = [line["validation_loss"] for line in lines[-_LAST_LOSSES:]]
    known = [loss for loss in losses if loss is not None]
    return float(np.median(known)) if known else None


def _first_population(
    options: EvolutionOptions, seed: Seed, layer: int, target: Skeleton, reading: KernelReading
) -> list[Individual]:
    """The references, then their mutations of growing distance; without them, random cells."""
    random = seed.generator("population", layer)
    alone = options.references == "none"
    cells = [random_cell(random)] if alone else list(REFERENCE_CELLS)
    known = {layer_function(target, layer, cell, reading) for cell in cells}
    while len(cells) < options.population:
        parent = cells[int(random.integers(len(cells)))]
        cell = random_cell(random) if alone else mutated(parent, random)
        function = layer_function(target, layer, cell, reading)
        if function not in known:
            known.add(function)
            cells.append(cell)
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
            parts.append(f"E {expected} of {options.allowed_text(str(limit))}")
    return " · ".join(parts)
