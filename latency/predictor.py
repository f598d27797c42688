"""The predictor: latency of any ONNX network on the device of a card, with an honest interval.

Each kernel of the compiled network is looked up in the card's table; a kernel that was measured
often enough counts with its measured time, another with that of its family's regressor, one whose
operation was never measured with a roofline, counted as uncovered. A calibration brings kernel sums
to whole networks (the profiler adds a little to every kernel), and is applied to the kernels, so
that ``latency_ms == fixed_ms + sum of the kernels' latency_ms`` holds exactly: a search table built
from kernels adds up.

The interval is conformal, on whole networks: every network of the card is predicted by a fit that
has not seen it, its own kernels and its share in the calibration included, and the 90 % quantile of
the errors is the half-width. (Vovk et al., *Algorithmic Learning in a Random World*, 2005; kernel
intervals would not add up.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from devices.errors import InvalidInputError
from latency.card import ANCHOR
from latency.kernel import Kernel, KernelGraph, KernelNode
from latency.regressor import FamilyRegressor
from latency.roofline import Roofline, roofline_terms
from latency.table import KernelTable, NetworkRow

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

    from latency.card import DeviceCard

    Array = npt.NDArray[np.float64]

__all__ = ["Calibration", "KernelPrediction", "Prediction", "Predictor"]

Source = Literal["measured", "regressed", "roofline"]

MIN_VISITS = 3
"""A kernel seen in fewer visits is predicted instead of looked up."""
INTERVAL = 0.90
"""Share of networks whose latency the interval is made to hold."""
UNCOVERED_FACTOR = 3.0
"""How far off, either way, the roofline of an operation never measured may be."""
_MOSTLY_MEASURED = 0.8
_MIN_SCORES = 19
"""Networks in a group before it gets an interval of its own: the smallest number of which the 90 %
quantile is not their largest error."""
_OPS_SEEN = 2
"""Different kernels of an operation before its family's regressor speaks for it."""


@dataclass(frozen=True, slots=True)
class KernelPrediction:
    """One kernel's part of a prediction.

    Attributes:
        kernel: what is executed.
        latency_ms: its part of the network's latency, calibration included.
        source: "measured" (in the card's table), "regressed" (from its family), or "roofline"
            (its operation was never measured).
        nodes: names of the model's nodes that it covers, the heaviest first.
    """

    kernel: Kernel
    latency_ms: float
    source: Source
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted latency of one network.

    Attributes:
        latency_ms: of the undisturbed device; equals `fixed_ms` plus the kernels' sum.
        low_ms: lower end of the 90 % interval.
        high_ms: upper end of the 90 % interval.
        coverage: share of the kernels' time that is on operations that were measured, 0 to 1.
        fixed_ms: part that belongs to no kernel.
        kernels: in the order of execution.
        uncovered: names of operations that were never measured, each with how often it occurs.
        warnings: lines to show with the figures.
        device: fingerprint of the card.
        simulated: whether the card was simulated.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    coverage: float
    fixed_ms: float
    kernels: tuple[KernelPrediction, ...]
    uncovered: tuple[tuple[str, int], ...]
    warnings: tuple[str, ...]
    device: str
    simulated: bool

    def to_json(self) -> dict[str, Any]:
        """The prediction as a JSON object."""
        return {
            "latency_ms": self.latency_ms,
            "low_ms": self.low_ms,
            "high_ms": self.high_ms,
            "coverage": self.coverage,
            "fixed_ms": self.fixed_ms,
            "uncovered": dict(self.uncovered),
            "warnings": list(self.warnings),
            "device": self.device,
            "simulated": self.simulated,
            "kernels": [
                {
                    "latency_ms": item.latency_ms,
                    "source": item.source,
                    "nodes": list(item.nodes),
                    "kernel": item.kernel.to_json(),
                }
                for item in self.kernels
            ],
        }


