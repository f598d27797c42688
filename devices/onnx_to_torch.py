"""ONNX models as PyTorch modules, for the runtimes that convert from PyTorch.

The operations are those that this project writes, in networks and in probes, and what exporters
write around them. What has one way of writing in ONNX and another in PyTorch's own networks (a GELU
of five nodes, a ReLU6 that is a clip) becomes PyTorch's, for that is what converters recognise.
Shape arithmetic is worked out while reading. Nothing is approximated: an operation, or a variant of
one, that is not known is refused by the name of its node.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from devices.errors import InvalidInputError
from devices.onnx_files import one_line

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx

__all__ = ["OnnxModule", "supported_operations", "torch_module"]

_FOLDED_SIZE = 4096
"""Numbers in a constant that is worked out while reading: shapes and indices, not weights."""

_Function = Callable[..., Any]


@dataclass(frozen=True)
class _Step:
    """One call: `outputs = function(*inputs)`; an input left out is None."""

    node: str
    function: _Function
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]


class OnnxModule(nn.Module):
    """A module that computes what an ONNX graph computes; made by `torch_module`.

    Its weights are parameters without gradient, called ``w0``, ``w1``, … in the graph's order.

    Attributes:
        input_names: the graph's inputs, in the order of `forward`'s arguments.
        output_names: the graph's outputs.
    """

    def __init__(
        self,
        steps: Sequence[_Step],
        weights: Mapping[str, Tensor],
        input_names: Sequence[str],
        output_names: Sequence[str],
    ) -> None:
        super().__init__()
        self.input_names = tuple(input_names)
        self.output_names = tuple(output_names)
        self._steps = tuple(steps)
        self._attributes: dict[str, str] = {}
        for index, (name, value) in enumerate(weights.items()):
            self._attributes[name] = f"w{index}"
            self.register_parameter(f"w{index}", nn.Parameter(value, requires_grad=False))
        last: dict[str, int] = {}
        for place, step in enumerate(self._steps):
            last.update((name, place) for name in step.inputs if name)
        kept = {*self.output_names, *self._attributes}
        self._dead = [
            tuple(n for n in step.inputs if n and last[n] == i and n not in kept)
            for i, step in enumerate(self._steps)
        ]

    def weight_names(self) -> tuple[tuple[str, str], ...]:
        """The name in the graph and the attribute of each weight."""
        return tuple(self._attributes.items())

    def annotated(self, key: str) -> OnnxModule:
        """The same module, of which what is exported tells the node that each operation is from.

        Args:
            key: where the node's name stands, below "custom" in an operation's metadata, when it is
                exported within ``torch.fx.traceback.preserve_node_meta``.
        """
        other = copy.copy(self)
        other._steps = tuple(
            replace(step, function=_annotated(step.function, key, step.node))
            for step in self._steps
        )
        return other

    def forward(self, *inputs: Tensor) -> Any:
        """Runs the graph.

        Args:
            inputs: one for each of `input_names`, of the graph's shapes.

        Returns:
            The output, or a tuple of them where there are several.
        """
        values: dict[str, Any] = dict(zip(self.input_names, inputs, strict=True))
        for name, attribute in self._attributes.items():
            values[name] = getattr(self, attribute)
        for step, dead in zip(self._steps, self._dead, strict=True):
            found = step.function(*(values[name] if name else None for name in step.inputs))
            if len(step.outputs) == 1:
                values[step.outputs[0]] = found
            else:
                values.update(zip(step.outputs, found, strict=True))
            for name in dead:
                values.pop(name, None)
        outputs = tuple(values[name] for name in self.output_names)
        return outputs[0] if len(outputs) == 1 else outputs


def _annotated(function: _Function, key: str, node: str) -> _Function:
    from torch.fx.traceback import annotate

    def call(*inputs: Any) -> Any:
        with annotate({key: node}):
            return function(*inputs)

    return call


@dataclass
class _Reading:
    """A node as its handler sees it.

    Attributes:
        node: the ONNX node.
        options: its attributes.
        constants: the arrays whose values are known while reading, by name.
        shapes: of the tensors, as far as they are known.
        opset: of the default domain.
        known: places of the inputs that were read as constants, which the call does not take.
    """

    node: onnx.NodeProto
    options: Mapping[str, Any]
    constants: Mapping[str, npt.NDArray[Any]]
    shapes: Mapping[str, tuple[int, ...]]
    opset: int
    known: set[int] = field(default_factory=set)

    @property
    def label(self) -> str:
        return f"model node {self.node.name or self.node.output[0]!r} ({self.node.op_type})"

    def refuse(self, what: str) -> InvalidInputError:
        return InvalidInputError(
            f"{self.label}: {what} cannot be turned into PyTorch; export the model without it, or "
            "use a runtime that reads ONNX."
        )

    def name(self, place: int) -> str:
        return self.node.input[place] if place < len(self.node.input) else ""

    def constant(self, place: int, option: str | None = None) -> npt.NDArray[Any] | None:
        """The value of an input that has to be known while reading, or of the older attribute."""
        self.known.add(place)
        if name := self.name(place):
            if name not in self.constants:
                raise self.refuse(f"input {name!r}, which is computed and not a constant,")
            return self.constants[name]
        if option is not None and option in self.options:
            return np.asarray(self.options[option])
        return None

    def integers(self, place: int, option: str | None = None) -> list[int] | None:
        value = self.constant(place, option)
        return None if value is None else [int(v) for v in value.reshape(-1)]

    def rank(self, place: int = 0) -> int:
        shape = self.shapes.get(self.name(place))
        if shape is None:
            raise self.refuse("an input of unknown shape")
        return len(shape)


_HANDLERS: dict[str, Callable[[_Reading], _Function]] = {}


def supported_operations() -> tuple[str, ...]:
    """ONNX operations that `torch_module` knows."""
    return tuple(sorted({*_HANDLERS, *_PLAIN, "Constant", "Shape"}))


def torch_module(model: onnx.ModelProto) -> OnnxModule:
    """A PyTorch module that computes what an ONNX model computes.

    Args:
        model: with fixed shapes (`devices.onnx_files.fix_shapes`) and its weights inside.

    Returns:
        The module, in evaluation mode, on the CPU.

    Raises:
        InvalidInputError: a node's operation, or its variant, is not known, or shapes are wrong.
    """
    import onnx

    try:
        shaped = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:  # InferenceError, or the parser's own
        raise InvalidInputError(f"model: its shapes are wrong ({one_line(error)}).") from error
    graph = shaped.graph
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    shapes = _shapes(graph, arrays)
    constants = dict(arrays)
    tried = _Tried(graph, constants)
    steps: list[_Step] = []
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise InvalidInputError(
                f"model node {node.name or node.output[0]!r}: operation {node.domain}."
                f"{node.op_type} is not ONNX's own; use a runtime that reads it."
            )
        if (folded := _folded(node, constants, shapes)) is not None:
            constants.update(folded)
            shapes.update({name: value.shape for name, value in folded.items()})
            continue
        step = _read(node, constants, shapes, opset)
        # What ONNX cannot infer, behind arithmetic on shapes, is known once the step was tried.
        shapes.update(tried.shapes(step))
        steps.append(step)
    steps = _with_gelu(steps, constants, tuple(value.name for value in graph.output))
    used = dict.fromkeys(name for step in steps for name in step.inputs if name)
    outputs = [value.name for value in graph.output]
    weights = {
        name: torch.from_numpy(np.array(constants[name]))
        for name in (*used, *outputs)
        if name in constants
    }
    inputs = [value.name for value in graph.input if value.name not in arrays]
    return OnnxModule(steps, weights, inputs, outputs).eval()


# -- reading


def _shapes(
    graph: onnx.GraphProto, arrays: Mapping[str, npt.NDArray[Any]]
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {name: array.shape for name, array in arrays.items()}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            shapes.setdefault(value.name, tuple(d.dim_value for d in kind.shape.dim))
    return shapes


def _options(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    found = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        found[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return found


def _folded(
    node: onnx.NodeProto,
    constants: Mapping[str, npt.NDArray[Any]],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, npt.NDArray[Any]] | None:
    """Values of a node that are known while reading; None where they are not, or are large."""
    from onnx.reference import ReferenceEvaluator

    if node.op_type == "Shape" and node.input[0] in shapes:
        options = _options(node)
        sizes = shapes[node.input[0]][options.get("start", 0) : options.get("end")]
        return {node.output[0]: np.array(sizes, dtype=np.int64)}
    inputs = [name for name in node.input if name]
    if not all(name in constants for name in inputs) or node.op_type.startswith("Random"):
        return None
    if node.op_type != "Constant" and sum(constants[n].size for n in inputs) > _FOLDED_SIZE:
        return None
    try:
        found = ReferenceEvaluator(node).run(None, {name: constants[name] for name in inputs})
    except Exception:  # what the reference cannot do is left to be read as a step, or refused there
        return None
    values = dict(zip(node.output, found, strict=True))
    if node.op_type != "Constant" and sum(np.asarray(v).size for v in found) > _FOLDED_SIZE:
        return None
    return {name: np.asarray(value) for name, value in values.items() if name}


def _read(
    node: onnx.NodeProto,
    constants: Mapping[str, npt.NDArray[Any]],
    shapes: Mapping[str, tuple[int, ...]],
    opset: int,
) -> _Step:
    reading = _Reading(node, _options(node), constants, shapes, opset)
    outputs = tuple(node.output)
    if node.op_type in _PLAIN:
        function: _Function = _PLAIN[node.op_type]
    elif node.op_type in _HANDLERS:
        function = _HANDLERS[node.op_type](reading)
    else:
        raise reading.refuse("this operation")
    if node.op_type != "Split" and any(outputs[1:]):
        raise reading.refuse("its second output")
    outputs = outputs if node.op_type == "Split" else outputs[:1]
    label = node.name or node.output[0]
    inputs = [name or None for i, name in enumerate(node.input) if i not in reading.known]
    return _Step(label, function, tuple(inputs), outputs)


class _Tried:
    """Runs steps on tensors without content, so that what does not fit is found by its node."""

    def __init__(self, graph: onnx.GraphProto, constants: Mapping[str, npt.NDArray[Any]]) -> None:
        import onnx

        self._constants = constants
        self._values: dict[str, Tensor] = {}
        for value in graph.input:
            if value.name not in constants:
                tensor = value.type.tensor_type
                kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
                shape = tuple(d.dim_value for d in tensor.shape.dim)
                self._values[value.name] = _without_content(shape, kind)

    def shapes(self, step: _Step) -> dict[str, tuple[int, ...]]:
        """Shapes of what a step makes.

        Raises:
            InvalidInputError: PyTorch refuses the step.
        """
        try:
            found = step.function(*(self._value(name) if name else None for name in step.inputs))
        except InvalidInputError:
            raise
        except Exception as error:  # whatever PyTorch raises for shapes and types
            raise InvalidInputError(
                f"model node {step.node!r}: PyTorch refuses it ({one_line(error)}); export the "
                "model again."
            ) from error
        made = dict(zip(step.outputs, found if len(step.outputs) > 1 else [found], strict=True))
        self._values.update(made)
        return {name: tuple(value.shape) for name, value in made.items()}

    def _value(self, name: str) -> Tensor:
        if name in self._constants:
            return _without_content(self._constants[name].shape, self._constants[name].dtype)
        return self._values[name]


def _without_content(shape: tuple[int, ...], kind: npt.DTypeLike) -> Tensor:
    example = torch.from_numpy(np.empty(0, dtype=kind))
    return torch.empty(shape, dtype=example.dtype, device="meta")


def _with_gelu(
    steps: list[_Step], constants: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]
) -> list[_Step]:
    """Puts PyTorch's GELU where exporters write x · (1 + erf(x / √2)) · 0.5 in five nodes."""
    users: dict[str, list[int]] = {}
    for place, step in enumerate(steps):
        for name in step.inputs:
            users.setdefault(name or "", []).append(place)
    replaced: dict[int, _Step | None] = {}

    def number(name: str | None) -> float | None:
        value = constants.get(name or "")
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def next_one(place: int, function: _Function) -> tuple[int, _Step] | None:
        name = steps[place].outputs[0]
        after = users.get(name, [])
        if len(set(after)) != 1 or name in outputs or steps[after[0]].function is not function:
            return None
        return after[0], steps[after[0]]

    def other(step: _Step, known: str) -> str | None:
        names = [name for name in step.inputs if name != known]
        return names[0] if len(names) == 1 else None

    for place, step in enumerate(steps):
        if step.function is not torch.erf:
            continue
        before = next((i for i, s in enumerate(steps) if s.outputs[0] == step.inputs[0]), None)
        if before is None or len(users[steps[before].outputs[0]]) != 1:
            continue
        scaled = steps[before]
        x, factor = scaled.inputs[0], number(scaled.inputs[-1])
        if scaled.function is torch.mul:
            factor = 1 / factor if factor else None
        elif scaled.function is not torch.div:
            continue
        if factor is None or not math.isclose(factor, math.sqrt(2), rel_tol=1e-5):
            continue
        places, numbers, gate = [before, place], [], False
        now = place
        for function in (torch.add, torch.mul, torch.mul):
            found = next_one(now, function)
            if found is None:
                break
            partner = other(found[1], steps[now].outputs[0])
            gate = gate or partner == x
            numbers.append(number(partner) if partner != x else x)
            now = found[0]
            places.append(now)
        if numbers[:1] == [1.0] and sorted(map(str, numbers[1:])) == sorted(["0.5", str(x)]):
            for used in places[:-1]:
                replaced[used] = None
            replaced[now] = _Step(steps[now].node, F.gelu, (x,), steps[now].outputs)
    merged = [replaced.get(place, step) for place, step in enumerate(steps)]
    return [step for step in merged if step is not None]


