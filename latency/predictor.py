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

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from devices.errors import AutospaceError, InvalidInputError, UnavailableError, UsageError
from devices.preemption import busy_warning
from latency.blas_threads import one_blas_thread
from latency.calibration import Calibration
from latency.card_writer import keep_derived
from latency.context import Surroundings
from latency.covariance import Covariance
from latency.fitting import VIEWS, Fitting
from latency.fusion_apply import explain
from latency.hits import Hit, Spread, kernel_key
from latency.interval import MIN_SCORES, Intervals
from latency.kernel import KernelGraph
from latency.kernel_reading import read_kernels
from latency.prediction import KernelPrediction, Prediction, Source
from latency.regressor import Described, FamilyRegressor
from latency.roofline import Roofline
from latency.table import KernelTable
from latency.uncollected import uncollected

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx

    from devices.runtimes.base import Runtime
    from latency.card import DeviceCard

__all__ = ["FIT_VERSION", "Predictor"]

FIT_VERSION = 9
"""Of what `Predictor.to_bytes` writes; another one is fitted anew."""
_OPS_SEEN = 2
"""Different kernels of an operation before its family's regressor speaks for it."""


class Predictor:
    """Fitted to one card; fitting is deterministic.

    Use `Predictor.from_card`.

    Attributes:
        card: what it was fitted to.
        calibration: from the sum of measured kernels to whole networks.
        predicting: the same from that of predicted ones; see `latency.fitting`.
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
        hits: Mapping[int, Hit],
        calibration: Calibration,
        predicting: Calibration,
        intervals: Intervals,
        validation: dict[str, Any],
    ) -> None:
        self.card = card
        self.calibration = calibration
        self.predicting = predicting
        self.intervals = intervals
        self.validation = validation
        self._families = families
        self._roofline = roofline
        self._ops = ops
        self._hits = hits

    @classmethod
    def from_card(cls, card: DeviceCard) -> Self:
        """The predictor that the card holds, or one fitted to it where it holds none.

        A fit of another version is done anew and kept in the card, where that can be written, as
        it takes half a minute.

        Raises:
            InvalidInputError: nothing was measured in the card yet.
        """
        data = card.fit
        if data is None:
            return cls.fit(card)
        if (found := cls.from_bytes(card, data)) is not None:
            return found
        fitted = cls.fit(card)
        data = fitted.to_bytes()
        with suppress(AutospaceError, OSError):
            keep_derived(card.path, card.fingerprint, "fit", data)
        return cls.from_bytes(card, data) or fitted  # as the next command will read it

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
            return cls(card, **Fitting(table, quick).results())

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
            proto = self._rewritten(proto)
            if self._compiles:
                return self.predict_graph(self._compiled(proto))
            graph, warning = self._by_rules(proto)
        except InvalidInputError as error:
            raise InvalidInputError(f"{label}{error}") from error
        found = self.predict_graph(graph)
        return replace(found, kernels_from="card", warnings=(*found.warnings, warning))

    def predict_quickly(self, model: onnx.ModelProto) -> Prediction:
        """As `predict`, for tables that are read off hundreds of networks.

        Where the runtime takes seconds to compile, kernels come from the card's fusion rules if
        these know every pattern of the network.

        Args:
            model: an ONNX model with fixed shapes, or with a symbolic batch.

        Raises:
            InvalidInputError: as `predict`.
            UnavailableError: as `predict`.
        """
        from devices.onnx_files import fix_shapes

        rules = self.card.fusion_rules
        if rules is not None and self._compiles and self._runtime.slow_to_compile:
            fixed = fix_shapes(model, self.card.settings.batch)
            graph, unknown = explain(rules, self._rewritten(fixed))
            if not unknown:
                return replace(self.predict_graph(graph), kernels_from="card")
        return self.predict(model)

    def predict_graph(self, graph: KernelGraph) -> Prediction:
        """As `predict`, for kernels that were read already.

        Args:
            graph: kernels as the card's runtime compiles them.
        """
        with uncollected():
            times, sources, spread = self._kernel_times(graph)
        kernels = tuple(
            KernelPrediction(node.kernel, self.predicting.kernel_ms(time_ms), source, node.nodes)
            for node, time_ms, source in zip(graph.kernels, times, sources, strict=True)
        )
        total_ms = math.fsum(k.latency_ms for k in kernels)
        uncovered_ms = sum(k.latency_ms for k in kernels if k.source == "roofline")
        latency_ms = self.predicting.fixed_ms + total_ms
        width = self.intervals.half_width(spread.deviation([k.latency_ms for k in kernels]))
        unknown = Counter(k.kernel.op for k in kernels if k.source == "roofline")
        return Prediction(
            latency_ms=latency_ms,
            low_ms=latency_ms * math.exp(-width),
            high_ms=latency_ms * math.exp(width),
            coverage=1.0 - uncovered_ms / total_ms if total_ms else 1.0,
            fixed_ms=self.predicting.fixed_ms,
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
        return spread.together([self.predicting.kernel_ms(t) for t in times])

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
            "predicting": asdict(self.predicting),
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
                hits={int(key): Hit(float(residual), int(n)) for key, residual, n in hits},
                calibration=Calibration(**about["calibration"]),
                # Older fits predicted with the one calibration that they had.
                predicting=Calibration(**about.get("predicting", about["calibration"])),
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

    @cached_property
    def _runtime(self) -> Runtime:
        """One for all networks: what starts a child process starts it once."""
        from devices.runtimes import get_runtime

        return get_runtime(self.card.runtime)

    def _rewritten(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The model as the card's runtime rewrites it."""
        try:
            runtime = self._runtime
        except UsageError:  # a runtime that only another version knows
            return model
        return runtime.rewritten(model, self.card.settings)

    def _compiled(self, model: onnx.ModelProto) -> KernelGraph:
        """The kernels as the card's runtime compiles them, here and now."""
        from latency.executed import executed_here

        settings, per_op_times = self.card.settings, self.card.per_op_times
        return read_kernels(model, executed_here(model, self._runtime, settings, per_op_times))

    def _by_rules(self, model: onnx.ModelProto) -> tuple[KernelGraph, str]:
        """The kernels by the rules that the card holds, and a line that says so."""
        rules = self.card.fusion_rules
        if rules is None:
            raise UnavailableError(
                f"{self.card.path}: {self.card.runtime} {self.card.runtime_version} is not "
                "available here, and the card holds no fusion rules; profile the device again."
            )
        graph, unknown = explain(rules, model)
        warning = "kernels from the card's fusion rules, not from the runtime"
        if unknown:
            names = ", ".join(sorted(set(unknown))[:3])
            warning += f"; {len(set(unknown))} patterns never seen ({names})"
        return graph, f"{warning}."

    def _kernel_times(self, graph: KernelGraph) -> tuple[list[float], list[Source], Spread]:
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
                own_kind = self._families.get(family) if family == VIEWS else None
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
        return times.tolist(), sources, Spread(alone, blocks, never)

    def _looked_up(self, graph: KernelGraph) -> list[Hit | None]:
        """What was measured of each kernel."""
        found: dict[int, Hit | None] = {}
        for node in graph.kernels:
            # Equal kernels of a graph are one object, and signatures take their time.
            if id(node.kernel) not in found:
                found[id(node.kernel)] = self._hits.get(kernel_key(node.kernel))
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