@dataclass(frozen=True, slots=True)
class Calibration:
    """From kernel times with the profiler on to whole networks with it off.

    Attributes:
        fixed_ms: part of every run outside the kernels.
        scale: of a kernel's time.
        per_kernel_ms: added to every kernel; negative, what the profiler costs.
    """

    fixed_ms: float
    scale: float
    per_kernel_ms: float

    @classmethod
    def fit(cls, sums_ms: Array, counts: Array, whole_ms: Array) -> Self:
        """Fits to measured networks, minimising the relative error.

        Args:
            sums_ms: summed kernel time of each network, shape `(networks,)`.
            counts: number of its kernels, same shape.
            whole_ms: its whole latency, same shape.
        """
        import numpy as np
        from scipy.optimize import lsq_linear

        if len(whole_ms) < 4:
            return cls(0.0, float(np.median(whole_ms / sums_ms)), 0.0)
        # Columns in like units, so that the solver's tolerance means the same for each.
        columns = np.stack([np.full_like(sums_ms, 0.01), sums_ms, counts * 0.001], axis=1)
        bounds = ([0.0, 0.6, -6.0], [10.0, 1.3, 0.0])
        found = lsq_linear(columns / whole_ms[:, None], np.ones(len(whole_ms)), bounds).x
        return cls(float(found[0]) * 0.01, float(found[1]), float(found[2]) * 0.001)

    def kernel_ms(self, time_ms: float) -> float:
        """A kernel's part of the whole; never less than a tenth of its own time.

        A kernel of 8 numbers takes 3.0 µs in the profiler and 0.32 µs without it.
        """
        return max(self.scale * time_ms + self.per_kernel_ms, self.scale * time_ms / 10)

    def whole_ms(self, times_ms: Sequence[float]) -> float:
        """Whole latency from all kernels' times."""
        return self.fixed_ms + sum(self.kernel_ms(t) for t in times_ms)


@dataclass(frozen=True, slots=True)
class _Score:
    """How a network of the card came out when the fit had not seen it."""

    kind: str
    whole_ms: float
    predicted_ms: float
    summed_ms: float
    measured_share: float

    @property
    def error(self) -> float:
        """Absolute error of the logarithm."""
        return abs(math.log(self.predicted_ms / self.whole_ms))


