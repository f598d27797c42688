"""Costs add up over blocks, and so do their tables."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import blocks_for, cells

from autospace.cost import (
    SMALLEST_CELL,
    CostTable,
    LatencyCost,
    Limit,
    MaddsCost,
    check_reachable,
    format_cost,
    reference_cost,
    smallest_cost,
)
from autospace.genotype import REFERENCE_CELLS, Block, Cell, MBConv, Zero
from autospace.graph import block_nodes
from autospace.operations import KERNEL_READINGS, KernelReading
from autospace.skeleton import SKELETONS
from autospace.space import PLAIN_BLOCK, Architecture, SearchSpace
from devices.errors import InvalidInputError, UsageError
from latency import DeviceCard, ExpectedLatency, Predictor
from latency.expected import ExpectedCost

TINY = SKELETONS["tiny"]
SPACE = SearchSpace(TINY, (REFERENCE_CELLS,) * 3)
CANDIDATES = SPACE.candidates_by_block


@pytest.fixture(scope="module")
def predictor(simulated_card: DeviceCard) -> Predictor:
    return Predictor.from_card(simulated_card)


@settings(max_examples=40)
@given(st.data(), st.sampled_from(KERNEL_READINGS))
def test_multiply_adds_of_a_network_are_exact(data: st.DataObject, reading: KernelReading) -> None:
    blocks: list[Block] = [data.draw(blocks_for(shape)) for shape in TINY.blocks]
    cost = MaddsCost(TINY, reading)
    assert cost.network(blocks) == Architecture(TINY, tuple(blocks), reading).madds


@given(st.data())
def test_a_table_adds_up_to_the_network(data: st.DataObject) -> None:
    cost = MaddsCost(TINY)
    table = cost.table(CANDIDATES)
    choice = [data.draw(st.integers(0, len(blocks) - 1)) for blocks in CANDIDATES]
    blocks = tuple(one[index] for one, index in zip(CANDIDATES, choice, strict=True))
    assert table.total(choice) == Architecture(TINY, blocks).madds
    assert table.smallest <= table.total(choice) <= table.largest


def test_a_table_of_numbers() -> None:
    table = CostTable("madds", 10.0, ((1.0, 2.0), (5.0,), (3.0, 0.0, 4.0)))
    assert table.total((1, 0, 2)) == 21
    assert (table.smallest, table.largest) == (16, 21)


def test_the_expectation_of_a_table_is_that_of_its_unit() -> None:
    for metric, kind in (("madds", ExpectedCost), ("latency_ms", ExpectedLatency)):
        table = CostTable(metric, 10.0, ((1.0, 2.0), (5.0,), (3.0, 0.0, 4.0)))  # type: ignore[arg-type]
        expected = table.expected()
        assert type(expected) is kind
        assert expected.of((1, 0, 2)).item() == table.total((1, 0, 2))
        assert expected.table.dtype == torch.float32
        assert table.expected(torch.float64).table.dtype == torch.float64


def test_a_table_recalibrated_by_a_falling_line_has_no_expectation() -> None:
    table = CostTable("latency_ms", 10.0, ((1.0, 2.0),)).recalibrated(-1.0, 20.0)
    with pytest.raises(InvalidInputError, match=r"entry -1\.0 of candidate 0 in layer 0"):
        table.expected()


@settings(max_examples=40)
@given(st.data())
def test_single_architectures_of_an_expectation_are_the_table_s_sums(data: st.DataObject) -> None:
    rows = data.draw(
        st.lists(st.lists(st.floats(0, 1e9), min_size=1, max_size=6), min_size=1, max_size=25)
    )
    table = CostTable("latency_ms", data.draw(st.floats(0, 1e9)), tuple(map(tuple, rows)))
    choices = [
        [data.draw(st.integers(0, len(row) - 1)) for row in rows]
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    found = table.expected().of(torch.tensor(choices))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([table.total(one) for one in choices], rel=1e-14)


def test_layers_share_their_blocks() -> None:
    cost = MaddsCost(TINY)
    assert [cost.blocks_of(layer) for layer in range(3)] == [(0, 1), (2, 3), (4, 5)]
    cell = REFERENCE_CELLS[0]
    assert cost.layer(1, cell) == cost.block(2, cell) + cost.block(3, cell)


@given(cells)
def test_no_cell_is_smaller_than_the_smallest(cell: Cell) -> None:
    for shape in TINY.blocks:
        least = sum(node.madds for node in block_nodes(SMALLEST_CELL, shape))
        assert least <= sum(node.madds for node in block_nodes(cell, shape))


@given(st.data())
def test_no_network_is_smaller_than_the_smallest(data: st.DataObject) -> None:
    cost = MaddsCost(TINY)
    blocks: list[Block] = [data.draw(blocks_for(shape)) for shape in TINY.blocks]
    if any(isinstance(block, MBConv) and block.expansion == 1 for block in blocks):
        return  # no candidate of any search
    assert smallest_cost(cost) <= cost.network(blocks)


def test_limits_below_the_smallest_network_name_it() -> None:
    costs = {"madds": MaddsCost(TINY)}
    least = smallest_cost(costs["madds"])
    check_reachable(costs, [Limit("madds", least, "least")])
    with pytest.raises(UsageError) as caught:
        check_reachable(costs, [Limit("madds", least - 1, "less")])
    assert format_cost("madds", least) in str(caught.value)
    assert "tiny skeleton" in str(caught.value)
    assert "raise the limit" in str(caught.value)


def test_words() -> None:
    assert format_cost("latency_ms", 1.2345) == "1.23 ms"
    assert str(Limit("madds", 5e8, "0.5G")) == "500M multiply-adds"
    assert Limit("latency_ms", 5.0, "5ms").to_json() == {
        "metric": "latency_ms",
        "value": 5.0,
        "text": "5ms",
    }
    plain = Architecture(TINY, (REFERENCE_CELLS[1].fused(),) * 6)
    assert reference_cost(MaddsCost(TINY)) == plain.madds


# -- latency ---------------------------------------------------------------------------------------


def test_latency_of_a_network_is_near_its_own_prediction(predictor: Predictor) -> None:
    from autospace.onnx_export import onnx_for_cost

    cost = LatencyCost(TINY, predictor)
    for choice in ((0,) * 6, (2, 3, 2, 3, 0, 1)):
        blocks = tuple(one[index] for one, index in zip(CANDIDATES, choice, strict=True))
        whole = predictor.predict(onnx_for_cost(Architecture(TINY, blocks))).latency_ms
        assert cost.network(blocks) == pytest.approx(whole, rel=0.03)


def test_a_latency_table_adds_up(predictor: Predictor) -> None:
    cost = LatencyCost(TINY, predictor)
    table = cost.table(CANDIDATES)
    assert table.metric == "latency_ms"
    assert [len(row) for row in table.values] == [len(blocks) for blocks in CANDIDATES]
    for choice in ((0,) * 6, (1, 0, 2, 3, 0, 1)):
        blocks = [one[index] for one, index in zip(CANDIDATES, choice, strict=True)]
        assert table.total(choice) == pytest.approx(cost.network(blocks))
    for row, blocks in zip(table.values, CANDIDATES, strict=True):
        for value, block in zip(row, blocks, strict=True):
            assert value == 0 if isinstance(block, Zero) else value > 0
    assert 0 < table.fixed < table.smallest


def test_a_skip_costs_nothing_and_asks_for_nothing(predictor: Predictor) -> None:
    cost = LatencyCost(TINY, predictor)
    assert cost.block(1, Zero()) == 0.0
    assert cost.snapshot() == {"fixed": [], "known": []}


class Counting:
    """A predictor that counts how often it is asked."""

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self.calls = 0

    def predict_quickly(self, model: object) -> object:
        self.calls += 1
        return self.predictor.predict_quickly(model)  # type: ignore[arg-type]


def test_one_compilation_serves_a_candidate_of_every_block(predictor: Predictor) -> None:
    counting = Counting(predictor)
    cost = LatencyCost(TINY, counting)  # type: ignore[arg-type]
    cost.table(CANDIDATES)
    assert counting.calls == max(
        sum(not isinstance(block, Zero) for block in blocks) for blocks in CANDIDATES
    )
    before = counting.calls
    cost.table(CANDIDATES)
    assert cost.block(3, PLAIN_BLOCK) > 0
    assert counting.calls == before


def test_a_snapshot_puts_the_very_same_costs_back(predictor: Predictor) -> None:
    import json

    cost = LatencyCost(TINY, predictor)
    cost.table(CANDIDATES)
    snapshot = json.loads(json.dumps(cost.snapshot()))
    counting = Counting(predictor)
    restored = LatencyCost(TINY, counting)  # type: ignore[arg-type]
    restored.restore(snapshot)
    assert restored.table(CANDIDATES) == cost.table(CANDIDATES)
    assert restored.fixed == cost.fixed
    assert counting.calls == 0


def test_a_wider_network_is_slower(predictor: Predictor) -> None:
    wide = replace(TINY, width_mult=2.0)
    assert reference_cost(LatencyCost(wide, predictor)) > reference_cost(
        LatencyCost(TINY, predictor)
    )


def test_latency_limits_below_the_smallest(predictor: Predictor) -> None:
    costs = {"latency_ms": LatencyCost(TINY, predictor)}
    with pytest.raises(UsageError, match=r"below the smallest network of the tiny skeleton, .* ms"):
        check_reachable(costs, [Limit("latency_ms", 1e-4, "100ns")])
