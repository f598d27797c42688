"""The lookup table: what each kernel took in its place inside the measured networks.

Slow phases of the machine come and go. The profiled runs of a visit stand beside those of the whole
network, which are as slow at that moment: each kernel's time is taken in parts of what the network
took in the same visit, and the mean of the middle half of these counts, over all visits.

A network's latency is its `latency_ms` where that rests on accepted visits or on fast runs that two
visits agree on; else it comes from its fastest run, which is steadier than a corrected median, and
one factor for the whole card: how much `latency_ms` is above the fastest run of other networks.
Where there is a choice the factor is worse: of 40 short runs a visit one is luckier than of 3 long
ones, so that sums of kernels were 3 % above it for networks below a millisecond and 1.3 % below it
above four.

Where the runtime does not time single kernels, their times are worked out from those of the
networks (`latency.whole_times`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from devices.measurement import Measurement
from devices.visits import FEW_VISITS
from latency.blas_threads import one_blas_thread
from latency.context import Context, contexts
from latency.slow_phases import undisturbed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from latency.card import DeviceCard
    from latency.card_rows import CardNetwork
    from latency.kernel import Kernel
    from latency.whole_times import Explained

    Array = npt.NDArray[np.float64]

__all__ = ["KernelRow", "KernelTable", "NetworkRow", "kernel_times"]


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One kernel of the table.

    Attributes:
        kernel: what was measured.
        networks: indices, in the table's networks, of those in which it occurred.
        times_ms: its time in each occurrence; same length.
        visits: over all occurrences.
    """

    kernel: Kernel
    networks: tuple[int, ...]
    times_ms: tuple[float, ...]
    visits: int

    def time_ms(self, without: int | None = None) -> float | None:
        """Median over the occurrences, those in one network left out; None when none is left."""
        times = sorted(t for t, n in zip(self.times_ms, self.networks, strict=True) if n != without)
        if not times:
            return None
        middle = len(times) // 2
        return times[middle] if len(times) % 2 else (times[middle - 1] + times[middle]) / 2


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """One measured network.

    Attributes:
        name: in the card.
        kind: "probe" or "extra".
        whole_ms: `latency_ms` of the whole network, profiler off; see the module's docstring.
        rows: for each kernel in order, its index in the table's rows.
        times_ms: for each kernel in order, its time in this network.
        contexts: for each kernel in order, what surrounds it in this network.
        visits: how many.
        noise: standard error of the logarithm of `whole_ms`.
        left_out_ms: what the others say of it, where the times of its kernels were worked out.
        left_out_deviation: standard deviation of that one's logarithm.
    """

    name: str
    kind: str
    whole_ms: float
    rows: tuple[int, ...]
    times_ms: tuple[float, ...]
    contexts: tuple[Context, ...]
    visits: int
    noise: float = 0.0
    left_out_ms: float | None = None
    left_out_deviation: float = 0.0

    @property
    def sum_ms(self) -> float:
        """Summed time of the kernels, profiler on."""
        return sum(self.times_ms)


@dataclass(frozen=True)
class KernelTable:
    """All kernels and networks of a card, condensed to one time each.

    Attributes:
        kernels: each kernel once.
        networks: those that were visited with the single kernels timed; where the runtime does not
            time them, all that were visited.
        explained: what was worked out, where the times of kernels were not measured.
    """

    kernels: tuple[KernelRow, ...]
    networks: tuple[NetworkRow, ...]
    explained: Explained | None = None

    @property
    def timed(self) -> bool:
        """Whether the times of kernels were measured, not worked out."""
        return self.explained is None

    @classmethod
    def from_card(cls, card: DeviceCard, *, quick: bool = False) -> Self:
        """Condenses a card's raw samples.

        Args:
            card: to condense.
            quick: less exactly, where times of kernels have to be worked out.
        """
        index: dict[str, int] = {}
        kernels: list[Kernel] = []
        occurrences: list[list[tuple[int, float, int]]] = []
        networks: list[NetworkRow] = []
        timed = card.per_op_times
        measured = [n for n in card.networks if _usable(n, timed)]
        latencies = _latencies(card, measured) if timed else _by_all(card, measured)
        explained = None if timed else _explained(measured, latencies, quick)
        for place, (network, (whole_ms, noise)) in enumerate(zip(measured, latencies, strict=True)):
            own = explained.networks[place] if explained else None
            times = own.times_ms if own else tuple(kernel_times(network, whole_ms))
            visits = [v for v in network.visits if v.kernel_ms.size or not timed]
            rows = []
            for kernel, time_ms in zip(network.kernels, times, strict=True):
                row = index.setdefault(kernel.signature, len(kernels))
                if row == len(kernels):
                    kernels.append(kernel)
                    occurrences.append([])
                occurrences[row].append((len(networks), time_ms, len(visits)))
                rows.append(row)
            networks.append(
                NetworkRow(
                    name=network.name,
                    kind=network.kind,
                    whole_ms=whole_ms,
                    rows=tuple(rows),
                    times_ms=times,
                    contexts=contexts(network.kernels, network.sources, times),
                    visits=len(network.visits),
                    noise=noise,
                    left_out_ms=own.left_out_ms if own else None,
                    left_out_deviation=own.left_out_deviation if own else 0.0,
                )
            )
        return cls(
            kernels=tuple(
                KernelRow(
                    kernel=kernel,
                    networks=tuple(n for n, _, _ in found),
                    times_ms=tuple(t for _, t, _ in found),
                    visits=sum(v for _, _, v in found),
                )
                for kernel, found in zip(kernels, occurrences, strict=True)
            ),
            networks=tuple(networks),
            explained=explained,
        )

    @cached_property
    def by_signature(self) -> dict[str, KernelRow]:
        """The rows by the kernel's signature."""
        return {row.kernel.signature: row for row in self.kernels}

    def rows(self) -> tuple[dict[str, Any], ...]:
        """A dictionary for each kernel, the same keys in all: by family, then slowest first.

        Times are those of the profiler, before the calibration to whole networks.
        """

        def text(shapes: Sequence[Sequence[int]]) -> str:
            return ";".join("x".join(map(str, shape)) for shape in shapes)

        def line(row: KernelRow) -> dict[str, Any]:
            kernel = row.kernel
            return {
                "family": kernel.family,
                "op": kernel.op,
                "latency_ms": row.time_ms() or 0.0,
                "networks": len(set(row.networks)),
                "visits": row.visits,
                "inputs": text(kernel.inputs),
                "outputs": text(kernel.outputs),
                "kernel": text([kernel.kernel]),
                "strides": text([kernel.strides]),
                "dilations": text([kernel.dilations]),
                "groups": kernel.groups,
                "activation": kernel.activation,
                "fused_add": kernel.fused_add,
                "dtype": kernel.dtype,
                "flops": kernel.flops,
                "bytes": kernel.bytes_in + kernel.bytes_out + kernel.bytes_weights,
                "signature": kernel.signature,
            }

        ordered = sorted(
            self.kernels, key=lambda r: (r.kernel.family, -(r.time_ms() or 0), r.kernel.signature)
        )
        return tuple(line(row) for row in ordered)


