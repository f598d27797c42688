"""The card's file: what it holds, and that no damage gives anything but one line."""

import json
import random
import sqlite3
from pathlib import Path

import pytest
from spoilt_cards import change, copy_of, refuse

from devices.errors import InvalidInputError, MismatchError
from devices.runtimes import RuntimeSettings
from latency import DeviceCard, Predictor, profile_device
from latency.measure import VisitPlan
from latency.probes import ANCHORS


class TestContent:
    def test_a_finished_card_is_one_file(self, simulated_card: DeviceCard) -> None:
        names = [p.name for p in simulated_card.path.parent.iterdir()]
        assert names == [simulated_card.path.name]

    def test_properties(self, simulated_card: DeviceCard) -> None:
        card = simulated_card
        assert (card.runtime, card.runtime_version) == ("simulated", "1")
        assert card.settings == RuntimeSettings()
        assert card.simulated and card.complete and len(card.fingerprint) == 64
        assert card.environment["logical_cores"] >= 1

    def test_raw_samples_are_kept(self, real_card: DeviceCard) -> None:
        for network in real_card.networks:
            assert len(network.visits) == 4
            for item in network.visits:
                assert len(item.visit.samples_ms) >= VisitPlan().slow_runs
                assert item.kernel_ms.shape[0] == len(network.kernels)
                assert item.kernel_ms.shape[1] >= 1 and (item.kernel_ms >= 0).all()

    def test_summary_is_json(self, simulated_card: DeviceCard, real_card: DeviceCard) -> None:
        for card in (simulated_card, real_card):
            summary = json.loads(json.dumps(card.summary()))
            assert summary["networks"]["extra"] == 1 and summary["networks"]["probe"] >= 10
            assert summary["visits"] == sum(len(n.visits) for n in card.networks)
            assert sum(summary["kernels_by_family"].values()) == summary["kernels"]
            assert summary["sentinel"]["reference_ms"] > 0
            assert summary["validation"]["networks"] == len(card.networks) - len(ANCHORS)

    def test_real_repeatability_is_stated(self, real_card: DeviceCard) -> None:
        found = real_card.summary()["repeatability"]
        assert found["networks"] == len(real_card.networks) and found["median"] >= 0

    def test_statistics_as_seen_compare_to_the_latency(self, simulated_card, real_card) -> None:
        for name in ("p50", "p90", "p99"):
            assert simulated_card.ratio(name) == pytest.approx(1.0)
        assert real_card.ratio("p50") <= real_card.ratio("p90") <= real_card.ratio("p99")
        with pytest.raises(InvalidInputError, match="'mean'"):
            real_card.ratio("mean")

    def test_at_the_speed_of_another(self, real_card: DeviceCard, tmp_path: Path) -> None:
        other = real_card.first(1e-9 + min(v.at_s for n in real_card.networks for v in n.visits))
        faster = real_card.at_speed_of(real_card)
        assert faster.sentinel_reference_ms == real_card.sentinel_reference_ms
        moved = real_card.at_speed_of(other)
        assert moved.sentinel_reference_ms == other.sentinel_reference_ms
        assert moved.fingerprint != real_card.fingerprint
        assert moved.at_speed_of(real_card).measurement(real_card.networks[0]) == (
            real_card.measurement(real_card.networks[0])
        )

    def test_context_manager(self, simulated_card: DeviceCard) -> None:
        with DeviceCard.open(simulated_card.path) as card:
            assert card.fingerprint == simulated_card.fingerprint

    def test_fingerprint_is_of_the_content_not_the_file(self, simulated_card, tmp_path) -> None:
        path = copy_of(simulated_card, tmp_path)
        db = sqlite3.connect(path)
        db.execute("VACUUM")
        db.close()
        assert DeviceCard.open(path).fingerprint == simulated_card.fingerprint


