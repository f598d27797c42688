"""The device card: one SQLite file with everything that was measured on one device.

It holds raw samples, not only summaries, so that a better predictor can be fitted to an old card.
It is written visit by visit (`CardWriter`, in WAL mode, so that a killed profiler loses at most the
visit in flight) and closed as a single file that can be mailed. Reading (`DeviceCard`) takes the
whole content in at once, checks it, and closes the file again. Why so, and the format itself, is in
docs/adr/0011-device-card-format.md.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from devices.errors import AutospaceError, InvalidInputError, MismatchError, UsageError
from devices.host import Environment
from devices.measurement import ACCEPT_RATIO, Measurement, Visit, sentinel_reference
from devices.onnx_files import one_line
from devices.runtimes.base import RuntimeSettings
from latency.kernel import Kernel, KernelNode

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from latency.fusion import FusionRules

__all__ = [
    "ANCHOR",
    "APPLICATION_ID",
    "CHOSEN",
    "SCHEMA_VERSION",
    "STATISTICS",
    "WHOLE",
    "CardNetwork",
    "CardVisit",
    "CardWriter",
    "DeviceCard",
]

APPLICATION_ID = 0x41535044
"""Marks the SQLite file as a device card ("ASPD")."""
SCHEMA_VERSION = 3
"""Of the tables below; a card with a higher one is refused."""

STATISTICS = ("p50", "p90", "p99")
"""Percentiles of the samples as seen, see `devices.measurement.Measurement`."""

_NO_SPACE = (
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_SHMMAP,
)
_MAGIC = b"SQLite format 3\x00"
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE kernel (id INTEGER PRIMARY KEY, signature TEXT NOT NULL UNIQUE, spec TEXT NOT NULL);
CREATE TABLE network (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, digest TEXT NOT NULL,
    spec TEXT NOT NULL
);
CREATE TABLE network_kernel (
    network INTEGER NOT NULL REFERENCES network, position INTEGER NOT NULL,
    kernel INTEGER NOT NULL REFERENCES kernel, nodes TEXT NOT NULL, sources TEXT NOT NULL,
    PRIMARY KEY (network, position)
) WITHOUT ROWID;
CREATE TABLE visit (
    id INTEGER PRIMARY KEY, round INTEGER NOT NULL, network INTEGER NOT NULL REFERENCES network,
    at_s REAL NOT NULL, sentinel_before_ms REAL NOT NULL, sentinel_after_ms REAL NOT NULL,
    preempted REAL NOT NULL,
    samples BLOB NOT NULL, kernel_samples BLOB NOT NULL,
    UNIQUE (round, network)
);
CREATE TABLE derived (name TEXT PRIMARY KEY, seal TEXT NOT NULL, data BLOB NOT NULL);
"""
_TABLES = {
    "meta": "key, value",
    "kernel": "id, signature, spec",
    "network": "id, name, kind, digest, spec",
    "network_kernel": "network, position, kernel, nodes, sources",
    "visit": (
        "id, round, network, at_s, sentinel_before_ms, sentinel_after_ms, preempted, samples, "
        "kernel_samples"
    ),
}
# `derived` holds what was worked out from the rest; it is no part of the content.
_REQUIRED_META = ("arguments", "environment", "runtime", "runtime_version", "settings", "simulated")


ANCHOR = "anchor"
"""The kind of a network that only pins down what every run and every kernel cost."""

CHOSEN = "chosen-"
"""How the names of probes begin that were chosen because little was known of them."""

WHOLE = "network-"
"""How the names of probes begin that are built like whole networks."""


