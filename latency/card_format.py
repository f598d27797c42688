"""A device card's file: its tables, its marks, and the sums that tell whether it is whole."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devices.errors import InvalidInputError

__all__ = [
    "APPLICATION_ID",
    "REQUIRED_META",
    "SCHEMA",
    "SCHEMA_VERSION",
    "TABLES",
    "check_header",
    "check_schema",
    "digest_of",
    "dump",
    "seal_of",
]

APPLICATION_ID = 0x41535044
"""Marks the SQLite file as a device card ("ASPD")."""
SCHEMA_VERSION = 3
"""Of the tables below; a card with a higher one is refused."""
_MAGIC = b"SQLite format 3\x00"
SCHEMA = """
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
TABLES = {
    "meta": "key, value",
    "kernel": "id, signature, spec",
    "network": "id, name, kind, digest, spec",
    "network_kernel": "network, position, kernel, nodes, sources",
    "visit": (
        "id, round, network, at_s, sentinel_before_ms, sentinel_after_ms, preempted, samples, "
        "kernel_samples"
    ),
}
"""Columns by table, in the order that the digest reads them. `derived` holds what was worked out
from the rest; it is no part of the content."""
REQUIRED_META = ("arguments", "environment", "runtime", "runtime_version", "settings", "simulated")


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


def check_schema(db: sqlite3.Connection, path: Path, whole: bool = True) -> None:
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


def seal_of(meta: Mapping[str, Any], data: bytes) -> str:
    """Ties what was derived to the description that it was derived under."""
    return hashlib.sha256(dump(dict(meta)).encode() + data).hexdigest()


def digest_of(db: sqlite3.Connection) -> str:
    """SHA-256 of all rows but the stored digest itself, independent of the file's layout."""
    digest = hashlib.sha256()
    for table, columns in TABLES.items():
        order = columns.partition(",")[0] if table != "network_kernel" else "network, position"
        for row in db.execute(f"SELECT {columns} FROM {table} ORDER BY {order}"):
            if table == "meta" and row[0] == "fingerprint":
                continue
            for value in row:
                data = value if isinstance(value, bytes) else repr(value).encode()
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
    return digest.hexdigest()


def dump(value: Any) -> str:
    """JSON with one spelling for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