class Predictor:
    """Fitted to one card; fitting is deterministic and takes about a second.

    Use `Predictor.from_card`.

    Attributes:
        card: what it was fitted to.
        table: the card's lookup table.
        calibration: from kernel sums to whole networks.
    """

    def __init__(self, card: DeviceCard) -> None:
        self.card = card
        self.table = KernelTable.from_card(card)
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        if not self.table.networks:
            raise InvalidInputError(f"{card.path}: nothing measured yet; run profile-device again.")
        # Small matrices on few cores: threads of the linear algebra only get in each other's way.
        with threadpool_limits(1):
            self._fit()

    @classmethod
    def from_card(cls, card: DeviceCard) -> Self:
        """Fits a predictor to a card.

        Raises:
            InvalidInputError: nothing was measured in the card yet.
        """
        return cls(card)

    def predict(self, model: onnx.ModelProto | str | Path) -> Prediction:
        """Predicts the latency of a network on the card's device.

        Args:
            model: an ONNX model or the path of one; its batch may be symbolic, and is then the
                card's.

        Returns:
            Latency with interval, coverage, and each kernel's part.

        Raises:
            InvalidInputError: the file or the model is not readable or refused, or has dynamic
                dimensions other than the batch.
            UnavailableError: the card's runtime, which has to compile the model, is not here.
        """
        from devices.onnx_files import fix_shapes, read_onnx
        from devices.runtimes import get_runtime

        label = f"{model}: " if isinstance(model, str | Path) else ""
        proto = read_onnx(model) if isinstance(model, str | Path) else model
        try:
            proto = fix_shapes(proto, self.card.settings.batch)
            compiled = get_runtime(self.card.runtime).compile(
                proto.SerializeToString(), self.card.settings
            )
            graph = KernelGraph.from_compiled(proto, compiled.data)
        except InvalidInputError as error:
            raise InvalidInputError(f"{label}{error}") from error
        return self.predict_graph(graph)

    def predict_graph(self, graph: KernelGraph) -> Prediction:
        """As `predict`, for kernels that were read already.

        Args:
            graph: kernels as the card's runtime compiles them.
        """
        times, sources = self._kernel_times([node.kernel for node in graph.kernels])
        kernels = tuple(
            KernelPrediction(node.kernel, self.calibration.kernel_ms(time_ms), source, node.nodes)
            for node, time_ms, source in zip(graph.kernels, times, sources, strict=True)
        )
        total_ms = math.fsum(k.latency_ms for k in kernels)
        measured_ms = sum(k.latency_ms for k in kernels if k.source == "measured")
        uncovered_ms = sum(k.latency_ms for k in kernels if k.source == "roofline")
        latency_ms = self.calibration.fixed_ms + total_ms
        width = self._half_width(measured_ms / total_ms if total_ms else 1.0)
        known_ms = latency_ms - uncovered_ms
        unknown = Counter(k.kernel.op for k in kernels if k.source == "roofline")
        return Prediction(
            latency_ms=latency_ms,
            low_ms=known_ms * math.exp(-width) + uncovered_ms / UNCOVERED_FACTOR,
            high_ms=known_ms * math.exp(width) + uncovered_ms * UNCOVERED_FACTOR,
            coverage=1.0 - uncovered_ms / total_ms if total_ms else 1.0,
            fixed_ms=self.calibration.fixed_ms,
            kernels=kernels,
            uncovered=tuple(sorted(unknown.items())),
            warnings=self._warnings(graph.kernels, unknown),
            device=self.card.fingerprint,
            simulated=self.card.simulated,
        )

    @cached_property
    def validation(self) -> dict[str, Any]:
        """How well the card's own networks are predicted, each by a fit that left it out.

        Returns:
            A JSON object. Errors are fractions of the measured latency; `summation` is what is left
            when each network's own measured kernels are summed.
        """
        groups = {"all": list(self._scores)}
        for score in self._scores:
            groups.setdefault(score.kind, []).append(score)
        errors = {
            name: _errors([s.predicted_ms / s.whole_ms for s in group])
            for name, group in groups.items()
        }
        return {
            "method": "leave one network out",
            "networks": len(self._scores),
            **errors.pop("all"),
            "by_kind": errors,
            "summation": _errors([s.summed_ms / s.whole_ms for s in self._scores]),
            "interval_half_width": math.exp(self._half_width(0.0)) - 1,
            "calibration": {
                "fixed_ms": self.calibration.fixed_ms,
                "scale": self.calibration.scale,
                "per_kernel_ms": self.calibration.per_kernel_ms,
            },
        }

    # -- fitting

    def _fit(self) -> None:
        import numpy as np

        rows = self.table.kernels
        self._times = [row.time_ms() or 0.0 for row in rows]
        self._usable = [i for i, t in enumerate(self._times) if t > 0]
        terms = np.array([roofline_terms(rows[i].kernel) for i in self._usable])
        times = np.array([self._times[i] for i in self._usable])
        self._roofline = Roofline.fit(terms, times)
        members: dict[str, list[int]] = {}
        for i in self._usable:
            members.setdefault(rows[i].kernel.family, []).append(i)
        self._members = members
        self._families = {
            family: FamilyRegressor.fit(
                [rows[i].kernel for i in indices], [self._times[i] for i in indices]
            )
            for family, indices in members.items()
        }
        self._ops = Counter(rows[i].kernel.op for i in self._usable)
        self.calibration = self._calibrate(None)
        # An anchor is no network that anybody would ask about.
        judged = [i for i, n in enumerate(self.table.networks) if n.kind != ANCHOR]
        self._scores = tuple(self._judge(i) for i in judged or range(len(self.table.networks)))

    def _calibrate(self, without: int | None) -> Calibration:
        import numpy as np

        networks = [n for i, n in enumerate(self.table.networks) if i != without]
        return Calibration.fit(
            np.array([n.sum_ms for n in networks]),
            np.array([float(len(n.rows)) for n in networks]),
            np.array([n.whole_ms for n in networks]),
        )

    def _judge(self, index: int) -> _Score:
        """Predicts one of the card's networks without anything that was learned from it."""
        network = self.table.networks[index]
        many = len(self.table.networks)
        # One network in a hundred does not move three coefficients, but refitting takes its time.
        calibration = self._calibrate(index) if 4 < many <= 100 else self.calibration
        answers = self._answers_without(network, index)
        times, measured_ms = [], 0.0
        for row in network.rows:
            others = self.table.kernels[row].time_ms(without=index)
            if others is not None and others > 0:
                times.append(others)
                measured_ms += others
            else:
                times.append(answers.get(row, self._times[row]))
        return _Score(
            kind=network.kind,
            whole_ms=network.whole_ms,
            predicted_ms=calibration.whole_ms(times),
            summed_ms=calibration.whole_ms(network.times_ms),
            measured_share=measured_ms / max(sum(times), 1e-9),
        )

    def _answers_without(self, network: NetworkRow, index: int) -> dict[int, float]:
        """Regressed time of the kernels that only this network has, by row."""
        own: dict[str, list[int]] = {}
        for row in dict.fromkeys(network.rows):
            entry = self.table.kernels[row]
            if set(entry.networks) == {index} and self._times[row] > 0:
                own.setdefault(entry.kernel.family, []).append(row)
        answers: dict[int, float] = {}
        for family, rows in own.items():
            members = self._members[family]
            place = {row: i for i, row in enumerate(members)}
            found = self._families[family].without([place[row] for row in rows])
            for i, time_ms in found.items():
                answers[members[i]] = time_ms
        return answers

    # -- predicting

    def _kernel_times(self, kernels: Sequence[Kernel]) -> tuple[list[float], list[Source]]:
        """Uncalibrated time of each kernel, and where it comes from."""
        times = [0.0] * len(kernels)
        sources: list[Source] = ["roofline"] * len(kernels)
        waiting: dict[str, list[int]] = {}
        for i, kernel in enumerate(kernels):
            row = self.table.by_signature.get(kernel.signature)
            time_ms = row.time_ms() if row is not None else None
            if row is not None and time_ms and row.visits >= MIN_VISITS:
                times[i], sources[i] = time_ms, "measured"
            elif kernel.family in self._families and self._ops[kernel.op] >= _OPS_SEEN:
                waiting.setdefault(kernel.family, []).append(i)
                sources[i] = "regressed"
            else:
                times[i] = self._roofline.predict_one(kernel)
        for family, places in waiting.items():
            found = self._families[family].predict([kernels[i] for i in places])
            for i, time_ms in zip(places, found, strict=True):
                times[i] = time_ms
        return times, sources

    def _half_width(self, measured_share: float) -> float:
        """Half-width of the interval of the logarithm, for a network with that share looked up.

        Networks of which most was measured are judged by others like them. Where there are too few,
        errors of all networks are compared after division by how difficult each was (normalised
        conformal prediction).
        """
        mostly = measured_share >= _MOSTLY_MEASURED
        group = [s.error for s in self._scores if (s.measured_share >= _MOSTLY_MEASURED) == mostly]
        if len(group) >= _MIN_SCORES:
            return _conformal_quantile(group)
        scaled = [s.error / self._difficulty(s.measured_share) for s in self._scores]
        return _conformal_quantile(scaled) * self._difficulty(measured_share)

    def _difficulty(self, measured_share: float) -> float:
        """Expected error of a network with that share looked up, as a part of one with none.

        Kernels looked up are still as far off as sums of measured kernels are, and doubly so, since
        they were measured inside other networks.
        """
        regressed = max(_rank([s.error for s in self._scores], INTERVAL), 1e-9)
        summed = _rank([abs(math.log(s.summed_ms / s.whole_ms)) for s in self._scores], INTERVAL)
        looked_up = min(1.0, max(0.1, 2 * summed / regressed))
        return looked_up + (1 - looked_up) * (1 - measured_share)

    def _warnings(self, nodes: Sequence[KernelNode], unknown: Mapping[str, int]) -> tuple[str, ...]:
        lines = list(self._card_warnings)
        if unknown:
            names = ", ".join(f"{op} ×{count}" for op, count in sorted(unknown.items()))
            lines.append(f"never measured on this device, roofline estimate: {names}.")
        if len(self._scores) < _MIN_SCORES:
            lines.append(
                f"only {len(self._scores)} networks in the card; the interval is a guess, profile "
                "for longer."
            )
        return tuple(lines)

    @cached_property
    def _card_warnings(self) -> tuple[str, ...]:
        return self.card.check_usable(allow_mismatch=True)


def _rank(values: Sequence[float], share: float) -> float:
    """The value at that share of the sorted values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _conformal_quantile(errors: Sequence[float]) -> float:
    """The error that one more network stays below with probability `INTERVAL`."""
    ordered = sorted(errors)
    rank = math.ceil((len(ordered) + 1) * INTERVAL)
    if rank <= len(ordered):
        return ordered[rank - 1]
    # Too few networks for the quantile: half as much again as the largest error seen.
    return max(ordered[-1] * 1.5, 0.1)


def _errors(ratios: Sequence[float]) -> dict[str, float]:
    """Median and 90th percentile of the absolute error, and the share within 10 %."""
    errors = sorted(abs(ratio - 1) for ratio in ratios)
    count = len(errors)
    return {
        "median_error": errors[count // 2],
        "p90_error": errors[min(count - 1, int(0.9 * count))],
        "within_10_percent": sum(e <= 0.1 for e in errors) / count,
    }
