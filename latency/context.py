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
from typing import TYPE_CHECKING, Self

from latency.kernel import Kernel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

__all__ = ["Context", "Surroundings", "contexts"]


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
    import numpy as np

    if not kernels:
        return ()
    surroundings = Surroundings.of(kernels, sources)
    waits = surroundings.waits_ms(np.array(times_ms, dtype=np.float64)).tolist()
    return tuple(Context(*own, *wait) for own, wait in zip(surroundings.ages, waits, strict=True))


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What surrounds the kernels of one network, whatever time they take.

    Attributes:
        ages: the first three fields of each kernel's `Context`.
        kin: place of the last kernel of the same operation before each one, in this run or the one
            before.
    """

    ages: tuple[tuple[int, int, int], ...]
    kin: npt.NDArray[np.intp]

    @classmethod
    def of(cls, kernels: Sequence[Kernel], sources: Sequence[Sequence[int]]) -> Self:
        """From the kernels of a network, at least one; see `contexts`."""
        import numpy as np

        known: dict[int, int] = {}  # equal kernels are mostly one object
        touched = [0]
        for kernel in kernels:
            if id(kernel) not in known:
                known[id(kernel)] = kernel.bytes_out + kernel.bytes_weights
            touched.append(touched[-1] + known[id(kernel)])
        ages = []
        for place, (kernel, makers) in enumerate(zip(kernels, sources, strict=True)):
            own, element_bytes = [], kernel.element_bytes
            for index, shape in enumerate(kernel.inputs):
                maker = makers[index] if index < len(makers) else -1
                since = touched[place] - touched[maker + 1] if maker >= 0 else touched[-1]
                own.append(since + math.prod(shape) * element_bytes)
            ages.append((touched[-1], own[0] if own else 0, max(own, default=0)))
        last = {(kernel.family, kernel.op): place for place, kernel in enumerate(kernels)}
        kin = []
        for place, kernel in enumerate(kernels):
            kin.append(last[kernel.family, kernel.op])
            last[kernel.family, kernel.op] = place
        return cls(tuple(ages), np.array(kin, dtype=np.intp))

    def waits_ms(self, times_ms: Array) -> Array:
        """The last two fields of each kernel's `Context`, shape `(kernels, 2)`.

        Args:
            times_ms: of each kernel, shape `(kernels,)`.
        """
        import numpy as np

        ended = np.cumsum(times_ms)
        total = ended[-1]
        # A kernel that does not come before this one ran in the run before.
        before = np.where(self.kin < np.arange(len(times_ms)), 0.0, total)
        kin = ended - times_ms - (ended[self.kin] - before)
        return np.asarray(np.maximum(np.column_stack([total - times_ms, kin]), 0.0))

    def table(self, times_ms: Array) -> Array:
        """All fields of each kernel's `Context`, shape `(kernels, 5)`; see `waits_ms`."""
        import numpy as np

        return np.column_stack([np.array(self.ages, dtype=np.float64), self.waits_ms(times_ms)])
