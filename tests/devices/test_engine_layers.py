"""TensorRT's inspector and profiler data, constructed in the documented formats of 10 and 11."""

from __future__ import annotations

import json

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from devices.engine_layers import engine_layers, executed_by_engine, layer_timings
from devices.errors import InvalidInputError
from latency.kernel_reading import read_kernels


def tensor(name: str, shape: list[int], version: int, layout: str = "Row major linear FP32"):
    told = {"Name": name, "Location": "Device", "Dimensions": shape}
    if version == 10:
        return {**told, "Format/Datatype": layout}
    return {**told, "Format": layout, "DataType": "Half" if "FP16" in layout else "Float"}


def information(version: int) -> str:
    """An engine of four timed layers for `network`, as its inspector tells it.

    The convolution runs on packed half-precision numbers, between two changes of layout.
    """
    packed = "Channel major FP16 format where channel % 8 == 0"
    layers = [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to stem/Conv + stem/Relu",
            "LayerType": "Reformat",
            "Inputs": [tensor("x", [1, 3, 8, 8], version)],
            "Outputs": [tensor("Reformatted Input Tensor 0", [1, 3, 8, 8], version, packed)],
            "ParameterType": "Reformat",
            "Origin": "REFORMAT",
            "TacticValue": "0x0",
            "StreamId": 0,
            "Metadata": "",
        },
        {
            "Name": "stem/Conv + stem/Relu",
            "LayerType": "CaskConvolution",
            "Inputs": [tensor("Reformatted Input Tensor 0", [1, 3, 8, 8], version, packed)],
            "Outputs": [tensor("r", [1, 16, 8, 8], version, packed)],
            "ParameterType": "Convolution",
            "Kernel": [3, 3],
            "Stride": [1, 1],
            "Dilation": [1, 1],
            "OutMaps": 16,
            "Groups": 1,
            "Weights": {"Type": "Half", "Count": 432},
            "Bias": {"Type": "Half", "Count": 16},
            "Activation": "RELU",
            "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc",
            "TacticValue": "0x9cb304e2edbc1221",
            "StreamId": 0,
            "Metadata": "[ONNX Layer: stem/Conv]\u001e[ONNX Layer: stem/Relu]",
        },
        {
            "Name": "Reformatting CopyNode for Output Tensor 0 to pool",
            "LayerType": "Reformat",
            "Inputs": [tensor("r", [1, 16, 8, 8], version, packed)],
            "Outputs": [tensor("r linear", [1, 16, 8, 8], version)],
            "ParameterType": "Reformat",
            "Metadata": "",
        },
        {
            "Name": "pool",
            "LayerType": "CaskPooling",
            "Inputs": [tensor("r linear", [1, 16, 8, 8], version)],
            "Outputs": [tensor("g", [1, 16, 1, 1], version)],
            "ParameterType": "Pooling",
            "PoolingType": "AVERAGE",
            "WindowSize": [8, 8],
            "Metadata": "[ONNX Layer: pool]",
        },
        {
            "Name": "squeeze",
            "LayerType": "NoOp",
            "Inputs": [tensor("g", [1, 16, 1, 1], version)],
            "Outputs": [tensor("f", [1, 16], version)],
            "ParameterType": "NoOp",
            "Metadata": "[ONNX Layer: flatten]",
        },
        {
            "Name": "__myl_Fc_myl0_1",
            "LayerType": "gemm",
            "Inputs": [tensor("f", [1, 16], version)],
            "Outputs": [tensor("y", [1, 10], version)],
            "TacticName": "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n",
            "StreamId": 0,
            "Metadata": "[ONNX Layer: linear]",
        },
    ]
    if version == 10:
        return json.dumps({"Layers": layers, "Bindings": ["x", "y"]})
    ends = [
        {**tensor("x", [1, 3, 8, 8], 11), "IOMode": "Input", "IsShapeInferenceIO": False},
        {**tensor("y", [1, 10], 11), "IOMode": "Output", "IsShapeInferenceIO": False},
    ]
    return json.dumps({"Layers": layers, "I/O Tensors": ends})


