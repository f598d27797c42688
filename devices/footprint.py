"""How much memory a model needs in a runtime: a process of its own that does nothing else.

Inside a process that has measured other models nobody can say whose memory is whose. So a fresh one
loads the compiled graph and runs it, and tells by how much it grew: with the runtime's own code,
the model, and what it works in.

``python -m devices.footprint FOLDER`` is that process: it reads the graph from its standard input,
in the form of `devices.wire`, and may write to the folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from devices.confinement import confine, confined_environment
from devices.contained import ContainedRuntime
from devices.errors import AutospaceError
from devices.runtimes import get_runtime
from devices.runtimes.base import CompiledGraph, RuntimeSettings
from devices.wire import graph_from, graph_to, receive, send

__all__ = ["memory_mb"]

_RUNS = 3
_LIMIT_S = 120.0
_MOST_CHARACTERS = 200
"""Of what the process said last."""


def memory_mb(
    runtime: str, compiled: CompiledGraph, settings: RuntimeSettings, limit_s: float = _LIMIT_S
) -> float:
    """Megabytes (10⁶ bytes) that a process grows by when it loads a model and runs it.

    Args:
        runtime: its name.
        compiled: from the runtime's `compile`.
        settings: as it was compiled with.
        limit_s: how long that may take.

    Raises:
        AutospaceError: the process ended without an answer, or took too long.
    """
    graph, blobs = graph_to(replace(compiled, executed=None))
    message = {"runtime": runtime, "graph": graph, "settings": settings.to_json()}
    with (
        tempfile.TemporaryDirectory(prefix="autospace-memory-") as folder,
        tempfile.TemporaryFile() as given,
    ):
        send(given.fileno(), message, blobs)
        given.seek(0)
        command = [sys.executable, "-m", "devices.footprint", folder]
        contained = isinstance(get_runtime(runtime), ContainedRuntime)
        environment = confined_environment(Path(folder)) if contained else None
        try:
            done = subprocess.run(
                command, stdin=given, capture_output=True, text=True, timeout=limit_s,
                check=False, env=environment,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise AutospaceError(
                f"runtime {runtime!r}: did not load and run the model within {limit_s:g} s; try a "
                "smaller one."
            ) from error
    try:
        return float(json.loads(done.stdout.splitlines()[-1])["memory_mb"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise AutospaceError(
            f"runtime {runtime!r}: its process ended with {done.returncode} while it loaded and "
            f"ran the model ({last[0][:_MOST_CHARACTERS]}); the memory that it needs is not known."
        ) from error


def _measured(folder: Path) -> float:
    """What `memory_mb` gives, in the process of its own."""
    import numpy as np
    import psutil

    message, blobs = receive(sys.stdin.fileno())
    compiled = graph_from(message["graph"], blobs)
    runtime = get_runtime(message["runtime"])
    if isinstance(runtime, ContainedRuntime):  # its work would be done in yet another process
        confine(folder)
        runtime = runtime.here()
    for module in runtime.python_parts:
        import_module(module)
    np.random.default_rng(0)  # loads what random inputs need
    process = psutil.Process()
    before = process.memory_info().rss
    with runtime.load(compiled, RuntimeSettings.from_json(message["settings"])) as model:
        model.run(_RUNS)
        after = process.memory_info().rss
    return max(after - before, 0) / 1e6


if __name__ == "__main__":
    print(json.dumps({"memory_mb": _measured(Path(sys.argv[1]))}))