# -- operations


def _handles(*names: str) -> Callable[[Callable[[_Reading], _Function]], Any]:
    def register(handler: Callable[[_Reading], _Function]) -> Callable[[_Reading], _Function]:
        _HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def _window(
    r: _Reading, rank: int
) -> tuple[list[int], list[int], list[int], Callable[[Tensor], list[int]]]:
    """Kernel, strides, dilations, and the borders of an input, in the order of `F.pad`."""
    kernel = list(r.options.get("kernel_shape") or r.shapes[r.name(1)][2:])
    strides = list(r.options.get("strides") or [1] * rank)
    dilations = list(r.options.get("dilations") or [1] * rank)
    auto = r.options.get("auto_pad", "NOTSET")
    pads = list(r.options.get("pads") or [0] * 2 * rank) if auto == "NOTSET" else [0] * 2 * rank

    def borders(x: Tensor) -> list[int]:
        begins, ends = pads[:rank], pads[rank:]
        if auto.startswith("SAME"):
            begins, ends = [], []
            for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
                total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
                small, large = total // 2, total - total // 2
                begins.append(small if auto == "SAME_UPPER" else large)
                ends.append(large if auto == "SAME_UPPER" else small)
        return [v for pair in zip(begins[::-1], ends[::-1], strict=True) for v in pair]

    return kernel, strides, dilations, borders


