"""The steps of `benchmarks.gpu`: each a function of a folder and a plan that gives a JSON object.

Each runs in a process of its own, reads what earlier ones left in the folder, and raises an error
of `devices.errors` where it cannot.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.work import now_and_then
from devices.errors import AutospaceError, InvalidInputError, UnavailableError

if TYPE_CHECKING:
    import onnx

    from autospace.accelerator import Accelerator
    from autospace.skeleton import Skeleton
    from autospace.space import Architecture

__all__ = ["STEPS", "Plan", "Step"]

_SEED = 20_261_126
_GENERATIONS = 7
_COMPARED = 6
"""Networks whose gradients are compared."""
_IMAGES = 64
_GRADIENT_ERROR = 0.1
"""Rounding moves the gradients of a layer by up to some percent, where ReLUs are at their bends."""
_TOLERANCE = 1e-3
"""Of the largest number, between a runtime's outputs and ONNX Runtime's on the CPU."""


@dataclass(frozen=True)
class Plan:
    """What is run, and how much of it.

    Attributes:
        runtime: that the card is made with: "torch-cuda", or "torch" for a rehearsal.
        skeleton: layout of the networks.
        minutes: of the profile.
        networks: drawn from the space, to judge the card by.
        visits: to each of them.
        steps: of the search.
        batch: of the training step.
    """

    runtime: str = "torch-cuda"
    skeleton: str = "mobile"
    minutes: float = 1.75
    networks: int = 20
    visits: int = 6
    steps: int = 120
    batch: int = 256

    @property
    def rehearsal(self) -> bool:
        """Whether it only tries the steps, on the processor."""
        return self.runtime == "torch"


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: in the result.
        seconds: that it may take.
        work: does it.
    """

    name: str
    seconds: float
    work: Callable[[Path, Plan], Mapping[str, Any]]


def machine(folder: Path, plan: Plan) -> dict[str, Any]:
    """What this machine is, and what of it PyTorch sees."""
    import torch

    from devices.gpu import gpu_state
    from devices.host import read_environment
    from devices.runtimes import runtime_statuses

    cuda = torch.cuda.is_available()
    return {
        "cuda": cuda,
        "device": torch.cuda.get_device_name(0) if cuda else read_environment().cpu,
        "capability": list(torch.cuda.get_device_capability(0)) if cuda else None,
        "torch": str(torch.__version__),
        "cuda_version": torch.version.cuda,
        "gpu_state": gpu_state(),
        "host": read_environment().to_json(),
        "runtimes": [status.to_json() for status in runtime_statuses()],
    }


def card(folder: Path, plan: Plan) -> dict[str, Any]:
    """A device card of the plan's runtime, goes on where it was."""
    from autospace.steps import profile
    from devices.gpu import gpu_state

    before = gpu_state()
    made = profile(_card(folder), runtime=plan.runtime, minutes=plan.minutes)
    return {
        "runtime": made.runtime,
        "runtime_version": made.runtime_version,
        "minutes": plan.minutes,
        "networks": len(made.networks),
        "visits": sum(len(network.visits) for network in made.networks),
        "validation": made.validation,
        "gpu_before": before,
        "gpu_after": gpu_state(),
    }


def accuracy(folder: Path, plan: Plan) -> dict[str, Any]:
    """Predicted against measured, on networks of the space that the card has never seen."""
    from autospace.steps import open_device, predict
    from latency.measure import measure_models

    device = open_device(_card(folder))
    models = _drawn(plan)
    measured = measure_models(
        models,
        runtime=plan.runtime,
        settings=device.card.settings,
        visits=plan.visits,
        reference_ms=device.card.sentinel_reference_ms,
        above_fastest=device.card.above_fastest,
        progress=now_and_then(_log, "accuracy"),
    )
    rows = []
    for name, model in models.items():
        predicted = predict(model, device)
        rows.append(
            {
                "network": name,
                "predicted_ms": predicted.latency_ms,
                "low_ms": predicted.low_ms,
                "high_ms": predicted.high_ms,
                "measured_ms": measured[name].latency_ms,
                "error": predicted.latency_ms / measured[name].latency_ms - 1,
            }
        )
    errors = [abs(float(row["error"])) for row in rows]
    inside = [row["low_ms"] <= row["measured_ms"] <= row["high_ms"] for row in rows]
    return {
        "within_5_percent": _share(error <= 0.05 for error in errors),
        "within_10_percent": _share(error <= 0.10 for error in errors),
        "median_error": statistics.median(errors),
        "intervals_that_hold": _share(inside),
        "networks": rows,
    }


