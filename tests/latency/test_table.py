"""The lookup table adds up to the networks that it came from."""

from dataclasses import replace

import numpy as np
import pytest

from devices.runtimes.simulated import RUN_MS
from latency import DeviceCard
from latency.card_rows import CardNetwork
from latency.context import contexts
from latency.table import KernelTable, kernel_times


def test_simulated_times_are_the_formula_s(simulated_card: DeviceCard) -> None:
    table = KernelTable.from_card(simulated_card)
    for network in table.networks:
        assert network.sum_ms + RUN_MS == pytest.approx(network.whole_ms, rel=1e-3)


def test_rows_and_networks_agree(real_card: DeviceCard) -> None:
    table = KernelTable.from_card(real_card)
    for index, network in enumerate(table.networks):
        for row, time_ms in zip(network.rows, network.times_ms, strict=True):
            assert index in table.kernels[row].networks
            assert time_ms in table.kernels[row].times_ms
    assert set(table.by_signature) == {row.kernel.signature for row in table.kernels}


def _visited(network: CardNetwork, slowdowns: list[float]) -> CardNetwork:
    """The network as if it had been visited while the machine was so many times slower."""
    first = network.visits[0]
    visits = [
        replace(
            first,
            visit=replace(
                first.visit, samples_ms=tuple(slow * ms for ms in first.visit.samples_ms)
            ),
            kernel_ms=slow * first.kernel_ms,
        )
        for slow in slowdowns
    ]
    return replace(network, visits=tuple(visits))


def test_kernels_take_the_part_that_they_took_in_their_visits(real_card: DeviceCard) -> None:
    network = max(real_card.networks, key=lambda one: len(one.kernels))
    quiet = kernel_times(_visited(network, [1.0]), whole_ms=2.0)
    assert kernel_times(_visited(network, [1.0, 1.5, 3.0, 1.2]), whole_ms=2.0) == pytest.approx(
        kernel_times(_visited(network, [1.0] * 4), whole_ms=2.0)
    )
    assert kernel_times(_visited(network, [4.0]), whole_ms=2.0) == pytest.approx(quiet)
    assert kernel_times(_visited(network, [1.0]), whole_ms=3.0) == pytest.approx(
        [1.5 * ms for ms in quiet]
    )


def test_rounding_does_not_make_them_quicker_with_more_visits(real_card: DeviceCard) -> None:
    """Counters of whole microseconds: the quickest samples are those that were cut off most."""
    network = real_card.networks[0]
    random = np.random.default_rng(0)
    shape = (len(network.kernels), 6)

    def times(visits: int) -> float:
        first = network.visits[0]
        seen = replace(first, visit=replace(first.visit, samples_ms=(1.0,) * 5))
        rounded = [replace(seen, kernel_ms=random.uniform(0.001, 0.003, shape).astype(np.float32))
                   for _ in range(visits)]  # fmt: skip
        return float(np.mean(kernel_times(replace(network, visits=tuple(rounded)), 1.0)))

    few = np.mean([times(2) for _ in range(200)])
    many = np.mean([times(16) for _ in range(200)])
    assert few == pytest.approx(0.002, rel=0.03) and many == pytest.approx(0.002, rel=0.03)


def test_leaving_a_network_out(real_card: DeviceCard) -> None:
    table = KernelTable.from_card(real_card)
    for row in table.kernels:
        if len(set(row.networks)) == 1:
            assert row.time_ms(without=row.networks[0]) is None
        assert row.time_ms() is not None


def test_surroundings_are_the_network_s(real_card: DeviceCard) -> None:
    table = KernelTable.from_card(real_card)
    for row, network in zip(table.networks, real_card.networks, strict=True):
        assert row.contexts == contexts(network.kernels, network.sources, row.times_ms)
        assert len(row.contexts) == len(row.rows) == len(row.times_ms)
        assert row.visits == len(network.visits) and row.kind == network.kind


def test_equal_kernels_are_one_object(simulated_card: DeviceCard) -> None:
    """Fits rely on it to work out the features of each kernel once."""
    table = KernelTable.from_card(simulated_card)
    signatures = [row.kernel.signature for row in table.kernels]
    assert len(set(signatures)) == len(signatures)


def test_a_shorter_card_has_a_shorter_table(real_card: DeviceCard) -> None:
    middle = max(v.at_s for n in real_card.networks for v in n.visits) / 120
    table = KernelTable.from_card(real_card.first(middle))
    whole = KernelTable.from_card(real_card)
    assert 0 < len(table.networks) <= len(whole.networks)
    assert sum(n.visits for n in table.networks) < sum(n.visits for n in whole.networks)


def test_rows_share_their_columns(real_card: DeviceCard) -> None:
    rows = KernelTable.from_card(real_card).rows()
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert len({row["signature"] for row in rows}) == len(rows)
    assert all(row["latency_ms"] >= 0 for row in rows)