def _even(borders: Sequence[int]) -> list[int] | None:
    """Padding for PyTorch's operations where both ends are alike, else None."""
    begins, ends = list(borders[::2])[::-1], list(borders[1::2])[::-1]
    return begins if begins == ends else None


@_handles("Conv")
def _conv(r: _Reading) -> _Function:
    rank = r.rank() - 2
    if rank not in (1, 2, 3):
        raise r.refuse(f"a convolution over {rank} axes")
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    _, strides, dilations, borders = _window(r, rank)
    groups = int(r.options.get("group", 1))

    def call(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        pads = borders(x)
        padding = _even(pads)
        if padding is None:
            x, padding = F.pad(x, pads), [0] * rank
        return function(x, weight, bias, strides, padding, dilations, groups)

    return call


@_handles("ConvTranspose")
def _conv_transpose(r: _Reading) -> _Function:
    rank = r.rank() - 2
    if rank not in (1, 2, 3):
        raise r.refuse(f"a convolution over {rank} axes")
    if r.options.get("output_shape") or r.options.get("auto_pad", "NOTSET") != "NOTSET":
        raise r.refuse("a given output shape")
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    _, strides, dilations, _ = _window(r, rank)
    pads = list(r.options.get("pads") or [0] * 2 * rank)
    extra = list(r.options.get("output_padding") or [0] * rank)
    if pads[:rank] != pads[rank:]:
        raise r.refuse("uneven padding")
    groups = int(r.options.get("group", 1))

    def call(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return function(x, weight, bias, strides, pads[:rank], extra, groups, dilations)

    return call


@_handles("AveragePool", "MaxPool")
def _pool(r: _Reading) -> _Function:
    rank = r.rank() - 2
    if rank not in (1, 2, 3):
        raise r.refuse(f"a pooling over {rank} axes")
    kernel, strides, dilations, borders = _window(r, rank)
    ceil = bool(r.options.get("ceil_mode", 0))
    if r.node.op_type == "MaxPool":
        biggest = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]

        def most(x: Tensor) -> Any:
            pads = borders(x)
            padding = _even(pads)
            if padding is None or any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
                x, padding = F.pad(x, pads, value=-math.inf), [0] * rank
            return biggest(x, kernel, strides, padding, dilations, ceil)

        return most
    if any(d != 1 for d in dilations):
        raise r.refuse("a dilated average")
    counted = bool(r.options.get("count_include_pad", 0))

    def mean(x: Tensor) -> Tensor:
        pads = borders(x)
        padding = _even(pads)
        if padding is None:
            if not counted and any(pads):
                raise r.refuse("an average with uneven padding that is not counted")
            x, padding = F.pad(x, pads), [0] * rank
        if rank == 1:
            return F.avg_pool1d(x, kernel, strides, padding, ceil, counted)
        averaged = F.avg_pool2d if rank == 2 else F.avg_pool3d
        return averaged(x, kernel, strides, padding, ceil, counted)

    return mean


@_handles("GlobalAveragePool")
def _global_average(r: _Reading) -> _Function:
    axes = list(range(2, r.rank()))
    return lambda x: x.mean(axes, keepdim=True)


@_handles("GlobalMaxPool")
def _global_max(r: _Reading) -> _Function:
    axes = list(range(2, r.rank()))
    return lambda x: x.amax(axes, keepdim=True)


@_handles("Gemm")
def _gemm(r: _Reading) -> _Function:
    alpha, beta = float(r.options.get("alpha", 1)), float(r.options.get("beta", 1))
    left, right = bool(r.options.get("transA", 0)), bool(r.options.get("transB", 0))

    def call(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a = a.transpose(0, 1) if left else a
        if alpha == beta == 1 and (c is None or c.dim() == 1):
            return F.linear(a, b if right else b.transpose(0, 1), c)
        product = alpha * torch.matmul(a, b.transpose(0, 1) if right else b)
        return product if c is None else product + beta * c

    return call


@_handles("Clip")
def _clip(r: _Reading) -> _Function:
    low, high = r.constant(1, "min"), r.constant(2, "max")
    lowest = None if low is None else float(low)
    highest = None if high is None else float(high)
    if lowest == 0 and (highest is None or highest >= float(np.finfo(np.float32).max)):
        return F.relu
    if lowest is None and highest is None:
        return torch.clone
    if (lowest, highest) == (0, 6):
        return F.relu6
    return lambda x: torch.clamp(x, lowest, highest)


@_handles("LeakyRelu")
def _leaky(r: _Reading) -> _Function:
    return partial(F.leaky_relu, negative_slope=float(r.options.get("alpha", 0.01)))


@_handles("Elu")
def _elu(r: _Reading) -> _Function:
    return partial(F.elu, alpha=float(r.options.get("alpha", 1)))


@_handles("HardSigmoid")
def _hard_sigmoid(r: _Reading) -> _Function:
    slope, offset = float(r.options.get("alpha", 0.2)), float(r.options.get("beta", 0.5))
    if math.isclose(slope, 1 / 6, rel_tol=1e-5) and offset == 0.5:
        return F.hardsigmoid
    return lambda x: torch.clamp(x * slope + offset, 0, 1)


@_handles("PRelu")
def _prelu(r: _Reading) -> _Function:
    slope, x = r.shapes.get(r.name(1)), r.shapes.get(r.name(0))
    if slope is None or x is None:
        raise r.refuse("an input of unknown shape")
    aligned = (1,) * (len(x) - len(slope)) + slope
    size = math.prod(slope)
    if size != 1 and (len(x) < 2 or aligned[1] != size or x[1] != size):
        return lambda x, slope: torch.where(x < 0, x * slope, x)
    return lambda x, slope: F.prelu(x, slope.reshape(-1))


@_handles("Gelu")
def _gelu(r: _Reading) -> _Function:
    return partial(F.gelu, approximate=r.options.get("approximate", "none"))


@_handles("Softmax", "LogSoftmax")
def _softmax(r: _Reading) -> _Function:
    rank = r.rank()
    axis = int(r.options.get("axis", -1 if r.opset >= 13 else 1)) % rank
    if r.opset < 13 and axis != rank - 1:
        raise r.refuse("a softmax over several axes")
    return partial(F.softmax if r.node.op_type == "Softmax" else F.log_softmax, dim=axis)


@_handles("BatchNormalization")
def _batch_norm(r: _Reading) -> _Function:
    epsilon = float(r.options.get("epsilon", 1e-5))
    if r.options.get("training_mode", 0):
        raise r.refuse("training mode")

    def call(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)

    return call


@_handles("InstanceNormalization")
def _instance_norm(r: _Reading) -> _Function:
    epsilon = float(r.options.get("epsilon", 1e-5))

    def call(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return F.instance_norm(x, weight=scale, bias=bias, use_input_stats=True, eps=epsilon)

    return call


@_handles("LayerNormalization")
def _layer_norm(r: _Reading) -> _Function:
    epsilon = float(r.options.get("epsilon", 1e-5))
    shape = r.shapes.get(r.name(0))
    if shape is None:
        raise r.refuse("an input of unknown shape")
    normal = list(shape[int(r.options.get("axis", -1)) % len(shape) :])

    def call(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, normal, scale, bias, epsilon)

    return call


_REDUCTIONS: dict[str, _Function] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
}


@_handles("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
def _reduce(r: _Reading) -> _Function:
    axes = r.integers(1, "axes")
    if not axes:
        if r.options.get("noop_with_empty_axes", 0):
            return torch.clone
        axes = list(range(r.rank()))
    keep = bool(r.options.get("keepdims", 1))
    function = _REDUCTIONS[r.node.op_type]
    if not keep and r.rank() == 4 and sorted(axis % 4 for axis in axes) == [2, 3]:
        # XNNPACK averages images only so; ExecuTorch's own way takes a thousand times as long.
        return lambda x: function(x, axes, keepdim=True).flatten(1)
    return lambda x: function(x, axes, keepdim=keep)


@_handles("Concat")
def _concat(r: _Reading) -> _Function:
    axis = int(r.options["axis"])
    return lambda *parts: torch.cat(parts, axis)


@_handles("Flatten")
def _flatten(r: _Reading) -> _Function:
    shape = r.shapes.get(r.name(0))
    if shape is None:
        raise r.refuse("an input of unknown shape")
    axis = int(r.options.get("axis", 1))
    axis += len(shape) if axis < 0 else 0
    target = [math.prod(shape[:axis]), math.prod(shape[axis:])]
    return lambda x: x.reshape(target)


@_handles("Reshape")
def _reshape(r: _Reading) -> _Function:
    target = r.integers(1, "shape") or []
    old = r.shapes.get(r.name(0))
    if 0 in target and not r.options.get("allowzero", 0):
        if old is None:
            raise r.refuse("an input of unknown shape")
        target = [size or old[place] for place, size in enumerate(target)]
    return lambda x: x.reshape(target)


@_handles("Transpose")
def _transpose(r: _Reading) -> _Function:
    order = list(r.options.get("perm") or range(r.rank() - 1, -1, -1))
    return lambda x: x.permute(order)


@_handles("Squeeze")
def _squeeze(r: _Reading) -> _Function:
    axes = r.integers(1, "axes")
    return torch.squeeze if axes is None else partial(torch.squeeze, dim=tuple(axes))


@_handles("Unsqueeze")
def _unsqueeze(r: _Reading) -> _Function:
    axes = r.integers(1, "axes") or []
    rank = r.rank() + len(axes)
    places = sorted(axis % rank for axis in axes)

    def call(x: Tensor) -> Tensor:
        for place in places:
            x = x.unsqueeze(place)
        return x

    return call


@_handles("Gather")
def _gather(r: _Reading) -> _Function:
    axis = int(r.options.get("axis", 0))
    index = r.constant(1)
    if index is None or index.ndim > 1:
        raise r.refuse("a table of indices")
    if index.ndim == 0:
        return lambda x: x.select(axis, int(index))
    places = torch.from_numpy(np.array(index, dtype=np.int64))
    return lambda x: x.index_select(axis, places.to(x.device) % x.shape[axis])


@_handles("Slice")
def _slice(r: _Reading) -> _Function:
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


@_handles("Pad")
def _pad(r: _Reading) -> _Function:
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


@_handles("Resize")
def _resize(r: _Reading) -> _Function:
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


@_handles("DepthToSpace")
def _depth_to_space(r: _Reading) -> _Function:
    size = int(r.options["blocksize"])
    if r.options.get("mode", "DCR") == "CRD":
        return partial(F.pixel_shuffle, upscale_factor=size)

    def call(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.reshape(batch, size, size, channels // size**2, height, width)
        return x.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, height * size, width * size)

    return call


@_handles("SpaceToDepth")
def _space_to_depth(r: _Reading) -> _Function:
    size = int(r.options["blocksize"])

    def call(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // size, size, width // size, size)
        return x.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // size, width // size)

    return call


@_handles("Split")
def _split(r: _Reading) -> _Function:
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


@_handles("Cast")
def _cast(r: _Reading) -> _Function:
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


_HANDLERS["Dropout"] = _HANDLERS["Identity"] = lambda r: _first(r)


def _first(r: _Reading) -> _Function:
    r.known = set(range(1, len(r.node.input)))
    return torch.clone


_PLAIN: dict[str, _Function] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "Div": torch.div,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "HardSwish": F.hardswish,
    "MatMul": torch.matmul,
    "Mish": F.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Pow": torch.pow,
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
}
