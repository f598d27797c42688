"""One seed for a whole run, and independent random streams derived from it by name.

A stream depends on the seed, its names and its numbers only, never on what was drawn before. So
a stage that is resumed at step 700 draws exactly what it would have drawn, and nothing about
random state needs to be saved.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["Seed"]


@dataclass(frozen=True)
class Seed:
    """A root seed and the names passed down to here.

    >>> Seed(0).child("evolve").generator("batch", 3).integers(100) == (
    ...     Seed(0).child("evolve").generator("batch", 3).integers(100)
    ... )
    np.True_
    """

    root: int
    path: tuple[int, ...] = ()

    def child(self, *names: str | int) -> Seed:
        """A seed for a part of the work."""
        return Seed(self.root, (*self.path, *map(_number, names)))

    def generator(self, *names: str | int) -> np.random.Generator:
        """A fresh numpy generator for this stream."""
        parts = [*self.path, *map(_number, names)]
        # numpy pads with zeros: without the length, ("a",) and ("a", 0) would be one stream.
        return np.random.default_rng([self.root, len(parts), *parts])

    def integer(self, *names: str | int) -> int:
        """A number below 2**31 for libraries that take an integer seed."""
        return int(self.generator(*names).integers(2**31))

    def torch_generator(self, *names: str | int) -> torch.Generator:
        """A fresh torch generator on the CPU for this stream."""
        import torch

        return torch.Generator().manual_seed(self.integer(*names))


def _number(name: str | int) -> int:
    return zlib.crc32(name.encode()) if isinstance(name, str) else name
