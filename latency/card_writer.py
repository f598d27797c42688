"""Writes a device card visit by visit."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from devices.errors import InvalidInputError
from devices.onnx_files import one_line
from latency.card_errors import disk_full, writing
from latency.card_format import (
    APPLICATION_ID,
    SCHEMA,
    SCHEMA_VERSION,
    check_header,
    check_schema,
    digest_of,
    dump,
    seal_of,
)
from latency.card_reading import read_derived
from latency.card_rows import CardVisit
from latency.kernel import KernelNode

__all__ = ["CardWriter", "keep_derived"]


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
            check_schema(self._db, path)
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
                db.executescript(SCHEMA)
                db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                db.executemany(
                    "INSERT INTO meta VALUES (?, ?)", [(k, dump(v)) for k, v in meta.items()]
                )
                db.commit()
            finally:
                db.close()
            temporary.replace(path)
        except (sqlite3.Error, OSError) as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            full = disk_full(path, error)
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
                [(k, dump(v)) for k, v in values.items()],
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
                (name, kind, digest, dump(spec)),
            )
            number = int(cursor.lastrowid or 0)
            for position, node in enumerate(kernels):
                signature = node.kernel.signature
                self._db.execute(
                    "INSERT OR IGNORE INTO kernel (signature, spec) VALUES (?, ?)",
                    (signature, dump(node.kernel.to_json())),
                )
                self._db.execute(
                    "INSERT INTO network_kernel SELECT ?, ?, id, ?, ? FROM kernel "
                    "WHERE signature=?",
                    (number, position, dump(node.nodes), dump(node.sources), signature),
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
                "INSERT OR REPLACE INTO meta VALUES ('elapsed_s', ?)", (dump(elapsed_s),)
            )

    def finish(self, validation: Mapping[str, Any], derived: Mapping[str, bytes]) -> None:
        """Marks the card as finished, and makes it a single file.

        Args:
            validation: how well the predictor does, as a JSON object.
            derived: by name, what was worked out from the samples.
        """
        self.put(validation=dict(validation), complete=True)
        self.put(fingerprint=digest_of(self._db))
        meta, _ = read_derived(self._db)
        with self._transaction():
            self._db.execute("DELETE FROM derived")
            self._db.executemany(
                "INSERT INTO derived VALUES (?, ?, ?)",
                [(name, seal_of(meta, data), data) for name, data in sorted(derived.items())],
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


def keep_derived(path: Path, fingerprint: str, name: str, data: bytes) -> None:
    """Replaces what was worked out from a finished card's samples; what was measured stays.

    Args:
        path: of the card.
        fingerprint: of the card that it was worked out from; of another one it is not kept.
        name: of what was worked out.
        data: its bytes.

    Raises:
        InvalidInputError: the card cannot be written, or is in use.
        AutospaceError: the disk is full.
    """
    with writing(path):
        db = sqlite3.connect(path, isolation_level=None, timeout=1)
        try:
            db.execute("BEGIN IMMEDIATE")
            rows = db.execute("SELECT key, value FROM meta")
            meta = {str(key): json.loads(value) for key, value in rows}
            if meta.get("complete") and meta.get("fingerprint") == fingerprint:
                row = (name, seal_of(meta, data), data)
                db.execute("INSERT OR REPLACE INTO derived VALUES (?, ?, ?)", row)
            db.execute("COMMIT")
        finally:
            db.close()  # rolls back what was not committed