class TestUse:
    def test_own_card_is_usable(self, real_card: DeviceCard) -> None:
        assert real_card.check_usable() == ()

    def test_simulated_cards_say_so(self, simulated_card: DeviceCard) -> None:
        (warning,) = simulated_card.check_usable()
        assert "simulated" in warning

    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("runtime_version", "0.1", "onnxruntime: 0.1 →"),
            ("environment", "Imaginary 9000", "cpu: Imaginary 9000 →"),
        ],
    )
    def test_differences_are_named(
        self, real_card: DeviceCard, tmp_path: Path, key: str, value: str, words: str
    ) -> None:
        path = copy_of(real_card, tmp_path)
        db = sqlite3.connect(path)
        new = {**real_card.environment, "cpu": value} if key == "environment" else value
        db.execute("UPDATE meta SET value=? WHERE key=?", (json.dumps(new), key))
        db.execute("UPDATE meta SET value='false' WHERE key='complete'")
        db.commit()
        db.close()
        card = DeviceCard.open(path)
        with pytest.raises(MismatchError, match="--allow-mismatch") as caught:
            card.check_usable()
        assert words in str(caught.value) and "\n" not in str(caught.value)
        warnings = card.check_usable(allow_mismatch=True)
        assert any(words in line for line in warnings)

    def test_other_settings(self, real_card: DeviceCard) -> None:
        assert real_card.check_settings(RuntimeSettings()) == ()
        with pytest.raises(MismatchError, match="threads: 1 → 2"):
            real_card.check_settings(RuntimeSettings(threads=2))
        (line,) = real_card.check_settings(RuntimeSettings(threads=2), allow_mismatch=True)
        assert "threads" in line


