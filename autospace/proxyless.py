"""ProxylessNAS: a supernet with binarised gates, searched under hard limits.

The paper's (Cai, Zhu, Han, arXiv 1812.00332): one active path, architecture parameters α learned
on held-out data, and the expected cost Σ_blocks Σ_k p_k · T[block, k] + fixed as a differentiable
term. α moves by the gradient of two sampled paths, which keep their common probability (rule
``two``, section 3.2.1), or by that of every candidate's binary gate (rule ``full_v2`` of the
paper's code, the full sum of Eq. 4).

This project's: the weight of the cost term is a multiplier, adapted until the expectation meets
the limit (augmented Lagrangian), instead of a fixed exponent or factor. While every limit has
room, the tightest one draws, so that the paths that are trained are of the size that will be
chosen; at the end α is tilted onto the limit exactly. α moves by gradients divided by one running
scale, so that loss and cost stay in one unit; the network is then chosen by an exact solver,
ranked on held-out data, and measured on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

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
from autospace.checks import finite_loss
from autospace.clipping import clip_gradients
from autospace.cost import Cost, CostTable, Limit, format_cost
from autospace.data import Data
from autospace.distributed import ALONE, Ranks, share_norms
from autospace.events import Journal, Progress, SaveClock, silent, undivided
from autospace.files import content_hash
from autospace.network import weight_decay_groups
from autospace.search_options import SearchOptions
from autospace.seeding import Seed
from autospace.select import check_limits
from autospace.space import Architecture, SearchSpace
from autospace.supernet import GatedNet
from autospace.tilt import tilted
from devices.errors import AutospaceError

__all__ = ["SearchRun", "SearchedNet", "search_space"]

_KIND = "autospace.search"
_LAST = 10


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
        multipliers: where those of the limits ended, one for each.
        scale: where the running mean square of α's gradients ended.
        alpha_steps: how many α steps were made.
        losses: cross-entropies of sampled paths on held-out batches, of the last α steps.
    """

    space: SearchSpace
    net: GatedNet
    alpha: Tensor
    tables: tuple[CostTable, ...]
    limits: tuple[Limit, ...]
    log: tuple[Mapping[str, Any], ...] = ()
    multipliers: tuple[float, ...] = ()
    scale: float = 0.0
    alpha_steps: int = 0
    losses: tuple[float, ...] = ()

    @property
    def held_out_loss(self) -> float | None:
        """The mean of the last losses; None where no α step was made."""
        return float(np.mean(self.losses)) if self.losses else None

    @property
    def probabilities(self) -> list[list[float]]:
        """For each block, one probability for each candidate."""
        rows = torch.softmax(self.alpha, 1)
        return [
            row[: len(blocks)].tolist()
            for row, blocks in zip(rows, self.net.candidates, strict=True)
        ]

    @property
    def expected(self) -> tuple[float, ...]:
        """The expected cost of each limit's metric."""
        alpha = self.alpha.double()
        return tuple(
            table.expected(torch.float64).from_logits(alpha).item() for table in self.tables
        )

    def architecture(self, choice: Sequence[int]) -> Architecture:
        """The network of a choice of candidates, in the target's skeleton."""
        return self.space.architecture(choice)


