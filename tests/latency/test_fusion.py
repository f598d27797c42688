"""Fusion rules: learned from probe networks, judged on networks that were never learned from."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable
from io import BytesIO

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autospace.mutation import random_cell
from autospace.onnx_export import onnx_for_cost
from autospace.seeding import Seed
from autospace.skeleton import find_skeleton
from autospace.space import Architecture
from autospace.vision import torchvision
from devices.errors import InvalidInputError
from devices.runtimes import get_runtime
from devices.runtimes.base import RuntimeSettings
from latency.decision import decide, grow_tree
from latency.fusion import FusionLearner, FusionRules
from latency.fusion_apply import apply_rules, explain
from latency.graph_builder import GraphBuilder
from latency.kernel_reading import read_kernels
from latency.probes import build_probe, sample_probe
from latency.static import StaticGraph

PROBES = 120
ALL = 0.95
"""Share of a network's kernels that must be found."""


def compiled(model: onnx.ModelProto, runtime: str = "onnxruntime") -> bytes:
    engine = get_runtime(runtime)
    return engine.compile(model.SerializeToString(), RuntimeSettings()).data


def probe(index: int) -> onnx.ModelProto:
    return build_probe(sample_probe(np.random.default_rng([0, 2, index])))


def matched(rules: FusionRules, model: onnx.ModelProto, runtime: str = "onnxruntime") -> float:
    """Share of the runtime's kernels that the rules give too."""
    true = Counter(read_kernels(model, compiled(model, runtime)).signatures)
    found = Counter(apply_rules(rules, model).signatures)
    return (true & found).total() / true.total()


@pytest.fixture(scope="module")
def learner() -> FusionLearner:
    learner = FusionLearner()
    for index in range(PROBES):
        model = probe(index)
        learner.add(model, compiled(model))
    return learner


@pytest.fixture(scope="module")
def rules(learner: FusionLearner) -> FusionRules:
    return FusionRules.of(learner)


def exported(name: str) -> onnx.ModelProto:
    network = torchvision().models.get_model(name, weights=None).eval()
    file = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, torch.zeros(1, 3, 224, 224), file, dynamo=False, opset_version=17
        )
    return onnx.load_model_from_string(file.getvalue())


class TestHeldOut:
    def test_probes(self, rules: FusionRules) -> None:
        """Of all their kernels; a profile learns from five times as many probes."""
        same = total = 0
        for model in map(probe, range(5000, 5024)):
            true = Counter(read_kernels(model, compiled(model)).signatures)
            same += (true & Counter(apply_rules(rules, model).signatures)).total()
            total += true.total()
        assert same / total >= ALL

    @pytest.mark.parametrize("name", ["mobilenet_v2", "regnet_y_400mf"])
    def test_torchvision_networks(self, rules: FusionRules, name: str) -> None:
        assert matched(rules, exported(name)) >= ALL

    @pytest.mark.parametrize("seed", range(2))
    def test_networks_of_the_search_space(self, rules: FusionRules, seed: int) -> None:
        random, skeleton = Seed(seed).generator("cells"), find_skeleton("mobile")
        blocks = tuple(random_cell(random).fused() for _ in range(len(skeleton.blocks)))
        model = onnx_for_cost(Architecture(skeleton, blocks))
        assert matched(rules, model) >= ALL


class TestSimulated:
    """A runtime that fuses nothing and knows no blocked layout is learned just as well."""

    def test_held_out_probes(self) -> None:
        models = [probe(index) for index in range(20)]
        rules = FusionRules.learn((m, compiled(m, "simulated")) for m in models)
        assert all(len(kernels.split(";")) == 1 for kernels in rules.recipes)
        shares = [matched(rules, probe(index), "simulated") for index in range(5000, 5008)]
        assert np.mean(shares) >= ALL