class TestFirst:
    def test_it_is_what_was_visited_by_then(self, real_card: DeviceCard) -> None:
        times = sorted(v.at_s for n in real_card.networks for v in n.visits)
        for place in (5, len(times) // 2, len(times) - 1):
            card = real_card.first(times[place] / 60 + 1e-9)
            found = sorted(v.at_s for n in card.networks for v in n.visits)
            assert found == times[: place + 1]
            assert all(n.visits for n in card.networks)

    def test_everything_and_nothing(self, real_card: DeviceCard) -> None:
        whole = real_card.first(1e9)
        assert [n.name for n in whole.networks] == [n.name for n in real_card.networks]
        nothing = real_card.first(0)
        assert nothing.networks == ()
        with pytest.raises(InvalidInputError, match="nothing measured"):
            Predictor.from_card(nothing)

    def test_nothing_of_the_whole_is_taken_for_its_own(self, real_card: DeviceCard) -> None:
        middle = max(v.at_s for n in real_card.networks for v in n.visits) / 120
        card = real_card.first(middle)
        assert card.fit is None and card.validation is None
        assert card.fingerprint != real_card.fingerprint != real_card.first(middle / 2).fingerprint
        assert card.summary()["visits"] < real_card.summary()["visits"]
        predictor = Predictor.from_card(card)
        assert predictor.validation["networks"] <= len(card.networks)


class TestWithoutSamples:
    def test_it_says_the_same(self, simulated_card: DeviceCard, real_card: DeviceCard) -> None:
        for card in (simulated_card, real_card):
            quick = DeviceCard.open(card.path, samples=False)
            assert quick.fingerprint == card.fingerprint and quick.complete
            assert quick.fit == card.fit is not None
            for name in ("runtime", "settings", "environment", "arguments", "validation"):
                assert getattr(quick, name) == getattr(card, name)
            # Samples are read when they are asked for.
            assert quick.summary() == card.summary()
            assert [n.name for n in quick.networks] == [n.name for n in card.networks]

    def test_samples_are_not_touched(self, simulated_card: DeviceCard, tmp_path: Path) -> None:
        path = copy_of(simulated_card, tmp_path)
        change(path, "UPDATE visit SET sentinel_before_ms = sentinel_before_ms * 2 WHERE id = 1")
        refuse(path, "checksum")
        card = DeviceCard.open(path, samples=False)
        assert card.fit == simulated_card.fit
        with pytest.raises(InvalidInputError, match="checksum"):
            _ = card.networks

    def test_a_changed_description_is_refused(self, simulated_card, tmp_path: Path) -> None:
        path = copy_of(simulated_card, tmp_path)
        for key, value in (
            ("settings", {"threads": 4, "precision": "fp32", "batch": 1}),
            ("validation", {"median_error": 0.0}),
            ("runtime_version", "9"),
            ("fingerprint", "0" * 64),
        ):
            change(path, "UPDATE meta SET value=? WHERE key=?", json.dumps(value), key)
            for samples in (False, True):
                with pytest.raises(InvalidInputError, match="damaged"):
                    DeviceCard.open(path, samples=samples)

    @pytest.mark.parametrize(
        ("statement", "values"),
        [
            ("UPDATE derived SET data=? WHERE name='fit'", (b"nonsense",)),
            ("UPDATE derived SET seal=? WHERE name='fit'", ("0" * 64,)),
            ("DELETE FROM derived", ()),
            ("DELETE FROM derived WHERE name='fit'", ()),
            ("UPDATE derived SET name='fusion' || name", ()),
        ],
    )
    def test_a_changed_fit_is_never_used(
        self, simulated_card, network, tmp_path: Path, statement: str, values: tuple
    ) -> None:
        path = copy_of(simulated_card, tmp_path)
        change(path, statement, *values)
        expected = Predictor.from_card(simulated_card).predict(network).latency_ms
        for samples in (False, True):
            card = DeviceCard.open(path, samples=samples)
            assert card.fit is None and card.fingerprint == simulated_card.fingerprint
            found = Predictor.from_card(card).predict(network).latency_ms
            assert found == pytest.approx(expected, rel=1e-3)

    def test_a_fit_of_another_card_is_never_used(
        self, simulated_card: DeviceCard, real_card: DeviceCard, tmp_path: Path
    ) -> None:
        path = copy_of(real_card, tmp_path)
        db = sqlite3.connect(simulated_card.path)
        (row,) = db.execute("SELECT seal, data FROM derived WHERE name='fit'").fetchall()
        db.close()
        change(path, "UPDATE derived SET seal=?, data=? WHERE name='fit'", *row)
        assert DeviceCard.open(path, samples=False).fit is None

    def test_any_changed_byte_of_the_fit_is_noticed(self, simulated_card, tmp_path: Path) -> None:
        path = tmp_path / "b.card"
        data = simulated_card.path.read_bytes()
        rng = random.Random(0)
        kept = simulated_card.fit
        assert kept is not None
        for _ in range(40):
            # Somewhere in the file: the fit is a good part of it.
            place = rng.randrange(len(data) // 8, len(data))
            path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
            try:
                card = DeviceCard.open(path, samples=False)
            except InvalidInputError as error:
                assert "\n" not in str(error)
            else:
                assert card.fit in (None, kept)

    def test_another_card_in_its_place_is_noticed(
        self, simulated_card: DeviceCard, real_card: DeviceCard, tmp_path: Path
    ) -> None:
        path = copy_of(simulated_card, tmp_path)
        card = DeviceCard.open(path, samples=False)
        path.write_bytes(real_card.path.read_bytes())
        with pytest.raises(InvalidInputError, match="changed since"):
            _ = card.networks

    def test_an_unfinished_card_is_read_whole(self, tmp_path: Path, monkeypatch) -> None:
        path = tmp_path / "u.card"
        monkeypatch.setattr("latency.profile._finish", lambda *_: None)
        profile_device(path, runtime="simulated", rounds=1, probes=2)
        card = DeviceCard.open(path, samples=False)
        assert not card.complete and card.fit is None and len(card.networks) == 2 + len(ANCHORS)
