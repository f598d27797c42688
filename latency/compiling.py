"""Compiles several models at once, for runtimes that take seconds for each.

Nothing is measured meanwhile, so that all processors may work. Each model is compiled by a copy of
the runtime of its own, whose compiler is a process of its own (`devices.contained`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Self

from devices.contained import ContainedRuntime
from devices.errors import AutospaceError
from latency.measure import compile_named

if TYPE_CHECKING:
    import onnx

    from devices.runtimes.base import CompiledGraph, Runtime, RuntimeSettings

__all__ = ["Compilers"]

_MOST = 4
"""Copies at most: each takes half a gigabyte of memory or more."""
_LOOK_S = 0.5
"""How long is waited at a time. A signal that comes just before a wait begins does not end it."""


class Compilers:
    """Copies of a runtime; a context manager that ends them.

    Args:
        runtime: the runtime; it is the first of them, and goes on living.
        settings: threads, precision, batch.
    """

    def __init__(self, runtime: Runtime, settings: RuntimeSettings) -> None:
        self._runtime = runtime
        self._settings = settings
        self._copies: list[ContainedRuntime] = []
        if isinstance(runtime, ContainedRuntime) and runtime.slow_to_compile:
            count = min(_MOST, os.cpu_count() or 1)
            self._copies = [runtime, *(type(runtime)() for _ in range(count - 1))]

    @property
    def count(self) -> int:
        """How many models are compiled at once: one where compiling takes no time."""
        return max(1, len(self._copies))

    def compile(
        self, models: Mapping[str, onnx.ModelProto]
    ) -> dict[str, CompiledGraph | AutospaceError]:
        """Compiles models.

        Args:
            models: by name, at most `count`.

        Returns:
            By name, the compiled graph, or what the runtime refuses it with.
        """
        if len(models) == 1:  # no thread, and no other copy, for one
            return {name: self._one(self._runtime, name, model) for name, model in models.items()}
        for copy, _ in zip(self._copies, models, strict=False):
            copy.start_compiling()  # here, for a child ends with the thread that started it
        with ThreadPoolExecutor(self.count) as pool:
            try:
                tasks = {
                    name: pool.submit(self._one, copy, name, model)
                    for copy, (name, model) in zip(self._copies, models.items(), strict=False)
                }
                while wait(tasks.values(), timeout=_LOOK_S).not_done:
                    pass
                return {name: task.result() for name, task in tasks.items()}
            except BaseException:  # Ctrl-C: a compiler that is ended gives its answer at once
                for copy in self._copies:
                    copy.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for copy in self._copies[1:]:
            copy.close()

    def _one(
        self, runtime: Runtime, name: str, model: onnx.ModelProto
    ) -> CompiledGraph | AutospaceError:
        try:
            return compile_named(runtime, name, model, self._settings)
        except AutospaceError as error:
            return error