@pytest.mark.parametrize("version", [10, 11])
def test_layers_are_read(version: int) -> None:
    layers = engine_layers(information(version))
    assert [layer.kind for layer in layers] == [
        "Reformat", "Convolution", "Reformat", "Pooling", "NoOp", "gemm",
    ]  # fmt: skip
    conv = layers[1]
    assert conv.nodes == ("stem/Conv", "stem/Relu") and conv.weights == (432, 16)
    assert conv.tactic.startswith("sm80_xmma_fprop")
    assert conv.outputs[0].dtype == "float16" and conv.outputs[0].shape == (1, 16, 8, 8)
    assert layers[3].outputs[0].dtype == "float32"
    assert layers[5].nodes == ("linear",) and layers[5].weights == (0, 0)


@pytest.mark.parametrize("version", [10, 11])
def test_what_is_executed_has_the_original_s_nodes_and_tensors(model, version: int) -> None:
    graph = onnx.load_from_string(executed_by_engine(model, engine_layers(information(version))))
    nodes = {node.name: node for node in graph.graph.node}
    assert [node.op_type for node in graph.graph.node] == [
        "ReorderInput", "Conv", "ReorderOutput", "GlobalAveragePool", "Gemm",
    ]  # fmt: skip
    conv = nodes["stem/Conv + stem/Relu"]
    attributes = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    assert attributes["activation"] == b"Relu" and attributes["kernel_shape"] == [3, 3]
    assert conv.output[0] == "r" and conv.domain == "tensorrt.packed"
    # What takes no time passes its input on.
    assert nodes["__myl_Fc_myl0_1"].input[0] == "g" and nodes["__myl_Fc_myl0_1"].output[0] == "y"
    shapes = {t.name: tuple(t.dims) for t in graph.graph.initializer}
    assert shapes[conv.input[1]] == (16, 3, 3, 3)


def test_kernels_can_be_read_from_it(model) -> None:

    layers = engine_layers(information(10))
    kernels = read_kernels(model, executed_by_engine(model, layers)).kernels
    assert [kernel.name for kernel in kernels] == [
        layer.name for layer in layers if layer.kind != "NoOp"
    ]
    nodes = {kernel.name: kernel.nodes for kernel in kernels}
    assert nodes["stem/Conv + stem/Relu"] == ("stem/Conv", "stem/Relu")
    assert nodes["__myl_Fc_myl0_1"] == ("linear", "flatten")


def test_quantised_tensors_are_told() -> None:
    data = json.loads(information(10))
    data["Layers"][1]["Inputs"][0]["Format/Datatype"] = (
        "Thirty-two wide channel vectorized row major Int8 format"
    )
    assert engine_layers(json.dumps(data))[1].inputs[0].dtype == "int8"


def test_times_are_summed_by_layer_and_run() -> None:
    layers = engine_layers(information(10))
    conv, pool = layers[1].name, layers[3].name
    reports = [
        [("copy", 0.1), (conv, 1.0), (pool, 0.5), (conv, 0.25)],
        [("copy", 0.1), (conv, 2.0), (pool, 0.5)],
    ]
    timings = layer_timings(layers, reports)
    assert list(timings) == [conv, pool, "copy"]
    assert timings[conv].samples_ms == (1.25, 2.0) and timings[conv].op == "Convolution"
    assert timings["copy"].op == "other"


def test_a_layer_that_some_runs_lack_is_left_out() -> None:
    layers = engine_layers(information(10))
    assert layer_timings(layers, [[(layers[1].name, 1.0)], []]) == {}
    assert layer_timings(layers, []) == {}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("no json", "no JSON"),
        ("{}", "no JSON"),
        ('{"Layers": ["stem/Conv + stem/Relu"], "Bindings": []}', "names of layers only"),
        ('{"Layers": [{"LayerType": "Reformat"}]}', "cannot be read"),
        ('{"Layers": [{"Name": "a", "Inputs": [1]}]}', "cannot be read"),
    ],
)
def test_what_is_not_the_inspector_s_is_refused(wrong: str, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says) as caught:
        engine_layers(wrong)
    assert "\n" not in str(caught.value)


def test_nodes_that_the_model_does_not_have_are_no_harm(model) -> None:
    data = json.loads(information(10))
    data["Layers"][1]["Metadata"] = "[ONNX Layer: elsewhere]"
    graph = onnx.load_from_string(executed_by_engine(model, engine_layers(json.dumps(data))))
    assert graph.graph.node[1].op_type == "Conv"


def test_the_constructed_network_is_the_fixture_s(model) -> None:
    names = {node.name for node in model.graph.node}
    told = {name for layer in engine_layers(information(10)) for name in layer.nodes}
    assert told == names
    assert numpy_helper.to_array(model.graph.initializer[0]).size == 432
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
