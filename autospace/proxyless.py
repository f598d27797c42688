"""ProxylessNAS: a supernet with binarised gates, searched under hard limits.

The paper's (Cai, Zhu, Han, arXiv 1812.00332): one active path, architecture parameters α learned
on held-out data from two sampled paths (rule ``two``), which keep their common probability, and
the expected cost Σ_blocks Σ_k p_k · T[block, k] + fixed as a differentiable term.

This project's: the weight of the cost term is a multiplier, adapted until the expectation keeps
the limit (augmented Lagrangian), instead of a fixed exponent or factor; α moves by gradients
divided by one running scale, so that loss and cost stay in one unit; the network is then chosen
by an exact solver, ranked on held-out data, and measured on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from autospace.cost import Cost, CostTable, Limit, format_cost
from autospace.data import Data
from autospace.events import Journal, Progress, SaveClock, silent
from autospace.files import content_hash
from autospace.network import weight_decay_groups
from autospace.seeding import Seed
from autospace.select import check_limits
from autospace.space import Architecture, SearchSpace
from autospace.supernet import GatedNet, PathPair

__all__ = ["SearchOptions", "SearchedNet", "search_space"]

_KIND = "autospace.search"
ConstraintForm = Literal["lagrangian", "mul#log", "add#linear"]


@dataclass(frozen=True)
class SearchOptions:
    """How the supernet is searched.

    Attributes:
        steps: weight steps in all.
        warmup: weight steps before α learns (uniform paths).
        alpha_every: weight steps between two α steps (5 in the paper).
        batch: images in a step.
        learning_rate: of the weights (SGD, Nesterov momentum 0.9, cosine).
        weight_decay: of the weights.
        label_smoothing: of the weights' loss.
        alpha_rate: size of an α step, relative to the running scale of its gradients.
        constraint: ``lagrangian`` adapts the weight of the cost term; ``mul#log`` and
            ``add#linear`` are the paper's and its code's fixed forms.
        constraint_rate: how fast the multiplier grows (``lagrangian``).
        constraint_weight: the exponent β (``mul#log``) or factor λ (``add#linear``).
        share_weights: whether the cells of a block share the weights of equal operations.
        proposals: networks that the exact solver proposes for ranking and measuring.
        rounds: how often at most the table is recalibrated by what was measured.
    """

    steps: int = 600
    warmup: int = 200
    alpha_every: int = 2
    batch: int = 64
    learning_rate: float = 0.05
    weight_decay: float = 4e-5
    label_smoothing: float = 0.1
    alpha_rate: float = 0.2
    constraint: ConstraintForm = "lagrangian"
    constraint_rate: float = 0.1
    constraint_weight: float = 0.6
    share_weights: bool = True
    proposals: int = 5
    rounds: int = 5

    def check(self) -> None:
        """Refuses options that contradict each other.

        Raises:
            UsageError: names the option and the rule.
        """
        check_rules(
            "search",
            (
                (self.steps >= 1, f"steps {self.steps}: at least 1"),
                (
                    0 <= self.warmup < self.steps,
                    f"warmup {self.warmup}: below steps ({self.steps})",
                ),
                (self.alpha_every >= 1, f"alpha_every {self.alpha_every}: at least 1"),
                (self.batch >= 2, f"batch {self.batch}: at least 2"),
                (
                    0 < self.learning_rate < float("inf"),
                    f"learning_rate {self.learning_rate}: above 0 and finite",
                ),
                (self.proposals >= 1, f"proposals {self.proposals}: at least 1"),
                (1 <= self.rounds <= 20, f"rounds {self.rounds}: 1 to 20"),
            ),
        )


@dataclass(frozen=True)
class SearchedNet:
    """A trained supernet with its architecture parameters.

    Attributes:
        space: what was searched.
        net: the supernet, on the data's skeleton.
        alpha: architecture parameters, shape ``(blocks, most candidates)``, -inf where none.
        tables: by limit, in the limits' order.
        limits: the limits.
        log: one line for each logged step.
    """

    space: SearchSpace
    net: GatedNet
    alpha: Tensor
    tables: tuple[CostTable, ...]
    limits: tuple[Limit, ...]
    log: tuple[Mapping[str, Any], ...] = ()

    @property
    def probabilities(self) -> list[list[float]]:
        """For each block, one probability for each candidate."""
        rows = torch.softmax(self.alpha, 1)
        return [
            row[: len(blocks)].tolist()
            for row, blocks in zip(rows, self.net.candidates, strict=True)
        ]

    def architecture(self, choice: Sequence[int]) -> Architecture:
        """The network of a choice of candidates, in the target's skeleton."""
        blocks = tuple(
            blocks[index] for blocks, index in zip(self.net.candidates, choice, strict=True)
        )
        return Architecture(self.space.skeleton, blocks, self.space.kernel_reading)


@dataclass
class _Search:
    """The state of a run: everything that a checkpoint has to hold."""

    options: SearchOptions
    data: Data
    seed: Seed
    net: GatedNet
    optimizer: torch.optim.Optimizer
    limits: Sequence[Limit]
    tables: Sequence[CostTable]
    alpha: Tensor
    multipliers: list[float] = field(default_factory=list)
    scale: float = 0.0
    alpha_steps: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        self.expected = [table.expected(torch.float64) for table in self.tables]
        self.multipliers = self.multipliers or [0.0] * len(self.limits)
        self.weights = list(self.net.parameters())

    def run_step(self) -> dict[str, Any] | None:
        """One weight step, and an α step when it is due; returns a log line with the latter."""
        loss = self._weight_step()
        self.step += 1
        learning = self.step > self.options.warmup
        if not learning or self.step % self.options.alpha_every:
            return None
        alpha_loss, expected = self._alpha_step()
        probabilities = torch.softmax(self.alpha, 1)
        entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(1).mean()
        return {
            "step": self.step,
            "train_loss": loss,
            "validation_loss": alpha_loss,
            "expected": {
                limit.metric: value for limit, value in zip(self.limits, expected, strict=True)
            },
            "multipliers": {
                limit.metric: value
                for limit, value in zip(self.limits, self.multipliers, strict=True)
            },
            "entropy": entropy.item(),
        }

    def _sampled_path(self, random: np.random.Generator) -> list[int]:
        rows = torch.softmax(self.alpha, 1).double().numpy()
        return [int(random.choice(len(row), p=row / row.sum())) for row in rows]

    def _weight_step(self) -> float:
        options = self.options
        images, labels = self.data.training_batch(
            self.data.train, options.batch, self.step, self.seed.child("train")
        )
        path = self._sampled_path(self.seed.generator("path", self.step))
        rate = options.learning_rate * 0.5 * (1 + np.cos(np.pi * self.step / options.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = max(rate, 1e-3 * options.learning_rate)
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(
            self.net(images, path), labels, label_smoothing=options.label_smoothing
        )
        value = finite_loss(loss, f"search, weight step {self.step}")
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return value

    def _alpha_step(self) -> tuple[float, list[float]]:
        options = self.options
        random = self.seed.generator("pair", self.step)
        images, labels = self.data.training_batch(
            self.data.validation, options.batch, self.alpha_steps, self.seed.child("alpha")
        )
        pairs = self._sampled_pairs(random)
        gates = torch.tensor([[1.0, 0.0]] * len(pairs), requires_grad=True)
        for weight in self.weights:
            weight.requires_grad_(False)
        try:
            loss = functional.cross_entropy(self.net.forward_two(images, pairs, gates), labels)
            value = finite_loss(loss, f"search, α step {self.step}")
            (slope,) = torch.autograd.grad(loss, gates)
        finally:
            for weight in self.weights:
                weight.requires_grad_(True)
        index = torch.tensor(pairs)
        pair_alpha = self.alpha.gather(1, index)
        p = torch.softmax(pair_alpha, 1)
        # ∂L/∂α_i ≈ Σ_j ∂L/∂g_j · p_j (δ_ij - p_i), over the two sampled paths (section 3.2.1).
        direction = p * (slope - (slope * p).sum(1, keepdim=True))
        square = float(direction.square().mean())
        self.scale = square if not self.alpha_steps else 0.95 * self.scale + 0.05 * square
        unit = self.scale**0.5 + 1e-12
        moved = pair_alpha - options.alpha_rate * direction / unit
        # The two keep their common probability; those not sampled are as likely as before.
        moved += pair_alpha.logsumexp(1, keepdim=True) - moved.logsumexp(1, keepdim=True)
        self.alpha.scatter_(1, index, moved)
        self.alpha_steps += 1
        return value, self._constrain(value)

    def _sampled_pairs(self, random: np.random.Generator) -> list[PathPair]:
        """Two different candidates a block by probability; the first is active with its share."""
        pairs = []
        rows = torch.softmax(self.alpha, 1).double().numpy()
        for row, blocks in zip(rows, self.net.candidates, strict=True):
            p = np.maximum(row[: len(blocks)], 1e-8)
            if len(p) == 1:
                pairs.append((0, 0))
                continue
            first, second = random.choice(len(p), 2, replace=False, p=p / p.sum())
            if random.random() >= p[first] / (p[first] + p[second]):
                first, second = second, first
            pairs.append((int(first), int(second)))
        return pairs

    def _constrain(self, loss: float) -> list[float]:
        """Moves α along the cost term; returns the expected cost of each limit."""
        options = self.options
        free = self.alpha.double().requires_grad_()
        expected, step = [], torch.zeros_like(self.alpha, dtype=torch.float64)
        for number, (limit, term) in enumerate(zip(self.limits, self.expected, strict=True)):
            cost = term.from_logits(free)
            relative = cost / limit.value
            (slope,) = torch.autograd.grad(relative, free)
            excess = relative.item() - 1
            if options.constraint == "lagrangian":
                self.multipliers[number] = max(
                    0.0, self.multipliers[number] + options.constraint_rate * excess
                )
                # The quadratic part of the augmented Lagrangian acts while the limit is exceeded.
                weight = (self.multipliers[number] + 4 * max(0.0, excess)) * slope.numel()
            elif options.constraint == "add#linear":
                weight = options.constraint_weight / (self.scale**0.5 + 1e-12)
            else:
                # d/dE of CE · (log E / log limit)^β, E and limit in µs or thousands (log > 0).
                scale = 1e3 if limit.metric == "latency_ms" else 1e-3
                log_cost = np.log(max(cost.item() * scale, 1.01))
                log_limit = np.log(max(limit.value * scale, 1.01))
                weight = (
                    loss
                    * options.constraint_weight
                    * (log_cost / log_limit) ** (options.constraint_weight - 1)
                    / log_limit
                    / relative.item()
                    / (self.scale**0.5 + 1e-12)
                )
            step += weight * slope
            expected.append(cost.item())
        self.alpha -= (options.alpha_rate * step).float()
        return expected

    def save(self, path: Path, digest: str, lines: int) -> None:
        tensors = {f"net/{name}": value for name, value in self.net.state_dict().items()}
        tensors |= {
            f"optimizer/{name}": value for name, value in optimizer_tensors(self.optimizer).items()
        }
        tensors["alpha"] = self.alpha
        meta = {
            "digest": digest,
            "lines": lines,
            "step": self.step,
            "alpha_steps": self.alpha_steps,
            "scale": self.scale,
            "multipliers": self.multipliers,
        }
        Checkpoint(_KIND, tensors, meta).save(path)

    def restore(self, checkpoint: Checkpoint) -> None:
        self.net.load_state_dict(checkpoint.part("net"))
        restore_optimizer(self.optimizer, checkpoint.part("optimizer"))
        self.alpha.copy_(checkpoint.tensors["alpha"])
        meta = checkpoint.meta
        self.step, self.alpha_steps = meta["step"], meta["alpha_steps"]
        self.scale, self.multipliers = meta["scale"], list(meta["multipliers"])


def search_space(
    space: SearchSpace,
    data: Data,
    costs: Mapping[str, Cost],
    limits: Sequence[Limit],
    *,
    options: SearchOptions | None = None,
    seed: Seed | None = None,
    state: Path | None = None,
    log: Path | None = None,
    progress: Progress = silent,
) -> SearchedNet:
    """Trains a supernet of the space and its architecture parameters under the limits.

    Args:
        space: the candidates of each block.
        data: weights learn on its training split, α on its validation split.
        costs: by metric, at the target.
        limits: upper bounds for the expected network.
        options: how to search.
        seed: of everything random.
        state: where the state is saved as it goes, and resumed from if it is there.
        log: the JSON-lines log.
        progress: is told after every step that is logged.

    Raises:
        UsageError: options that contradict each other, or a limit below the smallest network.
        AutospaceError: the loss is no longer a number.
    """
    options = options or SearchOptions()
    seed = (seed or Seed(0)).child("search")
    options.check()
    candidates = [space.candidates(index) for index in range(len(space.skeleton.blocks))]
    tables = tuple(costs[limit.metric].table(candidates) for limit in limits)
    check_limits(tables, limits)
    proxy = space.skeleton.for_data(
        resolution=data.resolution, in_channels=data.channels, num_classes=data.num_classes
    )
    net = GatedNet(
        proxy,
        candidates,
        space.kernel_reading,
        seed.torch_generator("weights"),
        share=options.share_weights,
    )
    optimizer = torch.optim.SGD(
        weight_decay_groups(net.named_parameters(), options.weight_decay),
        lr=options.learning_rate,
        momentum=0.9,
        nesterov=True,
    )
    alpha = torch.full((len(candidates), max(map(len, candidates))), -torch.inf)
    first = 1e-3 * torch.randn(alpha.shape, generator=seed.torch_generator("alpha"))
    for index, blocks in enumerate(candidates):
        alpha[index, : len(blocks)] = first[index, : len(blocks)]
    run = _Search(options, data, seed, net, optimizer, limits, tables, alpha)
    digest = content_hash(
        [space.hash, asdict(options), seed.root, data.description,
         [limit.to_json() for limit in limits], [table.values for table in tables]]
    )  # fmt: skip
    saved = saved_state(state, _KIND, digest)
    if saved is not None:
        run.restore(saved)
    journal = Journal(log, keep=saved.meta["lines"] if saved else 0)
    clock = SaveClock()
    try:
        while run.step < options.steps:
            line = run.run_step()
            if line is not None:
                journal.add(line)
                progress(run.step / options.steps, _message(line, limits, options))
            elif run.step % 5 == 0:
                progress(run.step / options.steps, f"step {run.step}/{options.steps}")
            if state is not None and clock.due():
                run.save(state, digest, len(journal.lines))
    except KeyboardInterrupt:
        if state is not None:
            run.save(state, digest, len(journal.lines))
        raise
    if state is not None:
        run.save(state, digest, len(journal.lines))
    return SearchedNet(space, net, run.alpha, tables, tuple(limits), tuple(journal.lines))


def _message(line: Mapping[str, Any], limits: Sequence[Limit], options: SearchOptions) -> str:
    parts = [f"step {line['step']}/{options.steps}", f"loss {line['validation_loss']:.3f}"]
    for limit in limits:
        expected = format_cost(limit.metric, line["expected"][limit.metric])
        multiplier = line["multipliers"][limit.metric]
        parts.append(f"E {expected} of {limit}, multiplier {multiplier:.2f}")
    return " · ".join(parts)
