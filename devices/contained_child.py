"""The child's side of `devices.contained`: serves one runtime through two pipes.

Run as ``python -m devices.contained_child MODULE:ATTRIBUTE IN OUT`` in the folder that it may write
to. Whatever the runtime prints goes to standard output and error, which the parent has redirected;
the pipes carry messages only. The timing loops run here, so a pipe adds nothing to a time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from devices import errors
from devices.confinement import confine
from devices.contained import served
from devices.onnx_files import one_line
from devices.runtimes.base import CompiledModel, Runtime, RuntimeSettings
from devices.wire import (
    Closed,
    arrays_from,
    arrays_to,
    graph_from,
    graph_to,
    receive,
    send,
    timings_to,
)

__all__ = ["main"]


class _Server:
    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.models: dict[int, CompiledModel] = {}
        self.count = 0

    def answer(
        self, message: dict[str, Any], blobs: list[bytes]
    ) -> tuple[dict[str, Any], list[bytes]]:
        """What the call asks for.

        Raises:
            AutospaceError: the runtime refuses.
        """
        call = message["call"]
        if call == "compile":
            settings = RuntimeSettings.from_json(message["settings"])
            fields, parts = graph_to(self.runtime.compile(blobs[0], settings))
            return {"graph": fields}, parts
        if call == "quantise":
            settings = RuntimeSettings.from_json(message["settings"])
            calibration = arrays_from(message["arrays"], blobs[1:])
            fields, parts = graph_to(self.runtime.quantise(blobs[0], settings, calibration))
            return {"graph": fields}, parts
        if call == "load":
            settings = RuntimeSettings.from_json(message["settings"])
            graph = graph_from(message["graph"], blobs)
            self.count += 1
            self.models[self.count] = self.runtime.load(graph, settings, message["profiling"])
            return {"model": self.count}, []
        model = self.models[message["model"]]
        if call == "run":
            times = model.run(message["count"])
            return {"times_ms": times, "preempted": model.preempted}, []
        if call == "profile":
            return {"timings": timings_to(model.profile(message["count"]))}, []
        if call == "infer":
            import numpy as np

            found = model.infer(arrays_from(message["arrays"], blobs))
            # A scalar array loses its shape in ascontiguousarray, so bytes are made by tobytes.
            rows, raw = arrays_to({str(i): np.asarray(array) for i, array in enumerate(found)})
            return {"arrays": rows}, raw
        if call == "close":
            self.models.pop(message["model"]).close()
            return {}, []
        raise errors.UsageError(f"call {call!r}: unknown")


def main(arguments: list[str]) -> None:
    """Serves until the parent closes its pipe.

    Args:
        arguments: the runtime as ``MODULE:ATTRIBUTE``, and the descriptors to read and to write.
    """
    target, reading, writing = arguments[0], int(arguments[1]), int(arguments[2])
    means = confine(Path.cwd(), kernel="--no-kernel" not in arguments)
    server = _Server(served(target))
    send(writing, {"ready": means})
    while True:
        try:
            message, blobs = receive(reading)
        except Closed:
            break
        raw: list[bytes] = []
        try:
            reply, raw = server.answer(message, blobs)
        except errors.AutospaceError as error:
            reply = {"error": type(error).__name__, "text": str(error)}
        except Exception as error:  # other people's code raises what it likes
            reply = {"error": None, "text": f"{type(error).__name__}: {one_line(error)}"}
        sys.stdout.flush()
        send(writing, reply, raw)
    os._exit(0)  # what native code does while a process ends is not worth a crash


if __name__ == "__main__":
    main(sys.argv[1:])