def _latencies(card: DeviceCard, networks: Sequence[CardNetwork]) -> list[tuple[float, float]]:
    """`latency_ms` of each network: its own where that is one, else by its fastest run.

    Beside it the standard error of its logarithm.
    """
    measured = [card.measurement(network) for network in networks]
    own = [found.latency_ms for found in measured]
    fastest = [min(v.visit.fastest_ms for v in network.visits) for network in networks]
    ratios = sorted(a / b for a, b in zip(own, fastest, strict=True))
    factor = ratios[len(ratios) // 2] if ratios else 1.0
    return [
        (
            found.latency_ms if _seen(found) else factor * fastest_ms,
            found.standard_error,
        )
        for found, fastest_ms in zip(measured, fastest, strict=True)
    ]


def _seen(found: Measurement) -> bool:
    """Whether a network's latency rests on runs that found the device undisturbed."""
    return found.accepted >= FEW_VISITS or found.fast_runs is not None


def _by_all(card: DeviceCard, networks: Sequence[CardNetwork]) -> list[tuple[float, float]]:
    """As `_latencies`, where the latencies are all that is known.

    Of networks that hardly a run found undisturbed it is what all visits together say, if that is
    so of more than half of them.
    """
    own = _latencies(card, networks)
    seen = [_seen(card.measurement(network)) for network in networks]
    if 2 * sum(seen) >= len(networks):
        return own
    visits = [[v.visit for v in network.visits] for network in networks]
    by_all = undisturbed(visits, card.sentinel_reference_ms)
    return [a if known else b for known, a, b in zip(seen, own, by_all, strict=True)]


def _usable(network: CardNetwork, timed: bool) -> bool:
    """Whether a network was visited, and with the single kernels timed where they can be."""
    return any(v.kernel_ms.size or not timed for v in network.visits)


def _explained(
    networks: Sequence[CardNetwork], latencies: Sequence[tuple[float, float]], quick: bool
) -> Explained:
    """What the latencies of all networks tell of their kernels."""
    from latency.whole_times import WholeNetwork, explain

    with one_blas_thread():
        return explain(
            [
                WholeNetwork(network.kernels, network.sources, whole_ms, noise)
                for network, (whole_ms, noise) in zip(networks, latencies, strict=True)
            ],
            quick=quick,
        )


def kernel_times(network: CardNetwork, whole_ms: float) -> list[float]:
    """Time of each kernel of a network, in order, while the network takes `whole_ms`.

    The profiler counts whole microseconds: a mean keeps what a median of a few small whole numbers
    would round away. The quickest of them are not the truth either, but those that were cut off
    most: the more visits, the quicker.

    Args:
        network: visited at least once with the single kernels timed.
        whole_ms: of the whole network, profiler off.

    Returns:
        Milliseconds, profiler on.
    """
    import numpy as np

    shares: Array = np.concatenate(
        [v.kernel_ms / v.visit.median_ms for v in network.visits if v.kernel_ms.size],
        axis=1,
    ).astype(np.float64)
    count = shares.shape[1]
    middle = np.sort(shares, axis=1)[:, count // 4 : count - count // 4]
    return [float(share) * whole_ms for share in middle.mean(axis=1)]
