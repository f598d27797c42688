"""Copies of cards that tests change."""

import sqlite3
from pathlib import Path

import pytest

from devices.errors import InvalidInputError
from latency import DeviceCard


def copy_of(card: DeviceCard, folder: Path) -> Path:
    path = folder / "copy.card"
    path.write_bytes(card.path.read_bytes())
    return path


def change(path: Path, statement: str, *values: object) -> None:
    db = sqlite3.connect(path)
    db.execute(statement, values)
    db.commit()
    db.close()


def refuse(path: Path, match: str) -> None:
    with pytest.raises(InvalidInputError, match=match) as caught:
        DeviceCard.open(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
