"""ONNX files at the edge: read, checked, and given fixed shapes, with one-line errors.

Every runtime that converts from ONNX goes through here, so that a broken file, a dynamic dimension
or a foreign batch size is refused in the same words everywhere. Weights that a model keeps in other
files are taken in here and nowhere else, and only from the model's own folder: a file from a
stranger must not be able to name any other file of this machine.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, TypeVar

from devices.errors import InvalidInputError
from devices.onnx_wire import split_weights

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

__all__ = [
    "copied",
    "dtype_name",
    "fix_shapes",
    "inferred",
    "input_specs",
    "name_nodes",
    "one_line",
    "opset_of",
    "parse_onnx",
    "parse_skeleton",
    "random_inputs",
    "read_onnx",
    "shapes_by_model",
    "to_bytes",
]

InputSpec = tuple[str, tuple[int, ...], str]
Shape = tuple[int, ...]

_Key = TypeVar("_Key")

LARGEST_BYTES = 2**31 - 1
"""Of a model with its weights: where the format itself ends."""
LARGEST_INPUT = 2**29
"""Numbers in one input; more would take gigabytes for a random image."""
_USUAL_SIDE = 224
_USUAL_LENGTH = 128
_PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}


def one_line(error: BaseException, limit: int = 200) -> str:
    """What an exception says, on one line and cut to `limit` characters."""
    words = "".join(c if c.isprintable() else " " for c in str(error)).split()
    text = " ".join(words) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def parse_onnx(data: bytes, label: str = "model") -> onnx.ModelProto:
    """An ONNX model from its serialised form.

    Raises:
        InvalidInputError: the bytes are no ONNX model, or one without nodes, or its weights are in
            other files.
    """
    model = _parse(data, label)
    for tensor in _external(model):
        raise InvalidInputError(
            f"{label}: weights {tensor.name!r} are in another file; read the model from its path, "
            "so that they are found."
        )
    return model


def parse_skeleton(
    data: bytes, label: str = "model"
) -> tuple[onnx.ModelProto, dict[str, memoryview]]:
    """An ONNX model without the numbers of its large weights, wherever these are.

    Returns:
        The model, whose large weights have shapes and types but no content; and the raw content of
        those that the bytes hold, by name.

    Raises:
        InvalidInputError: the bytes are no ONNX model, or one without nodes.
    """
    try:
        light, weights = split_weights(data)
    except ValueError:
        light, weights = data, {}  # the parser says what is wrong
    return _parse(light, label), weights


def read_onnx(path: str | Path, *, weights: bool = True) -> onnx.ModelProto:
    """An ONNX model from a file, external weights included.

    Args:
        path: of the file; files with weights have to be in its folder or below.
        weights: False checks the external weights, but leaves them where they are.

    Raises:
        InvalidInputError: the file is missing or unreadable, or is no ONNX model; or a file with
            weights is missing, too short, or outside the model's folder.
    """
    path = Path(path)
    data = _file_bytes(path)
    model = _parse(data, str(path))
    folder = os.path.realpath(path.parent)
    pieces = [(tensor, _find(tensor, folder, str(path))) for tensor in _external(model)]
    total = len(data) + sum(length for _, (_, _, length) in pieces)
    if weights and total > LARGEST_BYTES:
        raise InvalidInputError(
            f"{path}: {total / 1e9:.1f} GB with its weights; models above 2 GB are not supported."
        )
    for tensor, (file, offset, length) in pieces if weights else ():
        try:
            with open(file, "rb") as stream:
                stream.seek(offset)
                raw = stream.read(length)
        except OSError as error:
            raise InvalidInputError(
                f"{path}: weights {tensor.name!r} cannot be read from {file} ({error.strerror}); "
                "make the file readable."
            ) from error
        tensor.raw_data = raw
        tensor.ClearField("data_location")
        del tensor.external_data[:]
    return model


def to_bytes(model: onnx.ModelProto, label: str = "model") -> bytes:
    """The serialised form of a model.

    Raises:
        InvalidInputError: the model is larger than the format allows.
    """
    try:
        data: bytes = model.SerializeToString()
    except Exception as error:  # ValueError or protobuf's own, by its version
        raise _too_large(label) from error
    return data


def fix_shapes(
    model: onnx.ModelProto, batch: int, shapes: Mapping[str, Sequence[int]] | None = None
) -> onnx.ModelProto:
    """The model with every input of a fixed shape; the given model is left alone.

    A symbolic first dimension becomes `batch`. Other symbolic dimensions need an entry in `shapes`,
    or the name of a dimension that an entry fixes: ONNX gives equal sizes equal names. What the
    file says about the shapes behind the inputs is then dropped, to be inferred again.

    Args:
        model: any ONNX model.
        batch: images in one run.
        shapes: shapes of inputs by name; an image's (4 dimensions) has to begin with `batch`.

    Returns:
        The same object when nothing was symbolic, else a copy.

    Raises:
        InvalidInputError: a dimension other than the first of an input is symbolic, an input is no
            tensor or has no shape, the model's fixed batch is not `batch`, there are no inputs, or
            `shapes` contradicts the model.
    """
    inputs = {value.name: value for value in _true_inputs(model)}
    if not inputs:
        raise InvalidInputError(
            "model: has no inputs, so that there is nothing to run; export it with its inputs."
        )
    given = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    for name in given:
        if name not in inputs:
            raise InvalidInputError(
                f"model input {name!r}: is not there; its inputs are {_listed(inputs)}."
            )
    for value in inputs.values():
        _check_tensor(value)
        if value.name in given:
            _check_given(value, given[value.name])
        _check_batch(value, batch, given.get(value.name))
    named = _named_sizes(inputs, given)
    sizes = {
        name: given[name] if name in given else _sizes(value, batch, named)
        for name, value in inputs.items()
    }
    open_inputs = [
        value
        for name, value in inputs.items()
        if name not in given and (0 in sizes[name] or not _ranked(value))
    ]
    if open_inputs:
        raise InvalidInputError(_needs_shapes(open_inputs, sizes, batch))
    for name, size in sizes.items():
        if math.prod(size) > LARGEST_INPUT:
            raise InvalidInputError(
                f"model input {name!r}: {_written(size)} is more than {LARGEST_INPUT} numbers, too "
                "many for timing; give a smaller shape."
            )
    if all(_ranked(value) and _stated(value) == sizes[name] for name, value in inputs.items()):
        return model
    copy = copied(model)
    for value in _true_inputs(copy):
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for length in sizes[value.name]:
            shape.dim.add().dim_value = length
    _forget_shapes(copy.graph)
    return copy


def shapes_by_model(
    models: Mapping[_Key, onnx.ModelProto], shapes: Mapping[str, Sequence[int]]
) -> dict[_Key, dict[str, Shape]]:
    """Which of the given shapes belong to which model: to each that has the input.

    Args:
        models: by any key.
        shapes: by the input's name.

    Returns:
        For each model what `fix_shapes` takes.

    Raises:
        InvalidInputError: no model has an input of that name.
    """
    names = {key: {value.name for value in _true_inputs(model)} for key, model in models.items()}
    for name in shapes:
        if not any(name in own for own in names.values()):
            known = dict.fromkeys(v.name for model in models.values() for v in _true_inputs(model))
            raise InvalidInputError(
                f"--shape {name!r}: no model given has such an input; there are "
                f"{_listed(known) or 'none at all'}."
            )
    return {
        key: {name: tuple(shape) for name, shape in shapes.items() if name in own}
        for key, own in names.items()
    }


@cache
def dtype_name(element_type: int) -> str:
    """Numpy's name of an ONNX element type.

    Raises:
        KeyError: numpy has no such type.
        ValueError: the same.
    """
    import onnx

    return str(onnx.helper.tensor_dtype_to_np_dtype(element_type).name)


def name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a unique name on every node; the given model is left alone.

    Times are reported by node name, so a name that is missing or used twice would lose some. A node
    without one is called after its first output, which is unique by ONNX's rules.

    Args:
        model: any ONNX model.

    Returns:
        The same object when all names were there and unique, else a copy.
    """
    names = [node.name for node in model.graph.node]
    if all(names) and len(set(names)) == len(names):
        return model
    copy = copied(model)
    seen: set[str] = set()
    for index, node in enumerate(copy.graph.node):
        name = node.name or next((out for out in node.output if out), node.op_type)
        node.name = name if name not in seen else f"{name}#{index}"
        seen.add(node.name)
    return copy


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the shapes of everything between inputs and outputs.

    Raises:
        InvalidInputError: they contradict each other.
    """
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:  # InferenceError, or the parser's own
        raise InvalidInputError(f"model: its shapes are wrong ({one_line(error)}).") from error


def opset_of(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operations; 0 where none is imported."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """Name, shape and numpy type name of each input of a model with fixed shapes.

    Raises:
        InvalidInputError: an input holds strings, or is of a type that numpy does not have.
    """
    import onnx

    specs = []
    for value in _true_inputs(model):
        tensor = value.type.tensor_type
        if tensor.elem_type == onnx.TensorProto.STRING:
            raise InvalidInputError(
                f"model input {value.name!r}: holds strings, which cannot be made up for timing; "
                "export the part behind it."
            )
        try:
            dtype = dtype_name(tensor.elem_type)
        except (KeyError, ValueError) as error:
            raise InvalidInputError(
                f"model input {value.name!r}: element type {tensor.elem_type} is not supported; "
                "export it with float32."
            ) from error
        specs.append((value.name, tuple(d.dim_value for d in tensor.shape.dim), str(dtype)))
    return tuple(specs)


def ordered_inputs(
    specs: tuple[InputSpec, ...], given: Mapping[str, npt.NDArray[np.generic]]
) -> list[npt.NDArray[np.generic]]:
    """The given arrays in the model's order.

    Args:
        specs: as from `input_specs`.
        given: an array for each input, by its name.

    Raises:
        InvalidInputError: one is missing, or has another shape or type.
    """
    for name, shape, dtype in specs:
        array = given.get(name)
        if array is None or array.shape != shape or array.dtype.name != dtype:
            found = "missing" if array is None else f"{array.dtype.name} {array.shape}"
            raise InvalidInputError(
                f"inputs {sorted(given)}: {name!r} is {found}; give {dtype} {shape}."
            )
    return [given[name] for name, _, _ in specs]


def random_inputs(
    specs: tuple[InputSpec, ...], seed: int = 0
) -> dict[str, npt.NDArray[np.generic]]:
    """Inputs for timing: standard normal numbers, or zeros for whole-number and other types.

    Args:
        specs: as from `input_specs`.
        seed: of the one generator that draws them.

    Returns:
        One array for each input, of its shape and type.

    Raises:
        InvalidInputError: an input does not fit in memory.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for name, shape, dtype in specs:
        try:
            if np.dtype(dtype).kind == "f":
                arrays[name] = np.asarray(rng.standard_normal(shape)).astype(dtype)
            else:
                arrays[name] = np.zeros(shape, dtype=dtype)
        except MemoryError:
            raise InvalidInputError(
                f"model input {name!r}: {_written(shape)} does not fit in memory; give a smaller "
                "shape."
            ) from None
    return arrays


