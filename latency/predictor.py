"""The predictor: latency of any ONNX network on the device of a card, with an honest interval.

Each kernel of the compiled network is looked up in the card's table; a kernel that was measured
often enough counts with its measured time, another with that of its family's regressor, one whose
operation was never measured with a roofline, counted as uncovered. Both know what surrounds the
kernel (`latency.context`). A calibration brings kernel sums to whole networks (the profiler adds a
little to every kernel), and is applied to the kernels, so that ``latency_ms == fixed_ms + sum of
the kernels' latency_ms`` holds exactly: a search table built from kernels adds up.

The interval is one for whole networks: see `latency.interval`. What a finished card was
fitted to is kept in it (`Predictor.to_bytes`), so that a prediction need not fit again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from devices.errors import InvalidInputError, UnavailableError
from devices.preemption import busy_warning
from latency.blas_threads import one_blas_thread
from latency.card_rows import ANCHOR, CHOSEN, WHOLE
from latency.context import Context, Surroundings
from latency.covariance import Covariance
from latency.interval import MIN_SCORES, Intervals, Score
from latency.kernel import Kernel, KernelGraph
from latency.regressor import Described, FamilyRegressor, Sample, Samples
from latency.roofline import Roofline
from latency.table import KernelTable, NetworkRow
from latency.uncollected import uncollected

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

    from latency.card import DeviceCard

    Array = npt.NDArray[np.float64]

__all__ = ["Calibration", "KernelPrediction", "Prediction", "Predictor"]

Source = Literal["measured", "regressed", "roofline"]

FIT_VERSION = 8
"""Of what `Predictor.to_bytes` writes; another one is fitted anew."""
MIN_VISITS = 3
"""A kernel seen in fewer visits is predicted instead of looked up."""
_UNCOVERED_DEVIATION = 0.85
"""Standard deviation of the logarithm of what a roofline says of an operation never measured, as
found by leaving out one operation of a card after the other (0.75 to 0.9): a network of nothing
else has an interval from a quarter to four times its latency."""
_VIEWS = "reshape"
_OPS_SEEN = 2
"""Different kernels of an operation before its family's regressor speaks for it."""
_MEASURED_DEVIATION = 0.03
"""Standard deviation of the logarithm of one kernel's measured time."""
_MAX_KEYS = 16_384
"""Kernels whose key is remembered."""
_MAX_SCORES = 500
"""Networks that the interval rests on, at most; more of them change it little."""
_LEAST_PART = 0.1
"""Of its time in the profiler that a kernel takes without it, at least."""
_CALIBRATION_UNITS = (0.01, 1.0, 0.001)
"""Of `Calibration`, such that its numbers are of like size."""
_QUICK = 0.4
"""Effort of a quick fit."""
_SCORED_VISITS = 4
"""Networks with fewer visits are too noisy to judge a prediction by, if there are others."""


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
        kernels_from: "runtime" when the runtime compiled the model, "card" when its kernels were
            told by the fusion rules that the card holds.
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
    kernels_from: Literal["runtime", "card"] = "runtime"

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
            "kernels_from": self.kernels_from,
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
    def fit(cls, times_ms: Sequence[Sequence[float]], whole_ms: Sequence[float]) -> Self:
        """Fits to measured networks, minimising the relative error.

        The least part of a kernel (`kernel_ms`) is part of what is fitted: a line through the sums
        alone has to explain chains of kernels of 2 µs, and then takes too little off those of 4 µs,
        so that networks of 0.1 ms came out 15 to 20 % too slow.

        Args:
            times_ms: of each network, the times of its kernels, at least one.
            whole_ms: of each network, its whole latency.
        """
        import numpy as np
        from scipy.optimize import least_squares

        wholes = np.array(whole_ms)
        sums = np.array([sum(times) for times in times_ms])
        if len(wholes) < 4:
            return cls(0.0, float(np.median(wholes / sums)), 0.0)
        times = np.concatenate([np.array(own) for own in times_ms])
        starts = np.cumsum([0, *(len(own) for own in times_ms[:-1])])

        def errors(units: Array) -> Array:
            fixed, scale, per_kernel = units * _CALIBRATION_UNITS
            scaled = scale * times
            parts = np.maximum(scaled + per_kernel, scaled * _LEAST_PART)
            return np.asarray((fixed + np.add.reduceat(parts, starts)) / wholes - 1)

        bounds = ([0.0, 0.6, -6.0], [10.0, 1.3, 0.0])
        # From several starts: where many kernels are at their least part there are local minima.
        tries = [least_squares(errors, [0.5, 1.0, cost], bounds=bounds) for cost in (-1, -3, -5)]
        best = min(tries, key=lambda one: float(one.cost)).x * _CALIBRATION_UNITS
        return cls(*(float(x) for x in best))

    def kernel_ms(self, time_ms: float) -> float:
        """A kernel's part of the whole; never less than a tenth of its own time.

        A kernel of 8 numbers takes 3.0 µs in the profiler and 0.32 µs without it.
        """
        scaled = self.scale * time_ms
        return max(scaled + self.per_kernel_ms, scaled * _LEAST_PART)

    def whole_ms(self, times_ms: Sequence[float]) -> float:
        """Whole latency from all kernels' times."""
        return self.fixed_ms + sum(self.kernel_ms(t) for t in times_ms)


