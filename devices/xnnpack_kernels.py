"""Which kernels XNNPACK executes of what it was given.

A runtime gives XNNPACK operations, each of which stands for nodes of the model. What it makes of
them shows only in the trace of a run: names of kernels, in order, without saying where they come
from. The two are aligned: in order, kind by kind. What has no kernel was fused into what made its
input or what reads its output, or moves nothing; a kernel without an operation belongs to the one
before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devices.executed_onnx import LINEAR, MOVES, ExecutedOp, ExecutedTensor

if TYPE_CHECKING:
    from devices.kernel_trace import TraceEvent

__all__ = ["TO_LAST", "Given", "aligned", "part_kernels"]

TO_LAST = (0, 2, 3, 1)
"""The order of axes that puts an image's channels last."""
_KINDS: Mapping[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "Conv2d": (("Convolution", "Fully Connected"), "Conv", ("Conv",)),
    "DepthwiseConv2d": (("Convolution", "Fully Connected"), "Conv", ("Conv",)),
    "ConvTranspose2d": (("Deconvolution",), "ConvTranspose", ("ConvTranspose",)),
    "FullyConnected": (("Fully Connected", "Dynamic Fully Connected"), "Gemm", LINEAR),
    "BatchMatrixMultiply": (("Batch Matrix Multiply",), "MatMul", LINEAR),
    "Add": (("Add",), "Add", ("Add", "Sum")),
    "Subtract": (("Subtract",), "Sub", ("Sub",)),
    "Multiply": (("Multiply",), "Mul", ("Mul",)),
    "Div": (("Divide",), "Div", ("Div",)),
    "Clamp": (("Clamp",), "Clip", ("Clip", "Relu")),
    "Hardswish": (("HardSwish",), "HardSwish", ("HardSwish",)),
    "Negate": (("Negate",), "Neg", ("Neg",)),
    "Square": (("Square",), "Mul", ("Mul",)),
    "SquareRoot": (("Square Root",), "Sqrt", ("Sqrt",)),
    "ReciprocalSquareRoot": (("Reciprocal Square Root",), "Sqrt", ("Sqrt",)),
    "Maximum": (("Maximum",), "Max", ("Max",)),
    "Minimum": (("Minimum",), "Min", ("Min",)),
    "Ceiling": (("Ceiling",), "Ceil", ("Ceil",)),
    "LeakyReLU": (("LeakyReLU",), "LeakyRelu", ("LeakyRelu",)),
    "PReLU": (("PReLU",), "PRelu", ("PRelu",)),
    "ELU": (("ELU",), "Elu", ("Elu",)),
    "Tanh": (("TanH",), "Tanh", ("Tanh",)),
    "Gelu": (("GELU",), "Gelu", ("Gelu",)),
    "AvgPooling2d": (("Average Pooling",), "AveragePool", ("AveragePool",)),
    "MaxPooling2d": (("Max Pooling",), "MaxPool", ("MaxPool",)),
    "ArgMaxPooling2d": (("ArgMax Pooling",), "MaxPool", ("MaxPool",)),
    "GlobalAvgPooling2d": (
        ("Mean", "Global Average Pooling"),
        "GlobalAveragePool",
        ("GlobalAveragePool", "ReduceMean"),
    ),
    "Mean": (
        ("Mean", "Global Average Pooling"),
        "ReduceMean",
        ("GlobalAveragePool", "ReduceMean"),
    ),
    "Sum": (("Sum",), "ReduceSum", ("ReduceSum",)),
    "SquaredDifference": (("Squared Difference",), "Mul", ("Mul",)),
    "StaticTranspose": (("Transpose",), "Transpose", ("Transpose",)),
    "StaticReshape": (("Static Reshape", "Copy"), "Reshape", MOVES),
    "StaticSlice": (("Slice",), "Slice", ("Slice", "Gather")),
    "StaticConstantPad": (("Constant Pad",), "Pad", ("Pad",)),
    "StaticResizeBilinear2D": (("Resize Bilinear",), "Resize", ("Resize",)),
    "ScaledDotProductAttention": (("Scaled Dot",), "MatMul", ("MatMul",)),
    **{f"Concatenate{i}": (("Copy", "Concatenate"), "Concat", ("Concat",)) for i in range(2, 6)},
    "Convert": (("Convert",), "Cast", ("Cast", "QuantizeLinear", "DequantizeLinear")),
    "Copy": (("Copy",), "Identity", ("Identity",)),
}
"""XNNPACK's operation -> how names of its kernels begin, the ONNX operation that it is called where
it covers nothing, and the covered operations whose work it may be called after. One that is not
here goes by its own name."""
_UNARY = (
    *("Hardswish", "Sigmoid", "Tanh", "ELU", "Gelu", "LeakyReLU", "Exp", "Log", "Abs", "Negate"),
    *("Square", "SquareRoot", "ReciprocalSquareRoot", "Floor", "Ceiling", "Sin", "Cos"),
)
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LOOKED_UP = "Invalid Unary Op"
"""What XNNPACK calls an eight-bit function of one number, which it looks up in a table, with the
conversions on both sides."""


