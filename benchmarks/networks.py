"""Networks to judge predictions by: none of them takes part in profiling.

`mobile_networks` and `small_networks` draw from the search spaces of two layouts, for images and
for thumbnails; `torchvision_networks` exports torchvision's classification models. All give ONNX
files in a folder, so that a run that was interrupted finds them again and memory stays bounded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

__all__ = [
    "MOBILE_SIDES",
    "Network",
    "mobile_networks",
    "small_networks",
    "torchvision_networks",
    "write_whole",
]

MOBILE_SIDES = (128, 160, 192, 224, 256)
"""Input sizes of the drawn networks, in turns."""
_SMALL_SIDES = (32, 16, 48)
"""The same of those with the layout `small`."""

MAX_WEIGHTS = 200_000_000
"""Larger networks take far more than the 200 ms up to which networks are judged."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Network:
    """A network to be measured and predicted.

    Attributes:
        name: unique; the file is called after it.
        group: "mobile", "small", "torchvision" or "sweep".
        family: for torchvision, the name of its module in the library ("resnet"); for drawn
            networks their input size; for a sweep its name.
        path: of its ONNX file.
    """

    name: str
    group: str
    family: str
    path: Path


def mobile_networks(
    count: int,
    folder: Path,
    seed: int = 20_261_122,
    sides: Sequence[int] = MOBILE_SIDES,
) -> Iterator[Network]:
    """Networks drawn from the mobile search space: cells, inverted bottlenecks and skipped blocks.

    Args:
        count: how many.
        folder: for the files; those that are there already are taken as they are.
        seed: of the draw.
        sides: input sizes, taken in turns.
    """
    yield from _drawn("mobile", count, folder, seed, sides)


def small_networks(count: int, folder: Path, seed: int = 20_261_127) -> Iterator[Network]:
    """Networks drawn from the space of the layout `small`: a hundredth of what mobile ones take.

    Args:
        count: how many.
        folder: for the files; those that are there already are taken as they are.
        seed: of the draw.
    """
    yield from _drawn("small", count, folder, seed, _SMALL_SIDES)


def _drawn(
    layout: str, count: int, folder: Path, seed: int, sides: Sequence[int]
) -> Iterator[Network]:
    """Networks of a layout, whose name is that of their group."""
    from autospace.genotype import Block, MBConv, Zero
    from autospace.mutation import random_cell
    from autospace.onnx_export import onnx_for_cost
    from autospace.skeleton import find_skeleton
    from autospace.space import Architecture

    skeleton = find_skeleton(layout)
    for index in range(count):
        random = np.random.default_rng([seed, index])
        side = sides[index % len(sides)]
        # Some are mostly cells, some mostly inverted bottlenecks.
        share = float(random.uniform(0.3, 1.0))
        blocks: list[Block] = []
        for shape in skeleton.blocks:
            if shape.has_shortcut and random.random() < 0.15:
                blocks.append(Zero())
            elif random.random() < share:
                blocks.append(random_cell(random).fused())
            else:
                blocks.append(MBConv(int(random.choice((3, 5, 7))), int(random.choice((3, 6)))))
        drawn = replace(skeleton, resolution=side)
        name = f"{layout}-{side}-{index:03d}"
        network = Network(name, layout, str(side), folder / f"{name}.onnx")
        if not network.path.is_file():
            model = onnx_for_cost(Architecture(drawn, tuple(blocks)))
            write_whole(network.path, model.SerializeToString())
        yield network


def torchvision_networks(
    folder: Path, progress: Progress | None = None, only: Container[str] | None = None
) -> Iterator[Network]:
    """Torchvision's classification models, exported at 224 pixels (Inception v3 at 299).

    Those that cannot be exported are left out, and named through `progress`.

    Args:
        folder: for the files; those that are there already are taken as they are.
        progress: called with a line of text.
        only: names of models; all by default.
    """
    import torch

    from autospace.vision import torchvision

    models = torchvision().models
    for name in models.list_models(module=models):
        if only is not None and name not in only:
            continue
        builder = models.get_model_builder(name)
        family = builder.__module__.rpartition(".")[2]
        path = folder / f"{name}.onnx"
        missing = path.with_suffix(".failed")
        if missing.is_file():
            continue
        if not path.is_file():
            torch.manual_seed(0)
            side = 299 if name == "inception_v3" else 224
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    options = {"init_weights": False} if name in _SLOW_TO_DRAW else {}
                    model = builder(weights=None, **options).eval()
                    if sum(p.numel() for p in model.parameters()) > MAX_WEIGHTS:
                        raise ValueError("too large to run in 200 ms")
                    temporary = path.with_suffix(".tmp")
                    torch.onnx.export(
                        model,
                        (torch.zeros(1, 3, side, side),),
                        str(temporary),
                        dynamo=False,
                        opset_version=17,
                        input_names=["input"],
                    )
                    temporary.replace(path)
            except Exception as error:  # whatever an exporter raises; the model is left out, named
                missing.write_text(f"{type(error).__name__}: {error}")
                if progress:
                    progress(f"{name}: cannot be exported ({type(error).__name__})")
                continue
        yield Network(name, "torchvision", family, path)


_SLOW_TO_DRAW = ("googlenet", "inception_v3")
"""Their initial weights take minutes to draw and do not matter."""


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that it is there whole or not at all, whenever the program is killed."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
