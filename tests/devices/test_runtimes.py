"""The registry and every runtime, on real models."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from devices.errors import InvalidInputError, UnavailableError, UsageError
from devices.runtimes import (
    CompiledGraph,
    RuntimeSettings,
    get_runtime,
    runtime_names,
    runtime_statuses,
)
from devices.runtimes.simulated import NODE_MS, RUN_MS, SimulatedRuntime

SETTINGS = RuntimeSettings()


def gated(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with gates on its convolution: branches of which each needs another layout."""
    nodes = list(model.graph.node)
    name = "r"
    for index in range(3):
        gate, side, scaled = f"gate{index}", f"side{index}", f"scaled{index}"
        nodes[-3:-3] = [
            helper.make_node("Conv", [name, "square", "b"], [f"c{index}"], name=f"conv{index}"),
            helper.make_node("GlobalAveragePool", [f"c{index}"], [side], name=side),
            helper.make_node("Conv", [side, "square", "b"], [f"{gate}/in"], name=f"{gate}/conv"),
            helper.make_node("Sigmoid", [f"{gate}/in"], [gate], name=gate),
            helper.make_node("Mul", [f"c{index}", gate], [scaled], name=scaled),
        ]
        name = scaled
    nodes[-3].input[0] = name
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    weight = np.eye(16, dtype=np.float32).reshape(16, 16, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(weight, "square"))
    return model


def one_line(error: BaseException) -> bool:
    return bool(str(error)) and "\n" not in str(error)


class TestRegistry:
    def test_unknown_name_gives_near_matches(self) -> None:
        with pytest.raises(UsageError, match="did you mean onnxruntime") as caught:
            get_runtime("onnxruntim")
        assert one_line(caught.value)

    def test_unknown_name_without_near_match_lists_all(self) -> None:
        with pytest.raises(UsageError, match="choose one of onnxruntime, openvino"):
            get_runtime("xyz")

    def test_statuses_cover_every_runtime(self) -> None:
        found = {status.name: status for status in runtime_statuses()}
        assert tuple(found) == runtime_names()
        assert found["onnxruntime"].usable and found["onnxruntime"].version
        assert found["simulated"].usable and found["simulated"].simulated
        for status in found.values():
            assert status.usable or status.reason
        assert found["executorch"].source == "torch"

    def test_status_is_json(self) -> None:
        for status in runtime_statuses():
            assert status.to_json()["precisions"] == list(status.precisions)


class TestSettings:
    @pytest.mark.parametrize(
        "wrong", [{"threads": 0}, {"batch": -1}, {"precision": "fp8"}, {"threads": True}]
    )
    def test_wrong_values_are_refused(self, wrong: dict) -> None:
        with pytest.raises(UsageError, match=next(iter(wrong))):
            RuntimeSettings(**wrong)

    def test_json_round_trip(self) -> None:
        settings = RuntimeSettings(threads=2, batch=3)
        assert RuntimeSettings.from_json(settings.to_json()) == settings

    def test_foreign_json_is_refused(self) -> None:
        with pytest.raises(InvalidInputError):
            RuntimeSettings.from_json({"cores": 1})

    @pytest.mark.parametrize("name", ["onnxruntime", "simulated"])
    def test_precision_that_the_runtime_lacks(self, name: str, model) -> None:
        with pytest.raises(UnavailableError, match="int8"):
            get_runtime(name).compile(model.SerializeToString(), RuntimeSettings(precision="int8"))


@pytest.mark.parametrize("name", ["onnxruntime", "simulated"])
class TestUsableRuntimes:
    def test_outputs_are_the_reference_s(self, name: str, model) -> None:
        runtime = get_runtime(name)
        compiled = runtime.compile(model.SerializeToString(), SETTINGS)
        x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
        with runtime.load(compiled, SETTINGS) as loaded:
            (y,) = loaded.infer({"x": x})
        (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)

    def test_times_are_positive_and_counted(self, name: str, model) -> None:
        runtime = get_runtime(name)
        compiled = runtime.compile(model.SerializeToString(), SETTINGS)
        with runtime.load(compiled, SETTINGS) as loaded:
            times = loaded.run(4)
            nodes = loaded.profile(3)
        assert len(times) == 4 and min(times) > 0
        assert nodes and all(len(timing.samples_ms) == 3 for timing in nodes.values())

    def test_profile_names_are_the_compiled_graph_s(self, name: str, model) -> None:
        from devices.onnx_files import parse_onnx

        runtime = get_runtime(name)
        compiled = runtime.compile(model.SerializeToString(), SETTINGS)
        with runtime.load(compiled, SETTINGS) as loaded:
            nodes = loaded.profile(1)
        assert set(nodes) == {node.name for node in parse_onnx(compiled.data).graph.node}

    def test_unnamed_nodes_get_names(self, name: str, model) -> None:
        for node in model.graph.node:
            node.name = ""
        runtime = get_runtime(name)
        compiled = runtime.compile(model.SerializeToString(), SETTINGS)
        with runtime.load(compiled, SETTINGS) as loaded:
            nodes = loaded.profile(1)
        assert len(nodes) >= 4 and all(nodes)

    def test_symbolic_batch_becomes_the_settings(self, name: str, make_model) -> None:
        settings = RuntimeSettings(batch=2)
        compiled = get_runtime(name).compile(make_model("n").SerializeToString(), settings)
        assert compiled.inputs == (("x", (2, 3, 8, 8), "float32"),)

    @pytest.mark.parametrize("data", [b"", b"garbage", b"\x08\x07" * 50])
    def test_garbage_is_refused_in_one_line(self, name: str, data: bytes) -> None:
        with pytest.raises(InvalidInputError) as caught:
            get_runtime(name).compile(data, SETTINGS)
        assert one_line(caught.value)

    def test_wrong_inputs_are_refused(self, name: str, model) -> None:
        runtime = get_runtime(name)
        compiled = runtime.compile(model.SerializeToString(), SETTINGS)
        with runtime.load(compiled, SETTINGS) as loaded:
            with pytest.raises(InvalidInputError) as caught:
                loaded.infer({"wrong": np.zeros((1, 3, 8, 8), np.float32)})
        assert one_line(caught.value)

    def test_closed_model_says_so(self, name: str, model) -> None:
        runtime = get_runtime(name)
        loaded = runtime.load(runtime.compile(model.SerializeToString(), SETTINGS), SETTINGS)
        loaded.close()
        with pytest.raises(UnavailableError, match="closed"):
            loaded.run(1)

    def test_foreign_graphs_are_refused(self, name: str) -> None:
        with pytest.raises(InvalidInputError, match="compile the model again"):
            get_runtime(name).load(CompiledGraph("other", "0", b"", (), ()), SETTINGS)


