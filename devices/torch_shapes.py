"""ONNX operations that move numbers without computing new ones, as PyTorch."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from devices.torch_node import Function, Handlers, NodeReading

__all__ = ["SHAPES"]

SHAPES = Handlers()
"""Reshaping, joining, cutting, padding, resizing, casting."""


@SHAPES.of("Concat")
def _concat(r: NodeReading) -> Function:
    axis = int(r.options["axis"])
    return lambda *parts: torch.cat(parts, axis)


@SHAPES.of("Flatten")
def _flatten(r: NodeReading) -> Function:
    shape = r.shapes.get(r.name(0))
    if shape is None:
        raise r.refuse("an input of unknown shape")
    axis = int(r.options.get("axis", 1))
    axis += len(shape) if axis < 0 else 0
    target = [math.prod(shape[:axis]), math.prod(shape[axis:])]
    return lambda x: x.reshape(target)


@SHAPES.of("Reshape")
def _reshape(r: NodeReading) -> Function:
    target = r.integers(1, "shape") or []
    old = r.shapes.get(r.name(0))
    if 0 in target and not r.options.get("allowzero", 0):
        if old is None:
            raise r.refuse("an input of unknown shape")
        target = [size or old[place] for place, size in enumerate(target)]
    return lambda x: x.reshape(target)


@SHAPES.of("Transpose")
def _transpose(r: NodeReading) -> Function:
    order = list(r.options.get("perm") or range(r.rank() - 1, -1, -1))
    return lambda x: x.permute(order)


@SHAPES.of("Squeeze")
def _squeeze(r: NodeReading) -> Function:
    axes = r.integers(1, "axes")
    return torch.squeeze if axes is None else partial(torch.squeeze, dim=tuple(axes))


@SHAPES.of("Unsqueeze")
def _unsqueeze(r: NodeReading) -> Function:
    axes = r.integers(1, "axes") or []
    rank = r.rank() + len(axes)
    places = sorted(axis % rank for axis in axes)

    def call(x: Tensor) -> Tensor:
        for place in places:
            x = x.unsqueeze(place)
        return x

    return call


@SHAPES.of("Gather")
def _gather(r: NodeReading) -> Function:
    axis = int(r.options.get("axis", 0))
    index, rank = r.constant(1), r.rank()
    if index is None:
        raise r.refuse("a gathering without indices")
    if index.ndim == 0:
        return lambda x: x.select(axis, int(index))
    size = r.shapes[r.name(0)][axis]
    flat = np.asarray(index, dtype=np.int64).reshape(-1) % size
    axis, first = axis % rank, int(flat[0]) if flat.size else 0
    if np.array_equal(flat, np.arange(first, first + flat.size)):  # moves nothing

        def taken(x: Tensor) -> Tensor:
            return x if flat.size == size else x.narrow(axis, first, flat.size)
    else:
        places = torch.from_numpy(flat)

        def taken(x: Tensor) -> Tensor:
            return x.index_select(axis, places.to(x.device))

    if index.ndim == 1:
        return taken
    # A table stands where the axis was.
    return lambda x: taken(x).reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@SHAPES.of("Slice")
def _slice(r: NodeReading) -> Function:
    starts, ends = r.integers(1, "starts") or [], r.integers(2, "ends") or []
    axes = r.integers(3, "axes") or list(range(len(starts)))
    steps = r.integers(4) or [1] * len(starts)
    if any(step < 1 for step in steps):
        raise r.refuse("a step backwards")
    rank = r.rank()

    def call(x: Tensor) -> Tensor:
        cuts = [slice(None)] * rank
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            cuts[axis] = slice(start, min(end, 2**31), step)
        return x[tuple(cuts)]

    return call


@SHAPES.of("Pad")
def _pad(r: NodeReading) -> Function:
    mode = r.options.get("mode", "constant")
    pads = r.integers(1, "pads") or []
    fill = r.constant(2, "value")
    axes = r.integers(3) or list(range(r.rank()))
    if mode not in ("constant", "reflect", "edge"):
        raise r.refuse(f"mode {mode!r}")
    rank = r.rank()
    sizes = {axis % rank: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    ordered = [v for axis in range(rank - 1, -1, -1) for v in sizes.get(axis, (0, 0))]
    while len(ordered) > 2 and ordered[-2:] == [0, 0]:
        ordered = ordered[:-2]
    if mode == "constant":
        return partial(F.pad, pad=ordered, value=0.0 if fill is None else float(fill))
    return partial(F.pad, pad=ordered, mode="reflect" if mode == "reflect" else "replicate")


@SHAPES.of("Resize")
def _resize(r: NodeReading) -> Function:
    shape = r.shapes.get(r.node.output[0])
    mode = r.options.get("mode", "nearest")
    place = r.options.get("coordinate_transformation_mode", "half_pixel")
    for index in range(1, len(r.node.input)):
        r.constant(index)
    if shape is None or len(shape) != 4 or shape[:2] != r.shapes.get(r.name(0), ())[:2]:
        raise r.refuse("a resizing other than of height and width")
    size = list(shape[2:])
    if mode == "nearest":
        rounding = r.options.get("nearest_mode", "round_prefer_floor")
        whole = all(new % old == 0 for new, old in zip(size, r.shapes[r.name(0)][2:], strict=True))
        floors = (place, rounding) == ("asymmetric", "floor")
        # Whole factors: half a pixel, rounded, falls on the same pixels.
        if not floors and not (whole and place == "half_pixel" and rounding.startswith("round")):
            raise r.refuse(f"the nearest pixel by {place!r} and {rounding!r}")
        return partial(F.interpolate, size=size, mode="nearest")
    if mode != "linear" or place not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise r.refuse(f"mode {mode!r} with {place!r}")
    corners = place == "align_corners"
    return partial(F.interpolate, size=size, mode="bilinear", align_corners=corners)


@SHAPES.of("DepthToSpace")
def _depth_to_space(r: NodeReading) -> Function:
    size = int(r.options["blocksize"])
    if r.options.get("mode", "DCR") == "CRD":
        return partial(F.pixel_shuffle, upscale_factor=size)

    def call(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.reshape(batch, size, size, channels // size**2, height, width)
        return x.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, height * size, width * size)

    return call


@SHAPES.of("SpaceToDepth")
def _space_to_depth(r: NodeReading) -> Function:
    size = int(r.options["blocksize"])

    def call(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // size, size, width // size, size)
        return x.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // size, width // size)

    return call


@SHAPES.of("Split")
def _split(r: NodeReading) -> Function:
    axis = int(r.options.get("axis", 0))
    sizes = r.integers(1, "split")
    if sizes is None:
        shape = r.shapes.get(r.name(0))
        if shape is None:
            raise r.refuse("an input of unknown shape")
        part = -(-shape[axis] // len(r.node.output))
        sizes = [part] * (len(r.node.output) - 1)
        sizes.append(shape[axis] - sum(sizes))
    return partial(torch.split, split_size_or_sections=sizes, dim=axis)


@SHAPES.of("Cast")
def _cast(r: NodeReading) -> Function:
    import onnx

    kinds = {
        onnx.TensorProto.FLOAT: torch.float32,
        onnx.TensorProto.FLOAT16: torch.float16,
        onnx.TensorProto.INT32: torch.int32,
        onnx.TensorProto.INT64: torch.int64,
    }
    if (kind := r.options.get("to")) not in kinds:
        raise r.refuse(f"element type {kind}")
    return lambda x: x.to(kinds[kind])