def _true_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs that the caller must give: older files list the weights among the inputs too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


# -- reading


def _file_bytes(path: Path) -> bytes:
    """A model's file, whole.

    Raises:
        InvalidInputError: missing, a folder, unreadable, empty, or above 2 GB.
    """
    try:
        if path.is_dir():
            raise InvalidInputError(f"{path}: is a folder; name the ONNX model in it.")
        if not path.is_file():
            raise InvalidInputError(f"{path}: no such file; give the path of an ONNX model.")
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise InvalidInputError(
                f"{path}: {size / 1e9:.1f} GB; no ONNX file is above 2 GB, and larger models are "
                "not supported."
            )
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(
            f"{path}: cannot be read ({error.strerror}); make the file readable."
        ) from error
    if not data:
        raise InvalidInputError(f"{path}: empty; export the model again.")
    return data


def _parse(data: bytes, label: str) -> onnx.ModelProto:
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # the parser's own exceptions share no base class
        raise InvalidInputError(
            f"{label}: not a readable ONNX model (truncated or foreign?); export it again."
        ) from error
    if not model.graph.node or not model.graph.output:
        raise InvalidInputError(
            f"{label}: an ONNX model without nodes or outputs, so nothing to run; export it again."
        )
    if not model.opset_import:
        raise InvalidInputError(
            f"{label}: an ONNX model that does not say its opset (truncated?); export it again."
        )
    return model


