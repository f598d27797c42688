"""The whole chain on the simulated runtime, and a real process killed in every stage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from autospace import steps
from autospace.config import load_config
from autospace.pipeline import STAGES, check_verdict, newest_network, run_pipeline
from autospace.training import TrainedNetwork
from devices.errors import BudgetError, UsageError
from devices.measurement import Measurement
from devices.runtimes.base import RuntimeSettings
from devices.visits import Visit

CONFIG = """
seed = 3
[target]
skeleton = "tiny"
latency = "LIMIT"
[data]
name = "digits"
[device]
runtime = "simulated"
rounds = 2
[evolve]
generations = 4
warmup = 2
population = 8
steps = 1
batch = 16
[search]
steps = 12
warmup = 4
batch = 16
proposals = 2
rounds = 2
[train]
epochs = 1
batch = 64
[benchmark]
visits = 4
"""


def _config(folder: Path, limit: str = "80%", **changes: str) -> Path:
    text = CONFIG.replace("LIMIT", limit)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "config.toml"
    path.write_text(text)
    return path


@contextmanager
def _silent(stage: str) -> Iterator[object]:
    yield lambda fraction, message: None


def _run(config: Path, folder: Path) -> dict:
    return run_pipeline(
        load_config(config), folder, reporter=_silent, note=lambda text: None,
        config_text=config.read_text(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    _run(_config(folder), folder / "run")
    return folder / "run"


def _results(run: Path) -> dict[str, object]:
    """Everything that a resumed run has to reproduce."""
    documents = {
        name: json.loads((run / name).read_text())
        for name in ("space.json", "architecture.json", "export.json")
    }
    network = TrainedNetwork.load(run / "checkpoint.safetensors")
    documents["weights"] = {
        name: tensor.numpy().tobytes() for name, tensor in network.network.state_dict().items()
    }
    documents["onnx"] = (run / "model.onnx").read_bytes()
    for name in ("evolve.jsonl", "search.jsonl", "train.jsonl"):
        documents[name] = (run / name).read_text()
    verdict = json.loads((run / "verdict.json").read_text())
    verdict.pop("seconds")
    for name in ("predicted_low_ms", "predicted_high_ms"):
        # The last bit of a matrix product depends on where in memory its factors lie.
        verdict[name] = float(f"{verdict[name]:.12g}")
    documents["verdict"] = verdict
    return documents


def test_a_run_leaves_every_result_and_a_verdict(whole):
    names = {path.name for path in whole.iterdir()}
    assert names >= {
        "config.toml", "state.json", "device.card", "space.json", "architecture.json",
        "checkpoint.safetensors", "model.onnx", "benchmark.json", "verification.json",
        "verdict.json", "report.html", "report.md", "evolve.jsonl", "search.jsonl", "train.jsonl",
    }  # fmt: skip
    assert "work" not in names
    verdict = json.loads((whole / "verdict.json").read_text())
    assert verdict["kept"] and verdict["simulated"]
    assert verdict["measured_ms"] <= verdict["limits"][0]["value"]
    assert list(json.loads((whole / "state.json").read_text())["stages"]) == list(STAGES)


def test_called_again_it_does_nothing_again(whole):
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    _run(whole.parent / "config.toml", whole)
    after = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    before.pop("run.lock"), after.pop("run.lock")
    assert before == after


def _stage_now(run: Path) -> str | None:
    """The stage that a run is in: the first that is not finished."""
    try:
        done = json.loads((run / "state.json").read_text())["stages"]
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return next((stage for stage in STAGES if stage not in done), None)


@pytest.mark.timeout(280)
def test_killed_in_every_stage_it_ends_with_the_same_results(whole, tmp_path):
    """One run, SIGKILLed once in each of its stages, then let to finish."""
    config, run = _config(tmp_path), tmp_path / "run"
    command = [sys.executable, "-m", "autospace", "run", str(config), "-o", str(run)]
    killed: list[str] = []
    for _ in range(3 * len(STAGES)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            stage = _stage_now(run)
            if stage is not None and stage not in killed:
                # Some way into the stage: its state has been written, its result has not.
                time.sleep(0.05)
                if process.poll() is None and _stage_now(run) == stage:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(stage)
                    break
                continue
            time.sleep(0.005)
        if process.wait() == 0:
            break
    assert process.returncode == 0
    assert set(killed) >= {"profile", "evolve", "search", "train"}, killed
    assert _results(run) == _results(whole)


def test_a_budget_that_is_not_kept_is_said_and_reported(tmp_path, monkeypatch):
    """A device that became a hundred times slower after the trial before the search."""
    measure, series = steps.Device.measure, []

    def slower(self, models, **options):
        series.append(len(models))

        def scaled(visit: Visit) -> Visit:
            times = 1 if len(series) == 1 else 100
            return replace(visit, samples_ms=tuple(times * ms for ms in visit.samples_ms))

        return {
            name: replace(found, visits=tuple(map(scaled, found.visits)))
            for name, found in measure(self, models, **options).items()
        }

    monkeypatch.setattr(steps.Device, "measure", slower)
    config, run = _config(tmp_path), tmp_path / "run"
    for _ in range(2):  # the second call finds the same verdict and does nothing again
        verdict = _run(config, run)
        assert not verdict["kept"] and not verdict["limits"][0]["kept"]
        assert verdict["accuracy"] is None
        with pytest.raises(BudgetError, match=r"budget not kept: .* for a limit of"):
            check_verdict(verdict)
    assert "not kept" in (run / "report.md").read_text().lower().splitlines()[0]
    assert not (run / "checkpoint.safetensors").exists()


def test_a_verdict_left_open_is_measured_again(whole, tmp_path, monkeypatch):
    """The machine was restless when the network was measured, and is quiet at the next call."""
    import shutil

    config, run = _config(tmp_path), tmp_path / "run"
    shutil.copytree(whole, run)
    state = json.loads((run / "state.json").read_text())
    for stage in ("benchmark", "report"):
        del state["stages"][stage]
    (run / "state.json").write_text(json.dumps(state))
    (run / "verdict.json").unlink()
    limit_ms = json.loads((whole / "verdict.json").read_text())["limits"][0]["value"]
    measure, seeds = steps.Device.measure, []

    def restless(self, models, *, seed, **options):
        seeds.append(seed)
        found = measure(self, models, seed=seed, **options)
        return {
            name: replace(
                one,
                sentinel_reference_ms=1.0,
                visits=tuple(
                    Visit((limit_ms * (0.98 + 0.05 * i / len(one.visits)),), 1.0, 1.0)
                    for i in range(len(one.visits))
                ),
            )
            for name, one in found.items()
        }

    with monkeypatch.context() as patched:
        patched.setattr(steps.Device, "measure", restless)
        verdict = _run(config, run)
    assert not verdict["kept"] and verdict["limits"][0]["open"]
    with pytest.raises(BudgetError, match="run the same command again, and it is measured again"):
        check_verdict(verdict)
    first = list(seeds)
    assert len(first) == 3  # as long as it is open
    with monkeypatch.context() as patched:
        patched.setattr(steps.Device, "measure", restless)
        assert _run(config, run)["measurements"] == 2 * len(first)
    assert set(seeds[len(first) :]).isdisjoint(first)
    verdict = _run(config, run)
    assert verdict["kept"] and not verdict["limits"][0]["open"]
    assert "kept" in (run / "report.md").read_text().lower().splitlines()[0]
    assert _run(config, run) == verdict  # and no more, once it is decided


def test_another_configuration_is_refused_and_named(whole, tmp_path):
    with pytest.raises(UsageError, match=r"target.latency: '80%' there, '70%' asked for"):
        _run(_config(tmp_path, limit="70%"), whole)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"holds other files \('thesis.tex'\)"):
        _run(_config(tmp_path), tmp_path / "run")


def test_a_second_process_is_refused(tmp_path):
    import fcntl

    run = tmp_path / "run"
    run.mkdir()
    with (run / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another process is running in it"):
            _run(_config(tmp_path), run)


def test_a_limit_below_the_smallest_network_names_it(tmp_path):
    with pytest.raises(UsageError, match="below the smallest network"):
        _run(_config(tmp_path, limit="1%"), tmp_path / "run")


def test_the_newest_network_is_the_trained_one_of_the_newest_run(whole, tmp_path):
    source, output = newest_network(whole.parent)
    assert source == whole / "checkpoint.safetensors"
    assert output == whole.parent / "model.onnx"
    with pytest.raises(UsageError, match="no run in"):
        newest_network(tmp_path)


def test_a_run_of_an_older_version_goes_on(whole, tmp_path):
    """Its configuration lacks a field that was added since; the default is meant."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    state = json.loads((run / "state.json").read_text())
    del state["config"]["target"]["statistic"]
    (run / "state.json").write_text(json.dumps(state))
    assert _run(whole.parent / "config.toml", run)["kept"]


def test_a_limit_missed_on_a_slow_machine_may_be_kept_later():
    from autospace.pipeline import _may_change

    def measured(slowdown: float) -> Measurement:
        return Measurement(
            name="network",
            visits=tuple(Visit((1.5 + 0.1 * i,) * 5, slowdown, slowdown) for i in range(8)),
            sentinel_reference_ms=1.0,
            runtime="onnxruntime",
            runtime_version="1",
            settings=RuntimeSettings(),
        )

    assert not _may_change(measured(1.0), 1.0)  # too slow on the machine as it was profiled
    assert _may_change(measured(1.4), 1.0)
    assert not _may_change(measured(1.4), 9.0)  # kept, however slow the machine was
