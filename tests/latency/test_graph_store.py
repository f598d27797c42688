"""Compiled graphs on disk: what is put is got, and nothing stays behind."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from devices.runtimes.base import RuntimeSettings
from devices.runtimes.simulated import SimulatedRuntime
from latency.graph_store import GraphStore


class TestGraphs:
    def test_what_is_put_is_got(self, network, make_network, tmp_path: Path) -> None:
        runtime, store = SimulatedRuntime(), GraphStore(tmp_path)
        graphs = {
            name: runtime.compile(model.SerializeToString(), RuntimeSettings())
            for name, model in (("a/b", network), ("c", make_network(16)))
        }
        for name, graph in graphs.items():
            assert name not in store
            store.put(name, graph)
        assert {name: store.get(name) for name in graphs} == graphs

    def test_dropping_frees_the_file_and_no_other(self, network, tmp_path: Path) -> None:
        runtime, store = SimulatedRuntime(), GraphStore(tmp_path)
        graph = runtime.compile(network.SerializeToString(), RuntimeSettings())
        for name in ("a", "b"):
            store.put(name, graph)
        store.drop("a")
        store.drop("a")
        store.drop("never there")
        assert "a" not in store and "b" in store and len(list(tmp_path.iterdir())) == 1
        store.put("c", graph)  # takes no file of another's
        assert store.get("b") == store.get("c") == graph
        with pytest.raises(KeyError):
            store.get("a")


class TestTemporary:
    @pytest.fixture(autouse=True)
    def _own_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setenv("TMPDIR", str(tmp_path))

    def test_it_goes_with_its_store(self, network, tmp_path: Path) -> None:
        graph = SimulatedRuntime().compile(network.SerializeToString(), RuntimeSettings())
        with pytest.raises(ZeroDivisionError), GraphStore.temporary() as store:
            store.put("a", graph)
            assert store.get("a") == graph and len(list(tmp_path.iterdir())) == 1
            raise ZeroDivisionError
        assert not list(tmp_path.iterdir())

    def test_what_a_killed_process_left_is_removed_and_nothing_in_use(self, tmp_path: Path) -> None:
        code = (
            "import sys\nfrom latency.graph_store import GraphStore\n"
            "with GraphStore.temporary():\n    print(flush=True)\n    sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            (theirs,) = tmp_path.iterdir()
            with GraphStore.temporary():
                assert theirs.exists()
            os.kill(other.pid, signal.SIGKILL)
            other.wait()
        assert theirs.exists()
        with GraphStore.temporary():
            assert not theirs.exists()

    def test_other_folders_stay(self, tmp_path: Path) -> None:
        (tmp_path / "autospace-graphs-new").mkdir()  # not locked yet: it is just being made
        (tmp_path / "autospace-card-x").mkdir()
        (tmp_path / "autospace-graphs-file").write_bytes(b"")
        with GraphStore.temporary():
            pass
        assert len(list(tmp_path.iterdir())) == 3
