"""Active sampling: uncertain probes first, without a runtime."""

import numpy as np
import pytest

from latency import DeviceCard
from latency.acquisition import CANDIDATES, Acquisition
from latency.layers import LayerSpec
from latency.probes import ProbeSpec, sample_probe


@pytest.fixture(scope="module")
def acquisition(simulated_card: DeviceCard) -> Acquisition:
    rules = simulated_card.fusion_rules
    assert rules is not None
    return Acquisition(simulated_card, rules)


def test_the_most_uncertain_of_the_drawn_is_chosen(acquisition: Acquisition) -> None:
    chosen = acquisition.choose(np.random.default_rng(4))
    rng = np.random.default_rng(4)
    drawn = [sample_probe(rng, tiny=False) for _ in range(CANDIDATES)]
    assert chosen in drawn
    assert acquisition.uncertainty(chosen) == max(map(acquisition.uncertainty, drawn)) > 0


def test_the_same_generator_chooses_the_same(acquisition: Acquisition) -> None:
    first, second = (acquisition.choose(np.random.default_rng(9)) for _ in range(2))
    assert first == second


def test_what_is_far_from_everything_is_more_uncertain(acquisition: Acquisition) -> None:
    near = ProbeSpec("image", 14, 64, (LayerSpec("pointwise", 64, kernel=1),))
    far = ProbeSpec("image", 3, 2000, (LayerSpec("dense", 2048, kernel=7),))
    assert acquisition.uncertainty(far) > acquisition.uncertainty(near)
