"""What a card holds of each network."""

import numpy as np
import pytest

from devices.visits import Visit
from latency.card_rows import CardNetwork, CardVisit


def test_repeatability_compares_the_fastest_runs_of_two_halves() -> None:
    def network(*fastest: float) -> CardNetwork:
        visits = tuple(
            CardVisit(i, 0.0, Visit((ms, 9 * ms), 1.0, 1.0), np.zeros((0, 0), np.float32))
            for i, ms in enumerate(fastest)
        )
        return CardNetwork("a", "probe", "", (), (), (), visits)

    assert network(1.0, 1.0, 1.0).repeatability is None
    assert network(1.0, 1.1, 5.0, 1.3).repeatability == pytest.approx(0.1)
    assert network(1.1, 1.0, 5.0, 1.3).repeatability == pytest.approx(0.1)
