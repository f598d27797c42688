"""Which network to take: by hand, and what it is worth where accuracies are pure luck."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autospace.ranking import paired_error, preferred


def _right(*classified: str) -> list[np.ndarray]:
    return [np.array([letter == "x" for letter in one]) for one in classified]


def test_a_paired_error_by_hand() -> None:
    """Of ten images two are gained and one is lost: differences +1, +1, -1 and seven times 0."""
    one, other = _right("xxxxxx..x.", "xxxx...xx.")
    assert one.mean() - other.mean() == pytest.approx(0.1)
    assert paired_error(one, other) == pytest.approx(np.sqrt((0.3 - 0.01) / 10))
    assert paired_error(one, one) == 0.0


def test_what_two_networks_share_does_not_blur_their_difference() -> None:
    """A thousand images that both get right or wrong alike, and twenty that only one gets right."""
    common = np.arange(1000) % 3 > 0
    better = np.concatenate([common, np.ones(20, bool)])
    worse = np.concatenate([common, np.zeros(20, bool)])
    assert preferred([better, worse], [0.99, 1.0]) == 0
    # The same accuracies of unrelated networks are within their noise.
    random = np.random.default_rng(0)
    assert preferred([random.permutation(better), random.permutation(worse)], [0.99, 1.0]) == 1


def test_among_equals_the_one_that_uses_most_is_taken() -> None:
    right = _right("xxxx....", "xxx.x...", "xxxx....")
    assert preferred(right, [0.985, 0.99, 0.98]) == 1
    assert preferred(right, [0.99, 0.99, 0.98]) == 0
    assert preferred(right[:1], [0.1]) == 0


def test_luck_does_not_leave_a_limit_unused() -> None:
    """Ten networks of equal worth: the largest is left in at most one of twenty draws or so."""
    random = np.random.default_rng(0)
    uses = list(np.linspace(0.98, 1.0, 10))
    left = 0
    for _ in range(400):
        hard = random.random(2000)
        right = [(0.7 * hard + 0.3 * random.random(2000)) < 0.5 for _ in uses]
        left += preferred(right, uses) != 9
    assert left <= 0.07 * 400


def test_networks_of_another_size_are_not_compared() -> None:
    """The small one gets everything right with weights that served it best; the limit is used."""
    right = _right("xxxxxxxxxxxxxxxxxxxx", "x...................", "....................")
    assert preferred(right, [0.6, 0.98, 0.97]) == 1
    assert preferred(right, [0.97, 0.98, 0.97]) == 0


@given(st.lists(st.tuples(st.integers(0, 2**20 - 1), st.floats(0.98, 1)), min_size=1, max_size=6))
def test_who_uses_more_than_the_one_taken_is_less_accurate_than_another(
    networks: list[tuple[int, float]],
) -> None:
    right = [np.array([code >> bit & 1 for bit in range(20)], bool) for code, _ in networks]
    uses = [use for _, use in networks]
    taken = preferred(right, uses)
    best = int(np.argmax([own.mean() for own in right]))
    assert uses[taken] >= uses[best]
    for other, use in enumerate(uses):
        if use > uses[taken]:
            assert right[best].mean() > right[other].mean()
