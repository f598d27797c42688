"""ONNX graphs as PyTorch modules, against ONNX Runtime and ONNX's reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from devices.errors import InvalidInputError
from devices.onnx_files import input_specs, random_inputs
from devices.onnx_to_torch import supported_operations, torch_module
from latency.probe_networks import sample_network
from latency.probes import build_probe, sample_probe


def outputs_of(model: onnx.ModelProto) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What ONNX Runtime and the module compute on the same inputs."""
    feed = random_inputs(input_specs(model))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    module = torch_module(model)
    with torch.no_grad():
        found = module(*(torch.from_numpy(feed[name]) for name in module.input_names))
    tensors = found if isinstance(found, tuple) else (found,)
    return session.run(None, feed), [tensor.numpy() for tensor in tensors]


def assert_same(model: onnx.ModelProto) -> None:
    expected, found = outputs_of(model)
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        scale = max(float(np.abs(one).max()), 1e-6)
        assert float(np.abs(one - other).max()) <= 1e-4 * scale


def graph_of(
    op: str,
    shape: tuple[int, ...],
    *more: np.ndarray,
    outputs: int = 1,
    opset: int = 17,
    **options: object,
) -> onnx.ModelProto:
    """One operation on an input ``x`` and constants."""
    names = [f"c{i}" for i in range(len(more))]
    made = [f"y{i}" for i in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], made, name="the_node", **options)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in made],
        [numpy_helper.from_array(value, name) for value, name in zip(more, names, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize("seed", range(40))
def test_probes_compute_the_same(seed: int) -> None:
    assert_same(build_probe(sample_probe(np.random.default_rng(seed), light=True)))


@pytest.mark.parametrize("seed", range(6))
def test_probes_like_networks_compute_the_same(seed: int) -> None:
    assert_same(build_probe(sample_network(np.random.default_rng(seed))))


SQUARE = (1, 4, 7, 7)
CASES = {
    "uneven border": graph_of("Conv", SQUARE, floats(6, 4, 3, 3), pads=[0, 1, 1, 0]),
    "same upper": graph_of(
        "Conv", SQUARE, floats(6, 4, 4, 4), auto_pad="SAME_UPPER", strides=[2, 2]
    ),
    "same lower": graph_of(
        "Conv", SQUARE, floats(6, 4, 4, 4), auto_pad="SAME_LOWER", strides=[2, 2]
    ),
    "one axis": graph_of("Conv", (1, 4, 9), floats(6, 2, 3), group=2, dilations=[2]),
    "mean over counted border": graph_of(
        "AveragePool", SQUARE, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
    ),
    "mean, rounded up": graph_of(
        "AveragePool", SQUARE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1
    ),
    "maximum, uneven border": graph_of(
        "MaxPool", SQUARE, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]
    ),
    "gemm with factors": graph_of(
        "Gemm", (3, 4), floats(5, 4), floats(3, 5), transB=1, alpha=0.5, beta=2.0
    ),
    "gemm, left transposed": graph_of("Gemm", (4, 3), floats(4, 5), transA=1),
    "clip below": graph_of("Clip", SQUARE, np.float32(-0.5).reshape(())),
    "clip as attributes": graph_of("Clip", SQUARE, opset=6, min=-0.5, max=0.5),
    "hard sigmoid": graph_of("HardSigmoid", SQUARE, alpha=0.3, beta=0.4),
    "one slope": graph_of("PRelu", SQUARE, floats(1)),
    "slope of pixels": graph_of("PRelu", SQUARE, floats(7, 7)),
    "softmax over channels": graph_of("Softmax", SQUARE, axis=1),
    "sum, axes dropped": graph_of("ReduceSum", SQUARE, integers(1, -1), keepdims=0),
    "maximum of all": graph_of("ReduceMax", SQUARE, keepdims=1),
    "flatten from 2": graph_of("Flatten", SQUARE, axis=2),
    "reshape with 0 and -1": graph_of("Reshape", SQUARE, integers(0, -1, 7)),
    "squeeze all": graph_of("Squeeze", (1, 4, 1)),
    "unsqueeze two": graph_of("Unsqueeze", (3, 4), integers(-1, 0)),
    "gather several": graph_of("Gather", SQUARE, integers(2, -1), axis=1),
    "gather a run": graph_of("Gather", SQUARE, integers(1, 2, 3), axis=-1),
    "gather one": graph_of("Gather", SQUARE, np.array(-1), axis=2),
    "gather a table": graph_of("Gather", SQUARE, integers(2, 0, 1, 1).reshape(2, 2), axis=1),
    "gather all as a table": graph_of("Gather", (6, 4), np.arange(6).reshape(3, 2, 1), axis=0),
    "einsum": graph_of(
        "Einsum", (2, 3, 4), np.ones((5, 4), np.float32), equation="b i k, j k -> b i j"
    ),
    "slice to the end": graph_of(
        "Slice", SQUARE, integers(1, -3), integers(2**62, -1), integers(1, 3), integers(2, 1)
    ),
    "pad by mirror": graph_of("Pad", SQUARE, integers(0, 0, 1, 2, 0, 0, 2, 1), mode="reflect"),
    "pad with ones": graph_of(
        "Pad", SQUARE, integers(0, 1, 0, 0, 0, 0, 0, 2), np.float32(1).reshape(())
    ),
    "resize to corners": graph_of(
        "Resize", SQUARE, floats(0), floats(0), integers(1, 4, 14, 10),
        mode="linear", coordinate_transformation_mode="align_corners",
    ),
    "depth to space": graph_of("DepthToSpace", (1, 8, 3, 3), blocksize=2),
    "space to depth": graph_of("SpaceToDepth", (1, 2, 4, 6), blocksize=2),
    "split evenly": graph_of("Split", (1, 6, 2), outputs=3, axis=1),
    "square": graph_of("Pow", SQUARE, np.float32(2).reshape(())),
    "nothing": graph_of("Identity", SQUARE),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_variants_compute_the_same(name: str) -> None:
    assert_same(CASES[name])


def test_shape_arithmetic_is_worked_out_while_reading() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["channels"]),
        helper.make_node("Concat", ["first", "channels", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "shapes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SQUARE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(integers(value), name)
            for name, value in (("one", 1), ("first", 1), ("rest", -1))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert_same(model)
    assert len(torch_module(model)._steps) == 1


def test_a_gelu_of_five_nodes_becomes_one() -> None:
    from latency.graph_builder import GraphBuilder

    builder = GraphBuilder((1, 8), np.random.default_rng(0))
    y = builder.activation("act", builder.linear("in", "input", 16), "gelu")
    model = builder.finish(builder.linear("out", y, 4))
    assert_same(model)
    called = [step.function for step in torch_module(model)._steps]
    assert torch.nn.functional.gelu in called and torch.erf not in called


def test_an_erf_that_is_no_gelu_stays() -> None:
    model = graph_of("Erf", SQUARE)
    assert_same(model)
    assert torch_module(model)._steps[0].function is torch.erf


def test_the_module_can_be_exported(model) -> None:
    module = torch_module(model)
    x = torch.from_numpy(floats(1, 3, 8, 8))
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (graph_of("Det", (3, 3)), r"'the_node' \(Det\)"),
        (graph_of("Softmax", SQUARE, opset=11, axis=1), "several axes"),
        (
            graph_of("Resize", SQUARE, floats(0), np.float32([1, 1, 2, 2]), mode="cubic"),
            "'cubic'",
        ),
        (
            graph_of("Slice", SQUARE, integers(-1), integers(-(2**40)), integers(1), integers(-1)),
            "backwards",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(wrong: onnx.ModelProto, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says) as caught:
        torch_module(wrong)
    assert "\n" not in str(caught.value) and "the_node" in str(caught.value)


def test_wrong_shapes_are_refused(model) -> None:
    model.graph.initializer[0].dims[1] = 5
    model.graph.initializer[0].raw_data = bytes(4 * 16 * 5 * 9)
    with pytest.raises(InvalidInputError, match="stem/Conv"):
        torch_module(model)


def test_operations_of_other_domains_are_refused(model) -> None:
    model.graph.node[1].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)
    with pytest.raises(InvalidInputError, match="not ONNX's own"):
        torch_module(model)


def test_the_list_of_operations_is_what_is_read() -> None:
    known = supported_operations()
    assert {"Conv", "Gemm", "Relu", "Constant"} <= set(known) and list(known) == sorted(known)
