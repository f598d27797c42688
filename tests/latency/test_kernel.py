"""Kernels read from compiled graphs, and their attribution to the original's nodes."""

import json
import math

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import InvalidInputError
from devices.runtimes import RuntimeSettings, get_runtime
from latency.graph_builder import GraphBuilder
from latency.kernel import FAMILIES, Kernel, KernelGraph
from latency.kernel_reading import read_kernels
from latency.layers import LayerSpec
from latency.probes import ProbeSpec, build_probe, sample_probe

sizes = st.integers(min_value=1, max_value=2000)
shapes = st.lists(sizes, max_size=4).map(tuple)
words = st.text("abcXYZ.0159", max_size=8)
kernels = st.builds(
    Kernel,
    family=st.sampled_from(FAMILIES),
    op=words,
    inputs=st.lists(shapes, max_size=2).map(tuple),
    outputs=st.lists(shapes, max_size=2).map(tuple),
    weights=st.lists(shapes, max_size=2).map(tuple),
    kernel=shapes,
    strides=shapes,
    dilations=shapes,
    pads=shapes,
    groups=st.integers(1, 64),
    activation=words,
    fused_add=st.booleans(),
    dtype=st.sampled_from(["float32", "float16", "int8"]),
)


def graph_of(model: onnx.ModelProto, runtime: str = "onnxruntime") -> KernelGraph:
    compiled = get_runtime(runtime).compile(model.SerializeToString(), RuntimeSettings())
    return read_kernels(model, compiled.data)


def builder(channels: int = 16, side: int = 14) -> GraphBuilder:
    return GraphBuilder((1, channels, side, side), np.random.default_rng(0))


def chain(act: str, channels: int = 32) -> onnx.ModelProto:
    g = builder()
    x = g.activation("a/act", g.conv("a", "input", channels, 3), act)
    x = g.activation("b/act", g.conv("b", x, channels), act)
    return g.finish(g.activation("c/act", g.conv("c", x, channels, 3, 2, channels), act))


def residual(act: str) -> onnx.ModelProto:
    g = builder()
    x = g.conv("a", "input", 32)
    y = g.activation("b/act", g.conv("b", x, 32, 3), act)
    y = g.activation("d/act", g.add("d", g.conv("c", y, 32), x), act)
    return g.finish(g.conv("e", y, 16))


def squeeze(kind: str, channels: int) -> onnx.ModelProto:
    g = builder()
    x = g.activation("a/act", g.conv("a", "input", channels, 3), "relu")
    return g.finish(g.conv("b", g.squeeze_excite("se", x, 6, kind), 16))


def tokens(variant: int, kind: str = "encoder", activation: str = "gelu") -> onnx.ModelProto:
    layer = LayerSpec(kind, 64, expansion=2, heads=4, variant=variant, activation=activation)
    return build_probe(ProbeSpec("tokens", 32, 3, (layer, layer), 10, patch=8, width=64))


def grid(variant: int, kind: str = "window") -> onnx.ModelProto:
    layer = LayerSpec(kind, 48, kernel=7, expansion=2, heads=3, variant=variant, activation="gelu")
    return build_probe(ProbeSpec("grid", 16, 48, (layer,)))


def pools(kind_mean: bool, channels: int) -> onnx.ModelProto:
    g = builder()
    x = g.conv("a", "input", channels)
    x = g.pool("p", x, 3, 2, kind_mean)
    return g.finish(g.head("head", g.conv("b", x, 24), 10))


def joined(left: int, right: int) -> onnx.ModelProto:
    g = builder()
    parts = [g.conv("a", "input", left), g.activation("b/act", g.conv("b", "input", right), "silu")]
    return g.finish(g.head("head", g.concat("join", parts), 5))