class TestApply:
    def test_every_kernel_names_nodes_of_the_original(self, rules: FusionRules) -> None:
        model = probe(6000)
        graph = apply_rules(rules, model)
        names = {node.name for node in model.graph.node}
        assert all(kernel.nodes and set(kernel.nodes) <= names for kernel in graph.kernels)
        assert {name for kernel in graph.kernels for name in kernel.nodes} == names

    def test_kernels_come_after_what_they_read(self, rules: FusionRules) -> None:
        graph = apply_rules(rules, probe(6001))
        for place, kernel in enumerate(graph.kernels):
            assert len(kernel.sources) == len(kernel.kernel.inputs)
            assert all(-1 <= source < place for source in kernel.sources)
        assert len({kernel.name for kernel in graph.kernels}) == len(graph.kernels)

    def test_the_model_is_left_alone(self, rules: FusionRules) -> None:
        model = probe(6002)
        before = model.SerializeToString(deterministic=True)
        apply_rules(rules, model)
        assert model.SerializeToString(deterministic=True) == before

    def test_unseen_channel_counts_are_padded_to_the_block(self, rules: FusionRules) -> None:
        builder = GraphBuilder((1, 32, 14, 14), np.random.default_rng(0))
        x = builder.conv("a", "input", 36, 3)
        model = builder.finish(builder.conv("b", builder.activation("a.act", x, "relu"), 44))
        assert matched(rules, model) == 1.0

    def test_unknown_operations_become_one_kernel_each(self, rules: FusionRules) -> None:
        nodes = [
            onnx.helper.make_node("Mystery", ["x"], ["y"], name="first", domain="some.where"),
            onnx.helper.make_node("Celu", ["y"], ["z"], name="second"),
        ]
        shape = (1, 4, 4, 4)
        values = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name in ("x", "z")
        ]
        graph = onnx.helper.make_graph(nodes, "strange", values[:1], values[1:])
        kernels, unknown = explain(rules, onnx.helper.make_model(graph))
        assert [k.kernel.op for k in kernels.kernels] == ["where.Mystery", "Celu"]
        assert unknown == ("Celu(x0)", "where.Mystery(x0)")

    @pytest.mark.parametrize("seed", range(4))
    def test_broken_nodes_still_give_a_graph(self, rules: FusionRules, seed: int) -> None:
        rng = np.random.default_rng(seed)
        model = probe(6010 + seed)
        for node in model.graph.node:
            if rng.random() < 0.3:
                node.op_type = str(rng.choice(["Foo", "Add", "Transpose", "Shape", "Concat"]))
        graph = apply_rules(rules, model)
        assert all(source < i for i, k in enumerate(graph.kernels) for source in k.sources)

    def test_shape_arithmetic_costs_nothing(self, rules: FusionRules) -> None:
        builder = GraphBuilder((1, 32, 8, 8), np.random.default_rng(0))
        builder.conv("a", "input", 32, 3)
        model = builder.finish("a_out")
        extra = [
            onnx.helper.make_node("Shape", ["a_out"], ["shape"], name="shape"),
            onnx.helper.make_node("Gather", ["shape", "at"], ["rows"], name="rows"),
            onnx.helper.make_node("Concat", ["rows", "rest"], ["to"], name="to", axis=0),
            onnx.helper.make_node("Reshape", ["a_out", "to"], ["out"], name="flatten"),
        ]
        model.graph.node.extend(extra)
        for name, value in (("at", [0]), ("rest", [-1])):
            array = np.array(value, dtype=np.int64)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        model.graph.output[0].CopyFrom(
            onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, (1, 2048))
        )
        assert matched(rules, model) == 1.0
        ops = [k.kernel.op for k in apply_rules(rules, model).kernels]
        assert "Reshape" in ops and not {"Shape", "Gather", "Concat"} & set(ops)

    def test_a_model_without_work_is_refused(self, rules: FusionRules) -> None:
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1,))
        node = onnx.helper.make_node("Identity", ["x"], ["y"], name="same")
        output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1,))
        graph = onnx.helper.make_graph([node], "empty", [value], [output])
        with pytest.raises(InvalidInputError, match="no node"):
            apply_rules(rules, onnx.helper.make_model(graph))


class TestReading:
    """What the compiled graph is read as decides what can be learned."""

    def transformer(self) -> onnx.ModelProto:
        builder = GraphBuilder((2, 9, 32), np.random.default_rng(0))
        weights = {"w": (32, 64), "b": (64,)}
        model = builder.finish("input")
        for name, shape in weights.items():
            array = np.ones(shape, dtype=np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        model.graph.node.extend(
            [
                onnx.helper.make_node("MatMul", ["input", "w"], ["m"], name="product"),
                onnx.helper.make_node("Add", ["m", "b"], ["y"], name="bias"),
            ]
        )
        model.graph.output[0].CopyFrom(
            onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (2, 9, 64))
        )
        return model

    def test_a_linear_layer_on_tokens(self, rules: FusionRules) -> None:
        model = self.transformer()
        kernels = read_kernels(model, compiled(model)).kernels
        product = next(k.kernel for k in kernels if k.kernel.op == "Gemm")
        assert product.inputs == ((18, 32),) and product.outputs == ((18, 64),)
        assert matched(rules, model) == 1.0


