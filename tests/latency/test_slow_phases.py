"""Latencies from visits to a machine that is hardly ever undisturbed."""

import numpy as np
import pytest

from devices.measurement import ABOVE_FASTEST, Measurement
from devices.visits import Visit
from latency.slow_phases import above_fastest, undisturbed


def series(
    seed: int, networks: int, visits: tuple[int, int], elasticity: float, noise: float = 0.03
) -> tuple[list[list[Visit]], np.ndarray]:
    """A machine that is 1.35 times slower in six visits of seven; networks slow down less."""
    rng = np.random.default_rng(seed)
    truth = np.exp(rng.uniform(np.log(0.5), np.log(40), networks))
    found = []
    for latency in truth:
        own = []
        for _ in range(int(rng.integers(*visits))):
            slow = rng.choice((1.0, 1.25, 1.35, 1.45), p=(0.15, 0.25, 0.35, 0.25))
            sentinel = 0.5 * slow * rng.lognormal(0, 0.02, 2)
            value = float(latency * slow**elasticity * rng.lognormal(0, noise))
            own.append(Visit((value,) * 3, float(sentinel[0]), float(sentinel[1])))
        found.append(own)
    return found, truth


@pytest.mark.parametrize("elasticity", [0.6, 1.0])
def test_how_networks_slow_down_is_found(elasticity: float) -> None:
    visits, truth = series(0, 200, (3, 6), elasticity)
    off = np.log([ms for ms, _ in undisturbed(visits, 0.5)]) - np.log(truth)
    assert abs(np.median(off)) < 0.025
    assert np.median(np.abs(off)) < 0.03


def test_what_is_said_does_not_depend_on_how_often_a_network_was_visited() -> None:
    few, many = series(1, 120, (2, 3), 0.7), series(2, 120, (9, 10), 0.7)
    found = undisturbed([*few[0], *many[0]], 0.5)
    off = np.log([ms for ms, _ in found]) - np.log([*few[1], *many[1]])
    assert abs(np.median(off[:120]) - np.median(off[120:])) < 0.02
    errors = np.array([error for _, error in found])
    assert np.median(errors[120:]) < 0.7 * np.median(errors[:120])


def test_errors_are_of_the_size_that_is_said() -> None:
    visits, truth = series(3, 200, (4, 5), 0.8)
    found = undisturbed(visits, 0.5)
    off = (np.log([ms for ms, _ in found]) - np.log(truth)) / [error for _, error in found]
    assert 0.3 < np.std(off) < 1.5


def test_a_single_visit_that_was_hit_moves_little() -> None:
    visits, _ = series(4, 60, (5, 6), 0.8)
    before = undisturbed(visits, 0.5)[0][0]
    hit = visits[0][0]
    visits[0][0] = Visit((3 * hit.median_ms,), hit.sentinel_before_ms, hit.sentinel_after_ms)
    assert undisturbed(visits, 0.5)[0][0] == pytest.approx(before, rel=0.1)


def test_one_visit_is_enough_to_say_something() -> None:
    ((latency_ms, error),) = undisturbed([[Visit((2.0,), 0.5, 0.5)]], 0.5)
    assert latency_ms == pytest.approx(2.0) and error > 0


def flipping(latency: float, share: float, visits: int = 6) -> Measurement:
    """Runs are slow by a quarter, but for a share of them; the sentinel finds the usual mixture."""
    runs = tuple(latency if i < 20 * share else 1.25 * latency for i in range(20))
    return Measurement("n", (Visit(runs, 1.0, 1.0),) * visits, 1.0, "r", "1")


def test_a_card_made_between_two_speeds_says_how_far_it_is_above_fastest_runs() -> None:
    quiet = [flipping(0.1 + 0.01 * i, 0.9) for i in range(9)]
    assert above_fastest(quiet) == ABOVE_FASTEST
    between = [flipping(0.1 + 0.01 * i, 0.2) for i in range(9)]
    assert above_fastest(between) == pytest.approx(ABOVE_FASTEST * 1.25 / 1.04)
    # Too few, too long, or with too few visits: nothing is known.
    assert above_fastest(between[:4]) == ABOVE_FASTEST
    assert above_fastest([flipping(1.0 + i, 0.2) for i in range(9)]) == ABOVE_FASTEST
    assert above_fastest([flipping(0.1, 0.2, visits=2)] * 9) == ABOVE_FASTEST
    assert above_fastest([flipping(0.1, 0.2), *[flipping(0.1 / 9, 0.01)] * 9]) <= 1.5
