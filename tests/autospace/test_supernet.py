from __future__ import annotations

import pytest
import torch

from autospace.genotype import REFERENCE_CELLS, MBConv, Zero
from autospace.mutation import random_cell
from autospace.seeding import Seed
from autospace.skeleton import Skeleton, Stage
from autospace.space import Architecture
from autospace.supernet import EvolvingNet, GatedNet

SKELETON = Skeleton(
    name="test", resolution=12, in_channels=1, num_classes=4, stem_width=8, stem_stride=1,
    first_width=0, stages=(Stage(8, 2, 1), Stage(12, 2, 2)), head_width=16,
)  # fmt: skip


def _images(count: int = 4, dtype=torch.float32):
    return torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(0), dtype=dtype)


def _fresh() -> EvolvingNet:
    return EvolvingNet(SKELETON, "kernel", torch.Generator().manual_seed(0)).double()


def _learned(net):
    """As after some learning: no scale is 0."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in net.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
    return net


def _evolving() -> EvolvingNet:
    return _learned(_fresh())


def _gated(share: bool, candidates=None) -> GatedNet:
    return _learned(_fresh_gated(share, candidates))


def _fresh_gated(share: bool, candidates=None) -> GatedNet:
    cells = candidates or [
        (REFERENCE_CELLS[0], REFERENCE_CELLS[2], MBConv()) + ((Zero(),) if s.has_shortcut else ())
        for s in SKELETON.blocks
    ]
    generator = torch.Generator().manual_seed(0)
    return GatedNet(SKELETON, cells, "kernel", generator, share=share).double()


def test_a_block_is_the_weighted_sum_of_its_cells():
    """Eq. 3, against each cell computed alone: sharing work must not change the result."""
    random = Seed(0).generator("cells")
    bank = _evolving().blocks[0]
    x = torch.randn(3, 8, 12, 12, dtype=torch.float64)
    for _ in range(10):
        cells = [random_cell(random) for _ in range(4)]
        weights = torch.softmax(torch.randn(4, dtype=torch.float64), 0)
        together = bank(x, cells, weights)
        alone = [bank(x, [cell], torch.ones(1, dtype=torch.float64)) for cell in cells]
        expected = sum(w * y for w, y in zip(weights, alone, strict=True))
        assert torch.allclose(together, expected, atol=1e-10)


def test_blocks_with_a_shortcut_begin_as_that_and_learn():
    random = Seed(3).generator("cells")
    for block in _fresh().blocks:
        shape = block.shape
        x = torch.randn(3, shape.in_channels, shape.in_size, shape.in_size, dtype=torch.float64)
        cells = [random_cell(random) for _ in range(4)]
        y = block(x, cells, torch.full((4,), 0.25, dtype=torch.float64))
        assert shape.has_shortcut == (y.shape == x.shape and torch.equal(x, y))
        y.square().sum().backward()
        ends = [m for n, m in block.named_parameters() if n.endswith("norm.weight")]
        assert any(m.grad is not None and m.grad.abs().sum() > 0 for m in ends)


@pytest.mark.parametrize("share", [True, False])
def test_candidates_beside_a_shortcut_begin_as_that_and_learn(share):
    net = _fresh_gated(share)
    for block, shape in zip(net.blocks, SKELETON.blocks, strict=True):
        x = torch.randn(3, shape.in_channels, shape.in_size, shape.in_size, dtype=torch.float64)
        for index in range(len(block.paths)):
            y = block(x, index)
            assert shape.has_shortcut == (y.shape == x.shape and torch.equal(x, y))
            if y.requires_grad:  # all but none at all
                y.square().sum().backward()
        ends = [m for n, m in block.named_parameters() if n.endswith("norm.weight")]
        assert any(m.grad is not None and m.grad.abs().sum() > 0 for m in ends)


def test_every_valid_cell_finds_its_weights():
    random = Seed(1).generator("cells")
    net = _evolving()
    for _ in range(20):
        cells = [[random_cell(random)] for _ in range(SKELETON.num_layers)]
        weights = torch.ones(SKELETON.num_layers, 1, dtype=torch.float64)
        assert net(_images(dtype=torch.float64), cells, weights).shape == (4, 4)


def test_operations_of_a_stack_count_what_is_shared_once():
    random = Seed(2).generator("cells")
    net = _evolving()

    def alone(cells):
        blocks = [cells[SKELETON.layer_of(i)] for i in range(len(SKELETON.blocks))]
        return Architecture(SKELETON, tuple(blocks)).madds

    for _ in range(10):
        first, second = (
            [random_cell(random) for _ in range(SKELETON.num_layers)] for _ in range(2)
        )
        each = alone(first), alone(second)
        assert net.madds([[cell] for cell in first]) == each[0]
        assert net.madds([[cell, cell] for cell in first]) == each[0]
        both = net.madds([list(pair) for pair in zip(first, second, strict=True)])
        assert max(each) <= both <= sum(each)


def test_alpha_receives_the_gradient_of_eq_4():
    net = _evolving()
    cells = [list(REFERENCE_CELLS)] * SKELETON.num_layers
    alpha = torch.zeros(SKELETON.num_layers, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3])

    def loss(a):
        logits = net(_images(dtype=torch.float64), cells, torch.softmax(a, 1))
        return torch.nn.functional.cross_entropy(logits, labels)

    (gradient,) = torch.autograd.grad(loss(alpha), alpha)
    step = torch.zeros_like(alpha)
    step[1, 2] = 1e-7
    numeric = (loss(alpha + step) - loss(alpha - step)) / 2e-7
    assert gradient[1, 2].item() == pytest.approx(numeric.item(), rel=1e-4)


def _mixed(net: GatedNet, x: torch.Tensor, gates: list[torch.Tensor]) -> torch.Tensor:
    """The plain way: every candidate's output in one graph, times its gate."""
    x = net.before(x)
    for block, row in zip(net.blocks, gates, strict=True):
        x = sum(gate * block(x, index) for index, gate in enumerate(row))
    return net.after(x)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("path", [(0, 1, 2, 0), (2, 3, 0, 1), (3, 3, 1, 2)])
