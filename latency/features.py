"""What a kernel's time can depend on, as numbers: sizes, remainders, layout, surroundings.

Sizes are logarithms to base 2. What a size is short of the next multiple of a small number stands
for vector widths and register blocks, which differ between processors: 63 channels nearly fill what
65 waste half of. A fit finds out which of them matter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from latency.roofline import effective_flops

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from latency.context import Context
    from latency.kernel import Kernel

    Array = npt.NDArray[np.float64]

__all__ = ["FEATURES", "context_features", "kernel_features", "kernel_labels", "own_features"]

_LEVEL_BYTES = 16 * 2**20
"""Far above a core's own caches on any processor, and below what the larger probes touch."""

_LEVEL_MS = 20.0
"""What was not used for longer counts as unused for so long. Beside a load a kernel slows down for
longer (a linear layer of 5 MB took 0.20 ms run after run, 0.59 after 30 ms of waiting, 0.67 after
240), but the kernels of long networks do not: levelled off at 50 ms, those of networks that take
50 ms and more were predicted 6 % too slow."""

FEATURES = (
    "effective flops",
    "flops",
    "padding",
    "bytes in",
    "bytes out",
    "bytes of weights",
    "bytes of all",
    "channels in",
    "channels in a group",
    "channels out",
    "pixels",
    "rows",
    "row length",
    "input row length",
    "inner size",
    "run length",
    "smallest input",
    "window",
    "window width",
    "stride",
    "dilation",
    "groups",
    "padded",
    "residual",
    "inputs",
    "outputs",
    "rank",
    "turned",
    "channels last",
    "denormals",
    "channels in short of 16",
    "channels out short of 16",
    "channels out short of 32",
    "channels out short of 64",
    "row length short of 6",
    "row length short of 8",
    "footprint",
    "age of the input",
    "age of the oldest input",
    "absence",
    "kin",
)
"""Names of what `kernel_features` gives, in order."""


def kernel_features(kernel: Kernel, context: Context) -> list[float]:
    """The kernel as numbers, as many as `FEATURES`: its own, then those of its surroundings."""
    return [*own_features(kernel), *context_features([context])[0].tolist()]


def own_features(kernel: Kernel) -> list[float]:
    """The features of a kernel that do not depend on its network."""
    options = json.loads(kernel.attributes) if kernel.attributes else {}
    madds = kernel.madds
    flops = kernel.flops_of(madds)
    effective = effective_flops(kernel, flops)
    output, first = kernel.output, kernel.inputs[0] if kernel.inputs else ()
    elements = max(math.prod(output), 1)
    channels_in = first[1] if len(first) > 1 else 1
    channels_out = output[1] if len(output) > 1 else 1
    row = output[-1] if output else 1
    bytes_in, bytes_out, bytes_weights = kernel.bytes_in, kernel.bytes_out, kernel.bytes_weights
    return [
        _log(effective),
        _log(flops),
        _log(effective) - _log(flops),
        _log(bytes_in),
        _log(bytes_out),
        _log(bytes_weights),
        _log(bytes_in + bytes_out + bytes_weights),
        _log(channels_in),
        _log(channels_in // max(kernel.groups, 1)),
        _log(channels_out),
        _log(math.prod(output[2:])),
        _log(math.prod(output[:-1])),
        _log(row),
        _log(first[-1] if first else 1),
        _log(madds // elements),
        _log(_run_length(kernel, options.get("perm"))),
        min((math.prod(shape) / elements for shape in kernel.inputs), default=1.0),
        float(math.prod(kernel.kernel)) if kernel.kernel else 0.0,
        float(kernel.kernel[-1]) if kernel.kernel else 0.0,
        float(kernel.strides[0]) if kernel.strides else 0.0,
        float(kernel.dilations[0]) if kernel.dilations else 0.0,
        _log(kernel.groups),
        float(any(kernel.pads)),
        float(kernel.fused_add),
        float(len(kernel.inputs)),
        float(len(kernel.outputs)),
        float(len(output)),
        float(bool(options.get("transB")) + 2 * bool(options.get("transA"))),
        float(bool(options.get("channels_last"))),
        _log(kernel.denormal_work),
        -channels_in % 16 / 16,
        -channels_out % 16 / 16,
        -channels_out % 32 / 32,
        -channels_out % 64 / 64,
        -row % 6 / 6,
        -row % 8 / 8,
    ]


def context_features(surroundings: Sequence[Context] | Array) -> Array:
    """The features of the surroundings of kernels, shape `(kernels, 5)`.

    They level off: what is far larger than a core's own caches has left them, and how much larger
    it is makes no difference. Three convolutions in front of 1 to 256 MB of other weights took the
    same time, within 6 %; a fit to probes would extrapolate whatever slope it sees.

    Args:
        surroundings: of each kernel, or their fields as an array, see
            `latency.context.Surroundings.table`.
    """
    import numpy as np

    table = (
        surroundings
        if isinstance(surroundings, np.ndarray)
        else np.array(
            [
                (c.footprint_bytes, c.input_age_bytes, c.oldest_age_bytes, c.absence_ms, c.kin_ms)
                for c in surroundings
            ],
            dtype=np.float64,
        )
    )
    levels, units = (_LEVEL_BYTES,) * 3 + (_LEVEL_MS,) * 2, (1.0,) * 3 + (1e3,) * 2
    return np.asarray(np.log2(np.minimum(table, levels) * units + 1.0))


def kernel_labels(kernel: Kernel) -> tuple[str, ...]:
    """What of a kernel is no number: its operation with its type, its activation, its mode."""
    labels = f"op {kernel.op} {kernel.dtype}", f"activation {kernel.activation}"
    if not any(f'"{key}":' in kernel.attributes for key in _MODES):
        return labels
    options = json.loads(kernel.attributes)
    return *labels, *(f"{key} {options[key]}" for key in _MODES if key in options)


_MODES = ("mode", "primitive")
"""Attributes whose values are no numbers: how to resize, and which code a runtime has chosen."""


def _log(value: float) -> float:
    return math.log2(value + 1.0)


def _run_length(kernel: Kernel, perm: Sequence[int] | None) -> int:
    """Elements that lie behind each other before and after the kernel has moved them."""
    if not kernel.inputs or not kernel.output:
        return 1
    source, target = kernel.inputs[0], kernel.output
    if perm and len(perm) == len(source):
        run = 1
        for axis in range(len(perm) - 1, -1, -1):
            if perm[axis] != axis:
                break
            run *= source[axis]
        return run
    if len(source) != len(target):
        return math.prod(target)
    changed = [axis for axis, (a, b) in enumerate(zip(source, target, strict=True)) if a != b]
    return math.prod(min(source, target, key=math.prod)[changed[0] :]) if changed else 1
