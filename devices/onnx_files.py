"""ONNX files at the edge: read, checked, and given fixed shapes, with one-line errors.

Every runtime that converts from ONNX goes through here, so that a broken file, a dynamic dimension
or a foreign batch size is refused in the same words everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from devices.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

__all__ = [
    "fix_shapes",
    "input_specs",
    "name_nodes",
    "one_line",
    "parse_onnx",
    "random_inputs",
    "read_onnx",
]

InputSpec = tuple[str, tuple[int, ...], str]


def one_line(error: BaseException, limit: int = 200) -> str:
    """What an exception says, on one line and cut to `limit` characters."""
    words = "".join(c if c.isprintable() else " " for c in str(error)).split()
    text = " ".join(words) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def parse_onnx(data: bytes, label: str = "model") -> onnx.ModelProto:
    """An ONNX model from its serialised form.

    Raises:
        InvalidInputError: the bytes are no ONNX model, or one without nodes.
    """
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # the parser's own exceptions share no base class
        raise InvalidInputError(f"{label}: not a readable ONNX model; export it again.") from error
    if not model.graph.node or not model.graph.output:
        raise InvalidInputError(
            f"{label}: an ONNX model without nodes or outputs; export it again."
        )
    return model


def read_onnx(path: str | Path) -> onnx.ModelProto:
    """An ONNX model from a file, external weights included.

    Raises:
        InvalidInputError: the file is missing or unreadable, or is no ONNX model.
    """
    import onnx

    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(f"{path}: no such file; give the path of an ONNX model.")
    try:
        model = onnx.load(str(path))
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({one_line(error)}).") from error
    except Exception as error:  # the parser's own exceptions share no base class
        raise InvalidInputError(f"{path}: not a readable ONNX model; export it again.") from error
    if not model.graph.node or not model.graph.output:
        raise InvalidInputError(f"{path}: an ONNX model without nodes or outputs; export it again.")
    return model


def fix_shapes(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The model with a symbolic batch dimension set to `batch`; the given model is left alone.

    Args:
        model: any ONNX model.
        batch: images in one run.

    Returns:
        The same object when nothing was symbolic, else a copy.

    Raises:
        InvalidInputError: a dimension other than the first of an input is symbolic, an input has no
            shape, or the model's fixed batch is not `batch`.
    """
    inputs = _true_inputs(model)
    symbolic = False
    for value in inputs:
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
            raise InvalidInputError(
                f"model input {value.name!r}: has no tensor shape; export it with fixed shapes."
            )
        for position, dim in enumerate(tensor.shape.dim):
            fixed = dim.HasField("dim_value") and dim.dim_value > 0
            if fixed:
                if position == 0 and len(tensor.shape.dim) == 4 and dim.dim_value != batch:
                    raise InvalidInputError(
                        f"model input {value.name!r}: made for batch {dim.dim_value}, but batch "
                        f"{batch} was asked for; export it with batch {batch} or a symbolic one."
                    )
                continue
            if position != 0:
                name = dim.dim_param or "?"
                raise InvalidInputError(
                    f"model input {value.name!r}: dimension {position} ({name!r}) is dynamic; "
                    "export it with a fixed size (only the batch may be symbolic)."
                )
            symbolic = True
    if not symbolic:
        return model
    copy = type(model)()
    copy.CopyFrom(model)
    names = set()
    for value in _true_inputs(copy):
        dim = value.type.tensor_type.shape.dim[0]
        if not (dim.HasField("dim_value") and dim.dim_value > 0):
            names.add(dim.dim_param)
            dim.dim_value = batch
    for value in (*copy.graph.output, *copy.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param in names:
                dim.dim_value = batch
    return copy


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
    copy = type(model)()
    copy.CopyFrom(model)
    seen: set[str] = set()
    for index, node in enumerate(copy.graph.node):
        name = node.name or next((out for out in node.output if out), node.op_type)
        node.name = name if name not in seen else f"{name}#{index}"
        seen.add(node.name)
    return copy


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """Name, shape and numpy type name of each input of a model with fixed shapes.

    Raises:
        InvalidInputError: an input is of a type that numpy does not have.
    """
    import onnx

    specs = []
    for value in _true_inputs(model):
        tensor = value.type.tensor_type
        try:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        except (KeyError, ValueError) as error:
            raise InvalidInputError(
                f"model input {value.name!r}: element type {tensor.elem_type} is not supported."
            ) from error
        specs.append((value.name, tuple(d.dim_value for d in tensor.shape.dim), str(dtype)))
    return tuple(specs)


def random_inputs(
    specs: tuple[InputSpec, ...], seed: int = 0
) -> dict[str, npt.NDArray[np.generic]]:
    """Inputs for timing: standard normal numbers, or zeros for whole-number and other types.

    Args:
        specs: as from `input_specs`.
        seed: of the one generator that draws them.

    Returns:
        One array for each input, of its shape and type.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for name, shape, dtype in specs:
        if np.dtype(dtype).kind == "f":
            arrays[name] = rng.standard_normal(shape).astype(dtype)
        else:
            arrays[name] = np.zeros(shape, dtype=dtype)
    return arrays


def _true_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs that the caller must give: older files list the weights among the inputs too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]
