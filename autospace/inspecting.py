"""What is in a file: spaces, architectures, checkpoints, device cards and ONNX models, as data.

The kind is read from the content, never from the name. Everything comes back as plain JSON
values, so that the terminal, ``--json`` and the report show the same figures.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autospace.files import read_document
from devices.errors import AutospaceError, InvalidInputError

if TYPE_CHECKING:
    import onnx

    from autospace.space import Architecture, SearchSpace

__all__ = [
    "describe_architecture",
    "describe_space",
    "file_kind",
    "inspect_file",
    "layer_table",
    "network_of",
    "table_csv",
    "times_by_owner",
]

_SQLITE = b"SQLite format 3\x00"
_WANTED = "a space, an architecture, a checkpoint, a device card or an ONNX model"
_RELEASED = {"ProxylessNASNets": "architecture", "SuperProxylessNASNets": "space"}
_FORMATS = {"autospace.architecture": "architecture", "autospace.space": "space"}
_HEADER_LIMIT = 100_000_000
"""safetensors refuses longer headers than this, too."""


def inspect_file(path: Path) -> dict[str, Any]:
    """What is in a file.

    Args:
        path: of a space or architecture (ours or the released files), a checkpoint, a device card
            or an ONNX model.

    Returns:
        A JSON object; ``kind`` is ``space``, ``architecture``, ``checkpoint``, ``card`` or
        ``onnx``, and networks have ``layers``, a row for each part with its multiply-adds.

    Raises:
        InvalidInputError: missing, a folder, empty, truncated, damaged or of a foreign kind.
    """
    kind = file_kind(path)
    try:
        found = _READERS[kind](path)
    except AutospaceError:
        raise
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        ArithmeticError,
        RecursionError,
        OSError,
    ) as error:
        # A hostile or damaged file can break a reader anywhere; the user needs one line.
        raise InvalidInputError(
            f"{path}: damaged {kind} file ({type(error).__name__}); make it again"
        ) from error
    return {"kind": kind, "file": path.name, **found}


def file_kind(path: Path) -> str:
    """The kind of a file by its first bytes and, for JSON, its format field.

    Raises:
        InvalidInputError: missing, a folder, empty, unreadable, or of no known kind.
    """
    if path.is_dir():
        raise InvalidInputError(f"{path}: is a folder; name one file: {_WANTED}")
    try:
        with path.open("rb") as file:
            head = file.read(64)
            size = file.seek(0, 2)
    except FileNotFoundError:
        raise InvalidInputError(f"{path}: no such file; expected {_WANTED}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise InvalidInputError(f"{path}: cannot be read ({reason})") from None
    if not head.strip():
        raise InvalidInputError(f"{path}: empty; expected {_WANTED}")
    if head.startswith(_SQLITE):
        return "card"
    if len(head) > 8 and head[8:9] == b"{":
        length = int.from_bytes(head[:8], "little")
        if length <= _HEADER_LIMIT:
            if length + 8 > size:
                raise InvalidInputError(f"{path}: truncated checkpoint; copy or make it again")
            return "checkpoint"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        return _json_kind(path)
    # ONNX has no magic bytes: a protobuf message that begins with one of the model's own fields.
    if head[0] in (0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72):
        return "onnx"
    raise InvalidInputError(f"{path}: none of autospace's files; expected {_WANTED}")


def _json_kind(path: Path) -> str:
    document = _document(path)
    for field, kinds in (("format", _FORMATS), ("name", _RELEASED)):
        value = document.get(field)
        if isinstance(value, str) and value in kinds:
            return kinds[value]
    raise InvalidInputError(f"{path}: a JSON file of another kind; expected {_WANTED}")


def _document(path: Path) -> dict[str, Any]:
    try:
        return read_document(path, _WANTED)
    except ValueError:  # a number with thousands of digits
        raise InvalidInputError(f"{path}: not valid JSON; expected {_WANTED}") from None


# -- spaces and architectures ---------------------------------------------------------------------


def _read_space(path: Path) -> dict[str, Any]:
    from autospace.space import SearchSpace

    return describe_space(SearchSpace.load(path))


def _read_architecture(path: Path) -> dict[str, Any]:
    from autospace.space import Architecture

    return describe_architecture(Architecture.load(path))


def describe_space(space: SearchSpace) -> dict[str, Any]:
    """A space as plain data.

    Args:
        space: what to describe.

    Returns:
        A JSON object: size, hash, cost of the smallest and largest network, and for each layer its
        cells with label, matrix, fitness, and multiply-adds and parameters over the layer's blocks.
    """
    from autospace.cost import MaddsCost
    from autospace.genotype import REFERENCE_CELLS
    from autospace.graph import block_nodes

    skeleton = space.skeleton
    shapes = skeleton.blocks
    table = MaddsCost(skeleton, space.kernel_reading).table(space.candidates_by_block)
    layers = []
    for layer, cells in enumerate(space.layers):
        blocks = [index for index in range(len(shapes)) if skeleton.layer_of(index) == layer]
        rows = []
        for place, cell in enumerate(cells):
            nodes = [
                node
                for index in blocks
                for node in block_nodes(cell, shapes[index], reading=space.kernel_reading)
            ]
            rows.append(
                {
                    "rank": place + 1,
                    "label": cell.label,
                    "hash": cell.hash,
                    "reference": cell in REFERENCE_CELLS,
                    "fitness": space.fitness[layer][place] if space.fitness else None,
                    "params": sum(node.params for node in nodes),
                    "madds": sum(node.madds for node in nodes),
                    "matrix": cell.matrix(),
                }
            )
        layers.append({"layer": layer, "blocks": blocks, "cells": rows})
    return {
        "hash": space.hash,
        "skeleton": skeleton.to_json(),
        "kernel_reading": space.kernel_reading,
        "blocks": len(shapes),
        "cells": sum(len(cells) for cells in space.layers),
        "networks_log10": sum(math.log10(len(own)) for own in space.candidates_by_block),
        "smallest_madds": round(table.smallest),
        "largest_madds": round(table.largest),
        "layers": layers,
        "provenance": dict(space.provenance),
    }


def describe_architecture(architecture: Architecture) -> dict[str, Any]:
    """An architecture as plain data: hash, counts and the table of `layer_table`."""
    return {
        "hash": architecture.hash,
        "skeleton": architecture.skeleton.to_json(),
        "kernel_reading": architecture.kernel_reading,
        "blocks": [block.label for block in architecture.blocks],
        "params": architecture.params,
        "madds": architecture.madds,
        "layers": layer_table(architecture),
        "provenance": dict(architecture.provenance),
    }


def times_by_owner(prediction: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of each part of a network, from the JSON of a prediction.

    Args:
        prediction: as `latency.Prediction.to_json` writes it.

    Returns:
        By part: ``stem``, ``block0`` …; what belongs to none is under ``other``.
    """
    from autospace.onnx_export import owner_of

    times: dict[str, float] = {}
    for kernel in prediction.get("kernels", ()):
        owner = owner_of(kernel.get("nodes", ())) or "other"
        times[owner] = times.get(owner, 0.0) + float(kernel["latency_ms"])
    return times


