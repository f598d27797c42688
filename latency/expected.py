"""Expected latency of a distribution over architectures: the differentiable term of a search.

With one candidate of every layer in the network, and its time in a table, the latency that is
expected under independent choices is linear in their probabilities (Cai, Zhu, Han, *ProxylessNAS*,
arXiv:1812.00332, section 3.3)::

    E[latency] = fixed + Σ_layers Σ_candidates p[layer, candidate] · T[layer, candidate]

so its gradient with respect to p is the table itself. A batch of architectures is one product of a
matrix and a vector forward and one outer product backward, each of which reads or writes every
probability once: what limits it is memory, not arithmetic. ``python -m
benchmarks.expected_latency`` measures how near to that limit it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from devices.errors import InvalidInputError

__all__ = ["ExpectedCost", "ExpectedLatency"]


class ExpectedCost(nn.Module):
    """Expected cost in the table's own unit; `ExpectedLatency` is the one in milliseconds.

    Rows may differ in length. The shorter are padded up to the longest; what stands at a padded
    place of an input is ignored, be it nan, and its gradient is 0.

    The buffers follow ``.to(device)`` and are not part of the ``state_dict``: a table belongs to a
    device card, and a checkpoint must not bring another's along.

    Args:
        table: for each layer, the cost of each of its candidates; finite and not negative.
        fixed: what every architecture costs besides, in the same unit.
        dtype: what expectations are computed in, float32 or float64; inputs are converted to it,
            and autocast does not change it.

    Raises:
        InvalidInputError: an empty table or row, a negative or non-finite entry, another dtype.
    """

    table: Tensor
    """Shape ``(layers * candidates,)``, 0 where padded."""
    fixed: Tensor
    """No dimensions."""
    valid: Tensor
    """Booleans of shape ``(layers, candidates)``, False where padded."""
    _sums: Tensor

    def __init__(
        self,
        table: Sequence[Sequence[float]],
        fixed: float = 0.0,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.float64):
            raise InvalidInputError(
                f"dtype {dtype}: float32 or float64; choose one of them, inputs are converted"
            )
        _check_entries(table, fixed, torch.finfo(dtype).max)
        self.sizes = tuple(len(row) for row in table)
        self._ragged = min(self.sizes) < max(self.sizes)
        width = max(self.sizes)
        # float64 whatever the module is converted to, so that single architectures stay exact.
        self._exact = torch.tensor(
            [[*row, *[0.0] * (width - len(row))] for row in table], dtype=torch.float64
        )
        self._exact_fixed = float(fixed)
        valid = torch.arange(width) < torch.tensor(self.sizes)[:, None]
        flat = self._exact.to(dtype).flatten()
        # Columns that sum each layer's valid candidates, plainly and times the table.
        ones = torch.eye(len(table), dtype=dtype).repeat_interleave(width, 0)
        ones *= valid.flatten()[:, None]
        self.register_buffer("table", flat, persistent=False)
        self.register_buffer("fixed", torch.tensor(fixed, dtype=dtype), persistent=False)
        self.register_buffer("valid", valid, persistent=False)
        self.register_buffer("_sums", torch.cat([ones, ones * flat[:, None]], 1), persistent=False)

    def extra_repr(self) -> str:
        """Layers and candidates, for ``print``."""
        return f"layers={len(self.sizes)}, candidates={max(self.sizes)}"

    def forward(self, probabilities: Tensor) -> Tensor:
        """The expected cost; linear, so weights that do not sum to 1 are taken as they are.

        The binarised weights of ProxylessNAS (two sampled candidates that share 1, 0 elsewhere) and
        one-hot choices are probabilities like any others.

        Args:
            probabilities: shape ``(..., layers, candidates)``; what is padded is ignored.

        Returns:
            Expected cost in the table's unit, shape ``(...)``.

        Raises:
            InvalidInputError: another trailing shape.
        """
        flat = self._checked(probabilities, "probabilities").flatten(-2)
        # Under autocast a matrix product would be rounded to bfloat16.
        with torch.autocast(flat.device.type, enabled=False):
            expected = self._product(flat)
            # Times 0, padding counts nothing unless it is not finite. Only then is it worth a pass
            # over the input, which costs several times the product.
            if self._ragged and not bool(expected.isfinite().all()):
                expected = self._product(torch.where(self.valid.flatten(), flat, 0.0))
        return expected

    def from_logits(self, logits: Tensor) -> Tensor:
        """The expected cost under each layer's softmax over its valid candidates.

        Args:
            logits: shape ``(..., layers, candidates)``; -inf excludes a candidate, what is padded
                is ignored.

        Returns:
            Expected cost in the table's unit, shape ``(...)``.

        Raises:
            InvalidInputError: another trailing shape.
        """
        rows = self._checked(logits, "logits")
        flat = rows.flatten(-2)
        with torch.autocast(flat.device.type, enabled=False):
            # Softmax over rows as short as these takes ten times as long as a matrix product that
            # sums numerators and denominators of all layers; a shift common to all layers serves
            # as long as no denominator gets near the smallest number.
            powers = (flat - flat.detach().amax(-1, keepdim=True)).exp_()
            total, weighted = (powers @ self._sums).chunk(2, -1)
            numbers = torch.finfo(total.dtype)
            if bool((total > numbers.tiny / numbers.eps).all()):
                return (weighted / total).sum(-1) + self.fixed
        return self.forward(torch.softmax(rows.masked_fill(~self.valid, -math.inf), -1))

    def of(self, choices: Tensor | Sequence[int]) -> Tensor:
        """The cost of single architectures, summed in float64 from the table as it was given.

        Args:
            choices: the index of each layer's candidate; integers of shape ``(..., layers)``.

        Returns:
            Cost in the table's unit, float64, shape ``(...)``.

        Raises:
            InvalidInputError: another trailing shape, no integers, or a candidate that its layer
                does not have.
        """
        index = torch.as_tensor(choices)
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise InvalidInputError(
                f"choices of type {index.dtype}: candidate indices are integers; convert with "
                ".long(), or give probabilities to forward"
            )
        if index.ndim < 1 or index.shape[-1] != len(self.sizes):
            raise InvalidInputError(
                f"choices of shape {tuple(index.shape)}: the last dimension is one index for each "
                f"of the {len(self.sizes)} layers"
            )
        index = index.long()
        sizes = torch.tensor(self.sizes, device=index.device)
        outside = (index < 0) | (index >= sizes)
        if bool(outside.any()):
            place = tuple(outside.nonzero()[0].tolist())
            layer, found = place[-1], int(index[place])
            raise InvalidInputError(
                f"choice {found} in layer {layer}: it has {self.sizes[layer]} candidates; "
                f"choose from 0 to {self.sizes[layer] - 1}"
            )
        layers = torch.arange(len(self.sizes), device=index.device)
        return self._exact.to(index.device)[layers, index].sum(-1) + self._exact_fixed

    def _product(self, flat: Tensor) -> Tensor:
        # As a matrix of one column: its backward is a matrix product too, faster than the
        # broadcast multiplication behind a vector's.
        return functional.linear(flat, self.table[None], self.fixed[None]).squeeze(-1)

    def _checked(self, values: Tensor, name: str) -> Tensor:
        """The input in the table's type, if its last two dimensions are the table's."""
        if values.shape[-2:] != self.valid.shape:
            layers, candidates = self.valid.shape
            raise InvalidInputError(
                f"{name} of shape {tuple(values.shape)}: the last two dimensions are the "
                f"table's {layers} layers and {candidates} candidates; pad shorter layers"
            )
        return values.to(self.table.dtype)


class ExpectedLatency(ExpectedCost):
    """Expected latency in milliseconds of a batch of distributions over architectures.

    ``autospace.cost.CostTable.expected`` makes one from a device card's table.

    >>> expected = ExpectedLatency([[0.5, 1.0], [0.25, 0.75, 2.0]], fixed_ms=0.125)
    >>> expected.of([1, 2]).item()
    3.125
    >>> p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], requires_grad=True)
    >>> expected(p).item()
    1.125
    >>> expected(p).backward()
    >>> p.grad
    tensor([[0.5000, 1.0000, 0.0000],
            [0.2500, 0.7500, 2.0000]])

    Args:
        table_ms: for each layer, the milliseconds of each of its candidates.
        fixed_ms: milliseconds of what every architecture has: stem, head, the call itself.
        dtype: what expectations are computed in, float32 or float64.

    Raises:
        InvalidInputError: an empty table or row, a negative or non-finite entry, another dtype.
    """

    def __init__(
        self,
        table_ms: Sequence[Sequence[float]],
        fixed_ms: float = 0.0,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(table_ms, fixed_ms, dtype=dtype)


def _check_entries(table: Sequence[Sequence[float]], fixed: float, most: float) -> None:
    """Refuses what is no cost.

    No card gives a negative entry: a predictor's kernels are never below 0, and recalibration
    multiplies by a measured slope. One that is there would be bought by the search without end.
    """
    if len(table) == 0:
        raise InvalidInputError("table of 0 layers: at least 1 is needed; give one row a layer")
    for layer, row in enumerate(table):
        if len(row) == 0:
            raise InvalidInputError(
                f"layer {layer} has 0 candidates: at least 1 is needed; leave out a layer that "
                "has no choice and add its cost to the fixed part"
            )
        for candidate, value in enumerate(row):
            if not 0 <= value <= most:
                raise InvalidInputError(
                    f"entry {value} of candidate {candidate} in layer {layer}: costs are finite "
                    "and not negative; work the table out again"
                )
    if not 0 <= fixed <= most:
        raise InvalidInputError(
            f"fixed part {fixed}: costs are finite and not negative; work the table out again"
        )
