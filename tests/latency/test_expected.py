"""The expectation is linear in the probabilities, exact for one architecture, blind to padding."""

import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from devices.errors import InvalidInputError
from latency.expected import ExpectedCost, ExpectedLatency

FULL = [[0.5, 1.0, 4.0], [0.25, 0.75, 2.0]]
RAGGED = [[0.5, 1.0], [0.25, 0.75, 2.0], [3.0], [0.0, 0.125]]
TABLES = pytest.mark.parametrize("table", [FULL, RAGGED], ids=["full", "ragged"])
POISON = pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])

tables = st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=5), min_size=1, max_size=8)


def _expected(table: list[list[float]], dtype: torch.dtype = torch.float64) -> ExpectedLatency:
    return ExpectedLatency(table, 0.125, dtype=dtype)


def _probabilities(expected: ExpectedCost, *lead: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((*lead, *expected.valid.shape), generator=generator, dtype=torch.float64)
    return torch.softmax(logits.masked_fill(~expected.valid, -torch.inf), -1)


def _by_hand(table: list[list[float]], probabilities: Tensor) -> float:
    rows = probabilities.tolist()
    return 0.125 + sum(
        p * t
        for row, times in zip(rows, table, strict=True)
        for p, t in zip(row, times, strict=False)
    )


# -- probabilities ---------------------------------------------------------------------------------


@TABLES
@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 1, 3), (0,), (2, 0)], ids=str)
def test_any_leading_shape(table, lead) -> None:
    expected = _expected(table)
    probabilities = _probabilities(expected, *lead)
    for found in (expected(probabilities), expected.from_logits(probabilities.log())):
        assert found.shape == lead
        flat = probabilities.reshape(-1, *expected.valid.shape)
        by_hand = [_by_hand(table, one) for one in flat]
        assert found.flatten().tolist() == pytest.approx(by_hand, rel=1e-12)


@given(tables, st.integers(0, 2**32 - 1))
def test_the_formula(table: list[list[float]], seed: int) -> None:
    expected = _expected(table)
    probabilities = _probabilities(expected, 3, seed=seed)
    by_hand = [_by_hand(table, one) for one in probabilities]
    assert expected(probabilities).tolist() == pytest.approx(by_hand, rel=1e-12)


@TABLES
def test_the_gradient_is_the_table(table) -> None:
    expected = _expected(table)
    probabilities = _probabilities(expected, 4).requires_grad_()
    expected(probabilities).sum().backward()
    for one in probabilities.grad:
        for row, times in zip(one.tolist(), table, strict=True):
            assert row == times + [0.0] * (len(row) - len(times))


