"""Large windows of depthwise convolutions, taken apart for runtimes without a kernel for them.

A convolution is linear in its weights: with the window cut into parts, it is the sum of one
convolution for each. A part reads the image from further right or below, so it has less of a border
before and more behind, or skips a few rows or columns where that comes out negative. Parts may
overlap with zeros, so as not to skip. What of a window never sees the image, only its border, is
cut off first: of 7×7 on an image of 2×2, 3×3 remain.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devices.onnx_files import copied, inferred, opset_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    import onnx

__all__ = ["with_small_windows"]

_SINCE = 10
"""Before this opset, the bounds of Slice were no inputs."""
_END = 2**31 - 1
"""An end of a slice that is beyond any image."""


def with_small_windows(model: onnx.ModelProto, most: int) -> onnx.ModelProto:
    """A model whose depthwise convolutions have no more taps than given; the given one stays as is.

    Each larger window becomes a grid of as few parts as possible, whose outputs are added up. Left
    as they are: convolutions of one or three dimensions, with several outputs to a channel, with
    ``auto_pad``, whose weights are no constant or are not in 32 or 16 bits, or whose image is of
    unknown size; models before opset 10.

    Args:
        model: to rewrite.
        most: taps, rows times columns of a window, at least 1.

    Raises:
        InvalidInputError: the model's shapes are wrong, or it is too large to copy.
    """
    import onnx

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    if opset_of(model) < _SINCE or not any(_is_large(n, weights, most) for n in model.graph.node):
        return model
    copy, shaped = copied(model), inferred(model)
    sizes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim][2:]
        for value in (*shaped.graph.input, *shaped.graph.value_info)
    }
    nodes: list[onnx.NodeProto] = []
    made: list[onnx.TensorProto] = []
    for node in copy.graph.node:
        if not _is_large(node, weights, most) or not all(image := sizes.get(node.input[0], [0])):
            nodes.append(node)
            continue
        window = _Window(node, onnx.numpy_helper.to_array(weights[node.input[1]]), image, most)
        if not window.parts:
            nodes.append(node)
            continue
        for array, name in window.constants():
            made.append(onnx.numpy_helper.from_array(array, name))
        nodes.extend(window.nodes())
    used = {name for node in nodes for name in node.input}
    used |= {value.name for value in (*copy.graph.input, *copy.graph.output)}
    kept = [tensor for tensor in copy.graph.initializer if tensor.name in used]
    del copy.graph.node[:]
    del copy.graph.initializer[:]
    copy.graph.node.extend(nodes)
    copy.graph.initializer.extend([*kept, *made])
    return copy


def _is_large(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto], most: int) -> bool:
    """Whether a node is a depthwise convolution that can be taken apart, and has to be."""
    import onnx

    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return False
    tensor = weights.get(node.input[1])
    if tensor is None or len(tensor.dims) != 4:
        return False
    channels, inputs, rows, columns = tensor.dims
    options = _options(node)
    return (
        rows * columns > most
        and inputs == 1
        and options.get("group", 1) == channels > 1
        and options.get("auto_pad", b"NOTSET") == b"NOTSET"
        and tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    )


def _options(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


@dataclass(frozen=True)
class _Axis:
    """A window along one axis.

    Attributes:
        dilation: between taps.
        begin: border before the image for the first of all taps.
        end: the same behind, for the last of all.
        count: of all taps.
        seeing: those that ever see the image.
    """

    dilation: int
    begin: int
    end: int
    count: int
    seeing: frozenset[int]

    @classmethod
    def of(cls, size: int, count: int, stride: int, dilation: int, begin: int, end: int) -> _Axis:
        """From the options of a convolution and its image's size."""
        outputs = (size + begin + end - (count - 1) * dilation - 1) // stride + 1
        places = range(-begin, outputs * stride - begin, stride)
        seeing = {
            tap
            for tap in range(count)
            if any(0 <= place + tap * dilation < size for place in places)
        }
        return cls(dilation, begin, end, count, frozenset(seeing))

    def parts(self, number: int, wide: bool) -> list[_Span]:
        """So many parts of what sees the image, or fewer.

        Args:
            number: of parts.
            wide: whether they reach as far over each other as it takes not to skip.
        """
        first, last = min(self.seeing), max(self.seeing) + 1
        size = -(-(last - first) // number)
        found = []
        for place in range(first, last, size):
            own = range(place, min(place + size, last))
            if self.seeing.isdisjoint(own):
                continue
            start, stop = own.start, own.stop
            if wide:
                start = max(min(start, self.begin // self.dilation), first)
                stop = min(max(stop, self.count - self.end // self.dilation), last)
            begin = self.begin - start * self.dilation
            end = self.end - (self.count - stop) * self.dilation
            found.append(_Span(start, stop, own, begin, end))
        return found


@dataclass(frozen=True)
class _Span:
    """A part of a window along one axis.

    Attributes:
        start: first tap that it reads.
        stop: behind its last.
        own: taps whose weights are its own; the others are zero.
        begin: border before the image; negative where it skips so much of it.
        end: the same behind.
    """

    start: int
    stop: int
    own: range
    begin: int
    end: int

    @property
    def taps(self) -> int:
        return self.stop - self.start

    @property
    def skips(self) -> bool:
        return self.begin < 0 or self.end < 0

    def weights(self, array: npt.NDArray[np.generic], axis: int) -> npt.NDArray[np.generic]:
        """Its weights, cut along one axis."""
        import numpy as np

        places = np.arange(self.start, self.stop)
        kept = np.isin(places, np.array(self.own))
        cut = array.take(places, axis=axis)
        shape = [1] * array.ndim
        shape[axis] = len(places)
        return np.asarray(np.where(kept.reshape(shape), cut, cut.dtype.type(0)))


class _Window:
    """One convolution, taken apart."""

    def __init__(
        self,
        node: onnx.NodeProto,
        weights: npt.NDArray[np.generic],
        image: Sequence[int],
        most: int,
    ) -> None:
        self._node = node
        self._weights = weights
        self._options = options = _options(node)
        strides, dilations = (options.get(key) or (1, 1) for key in ("strides", "dilations"))
        pads = options.get("pads") or (0, 0, 0, 0)
        axes = [
            _Axis.of(*own)
            for own in zip(
                image, weights.shape[2:], strides, dilations, pads[:2], pads[2:], strict=True
            )
        ]
        self.parts = min(_grids(axes, most), key=_costs, default=[])
        self._name = node.name or node.output[0]

    def constants(self) -> Iterator[tuple[npt.NDArray[np.generic], str]]:
        """Weights of the parts, and the bounds of slices, with their names."""
        import numpy as np

        for number, (rows, columns) in enumerate(self.parts):
            cut = columns.weights(rows.weights(self._weights, 2), 3)
            yield np.ascontiguousarray(cut), self._label(number, "weight")
            if rows.skips or columns.skips:
                spans = (rows, columns)
                starts = [max(-span.begin, 0) for span in spans]
                ends = [span.end if span.end < 0 else _END for span in spans]
                yield np.array(starts, np.int64), self._label(number, "starts")
                yield np.array(ends, np.int64), self._label(number, "ends")
                yield np.array([2, 3], np.int64), self._label(number, "axes")

    def nodes(self) -> Iterator[onnx.NodeProto]:
        """The parts and their sum, whose output is the convolution's."""
        from onnx import helper

        node, result = self._node, ""
        last = len(self.parts) - 1
        for number, (rows, columns) in enumerate(self.parts):
            source = node.input[0]
            if rows.skips or columns.skips:
                bounds = [self._label(number, name) for name in ("starts", "ends", "axes")]
                cut = self._label(number, "image")
                yield helper.make_node(
                    "Slice", [source, *bounds], [cut], name=self._label(number, "slice")
                )
                source = cut
            part = self._label(number, "part") if last else node.output[0]
            options = {
                **self._options,
                "kernel_shape": [rows.taps, columns.taps],
                "pads": [max(pad, 0) for pad in (rows.begin, columns.begin, rows.end, columns.end)],
            }
            bias = node.input[2:] if number == 0 else []
            yield helper.make_node(
                "Conv", [source, self._label(number, "weight"), *bias], [part], name=part, **options
            )
            if number == 0:
                result = part
                continue
            total = node.output[0] if number == last else self._label(number, "sum")
            name = self._name if number == last else total
            yield helper.make_node("Add", [result, part], [total], name=f"{name}/sum")
            result = total

    def _label(self, number: int, what: str) -> str:
        return f"{self._name}/{what}_{number}"


_Parts = list[tuple[_Span, _Span]]


def _grids(axes: Sequence[_Axis], most: int) -> Iterator[_Parts]:
    """The ways to cut a window into a grid of as few parts as possible, of so many taps at most."""
    counts = itertools.product(*(range(1, len(axis.seeing) + 1) for axis in axes))
    fewest = None
    for numbers in sorted(counts, key=math.prod):
        if fewest is not None and math.prod(numbers) > fewest:
            return
        for wide in (True, False):
            rows, columns = (axis.parts(n, wide) for axis, n in zip(axes, numbers, strict=True))
            if max(span.taps for span in rows) * max(span.taps for span in columns) <= most:
                fewest = math.prod(numbers)
                yield list(itertools.product(rows, columns))


def _costs(parts: _Parts) -> tuple[int, int, int]:
    """What makes a grid slow, the worst first; rows of an image are cut off in one piece."""
    skipping = sum(rows.skips or columns.skips for rows, columns in parts)
    return len(parts), skipping, len({columns for _, columns in parts})