@dataclass(frozen=True, slots=True)
class _Hit:
    """A kernel that was measured: how its time compares to what its family's regressor says."""

    residual: float
    networks: int

    @property
    def deviation(self) -> float:
        """Of the logarithm of its time."""
        return _MEASURED_DEVIATION / math.sqrt(self.networks) + 0.01


@dataclass(frozen=True, eq=False)
class _Spread:
    """How sure the times of a network's kernels are.

    Attributes:
        alone: deviation of the logarithm of each kernel that was measured, by its place.
        blocks: places of kernels that were not, one family after the other, with the covariance of
            their logarithms.
        never: places of kernels whose operation was never measured.
    """

    alone: Mapping[int, float]
    blocks: Sequence[tuple[Sequence[int], Covariance]]
    never: Sequence[int] = ()

    def deviation(self, times_ms: Sequence[float]) -> float:
        """Standard deviation of the logarithm of the sum of the kernels' times."""
        import numpy as np

        times = np.array(times_ms)
        variance = sum((times[i] * deviation) ** 2 for i, deviation in self.alone.items())
        variance += float(times[list(self.never)].sum() * _UNCOVERED_DEVIATION) ** 2
        for places, covariance in self.blocks:
            variance += covariance.of_sum(times[list(places)])
        total = float(times.sum())
        return math.sqrt(variance) / total if total else 0.0

    def together(self, times_ms: Sequence[float]) -> float:
        """As `deviation` of what was measured, if all errors went the same way."""
        import numpy as np

        times = np.array(times_ms)
        added = sum(times[i] * deviation for i, deviation in self.alone.items())
        for places, covariance in self.blocks:
            added += float(times[list(places)] @ covariance.deviations)
        total = float(times.sum() - times[list(self.never)].sum())
        return float(added / total) if total else 0.0


