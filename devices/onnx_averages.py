"""Averages over an image's border, for converters to TensorFlow's operations.

ONNX's average of a window leaves out what lies beyond the image (``count_include_pad=0``). So does
TensorFlow's, but only where its padding ``SAME`` puts the windows at the same places: not where a
window of 3 moves by 2 over an even size, as in networks that halve their images. Putting zeros
around the image, and multiplying by how many times too large the divisor then was, is the same
number by operations that have fast kernels.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from devices.onnx_files import copied, inferred, opset_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    import onnx

__all__ = ["with_border_counted"]

_SINCE = 7
"""Before this opset, AveragePool had no `count_include_pad`."""
_PADS_ARE_INPUTS = 11
"""Before this opset, Pad had them as an attribute."""


def with_border_counted(model: onnx.ModelProto) -> onnx.ModelProto:
    r"""A model whose averages count the border; the given one is left alone.

    Each AveragePool that leaves out a border becomes one without a border of an image with zeros
    around it, and a product with a constant of shape (1, 1, \*output sizes). Left as they are:
    windows placed as by ``SAME``, or with ``ceil_mode``, dilations or ``auto_pad``; inputs of
    unknown or changing size; models before opset 7.

    Raises:
        InvalidInputError: the model's shapes are wrong, or it is too large to copy.
    """
    import onnx

    if opset_of(model) < _SINCE or not any(n.op_type == "AveragePool" for n in model.graph.node):
        return model
    copy = copied(model)
    shaped = inferred(model)
    types = {
        value.name: value.type.tensor_type
        for value in (*shaped.graph.input, *shaped.graph.value_info)
    }
    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        kind = types.get(node.input[0]) if node.op_type == "AveragePool" else None
        if kind is None or (factors := _factors(node, kind)) is None:
            nodes.append(node)
            continue
        result = node.output[0]
        label = node.name or result
        padded, pooled = f"{result}/border_zeros", f"{result}/border_counted"
        pads = next(a for a in node.attribute if a.name == "pads")
        zeros, constants = _pad(node.input[0], padded, pads.ints, opset_of(model))
        zeros.name = f"{label}/zeros"
        node.attribute.remove(pads)
        node.input[0], node.output[0] = padded, pooled
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        factor = onnx.numpy_helper.from_array(factors.astype(dtype), f"{result}/border_factor")
        copy.graph.initializer.extend([*constants, factor])
        product = onnx.helper.make_node(
            "Mul", [pooled, factor.name], [result], name=f"{label}/border"
        )
        nodes += [zeros, node, product]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _pad(
    source: str, result: str, pads: Sequence[int], opset: int
) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    """A node that puts zeros around an image, and its constants."""
    import numpy as np
    import onnx

    rank = len(pads) // 2
    both = [0, 0, *pads[:rank], 0, 0, *pads[rank:]]
    if opset < _PADS_ARE_INPUTS:
        return onnx.helper.make_node("Pad", [source], [result], pads=both), []
    widths = onnx.numpy_helper.from_array(np.array(both, dtype=np.int64), f"{result}/pads")
    return onnx.helper.make_node("Pad", [source, widths.name], [result]), [widths]


def _factors(node: onnx.NodeProto, kind: onnx.TypeProto.Tensor) -> npt.NDArray[np.float64] | None:
    """What a window's average with zeros around is to be multiplied by; None where nothing is."""
    import numpy as np
    import onnx

    options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    kernel: Sequence[int] = options["kernel_shape"]
    rank = len(kernel)
    pads: Sequence[int] = options.get("pads") or [0] * 2 * rank
    strides: Sequence[int] = options.get("strides") or [1] * rank
    sizes = [d.dim_value for d in kind.shape.dim][2:]
    if not _plain(options) or len(sizes) != rank or not all(sizes):
        return None
    axes = [
        _Axis(*own) for own in zip(sizes, kernel, strides, pads[:rank], pads[rank:], strict=True)
    ]
    if not any(pads) or all(axis.same for axis in axes):
        return None
    return functools.reduce(np.multiply.outer, [axis.factors() for axis in axes])[None, None]


def _plain(options: Mapping[str, Any]) -> bool:
    return (
        not options.get("count_include_pad")
        and not options.get("ceil_mode")
        and options.get("auto_pad", b"NOTSET") == b"NOTSET"
        and all(d == 1 for d in options.get("dilations") or ())
    )


class _Axis(NamedTuple):
    """Where a window's places are along one axis."""

    size: int
    kernel: int
    stride: int
    begin: int
    end: int

    @property
    def same(self) -> bool:
        """Whether TensorFlow's ``SAME`` has the same places, with as much before as behind."""
        count = -(-self.size // self.stride)
        needed = max((count - 1) * self.stride + self.kernel - self.size, 0)
        return needed % 2 == 0 and self.begin == self.end == needed // 2

    def factors(self) -> npt.NDArray[np.float64]:
        """A window's length over how much of it lies inside, at each place."""
        import numpy as np

        span = self.size + self.begin + self.end - self.kernel
        starts = np.arange(span // self.stride + 1) * self.stride - self.begin
        inside = np.minimum(starts + self.kernel, self.size) - np.maximum(starts, 0)
        return np.asarray(self.kernel / np.maximum(inside, 1))
