"""What surrounds a kernel in its network, as far as its time depends on it: what is in the caches.

The same convolution takes 10 to 30 % longer where its weights were pushed out of the cache by the
rest of the network since the last run, or where its input was made long ago. A core's own caches
are emptied by what the network itself touches; a cache that is shared with others loses its content
with time, even while nothing is touched: a linear layer of 5 MB took 0.20 ms run after run, 0.30 ms
after 10 ms of waiting and 0.45 ms after 30. Code that has not run for a while is cold as well. So
the time of a kernel is learned together with how many bytes were touched in between, how much time
has passed, and how long ago its operation was executed. This is this project's own choice;
docs/adr/0013-kernels-in-context.md has what it gains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from latency.kernel import Kernel

__all__ = ["Context", "contexts"]


@dataclass(frozen=True, slots=True)
class Context:
    """Surroundings of one kernel.

    Attributes:
        footprint_bytes: what one run of the whole network touches; the kernel's weights were last
            used that long ago.
        input_age_bytes: touched since the kernel's first input began to be made.
        oldest_age_bytes: the same for the input that was made first.
        absence_ms: time of all other kernels of the network: between two runs in a row, so long ago
            the kernel's weights were last used.
        kin_ms: time since a kernel of the same operation ended, in this run or the one before: so
            long ago the code was last executed.
    """

    footprint_bytes: int
    input_age_bytes: int
    oldest_age_bytes: int
    absence_ms: float
    kin_ms: float


def contexts(
    kernels: Sequence[Kernel], sources: Sequence[Sequence[int]], times_ms: Sequence[float]
) -> tuple[Context, ...]:
    """The surroundings of each kernel of a network.

    Args:
        kernels: in the order of execution.
        sources: for each kernel and each of its data inputs, the place of the kernel that makes
            it; -1 for an input of the network. Missing sources count as inputs of the network.
        times_ms: of each kernel, measured or predicted.
    """
    total_ms = math.fsum(times_ms)
    started = [0.0, *accumulate(times_ms)]
    ended: dict[tuple[str, str], float] = {}
    for place, kernel in enumerate(kernels):
        ended[kernel.family, kernel.op] = started[place + 1] - total_ms
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
                absence_ms=max(total_ms - times_ms[place], 0.0),
                kin_ms=max(started[place] - ended[kernel.family, kernel.op], 0.0),
            )
        )
        ended[kernel.family, kernel.op] = started[place + 1]
    return tuple(found)