class Predictor:
    """Fitted to one card; fitting is deterministic.

    Use `Predictor.from_card`.

    Attributes:
        card: what it was fitted to.
        calibration: from kernel sums to whole networks.
        intervals: from a prediction to its interval.
        validation: how well the card's own networks are predicted, each by a fit that left it out;
            a JSON object. Errors are fractions of the measured latency; `summation` is what is left
            when each network's own measured kernels are summed.
    """

    def __init__(
        self,
        card: DeviceCard,
        families: Mapping[str, FamilyRegressor],
        roofline: Roofline,
        ops: Mapping[str, int],
        hits: Mapping[int, _Hit],
        calibration: Calibration,
        intervals: Intervals,
        validation: dict[str, Any],
    ) -> None:
        self.card = card
        self.calibration = calibration
        self.intervals = intervals
        self.validation = validation
        self._families = families
        self._roofline = roofline
        self._ops = ops
        self._hits = hits

    @classmethod
    def from_card(cls, card: DeviceCard) -> Self:
        """The predictor that the card holds, or one fitted to it where it holds none.

        Raises:
            InvalidInputError: nothing was measured in the card yet.
        """
        data = card.fit
        if data is not None:
            found = cls.from_bytes(card, data)
            if found is not None:
                return found
        return cls.fit(card)

    @classmethod
    def fit(cls, card: DeviceCard, quick: bool = False) -> Self:
        """Fits a predictor to everything that the card holds.

        Args:
            card: to fit to.
            quick: less exactly and with hardly any validation, to see what to measure next.

        Raises:
            InvalidInputError: nothing was measured in the card yet.
        """
        table = KernelTable.from_card(card, quick=quick)
        if not table.networks:
            raise InvalidInputError(f"{card.path}: nothing measured yet; run profile-device again.")
        with one_blas_thread():
            return cls(card, **_Fitting(table, quick).results())

    def predict(
        self,
        model: onnx.ModelProto | str | Path,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> Prediction:
        """Predicts the latency of a network on the card's device.

        Args:
            model: an ONNX model or the path of one; its batch may be symbolic, and is then the
                card's.
            shapes: of inputs with other dynamic dimensions, by name.

        Returns:
            Latency with interval, coverage, and each kernel's part.

        Raises:
            InvalidInputError: the file or the model is not readable or refused, or has dynamic
                dimensions other than the batch that `shapes` does not fix.
            UnavailableError: the card's runtime, which has to compile the model, is not here, and
                the card holds no fusion rules to go by instead.
        """
        from devices.onnx_files import fix_shapes, read_onnx

        label = f"{model}: " if isinstance(model, str | Path) else ""
        proto = read_onnx(model) if isinstance(model, str | Path) else model
        try:
            proto = fix_shapes(proto, self.card.settings.batch, shapes)
            if self._compiles:
                return self.predict_graph(self._compiled(proto))
            graph, warning = self._by_rules(proto)
        except InvalidInputError as error:
            raise InvalidInputError(f"{label}{error}") from error
        found = self.predict_graph(graph)
        return replace(found, kernels_from="card", warnings=(*found.warnings, warning))

    def predict_graph(self, graph: KernelGraph) -> Prediction:
        """As `predict`, for kernels that were read already.

        Args:
            graph: kernels as the card's runtime compiles them.
        """
        with uncollected():
            times, sources, spread = self._kernel_times(graph)
        kernels = tuple(
            KernelPrediction(node.kernel, self.calibration.kernel_ms(time_ms), source, node.nodes)
            for node, time_ms, source in zip(graph.kernels, times, sources, strict=True)
        )
        total_ms = math.fsum(k.latency_ms for k in kernels)
        uncovered_ms = sum(k.latency_ms for k in kernels if k.source == "roofline")
        latency_ms = self.calibration.fixed_ms + total_ms
        width = self.intervals.half_width(spread.deviation([k.latency_ms for k in kernels]))
        unknown = Counter(k.kernel.op for k in kernels if k.source == "roofline")
        return Prediction(
            latency_ms=latency_ms,
            low_ms=latency_ms * math.exp(-width),
            high_ms=latency_ms * math.exp(width),
            coverage=1.0 - uncovered_ms / total_ms if total_ms else 1.0,
            fixed_ms=self.calibration.fixed_ms,
            kernels=kernels,
            uncovered=tuple(sorted(unknown.items())),
            warnings=self._warnings(unknown),
            device=self.card.fingerprint,
            simulated=self.card.simulated,
        )

    def uncertainty(self, graph: KernelGraph) -> float:
        """Deviation of the logarithm of a network's time, were all kernels wrong the same way.

        Kernels that were never measured are left out.

        Args:
            graph: kernels as the card's runtime compiles them.
        """
        times, _, spread = self._kernel_times(graph)
        return spread.together([self.calibration.kernel_ms(t) for t in times])

    def to_bytes(self) -> bytes:
        """The fit as bytes, without pickle: arrays, and JSON beside them."""
        import numpy as np
        from safetensors.numpy import save

        arrays: dict[str, npt.NDArray[Any]] = {
            "hits": np.array(sorted(self._hits), dtype=np.uint64),
            "residuals": np.array(
                [self._hits[key].residual for key in sorted(self._hits)], dtype=np.float32
            ),
            "networks": np.array(
                [self._hits[key].networks for key in sorted(self._hits)], dtype=np.int32
            ),
        }
        families = {}
        for name, family in sorted(self._families.items()):
            families[name], own = family.to_arrays()
            for part, array in own.items():
                # Single precision is enough for what is good to a percent, and half as long.
                arrays[f"{name}/{part}"] = np.ascontiguousarray(array, dtype=np.float32)
        about = {
            "version": FIT_VERSION,
            "families": families,
            "roofline": list(self._roofline.coefficients),
            "ops": dict(sorted(self._ops.items())),
            "calibration": asdict(self.calibration),
            "intervals": self.intervals.to_json(),
            "validation": self.validation,
        }
        return bytes(save(arrays, {"fit": json.dumps(about, sort_keys=True)}))

    @classmethod
    def from_bytes(cls, card: DeviceCard, data: bytes) -> Self | None:
        """The predictor from what `to_bytes` gave; None when another version wrote it.

        Raises:
            InvalidInputError: the bytes are damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            length = int.from_bytes(data[:8], "little")
            about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["fit"])
            if about["version"] != FIT_VERSION:
                return None
            arrays = load(data)
            parts: dict[str, dict[str, Any]] = {name: {} for name in about["families"]}
            for key, array in arrays.items():
                name, slash, part = key.partition("/")
                if slash:
                    parts[name][part] = array
            hits = zip(arrays["hits"], arrays["residuals"], arrays["networks"], strict=True)
            return cls(
                card,
                families={
                    name: FamilyRegressor.from_arrays(own, parts[name])
                    for name, own in about["families"].items()
                },
                roofline=Roofline.from_json(about["roofline"]),
                ops={str(op): int(count) for op, count in about["ops"].items()},
                hits={int(key): _Hit(float(residual), int(n)) for key, residual, n in hits},
                calibration=Calibration(**about["calibration"]),
                intervals=Intervals.from_json(about["intervals"]),
                validation=about["validation"],
            )
        except (AttributeError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise InvalidInputError(
                f"{card.path}: damaged device card (its fit is unreadable); copy it again."
            ) from error

    @cached_property
    def _compiles(self) -> bool:
        return self.card.is_this_machine()

    def _compiled(self, model: onnx.ModelProto) -> KernelGraph:
        """The kernels as the card's runtime compiles them, here and now."""
        from devices.runtimes import get_runtime
        from latency.executed import executed_here

        runtime, per_op_times = get_runtime(self.card.runtime), self.card.per_op_times
        return KernelGraph.from_compiled(
            model, executed_here(model, runtime, self.card.settings, per_op_times)
        )

    def _by_rules(self, model: onnx.ModelProto) -> tuple[KernelGraph, str]:
        """The kernels by the rules that the card holds, and a line that says so."""
        rules = self.card.fusion_rules
        if rules is None:
            raise UnavailableError(
                f"{self.card.path}: {self.card.runtime} {self.card.runtime_version} is not "
                "available here, and the card holds no fusion rules; profile the device again."
            )
        graph, unknown = rules.explain(model)
        warning = "kernels from the card's fusion rules, not from the runtime"
        if unknown:
            names = ", ".join(sorted(set(unknown))[:3])
            warning += f"; {len(set(unknown))} patterns never seen ({names})"
        return graph, f"{warning}."

    def _kernel_times(self, graph: KernelGraph) -> tuple[list[float], list[Source], _Spread]:
        """Uncalibrated time of each kernel, where it is from, and how sure it is."""
        import numpy as np

        nodes = graph.kernels
        hits = self._looked_up(graph)
        times = np.zeros(len(nodes))
        members: dict[str, list[int]] = {}
        for i, node in enumerate(nodes):
            family = node.kernel.family
            # The only kernel of its operation may be one that was measured.
            seen = self._ops.get(node.kernel.op, 0) >= _OPS_SEEN or hits[i] is not None
            if family in self._families and seen:
                members.setdefault(family, []).append(i)
            else:
                own_kind = self._families.get(family) if family == _VIEWS else None
                roofline = own_kind.roofline if own_kind else self._roofline
                times[i] = roofline.predict_one(node.kernel)
        kernels = {
            family: Described.of([nodes[i].kernel for i in places])
            for family, places in members.items()
        }
        lift = np.array([math.exp(hit.residual) if hit else 1.0 for hit in hits])
        for family, places in members.items():
            times[places] = self._families[family].roofline.predict(kernels[family].terms)
        # How long ago a kernel's weights were used depends on the times that are asked for: those
        # of the roofline tell it roughly, those of a first answer well enough.
        surroundings = Surroundings.of([n.kernel for n in nodes], [n.sources for n in nodes])
        around = surroundings.table(times)
        for family, places in members.items():
            found = self._families[family].times_ms(kernels[family], around[places])
            times[places] = found * lift[places]
        around = surroundings.table(times)
        blocks: list[tuple[list[int], Covariance]] = []
        for family, places in members.items():
            # How sure a regressor is takes longer than what it says, and matters only where no
            # measurement says it.
            for asked in (True, False):
                picks = [j for j, i in enumerate(places) if (hits[i] is None) == asked]
                if not picks:
                    continue
                chosen, described = [places[j] for j in picks], kernels[family].take(picks)
                own, regressor = around[chosen], self._families[family]
                if asked:
                    found, covariance = regressor.predict(described, own)
                    blocks.append((chosen, covariance))
                else:
                    found = regressor.times_ms(described, own)
                times[chosen] = found * lift[chosen]
        sources: list[Source] = ["roofline"] * len(nodes)
        for places in members.values():
            for i in places:
                sources[i] = "measured" if hits[i] else "regressed"
        alone = {i: hit.deviation for i, hit in enumerate(hits) if hit is not None}
        never = [i for i, source in enumerate(sources) if source == "roofline"]
        return times.tolist(), sources, _Spread(alone, blocks, never)

    def _looked_up(self, graph: KernelGraph) -> list[_Hit | None]:
        """What was measured of each kernel."""
        found: dict[int, _Hit | None] = {}
        for node in graph.kernels:
            # Equal kernels of a graph are one object, and signatures take their time.
            if id(node.kernel) not in found:
                found[id(node.kernel)] = self._hits.get(_key(node.kernel))
        return [found[id(node.kernel)] for node in graph.kernels]

    def _warnings(self, unknown: Mapping[str, int]) -> tuple[str, ...]:
        lines = list(self._card_warnings)
        if unknown:
            names = ", ".join(f"{op} ×{count}" for op, count in sorted(unknown.items()))
            lines.append(f"never measured on this device, roofline estimate: {names}.")
        if self.intervals.scores < MIN_SCORES:
            lines.append(
                f"only {self.intervals.scores} networks in the card; the interval is a guess, "
                "profile for longer."
            )
        return tuple(lines)

    @cached_property
    def _card_warnings(self) -> tuple[str, ...]:
        busy = busy_warning(self.card.preempted)
        lines = self.card.check_usable(allow_mismatch=True)
        return (*lines, f"{self.card.path}: {busy}") if busy else lines


class _Fitting:
    """One fit to a table, step by step."""

    def __init__(self, table: KernelTable, quick: bool = False) -> None:
        self.table = table
        self.max_scores = 20 if quick else _MAX_SCORES
        effort = _QUICK if quick else 1.0
        self.keys: dict[int, int] = {}
        self.samples: dict[str, list[Sample]] = {}
        # For each network, the family and place of the sample of each of its kernels.
        self.places: list[list[tuple[str, int] | None]] = []
        for network in table.networks:
            row: list[tuple[str, int] | None] = []
            for kernel, context, time_ms in _kernels(table, network):
                if time_ms <= 0:
                    row.append(None)
                    continue
                own = self.samples.setdefault(kernel.family, [])
                row.append((kernel.family, len(own)))
                own.append(Sample(kernel, context, time_ms, network.visits))
            self.places.append(row)
        self.measured = {name: Samples.of(own) for name, own in sorted(self.samples.items())}
        # What was worked out of whole networks says of any kernel what it takes, and adds up.
        self.families = (
            dict(table.explained.families)
            if table.explained
            else {name: FamilyRegressor.fit(own, effort) for name, own in self.measured.items()}
        )
        self.calibration = self._calibrate(None)
        self.residuals = self._residuals()

    def results(self) -> dict[str, Any]:
        """What `Predictor` is made of."""
        import numpy as np

        # Views touch nothing of what their shapes say; with them among the rest a byte cost next to
        # nothing, and operations that were left out came out six times too fast.
        moving = [own for name, own in self.measured.items() if name != _VIEWS]
        roofline = Roofline.fit(
            np.concatenate([own.terms for own in moving or self.measured.values()]),
            np.concatenate([own.times_ms for own in moving or self.measured.values()]),
        )
        self.left_out = self._left_out() if self.table.timed else {}
        scores = [self._judge(i) for i in self._judged()]
        intervals = Intervals.fit(scores)
        return {
            "families": self.families,
            "roofline": roofline,
            "ops": Counter(row.kernel.op for row in self.table.kernels if row.time_ms()),
            "hits": {
                key: hit
                for key, found in self.residuals.items()
                if (hit := _hit(found, without=None)) is not None
            },
            "calibration": self.calibration,
            "intervals": intervals,
            "validation": self._validation(scores, intervals),
        }

    def _calibrate(self, without: int | None) -> Calibration:
        if self.table.explained:
            return Calibration(self.table.explained.fixed_ms, 1.0, 0.0)
        networks = [n for i, n in enumerate(self.table.networks) if i != without]
        return Calibration.fit([n.times_ms for n in networks], [n.whole_ms for n in networks])

    def _residuals(self) -> dict[int, list[tuple[int, float, int]]]:
        """By kernel: the network, the logarithm of time over prediction, and the visits of each."""
        residuals: dict[int, list[tuple[int, float, int]]] = {}
        if not self.table.timed:  # nothing is known of a kernel by itself
            return residuals
        by_family = {
            name: self.families[name].residuals(own) for name, own in self.measured.items()
        }
        for index, row in enumerate(self.places):
            for place in row:
                if place is None:
                    continue
                sample = self.samples[place[0]][place[1]]
                residual = float(by_family[place[0]][place[1]])
                residuals.setdefault(self._key(sample.kernel), []).append(
                    (index, residual, sample.visits)
                )
        return residuals

    def _judged(self) -> list[int]:
        """The networks that predictions are judged by."""
        import numpy as np

        # An anchor is no network that anybody would ask about.
        networks = self.table.networks
        judged = [i for i, n in enumerate(networks) if n.kind != ANCHOR] or [0]
        # Probes that were chosen because little was known of them are harder than others; those
        # built like whole networks are like what will be asked about.
        drawn = [i for i in judged if not networks[i].name.startswith(CHOSEN)]
        alike = [i for i in judged if networks[i].name.startswith(WHOLE)]
        for better in (drawn, alike):
            if len(better) >= 2 * MIN_SCORES:
                judged = better
        seen = [i for i in judged if networks[i].visits >= _SCORED_VISITS]
        if len(seen) >= 2 * MIN_SCORES:
            judged = seen
        if len(judged) > self.max_scores:
            picks = np.random.default_rng(0).permutation(len(judged))[: self.max_scores]
            judged = [judged[int(i)] for i in np.sort(picks)]
        return judged

    def _left_out(self) -> dict[tuple[int, str], tuple[list[int], Array, Array]]:
        """What regressors say of the judged networks' kernels, each network left out.

        By network and family the numbers of the samples, their times and the covariance of the
        logarithms.
        """
        import numpy as np

        wanted: dict[str, list[tuple[int, int]]] = {}
        for index in self._judged():
            for place in self.places[index]:
                if place is not None:
                    wanted.setdefault(place[0], []).append((index, place[1]))
        found = {}
        for family, members in wanted.items():
            groups = np.array([index for index, _ in members])
            own = self.measured[family].take([place for _, place in members])
            for rows, times, covariance in self.families[family].without(own, groups):
                numbers = [members[row][1] for row in rows]
                found[members[rows[0]][0], family] = numbers, times, covariance
        return found

    def _key(self, kernel: Kernel) -> int:
        # Equal kernels of a table are one object, and signatures take their time.
        if id(kernel) not in self.keys:
            self.keys[id(kernel)] = _key(kernel)
        return self.keys[id(kernel)]

    def _judge(self, index: int) -> Score:
        """Predicts one of the card's networks without anything that was learned from it."""
        network = self.table.networks[index]
        if network.left_out_ms is not None:
            return Score(
                kind=network.kind,
                whole_ms=network.whole_ms,
                predicted_ms=network.left_out_ms,
                summed_ms=self.calibration.whole_ms(network.times_ms),
                deviation=network.left_out_deviation,
                noise=network.noise,
            )
        many = len(self.table.networks)
        # One network in a hundred does not move three coefficients, but refitting takes its time.
        calibration = self._calibrate(index) if 4 < many <= 100 else self.calibration
        times: list[float] = []
        alone: dict[int, float] = {}
        blocks: list[tuple[list[int], Covariance]] = []
        for family in dict.fromkeys(place[0] for place in self.places[index] if place):
            numbers, said, covariance = self.left_out[index, family]
            lifts: list[float] = []
            asked: list[int] = []
            for row, number in enumerate(numbers):
                sample = self.samples[family][number]
                hit = _hit(self.residuals.get(self._key(sample.kernel), ()), without=index)
                if hit is None:
                    asked.append(row)
                else:
                    alone[len(times) + row] = hit.deviation
                lifts.append(math.exp(hit.residual) if hit else 1.0)
            if asked:
                places = [len(times) + row for row in asked]
                blocks.append((places, Covariance(covariance[asked][:, asked])))
            times.extend((said * lifts).tolist())
        missing = len(network.rows) - len(times)
        return Score(
            kind=network.kind,
            whole_ms=network.whole_ms,
            predicted_ms=calibration.whole_ms([*times, *([0.0] * missing)]),
            summed_ms=calibration.whole_ms(network.times_ms),
            deviation=_Spread(alone, blocks).deviation([calibration.kernel_ms(t) for t in times]),
            noise=network.noise,
        )

    def _validation(self, scores: Sequence[Score], intervals: Intervals) -> dict[str, Any]:
        groups: dict[str, list[Score]] = {}
        for score in scores:
            groups.setdefault(score.kind, []).append(score)
        widths = sorted(math.exp(intervals.half_width(s.deviation)) - 1 for s in scores)
        return {
            "method": "leave one network out",
            "networks": len(scores),
            **_errors([s.predicted_ms / s.whole_ms for s in scores]),
            "by_kind": {
                kind: _errors([s.predicted_ms / s.whole_ms for s in group])
                for kind, group in sorted(groups.items())
            },
            # What was worked out from whole networks cannot be judged kernel by kernel.
            "by_family": self._family_errors() if self.table.timed else {},
            # Of a runtime without per-op times this says how well the networks were explained.
            "summation": _errors([s.summed_ms / s.whole_ms for s in scores]),
            "kernels_timed": self.table.timed,
            "interval_half_width": widths[len(widths) // 2],
            "calibration": asdict(self.calibration),
        }

    def _family_errors(self) -> dict[str, Any]:
        """Errors of single kernels, their networks left out, by family, with their shares."""
        ratios: dict[str, list[float]] = {}
        spent: dict[str, float] = {}
        for (_, family), (numbers, times, _) in self.left_out.items():
            for number, time_ms in zip(numbers, times, strict=True):
                sample = self.samples[family][number]
                ratios.setdefault(family, []).append(time_ms / sample.time_ms)
                spent[family] = spent.get(family, 0.0) + sample.time_ms
        total = sum(spent.values())
        return {
            family: {
                **_errors(found),
                "kernels": len(self.samples[family]),
                "share": spent[family] / total,
            }
            for family, found in sorted(ratios.items())
        }


def _kernels(table: KernelTable, network: NetworkRow) -> Iterable[tuple[Kernel, Context, float]]:
    for row, context, time_ms in zip(network.rows, network.contexts, network.times_ms, strict=True):
        yield table.kernels[row].kernel, context, time_ms


@lru_cache(maxsize=_MAX_KEYS)
def _key(kernel: Kernel) -> int:
    """A number that stands for the kernel; equal kernels have equal ones."""
    digest = hashlib.blake2b(kernel.signature.encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _hit(found: Sequence[tuple[int, float, int]], without: int | None) -> _Hit | None:
    """What was measured of a kernel, one network left out; None when that is too little."""
    others = [(residual, visits) for index, residual, visits in found if index != without]
    if sum(visits for _, visits in others) < MIN_VISITS:
        return None
    ordered = sorted(residual for residual, _ in others)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return _Hit(median, len(ordered))


def _errors(ratios: Sequence[float]) -> dict[str, float]:
    """Median and 90th percentile of the absolute error, and the share within 10 %."""
    errors = sorted(abs(ratio - 1) for ratio in ratios)
    count = len(errors)
    return {
        "median_error": errors[count // 2],
        "p90_error": errors[min(count - 1, int(0.9 * count))],
        "within_10_percent": sum(e <= 0.1 for e in errors) / count,
    }
