"""What the builder says of shapes and sizes is what ONNX and ONNX Runtime say."""

import math
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency.graph_builder import IR_VERSION, OPSET, GraphBuilder

IMAGE, TOKENS, GRID = (2, 12, 9, 9), (2, 10, 12), (2, 8, 8, 12)
Write = Callable[[GraphBuilder], str]

ACTIVATIONS = (
    "relu", "relu6", "hardswish", "hardswish_parts", "silu", "gelu", "sigmoid", "leaky", "tanh",
    "prelu", "elu", "mish", "none",
)  # fmt: skip

METHODS: dict[str, tuple[tuple[int, ...], Write]] = {
    "conv": (IMAGE, lambda g: g.conv("a", "input", 7, 3)),
    "conv stride": (IMAGE, lambda g: g.conv("a", "input", 8, 5, 2)),
    "conv groups": (IMAGE, lambda g: g.conv("a", "input", 8, 3, 1, 4)),
    "conv dilation": (IMAGE, lambda g: g.conv("a", "input", 8, 3, 1, 1, 2)),
    "conv window": (IMAGE, lambda g: g.conv("a", "input", 8, window=(1, 7))),
    "conv even": (IMAGE, lambda g: g.conv("a", "input", 8, 2, 1)),
    "conv bare": (IMAGE, lambda g: g.conv("a", "input", 8, 3, 2, padded=False, bias=False)),
    "conv transposed": (IMAGE, lambda g: g.conv_transpose("a", "input", 6, 2, 2)),
    "conv transposed odd": (IMAGE, lambda g: g.conv_transpose("a", "input", 6, 3, 2)),
    "conv transposed wide": (IMAGE, lambda g: g.conv_transpose("a", "input", 8, 4, 2, 4)),
    "gemm": ((3, 20), lambda g: g.gemm("a", "input", 6)),
    "linear": (TOKENS, lambda g: g.linear("a", "input", 5)),
    "linear 4d": (GRID, lambda g: g.linear("a", "input", 5)),
    "matmul": (
        TOKENS,
        lambda g: g.matmul("a", "input", g.transpose("t", "input", (0, 2, 1))),
    ),
    **{
        f"activation {kind}": (
            IMAGE,
            lambda g, kind=kind: g.activation("a", g.conv("c", "input", 4), kind),
        )
        for kind in ACTIVATIONS
    },
    "norm": (IMAGE, lambda g: g.norm("a", "input")),
    "group_norm": (IMAGE, lambda g: g.group_norm("a", "input", 3)),
    "instance_norm": (IMAGE, lambda g: g.instance_norm("a", "input")),
    "layer_norm": (TOKENS, lambda g: g.layer_norm("a", "input")),
    "softmax": (TOKENS, lambda g: g.softmax("a", "input")),
    "layer_scale": (IMAGE, lambda g: g.layer_scale("a", "input", (12, 1, 1))),
    "offset": (TOKENS, lambda g: g.offset("a", "input", (1, 10, 12))),
    **{
        f"squeeze_excite {kind}": (
            IMAGE,
            lambda g, kind=kind: g.squeeze_excite("a", "input", 4, kind),
        )
        for kind in ("sigmoid", "hard", "silu")
    },
    "multiply channels": (IMAGE, lambda g: g.multiply("a", "input", g.global_pool("p", "input"))),
    "global_pool": (IMAGE, lambda g: g.global_pool("a", "input")),
    "max pool": (IMAGE, lambda g: g.pool("a", "input", 3, 2, mean=False)),
    "mean pool": (IMAGE, lambda g: g.pool("a", "input", 3, 1, mean=True)),
    "bare pool": (IMAGE, lambda g: g.pool("a", "input", 2, 2, mean=False, padded=False)),
    "head": (IMAGE, lambda g: g.head("a", "input", 10)),
    "head by reduction": (IMAGE, lambda g: g.head("a", "input", 10, reduce_mean=True)),
    "add": (IMAGE, lambda g: g.add("a", "input", g.conv("c", "input", 12))),
    "multiply": (IMAGE, lambda g: g.multiply("a", "input", g.conv("c", "input", 12))),
    "concat": (IMAGE, lambda g: g.concat("a", ["input", g.conv("c", "input", 5)])),
    "concat axis": (GRID, lambda g: g.concat("a", ["input", "input"], 2)),
    "flatten": (IMAGE, lambda g: g.flatten("a", "input")),
    "reshape": (TOKENS, lambda g: g.reshape("a", "input", (2, 10, 3, 4))),
    "transpose": (GRID, lambda g: g.transpose("a", "input", (0, 3, 1, 2))),
    "squeeze": ((1, 5, 6), lambda g: g.squeeze("a", "input")),
    "squeeze axis": ((2, 1, 6), lambda g: g.squeeze("a", "input", 1)),
    "take": (TOKENS, lambda g: g.take("a", "input", 1)),
    "take axis": (TOKENS, lambda g: g.take("a", "input", 3, 1)),
    "cut": (GRID, lambda g: g.cut("a", "input", 1, 2, 7)),
    "cut step": (GRID, lambda g: g.cut("a", "input", 2, 1, 8, 2)),
    "pad": (GRID, lambda g: g.pad("a", "input", (0, 1, 0, 0), (0, 2, 3, 0))),
    "resize": (IMAGE, lambda g: g.resize("a", "input", 2, linear=False)),
    "resize linear": (IMAGE, lambda g: g.resize("a", "input", 3, linear=True)),
    "depth_to_space": (IMAGE, lambda g: g.depth_to_space("a", "input", 2)),
    "split": (IMAGE, lambda g: g.split("a", "input", 3)[1]),
    "split axis": (GRID, lambda g: g.split("a", "input", 2, 1)[0]),
    "interleave": (IMAGE, lambda g: g.interleave("a", "input")),
    "interleave groups": (IMAGE, lambda g: g.interleave("a", "input", 3)),
    "node": (IMAGE, lambda g: g.node("Softplus", "a", ["input"], IMAGE)),
    "constant": (IMAGE, lambda g: g.node("Add", "a", ["input", g.constant(2.0)], IMAGE)),
}


