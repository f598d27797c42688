"""The lookup table adds up to the networks that it came from."""

import pytest

from devices.runtimes.simulated import RUN_MS
from latency import DeviceCard
from latency.table import KernelTable


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


def test_leaving_a_network_out(real_card: DeviceCard) -> None:
    table = KernelTable.from_card(real_card)
    for row in table.kernels:
        if len(set(row.networks)) == 1:
            assert row.time_ms(without=row.networks[0]) is None
        assert row.time_ms() is not None