def layer_table(
    architecture: Architecture, times_ms: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """One row for each part of a network: stem, blocks, head and classifier.

    Args:
        architecture: the network.
        times_ms: of each part, as `times_by_owner` gives them; adds a column.

    Returns:
        Rows with ``part``, ``label``, ``in_channels``, ``out_channels``, ``in_size``, ``stride``,
        ``params`` and ``madds``; the last two sum to the network's.
    """
    from autospace.genotype import MBConv

    skeleton = architecture.skeleton
    labels = {
        "stem": "conv 3x3",
        "first": MBConv(3, 1).label,
        "head": "conv 1x1",
        "pool": "global average",
        "classifier": "linear",
    }
    owned: dict[str, list[Any]] = {}
    for node in architecture.nodes:
        owned.setdefault(node.name.partition("/")[0], []).append(node)
    blocks = [f"block{index}" for index in range(len(architecture.blocks))]
    rows = []
    for part in ["stem", "first", *blocks, "head", "pool", "classifier"]:
        nodes = owned.get(part, [])
        if part in blocks:
            index = int(part[5:])
            shape = skeleton.blocks[index]
            label = architecture.blocks[index].label
            ends = (shape.in_channels, shape.out_channels, shape.in_size, shape.stride)
        elif nodes:
            label = labels[part]
            size_in, size_out = nodes[0].in_shape[1], nodes[-1].shape[1]
            stride = -(-size_in // size_out) if part == "stem" else 1
            ends = (nodes[0].in_shape[0], nodes[-1].shape[0], size_in, stride)
        else:
            continue
        row = {
            "part": part,
            "label": label,
            **dict(zip(("in_channels", "out_channels", "in_size", "stride"), ends, strict=True)),
            "params": sum(node.params for node in nodes),
            "madds": sum(node.madds for node in nodes),
        }
        if times_ms is not None:
            row["latency_ms"] = times_ms.get(part, 0.0)
        rows.append(row)
    return rows


def table_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV text, with the first row's keys as the heading; empty for no rows."""
    listed = list(rows)
    if not listed:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(listed[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    return text.getvalue()


# -- checkpoints and cards ------------------------------------------------------------------------


def _checkpoint_header(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Kind and meta of a checkpoint, and the shapes of its tensors, which are not loaded."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as opened:
            header = json.loads((opened.metadata() or {}).get("autospace", "null"))
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
    except SafetensorError as error:
        reason = " ".join(str(error).split())[:120]
        raise InvalidInputError(
            f"{path}: not a readable checkpoint ({reason}); copy or make it again"
        ) from None
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise InvalidInputError(f"{path}: a safetensors file of another program")
    meta = header.get("meta")
    return {"kind": header["kind"], "meta": meta if isinstance(meta, dict) else {}}, shapes


def _read_checkpoint(path: Path) -> dict[str, Any]:
    from autospace.space import Architecture

    header, shapes = _checkpoint_header(path)
    meta = dict(header["meta"])
    document = meta.pop("architecture", None)
    found: dict[str, Any] = {
        "of": header["kind"].removeprefix("autospace."),
        "tensors": len(shapes),
        "values": sum(math.prod(shape) for shape in shapes.values()),
    }
    if isinstance(document, dict):
        try:
            network = describe_architecture(Architecture.from_json(document))
        except InvalidInputError as error:
            raise InvalidInputError(f"{path}: damaged checkpoint; {error}") from None
        found |= network
    plain = {k: v for k, v in meta.items() if isinstance(v, str | int | float | bool)}
    return {**found, "meta": plain}


def _read_card(path: Path) -> dict[str, Any]:
    from latency.card import DeviceCard
    from latency.table import KernelTable

    card = DeviceCard.open(path)
    summary = card.summary()
    summary.pop("path", None)
    return {**summary, "table": list(KernelTable.from_card(card).rows())}


def network_of(path: Path, kind: str) -> Architecture | None:
    """The network that a file holds or carries along; None where there is none.

    Args:
        path: a file that `inspect_file` accepted.
        kind: what it found.
    """
    from autospace.space import Architecture

    if kind == "architecture":
        return Architecture.load(path)
    if kind == "onnx":
        from autospace.onnx_export import architecture_of_onnx
        from devices.onnx_files import read_onnx

        return architecture_of_onnx(read_onnx(path, weights=False))
    if kind == "checkpoint":
        document = _checkpoint_header(path)[0]["meta"].get("architecture")
        return Architecture.from_json(document) if isinstance(document, dict) else None
    return None


# -- ONNX -----------------------------------------------------------------------------------------


def _read_onnx(path: Path) -> dict[str, Any]:
    from autospace.onnx_export import architecture_of_onnx
    from devices.onnx_files import read_onnx

    try:
        model = read_onnx(path, weights=False)
    except InvalidInputError as error:
        with path.open("rb") as file:
            if file.read(1) == b"\x08":
                raise
        raise InvalidInputError(f"{path}: none of autospace's files; expected {_WANTED}") from error
    shapes = _shapes(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    batch = _batch(shapes.get(inputs[0].name) if inputs else None)
    layers = [
        row for node in model.graph.node if (row := _onnx_layer(node, shapes, batch)) is not None
    ]
    unknown = sum(row["madds"] is None for row in layers)
    architecture = architecture_of_onnx(model)
    return {
        "producer": " ".join((model.producer_name, model.producer_version)).strip(),
        "ir_version": model.ir_version,
        "opsets": {item.domain or "ai.onnx": item.version for item in model.opset_import},
        "inputs": [_value(value.name, shapes) for value in inputs],
        "outputs": [_value(value.name, shapes) for value in model.graph.output],
        "nodes": len(model.graph.node),
        "ops": dict(Counter(node.op_type for node in model.graph.node).most_common()),
        "batch": batch,
        "params": _onnx_params(model),
        "madds": sum(row["madds"] or 0 for row in layers),
        "uncounted": unknown,
        "layers": layers,
        "architecture": None if architecture is None else describe_architecture(architecture),
    }


_Shape = tuple[int | str, ...]


def _shapes(model: onnx.ModelProto) -> dict[str, _Shape]:
    """Shapes of the tensors, as far as they can be worked out; symbolic sizes by their names."""
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # the checker's own exceptions share no base class; the rest still stands
        graph = model.graph
    shapes: dict[str, _Shape] = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
                for dim in value.type.tensor_type.shape.dim
            )
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    return shapes


def _batch(shape: _Shape | None) -> int:
    first = shape[0] if shape and len(shape) == 4 else 1
    return first if isinstance(first, int) and first > 0 else 1


def _value(name: str, shapes: Mapping[str, _Shape]) -> dict[str, Any]:
    return {"name": name, "shape": list(shapes.get(name, ()))}


def _product(sizes: Sequence[int | str]) -> int | None:
    product = 1
    for size in sizes:
        if not isinstance(size, int) or size < 0:
            return None
        product *= size
    return product


def _onnx_layer(
    node: onnx.NodeProto, shapes: Mapping[str, _Shape], batch: int
) -> dict[str, Any] | None:
    """A row for convolution, Gemm and MatMul; multiply-adds of one image, None where unknown."""
    op = node.op_type
    if op not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or len(node.input) < 2:
        return None
    first, second = shapes.get(node.input[0]), shapes.get(node.input[1])
    out = shapes.get(node.output[0]) if node.output else None
    flags = {a.name: a for a in node.attribute}
    strides = list(flags["strides"].ints) if "strides" in flags else []
    madds: int | None = None
    if op == "Conv" and second and out:
        madds = _times(_product(second), _product(out[2:]))
    elif op == "ConvTranspose" and second and first:
        madds = _times(_product(second), _product(first[2:]))
    elif op in ("Gemm", "MatMul") and first and second and out:
        turned = op == "Gemm" and "transA" in flags and flags["transA"].i
        inner = first[0] if turned else first[-1]
        rows = (1, *out[1:]) if isinstance(out[0], str) else out
        total = _times(_product([inner]), _product(rows))
        whole = total is not None and isinstance(out[0], int) and out[0] == batch
        madds = total // batch if total is not None and whole else total
    known = second if second is not None else ()
    return {
        "name": node.name or (node.output[0] if node.output else ""),
        "op": op,
        "input": list(first or ()),
        "weight": list(known),
        "output": list(out or ()),
        "stride": strides[0] if strides else 1,
        "groups": flags["group"].i if "group" in flags else 1,
        "madds": madds,
    }


def _times(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first * second


def _onnx_params(model: onnx.ModelProto) -> int:
    """Entries of the weights; scalars, scales, zero points and running statistics are none."""
    import onnx

    kinds = onnx.TensorProto
    counted = {
        kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE, kinds.INT8, kinds.UINT8,
    }  # fmt: skip
    skipped: set[str] = set()
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            skipped.update(node.input[1:])
        elif node.op_type == "BatchNormalization":
            skipped.update(node.input[3:])
    tensors = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output:
            tensors += [(node.output[0], a.t) for a in node.attribute if a.name == "value"]
    return sum(
        math.prod(tensor.dims)
        for name, tensor in tensors
        if tensor.dims and tensor.data_type in counted and name not in skipped
    )


_READERS = {
    "space": _read_space,
    "architecture": _read_architecture,
    "checkpoint": _read_checkpoint,
    "card": _read_card,
    "onnx": _read_onnx,
}