def on_runtime(name: str, more: tuple[str, ...] = ()) -> Callable[..., Any]:
    """A step: one network of the space on a runtime, its outputs against ONNX Runtime's.

    Args:
        name: of the runtime.
        more: precisions to try beside fp32, whose outputs need not agree.
    """

    def work(folder: Path, plan: Plan) -> dict[str, Any]:
        import numpy as np

        from devices.onnx_files import random_inputs, to_bytes
        from devices.runtimes import RuntimeSettings, get_runtime

        engine = get_runtime(name)
        status = engine.require()
        ((label, model),) = list(_drawn(plan, count=1).items())
        data, settings = to_bytes(model), RuntimeSettings()
        cpu = get_runtime("onnxruntime")
        graph = cpu.compile(data, settings)
        inputs = random_inputs(graph.inputs, seed=1)
        with cpu.load(graph, settings) as loaded:
            expected = loaded.infer(inputs)[0].astype(np.float64)

        def tried(precision: str) -> dict[str, Any]:
            settings = RuntimeSettings(precision=precision)
            began = time.monotonic()
            graph = engine.compile(data, settings)
            compiled_s = time.monotonic() - began
            with engine.load(graph, settings) as loaded:
                given = loaded.infer(inputs)[0].astype(np.float64)
                loaded.run(10)
                times = loaded.run(100)
            return {
                "compile_s": compiled_s,
                "difference": float(np.abs(given - expected).max() / np.abs(expected).max()),
                "p10_ms": float(np.quantile(times, 0.1)),
                "p50_ms": float(np.quantile(times, 0.5)),
                "p90_ms": float(np.quantile(times, 0.9)),
            }

        found = {"fp32": tried("fp32")}
        difference = found["fp32"]["difference"]
        if not difference <= _TOLERANCE:
            raise InvalidInputError(
                f"runtime {name!r}: outputs differ from ONNX Runtime's by {difference:.2g} of the "
                f"largest number; {_TOLERANCE:g} is allowed."
            )
        for precision in more:
            try:
                found[precision] = tried(precision)
            except AutospaceError as error:  # what 32 bits gave is not lost
                found[precision] = {"error": str(error)}
        return {"version": status.version, "network": label, "precisions": found}

    return work


def outputs(folder: Path, plan: Plan) -> dict[str, Any]:
    """One network on the card's runtime, its outputs against ONNX Runtime's."""
    found: dict[str, Any] = on_runtime(plan.runtime)(folder, plan)
    return found


def gradients(folder: Path, plan: Plan) -> dict[str, Any]:
    """Gradients of networks of random cells, against the processor's in 64 bits."""
    device = "cpu" if plan.rehearsal else "cuda"
    errors = {
        name: _gradient_error(network, device)
        for name, network in _architectures(replace(plan, skeleton="small"), _COMPARED).items()
    }
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= _GRADIENT_ERROR:
        raise InvalidInputError(
            f"gradients of {worst} on {device} are {errors[worst]:.0%} off the processor's in 64 "
            "bits: what is learned there is not what was asked for"
        )
    return {"errors": errors, "largest": errors[worst]}


