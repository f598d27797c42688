"""Reads a device card's file, whole and at once."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from devices.visits import Visit
from latency.card_format import REQUIRED_META, TABLES, check_schema, digest_of, seal_of
from latency.card_rows import CardNetwork, CardVisit
from latency.kernel import Kernel

__all__ = ["Content", "read_content", "read_derived"]

Content = tuple[dict[str, Any], "tuple[CardNetwork, ...] | None", dict[str, bytes], str]
"""Description, networks, what was derived from them, and the digest of description and networks."""


def read_content(path: Path, samples: bool) -> Content:
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


def _content_at(place: Path, path: Path, samples: bool) -> Content:
    """What is in the card that lies at a place; errors name its path."""
    connection = sqlite3.connect(f"{place.resolve().as_uri()}?mode=ro", uri=True)
    try:
        check_schema(connection, path, whole=samples)
        meta, derived = read_derived(connection)
        if not samples and derived:
            return meta, None, derived, str(meta.get("fingerprint"))
        if not samples:
            check_schema(connection, path)
        meta, networks, digest = _read(connection)
        return meta, networks, derived, digest
    finally:
        connection.close()


def read_derived(db: sqlite3.Connection) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The description, and what was derived from the samples as far as its seal is whole."""
    db.execute("BEGIN")
    meta = {str(key): json.loads(value) for key, value in db.execute("SELECT key, value FROM meta")}
    rows = db.execute("SELECT name, seal, data FROM derived ORDER BY name").fetchall()
    db.execute("COMMIT")
    if not meta.get("complete"):
        return meta, {}
    return meta, {str(n): bytes(d) for n, seal, d in rows if seal == seal_of(meta, bytes(d))}


def _read(
    db: sqlite3.Connection,
) -> tuple[dict[str, Any], tuple[CardNetwork, ...], str]:
    """Everything in the card, in one consistent snapshot."""
    import numpy as np

    db.execute("BEGIN")
    meta = {str(key): json.loads(value) for key, value in db.execute("SELECT key, value FROM meta")}
    missing = [key for key in REQUIRED_META if key not in meta]
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
    for row in db.execute(f"SELECT {TABLES['visit']} FROM visit ORDER BY id"):
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
    return meta, networks, digest_of(db)
