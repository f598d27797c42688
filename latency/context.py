"""What surrounds a kernel in its network, as far as its time depends on it: what is in the caches.

The same convolution takes 10 to 30 % longer where its weights were pushed out of the cache by the
rest of the network since the last run, or where its input was made long ago. So the time of a
kernel is learned together with how many bytes were touched in between. This is this project's own
choice; docs/adr/0013-kernels-in-context.md has what it gains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from latency.kernel import Kernel

__all__ = ["Context", "contexts"]


@dataclass(frozen=True, slots=True)
class Context:
    """Surroundings of one kernel; all in bytes.

    Attributes:
        footprint_bytes: what one run of the whole network touches; the kernel's weights were last
            used that long ago.
        input_age_bytes: touched since the kernel's first input began to be made.
        oldest_age_bytes: the same for the input that was made first.
    """

    footprint_bytes: int
    input_age_bytes: int
    oldest_age_bytes: int


def contexts(kernels: Sequence[Kernel], sources: Sequence[Sequence[int]]) -> tuple[Context, ...]:
    """The surroundings of each kernel of a network.

    Args:
        kernels: in the order of execution.
        sources: for each kernel and each of its data inputs, the place of the kernel that makes
            it; -1 for an input of the network. Missing sources count as inputs of the network.
    """
    touched = [0]
    for kernel in kernels:
        touched.append(touched[-1] + kernel.bytes_out + kernel.bytes_weights)
    found = []
    for place, (kernel, makers) in enumerate(zip(kernels, sources, strict=True)):
        ages = []
        for index, shape in enumerate(kernel.inputs):
            maker = makers[index] if index < len(makers) else -1
            since = touched[place] - touched[maker + 1] if maker >= 0 else touched[-1]
            ages.append(since + math.prod(shape) * kernel.element_bytes)
        found.append(
            Context(
                footprint_bytes=touched[-1],
                input_age_bytes=ages[0] if ages else 0,
                oldest_age_bytes=max(ages, default=0),
            )
        )
    return tuple(found)
