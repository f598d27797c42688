"""A training recipe."""

from __future__ import annotations

from dataclasses import dataclass

from autospace.checks import check_rules

__all__ = ["TrainOptions"]


@dataclass(frozen=True)
class TrainOptions:
    """The training recipe.

    Attributes:
        epochs: passes over the data.
        batch: images in a step.
        learning_rate: at its highest (SGD, Nesterov momentum 0.9), after a linear warm-up over
            the first twentieth, then a cosine to zero.
        weight_decay: of weights, not of batch norm and biases.
        clipping: of gradients, see `autospace.clipping`; 0 for none.
        label_smoothing: of the cross-entropy.
        holdout: keep the validation split out of the training and report accuracy on it.
    """

    epochs: int = 40
    batch: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 4e-5
    clipping: float = 0.1
    label_smoothing: float = 0.1
    holdout: bool = False

    def check(self) -> None:
        """Refuses impossible recipes.

        Raises:
            UsageError: names the option and the rule.
        """
        check_rules(
            "train",
            (
                (self.epochs >= 1, f"epochs {self.epochs}: at least 1"),
                (self.batch >= 2, f"batch {self.batch}: at least 2"),
                (
                    0 < self.learning_rate < float("inf"),
                    f"learning_rate {self.learning_rate}: above 0 and finite",
                ),
                (self.clipping >= 0, f"clipping {self.clipping}: at least 0"),
                (0 <= self.label_smoothing < 1, f"label_smoothing {self.label_smoothing}: 0 to 1"),
            ),
        )
