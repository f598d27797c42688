"""The anytime plan: a short profile is the beginning of a long one, visits lie apart in time."""

import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.runtimes import CompiledGraph, RuntimeSettings
from devices.runtimes.simulated import SimulatedModel, SimulatedRuntime
from latency import DeviceCard, profile, profile_device, schedule
from latency.card_rows import ANCHOR, CHOSEN, WHOLE
from latency.card_writer import CardWriter
from latency.layers import LayerSpec
from latency.probes import ANCHORS, ProbeSpec
from latency.schedule import (
    AGES,
    GENERATION,
    MAX_PROBES,
    MIN_PROBES,
    NETWORK_PERIOD,
    PROBES_BY_ROUNDS,
    SMALL_PERIOD,
    Schedule,
)

VISIT_S = 2.0


class Clock:
    """Time passes by visits, all of them equally long, and by compiling where that is told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class TimedRuntime(SimulatedRuntime):
    """The simulated runtime, but its profiles are limited by time like real ones."""

    simulated: ClassVar[bool] = False

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.stop_at: int | None = None
        self.compile_s = 0.0
        self.visits = 0

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        self.clock.now_s += self.compile_s
        return super().compile(model, settings)

    def load(self, compiled, settings, profiling=False) -> SimulatedModel:
        if self.stop_at is not None and self.visits >= self.stop_at:
            raise KeyboardInterrupt
        self.visits += 1
        self.clock.now_s += VISIT_S
        return super().load(compiled, settings, profiling)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Smaller generations, so that many rounds pass with few visits."""
    monkeypatch.setattr(schedule, "GENERATION", MIN_PROBES)
    return MIN_PROBES


Timed = Callable[..., DeviceCard]


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Timed:
    """Profiles by the clock above, with probes of one layer and without a fit."""

    def small(rng: np.random.Generator, **_: bool) -> ProbeSpec:
        return ProbeSpec("image", 4, int(rng.integers(3, 500)), (LayerSpec("pointwise", 4),))

    def finish(writer: CardWriter, *_: object) -> None:
        writer.finish({}, {})

    monkeypatch.setattr("latency.probes.sample_probe", small)
    monkeypatch.setattr("latency.acquisition.sample_probe", small)
    monkeypatch.setattr(profile, "_finish", finish)

    def run(name: str, stop_at: int | None = None, compile_s: float = 0.0, **options) -> DeviceCard:
        clock = Clock()
        monkeypatch.setattr(profile, "monotonic", clock)
        runtime = TimedRuntime(clock)
        runtime.stop_at, runtime.compile_s = stop_at, compile_s
        return profile_device(tmp_path / name, runtime=runtime, **options)

    return run


def rows(card: DeviceCard | Path) -> list[tuple[int, str]]:
    """Round and name of every visit, in the order of time."""
    path = card if isinstance(card, Path) else card.path
    db = sqlite3.connect(path)
    try:
        return db.execute(
            "SELECT round, name FROM visit JOIN network ON network.id = network ORDER BY visit.id"
        ).fetchall()
    finally:
        db.close()


def by_network(card: DeviceCard) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number, name in rows(card):
        found.setdefault(name, []).append(number)
    return found


