"""One search or evolution in several processes, with the numbers of one.

``torchrun --nproc-per-node 2 -m autospace search …`` starts the same command several times. Every
process makes the same random choices (paths, batches, pairs, cells depend on the seed and the step
alone), computes its share of each batch, and adds up what it found with the others': losses,
gradients, and the sums behind batch norm's statistics. torch's ``SyncBatchNorm`` refuses tensors
on the CPU; `SharedNorm` does the same with two all-reduces forward and their transposes backward.
The first process alone writes files and measures.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from devices.errors import UsageError

__all__ = ["ALONE", "FollowerDone", "Ranks", "SharedNorm", "join", "share_norms"]


class FollowerDone(SystemExit):
    """Ends a process that is not the first: what is left to do is done by that one alone."""

    def __init__(self) -> None:
        super().__init__(0)


@dataclass(frozen=True)
class Ranks:
    """This process among those that search together.

    Attributes:
        rank: from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and measures."""
        return self.rank == 0

    def share(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        """This process's part of a batch.

        Args:
            images: shape ``(batch, channels, size, size)``, the same in every process.
            labels: shape ``(batch,)``.

        Returns:
            The part, and its share of the batch: the weight of its mean loss.

        Raises:
            UsageError: fewer images than processes.
        """
        if self.size == 1:
            return images, labels, 1.0
        if len(labels) < self.size:
            raise UsageError(
                f"a batch of {len(labels)} images for {self.size} processes: start at most as "
                "many as there are images in it"
            )
        place = torch.arange(self.rank, len(labels), self.size)
        layout = torch.channels_last
        return images[place].contiguous(memory_format=layout), labels[place], (
            len(place) / len(labels)
        )  # fmt: skip

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Adds up each tensor over all processes, in place.

        Args:
            tensors: of the same shapes and type in every process.
        """
        own = list(tensors)
        if self.size == 1 or not own:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in own])
        distributed.all_reduce(flat)
        start = 0
        for tensor in own:
            tensor.copy_(flat[start : start + tensor.numel()].reshape(tensor.shape))
            start += tensor.numel()

    def total(self, value: Tensor) -> Tensor:
        """A scalar added up over all processes, without its graph."""
        value = value.detach()
        if self.size > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def first_s(self, values: Sequence[float]) -> list[float]:
        """The first process's values, in all of them.

        Args:
            values: as many in every process.
        """
        if self.size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64)
        distributed.broadcast(shared, 0)
        return [float(value) for value in shared]

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Ends working together; the first process goes on alone.

        Raises:
            FollowerDone: in all others.
        """
        if self.size == 1:
            return
        self.wait()
        distributed.destroy_process_group()
        if not self.first:
            raise FollowerDone


ALONE = Ranks()


def join(accelerator: str = "cpu") -> Ranks:
    """The processes that ``torchrun`` started, or this one alone.

    Args:
        accelerator: where this one learns; those with a GPU each speak nccl there.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        return ALONE
    if not distributed.is_initialized():
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
        own_gpu = accelerator != "cpu" and torch.cuda.device_count() >= local  # nccl's condition
        if own_gpu and ":" in accelerator:
            torch.cuda.set_device(accelerator)  # else all would wait for each other on the first
        # What stays on the processor (architecture parameters, costs) goes by gloo all the same.
        distributed.init_process_group("cpu:gloo,cuda:nccl" if own_gpu else "gloo")
        atexit.register(_end)
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def _end() -> None:
    """Ends gloo's threads while there is an interpreter: after an error nobody has left.

    A thread that lets go of a tensor while Python shuts down aborts the process
    (https://github.com/pytorch/pytorch/pull/179291).
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()


class _Sum(torch.autograd.Function):
    """A sum over processes; so is its gradient, as every process's loss depends on it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """The sum, the same in every process."""
        value = value.clone()
        distributed.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        """What the losses of all processes say together."""
        slope = slopes[0].clone()
        distributed.all_reduce(slope)
        return slope


class SharedNorm(nn.Module):
    """Batch norm by the statistics of the whole batch, of which each process has a part.

    Args:
        norm: whose weight, bias and epsilon are taken over; it keeps no running statistics.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(part of the batch, channels, h, w)`` to the same shape."""
        count = x.new_full((1,), x.numel() / x.shape[1])
        sums = _sum(torch.cat([x.sum((0, 2, 3)), count]))
        mean = (sums[:-1] / sums[-1])[:, None, None]
        centred = x - mean
        variance = _sum(centred.square().sum((0, 2, 3))) / sums[-1].detach()
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


def _sum(value: Tensor) -> Tensor:
    return _Sum.apply(value)  # type: ignore[no-untyped-call,no-any-return]


def share_norms(module: nn.Module) -> None:
    """Puts `SharedNorm` in the place of every batch norm; weights and their names stay."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, SharedNorm(child))
        else:
            share_norms(child)