MODELS = {
    **{f"chain {a}": chain(a) for a in ("relu", "relu6", "hardswish", "silu", "none")},
    **{f"odd chain {a}": chain(a, 20) for a in ("relu6", "hardswish", "silu")},
    **{f"residual {a}": residual(a) for a in ("relu", "relu6", "hardswish", "silu", "none")},
    **{f"squeeze {k} {c}": squeeze(k, c) for k in ("hard", "sigmoid", "silu") for c in (32, 20)},
    **{f"pool {m} {c}": pools(m, c) for m in (True, False) for c in (32, 20)},
    **{f"join {a}+{b}": joined(a, b) for a, b in ((16, 32), (12, 20))},
    **{f"encoder {v}": tokens(v) for v in range(4)},
    **{kind: tokens(0, kind) for kind in ("mlp", "mixer")},
    **{f"window {v}": grid(v) for v in range(2)},
    **{kind: grid(0, kind) for kind in ("merge", "filter")},
}


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("runtime", ["onnxruntime", "simulated"])
class TestAttribution:
    def test_every_kernel_names_nodes_of_the_original(self, name: str, runtime: str) -> None:
        model = MODELS[name]
        names = {node.name for node in model.graph.node}
        for item in graph_of(model, runtime).kernels:
            assert item.nodes, item
            assert set(item.nodes) <= names, item

    def test_every_node_of_the_original_is_covered(self, name: str, runtime: str) -> None:
        model = MODELS[name]
        covered = {node for item in graph_of(model, runtime).kernels for node in item.nodes}
        assert covered == {node.name for node in model.graph.node}

    def test_kernels_are_the_profiler_s(self, name: str, runtime: str) -> None:
        model = MODELS[name]
        engine = get_runtime(runtime)
        compiled = engine.compile(model.SerializeToString(), RuntimeSettings())
        with engine.load(compiled, RuntimeSettings()) as loaded:
            profiled = set(loaded.profile(1))
        graph = read_kernels(model, compiled.data)
        assert {item.name for item in graph.kernels} == profiled

    def test_shapes_are_known(self, name: str, runtime: str) -> None:
        for item in graph_of(MODELS[name], runtime).kernels:
            assert item.kernel.family != "other"
            assert all(item.kernel.inputs) and all(item.kernel.outputs), item


class TestReading:
    def test_convolutions_lead_their_fused_chain(self, network: onnx.ModelProto) -> None:
        graph = graph_of(network)
        leaders = [k.nodes[0] for k in graph.kernels if k.kernel.family.startswith("conv_")]
        expected = [n.name for n in network.graph.node if n.op_type == "Conv"]
        assert sorted(leaders) == sorted(expected)

    def test_activation_and_add_belong_to_their_convolution(self, network) -> None:
        by_leader = {
            k.nodes[0]: k for k in graph_of(network).kernels if k.kernel.family.startswith("conv_")
        }
        project = by_leader["blocks.0/project/Conv"]
        assert project.kernel.fused_add and "blocks.0/add/Add" in project.nodes
        depthwise = by_leader["blocks.0/depthwise/Conv"]
        assert depthwise.kernel.activation == "Clip"
        assert depthwise.nodes == ("blocks.0/depthwise/Conv", "blocks.0/act2/Clip")

    def test_layout_changes_are_given_to_a_neighbour(self, network) -> None:
        reorders = [k for k in graph_of(network).kernels if k.kernel.family == "reorder"]
        assert reorders and all(len(k.nodes) == 1 for k in reorders)

    def test_madds_are_the_original_s(self, network) -> None:
        def madds(runtime: str) -> int:
            return sum(k.kernel.madds for k in graph_of(network, runtime).kernels)

        assert madds("onnxruntime") == madds("simulated") > 0

    def test_unnamed_nodes_go_by_their_output(self, network) -> None:
        bare = onnx.ModelProto()
        bare.CopyFrom(network)
        for node in bare.graph.node:
            node.name = ""
        outputs = {node.output[0] for node in bare.graph.node}
        covered = {name for k in graph_of(bare).kernels for name in k.nodes}
        assert covered == outputs

    def test_exporter_names_with_slashes(self) -> None:
        model = chain("silu")
        for node in model.graph.node:
            node.name = "/features/" + node.name
            for field in (node.input, node.output):
                renamed = [f"/f/{t}" if t.endswith("_out") else t for t in field]
                del field[:]
                field.extend(renamed)
        model.graph.output[0].name = "/f/" + model.graph.output[0].name
        names = {node.name for node in model.graph.node}
        assert {n for k in graph_of(model).kernels for n in k.nodes} == names

    @pytest.mark.parametrize("seed", range(8))
    def test_random_networks(self, seed: int) -> None:
        model = build_probe(sample_probe(np.random.default_rng(seed)))
        names = {node.name for node in model.graph.node}
        graph = graph_of(model)
        assert {name for k in graph.kernels for name in k.nodes} == names

    @pytest.mark.parametrize("name", list(MODELS))
    def test_sources_are_the_kernels_that_make_the_inputs(self, name: str) -> None:
        model = MODELS[name]
        compiled = get_runtime("onnxruntime").compile(model.SerializeToString(), RuntimeSettings())
        nodes = {n.name or n.output[0]: n for n in onnx.load_from_string(compiled.data).graph.node}
        kernels = read_kernels(model, compiled.data).kernels
        for place, item in enumerate(kernels):
            assert len(item.sources) == len(item.kernel.inputs)
            for source, shape in zip(item.sources, item.kernel.inputs, strict=True):
                assert -1 <= source < place  # the order of execution
                if source >= 0:
                    made = nodes[kernels[source].name]
                    assert set(made.output) & set(nodes[item.name].input)
                    assert shape in kernels[source].kernel.outputs
        assert kernels[0].sources[0] == -1

    def test_transformers_have_families_of_their_own(self) -> None:
        kernels = [item.kernel for item in graph_of(tokens(0)).kernels]
        families = {kernel.family for kernel in kernels}
        assert families >= {"gemm", "matmul", "softmax", "transpose", "normalisation", "reshape"}
        products = [kernel for kernel in kernels if kernel.family == "matmul"]
        assert not any(kernel.weights for kernel in products)

    @pytest.mark.parametrize("name", [n for n in MODELS if n.startswith(("encoder", "window"))])
    def test_madds_of_matrix_products_are_the_original_s(self, name: str) -> None:
        def madds(runtime: str) -> int:
            return sum(k.kernel.madds for k in graph_of(MODELS[name], runtime).kernels)

        assert madds("onnxruntime") == madds("simulated") > 0

    def test_garbage_is_refused(self, network) -> None:
        with pytest.raises(InvalidInputError, match="compiled graph"):
            read_kernels(network, b"garbage")


