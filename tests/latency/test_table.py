"""The lookup table adds up to the networks that it came from."""

import pytest

from devices.runtimes.simulated import RUN_MS
from latency import DeviceCard
from latency.context import contexts
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