@dataclass(frozen=True, eq=False)
class CardVisit:
    """One visit to one network.

    Attributes:
        round: in which round of the profile.
        at_s: seconds since the profile began; 0 when simulated.
        visit: whole-network samples and the sentinel's times.
        kernel_ms: raw times of each kernel, shape `(kernels, profiled_runs)`, in milliseconds;
            `(kernels, 0)` when the single kernels were not timed.
    """

    round: int
    at_s: float
    visit: Visit
    kernel_ms: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class CardNetwork:
    """One measured network.

    Attributes:
        name: unique in the card.
        kind: "probe", "extra" for a network that the caller gave, or `ANCHOR` for one that is
            nothing but overhead.
        digest: of the model's structure, see `latency.probes.model_digest`.
        kernels: in the order of execution.
        nodes: for each kernel, the names of the model's nodes that it covers.
        sources: for each kernel and each of its data inputs, the place of the kernel that makes it;
            -1 for an input of the network.
        visits: in the order of time.
        spec: what it was built from, as a JSON object; None where the card does not say.
    """

    name: str
    kind: str
    digest: str
    kernels: tuple[Kernel, ...]
    nodes: tuple[tuple[str, ...], ...]
    sources: tuple[tuple[int, ...], ...]
    visits: tuple[CardVisit, ...]
    spec: Mapping[str, Any] | None = None


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
        with _damage(path):
            meta, networks, derived, digest = _content(path, samples)
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
        with _damage(self.path):
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
        visits = (v.visit for network in self.networks for v in network.visits)
        times = [t for v in visits for t in (v.sentinel_before_ms, v.sentinel_after_ms)]
        if not times:
            raise InvalidInputError(f"{self.path}: nothing measured yet; profile the device again.")
        return sentinel_reference(times)

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
        from latency.table import repeatability

        visited = [network for network in self.networks if network.visits]
        kernels = {k.signature: k.family for network in visited for k in network.kernels}
        halves = [repeatability(network) for network in visited]
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
            "validation": self.validation,
        }

    def table(self) -> tuple[dict[str, Any], ...]:
        """The lookup table: a row for each kernel, the same columns in every row.

        Times are the in-context times of the profiler, before the calibration to whole networks
        that a predictor applies.
        """
        from latency.table import KernelTable

        return KernelTable.from_card(self).rows()

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
            "median_ms": _rank(series, 0.5),
            "p90_ms": _rank(series, 0.9),
            "max_ms": series[-1],
            "rounds": len(by_round),
            "disturbed_rounds": disturbed,
            "preempted": self.preempted,
        }


