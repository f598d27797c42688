"""Fits a predictor to a card's table, and judges it by networks left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from latency.calibration import Calibration
from latency.card_rows import ANCHOR, CHOSEN, WHOLE
from latency.context import Context
from latency.covariance import Covariance
from latency.hits import Spread, hit_of, kernel_key
from latency.interval import MIN_SCORES, Intervals, Score
from latency.kernel import Kernel
from latency.regressor import FamilyRegressor, Sample, Samples
from latency.roofline import Roofline
from latency.table import KernelTable, NetworkRow

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

__all__ = ["VIEWS", "Fitting"]

VIEWS = "reshape"
"""The family of kernels that move nothing: they take time only in some places."""
_MAX_SCORES = 500
"""Networks that the interval rests on, at most; more of them change it little."""
_QUICK = 0.4
"""Effort of a quick fit."""
_PREDICTED = 20
"""Networks, at least, by whose predictions the step from kernels to networks is fitted."""
_SCORED_VISITS = 4
"""Networks with fewer visits are too noisy to judge a prediction by, if there are others."""


@dataclass(frozen=True)
class _Said:
    """What was predicted of a network's kernels, the network left out.

    Attributes:
        times: of each, uncalibrated; 0 of those that take none.
        spread: how sure they are.
    """

    times: tuple[float, ...]
    spread: Spread


class Fitting:
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
        moving = [own for name, own in self.measured.items() if name != VIEWS]
        roofline = Roofline.fit(
            np.concatenate([own.terms for own in moving or self.measured.values()]),
            np.concatenate([own.times_ms for own in moving or self.measured.values()]),
        )
        self.left_out = self._left_out() if self.table.timed else {}
        judged = self._judged()
        networks = self.table.networks
        self.said = {i: self._said_of(i) for i in judged if networks[i].left_out_ms is None}
        self.predicting = self._calibrate_predictions(None)
        scores = [self._judge(i) for i in judged]
        intervals = Intervals.fit(scores)
        return {
            "families": self.families,
            "roofline": roofline,
            "ops": Counter(row.kernel.op for row in self.table.kernels if row.time_ms()),
            "hits": {
                key: hit
                for key, found in self.residuals.items()
                if (hit := hit_of(found, without=None)) is not None
            },
            "calibration": self.calibration,
            "predicting": self.predicting,
            "intervals": intervals,
            "validation": self._validation(scores, intervals),
        }

    def _calibrate(self, without: int | None) -> Calibration:
        if self.table.explained:
            return Calibration(self.table.explained.fixed_ms, 1.0, 0.0)
        networks = [n for i, n in enumerate(self.table.networks) if i != without]
        return Calibration.fit([n.times_ms for n in networks], [n.whole_ms for n in networks])

    def _calibrate_predictions(self, without: int | None) -> Calibration:
        """From predicted kernels to whole networks, as far as enough networks tell.

        What a regressor says of kernels of 3 µs is half a microsecond too much, of which the
        profiler takes two: to take off what it costs, as measured times tell it, leaves a third too
        much.
        """
        said = {i: one.times for i, one in self.said.items() if i != without}
        if len(said) < _PREDICTED:
            return self.calibration if without is None else self._calibrate(without)
        networks = self.table.networks
        return Calibration.fit(
            list(said.values()), [networks[i].whole_ms for i in said], robust=True
        )

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
            self.keys[id(kernel)] = kernel_key(kernel)
        return self.keys[id(kernel)]

    def _said_of(self, index: int) -> _Said:
        """What is predicted of the kernels of a network without anything learned from it."""
        times: list[float] = []
        alone: dict[int, float] = {}
        blocks: list[tuple[list[int], Covariance]] = []
        for family in dict.fromkeys(place[0] for place in self.places[index] if place):
            numbers, said, covariance = self.left_out[index, family]
            lifts: list[float] = []
            asked: list[int] = []
            for row, number in enumerate(numbers):
                sample = self.samples[family][number]
                hit = hit_of(self.residuals.get(self._key(sample.kernel), ()), without=index)
                if hit is None:
                    asked.append(row)
                else:
                    alone[len(times) + row] = hit.deviation
                lifts.append(math.exp(hit.residual) if hit else 1.0)
            if asked:
                places = [len(times) + row for row in asked]
                blocks.append((places, Covariance(covariance[asked][:, asked])))
            times.extend((said * lifts).tolist())
        missing = len(self.table.networks[index].rows) - len(times)
        return _Said((*times, *([0.0] * missing)), Spread(alone, blocks))

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
        anew = 4 < many <= 100
        calibration = self._calibrate_predictions(index) if anew else self.predicting
        said = self.said[index]
        return Score(
            kind=network.kind,
            whole_ms=network.whole_ms,
            predicted_ms=calibration.whole_ms(said.times),
            summed_ms=self.calibration.whole_ms(network.times_ms),
            deviation=said.spread.deviation([calibration.kernel_ms(t) for t in said.times]),
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


def _errors(ratios: Sequence[float]) -> dict[str, float]:
    """Median and 90th percentile of the absolute error, and the share within 10 %."""
    errors = sorted(abs(ratio - 1) for ratio in ratios)
    count = len(errors)
    return {
        "median_error": errors[count // 2],
        "p90_error": errors[min(count - 1, int(0.9 * count))],
        "within_10_percent": sum(e <= 0.1 for e in errors) / count,
    }
