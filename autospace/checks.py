"""Checks that evolution, search and training share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from devices.errors import AutospaceError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_rules", "finite_loss", "hardly_learned"]

_HARDLY = 0.95
"""Of the loss of guessing: a supernet above it has learned hardly anything."""


def check_rules(what: str, rules: Iterable[tuple[bool, str]]) -> None:
    """Refuses the first broken rule.

    Args:
        what: whose options they are.
        rules: pairs of whether it holds and what to say.

    Raises:
        UsageError: names the option, its value and the rule.
    """
    for good, message in rules:
        if not good:
            raise UsageError(f"{what}: {message}")


def finite_loss(loss: Tensor, where: str, kept: str = "the saved state is kept") -> float:
    """The value of a loss.

    Args:
        loss: a scalar.
        where: which step of what.
        kept: what is left of the work.

    Raises:
        AutospaceError: it is no longer a number; training on would destroy what was saved.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise AutospaceError(f"{where}: the loss is {value}; lower the learning rate ({kept})")
    return value


def hardly_learned(loss: float | None, classes: int, so: str) -> str | None:
    """What to say of a supernet that does little better than guessing; None of any other.

    Args:
        loss: its held-out cross-entropy; None if there is none.
        classes: number of classes.
        so: what follows, and what to do.
    """
    guessing = math.log(classes)
    if loss is None or loss <= _HARDLY * guessing:
        return None
    return (
        f"the held-out loss is {loss:.3g}, and that of guessing {guessing:.3g}: hardly anything "
        f"was learned, so {so}"
    )