def test_gates_receive_the_gradient_of_the_mixed_output(share, path):
    """Candidate by candidate against all in one graph; blocks differ in how many there are."""
    net = _gated(share)
    x, labels = _images(dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    sizes = [len(candidates) for candidates in net.candidates]
    assert min(sizes) < max(sizes)
    plain = [
        torch.eye(size, dtype=torch.float64)[active].requires_grad_()
        for size, active in zip(sizes, path, strict=True)
    ]
    loss = torch.nn.functional.cross_entropy(_mixed(net, x, plain), labels)
    expected = torch.autograd.grad(loss, plain)
    gates = torch.zeros(len(path), max(sizes), dtype=torch.float64, requires_grad=True)
    gated = net.forward_gated(x, path, [range(size) for size in sizes], gates)
    own = torch.nn.functional.cross_entropy(gated, labels)
    assert own.item() == pytest.approx(loss.item(), abs=1e-13)
    (gradient,) = torch.autograd.grad(own, gates)
    for row, wanted, size in zip(gradient, expected, sizes, strict=True):
        assert torch.allclose(row[:size], wanted, rtol=1e-10, atol=1e-13)
        assert not row[size:].any()
    # Two of them alone, in any order: the same numbers.
    pairs = [(active, (active + 1) % size) for size, active in zip(sizes, path, strict=True)]
    two = torch.zeros(len(path), 2, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(net.forward_gated(x, path, pairs, two), labels)
    (slopes,) = torch.autograd.grad(loss, two)
    assert torch.allclose(slopes, gradient.gather(1, torch.tensor(pairs)), rtol=1e-12)


def test_gates_leave_the_path_s_own_gradients_as_they_are():
    net = _gated(True)
    x, path = _images(dtype=torch.float64), (1, 3, 0, 1)
    net(x, path).square().sum().backward()
    expected = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    gates = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    pairs = [(1, 0), (0, 3), (2, 0), (1, 3)]
    net.forward_gated(x, path, pairs, gates).square().sum().backward()
    found = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], rtol=1e-12) for name in found)


def test_gates_keep_no_candidate_s_outputs():
    """What is saved for backward does not depend on how many gates are asked for."""
    net, x = _gated(False), _images(dtype=torch.float64)
    for weight in net.parameters():
        weight.requires_grad_(False)

    def kept(asked: list[tuple[int, ...]]) -> int:
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        gates = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            _ = net.forward_gated(x, (0, 0, 0, 0), asked, gates)
        return sum(storages.values())

    assert kept([(0, 1, 2)] * 4) == kept([(0,)] * 4)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("path", [(0, 0, 0, 0), (1, 3, 2, 1), (2, 1, 0, 3)])
def test_an_extracted_path_computes_the_same(share, path):
    net = _gated(share).float()
    network = net.extract(path)
    x = _images()
    net.train(), network.train()
    assert torch.allclose(net(x, path), network(x), atol=1e-5)


def test_only_the_active_path_trains():
    net = _gated(False)
    net(_images(dtype=torch.float64), (0, 0, 0, 0)).sum().backward()
    for block in net.blocks:
        for key, layer in block.layers.items():
            got = all(p.grad is not None for p in layer.parameters())
            assert got == key.startswith("0/")


def test_cells_share_equal_edges_only_when_asked():
    shared, separate = _gated(True), _gated(False)
    count = [sum(p.numel() for p in net.parameters()) for net in (shared, separate)]
    assert count[0] < count[1]