class TestTimed:
    def test_a_short_profile_is_the_beginning_of_a_long_one(
        self, timed: Timed, network: onnx.ModelProto
    ) -> None:
        models = {"mine": network}
        short, long = (
            rows(timed(f"{minutes}.card", minutes=minutes, extra_models=models))
            for minutes in (3, 30)
        )
        assert 60 < len(short) < len(long) / 8
        assert long[: len(short)] == short

    def test_first_is_what_a_shorter_profile_would_have_made(self, timed: Timed) -> None:
        long, short = timed("long.card", minutes=9), timed("short.card", minutes=3)
        cut = long.first(3)
        assert {n.name for n in cut.networks} <= {n.name for n in short.networks}
        kept = {n.name: [v.round for v in n.visits] for n in cut.networks}
        made = {n.name: [v.round for v in n.visits] for n in short.networks}
        # The visit during which time was up belongs to the shorter profile only.
        assert sum(map(len, made.values())) - sum(map(len, kept.values())) <= 2
        assert all(made[name][: len(visits)] == visits for name, visits in kept.items())

    def test_slow_compiling_ends_with_few_probes_visited_twice(self, timed: Timed) -> None:
        card = timed("a.card", minutes=3, compile_s=20.0)
        seen = {name: n for name, n in by_network(card).items() if not name.startswith("anchor")}
        assert len(seen) == profile._LEAST_PROBES
        assert all(rounds == [0, 1] for rounds in seen.values())
        assert card.elapsed_s < 20 * 20  # seconds; two generations would be 48 probes

    def test_every_probe_has_its_visits_far_apart(self, timed: Timed, few: int) -> None:
        card = timed("a.card", minutes=20)
        found = by_network(card)
        last = max(number for number, _ in rows(card))
        probes = {
            name: seen for name, seen in found.items() if name.startswith(("probe-", CHOSEN, WHOLE))
        }
        assert len(probes) > 60
        for name, seen in probes.items():
            ages = [number - seen[0] for number in seen]
            assert ages == [a for a in AGES if a <= ages[-1]], name
            if seen[0] + AGES[-1] < last:
                assert len(seen) == len(AGES)

    def test_generations_come_one_a_round(self, timed: Timed, few: int) -> None:
        card = timed("a.card", minutes=10)
        found = by_network(card)
        born = Counter(
            seen[0] for name, seen in found.items() if name.startswith(("probe-", CHOSEN, WHOLE))
        )
        last = max(born)
        assert last > 5 and all(born[number] == few for number in range(last))

    def test_every_fourth_of_the_later_probes_is_built_like_a_network(
        self, timed: Timed, few: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(schedule, "LIGHT_PROBES", 12)
        names = by_network(timed("a.card", minutes=20))
        probes = {int(name.split("-")[-1]): name for name in names if "anchor" not in name}
        assert max(probes) > 40
        for index, name in probes.items():
            small = index % SMALL_PERIOD == SMALL_PERIOD - 1
            whole = small or (index >= 12 and index % NETWORK_PERIOD == 0)
            assert name.startswith(WHOLE) == whole

    def test_without_times_of_kernels_every_other_is(self) -> None:
        plan = Schedule(minutes=10, rounds=None, probes=None, timed=False)
        assert (
            plan.network_period == 2 and plan.light_probes < Schedule(10, None, None).light_probes
        )

    def test_own_networks_and_anchors_are_visited_often(
        self, timed: Timed, few: int, network: onnx.ModelProto
    ) -> None:
        card = timed("a.card", minutes=20, extra_models={"mine": network})
        found = by_network(card)
        last = max(number for number, _ in rows(card))
        assert last > 16
        expected = [n for n in range(last) if n < 12 or n % 4 == 0]
        names = ["mine", *(f"anchor-{kernels}" for kernels in ANCHORS)]
        for name in names:
            assert [n for n in found[name] if n < last] == expected
        assert {n.kind for n in card.networks if n.name in names} == {"extra", ANCHOR}

    @pytest.mark.parametrize("stop_at", [1, 20, 50, 85])
    def test_killed_and_continued_goes_on_with_the_plan(self, timed: Timed, stop_at: int) -> None:
        whole = rows(timed("whole.card", minutes=3))
        with pytest.raises(KeyboardInterrupt):
            timed("killed.card", minutes=3, stop_at=stop_at)
        card = timed("killed.card", minutes=3)
        assert card.complete
        found = rows(card)
        # Each run loads the sentinel too, which here takes as long as a visit.
        assert abs(len(found) - len(whole)) <= 2
        shorter = min(len(found), len(whole))
        assert found[:shorter] == whole[:shorter]

    def test_killed_late_it_goes_on_choosing_probes(
        self, timed: Timed, few: int, tmp_path: Path
    ) -> None:
        """From some round on every other probe is chosen by a fit to what was measured so far."""
        with pytest.raises(KeyboardInterrupt):
            timed("killed.card", minutes=20, stop_at=240)
        path = tmp_path / "killed.card"
        before = rows(path)
        assert max(number for number, _ in before) > 6
        card = timed("killed.card", minutes=20)
        assert card.complete and rows(path)[: len(before)] == before
        found = by_network(card)
        probes = [
            seen for name, seen in found.items() if name.startswith(("probe-", CHOSEN, WHOLE))
        ]
        for seen in probes:
            ages = [number - seen[0] for number in seen]
            assert ages == [a for a in AGES if a <= ages[-1]]
        born = Counter(seen[0] for seen in probes)
        assert all(born[number] == few for number in range(max(born)))

    def test_time_before_a_kill_counts(self, timed: Timed) -> None:
        with pytest.raises(KeyboardInterrupt):
            timed("a.card", minutes=3, stop_at=70)
        card = timed("a.card", minutes=3)
        latest = max(visit.at_s for network in card.networks for visit in network.visits)
        assert 170 <= latest <= 190

    def test_enough_probes_are_visited_in_every_round(self, timed: Timed) -> None:
        card = timed("a.card", minutes=5, probes=10)
        found = by_network(card)
        probes = [
            seen for name, seen in found.items() if name.startswith(("probe-", CHOSEN, WHOLE))
        ]
        last = max(number for number, _ in rows(card))
        assert len(probes) == 10 and last > 8
        assert all(seen[:last] == list(range(last)) for seen in probes)

    def test_an_extended_card_visits_the_old_networks_again(
        self, timed: Timed, network: onnx.ModelProto
    ) -> None:
        before = rows(timed("a.card", minutes=2))
        first = max(number for number, _ in before) + 1
        after = rows(timed("a.card", minutes=4, extra_models={"mine": network}, update=True))
        later = after[len(before) :]
        assert after[: len(before)] == before and min(number for number, _ in later) == first
        names = Counter(name for _, name in later)
        assert names["mine"] >= 2 and names["anchor-1"] >= 2
        new = set(names) - {name for _, name in before}
        assert len(new) > 10 and len(set(names) - new) > 10

    def test_no_time_at_all_still_makes_a_card(self, timed: Timed) -> None:
        card = timed("a.card", minutes=0.001)
        probes = [n for n in card.networks if n.kind == "probe"]
        # A network seen only once says nothing about its repeatability.
        assert len(probes) >= MIN_PROBES and len(probes[0].visits) >= 2


class TestSchedule:
    def test_rounds_fix_everything(self) -> None:
        schedule = Schedule(minutes=None, rounds=5, probes=None)
        assert schedule.fixed and schedule.most_probes == PROBES_BY_ROUNDS
        assert schedule.new_probes(0) == PROBES_BY_ROUNDS and schedule.new_probes(30) == 0
        assert all(schedule.is_due(age, True, True) for age in range(40))
        assert not any(schedule.is_over(age, True) for age in range(40))

    def test_simulated_time_fixes_everything(self) -> None:
        assert Schedule(minutes=10, rounds=None, probes=None, simulated=True).fixed
        assert Schedule(10, None, 7, True).new_probes(0) == 7

    def test_time_gives_generations(self) -> None:
        schedule = Schedule(minutes=10, rounds=None, probes=None)
        assert not schedule.fixed and schedule.most_probes == MAX_PROBES
        assert schedule.new_probes(0) == schedule.new_probes(500) == GENERATION
        assert schedule.new_probes(MAX_PROBES - 3) == 3 and schedule.new_probes(MAX_PROBES) == 0

    @given(
        minutes=st.floats(0.01, 1440),
        probes=st.none() | st.integers(0, 100),
        have=st.integers(0, 8000),
    )
    def test_never_more_probes_than_asked_for(self, minutes, probes, have) -> None:
        schedule = Schedule(minutes, None, probes)
        new = schedule.new_probes(have)
        assert 0 <= new <= GENERATION
        assert new == 0 or have + new <= schedule.most_probes
        if have == 0 and probes is None:
            assert new >= MIN_PROBES

    @given(minutes=st.floats(3, 1440))
    def test_from_three_minutes_on_the_plan_is_one(self, minutes: float) -> None:
        assert Schedule(minutes, None, None).new_probes(0) == GENERATION

    def test_ages(self) -> None:
        schedule = Schedule(minutes=10, rounds=None, probes=None)
        assert [age for age in range(60) if schedule.is_due(age, True, True)] == list(AGES)
        assert [age for age in range(14) if schedule.is_over(age, True)] == [AGES[-1] + 1]
        assert not any(schedule.is_over(age, False) for age in range(60))
        assert all(schedule.is_due(age, True, growing=False) for age in range(60))
        own = [age for age in range(21) if schedule.is_due(age, False, True)]
        assert own == [*range(12), 12, 16, 20]