def written(name: str, seed: int | None = 0) -> tuple[GraphBuilder, str]:
    shape, write = METHODS[name]
    builder = GraphBuilder(shape, None if seed is None else np.random.default_rng(seed))
    return builder, write(builder)


def counted(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """Multiply-adds by the shapes of the tensors alone."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        out = math.prod(shapes[node.output[0]])
        if node.op_type == "Conv":
            total += out * math.prod(weights[node.input[1]][1:])
        elif node.op_type == "ConvTranspose":
            total += math.prod(shapes[node.input[0]]) * math.prod(weights[node.input[1]][1:])
        elif node.op_type in ("Gemm", "MatMul"):
            total += out * shapes[node.input[0]][-1]
    return total


@pytest.mark.parametrize("name", list(METHODS))
class TestMethods:
    def test_shapes_are_those_of_onnx(self, name: str) -> None:
        builder, output = written(name)
        model = builder.finish(output)
        onnx.checker.check_model(model, full_check=True)
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        bare.graph.output[0].type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True).graph
        found = {
            value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
            for value in (*inferred.input, *inferred.value_info, *inferred.output)
        }
        for node in model.graph.node:
            for tensor in node.output:
                assert builder.shapes[tensor] == found[tensor], tensor

    def test_the_runtime_gives_that_shape(self, name: str) -> None:
        builder, output = written(name)
        session = onnxruntime.InferenceSession(builder.finish(output).SerializeToString())
        given_ = np.random.default_rng(0).standard_normal(METHODS[name][0], dtype=np.float32)
        (found,) = session.run(None, {"input": given_})
        assert found.shape == builder.shapes[output] and np.isfinite(found).all()

    def test_sizes_are_those_of_the_graph(self, name: str) -> None:
        builder, output = written(name)
        model = builder.finish(output)
        assert builder.madds == counted(model, builder.shapes)
        floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
        assert builder.weights <= sum(math.prod(t.dims) for t in floats)
        inner = {n for node in model.graph.node for n in node.output if node.op_type != "Split"}
        assert builder.peak == max(math.prod(builder.shapes[n]) for n in {"input", *inner})

    def test_without_values_the_structure_is_the_same(self, name: str) -> None:
        (full, output), (bare, same) = written(name), written(name, None)
        assert same == output
        for field in ("shapes", "madds", "weights", "peak"):
            assert getattr(full, field) == getattr(bare, field)
        models = full.finish(output), bare.finish(output)
        assert models[0].graph.node == models[1].graph.node
        kinds = [[(t.name, t.dims, t.data_type) for t in m.graph.initializer] for m in models]
        assert kinds[0] == kinds[1]

    def test_the_seed_decides_everything(self, name: str) -> None:
        texts = []
        for seed in (1, 1):
            builder, output = written(name, seed)
            texts.append(builder.finish(output).SerializeToString())
        assert texts[0] == texts[1]


@settings(max_examples=60, deadline=None)
@given(
    side=st.integers(7, 20),
    channels=st.integers(1, 9),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padded=st.booleans(),
)
def test_any_convolution(side, channels, kernel, stride, dilation, padded) -> None:
    dilation = dilation if kernel % 2 else 1
    if not padded and dilation * (kernel - 1) + 1 > side:
        return
    builder = GraphBuilder((1, 3, side, side), np.random.default_rng(0))
    output = builder.conv("a", "input", channels, kernel, stride, dilation=dilation, padded=padded)
    session = onnxruntime.InferenceSession(builder.finish(output).SerializeToString())
    (found,) = session.run(None, {"input": np.zeros((1, 3, side, side), np.float32)})
    assert found.shape == builder.shapes[output]
    assert builder.madds == found.size * 3 * kernel**2


def test_interleave_takes_the_groups_in_turns() -> None:
    builder = GraphBuilder((1, 6, 1, 1), np.random.default_rng(0))
    model = builder.finish(builder.interleave("a", "input", 2))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {"input": np.arange(6, dtype=np.float32).reshape(1, 6, 1, 1)})
    assert found.ravel().tolist() == [0, 3, 1, 4, 2, 5]


def test_gelu_is_gelu() -> None:
    builder = GraphBuilder((1, 50), np.random.default_rng(0))
    model = builder.finish(builder.activation("a", "input", "gelu"))
    x = np.linspace(-4, 4, 50, dtype=np.float32)[None]
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": x})
    expected = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x[0]]
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_equal_constants_are_one_tensor() -> None:
    builder = GraphBuilder((1, 4), np.random.default_rng(0))
    x = builder.activation("a", "input", "gelu")
    model = builder.finish(builder.activation("b", x, "gelu"))
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len(set(names)) == 3


def test_large_weights_are_drawn_quickly_and_are_not_zero() -> None:
    builder = GraphBuilder((1, 2048), np.random.default_rng(0))
    model = builder.finish(builder.gemm("a", "input", 2048))
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    assert weight.shape == (2048, 2048) and weight.std() == pytest.approx(2048**-0.5, rel=0.05)


def test_versions() -> None:
    builder = GraphBuilder((1, 4), None)
    model = builder.finish(builder.softmax("a", "input"))
    assert model.ir_version == IR_VERSION
    assert [o.version for o in model.opset_import] == [OPSET]


def test_what_was_written_since_a_mark_is_taken_back() -> None:
    def written(detour: bool) -> onnx.ModelProto:
        builder = GraphBuilder((1, 8, 9, 9), np.random.default_rng(0))
        x = builder.activation("a.act", builder.conv("a", "input", 16, 3), "relu")
        if detour:
            mark = builder.mark()
            y = builder.activation("b.act", builder.conv("b", x, 64, 7), "gelu")
            assert builder.madds > mark.madds and builder.peak > mark.peak
            builder.rewind(mark)
            assert y not in {name for node in builder.finish(x).graph.node for name in node.input}
        y = builder.activation("b.act", builder.conv("b", x, 12, 1), "gelu")
        sizes.append((builder.madds, builder.weights, builder.peak))
        return builder.finish(y)

    sizes: list[tuple[int, int, int]] = []
    straight, detoured = written(False), written(True)
    assert [n.name for n in straight.graph.node] == [n.name for n in detoured.graph.node]
    names = [[t.name for t in m.graph.initializer] for m in (straight, detoured)]
    assert names[0] == names[1] and sizes[0] == sizes[1]
    onnx.checker.check_model(detoured, full_check=True)


def test_another_input_and_output() -> None:
    builder = GraphBuilder((1, 4), np.random.default_rng(0))
    beside = builder.softmax("b", builder.input("beside", (2, 3)))
    model = builder.finish(builder.softmax("a", "input"), beside)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feed = {"input": np.zeros((1, 4), np.float32), "beside": np.zeros((2, 3), np.float32)}
    one, other = session.run(None, feed)
    assert one.shape == (1, 4) and np.allclose(other, 1 / 3) and other.shape == (2, 3)