class CardWriter:
    """The one writer of a card; every method commits before it returns. A context manager.

    Args:
        path: of a card that exists, see `CardWriter.create`.
    """

    def __init__(self, path: Path) -> None:
        check_header(path)
        self.path = path
        with writing(path):
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
            _check_schema(self._db, path)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")

    @classmethod
    def create(cls, path: Path, meta: Mapping[str, Any]) -> Self:
        """Makes an empty card, whole or not at all, and opens it.

        Raises:
            InvalidInputError: the folder cannot be written.
            AutospaceError: the disk is full.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.unlink(missing_ok=True)
            db = sqlite3.connect(temporary)
            db.execute("PRAGMA journal_mode=MEMORY")  # a card that is cut short is never renamed
            try:
                db.executescript(_SCHEMA)
                db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                db.executemany(
                    "INSERT INTO meta VALUES (?, ?)", [(k, _dump(v)) for k, v in meta.items()]
                )
                db.commit()
            finally:
                db.close()
            temporary.replace(path)
        except (sqlite3.Error, OSError) as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            full = _disk_full(path, error)
            raise full or InvalidInputError(
                f"{path}: cannot be written ({one_line(error, 80)}); give a path in a "
                "folder that exists."
            ) from error
        return cls(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; SQLite folds the write-ahead log in."""
        self._db.close()

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the card's description."""
        row = self._db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return default if row is None else json.loads(row[0])

    def put(self, **values: Any) -> None:
        """Sets values of the card's description, all or none."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)",
                [(k, _dump(v)) for k, v in values.items()],
            )

    def networks(self) -> dict[str, tuple[int, str, str, Any]]:
        """Number, kind, digest and specification of each network by its name."""
        rows = self._db.execute("SELECT id, name, kind, digest, spec FROM network ORDER BY id")
        return {
            name: (int(i), kind, digest, json.loads(spec)) for i, name, kind, digest, spec in rows
        }

    def kernel_keys(self, network: int) -> list[tuple[str, tuple[str, ...]]]:
        """Signature and nodes of each kernel of a network, in the order they are stored in."""
        rows = self._db.execute(
            "SELECT signature, nodes FROM network_kernel JOIN kernel ON kernel.id = kernel "
            "WHERE network=? ORDER BY position",
            (network,),
        )
        return [(signature, tuple(json.loads(nodes))) for signature, nodes in rows]

    def visited(self) -> set[tuple[int, int]]:
        """Round and network of every visit."""
        return {(int(r), int(n)) for r, n in self._db.execute("SELECT round, network FROM visit")}

    def add_network(
        self,
        name: str,
        kind: str,
        digest: str,
        spec: Mapping[str, Any] | None,
        kernels: Iterable[KernelNode],
    ) -> int:
        """Adds a network with its kernels; returns its number."""
        with self._transaction():
            cursor = self._db.execute(
                "INSERT INTO network (name, kind, digest, spec) VALUES (?, ?, ?, ?)",
                (name, kind, digest, _dump(spec)),
            )
            number = int(cursor.lastrowid or 0)
            for position, node in enumerate(kernels):
                signature = node.kernel.signature
                self._db.execute(
                    "INSERT OR IGNORE INTO kernel (signature, spec) VALUES (?, ?)",
                    (signature, _dump(node.kernel.to_json())),
                )
                self._db.execute(
                    "INSERT INTO network_kernel SELECT ?, ?, id, ?, ? FROM kernel "
                    "WHERE signature=?",
                    (number, position, _dump(node.nodes), _dump(node.sources), signature),
                )
        return number

    def add_visit(self, network: int, visit: CardVisit, elapsed_s: float) -> None:
        """Adds a visit, and the time that the profile has taken so far, in one transaction."""
        import numpy as np

        samples = np.asarray(visit.visit.samples_ms, dtype="<f4").tobytes()
        kernels = np.ascontiguousarray(visit.kernel_ms, dtype="<f4").tobytes()
        with self._transaction():
            self._db.execute(
                "INSERT INTO visit (round, network, at_s, sentinel_before_ms, sentinel_after_ms,"
                " preempted, samples, kernel_samples) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    visit.round,
                    network,
                    visit.at_s,
                    visit.visit.sentinel_before_ms,
                    visit.visit.sentinel_after_ms,
                    visit.visit.preempted,
                    samples,
                    kernels,
                ),
            )
            self._db.execute(
                "INSERT OR REPLACE INTO meta VALUES ('elapsed_s', ?)", (_dump(elapsed_s),)
            )

    def finish(self, validation: Mapping[str, Any], derived: Mapping[str, bytes]) -> None:
        """Marks the card as finished, and makes it a single file.

        Args:
            validation: how well the predictor does, as a JSON object.
            derived: by name, what was worked out from the samples.
        """
        self.put(validation=dict(validation), complete=True)
        self.put(fingerprint=_digest(self._db))
        meta, _ = _read_derived(self._db)
        with self._transaction():
            self._db.execute("DELETE FROM derived")
            self._db.executemany(
                "INSERT INTO derived VALUES (?, ?, ?)",
                [(name, _seal(meta, data), data) for name, data in sorted(derived.items())],
            )
        self.fold()

    def fold(self) -> None:
        """Makes the card a single file, as it has to be when it is sent on."""
        with writing(self.path):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.execute("PRAGMA journal_mode=DELETE")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """`with` a transaction: committed at the end, rolled back on an error."""
        with writing(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                # SQLite itself rolls back when the disk is full.
                if self._db.in_transaction:
                    with suppress(sqlite3.Error):
                        self._db.execute("ROLLBACK")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says in one line why a card could not be written.

    Raises:
        AutospaceError: the disk is full; what was committed stays.
        InvalidInputError: the card is damaged, read-only, or held by another program.
    """
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        full = _disk_full(path, error)
        if full is not None:
            raise full from error
        if isinstance(error, OSError):
            raise
        reason = one_line(error, 80)
        primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            words = f"cannot be written ({reason}); make the file and its folder writable, or give "
            words += "another path."
        elif primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            words = f"in use by another program ({reason}); close that and repeat the command."
        elif primary == sqlite3.SQLITE_IOERR:
            words = f"cannot be written ({reason}); check the disk and repeat the command."
        else:
            words = f"damaged device card ({reason}); delete it and profile the device anew."
        raise InvalidInputError(f"{path}: {words}") from error


