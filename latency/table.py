"""The lookup table: what each kernel took in its place inside the measured networks.

Slow phases of the machine hit a whole visit, so within one visit the *shares* of the kernels are
steadier than their times. The table takes each kernel's share (median over the visits) of the
network's summed kernel time (the same low statistic as for whole networks); the kernels of a
network so add up to its measured sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from devices.measurement import latency_statistic

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from latency.card import CardNetwork, DeviceCard
    from latency.kernel import Kernel

    Array = npt.NDArray[np.float64]

__all__ = ["KernelRow", "KernelTable", "NetworkRow"]


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
        whole_ms: `latency_ms` of the whole network, profiler off.
        standard_error: of the logarithm of `whole_ms`.
        rows: for each kernel in order, its index in the table's rows.
        times_ms: for each kernel in order, its time in this network.
        visits: how many.
    """

    name: str
    kind: str
    whole_ms: float
    standard_error: float
    rows: tuple[int, ...]
    times_ms: tuple[float, ...]
    visits: int

    @property
    def sum_ms(self) -> float:
        """Summed time of the kernels, profiler on."""
        return sum(self.times_ms)


@dataclass(frozen=True)
class KernelTable:
    """All kernels and networks of a card, condensed to one time each.

    Attributes:
        kernels: each kernel once.
        networks: those that were visited with the single kernels timed.
    """

    kernels: tuple[KernelRow, ...]
    networks: tuple[NetworkRow, ...]

    @classmethod
    def from_card(cls, card: DeviceCard) -> Self:
        """Condenses a card's raw samples."""
        index: dict[str, int] = {}
        kernels: list[Kernel] = []
        occurrences: list[list[tuple[int, float, int]]] = []
        networks: list[NetworkRow] = []
        for network in card.networks:
            visits = [v for v in network.visits if v.kernel_ms.size]
            if not visits:
                continue
            measurement = card.measurement(network)
            times = _kernel_times(network, card.sentinel_reference_ms)
            rows = []
            for kernel, time_ms in zip(network.kernels, times, strict=True):
                place = index.setdefault(kernel.signature, len(kernels))
                if place == len(kernels):
                    kernels.append(kernel)
                    occurrences.append([])
                occurrences[place].append((len(networks), time_ms, len(visits)))
                rows.append(place)
            networks.append(
                NetworkRow(
                    name=network.name,
                    kind=network.kind,
                    whole_ms=measurement.latency_ms,
                    standard_error=measurement.standard_error,
                    rows=tuple(rows),
                    times_ms=tuple(times),
                    visits=len(network.visits),
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
        )

    @cached_property
    def by_signature(self) -> dict[str, KernelRow]:
        """The rows by the kernel's signature."""
        return {row.kernel.signature: row for row in self.kernels}

    def rows(self) -> tuple[dict[str, Any], ...]:
        """A dictionary for each kernel, by family and then slowest first, for CSV."""

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


def _kernel_times(network: CardNetwork, reference_ms: float) -> list[float]:
    """Time of each kernel of a network, in milliseconds, in order."""
    import numpy as np

    visits = [v for v in network.visits if v.kernel_ms.size]
    # The profiler counts whole microseconds: a mean of the middle half keeps what a median of a
    # few small whole numbers would round away.
    per_visit: Array = np.stack([_midmean(v.kernel_ms.astype(np.float64)) for v in visits])
    sums = per_visit.sum(axis=1)
    total_ms = latency_statistic(
        sums.tolist(),
        [v.visit.slowdown(reference_ms) for v in visits],
        [v.visit.steady for v in visits],
    )
    shares = np.median(per_visit / sums[:, None], axis=0)
    return [float(x) for x in total_ms * shares / shares.sum()]


def _midmean(samples: Array) -> Array:
    """Mean of the middle half of each row; shape `(kernels, runs)` in, `(kernels,)` out."""
    import numpy as np

    ordered = np.sort(np.nan_to_num(samples), axis=1)
    cut = ordered.shape[1] // 4
    return np.asarray(ordered[:, cut : ordered.shape[1] - cut].mean(axis=1))
