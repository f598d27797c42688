"""Several models compiled at once, by real child processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from choosy_runtime import ContainedSlow, SlowAndChoosy

from devices.errors import InvalidInputError
from devices.runtimes import RuntimeSettings, get_runtime
from devices.runtimes.base import CompiledGraph
from latency import profile_device
from latency.compiling import Compilers
from latency.graph_builder import GraphBuilder

SETTINGS = RuntimeSettings()


def model(softmax: bool = False, width: int = 8) -> onnx.ModelProto:
    build = GraphBuilder((1, 4), np.random.default_rng(0))
    y = build.linear("layer", "input", width)
    return build.finish(build.softmax("soft", y) if softmax else y)


@pytest.fixture(autouse=True)
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def test_each_gets_its_own_graph() -> None:
    runtime = SlowAndChoosy()
    with Compilers(runtime, SETTINGS) as compilers:
        assert compilers.count == 2
        made = compilers.compile({"narrow": model(), "wide": model(width=16)})
        alone = compilers.compile({"wide": model(width=16)})
    assert list(made) == ["narrow", "wide"]
    assert all(isinstance(graph, CompiledGraph) for graph in made.values())
    assert made["wide"] == alone["wide"] != made["narrow"]
    again = runtime.compile(model().SerializeToString(), SETTINGS)  # it goes on living
    assert again == made["narrow"]
    assert runtime._compiling.generation == 1  # the one process did it all
    runtime.close()


def test_one_that_is_refused_leaves_the_other_alone() -> None:
    runtime = SlowAndChoosy()
    with Compilers(runtime, SETTINGS) as compilers:
        made = compilers.compile({"good": model(), "bad": model(softmax=True)})
    assert isinstance(made["good"], CompiledGraph)
    assert isinstance(made["bad"], InvalidInputError)
    assert str(made["bad"]).startswith("model 'bad': ")
    runtime.close()


def test_what_compiles_at_once_is_compiled_here() -> None:
    with Compilers(get_runtime("simulated"), SETTINGS) as compilers:
        assert compilers.count == 1
        assert isinstance(compilers.compile({"one": model()})["one"], CompiledGraph)


def test_it_can_be_interrupted() -> None:
    runtime = ContainedSlow()
    with Compilers(runtime, SETTINGS) as compilers:
        compilers.compile({"a": model(), "b": model()})  # both children have started
        timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            compilers.compile({"a": model(), "b": model(softmax=True)})
        assert time.monotonic() - began < 30
    runtime.close()


def test_a_profile_draws_others_for_those_refused(tmp_path: Path) -> None:
    runtime = SlowAndChoosy()
    card = profile_device(tmp_path / "a.card", runtime=runtime, rounds=2, probes=12)
    runtime.close()
    probes = [network for network in card.networks if network.kind == "probe"]
    assert card.complete and len(probes) == 12
    assert sum(bool(network.visits) for network in probes) >= 6  # of some its processes die