def _disk_full(path: Path, error: sqlite3.Error | OSError) -> AutospaceError | None:
    """The error for a disk without space; None for all other causes."""
    if isinstance(error, OSError):
        # Python looks for a folder in which it can write, and finds none.
        none = "No usable temporary directory" in str(error)
        if not none and error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            return None
        what = "disk is full, here or where temporary files are kept"
    elif getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
        what = "disk is full"
    elif getattr(error, "sqlite_errorcode", 0) in _NO_SPACE:
        what = "disk is full, or a limit on the size of files is reached"
    else:
        return None
    reason = getattr(error, "strerror", None) or one_line(error, 80)
    return AutospaceError(
        f"{path}: {what} ({reason}); free some space and repeat the command, it goes on from there."
    )


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turns whatever a damaged card leads to into one line.

    Raises:
        InvalidInputError: the card is damaged, or the disk is full.
    """
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        full = _disk_full(path, error)
        raise full or InvalidInputError(
            f"{path}: damaged device card ({one_line(error, 80)}); copy it again or "
            "profile the device anew."
        ) from error
    except AutospaceError as error:
        if str(path) in str(error):
            raise
        raise InvalidInputError(f"{path}: damaged device card; {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InvalidInputError(
            f"{path}: damaged device card (unreadable content); copy it again or profile the "
            "device anew."
        ) from error


def check_header(path: Path) -> None:
    """Refuses what cannot be a device card before SQLite looks at it.

    Raises:
        InvalidInputError: the file is missing, unreadable, empty or no SQLite file.
    """
    if not path.is_file():
        raise InvalidInputError(
            f"{path}: no such file; make a device card with 'autospace profile-device'."
        )
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror}).") from error
    if not head:
        raise InvalidInputError(f"{path}: empty; make the device card anew.")
    if not head.startswith(_MAGIC):
        raise InvalidInputError(f"{path}: not a device card; give the file of profile-device.")


def _check_schema(db: sqlite3.Connection, path: Path, whole: bool = True) -> None:
    """Refuses other SQLite files, newer cards and, where the whole file is looked at, damage."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    if application != APPLICATION_ID:
        raise InvalidInputError(
            f"{path}: an SQLite file, but not a device card; give the file of profile-device."
        )
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise InvalidInputError(
            f"{path}: device card of format {version}, this version reads {SCHEMA_VERSION}; "
            "update autospace or profile the device anew."
        )
    if not whole:
        return
    verdict = db.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict is None or verdict[0] != "ok":
        detail = " ".join(str(verdict[0] if verdict else "no answer").split())[:80]
        raise InvalidInputError(
            f"{path}: damaged device card ({detail}); copy it again or profile the device anew."
        )


_Content = tuple[dict[str, Any], "tuple[CardNetwork, ...] | None", dict[str, bytes], str]
"""Description, networks, what was derived from them, and the digest of description and networks."""


def _content(path: Path, samples: bool) -> _Content:
    """What is in the card, also where SQLite cannot write its own files beside an open one."""
    try:
        return _content_at(path, path, samples)
    except sqlite3.OperationalError as error:
        unwritable = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in unwritable:
            raise
    with tempfile.TemporaryDirectory(prefix="autospace-card-") as folder:
        copy = Path(folder) / "card"
        shutil.copyfile(path, copy)
        log = path.with_name(f"{path.name}-wal")
        if log.exists():
            shutil.copyfile(log, f"{copy}-wal")
        return _content_at(copy, path, samples)


def _content_at(place: Path, path: Path, samples: bool) -> _Content:
    """What is in the card that lies at a place; errors name its path."""
    connection = sqlite3.connect(f"{place.resolve().as_uri()}?mode=ro", uri=True)
    try:
        _check_schema(connection, path, whole=samples)
        meta, derived = _read_derived(connection)
        if not samples and derived:
            return meta, None, derived, str(meta.get("fingerprint"))
        if not samples:
            _check_schema(connection, path)
        meta, networks, digest = _read(connection)
        return meta, networks, derived, digest
    finally:
        connection.close()


