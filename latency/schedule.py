"""When a network is visited: early probes often, new probes all the time, extremes of time apart.

A profile that is limited by time must be worth something whenever it stops, so its plan does not
depend on how long it will last: a card of 3 minutes is what the first 3 minutes of 30 are. Each
round adds a generation of new probes; a generation is visited in the rounds at growing distances
(`AGES`) after its own, so that slow phases of seconds and of minutes hit some visits to a network
but not all of them. The caller's own networks are visited in every round at first, and then in
every fourth.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "AGES",
    "LIGHT_PROBES",
    "MAX_PROBES",
    "MIN_PROBES",
    "NETWORK_PERIOD",
    "PROBES_BY_ROUNDS",
    "SMALL_PERIOD",
    "UNTIMED_LIGHT_PROBES",
    "UNTIMED_NETWORK_PERIOD",
    "Schedule",
]

AGES = (0, 1, 2, 4, 8, 12)
"""Rounds after its own in which a probe is visited."""
GENERATION = 24
"""Probes added in one round."""
LIGHT_PROBES = 96
"""The first probes are quick ones, so that a short profile still sees many kinds of layers."""
NETWORK_PERIOD = 4
"""Of the later probes one in so many is built like a whole network, which takes some times as long
as another, and has some times as many kernels."""
SMALL_PERIOD = 8
"""Of all probes one in so many is built like a small whole network, where kernels are timed. What
a core's own caches hold in a network of 0.1 ms, the kernels of others find elsewhere: without them
a card of ten minutes was 8 to 20 % too high for such probes, each left out, and 27 to 36 % for
networks of a space."""
UNTIMED_LIGHT_PROBES = 48
UNTIMED_NETWORK_PERIOD = 2
"""The same where the runtime times no kernels. A network tells one number then, however long it is,
so that those which are like what will be asked about tell most."""
MAX_PROBES = 6000
"""More probes than this gain little, and a card should stay small enough to be mailed."""
MIN_PROBES = 6
"""Fewer probes than this cannot calibrate anything, however short the time."""
PROBES_BY_ROUNDS = 24
"""Probes of a profile that is limited by rounds instead of by time."""
_OWN_ROUNDS = 12
_OWN_PERIOD = 4
_PROBES_A_MINUTE = 8


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a round consists of.

    Attributes:
        minutes: how long the profile lasts; None when it is limited by rounds.
        rounds: how many rounds there are; None when it is limited by time.
        probes: how many probes there are at most; None for as many as there is time for.
        simulated: whether time stands still, so that it cannot limit anything.
        timed: whether the runtime times single kernels.
    """

    minutes: float | None
    rounds: int | None
    probes: int | None
    simulated: bool = False
    timed: bool = True

    @property
    def light_probes(self) -> int:
        """How many probes are quick ones, at first."""
        return LIGHT_PROBES if self.timed else UNTIMED_LIGHT_PROBES

    @property
    def network_period(self) -> int:
        """One in so many of the later probes is built like a whole network."""
        return NETWORK_PERIOD if self.timed else UNTIMED_NETWORK_PERIOD

    @property
    def fixed(self) -> bool:
        """Whether all probes are added in the first round and visited in every one."""
        return self.rounds is not None or self.simulated

    @property
    def most_probes(self) -> int:
        """Probes after which no more are added."""
        if self.probes is not None:
            return self.probes
        return PROBES_BY_ROUNDS if self.fixed else MAX_PROBES

    def new_probes(self, have: int) -> int:
        """How many probes a round adds when the profile has so many."""
        room = max(self.most_probes - have, 0)
        if self.fixed or self.minutes is None:
            return room
        generation = max(MIN_PROBES, min(GENERATION, round(_PROBES_A_MINUTE * self.minutes)))
        return min(generation, room)

    def is_due(self, age: int, is_probe: bool, growing: bool) -> bool:
        """Whether a network is visited in a round.

        Args:
            age: rounds since the one that it was added in; 0 or more.
            is_probe: whether it is a probe, or one of the caller's networks.
            growing: whether probes are still being added; else there is time for all of them.
        """
        if self.fixed or not growing:
            return True
        if is_probe:
            return age in AGES
        return age < _OWN_ROUNDS or age % _OWN_PERIOD == 0

    def is_over(self, age: int, is_probe: bool) -> bool:
        """Whether a network of that age has had its last visit of a profile that still grows."""
        return not self.fixed and is_probe and age > AGES[-1]
