"""What to measure next: of a few probes that are drawn, that of which the predictor knows least.

Active sampling by uncertainty (Settles, *Active Learning Literature Survey*, 2009, section 3.1):
the kernels of a candidate are told by the fusion rules learned so far, without compiling it, and
the candidate with the largest uncertainty as a part of its time is measured. Only every other probe
is chosen so. The others stay random draws, so that the errors on them say what the errors on
networks that nobody chose are like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latency.fusion_apply import apply_rules
from latency.predictor import Predictor
from latency.probes import ProbeSpec, build_probe, sample_probe

if TYPE_CHECKING:
    import numpy as np

    from latency.card import DeviceCard
    from latency.fusion import FusionRules

__all__ = ["FIRST_ROUND", "Acquisition"]

CANDIDATES = 4
"""Probes that are drawn for one that is chosen."""
FIRST_ROUND = 5
"""With less than that measured, a fit knows nothing about what it does not know."""


class Acquisition:
    """Chooses probes by what one card says.

    Args:
        card: with what was measured so far.
        rules: learned so far.
    """

    def __init__(self, card: DeviceCard, rules: FusionRules) -> None:
        self._predictor = Predictor.fit(card, quick=True)
        self._rules = rules
        self._batch = card.settings.batch

    def choose(self, rng: np.random.Generator) -> ProbeSpec:
        """The most uncertain of some random probes."""
        # Tiny ones would always be: what a call costs is most of what they take.
        drawn = [sample_probe(rng, tiny=False) for _ in range(CANDIDATES)]
        return max(drawn, key=self.uncertainty)

    def uncertainty(self, spec: ProbeSpec) -> float:
        """Deviation of the logarithm of a probe's time, were all kernels wrong the same way."""
        graph = apply_rules(self._rules, build_probe(spec, self._batch, seed=None))
        return self._predictor.uncertainty(graph)
