"""Steps that go wrong in every way, for the test of `benchmarks.gpu`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_steps import Plan, Step
from devices.errors import InvalidInputError, UnavailableError


def fine(folder: Path, plan: Plan) -> Mapping[str, Any]:
    with (folder / "count").open("a") as count:
        count.write("x")
    return {"runtime": plan.runtime}


def refused(folder: Path, plan: Plan) -> Mapping[str, Any]:
    raise InvalidInputError("model: not good; take another.")


def absent(folder: Path, plan: Plan) -> Mapping[str, Any]:
    raise UnavailableError("runtime 'x': not installed; install it with: pip install x.")


def broken(folder: Path, plan: Plan) -> Mapping[str, Any]:
    raise ZeroDivisionError("two\nlines")


def crashes(folder: Path, plan: Plan) -> Mapping[str, Any]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def hangs(folder: Path, plan: Plan) -> Mapping[str, Any]:
    if (folder / "better").exists():
        return {"better": True}
    time.sleep(600)
    return {}


STEPS = tuple(
    Step(work.__name__, limit_s, work)
    for work, limit_s in (
        (refused, 60), (absent, 60), (broken, 60), (crashes, 60), (hangs, 5.5), (fine, 60)
    )
)  # fmt: skip
