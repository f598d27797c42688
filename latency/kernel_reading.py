"""Kernels, read from the graph that the runtime really runs instead of guessed from rules.

The original model and its compiled graph are matched by tensors. A compiled node's output equals
some tensor of the original; the nodes between that tensor and the kernel's inputs are the ones it
covers. Most tensors keep their names; ONNX Runtime's blocked convolutions are called after the
original tensor plus ``_nchwc``; the few others are found by walking forward from the inputs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from devices.executed_onnx import EXECUTED_DOMAIN
from devices.onnx_files import dtype_name, name_nodes, parse_skeleton
from latency.denormals import denormal_counts
from latency.kernel import (
    CONVOLUTIONS,
    SEEN_ATTRIBUTES,
    Kernel,
    KernelGraph,
    KernelNode,
    Shape,
    family_of,
    operation_name,
)
from latency.onnx_node import Node
from latency.static import StaticGraph
from latency.uncollected import uncollected

if TYPE_CHECKING:
    import onnx

__all__ = ["KernelReader", "read_kernels"]

_ACTIVATIONS = {
    "Relu",
    "Clip",
    "LeakyRelu",
    "Elu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Mul",
}
_NCHWC_SUFFIX = "_nchwc"
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def read_kernels(original: onnx.ModelProto | bytes, compiled: bytes) -> KernelGraph:
    """Reads the kernels of a compiled ONNX graph.

    Args:
        original: the model before compilation, with fixed shapes (see
            `devices.onnx_files.fix_shapes`), or its serialised form; the content of its large
            weights is not needed.
        compiled: see `latency.executed`.

    Raises:
        InvalidInputError: one of the two is not a readable ONNX graph.
    """
    with uncollected():
        if isinstance(original, bytes):
            original, _ = parse_skeleton(original)
        graph, weights = parse_skeleton(compiled, "compiled graph")
        return KernelGraph(tuple(KernelReader(original, graph, weights).kernels()))


class _Original:
    """The original model's nodes and tensors, indexed."""

    def __init__(self, model: onnx.ModelProto) -> None:
        model = name_nodes(model)
        self.nodes = [Node(node) for node in model.graph.node]
        self.position = {node.name: i for i, node in enumerate(self.nodes)}
        self.by_name = {node.name: node for node in self.nodes}
        self.producer = {out: node for node in self.nodes for out in node.output if out}
        self.consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.consumers.setdefault(name, []).append(node)
        static = StaticGraph(model, walk=False)
        self.constants = static.constants
        # What is computed from weights and shapes alone is folded away and takes no time.
        self.folded = {node.name for node in self.nodes if static.visit(node)}
        self.shapes, self.dtypes = static.shapes, static.dtypes
        self.tensors = {*self.producer, *(value.name for value in model.graph.input)}

    def data_inputs(self, node: Node) -> list[str]:
        return [name for name in node.given if name not in self.constants]


