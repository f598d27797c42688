"""A device is measured, and the result kept as its card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from autospace.events import Progress, silent
from autospace.seeding import Seed
from autospace.space import SearchSpace

if TYPE_CHECKING:
    import onnx

    from devices.runtimes.base import RuntimeSettings
    from latency import DeviceCard

__all__ = ["profile", "space_networks"]


def profile(
    path: Path,
    *,
    runtime: str = "onnxruntime",
    settings: RuntimeSettings | None = None,
    minutes: float | None = 10,
    rounds: int | None = None,
    seed: int = 0,
    probes: int | None = None,
    space: SearchSpace | None = None,
    models: Mapping[str, onnx.ModelProto] | None = None,
    update: bool = False,
    progress: Progress = silent,
) -> DeviceCard:
    """Measures this device and keeps the result as a device card.

    Args:
        path: the card; an unfinished one goes on where it was.
        runtime: by name.
        settings: threads, precision and batch.
        minutes: how long.
        rounds: a fixed number of rounds instead.
        seed: of the probe networks and the order of visits.
        probes: how many probe networks; as many as the time allows if not given.
        space: its kernels are measured too, in networks drawn from it.
        models: other networks whose kernels are measured too, by name.
        update: add to a finished card.
        progress: is told as it goes.
    """
    from latency import profile_device

    batch = settings.batch if settings else 1
    return profile_device(
        path,
        runtime=runtime,
        settings=settings,
        minutes=minutes,
        rounds=rounds,
        probes=probes,
        seed=seed,
        extra_models={
            **(space_networks(space, Seed(seed), batch) if space else {}),
            **(models or {}),
        }
        or None,
        update=update,
        progress=progress,
    )


def space_networks(space: SearchSpace, seed: Seed, batch: int = 1) -> dict[str, onnx.ModelProto]:
    """Networks that between them hold every candidate of every block of a space."""
    from autospace.onnx_export import onnx_for_cost

    orders = [
        seed.generator("probes", index).permutation(len(blocks))
        for index, blocks in enumerate(space.candidates_by_block)
    ]
    networks = {}
    for number in range(max(map(len, orders))):
        architecture = space.architecture([order[number % len(order)] for order in orders])
        networks[f"space-{architecture.hash}"] = onnx_for_cost(architecture, batch)
    return networks
