"""Networks as ONNX files, built node by node from the graph: one exporter, fixed.

Batch norm is folded into the convolutions (they are what runs on a device), nodes carry the
names of `autospace.graph` (``block3/expand/Conv``), and no tracing is involved. So the same
network always gives the same file, in milliseconds, and a kernel that a runtime reports can be
traced to its layer. What the file computes is then compared with PyTorch on real inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autospace.files import canonical_json, replacing
from autospace.graph import INPUT, Node
from devices.errors import AutospaceError, InvalidInputError

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from autospace.network import NodeGraph
    from autospace.space import Architecture

__all__ = [
    "ExportCheck",
    "FoldedWeights",
    "architecture_metadata",
    "architecture_of_onnx",
    "build_onnx",
    "check_outputs",
    "compared",
    "filler_weights",
    "folded_weights",
    "onnx_for_cost",
    "outputs_of",
    "owner_of",
    "whole_batches",
    "write_onnx",
]

OPSET = 17
IR_VERSION = 9
TOLERANCE = 1e-3
OUTPUT = "logits"
_METADATA_KEY = "autospace.architecture"

FoldedWeights = Mapping[str, tuple["NDArray[np.float32]", "NDArray[np.float32]"]]
"""Weight and bias of every convolution and linear layer, by node name."""


@dataclass(frozen=True)
class ExportCheck:
    """How far the exported file's outputs are from PyTorch's.

    Attributes:
        images: how many were compared.
        max_error: largest absolute difference of a logit.
        relative_error: the same, divided by the largest absolute logit.
        agreement: share of images whose predicted class is the same.
    """

    images: int
    max_error: float
    relative_error: float
    agreement: float

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return {
            "images": self.images,
            "max_error": self.max_error,
            "relative_error": self.relative_error,
            "agreement": self.agreement,
        }


def _weight_shape(node: Node) -> tuple[int, ...]:
    if node.kind == "linear":
        return (node.shape[0], node.in_shape[0])
    return (node.shape[0], node.in_shape[0] // node.groups, node.kernel, node.kernel)


def owner_of(names: Sequence[str]) -> str | None:
    """The part of a network that a kernel works for, by the names of the nodes that it covers.

    >>> owner_of(["block3/expand/Conv", "block3/expand/Clip"])
    'block3'
    """
    return names[0].partition("/")[0] if names and names[0] else None


_POOL = 65_537
"""Numbers that filler weights repeat: drawing millions takes longer than measuring."""


def filler_weights(nodes: Sequence[Node]) -> FoldedWeights:
    """Arbitrary weights for measuring and compiling: values do not change a latency.

    But no two are alike, for some runtimes work out once what occurs twice.
    """
    pool = np.random.default_rng(0).normal(0, 0.05, 2 * _POOL).astype(np.float32)
    layers = [node for node in nodes if node.kind in ("conv", "linear")]
    found = {}
    for place, node in enumerate(layers):
        own = pool[place % _POOL :][:_POOL]
        found[node.name] = (np.resize(own, _weight_shape(node)), np.resize(own, node.shape[0]))
    return found


def folded_weights(network: NodeGraph) -> FoldedWeights:
    """A trained network's weights, with batch norm folded into the convolutions.

    Args:
        network: as `autospace.network.build_network` makes it, with running statistics.
    """
    from torch import nn

    from autospace.network import ConvBN

    weights: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    for name, layer in network.layers.items():
        if isinstance(layer, ConvBN):
            norm = layer.norm
            assert norm.running_var is not None and norm.running_mean is not None
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            weight = layer.conv.weight.double() * scale[:, None, None, None]
            bias = norm.bias.double() - norm.running_mean.double() * scale
        else:
            assert isinstance(layer, nn.Linear)
            weight, bias = layer.weight.double(), layer.bias.double()
        weights[name] = (
            weight.detach().contiguous().cpu().numpy().astype(np.float32),
            bias.detach().cpu().numpy().astype(np.float32),
        )
    return weights


def build_onnx(
    nodes: Sequence[Node],
    weights: FoldedWeights,
    *,
    batch: int = 1,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """An ONNX model of a network.

    Args:
        nodes: the whole network, ``input`` to ``classifier``.
        weights: of every convolution and linear layer.
        batch: the fixed batch size.
        metadata: kept in the file.

    Returns:
        A model from ``input`` of shape ``(batch, channels, size, size)`` to ``logits`` of shape
        ``(batch, classes)``.
    """
    from onnx import TensorProto, helper, numpy_helper

    made: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    constants = {"relu6/min": 0.0, "relu6/max": 6.0}
    if any(node.relu6 for node in nodes):
        initializers += [
            numpy_helper.from_array(np.array(value, np.float32), name)
            for name, value in constants.items()
        ]

    def emit(op: str, node: Node, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        made.append(
            helper.make_node(op, list(inputs), [output], name=f"{node.name}/{op}", **attributes)
        )

    for node in nodes:
        output = OUTPUT if node is nodes[-1] else node.name
        if node.kind in ("conv", "linear"):
            names = (f"{node.name}/weight", f"{node.name}/bias")
            initializers += [
                numpy_helper.from_array(np.ascontiguousarray(array), name)
                for array, name in zip(weights[node.name], names, strict=True)
            ]
        if node.kind == "conv":
            inner = f"{node.name}/linear" if node.relu6 else output
            emit(
                "Conv",
                node,
                (node.inputs[0], *names),
                inner,
                kernel_shape=[node.kernel] * 2,
                strides=[node.stride] * 2,
                dilations=[node.dilation] * 2,
                pads=[node.padding] * 4,
                group=node.groups,
            )
            if node.relu6:
                emit("Clip", node, (inner, *constants), output)
        elif node.kind == "add":
            emit("Add", node, node.inputs, output)
        elif node.kind == "gate":
            pooled, gate = f"{node.name}/pooled", f"{node.name}/sigmoid"
            emit("GlobalAveragePool", node, node.inputs[1:], pooled)
            emit("Sigmoid", node, (pooled,), gate)
            emit("Mul", node, (node.inputs[0], gate), output)
        elif node.kind == "average_pool":
            emit(
                "AveragePool",
                node,
                node.inputs,
                output,
                kernel_shape=[node.kernel] * 2,
                strides=[node.stride] * 2,
                pads=[node.padding] * 4,
                count_include_pad=0,
            )
        elif node.kind == "global_pool":
            emit("GlobalAveragePool", node, node.inputs, output)
        else:
            flat = f"{node.name}/flat"
            emit("Flatten", node, node.inputs, flat, axis=1)
            emit("Gemm", node, (flat, *names), output, transB=1)
    graph = helper.make_graph(
        made,
        "autospace",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [batch, *nodes[0].in_shape])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [batch, nodes[-1].shape[0]])],
        initializers,
    )
    model = helper.make_model(
        graph,
        producer_name="autospace",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    for key, value in sorted((metadata or {}).items()):
        model.metadata_props.add(key=key, value=value)
    return model


def architecture_metadata(architecture: Architecture) -> dict[str, str]:
    """The metadata entry from which `architecture_of_onnx` reads the architecture back."""
    return {_METADATA_KEY: canonical_json(architecture.to_json())}


def onnx_for_cost(architecture: Architecture, batch: int = 1) -> onnx.ModelProto:
    """A model with arbitrary weights, for compiling, predicting and measuring."""
    return build_onnx(
        architecture.nodes,
        filler_weights(architecture.nodes),
        batch=batch,
        metadata=architecture_metadata(architecture),
    )


def architecture_of_onnx(model: onnx.ModelProto) -> Architecture | None:
    """The architecture that an exported file carries in its metadata; None for other files."""
    from autospace.space import Architecture

    for entry in model.metadata_props:
        if entry.key == _METADATA_KEY:
            try:
                return Architecture.from_json(json.loads(entry.value))
            except (json.JSONDecodeError, InvalidInputError):
                return None
    return None


def whole_batches(images: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
    """As many images as make whole batches, at least one; repeated where there are too few."""
    usable = max(batch, len(images) // batch * batch)
    if len(images) < usable:
        images = np.resize(images, (usable, *images.shape[1:]))
    return images[:usable]


def outputs_of(network: NodeGraph, images: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
    """PyTorch's logits, shape ``(n, classes)``.

    Args:
        network: is set to evaluate.
        images: shape ``(n, channels, size, size)``, a whole number of batches.
        batch: images at a time.
    """
    import torch

    network.eval()
    with torch.no_grad():
        chunks = np.split(images, len(images) // batch)
        found = [network(torch.from_numpy(np.ascontiguousarray(chunk))) for chunk in chunks]
        return np.asarray(torch.cat(found).numpy())


def check_outputs(
    network: NodeGraph, model: onnx.ModelProto, images: NDArray[np.float32], batch: int
) -> ExportCheck:
    """Runs the same images through PyTorch and through ONNX Runtime.

    Args:
        network: the PyTorch network.
        model: the exported model.
        images: shape ``(n, channels, size, size)``; a whole number of batches is used.
        batch: the model's batch size.

    Raises:
        AutospaceError: the largest relative difference is above the tolerance of 1e-3.
    """
    from devices.runtimes import get_runtime
    from devices.runtimes.base import RuntimeSettings

    runtime = get_runtime("onnxruntime")
    settings = RuntimeSettings(batch=batch)
    images = whole_batches(images, batch)
    expected = outputs_of(network, images, batch)
    compiled = runtime.compile(model.SerializeToString(), settings)
    with runtime.load(compiled, settings) as session:
        found = np.concatenate(
            [session.infer({INPUT: chunk})[0] for chunk in np.split(images, len(images) // batch)]
        )
    return compared(found, expected, TOLERANCE, "export")


def compared(
    found: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float, what: str
) -> ExportCheck:
    """How far a file's logits are from PyTorch's.

    Args:
        found: shape ``(n, classes)``.
        expected: PyTorch's, of the same shape.
        tolerance: as a part of the largest logit.
        what: what was done, for the message.

    Raises:
        AutospaceError: they differ by more than the tolerance; the message says where.
    """
    off = np.abs(found - expected)
    off[~np.isfinite(found)] = np.inf
    largest = float(off.max())
    relative = largest / max(float(np.abs(expected).max()), 1e-6)
    if not relative <= tolerance:
        image, logit = (int(i) for i in np.unravel_index(off.argmax(), off.shape))
        raise AutospaceError(
            f"{what}: logit {logit} of image {image} is {found[image, logit]:.4g} where PyTorch "
            f"has {expected[image, logit]:.4g}; outputs differ from PyTorch's by {relative:.2g} "
            f"of the largest logit, more than {tolerance:g}; the file was not written"
        )
    same = found.argmax(1) == expected.argmax(1)
    return ExportCheck(len(found), largest, relative, float(same.mean()))


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Checks a model with the ONNX checker and writes it at once.

    Raises:
        UsageError: the file cannot be written.
    """
    import onnx

    onnx.checker.check_model(model)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
