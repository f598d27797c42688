"""Everything that needs an NVIDIA GPU, in under 8 minutes, as one JSON file.

``python -m benchmarks.gpu``. A device card with PyTorch on the GPU and how well it predicts; mixed
precision training; a short search with the card and its verification; ONNX Runtime's GPU providers
and TensorRT where they are installed. Each step runs in a process of its own, with a time limit:
one that fails, crashes or hangs leaves its one line in the result and the others go on. The file is
replaced whole after each step; the same command goes on with what is not done.

``--runtime torch`` tries the same steps on the processor and marks the result as a rehearsal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autospace.files import read_document, write_json
from benchmarks.conditions import RESULTS
from benchmarks.gpu_steps import STEPS, Plan, Step
from devices.errors import AutospaceError, UnavailableError, UsageError
from devices.onnx_files import one_line
from devices.runtimes import get_runtime

__all__ = ["TOTAL_S", "main", "run_steps"]

TOTAL_S = 470.0
"""For everything; a step that begins late gets what is left."""
_LEAST_S = 5.0
"""Below which a step is not begun."""
_FAILED, _NOT_HERE = "failed", "not available"
_QUICK = Plan(skeleton="tiny", minutes=0.25, networks=4, visits=2, steps=6, batch=16)


def run_steps(
    output: Path, folder: Path, plan: Plan, steps: Sequence[Step] = STEPS, total_s: float = TOTAL_S
) -> dict[str, Any]:
    """Runs what is not done yet; the file is written after each step.

    Args:
        output: the JSON file; what another plan wrote there is refused.
        folder: where steps leave what later ones need.
        plan: what is run.
        steps: in this order.
        total_s: for all of them.

    Returns:
        What the file holds.

    Raises:
        UsageError: the file is of another plan, or cannot be written.
    """
    began = time.monotonic()
    result = _begun(output, plan)
    folder.mkdir(parents=True, exist_ok=True)
    for step in steps:
        done = result["steps"].get(step.name, {})
        if done.get("state") == "done":
            continue
        limit_s = min(step.seconds, total_s - (time.monotonic() - began))
        if limit_s < _LEAST_S:
            entry: dict[str, Any] = {"state": _FAILED, "error": "no time was left for it"}
        else:
            print(f"{step.name} …", file=sys.stderr, flush=True)
            entry = _in_child(step, folder, plan, limit_s)
        result["steps"][step.name] = entry
        if step.name == "machine" and entry["state"] == "done":
            result["device"] = entry["result"]["device"]
            result["cuda"] = entry["result"]["cuda"]
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, result)
    return result


def _begun(output: Path, plan: Plan) -> dict[str, Any]:
    """What the file holds, or the beginning of it."""
    asked = asdict(plan)
    if output.exists():
        found = read_document(output, "result of benchmarks.gpu")
        if found.get("plan") != asked or not isinstance(found.get("steps"), dict):
            raise UsageError(f"{output}: of another plan; give another --output or delete it.")
        return found
    return {
        "benchmark": "gpu",
        "rehearsal": plan.rehearsal,
        "device": None,
        "cuda": None,
        "plan": asked,
        "steps": {},
    }


def _in_child(step: Step, folder: Path, plan: Plan, limit_s: float) -> dict[str, Any]:
    """One step in a process of its own; whatever happens there is an entry."""
    answer = folder / f"{step.name}.json"
    answer.unlink(missing_ok=True)
    target = f"{step.work.__module__}:{step.name}"
    arguments = ["--step", target, "--plan", json.dumps(asdict(plan)), "--folder", str(folder)]
    began = time.monotonic()
    with (folder / f"{step.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return {"state": _FAILED, "error": f"did not finish within {limit_s:.0f} s"}
        finally:
            _end(process)
    seconds = round(time.monotonic() - began, 1)
    if not answer.exists():
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        lines = (folder / f"{step.name}.log").read_text(errors="replace").splitlines()
        last = next((line for line in reversed(lines) if line.strip()), "")
        said = one_line(ValueError(f"its process ended with {how}: {last}"))
        return {"state": _FAILED, "error": said, "seconds": seconds}
    return {**read_document(answer, "answer of a step"), "seconds": seconds}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process with all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()


def _one(target: str, plan: Plan, folder: Path) -> int:
    """The child's side: one step, whose answer is a file."""
    module, _, name = target.partition(":")
    from importlib import import_module

    steps: Sequence[Step] = import_module(module).STEPS
    (step,) = [step for step in steps if step.name == name]
    entry: dict[str, Any]
    try:
        entry = {"state": "done", "result": dict(step.work(folder, plan))}
    except UnavailableError as error:
        entry = {"state": _NOT_HERE, "error": one_line(error, 400)}
    except AutospaceError as error:
        entry = {"state": _FAILED, "error": one_line(error, 400)}
    except Exception as error:  # a step must not lose the others
        text = f"{type(error).__name__}: {one_line(error, 400)}"
        entry = {"state": _FAILED, "error": text}
    write_json(folder / f"{name}.json", entry)
    return 0


