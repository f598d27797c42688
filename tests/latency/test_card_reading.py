"""What is no whole device card is refused in one line."""

import random
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spoilt_cards import change, copy_of, refuse

from devices.errors import AutospaceError, InvalidInputError
from latency import DeviceCard
from latency.card_format import SCHEMA_VERSION


class TestDamage:
    def test_missing(self, tmp_path: Path) -> None:
        refuse(tmp_path / "none.card", "no such file")

    def test_folder(self, tmp_path: Path) -> None:
        refuse(tmp_path, "no such file")

    def test_empty(self, tmp_path: Path) -> None:
        path = tmp_path / "e.card"
        path.touch()
        refuse(path, "empty")

    def test_foreign(self, tmp_path: Path) -> None:
        path = tmp_path / "f.card"
        path.write_text("a text file, and a long one" * 10)
        refuse(path, "not a device card")

    def test_foreign_database(self, tmp_path: Path) -> None:
        path = tmp_path / "d.card"
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE t (x)")
        db.commit()
        db.close()
        refuse(path, "not a device card")

    def test_newer_format(self, simulated_card: DeviceCard, tmp_path: Path) -> None:
        path = copy_of(simulated_card, tmp_path)
        db = sqlite3.connect(path)
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
        db.close()
        refuse(path, "update autospace")

    def test_a_changed_sample_is_noticed(self, simulated_card: DeviceCard, tmp_path: Path) -> None:
        path = copy_of(simulated_card, tmp_path)
        db = sqlite3.connect(path)
        db.execute("UPDATE visit SET sentinel_before_ms = sentinel_before_ms * 2 WHERE id = 1")
        db.commit()
        db.close()
        refuse(path, "checksum")

    @pytest.mark.parametrize(
        "statement",
        [
            "DROP TABLE visit",
            "DELETE FROM meta WHERE key='settings'",
            "UPDATE meta SET value='nonsense' WHERE key='environment'",
            "UPDATE meta SET value='3' WHERE key='environment'",
            "UPDATE kernel SET spec='{}'",
            "DELETE FROM kernel",
            "UPDATE visit SET samples=x'00'",
            "UPDATE visit SET samples='text'",
            "UPDATE visit SET kernel_samples=x'00000000'",
            "UPDATE visit SET sentinel_before_ms=-1",
        ],
    )
    def test_wrong_rows(self, simulated_card: DeviceCard, tmp_path: Path, statement: str) -> None:
        path = copy_of(simulated_card, tmp_path)
        db = sqlite3.connect(path)
        db.execute(statement)
        db.commit()
        db.close()
        refuse(path, "damaged")

    @pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
    def test_truncated(self, simulated_card: DeviceCard, tmp_path: Path, share: float) -> None:
        data = simulated_card.path.read_bytes()
        path = tmp_path / "t.card"
        path.write_bytes(data[: int(len(data) * share)])
        try:
            card = DeviceCard.open(path)
        except InvalidInputError as error:
            assert "\n" not in str(error)
        else:  # nothing but the end of the fit was lost, which is then fitted anew
            assert share > 0.99 and card.fingerprint == simulated_card.fingerprint
            assert card.fit in (None, simulated_card.fit)

    def test_an_older_format(self, simulated_card: DeviceCard, tmp_path: Path) -> None:
        path = copy_of(simulated_card, tmp_path)
        change(path, "PRAGMA user_version=1")
        refuse(path, "format 1, this version reads")

    @settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(seed=st.integers(0, 2**32), count=st.integers(1, 200), early=st.booleans())
    def test_garbage_anywhere(
        self, simulated_card: DeviceCard, tmp_path: Path, seed: int, count: int, early: bool
    ) -> None:
        rng = random.Random(seed)
        data = bytearray(simulated_card.path.read_bytes())
        end = 8192 if early else len(data)
        start = rng.randrange(end)
        for offset in range(start, min(start + count, len(data))):
            data[offset] = rng.randrange(256)
        path = tmp_path / "g.card"
        path.write_bytes(bytes(data))
        try:
            card = DeviceCard.open(path)
        except AutospaceError as error:
            assert "\n" not in str(error)
        else:
            assert card.fingerprint == simulated_card.fingerprint or not card.complete
