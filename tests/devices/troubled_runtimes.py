"""Runtimes that misbehave, for real: they are served from children in the tests of containment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from unittest.mock import patch

from devices.contained import ContainedRuntime
from devices.runtimes.base import CompiledGraph, RuntimeSettings
from devices.runtimes.litert import LiteRt, LiteRtHere
from devices.runtimes.simulated import SimulatedModel, SimulatedRuntime

if TYPE_CHECKING:
    import onnx

    from devices.runtimes.from_torch import Calibration, Converted

TROUBLE = "TROUBLE"
"""A graph of the name ``TROUBLE-compile-abort.`` asks to abort while it is compiled."""


def trouble_of(data: bytes, moment: str) -> None:
    """Makes the trouble that a model asks for at a moment."""
    mark = f"{TROUBLE}-{moment}-".encode()
    if mark not in data:
        return
    kind = data.split(mark)[1].split(b".")[0].decode()
    if kind == "abort":
        os.write(2, b"terminate called after throwing an instance\n")
        os.abort()
    if kind == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "exit":
        os._exit(3)
    if kind == "hang":
        while True:
            time.sleep(0.1)
    if kind == "raise":
        raise RuntimeError("two\nlines")
    if kind == "print":
        print("chatter on standard output", flush=True)
        os.write(1, b"\x00" * 4096)
    if kind == "write":
        Path("beside.txt").write_text("inside the folder")
        Path(os.environ["WRITES_TO"], "outside.txt").write_text("outside")
    if kind == "shell":
        command = f"echo outside > {os.environ['WRITES_TO']}/outside.txt"
        subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    if kind == "connect":
        socket.create_connection(("127.0.0.1", int(os.environ["CONNECTS_TO"])), timeout=2).close()


class Troubled(SimulatedRuntime):
    """The simulated runtime with the trouble that its model asks for."""

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        trouble_of(model, "compile")
        return super().compile(model, settings)

    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> SimulatedModel:
        trouble_of(compiled.data, "load")
        self.check_compiled(compiled)
        return TroubledModel(compiled, settings, self.noise, self.seed)


class TroubledModel(SimulatedModel):
    """A model that makes its trouble when it runs."""

    def run(self, count: int) -> list[float]:
        assert self._compiled is not None
        trouble_of(self._compiled.data, "run")
        return super().run(count)


class ContainedTroubled(ContainedRuntime, SimulatedRuntime):
    """The same from a child; its status and name are the simulated runtime's."""

    inner: ClassVar[str] = "troubled_runtimes:Troubled"

    def __init__(self) -> None:
        SimulatedRuntime.__init__(self)
        ContainedRuntime.__init__(self)


class UntoldLiteRt(LiteRtHere):
    """LiteRT, of whose files nobody can tell what they execute."""

    def converted(
        self, model: onnx.ModelProto, settings: RuntimeSettings, calibration: Calibration
    ) -> Converted:
        with patch("devices.litert_kernels.executed_operations", side_effect=KeyError("step99")):
            return super().converted(model, settings, calibration)


class ContainedUntoldLiteRt(LiteRt):
    """The same from a child, for its converter would disturb the tests that fork."""

    inner: ClassVar[str] = "troubled_runtimes:UntoldLiteRt"
