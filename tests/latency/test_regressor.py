"""The family regressor: follows the roofline outside, and knows what it would not have known."""

import math

import numpy as np
import pytest
from test_roofline import convolution

from latency.regressor import FamilyRegressor

CHANNELS = (8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128)
SIDES = (7, 14, 28, 56)


def truth(channels: int, side: int) -> float:
    """A roofline with a dent: unaligned channels are half as fast."""
    work = channels**2 * side**2 * 9 / 1e6
    return 0.004 + 0.02 * work * (1.0 if channels % 16 == 0 else 2.0)


@pytest.fixture(scope="module")
def fitted() -> FamilyRegressor:
    places = [(c, s) for c in CHANNELS for s in SIDES]
    return FamilyRegressor.fit(
        [convolution(c, s) for c, s in places], [truth(c, s) for c, s in places]
    )


def test_it_learns_what_the_roofline_cannot(fitted: FamilyRegressor) -> None:
    for channels, side in ((16, 14), (24, 28), (40, 14), (64, 7)):
        (found,) = fitted.predict([convolution(channels, side)])
        assert found == pytest.approx(truth(channels, side), rel=0.15)


def test_far_outside_it_follows_the_roofline(fitted: FamilyRegressor) -> None:
    far = convolution(1024, 224)
    (found,) = fitted.predict([far])
    residual = abs(math.log(found / fitted.roofline.predict_one(far)))
    assert residual <= float(np.abs(fitted.target).max()) + 1e-9
    (farther,) = fitted.predict([convolution(2048, 224)])
    assert farther > 2 * found


def test_leaving_out_is_as_good_as_fitting_without(fitted: FamilyRegressor) -> None:
    places = [(c, s) for c in CHANNELS for s in SIDES]
    left_out = [3, 17, 30]
    rest = [p for i, p in enumerate(places) if i not in left_out]
    refitted = FamilyRegressor.fit(
        [convolution(c, s) for c, s in rest], [truth(c, s) for c, s in rest]
    )
    found = fitted.without(left_out)
    for index in left_out:
        (expected,) = refitted.predict([convolution(*places[index])])
        # The refit may choose another length scale; nothing else differs.
        assert found[index] == pytest.approx(expected, rel=0.2)


def test_leaving_everything_out_leaves_the_roofline(fitted: FamilyRegressor) -> None:
    everything = list(range(len(CHANNELS) * len(SIDES)))
    found = fitted.without(everything)
    assert len(found) == len(everything) and min(found.values()) > 0


def test_one_sample_is_enough_to_fit() -> None:
    one = FamilyRegressor.fit([convolution(16)], [0.5])
    assert one.predict([convolution(16)])[0] == pytest.approx(0.5, rel=0.1)
    assert one.predict([]) == []