def _read_derived(db: sqlite3.Connection) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The description, and what was derived from the samples as far as its seal is whole."""
    db.execute("BEGIN")
    meta = {str(key): json.loads(value) for key, value in db.execute("SELECT key, value FROM meta")}
    rows = db.execute("SELECT name, seal, data FROM derived ORDER BY name").fetchall()
    db.execute("COMMIT")
    if not meta.get("complete"):
        return meta, {}
    return meta, {str(n): bytes(d) for n, seal, d in rows if seal == _seal(meta, bytes(d))}


def _seal(meta: Mapping[str, Any], data: bytes) -> str:
    """Ties what was derived to the description that it was derived under."""
    return hashlib.sha256(_dump(dict(meta)).encode() + data).hexdigest()


def _read(
    db: sqlite3.Connection,
) -> tuple[dict[str, Any], tuple[CardNetwork, ...], str]:
    """Everything in the card, in one consistent snapshot."""
    import numpy as np

    db.execute("BEGIN")
    meta = {str(key): json.loads(value) for key, value in db.execute("SELECT key, value FROM meta")}
    missing = [key for key in _REQUIRED_META if key not in meta]
    if missing:
        raise KeyError(missing[0])
    kernels = {
        int(number): Kernel.from_json(json.loads(spec))
        for number, spec in db.execute("SELECT id, spec FROM kernel")
    }
    parts: dict[int, list[tuple[Kernel, tuple[str, ...], tuple[int, ...]]]] = {}
    for network, kernel, nodes, sources in db.execute(
        "SELECT network, kernel, nodes, sources FROM network_kernel ORDER BY network, position"
    ):
        names = tuple(str(node) for node in json.loads(nodes))
        places = tuple(int(place) for place in json.loads(sources))
        parts.setdefault(int(network), []).append((kernels[int(kernel)], names, places))
    visits: dict[int, list[CardVisit]] = {}
    for row in db.execute(f"SELECT {_TABLES['visit']} FROM visit ORDER BY id"):
        _, number, network, at_s, before_ms, after_ms, preempted, samples, kernel_samples = row
        count = len(parts.get(int(network), ()))
        times = np.frombuffer(kernel_samples, dtype="<f4")
        visits.setdefault(int(network), []).append(
            CardVisit(
                round=int(number),
                at_s=float(at_s),
                visit=Visit(
                    tuple(np.frombuffer(samples, dtype="<f4").astype(np.float64).tolist()),
                    float(before_ms),
                    float(after_ms),
                    float(preempted),
                ),
                kernel_ms=times.reshape(count, -1) if count else times.reshape(0, 0),
            )
        )
    networks = tuple(
        CardNetwork(
            name=str(name),
            kind=str(kind),
            digest=str(digest),
            kernels=tuple(kernel for kernel, _, _ in parts.get(int(number), ())),
            nodes=tuple(nodes for _, nodes, _ in parts.get(int(number), ())),
            sources=tuple(places for _, _, places in parts.get(int(number), ())),
            visits=tuple(visits.get(int(number), ())),
            spec=json.loads(spec),
        )
        for number, name, kind, digest, spec in db.execute(
            "SELECT id, name, kind, digest, spec FROM network ORDER BY id"
        )
    )
    return meta, networks, _digest(db)


def _digest(db: sqlite3.Connection) -> str:
    """SHA-256 of all rows but the stored digest itself, independent of the file's layout."""
    digest = hashlib.sha256()
    for table, columns in _TABLES.items():
        order = columns.partition(",")[0] if table != "network_kernel" else "network, position"
        for row in db.execute(f"SELECT {columns} FROM {table} ORDER BY {order}"):
            if table == "meta" and row[0] == "fingerprint":
                continue
            for value in row:
                data = value if isinstance(value, bytes) else repr(value).encode()
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
    return digest.hexdigest()


def _rank(ordered: Sequence[float], share: float) -> float | None:
    """The value at that share of a sorted series, None of an empty one."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