class TestOnnxRuntime:
    def test_the_graph_is_really_fused(self, model) -> None:
        from devices.onnx_files import parse_onnx

        compiled = get_runtime("onnxruntime").compile(model.SerializeToString(), SETTINGS)
        ops = [node.op_type for node in parse_onnx(compiled.data).graph.node]
        assert "Relu" not in ops

    def test_compiling_twice_gives_the_same(self, make_model) -> None:
        # The runtime puts layout changes in the order of addresses, which what lies about changes.
        model, littered = gated(make_model()).SerializeToString(), []
        found = set()
        for size in range(1, 30):
            littered.append(bytearray(997 * size % 5000))
            found.add(get_runtime("onnxruntime").compile(model, SETTINGS).data)
        assert len(found) == 1

    def test_nodes_run_in_the_order_of_the_graph(self, make_model) -> None:
        runtime = get_runtime("onnxruntime")
        compiled = runtime.compile(gated(make_model()).SerializeToString(), SETTINGS)
        with runtime.load(compiled, SETTINGS, profiling=True) as loaded:
            ran = list(loaded.profile(1))
        assert ran == [node.name for node in onnx.load_from_string(compiled.data).graph.node]

    def test_a_broken_graph_is_refused_in_one_line(self, model) -> None:
        model.graph.initializer[0].dims[1] = 5
        model.graph.initializer[0].raw_data = bytes(4 * 16 * 5 * 9)
        runtime = get_runtime("onnxruntime")
        with pytest.raises(InvalidInputError) as caught:
            # ONNX Runtime compiles it, and finds out when it runs.
            runtime.load(runtime.compile(model.SerializeToString(), SETTINGS), SETTINGS).run(1)
        assert one_line(caught.value)

    def test_one_loading_serves_for_nodes_and_whole(self, model) -> None:
        runtime = get_runtime("onnxruntime")
        compiled = runtime.compile(model.SerializeToString(), SETTINGS)
        with runtime.load(compiled, SETTINGS, profiling=True) as loaded:
            assert len(loaded.run(5)) == 5
            first = loaded.profile(3)
            session = loaded._session
            assert len(loaded.run(4)) == 4 and loaded._session is session
            again = loaded.profile(2)  # takes a session of its own: a profiler ends for good
        assert set(first) == set(again)
        assert {len(t.samples_ms) for t in first.values()} == {3}
        assert {len(t.samples_ms) for t in again.values()} == {2}

    @pytest.mark.parametrize("profiled", [False, True])
    def test_nothing_is_left_behind_and_nothing_printed(
        self, model, tmp_path, monkeypatch, capfd, profiled: bool
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        runtime = get_runtime("onnxruntime")
        compiled = runtime.compile(model.SerializeToString(), SETTINGS)
        with runtime.load(compiled, SETTINGS, profiling=True) as loaded:
            loaded.run(1)
            if profiled:
                loaded.profile(2)
        assert not list(tmp_path.iterdir())
        assert capfd.readouterr() == ("", "")


class TestSimulated:
    def test_a_run_is_the_nodes_plus_a_constant(self, model) -> None:
        runtime = SimulatedRuntime()
        with runtime.load(runtime.compile(model.SerializeToString(), SETTINGS), SETTINGS) as loaded:
            (total_ms,) = loaded.run(1)
            nodes = loaded.profile(1)
        summed = sum(timing.samples_ms[0] for timing in nodes.values())
        assert total_ms == pytest.approx(RUN_MS + summed)
        assert summed > len(nodes) * NODE_MS

    def test_noise_is_seeded(self, model) -> None:
        def times(seed: int) -> list[float]:
            runtime = SimulatedRuntime(noise=0.1, seed=seed)
            compiled = runtime.compile(model.SerializeToString(), SETTINGS)
            with runtime.load(compiled, SETTINGS) as loaded:
                return loaded.run(5)

        assert times(1) == times(1) != times(2)
        assert len(set(times(1))) == 5

    def test_more_threads_are_not_slower(self, make_model) -> None:
        def time(threads: int) -> float:
            settings = RuntimeSettings(threads=threads)
            runtime = SimulatedRuntime()
            compiled = runtime.compile(make_model(side=64).SerializeToString(), settings)
            with runtime.load(compiled, settings) as loaded:
                return loaded.run(1)[0]

        assert time(4) < time(1)
