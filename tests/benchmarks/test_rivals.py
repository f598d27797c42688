"""Torchvision's networks for small images: strides, widths, and what is measured is what learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from autospace.data import load_data
from autospace.events import Progress, silent
from autospace.seeding import Seed
from autospace.train_options import TrainOptions
from autospace.training import train_module
from benchmarks.rivals import RIVALS, Rival


def feature_maps(network: torch.nn.Module) -> list[int]:
    """Sizes after all convolutions but those of 1×1, in their order."""
    sizes: list[int] = []
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size != (1, 1):
            layer.register_forward_hook(lambda layer, given, out: sizes.append(out.shape[-1]))
    network(torch.zeros(1, 1, 32, 32))
    return sizes


@pytest.mark.parametrize("family", RIVALS)
def test_a_rival_ends_at_two_by_two_and_learns_at_every_width(family: str) -> None:
    sizes = []
    for width in (0.1, 0.6):
        rival = Rival(family, width, 32, 1, 7)
        network = rival.build(0).eval()
        assert network(torch.zeros(3, 1, 32, 32)).shape == (3, 7)
        maps = feature_maps(network)
        assert maps[0] == 32 and maps[-1] == 2
        assert all(layer.p == 0 for layer in network.modules()
                   if isinstance(layer, torch.nn.Dropout))  # fmt: skip
        sizes.append(rival.params)
        assert rival == Rival.from_json(rival.to_json())
    assert sizes[0] * 4 < sizes[1]


@pytest.mark.parametrize("family", RIVALS)
def test_a_training_that_was_stopped_goes_on(family: str, tmp_path: Path) -> None:
    data = load_data("digits", resolution=16)
    rival = Rival(family, 0.1, 16, 1, 10)
    options = TrainOptions(epochs=1, batch=256)

    def trained(progress: Progress = silent, state: Path | None = None) -> torch.nn.Module:
        network = rival.build(1)
        train_module(network, data, identity=rival.hash, options=options, seed=Seed(1),
                     state=state, progress=progress)  # fmt: skip
        return network

    def stop(fraction: float, message: str) -> None:
        if fraction >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(stop, tmp_path / "state")
    whole, resumed = trained().state_dict(), trained(state=tmp_path / "state").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_model_that_is_measured_computes_what_the_module_does() -> None:
    rival = Rival("MobileNetV3-small", 0.25, 32, 1, 10)
    images = np.random.default_rng(0).normal(size=(2, 1, 32, 32)).astype(np.float32)
    session = onnxruntime.InferenceSession(
        rival.onnx(batch=2).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"input": images})
    with torch.no_grad():
        expected = rival.build(0).eval()(torch.from_numpy(images)).numpy()
    assert logits == pytest.approx(expected, abs=1e-5)


def test_weights_depend_on_the_seed_alone() -> None:
    rival = Rival("MobileNetV3-small", 0.25, 32, 1, 10)
    first, again, other = (list(rival.build(seed).state_dict().values()) for seed in (0, 0, 1))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_widths_that_round_to_the_same_channels_have_one_shape() -> None:
    shapes = [Rival("MNASNet", width, 32, 1, 10).shape for width in (0.100, 0.101, 0.5)]
    assert shapes[0] == shapes[1] != shapes[2]