class TestKernel:
    @given(kernels)
    def test_json_round_trip(self, kernel: Kernel) -> None:
        again = Kernel.from_json(json.loads(json.dumps(kernel.to_json())))
        assert again == kernel and hash(again) == hash(kernel)
        assert again.signature == kernel.signature

    @given(kernels, kernels)
    def test_signatures_tell_kernels_apart(self, a: Kernel, b: Kernel) -> None:
        assert (a.signature == b.signature) == (a == b)

    @given(kernels)
    def test_costs_are_never_negative(self, kernel: Kernel) -> None:
        assert kernel.bytes_in >= 0 and kernel.bytes_out >= 0 and kernel.bytes_weights >= 0
        assert kernel.madds >= 0 and kernel.flops >= 0

    def test_costs_of_a_convolution(self) -> None:
        kernel = Kernel(
            family="conv_dense",
            op="Conv",
            inputs=((1, 3, 8, 8),),
            outputs=((1, 16, 8, 8),),
            weights=((16, 3, 3, 3), (16,)),
            kernel=(3, 3),
            activation="Relu",
        )
        assert kernel.madds == 16 * 64 * 27
        assert kernel.flops == 2 * kernel.madds + 16 * 64
        assert kernel.bytes_in == 4 * 3 * 64 and kernel.bytes_out == 4 * 16 * 64
        assert kernel.bytes_weights == 4 * (16 * 27 + 16)

    @given(st.lists(st.integers(1, 9), max_size=2), *[st.integers(1, 50)] * 3, st.booleans())
    def test_costs_of_a_matrix_product(self, front, rows, inner, columns, turned) -> None:
        right = (columns, inner) if turned else (inner, columns)
        kernel = Kernel(
            family="matmul",
            op="FusedMatMul",
            inputs=((*front, rows, inner), (*front, *right)),
            outputs=((*front, rows, columns),),
        )
        assert kernel.madds == math.prod(front) * rows * inner * columns

    @pytest.mark.parametrize("wrong", [{}, {"family": "x"}, {"inputs": 3}, {"groups": "many"}])
    def test_broken_json_is_refused(self, wrong: dict) -> None:
        good = Kernel("other", "Op", (), ()).to_json()
        data = {**good, **wrong} if wrong else {}
        with pytest.raises(InvalidInputError):
            Kernel.from_json(data)


@pytest.mark.parametrize(
    ("approximate", "op"), [(None, "microsoft.Gelu"), ("none", "microsoft.Gelu"), ("tanh", "Gelu")]
)
def test_a_gelu_has_one_name_however_it_is_written(approximate: str | None, op: str) -> None:
    options = {} if approximate is None else {"approximate": approximate}
    nodes = [
        onnx.helper.make_node("Gelu", ["x"], ["a"], name="first", **options),
        onnx.helper.make_node("Mul", ["a", "half"], ["y"], name="after"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 8, 16])],
        [onnx.helper.make_tensor_value_info("y", 1, [1, 8, 16])],
        [onnx.numpy_helper.from_array(np.full((), 0.5, np.float32), "half")],
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    gelu, product = graph_of(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    ).kernels
    assert (gelu.kernel.op, gelu.nodes) == (op, ("first",))
    assert product.nodes == ("after",)
    if op != "Gelu":
        y = builder()
        written = graph_of(y.finish(y.activation("a", y.conv("c", "input", 8), "gelu")))
        (same,) = (node.kernel for node in written.kernels if node.kernel.op == op)
        assert (same.family, same.attributes) == (gelu.kernel.family, gelu.kernel.attributes)
