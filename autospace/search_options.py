"""How a space is searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from autospace.checks import check_rules

__all__ = ["ConstraintForm", "SearchOptions", "UpdateRule"]

ConstraintForm = Literal["lagrangian", "mul#log", "add#linear"]
UpdateRule = Literal["two", "full_v2"]


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
        clipping: of their gradients, see `autospace.clipping`; 0 for none.
        label_smoothing: of the weights' loss.
        alpha_rate: size of an α step, relative to the running scale of its gradients.
        update_rule: ``two`` learns α from two sampled candidates a block; ``full_v2`` from all of
            them, which takes as many forward passes (both the paper's).
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
    clipping: float = 0.1
    label_smoothing: float = 0.1
    alpha_rate: float = 0.2
    update_rule: UpdateRule = "two"
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
                (self.weight_decay >= 0, f"weight_decay {self.weight_decay}: at least 0"),
                (self.clipping >= 0, f"clipping {self.clipping}: at least 0"),
                (0 <= self.label_smoothing < 1, f"label_smoothing {self.label_smoothing}: 0 to 1"),
                (self.alpha_rate > 0, f"alpha_rate {self.alpha_rate}: above 0"),
                (
                    self.constraint_rate >= 0 and self.constraint_weight >= 0,
                    f"constraint_rate {self.constraint_rate}, constraint_weight "
                    f"{self.constraint_weight}: at least 0",
                ),
                (
                    self.update_rule in get_args(UpdateRule),
                    f"update_rule {self.update_rule!r}: must be two or full_v2",
                ),
                (
                    self.constraint in get_args(ConstraintForm),
                    f"constraint {self.constraint!r}: must be lagrangian, mul#log or add#linear",
                ),
                (self.proposals >= 1, f"proposals {self.proposals}: at least 1"),
                (1 <= self.rounds <= 20, f"rounds {self.rounds}: 1 to 20"),
            ),
        )
