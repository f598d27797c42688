"""Runtimes in a child process: what goes wrong there stays there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from troubled_runtimes import ContainedTroubled

from devices.contained import Child
from devices.errors import InvalidInputError, UnavailableError
from devices.runtimes.base import RuntimeSettings
from devices.runtimes.simulated import SimulatedRuntime

SETTINGS = RuntimeSettings()


@pytest.fixture(scope="module")
def runtime() -> Iterator[ContainedTroubled]:
    made = ContainedTroubled()
    yield made
    made.close()


def asking(model: onnx.ModelProto, trouble: str) -> bytes:
    model.graph.name = f"TROUBLE-{trouble}."
    return model.SerializeToString()


def compiled(runtime: ContainedTroubled, model: onnx.ModelProto, trouble: str = "none"):
    return runtime.compile(asking(model, trouble), SETTINGS)


class TestServed:
    def test_it_says_what_the_runtime_says(self, runtime, model) -> None:
        here = SimulatedRuntime()
        expected = here.compile(asking(model, "none"), SETTINGS)
        found = compiled(runtime, model)
        assert found == expected
        x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
        with here.load(expected, SETTINGS) as one, runtime.load(found, SETTINGS) as other:
            assert other.run(3) == one.run(3)
            assert other.profile(2) == one.profile(2)
            np.testing.assert_array_equal(other.infer({"x": x})[0], one.infer({"x": x})[0])
            assert other.preempted == 0

    def test_its_refusals_come_through(self, runtime, model) -> None:
        with pytest.raises(InvalidInputError, match="not a readable ONNX model"):
            runtime.compile(b"garbage", SETTINGS)
        with runtime.load(compiled(runtime, model), SETTINGS) as loaded:
            with pytest.raises(InvalidInputError, match="inputs"):
                loaded.infer({"x": np.zeros((1, 2), np.float32)})
        with pytest.raises(UnavailableError, match="closed"):
            loaded.run(1)

    def test_a_foreign_graph_needs_no_child(self, model) -> None:
        from devices.runtimes.base import CompiledGraph

        fresh = ContainedTroubled()
        with pytest.raises(InvalidInputError, match="compile the model again"):
            fresh.load(CompiledGraph("other", "0", b"", (), ()), SETTINGS)
        assert fresh._running.generation == 0

    def test_what_it_prints_does_not_disturb(self, runtime, model, capfd) -> None:
        with runtime.load(compiled(runtime, model, "run-print"), SETTINGS) as loaded:
            assert len(loaded.run(2)) == 2
        assert capfd.readouterr() == ("", "")


class TestTrouble:
    @pytest.mark.parametrize(
        ("moment", "trouble", "says"),
        [
            ("compile", "abort", r"crashed while compiling \(SIGABRT: terminate called"),
            ("load", "segv", r"crashed while loading \(SIGSEGV"),
            ("run", "abort", r"crashed while running \(SIGABRT: terminate called"),
            ("run", "exit", "ended while running with exit code 3"),
            ("run", "raise", r"failed while running \(RuntimeError: two lines"),
        ],
    )
    def test_a_crash_is_one_line_and_the_rest_goes_on(
        self, runtime, model, moment: str, trouble: str, says: str
    ) -> None:
        kept = runtime.load(compiled(runtime, model), SETTINGS)
        before = kept.run(2)
        with pytest.raises(InvalidInputError, match=says) as caught:
            bad = compiled(runtime, model, f"{moment}-{trouble}")
            with runtime.load(bad, SETTINGS) as loaded:
                loaded.run(1)
        assert "\n" not in str(caught.value) and "'simulated'" in str(caught.value)
        assert kept.run(2) == before  # loaded again where its process is gone
        kept.close()

    def test_a_hang_ends_at_the_limit(self, runtime, model) -> None:
        bad = compiled(runtime, model, "run-hang")
        with runtime.load(bad, SETTINGS) as loaded:
            loaded._limit_s = 0.5
            with pytest.raises(InvalidInputError, match=r"did not finish running within 0.5 s"):
                loaded.run(1)
            assert not runtime._running.alive
        assert compiled(runtime, model).outputs == ("y",)

    def test_a_child_that_cannot_start_is_unavailable(self) -> None:
        with pytest.raises(UnavailableError, match=r"cannot start.*No module named 'nowhere'"):
            Child("nowhere:Nothing", "runtime 'nowhere'").start()

    def test_nothing_is_left_behind(self, model, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        runtime = ContainedTroubled()
        process = runtime._compiling.start().process
        assert [path.name[:16] for path in tmp_path.iterdir()] == ["autospace-child-"]
        del runtime  # nobody closed it
        assert process.returncode is not None and not list(tmp_path.iterdir())

    def test_it_ends_with_its_parent(self, tmp_path) -> None:
        code = (
            "import os; from devices.contained import Child;"
            "child = Child('devices.runtimes.simulated:SimulatedRuntime', 'x');"
            "print(child.start().process.pid, flush=True); os.kill(os.getpid(), 9)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        until = time.monotonic() + 5
        while _alive(int(done.stdout)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not _alive(int(done.stdout))


@pytest.mark.parametrize("kernel", [True, False], ids=["by the kernel", "by the audit hook"])
class TestConfined:
    def served(self, monkeypatch, kernel: bool) -> ContainedTroubled:
        runtime = ContainedTroubled()
        runtime._compiling = Child(runtime.inner, "runtime 'simulated'", kernel=kernel)
        return runtime

    def test_it_writes_into_its_folder_only(
        self, kernel: bool, model, tmp_path, monkeypatch
    ) -> None:
        monkeypatch.setenv("WRITES_TO", str(tmp_path))
        runtime = self.served(monkeypatch, kernel)
        with pytest.raises(InvalidInputError, match="PermissionError"):
            compiled(runtime, model, "compile-write")
        assert not list(tmp_path.iterdir())
        running = runtime._compiling.start()
        assert (running.folder / "beside.txt").read_text() == "inside the folder"
        if not kernel:
            assert runtime._compiling.means == {"network": "audit hook", "files": "audit hook"}
        runtime.close()

    def test_it_is_offline(self, kernel: bool, model, monkeypatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            monkeypatch.setenv("CONNECTS_TO", str(server.getsockname()[1]))
            server.settimeout(0.2)
            runtime = self.served(monkeypatch, kernel)
            with pytest.raises(InvalidInputError, match=r"PermissionError|OSError|Error"):
                compiled(runtime, model, "compile-connect")
            with pytest.raises(TimeoutError):
                server.accept()
        runtime.close()


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock is Linux's")
def test_programs_that_it_starts_are_confined_as_well(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WRITES_TO", str(tmp_path))
    runtime = ContainedTroubled()
    runtime._compiling.start()
    if runtime._compiling.means["files"] != "landlock":
        pytest.skip("this kernel has no Landlock")
    with pytest.raises(InvalidInputError, match="CalledProcessError"):
        compiled(runtime, model, "compile-shell")
    assert not list(tmp_path.iterdir())
    runtime.close()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
