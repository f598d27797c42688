"""Profiling: deterministic when simulated, killed and continued, one writer at a time."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from choosy_runtime import ContainedChoosy

from devices.errors import InvalidInputError, UnavailableError, UsageError
from devices.runtimes import CompiledGraph, RuntimeSettings
from devices.runtimes.simulated import SimulatedRuntime
from latency import DeviceCard, profile_device
from latency.kernel import KernelGraph
from latency.kernel_reading import read_kernels
from latency.measure import Visitor
from latency.probes import ANCHORS


class Refusing(SimulatedRuntime):
    """Simulated; refuses networks with an operation, as real runtimes do."""

    def __init__(self, op: bytes) -> None:
        super().__init__()
        self.op = op

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        if self.op in model:
            raise InvalidInputError(f"model: {self.op.decode()} is not known.")
        return super().compile(model, settings)


PLAN = {"runtime": "simulated", "rounds": 2, "probes": 3}

CHILD = """
import sys
from latency import profile_device
profile_device(sys.argv[1], rounds=40, probes=3)
"""


def rows(path: Path) -> list[tuple]:
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        return db.execute("SELECT round, network, samples FROM visit ORDER BY id").fetchall()
    finally:
        db.close()


def start_child(path: Path, code: str = CHILD) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, str(path)], stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def whole_card(tmp_path_factory: pytest.TempPathFactory) -> DeviceCard:
    """What the simulated child below makes when nobody kills it."""
    path = tmp_path_factory.mktemp("whole") / "w.card"
    return profile_device(path, runtime="simulated", rounds=12, probes=10)


def wait_for_visits(path: Path, count: int, child: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert child.poll() is None, child.stderr.read()
        try:
            if len(rows(path)) >= count:
                return
        except sqlite3.Error:
            pass
        time.sleep(0.02)
    raise AssertionError("the child never measured anything")


class TestSimulated:
    def test_same_seed_same_content(self, tmp_path: Path) -> None:
        first = profile_device(tmp_path / "a.card", **PLAN)
        second = profile_device(tmp_path / "b.card", **PLAN)
        other = profile_device(tmp_path / "c.card", **PLAN, seed=1)
        assert first.fingerprint == second.fingerprint != other.fingerprint

    def test_interrupted_and_continued_gives_the_same_content(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = profile_device(tmp_path / "a.card", **PLAN)
        visit, calls = Visitor.visit, []

        def failing(self, *args, **options):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return visit(self, *args, **options)

        monkeypatch.setattr(Visitor, "visit", failing)
        with pytest.raises(KeyboardInterrupt):
            profile_device(tmp_path / "b.card", **PLAN)
        assert not DeviceCard.open(tmp_path / "b.card").complete
        again = profile_device(tmp_path / "b.card", **PLAN)
        assert again.complete and len(calls) == 4 + 3 + PLAN["rounds"] * len(ANCHORS)
        assert again.fingerprint == whole.fingerprint

    def test_minutes_do_not_pass_in_simulation(self, tmp_path: Path) -> None:
        card = profile_device(tmp_path / "a.card", runtime="simulated", minutes=10, probes=2)
        assert card.complete and all(len(n.visits) >= 2 for n in card.networks)

    def test_progress(self, tmp_path: Path) -> None:
        seen: list[float] = []
        profile_device(tmp_path / "a.card", **PLAN, progress=lambda share, text: seen.append(share))
        assert seen == sorted(seen) and seen[-1] == 1.0

    def test_symbolic_batch_of_extra_models(self, network: onnx.ModelProto, tmp_path) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(network)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "n"
        card = profile_device(
            tmp_path / "a.card",
            **PLAN,
            settings=RuntimeSettings(batch=2),
            extra_models={"mine": model},
        )
        mine = next(n for n in card.networks if n.name == "mine")
        assert mine.kernels[0].inputs[0][0] == 2


class TestArguments:
    def test_a_finished_card_is_returned_at_once(self, tmp_path: Path, monkeypatch) -> None:
        path = tmp_path / "a.card"
        first = profile_device(path, **PLAN)
        before = path.read_bytes()
        monkeypatch.setattr(Visitor, "visit", None)
        assert profile_device(path, **PLAN).fingerprint == first.fingerprint
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"rounds": 3}, "rounds 2 → 3"),
            ({"seed": 5}, "seed 0 → 5"),
            ({"probes": 4}, "probes 3 → 4"),
            ({"settings": RuntimeSettings(threads=2)}, "settings"),
            ({"runtime": "onnxruntime"}, "runtime simulated → onnxruntime"),
        ],
    )
    def test_other_arguments_are_refused_by_name(self, tmp_path, change, words) -> None:
        path = tmp_path / "a.card"
        profile_device(path, **PLAN)
        with pytest.raises(UsageError, match=words) as caught:
            profile_device(path, **{**PLAN, **change})
        assert "\n" not in str(caught.value)

    def test_other_networks_are_refused_by_name(self, network, tmp_path: Path) -> None:
        path = tmp_path / "a.card"
        profile_device(path, **PLAN)
        with pytest.raises(UsageError, match="extra networks: mine"):
            profile_device(path, **PLAN, extra_models={"mine": network})

    def test_update_adds_networks_and_visits(self, network, make_network, tmp_path) -> None:
        path = tmp_path / "a.card"
        before = profile_device(path, **PLAN)
        after = profile_device(path, **PLAN, extra_models={"mine": network}, update=True)
        assert {n.name for n in after.networks} - {n.name for n in before.networks} == {"mine"}
        assert [len(n.visits) for n in after.networks] == [4] * (3 + len(ANCHORS)) + [2]
        with pytest.raises(UsageError, match="'mine'"):
            profile_device(path, **PLAN, extra_models={"mine": make_network(16)}, update=True)

    def test_update_cannot_change_the_device(self, tmp_path: Path) -> None:
        path = tmp_path / "a.card"
        profile_device(path, **PLAN)
        with pytest.raises(UsageError, match="settings"):
            profile_device(path, **PLAN, settings=RuntimeSettings(threads=2), update=True)

    @pytest.mark.parametrize(
        "wrong", [{"rounds": 0}, {"minutes": 0}, {"minutes": -1}, {"minutes": None}, {"probes": -1}]
    )
    def test_impossible_limits(self, tmp_path: Path, wrong: dict) -> None:
        with pytest.raises(UsageError, match=next(iter(wrong))):
            profile_device(tmp_path / "a.card", runtime="simulated", **wrong)
        assert not list(tmp_path.iterdir())

    def test_unusable_runtime(self, tmp_path: Path) -> None:
        with pytest.raises(UnavailableError):
            profile_device(tmp_path / "a.card", runtime="tensorrt", rounds=1)
        assert not list(tmp_path.iterdir())

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="folder"):
            profile_device(tmp_path / "none" / "a.card", **PLAN)

    def test_foreign_file_is_never_overwritten(self, tmp_path: Path) -> None:
        path = tmp_path / "a.card"
        path.write_text("my thesis")
        with pytest.raises(InvalidInputError, match="not a device card"):
            profile_device(path, **PLAN)
        assert path.read_text() == "my thesis"

    def test_an_empty_file_is_filled(self, tmp_path: Path) -> None:
        path = tmp_path / "a.card"
        path.touch()
        assert profile_device(path, **PLAN).complete

    def test_refused_model_is_named(self, network, tmp_path: Path) -> None:
        broken = onnx.ModelProto()
        broken.CopyFrom(network)
        broken.graph.node[0].op_type = "NoSuchOperation"
        with pytest.raises(InvalidInputError, match="'bad'"):
            profile_device(tmp_path / "a.card", rounds=1, probes=1, extra_models={"bad": broken})


SIMULATED_CHILD = """
import sys
from latency import profile_device
profile_device(sys.argv[1], runtime="simulated", rounds=12, probes=10)
"""


class TestKilled:
    @pytest.mark.parametrize("visits", [1, 20, 60])
    def test_killed_in_the_middle_the_content_is_the_same(
        self, tmp_path: Path, whole_card: DeviceCard, visits: int
    ) -> None:
        path = tmp_path / "k.card"
        child = start_child(path, SIMULATED_CHILD)
        wait_for_visits(path, visits, child)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stderr.close()
        before = DeviceCard.open(path)
        assert not before.complete and before.fit is None
        assert rows(path) == rows(whole_card.path)[: len(rows(path))]
        card = profile_device(path, runtime="simulated", rounds=12, probes=10)
        assert card.complete and card.fingerprint == whole_card.fingerprint
        assert card.fit == whole_card.fit
        assert sorted(os.listdir(tmp_path)) == ["k.card"]

    def test_killed_and_continued(self, tmp_path: Path) -> None:
        path = tmp_path / "k.card"
        child = start_child(path)
        wait_for_visits(path, 7, child)
        with pytest.raises(UsageError, match="another profiler"):
            profile_device(path, rounds=40, probes=3)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stderr.close()
        kept = rows(path)
        assert len(kept) >= 7
        unfinished = DeviceCard.open(path)
        assert not unfinished.complete
        assert any("unfinished" in line for line in unfinished.check_usable())
        card = profile_device(path, rounds=40, probes=3)
        assert card.complete and [len(n.visits) for n in card.networks] == [40] * (3 + len(ANCHORS))
        assert rows(path)[: len(kept)] == kept
        assert sorted(os.listdir(tmp_path)) == ["k.card"]


class Warming(SimulatedRuntime):
    """Simulated, on a device that tells its temperature."""

    temperature_c = 40

    def device_state(self) -> dict[str, int]:
        self.temperature_c += 1
        return {"sm_mhz": 1980, "temperature_c": self.temperature_c}


def test_a_device_that_tells_its_clocks_is_asked_after_each_round(tmp_path: Path) -> None:
    path = tmp_path / "w.card"
    card = profile_device(path, runtime=Warming(), rounds=3, probes=2)
    assert [state["temperature_c"] for state in card.device_states] == [41, 42, 43]
    assert [state["round"] for state in DeviceCard.open(path).device_states] == [0, 1, 2]
    assert card.summary()["device_states"][0]["sm_mhz"] == 1980
    plain = profile_device(tmp_path / "p.card", runtime=SimulatedRuntime(), rounds=1, probes=2)
    assert plain.device_states == ()


class TestRefusals:
    def test_other_probes_are_drawn_for_those_that_a_runtime_refuses(self, tmp_path: Path) -> None:
        card = profile_device(
            tmp_path / "r.card", runtime=Refusing(b"HardSigmoid"), rounds=1, probes=24
        )
        refused = card.summary()["refused"]
        assert refused and all("HardSigmoid is not known" in line for line in refused)
        assert card.summary()["networks"]["probe"] == 24
        assert not any("HardSigmoid" in k.op for n in card.networks for k in n.kernels)

    def test_other_probes_are_drawn_for_those_that_cannot_be_read(
        self, tmp_path: Path, monkeypatch
    ) -> None:
        def puzzled(model: onnx.ModelProto, executed: bytes) -> KernelGraph:
            if b"HardSigmoid" in executed:
                raise KeyError("a tensor that nobody makes")
            return read_kernels(model, executed)

        monkeypatch.setattr("latency.profile.read_kernels", puzzled)
        path = tmp_path / "r.card"
        card = profile_device(path, runtime=SimulatedRuntime(), rounds=1, probes=24)
        refused = card.summary()["refused"]
        assert refused and all("cannot be read (KeyError: 'a tensor" in line for line in refused)
        assert card.complete and card.summary()["networks"]["probe"] == 24

    def test_a_runtime_that_refuses_everything_is_believed(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="is not known"):
            profile_device(tmp_path / "r.card", runtime=Refusing(b"Conv"), rounds=1, probes=1)

    def test_probes_that_take_their_process_with_them_are_left_out(self, tmp_path: Path) -> None:
        path, said = tmp_path / "choosy.card", []
        card = profile_device(
            path,
            runtime=ContainedChoosy(),
            rounds=2,
            probes=14,
            progress=lambda share, text: said.append(text),
        )
        assert card.complete
        left_out = {line.split()[2].rstrip(":") for line in said if line.startswith("left out")}
        refused = card.summary()["refused"]
        assert left_out and all(any(name in line for line in refused) for name in left_out)
        assert any("no operation Softmax" in line for line in refused)
        assert any("crashed while loading (SIGABRT" in line for line in refused)
        visited = {network.name for network in card.networks if network.visits}
        assert not visited & left_out
        probes = [name for name in visited if name.startswith(("probe-", "network-"))]
        assert len(probes) == 14 - len(left_out)
        assert profile_device(path, runtime=ContainedChoosy(), rounds=2, probes=14).complete