def _lines(result: Mapping[str, Any]) -> list[str]:
    """The result as a person reads it."""
    head = f"{result['device']}, CUDA {'yes' if result['cuda'] else 'no'}"
    lines = [f"{head}{' (a rehearsal: of no worth)' if result['rehearsal'] else ''}"]
    for name, entry in result["steps"].items():
        said = entry.get("error") or _figures(name, entry["result"])
        lines.append(f"{name:26}{entry['state']:15}{entry.get('seconds', 0):6.1f} s  {said}")
    return lines


def _figures(name: str, found: Mapping[str, Any]) -> str:
    if name == "accuracy":
        return (
            f"{found['within_10_percent']:.0%} of {len(found['networks'])} within 10 %, median "
            f"{found['median_error']:.1%}"
        )
    if name == "gradients":
        return f"at most {found['largest']:.2%} off, {len(found['errors'])} networks"
    if name == "training":
        return f"mixed precision {found['speedup']:.2f} times as fast as 32 bits"
    if name == "learning":
        own = found.get("cuda", found.get("cpu", {}))
        said = f"{own['generation_s']:.2f} s a generation"
        if "speedup" not in found:  # a rehearsal's
            return said
        return f"{said}, {found['speedup']:.1f} times as fast as the processor"
    if name == "search":
        return f"{'kept' if found['kept'] else 'not kept'}: {found['nearest']}"
    if name == "card":
        return f"{found['networks']} networks, {found['visits']} visits"
    rows = found.get("precisions", {}).items()
    return ", ".join(
        f"{precision} {row['p50_ms']:.3f} ms" if "p50_ms" in row else f"{precision} {row['error']}"
        for precision, row in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, writes and prints; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--runtime", choices=("torch-cuda", "torch"), default="torch-cuda",
        help="torch: a rehearsal on the processor")  # fmt: skip
    add("--output", type=Path, help="JSON file (benchmarks/results/gpu-DEVICE.json)")
    add("--folder", type=Path, help="for everything else (build/gpu)")
    add("--quick", action="store_true", help="a quick try of everything, of no worth")
    add("--json", action="store_true", help="print the JSON object instead of text")
    add("--step", help=argparse.SUPPRESS)
    add("--plan", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        if given.step:
            return _one(given.step, Plan(**json.loads(given.plan)), given.folder)
        plan = replace(_QUICK if given.quick else Plan(), runtime=given.runtime)
        status = get_runtime(plan.runtime).require()
        folder = given.folder or Path("build") / ("gpu-rehearsal" if plan.rehearsal else "gpu")
        output = given.output or _place(status.version or "", folder, plan)
        result = run_steps(output, folder, plan)
    except AutospaceError as error:
        print(f"gpu: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("gpu: interrupted; the same command goes on.", file=sys.stderr)
        return 130
    print(json.dumps(result, indent=1) if given.json else "\n".join(_lines(result)))
    return 1 if any(entry["state"] == _FAILED for entry in result["steps"].values()) else 0


def _place(version: str, folder: Path, plan: Plan) -> Path:
    """Where the result goes: a rehearsal's is no result to keep."""
    if plan.rehearsal:
        return folder / "rehearsal.json"
    gpu = re.sub(r"[^a-z0-9]+", "-", version.partition(" on ")[2].lower()).strip("-")
    return RESULTS / f"gpu-{gpu or 'unknown'}.json"


if __name__ == "__main__":
    sys.exit(main())