@dataclass
class SearchRun:
    """A search as it goes: everything that a checkpoint has to hold.

    Attributes:
        options: how to search.
        data: weights learn on its training split, α on its validation split.
        seed: of paths, batches and pairs.
        net: the supernet.
        optimizer: of its weights.
        limits: upper bounds for the expected network.
        tables: one for each limit.
        alpha: architecture parameters, shape ``(blocks, most candidates)``, -inf where none;
            changed in place.
        multipliers: one for each limit.
        scale: the running mean square of α's gradients.
        alpha_steps: how many were made.
        step: weight steps that were made.
        losses: on held-out batches, of the last α steps.
        saved_step: the step of the state that is on disk; None if there is none.
        family: limits that the weights shall serve: each path is drawn for one of them, from α
            tilted to keep it; empty for the given limits alone.
        ranks: the processes that share each batch.
    """

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
    losses: list[float] = field(default_factory=list)
    saved_step: int | None = None
    family: Sequence[Sequence[Limit]] = ()
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        self.expected = [table.expected(torch.float64) for table in self.tables]
        self.multipliers = self.multipliers or [0.0] * len(self.limits)
        self.weights = list(self.net.parameters())

    def run_step(self, proven: Callable[[], None] = lambda: None) -> dict[str, Any] | None:
        """One weight step, and an α step when it is due; returns a log line with the latter.

        Args:
            proven: is called when a finite loss has shown that the state before this step is
                good, and nothing has changed it yet: the time to save.

        Raises:
            AutospaceError: a loss is no longer a number.
        """
        loss = self.weight_step(proven)
        learning = self.step > self.options.warmup
        if not learning or self.step % self.options.alpha_every:
            return None
        alpha_loss, expected = self.alpha_step()
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

    def sampled_path(self) -> list[int]:
        """The candidates that the coming weight step trains."""
        random = self.seed.generator("path", self.step)
        alpha = self.alpha
        if self.family:
            limits = self.family[int(random.integers(len(self.family)))]
            alpha = torch.from_numpy(tilted(alpha.double().numpy(), self.tables, limits))
        rows = torch.softmax(alpha, 1).double().numpy()
        return [int(random.choice(len(row), p=row / row.sum())) for row in rows]

    def sampled_pairs(self) -> list[tuple[int, int]]:
        """Two different candidates a block by probability, for the coming α step.

        The first of each is active; which one is first goes by their shares.
        """
        random = self.seed.generator("pair", self.step)
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

    def weight_step(self, proven: Callable[[], None] = lambda: None) -> float:
        """Trains the weights of one sampled path; returns the loss.

        Args:
            proven: as for `run_step`.

        Raises:
            AutospaceError: the loss is no longer a number.
        """
        options = self.options
        images, labels = self.data.training_batch(
            self.data.train, options.batch, self.step, self.seed.child("train")
        )
        path = self.sampled_path()
        rate = options.learning_rate * 0.5 * (1 + np.cos(np.pi * self.step / options.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = max(rate, 1e-3 * options.learning_rate)
        self.net.train()
        images, labels, share = self.ranks.share(images, labels)
        loss = share * functional.cross_entropy(
            self.net(images, path), labels, label_smoothing=options.label_smoothing
        )
        value = self._finite(loss, f"weight step {self.step + 1}")
        proven()
        loss.backward()  # type: ignore[no-untyped-call]
        self.ranks.sum(weight.grad for weight in self.weights if weight.grad is not None)
        clip_gradients(self.weights, options.clipping)
        self.optimizer.step()
        # Now and not before the next backward: an α step in between has no use for them.
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return value

    def alpha_step(self) -> tuple[float, list[float]]:
        """Moves α by one held-out batch and by the limits.

        Returns:
            The loss, and the expected cost of each limit.

        Raises:
            AutospaceError: the loss is no longer a number.
        """
        options = self.options
        images, labels = self.data.training_batch(
            self.data.validation, options.batch, self.alpha_steps, self.seed.child("alpha")
        )
        pairs = self.sampled_pairs()
        path = [active for active, _ in pairs]
        asked: Sequence[Sequence[int]] = pairs
        if options.update_rule == "full_v2":
            asked = [range(len(blocks)) for blocks in self.net.candidates]
        gates = self.alpha.new_zeros(len(path), max(map(len, asked)), requires_grad=True)
        for weight in self.weights:
            weight.requires_grad_(False)
        images, labels, share = self.ranks.share(images, labels)
        try:
            loss = share * functional.cross_entropy(
                self.net.forward_gated(images, path, asked, gates), labels
            )
            value = self._finite(loss, f"α step after weight step {self.step}")
            (slope,) = torch.autograd.grad(loss, gates)
            self.ranks.sum([slope])
        finally:
            for weight in self.weights:
                weight.requires_grad_(True)
        if options.update_rule == "full_v2":
            self._move(torch.arange(self.alpha.shape[1]).expand_as(self.alpha), slope)
        else:
            self._move(torch.tensor(pairs), slope)
        self.alpha_steps += 1
        self.losses = [*self.losses, value][-_LAST:]
        return value, self._constrain(value)

    def _move(self, index: Tensor, slope: Tensor) -> None:
        """One step of α against the loss.

        Args:
            index: candidates in question, shape ``(blocks, count)``.
            slope: the loss's gradient by their binary gates, in the same shape.
        """
        own = self.alpha.gather(1, index)
        p = torch.softmax(own, 1)
        # ∂L/∂α_i ≈ Σ_j ∂L/∂g_j · p_j (δ_ij - p_i): Eq. 4, over all or (section 3.2.1) over two.
        direction = p * (slope - (slope * p).sum(1, keepdim=True))
        real = own.isfinite()
        square = float(direction[real].square().mean())
        self.scale = square if not self.alpha_steps else 0.95 * self.scale + 0.05 * square
        unit = self.scale**0.5 + 1e-12
        moved = own - self.options.alpha_rate * direction / unit
        # They keep their common probability; those not in question are as likely as before.
        moved += own.logsumexp(1, keepdim=True) - moved.logsumexp(1, keepdim=True)
        self.alpha.scatter_(1, index, moved)

    def _finite(self, loss: Tensor, where: str) -> float:
        kept = "nothing was saved yet"
        if self.saved_step is not None:
            kept = f"the state of step {self.saved_step} is kept"
        return finite_loss(self.ranks.total(loss), f"search, {where}", kept)

    def _constrain(self, loss: float) -> list[float]:
        """Moves α along the cost term; returns the expected cost of each limit."""
        options = self.options
        free = self.alpha.detach().to(torch.float64, copy=True).requires_grad_()
        expected, step = [], torch.zeros_like(self.alpha, dtype=torch.float64)
        with torch.no_grad():
            shares = [
                term.from_logits(free).item() / limit.value
                for limit, term in zip(self.limits, self.expected, strict=True)
            ]
        tightest = max(shares, default=0.0)
        for number, (limit, term) in enumerate(zip(self.limits, self.expected, strict=True)):
            cost = term.from_logits(free)
            relative = cost / limit.value
            (slope,) = torch.autograd.grad(relative, free)
            excess = relative.item() - 1
            if options.constraint == "lagrangian":
                binding = shares[number] == tightest
                # Below 0 it draws towards the limit, and only the tightest one, only up to it.
                floor = -np.inf if binding and excess < 0 else 0.0
                before = max(floor, self.multipliers[number])
                self.multipliers[number] = max(floor, before + options.constraint_rate * excess)
                # The quadratic part of the augmented Lagrangian, on the same side.
                force = excess if binding else max(0.0, excess)
                weight = (self.multipliers[number] + 4 * force) * slope.numel()
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
        self.alpha -= (options.alpha_rate * step).to(self.alpha.dtype)
        return expected

    def settle(self) -> None:
        """Puts the expectation onto the tightest limit: the last step, without its noise."""
        settled = tilted(self.alpha.double().numpy(), self.tables, self.limits, fill=True)
        self.alpha.copy_(torch.from_numpy(settled))

    @property
    def finite(self) -> bool:
        """Whether all weights, α and multipliers are numbers."""
        weights = all(bool(weight.isfinite().all()) for weight in self.weights)
        alpha = not bool((self.alpha.isnan() | self.alpha.isposinf()).any())
        return weights and alpha and bool(np.isfinite([self.scale, *self.multipliers]).all())

    def save(self, path: Path, digest: str, lines: int) -> None:
        """Writes the state, unless it is no longer one to go on from: the last good one stays.

        Args:
            path: the checkpoint.
            digest: of what the search depends on.
            lines: of the log so far.
        """
        if not self.finite:
            return
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
            "losses": self.losses,
            "scale": self.scale,
            "multipliers": self.multipliers,
            "tables": [table.to_json() for table in self.tables],
        }
        Checkpoint(_KIND, tensors, meta).save(path)
        self.saved_step = self.step

    def restore(self, checkpoint: Checkpoint) -> None:
        """Puts back what `save` wrote."""
        self.net.load_state_dict(checkpoint.part("net"))
        restore_optimizer(self.optimizer, checkpoint.part("optimizer"))
        self.alpha.copy_(checkpoint.tensors["alpha"])
        meta = checkpoint.meta
        self.step = self.saved_step = meta["step"]
        self.alpha_steps = meta["alpha_steps"]
        self.scale, self.multipliers = meta["scale"], list(meta["multipliers"])
        self.losses = list(meta.get("losses", ()))  # older states have none


def search_space(
    space: SearchSpace,
    data: Data,
    costs: Mapping[str, Cost],
    limits: Sequence[Limit],
    *,
    options: SearchOptions | None = None,
    seed: Seed | None = None,
    family: Sequence[Sequence[Limit]] = (),
    ranks: Ranks = ALONE,
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
        family: other limits, in the limits' order, that the weights shall serve as well.
        ranks: the processes that share each batch; only the first writes files.
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
    candidates = space.candidates_by_block
    # Compiled anew, a network may be read a little differently, also by another process.
    tables = tuple(_first_s(costs[limit.metric].table(candidates), ranks) for limit in limits)
    digest = content_hash(
        [space.hash, asdict(options), seed.root, data.description,
         [limit.to_json() for limit in limits],
         [[limit.to_json() for limit in member] for member in family]]
    )  # fmt: skip
    saved = saved_state(state, _KIND, digest)
    if saved is not None:
        before = tuple(CostTable.from_json(one) for one in saved.meta.get("tables", ()))
        if len(before) == len(tables) and all(map(CostTable.reads_like, before, tables)):
            tables = before
        else:
            saved = None
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
    ).to(data.accelerator)
    if ranks.size > 1:
        share_norms(net)
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
    run = SearchRun(
        options, data, seed, net, optimizer, limits, tables, alpha, family=family, ranks=ranks
    )
    if saved is not None:
        run.restore(saved)
    ranks.wait()  # until all have read what the first will write over
    journal = Journal(log if ranks.first else None, keep=saved.meta["lines"] if saved else 0)
    clock = SaveClock()

    def save() -> None:
        if state is not None and ranks.first:
            run.save(state, digest, len(journal.lines))

    def save_now_and_then() -> None:
        if clock.due():
            save()

    between_steps = True
    try:
        while run.step < options.steps:
            with undivided():
                between_steps = False
                line = run.run_step(save_now_and_then)
                if line is not None:
                    journal.add(line)
                between_steps = True
            if line is not None:
                progress(run.step / options.steps, _message(line, limits, options))
            elif run.step % 5 == 0:
                progress(run.step / options.steps, f"step {run.step}/{options.steps}")
    except KeyboardInterrupt:
        if between_steps:  # where Ctrl-C could not wait, half a step is left to be done again
            save()
        raise
    if not run.finite:
        raise AutospaceError(
            f"search, weight step {run.step}: the weights are no longer numbers; lower the "
            "learning rate"
        )
    save()
    if options.constraint == "lagrangian" and run.alpha_steps:
        run.settle()
    return SearchedNet(
        space, net, run.alpha, tables, tuple(limits), tuple(journal.lines),
        tuple(run.multipliers), run.scale, run.alpha_steps, tuple(run.losses),
    )  # fmt: skip


def _first_s(table: CostTable, ranks: Ranks) -> CostTable:
    """The first process's table, in all of them."""
    fixed, *flat = ranks.first_s([table.fixed, *(one for row in table.values for one in row)])
    rest = iter(flat)
    return replace(
        table, fixed=fixed, values=tuple(tuple(next(rest) for _ in row) for row in table.values)
    )


def _message(line: Mapping[str, Any], limits: Sequence[Limit], options: SearchOptions) -> str:
    parts = [f"step {line['step']}/{options.steps}", f"loss {line['validation_loss']:.3f}"]
    for limit in limits:
        expected = format_cost(limit.metric, line["expected"][limit.metric])
        multiplier = line["multipliers"][limit.metric]
        parts.append(f"E {expected} of {limit}, multiplier {multiplier:.2f}")
    return " · ".join(parts)
