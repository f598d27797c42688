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
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from devices.errors import AutospaceError, InvalidInputError, MismatchError
from devices.host import Environment
from devices.measurement import ACCEPT_RATIO, Measurement, Visit, sentinel_reference
from devices.onnx_files import one_line
from devices.runtimes.base import RuntimeSettings
from latency.kernel import Kernel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "ANCHOR",
    "APPLICATION_ID",
    "SCHEMA_VERSION",
    "STATISTICS",
    "CardNetwork",
    "CardVisit",
    "CardWriter",
    "DeviceCard",
]

APPLICATION_ID = 0x41535044
"""Marks the SQLite file as a device card ("ASPD")."""
SCHEMA_VERSION = 1
"""Of the tables below; a card with a higher one is refused."""

STATISTICS = ("p50", "p90", "p99")
"""Percentiles of the samples as seen, see `devices.measurement.Measurement`."""

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
    kernel INTEGER NOT NULL REFERENCES kernel, nodes TEXT NOT NULL,
    PRIMARY KEY (network, position)
) WITHOUT ROWID;
CREATE TABLE visit (
    id INTEGER PRIMARY KEY, round INTEGER NOT NULL, network INTEGER NOT NULL REFERENCES network,
    at_s REAL NOT NULL, sentinel_before_ms REAL NOT NULL, sentinel_after_ms REAL NOT NULL,
    samples BLOB NOT NULL, kernel_samples BLOB NOT NULL,
    UNIQUE (round, network)
);
"""
_TABLES = {
    "meta": "key, value",
    "kernel": "id, signature, spec",
    "network": "id, name, kind, digest, spec",
    "network_kernel": "network, position, kernel, nodes",
    "visit": (
        "id, round, network, at_s, sentinel_before_ms, sentinel_after_ms, samples, kernel_samples"
    ),
}
_REQUIRED_META = ("arguments", "environment", "runtime", "runtime_version", "settings", "simulated")


ANCHOR = "anchor"
"""The kind of a network that only pins down what every run and every kernel cost."""


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
        visits: in the order of time.
    """

    name: str
    kind: str
    digest: str
    kernels: tuple[Kernel, ...]
    nodes: tuple[tuple[str, ...], ...]
    visits: tuple[CardVisit, ...]


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
        complete: whether the profile was finished.
        networks: what was measured.
    """

    def __init__(
        self, path: Path, meta: Mapping[str, Any], networks: tuple[CardNetwork, ...], digest: str
    ) -> None:
        self.path = path
        self._meta = meta
        self.networks = networks
        self.runtime = str(meta["runtime"])
        self.runtime_version = str(meta["runtime_version"])
        self.settings = RuntimeSettings.from_json(meta["settings"])
        self.simulated = bool(meta["simulated"])
        self.complete = bool(meta.get("complete", False))
        self._environment = Environment.from_json(meta["environment"])
        self._fingerprint = digest

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Reads a card.

        Args:
            path: of the card's file.

        Returns:
            The card; it may be unfinished, see `complete`.

        Raises:
            InvalidInputError: the file is missing, empty, truncated, damaged, no device card, or of
                a newer version.
        """
        path = Path(path)
        check_header(path)
        try:
            connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
            try:
                _check_schema(connection, path)
                meta, networks, digest = _read(connection)
            finally:
                connection.close()
            card = cls(path, meta, networks, digest)
        except sqlite3.Error as error:
            raise InvalidInputError(
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
        stored = meta.get("fingerprint")
        if card.complete and stored != digest:
            raise InvalidInputError(
                f"{path}: damaged device card (its content does not match its checksum); copy it "
                "again or profile the device anew."
            )
        return card

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
        """How a statistic as seen, disturbance included, compares to `latency_ms`.

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
        halves = [self.measurement(network).repeatability for network in visited]
        disagreements = sorted(value for value in halves if value is not None)
        return {
            "path": str(self.path),
            "runtime": self.runtime,
            "runtime_version": self.runtime_version,
            "settings": self.settings.to_json(),
            "simulated": self.simulated,
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
        status = get_runtime(self.runtime).status()
        found = []
        if status.version != self.runtime_version:
            here = status.version or "not installed"
            found.append(f"{self.runtime}: {self.runtime_version} → {here}")
        if not self.simulated:
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
        }


class CardWriter:
    """The one writer of a card; every method commits before it returns. A context manager.

    Args:
        path: of a card that exists, see `CardWriter.create`.
    """

    def __init__(self, path: Path) -> None:
        check_header(path)
        self.path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
            _check_schema(self._db, path)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
        except sqlite3.Error as error:
            raise InvalidInputError(
                f"{path}: damaged device card ({one_line(error, 80)}); delete it and "
                "profile the device anew."
            ) from error

    @classmethod
    def create(cls, path: Path, meta: Mapping[str, Any]) -> Self:
        """Makes an empty card, whole or not at all, and opens it.

        Raises:
            InvalidInputError: the folder cannot be written.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.unlink(missing_ok=True)
            db = sqlite3.connect(temporary)
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
            raise InvalidInputError(
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
        kernels: Iterable[tuple[Kernel, Sequence[str]]],
    ) -> int:
        """Adds a network with its kernels; returns its number."""
        with self._transaction():
            cursor = self._db.execute(
                "INSERT INTO network (name, kind, digest, spec) VALUES (?, ?, ?, ?)",
                (name, kind, digest, _dump(spec)),
            )
            number = int(cursor.lastrowid or 0)
            for position, (kernel, nodes) in enumerate(kernels):
                self._db.execute(
                    "INSERT OR IGNORE INTO kernel (signature, spec) VALUES (?, ?)",
                    (kernel.signature, _dump(kernel.to_json())),
                )
                self._db.execute(
                    "INSERT INTO network_kernel SELECT ?, ?, id, ? FROM kernel WHERE signature=?",
                    (number, position, _dump(list(nodes)), kernel.signature),
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
                " samples, kernel_samples) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    visit.round,
                    network,
                    visit.at_s,
                    visit.visit.sentinel_before_ms,
                    visit.visit.sentinel_after_ms,
                    samples,
                    kernels,
                ),
            )
            self._db.execute(
                "INSERT OR REPLACE INTO meta VALUES ('elapsed_s', ?)", (_dump(elapsed_s),)
            )

    def finish(self, validation: Mapping[str, Any]) -> None:
        """Marks the card as finished, and makes it a single file."""
        self.put(validation=dict(validation), complete=True)
        self.put(fingerprint=_digest(self._db))
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.execute("PRAGMA journal_mode=DELETE")

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    """`with` a transaction: committed at the end, rolled back on an error."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


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


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    """Refuses other SQLite files, newer cards and damaged ones."""
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
    verdict = db.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict is None or verdict[0] != "ok":
        detail = " ".join(str(verdict[0] if verdict else "no answer").split())[:80]
        raise InvalidInputError(
            f"{path}: damaged device card ({detail}); copy it again or profile the device anew."
        )


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
    parts: dict[int, list[tuple[Kernel, tuple[str, ...]]]] = {}
    for network, kernel, nodes in db.execute(
        "SELECT network, kernel, nodes FROM network_kernel ORDER BY network, position"
    ):
        names = tuple(str(node) for node in json.loads(nodes))
        parts.setdefault(int(network), []).append((kernels[int(kernel)], names))
    visits: dict[int, list[CardVisit]] = {}
    for row in db.execute(f"SELECT {_TABLES['visit']} FROM visit ORDER BY id"):
        _, number, network, at_s, before_ms, after_ms, samples, kernel_samples = row
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
                ),
                kernel_ms=times.reshape(count, -1) if count else times.reshape(0, 0),
            )
        )
    networks = tuple(
        CardNetwork(
            name=str(name),
            kind=str(kind),
            digest=str(digest),
            kernels=tuple(kernel for kernel, _ in parts.get(int(number), ())),
            nodes=tuple(nodes for _, nodes in parts.get(int(number), ())),
            visits=tuple(visits.get(int(number), ())),
        )
        for number, name, kind, digest in db.execute(
            "SELECT id, name, kind, digest FROM network ORDER BY id"
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
