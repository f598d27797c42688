"""What a search found, ready to be kept or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autospace.cost import Limit
from autospace.space import Architecture
from devices.errors import BudgetError

if TYPE_CHECKING:
    from autospace.verify import Chosen

__all__ = ["FamilyResult", "SearchResult"]


@dataclass(frozen=True)
class SearchResult:
    """The end of a search, ready to be kept or refused.

    Attributes:
        architecture: the network, with its costs in the provenance.
        chosen: every candidate and the verdict.
        limits: as resolved.
        warnings: to be repeated.
        expected: the expected cost of each limit's metric, where the search ended.
    """

    architecture: Architecture
    chosen: Chosen
    limits: tuple[Limit, ...]
    warnings: tuple[str, ...]
    expected: tuple[float, ...] = ()

    def check(self) -> None:
        """Raises when the limits are not kept.

        Raises:
            BudgetError: names the nearest network's costs.
        """
        if not self.chosen.kept:
            raise BudgetError(
                f"budget not kept: {self.nearest}; raise the limit or evolve a space for it"
            )

    @property
    def nearest(self) -> str:
        """The limits, and what the network that was found costs."""
        best = self.chosen.best
        parts = []
        for limit in self.limits:
            if limit.metric == "madds":
                parts.append(f"{limit} (nearest {best.madds / 1e6:.4g}M)")
            elif best.measured is not None:
                parts.append(
                    f"{limit} (nearest {best.measured.latency_ms:.3g} ms, bound "
                    f"{best.measured.upper_ms():.3g} ms, measured)"
                )
            else:
                parts.append(f"{limit} (nearest {best.predicted_ms or 0:.3g} ms, predicted)")
        return " and ".join(parts)


@dataclass(frozen=True)
class FamilyResult:
    """The end of a search for several limits.

    Attributes:
        members: tightest limits first; the last has the limits as given.
    """

    members: tuple[SearchResult, ...]

    @property
    def kept(self) -> bool:
        """Whether every member keeps its limits."""
        return all(member.chosen.kept for member in self.members)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Each once, to be repeated."""
        return tuple(dict.fromkeys(line for member in self.members for line in member.warnings))

    def check(self) -> None:
        """Raises when a member's limits are not kept.

        Raises:
            BudgetError: names the limits and the nearest networks' costs.
        """
        missed = [member.nearest for member in self.members if not member.chosen.kept]
        if missed:
            raise BudgetError(
                f"budget not kept by {len(missed)} of {len(self.members)} networks: "
                f"{'; '.join(missed)}; raise the limit or evolve a space for it"
            )

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The document ``pareto.json``.

        Args:
            names: of the members' architecture files.
        """
        return {
            "format": "autospace.pareto",
            "schema_version": 1,
            "kept": self.kept,
            "warnings": list(self.warnings),
            "members": [
                {
                    "architecture": name,
                    "limits": [limit.to_json() for limit in member.limits],
                    "params": member.architecture.params,
                    **member.chosen.best.to_json(),
                    "bound_ms": (
                        member.chosen.best.measured.upper_ms()
                        if member.chosen.best.measured
                        else None
                    ),
                    "candidates": [one.to_json() for row in member.chosen.rounds for one in row],
                }
                for name, member in zip(names, self.members, strict=True)
            ],
        }