@dataclass(frozen=True, slots=True)
class Given:
    """One operation that XNNPACK was given.

    Attributes:
        kind: a key of `_KINDS`, or its own name.
        covers: see `ExecutedOp.covers`.
        inputs: what it reads.
        output: what it makes.
        channels_last: whether the images among these have their channels last.
        perm: the order of axes that a transposition brings about.
    """

    kind: str
    covers: tuple[str, ...]
    inputs: tuple[ExecutedTensor, ...]
    output: ExecutedTensor
    channels_last: bool
    perm: tuple[int, ...] = ()


def part_kernels(
    given: Sequence[Given], events: Sequence[TraceEvent], domain: str
) -> tuple[list[ExecutedOp], dict[str, ExecutedTensor]]:
    """The kernels of one part of a network.

    Args:
        given: what XNNPACK was given, in order.
        events: of one run of the part.
        domain: of the kernels; ".nhwc" is appended where channels are last.

    Returns:
        The kernels in the order of execution, and by name of a tensor that no kernel makes the one
        that it is equal to.
    """
    matched = aligned(
        [_kernel_starts(operation.kind) for operation in given], [event.op for event in events]
    )
    place_of = {event: place for place, event in enumerate(matched) if event is not None}
    alias: dict[str, ExecutedTensor] = {}
    found: list[ExecutedOp] = []
    done = 0

    def pass_on(until: int) -> None:
        """Operations without a kernel hand on what they read."""
        nonlocal done
        while done < until:
            operation = given[done]
            data = [t for t in operation.inputs if not t.constant]
            if matched[done] is None and data:
                alias[operation.output.name] = alias.get(data[0].name, data[0])
            done += 1

    before: Given | None = None
    for number, event in enumerate(events):
        place = place_of.get(number)
        if place is None:
            if before is not None:
                found.append(_extra(event, before, alias, domain))
            continue
        pass_on(place)
        before = given[place]
        if not all(tensor.constant for tensor in before.inputs):
            found.append(_executed(event, before, alias, domain))
    pass_on(len(given))
    return found, alias


def _kernel_starts(kind: str) -> tuple[str, ...]:
    starts = _KINDS[kind][0] if kind in _KINDS else (kind,)
    return (*starts, _LOOKED_UP) if kind in _UNARY else starts


def _executed(
    event: TraceEvent, given: Given, alias: Mapping[str, ExecutedTensor], domain: str
) -> ExecutedOp:
    """The kernel of an operation."""
    _, fallback, allowed = _KINDS.get(given.kind, ((), given.kind, ()))
    inputs = tuple(alias.get(tensor.name, tensor) for tensor in given.inputs)
    channels_last = given.channels_last
    if given.kind == "StaticTranspose" and not given.covers:
        fallback = "ReorderInput" if given.perm == TO_LAST else "ReorderOutput"
        channels_last = True
    return ExecutedOp(
        name=event.name,
        domain=f"{domain}.nhwc" if channels_last else domain,
        covers=given.covers,
        fallback=fallback,
        allowed=frozenset(allowed),
        inputs=inputs,
        outputs=(given.output,),
    )


def _extra(
    event: TraceEvent, before: Given, alias: Mapping[str, ExecutedTensor], domain: str
) -> ExecutedOp:
    """A kernel that no operation asked for: a further piece of the one before.

    Behind a layer with weights, of which it has none, it goes by its own name: a reshape behind a
    convolution of one pixel is no convolution.
    """
    source = next((t for t in before.inputs if not t.constant), before.output)
    output = ExecutedTensor(f"{event.name}/out", source.shape, False, source.dtype)
    name = _KINDS.get(before.kind, ((), before.kind, ()))[1]
    return ExecutedOp(
        name=event.name,
        domain=domain,
        covers=(),
        fallback=_own_name(event.op) if name in _WEIGHTED else name,
        inputs=(alias.get(source.name, source),),
        outputs=(output,),
    )


def _own_name(op: str) -> str:
    """The ONNX operation that a kernel does by itself, without the weights of a layer."""
    named = (
        fallback
        for starts, fallback, _ in _KINDS.values()
        if op.startswith(starts) and fallback not in _WEIGHTED
    )
    return next(named, op.partition(" (")[0].title().replace(" ", ""))


def aligned(wanted: Sequence[tuple[str, ...]], names: Sequence[str]) -> list[int | None]:
    """For each of what is wanted the place of its name, so that most are found, all in order.

    Args:
        wanted: ways in which the name may begin.
        names: to be found.
    """
    rows, columns = len(wanted), len(names)
    most = [[0] * (columns + 1) for _ in range(rows + 1)]
    fits = [[name.startswith(starts) for name in names] for starts in wanted]
    for row in range(rows - 1, -1, -1):
        for column in range(columns - 1, -1, -1):
            taken = most[row + 1][column + 1] + 1 if fits[row][column] else 0
            most[row][column] = max(taken, most[row + 1][column], most[row][column + 1])
    found: list[int | None] = [None] * rows
    row = column = 0
    while row < rows and column < columns:
        if fits[row][column] and most[row][column] == most[row + 1][column + 1] + 1:
            found[row] = column
            row, column = row + 1, column + 1
        elif most[row + 1][column] >= most[row][column + 1]:
            row += 1
        else:
            column += 1
    return found