def _gradient_error(network: Architecture, device: str) -> float:
    """Norm of the difference over the norm, of the worst layer's weights."""
    import torch

    from autospace.network import build_network

    skeleton = network.skeleton
    random = torch.Generator().manual_seed(_SEED)
    side, channels = skeleton.resolution, skeleton.in_channels
    images = torch.randn(_IMAGES, channels, side, side, generator=random)
    labels = torch.randint(skeleton.num_classes, (_IMAGES,), generator=random)

    def found(where: str, dtype: torch.dtype) -> list[torch.Tensor]:
        model = build_network(network, 0).to(device=where, dtype=dtype).train()
        given = images.to(device=where, dtype=dtype, memory_format=torch.channels_last)
        loss = torch.nn.functional.cross_entropy(model(given), labels.to(where))
        loss.backward()
        weights = [p for p in model.parameters() if p.ndim > 1]  # biases before a norm have none
        return [p.grad.double().cpu() for p in weights if p.grad is not None]

    with torch.backends.cudnn.flags(allow_tf32=False):
        pairs = zip(found(device, torch.float32), found("cpu", torch.float64), strict=True)
        return max(float((own - true).norm() / (true.norm() + 1e-12)) for own, true in pairs)


def training(folder: Path, plan: Plan) -> dict[str, Any]:
    """Training steps of one network in 32 bits and in mixed precision, losses and times."""
    import torch

    from autospace.network import build_network

    (network,) = list(_architectures(plan, 1).values())
    device = "cpu" if plan.rehearsal else "cuda"
    half = torch.bfloat16 if plan.rehearsal else torch.float16
    random = torch.Generator().manual_seed(_SEED)
    skeleton = network.skeleton
    side, channels = skeleton.resolution, skeleton.in_channels
    images = torch.randn(plan.batch, channels, side, side, generator=random)
    labels = torch.randint(skeleton.num_classes, (plan.batch,), generator=random)
    images, labels = images.to(device, memory_format=torch.channels_last), labels.to(device)
    found: dict[str, Any] = {"batch": plan.batch, "half": str(half).removeprefix("torch.")}
    for name, dtype in (("fp32", None), ("mixed", half)):
        model = build_network(network, 0).to(device, memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
        scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)
        losses, seconds = [], []
        for _ in range(8):
            began = time.monotonic()
            with nullcontext() if dtype is None else torch.autocast(device, dtype):
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(float(loss.detach()))  # waits for the GPU
            seconds.append(time.monotonic() - began)
        if not all(map(math.isfinite, losses)):
            raise InvalidInputError(f"training in {name}: the loss is no longer a number.")
        found[name] = {"step_s": statistics.median(seconds[2:]), "losses": losses}
    found["speedup"] = found["fp32"]["step_s"] / found["mixed"]["step_s"]
    return found