def _external(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor whose content is in another file."""
    nodes = [node for function in model.functions for node in function.node]
    for tensor in (*_graph_tensors(model.graph), *_node_tensors(nodes)):
        if tensor.data_location == tensor.EXTERNAL:
            yield tensor


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type in _PLAIN_ATTRIBUTES:
                continue
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
        for graph in _subgraphs(node):
            yield from _graph_tensors(graph)


_PLAIN_ATTRIBUTES = frozenset((1, 2, 3, 6, 7, 8))
"""Kinds of attributes that hold no tensor: numbers and strings, single and many."""


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _find(tensor: onnx.TensorProto, folder: str, label: str) -> tuple[str, int, int]:
    """File, offset and length of a tensor's content.

    Raises:
        InvalidInputError: the file is outside the folder, missing, or too short, or the entry is
            unreadable.
    """
    entry = {item.key: item.value for item in tensor.external_data}
    subject, location = f"{label}: weights {tensor.name!r}", entry.get("location", "")
    if not location or not location.isprintable():
        raise InvalidInputError(
            f"{subject} are in another file, but not said in which; export the model again."
        )
    file = os.path.realpath(os.path.join(folder, location))
    inside = file.startswith(os.path.join(folder, ""))
    if not inside or PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive:
        raise InvalidInputError(
            f"{subject} are in {location!r}, outside the model's folder, which is refused; put the "
            "file beside the model and export it so."
        )
    if not os.path.isfile(file):
        raise InvalidInputError(
            f"{subject} are in {location!r}, which is not there; copy that file into the model's "
            "folder."
        )
    numbers = [entry.get(key, default) for key, default in (("offset", "0"), ("length", ""))]
    if not all(text.isascii() and (text.isdigit() or not text) for text in numbers):
        raise InvalidInputError(
            f"{subject}: offset {numbers[0]!r} or length {numbers[1]!r} is no number of bytes; "
            "export the model again."
        )
    size = os.path.getsize(file)
    offset, needed = int(numbers[0][:19] or 0), _byte_count(tensor)
    length = int(numbers[1][:19]) if numbers[1] else max(size - offset, 0)
    if offset + length > size or (not numbers[1] and needed is not None and length < needed):
        end = offset + (length if numbers[1] else needed or 0)
        raise InvalidInputError(
            f"{subject} end at byte {end} of {location!r}, which has {size}; copy that file again, "
            "whole."
        )
    if needed is not None and length != needed:
        raise InvalidInputError(
            f"{subject} take {needed} bytes, but {length} are declared in {location!r}; export the "
            "model again."
        )
    return file, offset, length


def _byte_count(tensor: onnx.TensorProto) -> int | None:
    """Bytes that a tensor's content has to have, None where that is not known."""
    import onnx

    try:
        bits = _PACKED_BITS.get(onnx.TensorProto.DataType.Name(tensor.data_type), 0)
        bits = bits or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        count: int = (math.prod(tensor.dims) * bits + 7) // 8
    except (KeyError, ValueError):
        return None
    if tensor.data_type == onnx.TensorProto.STRING or any(size < 0 for size in tensor.dims):
        return None
    return count


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy to change.

    Raises:
        InvalidInputError: the model is larger than the format allows.
    """
    copy = type(model)()
    try:
        copy.CopyFrom(model)
    except Exception as error:  # protobuf copies through the serialised form, with its limit
        raise _too_large("model") from error
    return copy


def _too_large(label: str) -> InvalidInputError:
    return InvalidInputError(
        f"{label}: cannot be written as one ONNX file; models above 2 GB are not supported."
    )


# -- shapes


def _check_tensor(value: onnx.ValueInfoProto) -> None:
    kind = value.type.WhichOneof("value") or "value of no type"
    if kind != "tensor_type":
        name = kind.removesuffix("_type").replace("_", " ")
        article = "an" if name[0] in "aeiou" else "a"
        raise InvalidInputError(
            f"model input {value.name!r}: {article} {name}, not a tensor; only tensors can be made "
            "up for timing, so export the model with tensor inputs."
        )


def _check_given(value: onnx.ValueInfoProto, shape: Shape) -> None:
    """Refuses a given shape that the model's own contradicts."""
    given = f"model input {value.name!r}: given as {_written(shape)}"
    if any(size < 1 for size in shape):
        raise InvalidInputError(f"{given}, but every size must be 1 or more.")
    if not _ranked(value):
        return
    dims = value.type.tensor_type.shape.dim
    if len(dims) != len(shape):
        raise InvalidInputError(
            f"{given}, but the model's has {len(dims)} dimensions ({_as_stated(value)}); give "
            "one size for each."
            if dims
            else f"{given}, but it is a single number, without dimensions; leave its shape out."
        )
    for position, (dim, size) in enumerate(zip(dims, shape, strict=True)):
        batch = position == 0 and len(dims) == 4
        if not batch and dim.dim_value > 0 and dim.dim_value != size:
            raise InvalidInputError(
                f"{given}, but dimension {position} is fixed at {dim.dim_value} "
                f"({_as_stated(value)}); give that, or export the model with other sizes."
            )


def _check_batch(value: onnx.ValueInfoProto, batch: int, given: Shape | None) -> None:
    """Images have to come in the batch that was asked for."""
    stated = _stated(value)
    if len(stated) == 4 and stated[0] not in (0, batch):
        raise InvalidInputError(
            f"model input {value.name!r}: made for batch {stated[0]}, but batch {batch} was asked "
            f"for; export it with batch {batch} or a symbolic one."
        )
    if given is not None and len(given) == 4 and given[0] != batch:
        right = _written((batch, *given[1:]))
        raise InvalidInputError(
            f"model input {value.name!r}: given with batch {given[0]}, but batch {batch} was asked "
            f"for; give {right}, or profile the device with that batch."
        )


def _named_sizes(
    inputs: Mapping[str, onnx.ValueInfoProto], shapes: Mapping[str, Shape]
) -> dict[str, int]:
    """Sizes of named dimensions, as far as the given shapes fix them without contradiction."""
    found: dict[str, set[int]] = {}
    for name, shape in shapes.items():
        if _ranked(inputs[name]):
            for dim, size in zip(inputs[name].type.tensor_type.shape.dim, shape, strict=True):
                # Some exporters call every unknown size "?" or "None".
                if dim.dim_param.isidentifier() and dim.dim_param != "None":
                    found.setdefault(dim.dim_param, set()).add(size)
    return {name: min(sizes) for name, sizes in found.items() if len(sizes) == 1}


def _sizes(value: onnx.ValueInfoProto, batch: int, named: Mapping[str, int]) -> Shape:
    """An input's shape with the batch and named sizes filled in; 0 where it is not known."""
    dims = value.type.tensor_type.shape.dim
    sizes = [
        size or named.get(dim.dim_param, 0) for size, dim in zip(_stated(value), dims, strict=True)
    ]
    if sizes and (sizes[0] == 0 or len(sizes) == 4):
        sizes[0] = batch
    return tuple(sizes)


def _needs_shapes(
    values: Sequence[onnx.ValueInfoProto], sizes: Mapping[str, Shape], batch: int
) -> str:
    """The error for inputs with open dimensions, with the options that fix them."""
    parts, options = [], []
    for value in values:
        size = sizes[value.name]
        if not _ranked(value):
            parts.append(f"{value.name!r} has no shape")
            size = (batch, 3, _USUAL_SIDE, _USUAL_SIDE)
        else:
            which = [
                f"{position} ({_dimension(dim)})"
                for position, dim in enumerate(value.type.tensor_type.shape.dim)
                if size[position] == 0
            ]
            some = f"dimension {which[0]} is" if len(which) == 1 else None
            some = some or f"dimensions {', '.join(which[:-1])} and {which[-1]} are"
            parts.append(f"{value.name!r}: {some} dynamic")
        image = len(size) == 4
        filled = (
            known or ((3 if position == 1 else _USUAL_SIDE) if image else _USUAL_LENGTH)
            for position, known in enumerate(size)
        )
        name = value.name if value.name.isprintable() else "NAME"
        options.append(f"--shape {shlex.quote(f'{name}={_written(filled)}')}")
    return (
        f"model input {'; '.join(parts)}; say how large, as in {' '.join(options)}, or export it "
        "with fixed sizes (only the batch may be symbolic)."
    )


def _ranked(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.HasField("shape"))


def _stated(value: onnx.ValueInfoProto) -> Shape:
    """An input's shape as the model has it; 0 for every dimension without a fixed size."""
    return tuple(max(dim.dim_value, 0) for dim in value.type.tensor_type.shape.dim)


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> str:
    if dim.HasField("dim_value"):
        return str(dim.dim_value)
    return repr(dim.dim_param) if dim.dim_param else "unnamed"


def _as_stated(value: onnx.ValueInfoProto) -> str:
    """An input's shape as the model has it, for people: ``batchx3x?x?``."""
    dims = value.type.tensor_type.shape.dim
    names = (d.dim_param if d.dim_param.isprintable() and d.dim_param else "?" for d in dims)
    return "x".join(
        str(d.dim_value) if d.dim_value > 0 else name for d, name in zip(dims, names, strict=True)
    )


def _written(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _forget_shapes(graph: onnx.GraphProto) -> None:
    """Drops the sizes behind the inputs: said for other inputs, they would contradict inference."""
    for value in (*graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    for node in graph.node:
        for inner in _subgraphs(node):
            _forget_shapes(inner)
