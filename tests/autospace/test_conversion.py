"""Files for real runtimes: written, run by the runtime itself, compared with PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from autospace import steps
from autospace.conversion import CONVERTERS, LOWERING, SUFFIXES, TOLERANCES, convert, quantised
from autospace.mutation import random_cell
from autospace.network import build_network
from autospace.onnx_export import architecture_of_onnx, build_onnx, folded_weights, outputs_of
from autospace.seeding import Seed
from autospace.skeleton import Skeleton, Stage
from autospace.space import Architecture
from autospace.training import TrainedNetwork
from devices.errors import AutospaceError, InvalidInputError
from devices.runtimes import get_runtime

SKELETON = Skeleton(
    name="test", resolution=12, in_channels=1, num_classes=10, stem_width=8, stem_stride=1,
    first_width=8, stages=(Stage(16, 2, 1), Stage(16, 1, 1)), head_width=32,
)  # fmt: skip
FORMATS = ("onnx", "openvino")


@pytest.fixture(scope="module")
def architecture() -> Architecture:
    random = Seed(3).generator("cells")
    return Architecture(SKELETON, tuple(random_cell(random).fused() for _ in SKELETON.blocks))


@pytest.fixture(scope="module")
def trained(architecture: Architecture) -> TrainedNetwork:
    """A network that says it was trained on digits."""
    return TrainedNetwork(
        architecture, build_network(architecture, 1).eval(), 0.1, {"data": "digits at 12×12, …"}
    )


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 1, 12, 12)).astype(np.float32)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_format_in_every_precision(
    trained: TrainedNetwork, precision: str, tmp_path: Path
) -> None:
    data, doubt = steps.data_of(trained, None, None)
    assert data is not None and data.name == "digits" and doubt is None
    found = steps.export(
        trained, tmp_path / "m.onnx", batch=8, data=data, formats=FORMATS, precision=precision
    )
    assert [file.format for file in found.files] == list(FORMATS)
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.xml", "m.bin"}
    for file in found.files:
        assert file.check.relative_error <= TOLERANCES[precision]
        assert file.check.images % 8 == 0
        # Accuracy before and after, of one and the same images.
        assert file.accuracy is not None and found.accuracy is not None
        assert abs(file.accuracy - found.accuracy) < 0.1
    written = onnx.load(tmp_path / "m.onnx")
    assert architecture_of_onnx(written) == trained.architecture
    ops = {node.op_type for node in written.graph.node}
    kinds = {tensor.data_type for tensor in written.graph.initializer}
    assert ("QuantizeLinear" in ops) == (precision == "int8")
    assert (onnx.TensorProto.FLOAT16 in kinds) == (precision == "fp16")
    if precision == "fp16":
        assert onnx.TensorProto.FLOAT not in kinds
        assert (tmp_path / "m.bin").stat().st_size < 0.7 * 4 * trained.architecture.params


def test_a_file_that_computes_something_else_is_not_kept(
    architecture: Architecture, tmp_path: Path
) -> None:
    network = build_network(architecture, 1).eval()
    model = build_onnx(architecture.nodes, folded_weights(network))
    sample = images(4)
    expected = outputs_of(network, sample, 1).copy()
    expected[2, 7] += 1.0
    for kind in FORMATS:
        path = tmp_path / f"m{SUFFIXES[kind]}"
        with pytest.raises(AutospaceError, match=r"logit 7 of image 2 .* not written") as caught:
            convert(model, kind, path, precision="fp32", images=sample, expected=expected)
        assert f"--{kind}" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_quantising_is_repeatable_and_depends_on_the_images(architecture: Architecture) -> None:
    network = build_network(architecture, 1).eval()
    model = build_onnx(architecture.nodes, folded_weights(network))
    one, again, other = (quantised(model, scale * images(8)) for scale in (1, 1, 3))
    assert one.SerializeToString() == again.SerializeToString() != other.SerializeToString()


def test_the_command_prints_accuracy_before_and_after(
    trained: TrainedNetwork, tmp_path: Path, capsys, monkeypatch
) -> None:
    from autospace.cli import main

    monkeypatch.chdir(tmp_path)
    trained.save(tmp_path / "c.safetensors")
    with pytest.raises(SystemExit) as end:
        main(["export", "c.safetensors", "--onnx", "--openvino", "--precision", "int8", "--json"])
    output = capsys.readouterr().out
    assert end.value.code == 0
    found = json.loads(output)
    assert found["precision"] == "int8"
    assert [file["format"] for file in found["files"]] == list(FORMATS)
    assert 0 <= found["accuracy"] <= 1
    assert (tmp_path / "c-int8.onnx").exists() and (tmp_path / "c-int8.xml").exists()


def test_data_that_is_not_there_is_said_and_done_without(architecture: Architecture) -> None:
    network = TrainedNetwork(
        architecture, build_network(architecture, 1).eval(), 0.1, {"data": "folder at 12×12"}
    )
    data, doubt = steps.data_of(network, None, None)
    assert data is None and doubt is not None and "random images" in doubt
    assert steps.data_of(architecture, None, None) == (None, None)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("ncnn", {"m.ncnn.param", "m.ncnn.bin"}),
        ("executorch", {"m.pte"}),
        ("litert", {"m.tflite"}),
    ],
)
def test_files_of_phone_runtimes(
    trained: TrainedNetwork, name: str, written: set[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    from autospace.cli import main

    status = get_runtime(name).status()
    if not status.usable:
        pytest.skip(f"{name} is {status.reason}: {status.install}")
    monkeypatch.chdir(tmp_path)
    trained.save(tmp_path / "m.safetensors")
    with pytest.raises(SystemExit) as end:
        main(["export", "m.safetensors", f"--{name}", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert end.value.code == 0
    assert found["files"][0]["check"]["relative_error"] <= TOLERANCES["fp32"]
    assert Path(found["model"]).name in written
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors", *written}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_phone_runtimes_in_fewer_bits(
    trained: TrainedNetwork, precision: str, tmp_path: Path
) -> None:
    formats = tuple(
        name for name in LOWERING[precision] if name in ("executorch", "litert", "ncnn")
    )
    for name in formats:
        status = get_runtime(name).status()
        if not status.usable:
            pytest.skip(f"{name} is {status.reason}: {status.install}")
    data, _ = steps.data_of(trained, None, None)
    found = steps.export(
        trained, tmp_path / "m.pte", data=data, formats=formats, precision=precision
    )
    assert [file.format for file in found.files] == list(formats)
    for file in found.files:
        assert 1e-6 < file.check.relative_error <= TOLERANCES[precision]
        assert file.accuracy is not None and found.accuracy is not None
        assert abs(file.accuracy - found.accuracy) < 0.1
        assert file.path.is_file()


@pytest.mark.parametrize(
    ("asked", "formats", "precision", "written"),
    [
        ([], ["onnx"], "fp16", {"m-fp16.onnx"}),
        (["-o", "net1.5"], ["onnx"], "fp32", {"net1.5"}),
        (["-o", "net1.5"], ["openvino"], "fp32", {"net1.5.xml", "net1.5.bin"}),
        (["-o", "net"], ["onnx", "openvino"], "fp32", {"net.onnx", "net.xml", "net.bin"}),
        (["-o", "net.xml"], ["onnx", "openvino"], "fp32", {"net.onnx", "net.xml", "net.bin"}),
    ],
)
def test_files_are_named_after_their_format(
    trained: TrainedNetwork, asked, formats, precision, written, tmp_path: Path, monkeypatch
) -> None:
    from autospace.cli import main

    monkeypatch.chdir(tmp_path)
    trained.save(tmp_path / "m.safetensors")
    options = [*(f"--{name}" for name in formats), "--precision", precision, *asked]
    with pytest.raises(SystemExit) as end:
        main(["export", "m.safetensors", *options])
    assert end.value.code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors", *written}


def test_what_was_written_before_a_format_failed_is_said(
    trained: TrainedNetwork, tmp_path: Path, monkeypatch
) -> None:
    def refuses(*_: object) -> object:
        raise InvalidInputError("model node 'x': refused.")

    monkeypatch.setattr("autospace.conversion.CONVERTERS", {**CONVERTERS, "openvino": refuses})
    with pytest.raises(InvalidInputError, match=r"refused; written before that: .*m\.onnx"):
        steps.export(trained, tmp_path / "m.onnx", formats=("onnx", "openvino"))
    assert (tmp_path / "m.onnx").is_file()


def test_a_precision_that_a_format_has_not_is_refused(
    trained: TrainedNetwork, tmp_path: Path, capsys, monkeypatch
) -> None:
    from autospace.cli import main

    if not get_runtime("ncnn").status().usable:
        pytest.skip("ncnn is not installed: pip install 'autospace[ncnn]'")
    monkeypatch.chdir(tmp_path)
    trained.save(tmp_path / "m.safetensors")
    with pytest.raises(SystemExit) as end:
        main(["export", "m.safetensors", "--onnx", "--ncnn", "--precision", "int8"])
    said = capsys.readouterr().err
    assert end.value.code == 4
    assert "ncnn has fp32, fp16; for int8 take --onnx, --openvino, --executorch" in said
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors"}