@TABLES
def test_gradients_of_both_inputs_are_right(table) -> None:
    expected = _expected(table)
    probabilities = _probabilities(expected, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(expected, probabilities)
    logits = torch.randn((2, *expected.valid.shape), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(expected.from_logits, logits)
    assert torch.autograd.gradgradcheck(expected.from_logits, logits)


def test_what_is_not_contiguous_counts_the_same() -> None:
    expected = _expected(RAGGED)
    probabilities = _probabilities(expected, 3, 2)
    turned = probabilities.permute(1, 0, 2, 3)
    torch.testing.assert_close(expected(turned), expected(probabilities).T)
    alike = probabilities[0, 0].expand(6, -1, -1)
    torch.testing.assert_close(expected(alike), expected(probabilities[0, 0]).expand(6))


def test_two_sampled_paths_share_their_candidates_times() -> None:
    """Rule ``two`` of ProxylessNAS: gates of two candidates, whatever they sum to."""
    expected = _expected(FULL)
    gates = torch.tensor([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert expected(gates).item() == 0.125 + 0.25 * 0.5 + 0.75 * 4.0 + 0.75
    assert expected(2 * gates).item() == 0.125 + 2 * (0.25 * 0.5 + 0.75 * 4.0 + 0.75)


# -- padding ---------------------------------------------------------------------------------------


@POISON
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_padding_carries_neither_cost_nor_gradient(poison: float, dtype: torch.dtype) -> None:
    expected = _expected(RAGGED, dtype)
    for function, clean in (
        (expected.forward, _probabilities(expected, 3).to(dtype)),
        (expected.from_logits, torch.randn((3, *expected.valid.shape), dtype=dtype)),
    ):
        dirty = clean.clone()
        dirty[1].masked_fill_(~expected.valid, poison)
        gradients = []
        for values in (clean, dirty):
            values.requires_grad_()
            found = function(values)
            (gradient,) = torch.autograd.grad(found.sum(), values)
            assert (gradient[:, ~expected.valid] == 0).all()
            gradients.append((found, gradient))
        torch.testing.assert_close(gradients[0], gradients[1])


def test_what_is_not_padding_is_not_hidden() -> None:
    expected = _expected(RAGGED)
    probabilities = _probabilities(expected, 2)
    probabilities[1, 0, 0] = torch.nan
    assert expected(probabilities).isnan().tolist() == [False, True]
    assert expected.from_logits(probabilities).isnan().tolist() == [False, True]


# -- logits ----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(tables, st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 30.0, 1e3, 1e6]))
def test_logits_are_a_softmax_over_each_layer(
    table: list[list[float]], seed: int, scale: float
) -> None:
    """However far apart the layers are: one shift for all of them must not show."""
    expected = _expected(table)
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn((3, *expected.valid.shape), generator=generator).double()
    logits.requires_grad_()
    rows = torch.softmax(logits.masked_fill(~expected.valid, -torch.inf), -1)
    plain, found = expected(rows), expected.from_logits(logits)
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)
    slopes = [torch.autograd.grad(one.sum(), logits)[0] for one in (found, plain)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("apart", [0.0, 50.0, 80.0, 100.0, 1e4])
def test_layers_far_apart_in_float32(apart: float) -> None:
    expected = _expected(FULL, torch.float32)
    logits = torch.tensor([[0.0, 1.0, 2.0], [apart, apart + 1, apart + 2]])
    near = expected.from_logits(torch.tensor([[0.0, 1.0, 2.0]] * 2))
    torch.testing.assert_close(expected.from_logits(logits), near)


def test_an_excluded_candidate_counts_nothing() -> None:
    expected = _expected(FULL)
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf], [-torch.inf, 0.0, 0.0]])
    logits = logits.double().requires_grad_()
    found = expected.from_logits(logits)
    assert found.item() == pytest.approx(0.125 + 0.5 + (0.75 + 2.0) / 2)
    (slope,) = torch.autograd.grad(found, logits)
    assert (slope[logits.isinf()] == 0).all()


# -- single architectures --------------------------------------------------------------------------


@given(st.data())
def test_one_architecture_is_the_sum_of_its_entries(data: st.DataObject) -> None:
    table = data.draw(tables)
    fixed = data.draw(st.floats(0, 100))
    choice = [data.draw(st.integers(0, len(row) - 1)) for row in table]
    total = fixed + sum(row[index] for row, index in zip(table, choice, strict=True))
    expected = ExpectedLatency(table, fixed)
    assert expected.of(choice).item() == pytest.approx(total, rel=1e-14)
    index = torch.tensor(choice)
    one_hot = torch.nn.functional.one_hot(index, expected.valid.shape[1])
    assert expected(one_hot).item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_choices_of_any_leading_shape(dtype: torch.dtype) -> None:
    choices = torch.tensor([[[1, 2, 0, 0]], [[0, 0, 0, 1]]], dtype=dtype)
    found = _expected(RAGGED, torch.float32).of(choices)
    assert found.dtype == torch.float64
    assert found.tolist() == [[0.125 + 1 + 2 + 3 + 0], [0.125 + 0.5 + 0.25 + 3 + 0.125]]
    assert _expected(RAGGED).of(choices[:0]).shape == (0, 1)


def test_single_architectures_stay_exact_in_a_module_of_low_precision() -> None:
    third = 1 / 3
    network = torch.nn.ModuleList([ExpectedLatency([[third]], third)]).bfloat16()
    assert network[0].of([0]).item() == third + third


# -- types, devices, state -------------------------------------------------------------------------


def test_inputs_are_converted_to_the_table_s_type() -> None:
    for dtype in (torch.float32, torch.float64):
        expected = _expected(FULL, dtype)
        for given_dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            even = torch.full((2, 3), 0.25, dtype=given_dtype, requires_grad=True)
            found = expected(even)
            assert found.dtype == expected.from_logits(even).dtype == dtype
            (slope,) = torch.autograd.grad(found, even)
            assert slope.dtype == given_dtype
            assert slope.tolist() == FULL


def test_autocast_does_not_round() -> None:
    expected = ExpectedLatency([[1.0 + 2**-20, 0.0]], 1.0)
    choice = torch.tensor([[1.0, 0.0]])
    with torch.autocast("cpu", torch.bfloat16):
        assert expected(choice).item() == 2.0 + 2**-20
        found = expected.from_logits(torch.zeros(1, 2))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1.5 + 2**-21, rel=1e-7)


