"""The open choices of the evolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autospace.checks import check_rules
from autospace.genotype import REFERENCE_CELLS

__all__ = ["EvolutionOptions"]

_MOST_CELLS = 500
"""In a population: there are only so many that compute something different."""


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
        single: share of the weight steps in which one cell of each stack computes alone, so that
            cells learn to work without the others of their stack, as they will in a network.
        batch: images in a step.
        learning_rate: of the weights (SGD, Nesterov momentum 0.9, cosine to a fifth).
        weight_decay: of the weights.
        clipping: of the weights' gradients, see `autospace.clipping`; 0 for none.
        alpha_rate: size of an α step, relative to the running scale of its gradients.
        momentum: of the values' moving average (Eq. 5): 0 overwrites.
        inherit: how far a mutant's first value is its parent's; at 0 it is the median of the
            population, so that it has to earn its place.
        settling: share of the generations, at the end, in which nothing mutates and every cell of
            the populations is stacked equally often: the fittest are trained and judged alike.
        study: weight steps between the evolution and its exam, as a multiple of the evolution's,
            each on a network of single cells.
        exam: batches of held-out data by which the last populations are judged in networks of
            single cells; 0 keeps the values that the evolution learned, without study.
        headroom: how many times a limit the expected network of the populations may cost. It has
            a cell in every block; a searched network leaves blocks out, and keeps the limit with
            dearer cells in the others.
        constraint: whether limits enter the fitness.
        kept: cells of each layer that enter the space.
        patience: generations that the space is compared over, to tell whether it still changes.
        settled: share of the space's cells that were in it ``patience`` generations ago at
            which it has converged, and the evolution stops; above 1 it never does.
        references: what becomes of the reference family. "stay": it never leaves the populations
            and is in every layer of the space, beside ``kept`` - 3 others, as in the release;
            "compete": it is in the space only where it is fit enough; "none": populations begin
            with random cells, and there are no anchors.
        fitness: "gradient" learns α (Eq. 4); "random" draws it, to see what learning is worth.
    """

    generations: int = 120
    warmup: int = 40
    population: int = 24
    sampled: int = 4
    anchors: int = 1
    tournament: int = 3
    steps: int = 4
    single: float = 0.5
    batch: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 4e-5
    clipping: float = 0.1
    alpha_rate: float = 0.05
    momentum: float = 0.5
    inherit: float = 0.5
    settling: float = 0.3
    study: float = 0.0
    exam: int = 40
    headroom: float = 1.5
    constraint: bool = True
    kept: int = 9
    patience: int = 20
    settled: float = 0.9
    references: Literal["stay", "compete", "none"] = "stay"
    fitness: Literal["gradient", "random"] = "gradient"

    @property
    def weight_steps(self) -> int:
        """Weight steps of the evolution."""
        return self.generations * self.steps

    @property
    def examined(self) -> bool:
        """Whether there is an exam, and so a study for it."""
        return self.exam > 0 and self.fitness == "gradient"

    @property
    def study_steps(self) -> int:
        """Weight steps between the evolution and its exam."""
        return round(self.study * self.weight_steps) if self.examined else 0

    def allowed_text(self, limit: str) -> str:
        """What the expected network may cost, in words.

        >>> EvolutionOptions(headroom=1.5).allowed_text("500M")
        '1.5 × 500M'
        """
        return limit if self.headroom == 1 else f"{self.headroom:g} × {limit}"

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
                (self.population <= _MOST_CELLS, f"population {self.population}: at most 500"),
                (self.steps >= 1, f"steps {self.steps}: at least 1"),
                (0 <= self.single <= 1, f"single {self.single}: from 0 to 1"),
                (self.batch >= 2, f"batch {self.batch}: at least 2"),
                (0 <= self.inherit <= 1, f"inherit {self.inherit}: from 0 to 1"),
                (0 <= self.settling < 1, f"settling {self.settling}: from 0 to below 1"),
                (0 <= self.study < float("inf"), f"study {self.study}: at least 0 and finite"),
                (self.exam >= 0, f"exam {self.exam}: at least 0"),
                (
                    1 <= self.headroom < float("inf"),
                    f"headroom {self.headroom}: at least 1 and finite",
                ),
                (0 <= self.momentum < 1, f"momentum {self.momentum}: from 0 to below 1"),
                (
                    0 < self.learning_rate < float("inf"),
                    f"learning_rate {self.learning_rate}: above 0 and finite",
                ),
                (self.clipping >= 0, f"clipping {self.clipping}: at least 0"),
                (self.kept >= 1, f"kept {self.kept}: at least 1"),
                (
                    self.references in ("stay", "compete", "none"),
                    f"references {self.references!r}: stay, compete or none",
                ),
                (
                    self.references != "stay" or self.kept > len(REFERENCE_CELLS),
                    f"kept {self.kept}: above {len(REFERENCE_CELLS)}, where the references stay",
                ),
                (self.patience >= 1, f"patience {self.patience}: at least 1"),
                (0 < self.settled <= 2, f"settled {self.settled}: above 0, at most 2"),
                (
                    self.fitness in ("gradient", "random"),
                    f"fitness {self.fitness!r}: gradient or random",
                ),
            ),
        )