class TestJson:
    def test_rules_are_small_and_come_back(self, rules: FusionRules) -> None:
        text = json.dumps(rules.to_json())
        assert len(text) < 300_000
        again = FusionRules.from_json(json.loads(text))
        assert again == rules
        model = probe(6003)
        assert apply_rules(again, model) == apply_rules(rules, model)

    def test_learning_goes_on_from_the_stored_counts(self, learner: FusionLearner) -> None:
        whole = FusionLearner()
        first = FusionLearner()
        for index in range(6):
            model = probe(index)
            data = compiled(model)
            whole.add(model, data)
            if index == 3:
                first = FusionLearner.from_json(json.loads(json.dumps(first.to_json())))
            first.add(model, data)
        assert first.to_json() == whole.to_json()

    def test_learners_merge(self) -> None:
        parts = [FusionLearner(), FusionLearner(), FusionLearner()]
        for index in range(6):
            model = probe(index)
            data = compiled(model)
            parts[index // 3].add(model, data)
            parts[2].add(model, data)
        parts[0].merge(parts[1])
        assert apply_rules(FusionRules.of(parts[0]), probe(2)) == apply_rules(
            FusionRules.of(parts[2]), probe(2)
        )
        assert parts[0].graphs == parts[2].graphs == 6

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["version", "graphs", "layouts", "recipes", "kept", "x"]), inner
                )
            ),
        )
    )
    @pytest.mark.parametrize("reader", [FusionRules.from_json, FusionLearner.from_json])
    def test_rubbish_is_refused(self, reader: Callable[[object], object], rubbish: object) -> None:
        with pytest.raises(InvalidInputError, match="profile the device again"):
            reader(rubbish)

    @given(st.data())
    @settings(max_examples=30)
    def test_missing_parts_are_refused(self, rules: FusionRules, data: st.DataObject) -> None:
        stored = json.loads(json.dumps(rules.to_json()))
        del stored[data.draw(st.sampled_from(sorted(stored)))]
        with pytest.raises(InvalidInputError):
            FusionRules.from_json(stored)

    def test_a_broken_compiled_graph_is_refused(self) -> None:
        with pytest.raises(InvalidInputError, match="compiled graph"):
            FusionLearner().add(probe(0), b"garbage")


class TestStaticGraph:
    """Shapes behind arithmetic that ONNX's own data propagation gives up on."""

    def model(self, side: int) -> onnx.ModelProto:
        """Pads an image to a multiple of 4 and reshapes it, as shifted windows do."""
        make = onnx.helper.make_node
        nodes = [
            make("Shape", ["x"], ["shape"], name="shape"),
            make("Gather", ["shape", "two"], ["side"], name="side"),
            make("Mod", ["side", "four"], ["over"], name="over"),
            make("Sub", ["four", "over"], ["lack"], name="lack"),
            make("Mod", ["lack", "four"], ["more"], name="more"),
            make("Cast", ["more"], ["more64"], name="cast", to=onnx.TensorProto.INT64),
            make("Concat", ["zeros", "more64"], ["pads"], name="pads", axis=0),
            make("Pad", ["x", "pads"], ["y"], name="pad"),
            make("Relu", ["y"], ["z"], name="relu"),
        ]
        values = {"two": [2], "four": [4], "zeros": [0] * 7}
        weights = [
            onnx.numpy_helper.from_array(np.array(value, dtype=np.int64), name)
            for name, value in values.items()
        ]
        kind = onnx.TensorProto.FLOAT
        ends = [
            onnx.helper.make_tensor_value_info("x", kind, (1, 3, side, side)),
            onnx.helper.make_tensor_value_info("z", kind, None),
        ]
        graph = onnx.helper.make_graph(nodes, "pad", ends[:1], ends[1:], weights)
        opset = onnx.helper.make_opsetid("", 17)
        return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)

    @pytest.mark.parametrize("side", [5, 8, 11])
    def test_shapes_follow_from_values(self, side: int) -> None:
        static = StaticGraph(self.model(side))
        assert static.shapes["z"] == (1, 3, side, -(-side // 4) * 4)
        assert static.folded == {0, 1, 2, 3, 4, 5, 6}
        assert static.values["more64"] == -side % 4

    def test_only_the_work_is_left(self, rules: FusionRules) -> None:
        kernels = apply_rules(rules, self.model(5)).kernels
        assert [k.kernel.op for k in kernels] == ["Pad", "Relu"]
        assert matched(rules, self.model(5)) == 1.0


features = st.dictionaries(
    st.sampled_from("abc"), st.integers(0, 20) | st.sampled_from(["p", "b"]), max_size=3
)


class TestDecisionTree:
    @given(st.lists(features, min_size=1, max_size=20))
    def test_a_tree_repeats_what_it_was_shown(self, examples: list[dict[str, int | str]]) -> None:
        cases = [(case, "1" if case.get("a", 0) == "b" else "0", 1) for case in examples]
        tree = json.loads(json.dumps(grow_tree(cases)))
        assert [decide(tree, case) for case, _, _ in cases] == [out for _, out, _ in cases]

    def test_thresholds_are_found(self) -> None:
        cases = [({"channels": c, "other": c % 3}, str(c >= 16), 1) for c in range(1, 40)]
        tree = grow_tree(cases)
        assert decide(tree, {"channels": 15}) == "False"
        assert decide(tree, {"channels": 16}) == "True"