def test_the_state_moves_and_is_not_saved() -> None:
    expected = _expected(RAGGED)
    assert expected.state_dict() == {}
    assert {name for name, _ in expected.named_buffers()} >= {"table", "fixed", "valid"}
    assert all(one.is_meta for one in copy.deepcopy(expected).to("meta").buffers())
    again = copy.deepcopy(expected)
    probabilities = _probabilities(expected, 2)
    assert torch.equal(again(probabilities), expected(probabilities))
    assert "layers=4, candidates=3" in repr(expected)


@pytest.mark.needs_hardware
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    expected = _expected(RAGGED)
    probabilities = _probabilities(expected, 5)
    moved = copy.deepcopy(expected).to("cuda")
    torch.testing.assert_close(moved(probabilities.cuda()).cpu(), expected(probabilities))
    logits = probabilities.log()
    torch.testing.assert_close(moved.from_logits(logits.cuda()).cpu(), expected.from_logits(logits))
    choices = torch.tensor([[1, 2, 0, 1]])
    assert moved.of(choices.cuda()).cpu().equal(expected.of(choices))


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([],), "table of 0 layers: at least 1"),
        (([[1.0], []],), "layer 1 has 0 candidates: at least 1"),
        (([[1.0], [2.0, -0.5]],), r"entry -0\.5 of candidate 1 in layer 1: .*not negative"),
        (([[float("nan")]],), "entry nan of candidate 0 in layer 0: costs are finite"),
        (([[float("inf")]],), "entry inf of candidate 0 in layer 0"),
        (([[1e39]],), r"entry 1e\+39 of candidate 0"),
        (([[1.0]], -1.0), r"fixed part -1\.0: costs are finite and not negative"),
        (([[1.0]], float("nan")), "fixed part nan"),
    ],
)
def test_tables_that_are_none(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        ExpectedLatency(*arguments)
    assert "\n" not in str(caught.value)


def test_other_types_of_table() -> None:
    with pytest.raises(InvalidInputError, match=r"dtype torch\.float16: float32 or float64"):
        ExpectedLatency([[1.0]], dtype=torch.float16)


@pytest.mark.parametrize("shape", [(), (3,), (3, 2), (5, 4, 2), (4, 3, 1)], ids=str)
def test_other_shapes(shape: tuple[int, ...]) -> None:
    expected = _expected(RAGGED)
    for function, name in ((expected, "probabilities"), (expected.from_logits, "logits")):
        with pytest.raises(InvalidInputError, match=f"{name} of shape .*4 layers and 3 candidates"):
            function(torch.zeros(shape))


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ([2, 0, 0, 0], "choice 2 in layer 0: it has 2 candidates; choose from 0 to 1"),
        ([[0, 0, 0, 0], [0, 0, -1, 0]], "choice -1 in layer 2: it has 1 candidates"),
        ([0, 0, 0], r"choices of shape \(3,\): .* each of the 4 layers"),
        (1, r"choices of shape \(\)"),
        ([0.0, 0.0, 0.0, 0.0], r"choices of type torch\.float32: candidate indices are integers"),
        ([True, False, False, False], r"choices of type torch\.bool"),
    ],
)
def test_other_choices(choices: object, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        _expected(RAGGED).of(torch.tensor(choices))


# -- importing -------------------------------------------------------------------------------------


def test_torch_is_loaded_with_this_module_only() -> None:
    code = (
        "import sys, latency; assert 'torch' not in sys.modules;"
        "latency.ExpectedLatency; print('torch' in sys.modules,"
        "[m for m in ('onnxruntime', 'onnx', 'sklearn', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True []"