class KernelReader:
    """Matches a compiled graph to its original, one compiled node after the other."""

    def __init__(
        self,
        original: onnx.ModelProto,
        compiled: onnx.ModelProto,
        contents: Mapping[str, memoryview],
    ) -> None:
        self.original = _Original(original)
        self.contents = contents
        self.nodes = [Node(node) for node in compiled.graph.node]
        self.weights: dict[str, Shape] = {
            tensor.name: tuple(tensor.dims) for tensor in compiled.graph.initializer
        }
        self.weight_dtypes = {t.name: dtype_name(t.data_type) for t in compiled.graph.initializer}
        self.consumers: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in node.input:
                self.consumers.setdefault(name, []).append(index)
        # Compiled tensor -> the original tensor that has the same values.
        self.equal = {v.name: v.name for v in compiled.graph.input if v.name not in self.weights}
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, str] = {}
        self.claimed: set[str] = set()
        self.static = StaticGraph(compiled, walk=False)
        self.compiled = compiled.graph
        # A graph that was written for reading tells all shapes; they need not be worked out.
        self.told = _told(compiled) if compiled.domain == EXECUTED_DOMAIN else {}
        for value in compiled.graph.input:
            if value.name in self.original.shapes:
                self._set_shape(value.name, value.name)
        self.ends = self._known_ends()

    def kernels(self) -> list[KernelNode]:
        """Every kernel in the order of execution; equal ones are one object."""
        covered: list[list[str]] = []
        kernels: list[Kernel] = []
        for node in self.nodes:
            attributes = node.options
            inputs = [name for name in node.given if name not in self.weights]
            if node.op_type in ("ReorderInput", "ReorderOutput"):
                names = self._cover_reorder(node, attributes)
            else:
                names = self._cover(node, attributes, inputs)
                self._correct_shapes(node)
            kernels.append(self._kernel(node, attributes, inputs))
            covered.append(names)
        if not self.told:  # its constants have no content
            self._mark_denormals(kernels)
        # Equal kernels are one object, so that whoever looks one up need not compare them again.
        known: dict[Kernel, Kernel] = {}
        kernels = [known.setdefault(kernel, kernel) for kernel in kernels]
        self._attribute_the_rest(covered)
        producer = {out: i for i, node in enumerate(self.nodes) for out in node.output if out}
        return [
            KernelNode(
                kernel,
                node.name or node.output[0],
                tuple(names),
                tuple([producer.get(n, -1) for n in node.given if n not in self.weights]),
            )
            for kernel, node, names in zip(kernels, self.nodes, covered, strict=True)
        ]

    # -- which original nodes a compiled node stands for

    def _cover(self, node: Node, attributes: Mapping[str, Any], inputs: Sequence[str]) -> list[str]:
        """Names of the original nodes that this one covers; notes what its outputs equal."""
        stops = {self.equal[name] for name in inputs if name in self.equal}
        end = self._end_tensor(node, attributes, stops)
        for index, output in enumerate(node.output):
            if output in self.original.tensors:
                self._set_shape(output, output)
            elif index == 0 and end is not None:
                self._set_shape(output, end)
        if end is None or end not in self.original.producer:
            self._infer_shape(node, attributes, inputs)
            return []
        if node.output and node.output[0] not in self.shapes:
            self._infer_shape(node, attributes, inputs)
        names = self._between(end, stops)
        for output in node.output[1:]:  # slices that became one split
            if output in self.original.producer:
                further = self._between(output, stops)
                names += [name for name in further if name not in names]
        if not names:
            names = [self.original.producer[end].name]
        self.claimed.update(names)
        return sorted(names, key=self._weight)

    def _cover_reorder(self, node: Node, attributes: Mapping[str, Any]) -> list[str]:
        """A layout change stands for no node, but for a transposition that it does on the way."""
        source, target = node.input[0], node.output[0]
        self._pass_on(source, target)
        if not attributes.get("channels_last") or source not in self.shapes:
            return []
        names: list[str] = []
        perm = (0, 2, 3, 1) if node.op_type == "ReorderOutput" else (0, 3, 1, 2)
        for candidate in self.original.consumers.get(self.equal.get(source, ""), ()):
            if candidate.op_type == "Transpose" and (
                tuple(candidate.options.get("perm", ())) == perm
            ):
                self.equal[target] = candidate.output[0]
                self.claimed.add(candidate.name)
                names = [candidate.name]
                break
        shape = self.shapes[source]
        if len(shape) == 4:
            self._know_shape(target, tuple(shape[axis] for axis in perm), self.dtypes[source])
        return names

    def _correct_shapes(self, node: Node) -> None:
        """Lets ONNX's inference, where it knows the operation, overrule the matching by tensors.

        A runtime that moves transpositions through the graph leaves tensors that have the values
        of the original's in another order.
        """
        if not node.domain and node.op_type not in CONVOLUTIONS:
            self.static.visit(node)
            for name in node.output:
                if name in self.static.shapes:
                    self.shapes[name] = self.static.shapes[name]
                    self.dtypes[name] = self.static.dtypes[name]
        for name in node.output:
            if name in self.shapes and name not in self.static.shapes:
                self._know_shape(name, self.shapes[name], self.dtypes.get(name) or "float32")

    def _know_shape(self, name: str, shape: Shape, dtype: str) -> None:
        self.shapes[name], self.dtypes[name] = shape, dtype
        self.static.set(name, shape, dtype)

    def _end_tensor(self, node: Node, attributes: Mapping[str, Any], stops: set[str]) -> str | None:
        """The original tensor that the node's first output equals."""
        original = self.original
        if node.output and node.output[0] in original.producer:
            return str(node.output[0])
        if node.output and node.output[0] in self.ends:
            return self.ends[node.output[0]]
        start = self._named_tensor(node) or self._next_tensor(node, stops)
        if start is None:
            return None
        # The name tells where the fused chain begins; its end follows from what was fused.
        path = {original.by_name[name].op_type for name in self._between(start, stops)}
        if node.op_type in CONVOLUTIONS and len(node.input) > 3 and node.input[3]:
            residual = self.equal.get(node.input[3])
            if not path & {"Add", "Sum"}:
                start = self._step(start, {"Add", "Sum"}, residual) or start
                path.add("Add")
        activation = attributes.get("activation", "")
        if activation and not path & _ACTIVATIONS:
            start = self._step(start, {activation}, None) or self._gated(start) or start
        if node.op_type == "Gelu" and node.domain:
            start = self._halved(start) or start
        return start

    def _gated(self, tensor: str) -> str | None:
        """Product of a tensor with its own (hard) sigmoid, where it is written out so."""
        for gate in self.original.consumers.get(tensor, ()):
            if gate.op_type in ("Sigmoid", "HardSigmoid"):
                return self._step(tensor, {"Mul"}, gate.output[0])
        return None

    def _halved(self, tensor: str) -> str | None:
        """The last factor of a GELU that is written out; only one of its products was found."""
        following = self.original.consumers.get(tensor, [])
        if len(following) != 1 or following[0].op_type != "Mul":
            return None
        others = [name for name in following[0].input if name != tensor]
        makers = [self.original.producer.get(name) for name in others]
        last = all(
            math.prod(self.original.shapes.get(name, (0,))) == 1
            if name in self.original.constants
            else maker is not None and maker.op_type == "Add"
            for name, maker in zip(others, makers, strict=True)
        )
        return str(following[0].output[0]) if last else None

    def _known_ends(self) -> dict[str, str]:
        """Compiled tensors that their consumers give away: what a reorder or convolution reads."""
        ends: dict[str, str] = {}
        for node in self.nodes:
            if node.op_type in ("ReorderInput", "ReorderOutput"):
                end = self.original.producer.get(node.output[0])
                if end is None:
                    continue
                if not node.options.get("channels_last"):
                    ends[node.input[0]] = node.output[0]
                elif end.op_type == "Transpose" and end.input[0] in self.original.producer:
                    ends[node.input[0]] = end.input[0]
            elif node.op_type in CONVOLUTIONS:
                convolution = self._convolution_behind(self._named_tensor(node))
                if convolution is not None and convolution.input[0] in self.original.producer:
                    ends[node.input[0]] = convolution.input[0]
        return ends

    def _convolution_behind(self, tensor: str | None) -> Node | None:
        """The convolution that a fused chain ending in this tensor begins with."""
        for _ in range(4):
            node = self.original.producer.get(tensor or "")
            if node is None or node.op_type == "Conv":
                return node
            if node.op_type not in _ACTIVATIONS and node.op_type != "BatchNormalization":
                return None
            tensor = node.input[0]
        return None

    def _named_tensor(self, node: Node) -> str | None:
        """The original tensor that the node's own name points to."""
        original, name = self.original, node.name
        if name.endswith(_NCHWC_SUFFIX) and name.removesuffix(_NCHWC_SUFFIX) in original.producer:
            return str(name.removesuffix(_NCHWC_SUFFIX))
        if name in original.by_name:
            return str(original.by_name[name].output[0])
        # Fusions put their own name behind that of the node they replace.
        cut = name
        while "/" in cut:
            cut = cut.rpartition("/")[0]
            if cut in original.by_name:
                return str(original.by_name[cut].output[0])
        return None

    def _next_tensor(self, node: Node, stops: set[str]) -> str | None:
        """Output of the first original node after the inputs that does what this one does."""
        original = self.original
        # The runtime writes hard-swish out as a product where it cannot fuse it.
        wanted = {"QuickGelu": {"Mul"}, "Gelu": {"Mul"}, "Mul": {"Mul", "HardSwish"}}
        wanted |= {"FusedConv": {"Conv"}, "FusedGemm": {"Gemm"}, "FusedMatMul": {"MatMul"}}
        ops = wanted.get(node.op_type, {node.op_type})
        frontier, seen = sorted(stops), set(stops)
        for _ in range(3):
            following = [n for name in frontier for n in original.consumers.get(name, ())]
            for candidate in following:
                if candidate.op_type in ops and candidate.name not in self.claimed:
                    return str(candidate.output[0])
            frontier = [out for n in following for out in n.output if out not in seen]
            seen.update(frontier)
        return None

    def _step(self, tensor: str, ops: set[str], other: str | None) -> str | None:
        """Output of the original node of one of these operations that takes the tensor."""
        for _ in range(3):
            consumers = self.original.consumers.get(tensor, [])
            for node in consumers:
                if node.op_type in ops and (other is None or other in node.input):
                    return str(node.output[0])
            passing = [n for n in consumers if n.op_type in ("Identity", "Dropout", "Cast")]
            if not passing:
                return None
            tensor = passing[0].output[0]
        return None

    def _between(self, end: str, stops: set[str]) -> list[str]:
        """Original nodes behind a tensor, up to the stops and to what other kernels cover."""
        original, names, open_tensors = self.original, [], [end]
        seen = set(stops) if end not in stops else set()
        while open_tensors:
            tensor = open_tensors.pop()
            node = original.producer.get(tensor)
            if tensor in seen or node is None:
                continue
            seen.add(tensor)
            if node.name in self.claimed or node.name in original.folded or node.name in names:
                continue
            names.append(node.name)
            open_tensors.extend(original.data_inputs(node))
        return names

    def _weight(self, name: str) -> tuple[int, int]:
        """Sort key: matrix work first, then the original's order."""
        kind = self.original.by_name[name].op_type
        heavy = kind in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        return (0 if heavy else 1, self.original.position[name])

    def _attribute_the_rest(self, covered: list[list[str]]) -> None:
        """Gives layout changes to the kernel they are done for, and leaves none without a node."""
        for index in reversed(range(len(self.nodes))):
            if covered[index]:
                continue
            node = self.nodes[index]
            for output in node.output:
                for consumer in self.consumers.get(output, ()):
                    if covered[consumer] and not covered[index]:
                        covered[index] = covered[consumer][:1]
        producer = {out: i for i, node in enumerate(self.nodes) for out in node.output}
        for index, node in enumerate(self.nodes):
            for name in node.input:
                if not covered[index] and name in producer and covered[producer[name]]:
                    covered[index] = covered[producer[name]][:1]
            if not covered[index]:
                covered[index] = [self.original.nodes[0].name]

    # -- shapes

    def _set_shape(self, compiled: str, original: str) -> None:
        self.equal[compiled] = original
        if original in self.original.shapes:
            self.shapes[compiled] = self.original.shapes[original]
            self.dtypes[compiled] = self.original.dtypes[original]

    def _pass_on(self, source: str, target: str) -> None:
        for table in (self.equal, self.shapes, self.dtypes):
            if source in table:
                table[target] = table[source]  # type: ignore[assignment]
        if target in self.shapes:
            self._know_shape(target, self.shapes[target], self.dtypes.get(target) or "float32")

    def _infer_shape(
        self, node: Node, attributes: Mapping[str, Any], inputs: Sequence[str]
    ) -> None:
        """Shape of an output that equals no tensor of the original: by the operation itself."""
        known = [self.shapes[name] for name in inputs if name in self.shapes]
        known += [self.weights[name] for name in node.input if name in self.weights]
        if not known:
            return
        shape = known[0]
        if node.op_type == "FusedMatMul" and len(known) == 2:
            shape = _multiplied(known[0], known[1], attributes)
        elif node.op_type == "Transpose" and len(attributes.get("perm", ())) == len(shape):
            shape = tuple(shape[axis] for axis in attributes["perm"])
        elif node.op_type in ("Add", "Mul", "Sub", "Div"):
            shape = max(known, key=math.prod)
        elif node.op_type in CONVOLUTIONS and len(shape) == 4:
            weights = self.weights.get(node.input[1], ()) if len(node.input) > 1 else ()
            shape = _convolved(shape, weights[0] if weights else shape[1], attributes)
        for output in node.output:
            self.shapes.setdefault(output, shape)
            self.dtypes.setdefault(output, self.dtypes.get(inputs[0], "float32") if inputs else "")

    # -- the kernel itself

    def _kernel(self, node: Node, attributes: Mapping[str, Any], inputs: Sequence[str]) -> Kernel:
        weights = tuple([self.weights[name] for name in node.input if name in self.weights])
        shapes = tuple([self._shape(name) for name in inputs])
        outputs = tuple([self._shape(name) for name in node.output if name])
        is_convolution = node.op_type in CONVOLUTIONS
        window = tuple(attributes.get("kernel_shape", ()))
        if is_convolution and not window and weights:
            window = weights[0][2:]
        # A window's values that are left out mean one (strides, dilations) and nothing (pads).
        ones, zeros = (1,) * len(window), (0,) * (2 * len(window))
        groups = int(attributes.get("group", 1))
        rest = {
            key: value
            for key, value in attributes.items()
            if key not in SEEN_ATTRIBUTES and (key, value) != ("approximate", "none")
        }
        return Kernel(
            family=family_of(node.op_type, window, groups, shapes, bool(weights)),
            op=operation_name(node.op_type, node.domain, attributes),
            inputs=shapes,
            outputs=outputs,
            weights=weights,
            kernel=window,
            strides=tuple(attributes.get("strides", ones)),
            dilations=tuple(attributes.get("dilations", ones)),
            pads=tuple(attributes.get("pads", zeros)),
            groups=groups,
            activation=str(attributes.get("activation", "")),
            fused_add=is_convolution and len(node.input) > 3 and bool(node.input[3]),
            dtype=self._dtype(node),
            attributes=_dumped(rest) if rest else "",
        )

    def _mark_denormals(self, kernels: list[Kernel]) -> None:
        """Makes kernels of their own of those that meet denormal numbers."""
        counts = denormal_counts(self.compiled, self.shapes, self.contents)
        for index, node in enumerate(self.nodes):
            if node.name in counts:
                options = json.loads(kernels[index].attributes or "{}")
                options["denormals"] = counts[node.name]
                kernels[index] = replace(kernels[index], attributes=_dumped(options))

    def _shape(self, name: str) -> Shape:
        return self.told[name][0] if name in self.told else self.shapes.get(name, ())

    def _dtype(self, node: Node) -> str:
        for name in (*node.output, *node.input):
            if name in self.told:
                return self.told[name][1]
            found = self.dtypes.get(name) or self.weight_dtypes.get(name)
            if found:
                return found
        return "float32"


