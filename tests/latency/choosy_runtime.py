"""A runtime that refuses some networks and dies of others, for real, in its child process."""

from __future__ import annotations

import os
import time
from typing import ClassVar

from devices.contained import ContainedRuntime
from devices.errors import InvalidInputError
from devices.runtimes.base import CompiledGraph, RuntimeSettings
from devices.runtimes.simulated import SimulatedModel, SimulatedRuntime


class Choosy(SimulatedRuntime):
    """The simulated runtime, without softmax, and with a fatal maximum pooling."""

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        if b"Softmax" in model:
            raise InvalidInputError("model node 'x': there is no operation Softmax.")
        return super().compile(model, settings)

    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> SimulatedModel:
        if b"MaxPool" in compiled.data:
            os.abort()
        return super().load(compiled, settings, profiling)


class ContainedChoosy(ContainedRuntime, SimulatedRuntime):
    """The same from a child."""

    inner: ClassVar[str] = "choosy_runtime:Choosy"

    def __init__(self) -> None:
        SimulatedRuntime.__init__(self)
        ContainedRuntime.__init__(self)


class Slow(SimulatedRuntime):
    """The simulated runtime, which never finishes with a softmax."""

    def compile(self, model: bytes, settings: RuntimeSettings) -> CompiledGraph:
        if b"Softmax" in model:
            time.sleep(600)
        return super().compile(model, settings)


class ContainedSlow(ContainedChoosy):
    """The same from a child."""

    inner: ClassVar[str] = "choosy_runtime:Slow"
    slow_to_compile: ClassVar[bool] = True


class SlowAndChoosy(ContainedChoosy):
    """The choosy one, compiled by several at once."""

    slow_to_compile: ClassVar[bool] = True
