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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from devices.errors import InvalidInputError
from devices.onnx_files import inferred, one_line, opset_of
from devices.torch_node import Function, NodeReading
from devices.torch_operations import ARITHMETIC, PLAIN
from devices.torch_shapes import SHAPES
from devices.torch_windows import WINDOWS

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx

__all__ = ["OnnxModule", "supported_operations", "torch_module"]

_FOLDED_SIZE = 2**20
"""Numbers in a constant that is worked out while reading: shapes, indices, the masks of windowed
attention; not large weights."""


@dataclass(frozen=True)
class _Step:
    """One call: `outputs = function(*inputs)`; an input left out is None."""

    node: str
    function: Function
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

    def in_modules(self) -> OnnxModule:
        """The same module, each step of which is a module of its own: ``step0``, ``step1``, ….

        What is exported of it then tells the step that each operation is from by the stack of
        modules, which some converters keep where they keep no other metadata.
        """
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other._steps = tuple(replace(step, function=_Called(step.function)) for step in self._steps)
        for place, step in enumerate(other._steps):
            other.add_module(f"step{place}", step.function)  # type: ignore[arg-type]
        return other

    def step_nodes(self) -> tuple[str, ...]:
        """Name of the ONNX node of each step."""
        return tuple(step.node for step in self._steps)

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


class _Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def _annotated(function: Function, key: str, node: str) -> Function:
    from torch.fx.traceback import annotate

    def call(*inputs: Any) -> Any:
        with annotate({key: node}):
            return function(*inputs)

    return call


_HANDLERS = {**WINDOWS, **SHAPES, **ARITHMETIC}


def supported_operations() -> tuple[str, ...]:
    """ONNX operations that `torch_module` knows."""
    return tuple(sorted({*_HANDLERS, *PLAIN, "Constant", "Shape"}))


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

    shaped = inferred(model)
    graph = shaped.graph
    opset = opset_of(model)
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
        # In C order: with a transposed array ExecuTorch's results were wrong behind a softmax.
        name: torch.from_numpy(np.array(constants[name], order="C"))
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
    reading = NodeReading(node, _options(node), constants, shapes, opset)
    outputs = tuple(node.output)
    if node.op_type in PLAIN:
        function: Function = PLAIN[node.op_type]
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

    def next_one(place: int, function: Function) -> tuple[int, _Step] | None:
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
