"""The device card: one SQLite file with everything that was measured on one device.

It holds raw samples, not only summaries, so that a better predictor can be fitted to an old card.
It is written visit by visit (`CardWriter`, in WAL mode, so that a killed profiler loses at most the
visit in flight) and closed as a single file that can be mailed. Reading (`DeviceCard`) takes the
whole content in at once, checks it, and closes the file again. Why so, and the format itself, is in
docs/adr/0011-device-card-format.md.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from devices.errors import InvalidInputError, MismatchError, UsageError
from devices.host import Environment
from devices.measurement import ABOVE_FASTEST, Measurement
from devices.runtimes.base import RuntimeSettings
from devices.visits import ACCEPT_RATIO, sentinel_reference
from latency.card_errors import damage
from latency.card_format import check_header
from latency.card_reading import read_content
from latency.card_rows import CardNetwork

if TYPE_CHECKING:
    from latency.fusion import FusionRules

__all__ = ["STATISTICS", "DeviceCard"]

STATISTICS = ("p50", "p90", "p99")
"""Percentiles of the samples as seen, see `devices.measurement.Measurement`."""


class DeviceCard:
    """A device card that was read and checked; does not change any more.

    Use `DeviceCard.open`. The file is closed when `open` returns, so the context manager is there
    only for symmetry with other files.

    Attributes:
        path: the file it was read from.
        runtime: name of the runtime that it was made with.
        runtime_version: its version.
        settings: threads, precision and batch that it was made with.
        simulated: whether its times were computed instead of measured.
        per_op_times: whether single kernels were timed; their times are otherwise worked out from
            those of whole networks, see `latency.whole_times`.
        complete: whether the profile was finished.
    """

    def __init__(
        self,
        path: Path,
        meta: Mapping[str, Any],
        networks: tuple[CardNetwork, ...] | None,
        derived: Mapping[str, bytes],
        digest: str,
    ) -> None:
        self.path = path
        self._meta = meta
        self._networks = networks
        self._derived = derived
        self.runtime = str(meta["runtime"])
        self.runtime_version = str(meta["runtime_version"])
        self.settings = RuntimeSettings.from_json(meta["settings"])
        self.simulated = bool(meta["simulated"])
        self.per_op_times = bool(meta.get("per_op_times", True))
        self.complete = bool(meta.get("complete", False))
        self._environment = Environment.from_json(meta["environment"])
        self._fingerprint = digest

    @classmethod
    def open(cls, path: str | Path, *, samples: bool = True) -> Self:
        """Reads a card.

        Args:
            path: of the card's file.
            samples: whether the raw samples are read and checked now. Without them a finished card
                opens in a moment, with its description and what was worked out from the samples,
                both checked; the samples are read when `networks` is first asked for.

        Returns:
            The card; it may be unfinished, see `complete`.

        Raises:
            InvalidInputError: the file is missing, empty, truncated, damaged, no device card, or of
                a newer version.
        """
        path = Path(path)
        check_header(path)
        with damage(path):
            meta, networks, derived, digest = read_content(path, samples)
            card = cls(path, meta, networks, derived, digest)
        if card.complete and meta.get("fingerprint") != digest:
            raise InvalidInputError(
                f"{path}: damaged device card (its content does not match its checksum); copy it "
                "again or profile the device anew."
            )
        return card

    @property
    def networks(self) -> tuple[CardNetwork, ...]:
        """What was measured.

        Raises:
            InvalidInputError: the samples had not been read yet, and are damaged or gone.
        """
        if self._networks is None:
            whole = type(self).open(self.path)
            if whole.fingerprint != self.fingerprint:
                raise InvalidInputError(
                    f"{self.path}: changed since it was opened; repeat the command."
                )
            self._networks = whole.networks
        return self._networks

    @property
    def sentinel(self) -> str | None:
        """Digest of the sentinel that its times belong to."""
        found = self._meta.get("sentinel")
        return None if found is None else str(found)

    @property
    def fit(self) -> bytes | None:
        """What a predictor was fitted to; see `latency.predictor.Predictor.to_bytes`."""
        return self._derived.get("fit")

    @cached_property
    def fusion_rules(self) -> FusionRules | None:
        """What the runtime makes of a network's nodes, as far as the profile has seen it.

        Raises:
            InvalidInputError: they are unreadable.
        """
        from latency.fusion import FusionRules

        data = self._derived.get("fusion")
        with damage(self.path):
            return None if data is None else FusionRules.from_json(json.loads(data))

    def is_this_machine(self) -> bool:
        """Whether the runtime that is installed here would do what the card's device does."""
        from devices.host import read_environment
        from devices.runtimes import get_runtime

        try:
            status = get_runtime(self.runtime).status()
        except UsageError:  # a runtime that only another version knows
            return False
        if not status.usable or status.version != self.runtime_version:
            return False
        return self.simulated or not self._environment.differences(read_environment())

    def first(self, minutes: float) -> Self:
        """The card that a shorter profile would have made: what was visited by then.

        Args:
            minutes: since the profile began.
        """
        networks = tuple(
            replace(network, visits=visits)
            for network in self.networks
            if (visits := tuple(v for v in network.visits if v.at_s <= 60 * minutes))
        )
        digest = hashlib.sha256(f"{self.fingerprint} {minutes}".encode()).hexdigest()
        meta = {key: value for key, value in self._meta.items() if key != "validation"}
        return type(self)(self.path, meta, networks, {}, digest)

    def at_speed_of(self, other: DeviceCard) -> Self:
        """This card, whose latencies are told as those of the device at another card's speed.

        Args:
            other: of the same device; its sentinel says how fast that was.
        """
        digest = hashlib.sha256(f"{self.fingerprint} {other.fingerprint}".encode()).hexdigest()
        meta = {
            **self._meta,
            "sentinel_reference_ms": other.sentinel_reference_ms,
            "above_fastest": other.above_fastest,
        }
        return type(self)(self.path, meta, self.networks, {}, digest)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def close(self) -> None:
        """Does nothing: the file was closed when it had been read."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content; equal content gives equal fingerprints, whatever the file."""
        return self._fingerprint

    @property
    def environment(self) -> dict[str, Any]:
        """The machine that it was made on, as a JSON object."""
        return self._environment.to_json()

    @property
    def arguments(self) -> dict[str, Any]:
        """What the profile was asked to do, as a JSON object."""
        return dict(self._meta["arguments"])

    @property
    def validation(self) -> dict[str, Any] | None:
        """How well the predictor did when the card was finished; None before."""
        found = self._meta.get("validation")
        return dict(found) if found is not None else None

    @cached_property
    def sentinel_reference_ms(self) -> float:
        """The sentinel's time on the undisturbed device.

        Raises:
            InvalidInputError: nothing was measured yet.
        """
        if (told := self._meta.get("sentinel_reference_ms")) is not None:  # see `at_speed_of`
            return float(told)
        visits = (v.visit for network in self.networks for v in network.visits)
        times = [t for v in visits for t in (v.sentinel_before_ms, v.sentinel_after_ms)]
        if not times:
            raise InvalidInputError(f"{self.path}: nothing measured yet; profile the device again.")
        return sentinel_reference(times)

    @property
    def above_fastest(self) -> float:
        """What latencies of the device are of fastest runs; what is usual in older cards."""
        return float(self._meta.get("above_fastest", ABOVE_FASTEST))

    @property
    def elapsed_s(self) -> float:
        """How long was measured for it."""
        return float(self._meta.get("elapsed_s", 0.0))

    @property
    def preempted(self) -> float:
        """Share of the runs, mean over all visits, that lost their processor to another program."""
        kept = self._meta.get("preempted")
        if self.complete and kept is not None:
            return float(kept)
        shares = [v.visit.preempted for network in self.networks for v in network.visits]
        return sum(shares) / len(shares) if shares else 0.0

    @property
    def device_states(self) -> tuple[Mapping[str, Any], ...]:
        """Clocks and temperature after each round, where the runtime's device tells them.

        Each with its ``round`` and ``at_s``; for the rest see `devices.gpu.gpu_state`.
        """
        return tuple(self._meta.get("device_states", ()))

    def measurement(self, network: CardNetwork) -> Measurement:
        """The whole-network measurement of one of the card's networks, profiler off.

        Raises:
            InvalidInputError: the network was never visited.
        """
        return Measurement(
            name=network.name,
            visits=tuple(v.visit for v in network.visits),
            sentinel_reference_ms=self.sentinel_reference_ms,
            runtime=self.runtime,
            runtime_version=self.runtime_version,
            settings=self.settings,
            simulated=self.simulated,
            above_fastest=self.above_fastest,
        )

    def ratio(self, statistic: str) -> float:
        """How a statistic as seen, slow phases included, compares to `latency_ms`.

        Args:
            statistic: "p50", "p90" or "p99".

        Returns:
            Median over the card's networks of that statistic divided by `latency_ms`.

        Raises:
            InvalidInputError: there is no such statistic, or nothing was measured yet.
        """
        if statistic not in STATISTICS:
            raise InvalidInputError(
                f"statistic {statistic!r}: unknown; choose one of {', '.join(STATISTICS)}."
            )
        ratios = sorted(
            getattr(found, f"{statistic}_ms") / found.latency_ms
            for found in (self.measurement(n) for n in self.networks if n.visits)
        )
        middle = _rank(ratios, 0.5)
        if middle is None:
            raise InvalidInputError(f"{self.path}: nothing measured yet; profile the device again.")
        return middle

    def summary(self) -> dict[str, Any]:
        """What is in the card, as a JSON object for people and machines."""
        visited = [network for network in self.networks if network.visits]
        kernels = {k.signature: k.family for network in visited for k in network.kernels}
        halves = [network.repeatability for network in visited]
        disagreements = sorted(value for value in halves if value is not None)
        return {
            "path": str(self.path),
            "runtime": self.runtime,
            "runtime_version": self.runtime_version,
            "settings": self.settings.to_json(),
            "simulated": self.simulated,
            "per_op_times": self.per_op_times,
            "complete": self.complete,
            "fingerprint": self.fingerprint,
            "created": self._meta.get("created"),
            "environment": self.environment,
            "arguments": self.arguments,
            "networks": dict(Counter(network.kind for network in visited)),
            "visits": sum(len(network.visits) for network in visited),
            "kernels": len(kernels),
            "kernels_by_family": dict(sorted(Counter(kernels.values()).items())),
            "sentinel": self._sentinel_summary() if visited else None,
            "repeatability": {
                "networks": len(disagreements),
                "median": _rank(disagreements, 0.5),
                "p90": _rank(disagreements, 0.9),
            },
            "as_seen": {name: self.ratio(name) for name in STATISTICS} if visited else None,
            "refused": list(self._meta.get("refused", [])),
            "device_states": [dict(state) for state in self.device_states],
            "validation": self.validation,
        }

    def check_usable(self, allow_mismatch: bool = False) -> tuple[str, ...]:
        """Whether the card speaks for this machine and the runtime that is installed on it.

        Where its runtime is not installed, nothing can be mistaken for it: the card then speaks for
        its own device, by the fusion rules that it holds.

        Args:
            allow_mismatch: turn differences into warnings.

        Returns:
            Warnings to repeat wherever figures from the card are shown; empty when all is well.

        Raises:
            MismatchError: runtime, version or device differ, and that was not allowed.
        """
        from devices.host import read_environment
        from devices.runtimes import get_runtime

        warnings = []
        if not self.complete:
            warnings.append(f"{self.path}: unfinished; run profile-device again to finish it.")
        try:
            status = get_runtime(self.runtime).status()
        except UsageError as error:
            raise MismatchError(
                f"{self.path}: made with {self.runtime!r}, which this version does not know; "
                "update autospace or profile this device."
            ) from error
        found = []
        if status.version is None:
            warnings.append(
                f"{self.path}: {self.runtime} {self.runtime_version} is not installed here; the "
                "figures are for the card's own device."
            )
        elif status.version != self.runtime_version:
            found.append(f"{self.runtime}: {self.runtime_version} → {status.version}")
        if not self.simulated and status.version is not None:
            found += self._environment.differences(read_environment())
        if found and not allow_mismatch:
            raise MismatchError(
                f"{self.path}: made for another device or runtime ({'; '.join(found)}); profile "
                "this device, or use --allow-mismatch."
            )
        if found:
            warnings.append(f"{self.path}: used in spite of differences ({'; '.join(found)}).")
        if self.simulated:
            warnings.append(f"{self.path}: simulated; its figures say nothing about a real device.")
        return tuple(warnings)

    def check_settings(
        self, settings: RuntimeSettings, allow_mismatch: bool = False
    ) -> tuple[str, ...]:
        """Whether the card was made with these settings; as `check_usable`.

        Raises:
            MismatchError: threads, precision or batch differ, and that was not allowed.
        """
        own, asked = self.settings.to_json(), settings.to_json()
        found = [f"{k}: {own[k]} → {asked[k]}" for k in own if own[k] != asked[k]]
        if found and not allow_mismatch:
            raise MismatchError(
                f"{self.path}: made with other settings ({'; '.join(found)}); profile the device "
                "with these, or use --allow-mismatch."
            )
        return (f"{self.path}: used for other settings ({'; '.join(found)}).",) if found else ()

    def _sentinel_summary(self) -> dict[str, Any]:
        by_round: dict[int, list[float]] = {}
        for network in self.networks:
            for item in network.visits:
                by_round.setdefault(item.round, []).append(item.visit.sentinel_ms)
        series = sorted(t for times in by_round.values() for t in times)
        reference = self.sentinel_reference_ms
        medians = {number: _rank(sorted(times), 0.5) or 0.0 for number, times in by_round.items()}
        disturbed = sorted(n for n, ms in medians.items() if ms > reference * ACCEPT_RATIO)
        return {
            "reference_ms": reference,
            "above_fastest": self.above_fastest,
            "median_ms": _rank(series, 0.5),
            "p90_ms": _rank(series, 0.9),
            "max_ms": series[-1],
            "rounds": len(by_round),
            "disturbed_rounds": disturbed,
            "preempted": self.preempted,
        }


def _rank(ordered: Sequence[float], share: float) -> float | None:
    """The value at that share of a sorted series, None of an empty one."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