def _told(model: onnx.ModelProto) -> dict[str, tuple[Shape, str]]:
    """Shape and type of every tensor that a graph states."""
    graph = model.graph
    return {
        value.name: (
            tuple(side.dim_value for side in value.type.tensor_type.shape.dim),
            dtype_name(value.type.tensor_type.elem_type),
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def _dumped(options: Mapping[str, Any]) -> str:
    return _ENCODER.encode(options)


def _multiplied(left: Shape, right: Shape, attributes: Mapping[str, Any]) -> Shape:
    """Output shape of a matrix product whose sides may be read transposed."""
    sides = []
    for shape, letter in ((left, "A"), (right, "B")):
        if len(shape) > 2 and attributes.get(f"transBatch{letter}"):
            shape = (*shape[1:-1], shape[0], shape[-1])
        if len(shape) > 1 and attributes.get(f"trans{letter}"):
            shape = (*shape[:-2], shape[-1], shape[-2])
        sides.append(shape)
    left, right = sides
    batch = max(left[:-2], right[:-2], key=len)
    return (*batch, *left[-2:-1], *right[-1:])


def _convolved(shape: Shape, channels: int, attributes: Mapping[str, Any]) -> Shape:
    """Output shape of a convolution or pooling window over an image."""
    window = attributes.get("kernel_shape", (1, 1))
    strides = attributes.get("strides", (1, 1))
    dilations = attributes.get("dilations", (1, 1))
    pads = attributes.get("pads", (0, 0, 0, 0))
    sides = []
    for i in (0, 1):
        reach = dilations[i] * (window[i] - 1) + 1
        sides.append((shape[2 + i] + pads[i] + pads[2 + i] - reach) // strides[i] + 1)
    return (shape[0], channels, *sides)