def search(folder: Path, plan: Plan) -> dict[str, Any]:
    """One short search under a limit on the card's device, which learns and is verified there."""
    from autospace.genotype import REFERENCE_CELLS
    from autospace.search_options import SearchOptions
    from autospace.space import SearchSpace
    from autospace.steps import load_proxy, open_device, target_skeleton
    from autospace.steps import search as searched

    where: Accelerator = "cpu" if plan.rehearsal else "cuda"
    data = load_proxy("digits", None, _skeleton(plan), accelerator=where)
    skeleton = target_skeleton(plan.skeleton, data)
    space = SearchSpace(skeleton, (tuple(REFERENCE_CELLS),) * skeleton.num_layers)
    options = SearchOptions(steps=plan.steps, warmup=plan.steps // 3, batch=32, proposals=3)
    found = searched(
        space, latency="80%", device=open_device(_card(folder)), data=data, options=options,
        state=folder / "search.safetensors", progress=now_and_then(_log, "search"),
    )  # fmt: skip
    best = found.chosen.best
    return {
        "limits": [str(limit) for limit in found.limits],
        "kept": found.chosen.kept,
        "rounds": len(found.chosen.rounds),
        "madds": best.madds,
        "predicted_ms": best.predicted_ms,
        "measured_ms": None if best.measured is None else best.measured.latency_ms,
        "bound_ms": None if best.measured is None else best.measured.upper_ms(),
        "nearest": found.nearest,
    }


def learning(folder: Path, plan: Plan) -> dict[str, Any]:
    """Seconds of a generation of an evolution, on the processor and on the GPU."""
    import torch

    found: dict[str, Any] = {"data": "digits", "threads": torch.get_num_threads()}
    if not plan.rehearsal:
        found["cuda"] = _generations(plan, "cuda")
    found["cpu"] = _generations(plan, "cpu")
    if "cuda" in found:
        found["speedup"] = found["cpu"]["generation_s"] / found["cuda"]["generation_s"]
    return found


def _generations(plan: Plan, where: Accelerator) -> dict[str, Any]:
    """A few generations of an evolution."""
    from autospace.evolution_options import EvolutionOptions
    from autospace.steps import evolve, load_proxy

    skeleton = _skeleton(plan)
    lines: list[tuple[float, float]] = []
    options = EvolutionOptions(generations=_GENERATIONS, warmup=2, exam=0)  # nor study
    evolve(
        budget="100%", skeleton=skeleton, options=options,
        data=load_proxy("digits", None, skeleton, accelerator=where),
        watch=lambda line: lines.append((time.monotonic(), line["train_loss"])),
    )  # fmt: skip
    seconds = [after - before for (before, _), (after, _) in pairwise(lines)]
    return {
        "generation_s": statistics.median(seconds[2:]),  # with α steps
        "steps": options.steps,
        "batch": options.batch,
        "losses": [loss for _, loss in lines],
    }


def _log(text: str) -> None:
    """Into the step's log: how far one came that had to be ended."""
    print(text, file=sys.stderr, flush=True)


def _card(folder: Path) -> Path:
    return folder / "gpu.card"


def _skeleton(plan: Plan) -> Skeleton:
    from autospace.skeleton import find_skeleton

    return find_skeleton(plan.skeleton)


def _architectures(plan: Plan, count: int) -> dict[str, Any]:
    """Networks of random cells, always the same ones."""
    from autospace.mutation import random_cell
    from autospace.seeding import Seed
    from autospace.space import Architecture

    skeleton = _skeleton(plan)
    found = {}
    for index in range(count):
        random = Seed(_SEED).generator("gpu", index)
        cells = tuple(random_cell(random).fused() for _ in skeleton.blocks)
        found[f"network-{index:02d}"] = Architecture(skeleton, cells)
    return found


def _drawn(plan: Plan, count: int | None = None) -> dict[str, onnx.ModelProto]:
    """As ONNX models, by name."""
    from autospace.onnx_export import onnx_for_cost

    drawn = _architectures(plan, plan.networks if count is None else count)
    return {name: onnx_for_cost(network, 1) for name, network in drawn.items()}


def _share(held: Any) -> float:
    values = list(held)
    if not values:
        raise UnavailableError("networks: none was measured; give 1 or more.")
    return sum(map(bool, values)) / len(values)


STEPS = (
    Step("machine", 30, machine),
    Step("outputs", 30, outputs),
    Step("card", 150, card),
    Step("accuracy", 90, accuracy),
    Step("gradients", 60, gradients),
    Step("training", 40, training),
    Step("learning", 60, learning),
    Step("search", 150, search),
    Step("onnxruntime-cuda", 40, on_runtime("onnxruntime-cuda")),
    Step("onnxruntime-tensorrt", 60, on_runtime("onnxruntime-tensorrt")),
    Step("onnxruntime-tensorrt-rtx", 60, on_runtime("onnxruntime-tensorrt-rtx")),
    Step("tensorrt", 90, on_runtime("tensorrt", ("fp16",))),
    Step("tensorrt-graph", 60, on_runtime("tensorrt-graph")),
)
"""In the order in which they are worth having, if time runs out."""
