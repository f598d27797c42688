"""Where networks learn: on the processor, or on an NVIDIA GPU.

This has nothing to do with ``--device``, the target whose latency counts. Architecture parameters,
costs and every random choice stay on the processor: the GPU only computes networks, so a run draws
the same paths, cells and batches wherever it learns, and a state saved on one goes on on the other.
"""

from __future__ import annotations

import os
from typing import Literal

from devices.errors import UnavailableError

__all__ = ["ACCELERATORS", "Accelerator", "resolve_accelerator"]

Accelerator = Literal["cpu", "cuda", "auto"]
ACCELERATORS: tuple[Accelerator, ...] = ("cpu", "cuda", "auto")


def resolve_accelerator(name: Accelerator, option: str = "--accelerator {}") -> str:
    """PyTorch's name of where to learn.

    Args:
        name: "auto" is a GPU where PyTorch sees one.
        option: how the user gave the name, with braces in its place; for the error.

    Returns:
        ``"cpu"``, ``"cuda"``, or, of several processes that ``torchrun`` started on a machine with
        several GPUs, the one of this process, as in ``"cuda:1"``.

    Raises:
        UnavailableError: "cuda" where PyTorch sees no GPU.
    """
    if name == "cpu":
        return "cpu"
    import torch

    count = torch.cuda.device_count()
    if not count:
        if name == "auto":
            return "cpu"
        raise UnavailableError(
            f"{option.format(name)}: PyTorch sees no NVIDIA GPU here (a CPU build of it never "
            f"does); use {option.format('cpu')}"
        )
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    return f"cuda:{rank % count}" if count > 1 and "LOCAL_RANK" in os.environ else "cuda"
