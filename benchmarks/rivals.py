"""Networks that people take without searching: torchvision's mobile ones, made for small images.

MobileNetV2, MobileNetV3-small, MNASNet and ShuffleNetV2 as torchvision builds them, with what has
to be changed for images of 32×32, for any latency, and for a comparison:

- *Strides.* At 224×224 all four halve their input five times. Here their first halving is left out,
  that of the first convolution, so that the last feature map is 2×2 for an input of 32×32.
- *Widths.* One multiplier scales every width, that of the last convolution too, which torchvision
  keeps at 1280 (MobileNetV2, MNASNet); ShuffleNetV2's are those of its size 1.0. All are rounded to
  multiples of 8 as torchvision rounds.
- *Input.* The first convolution takes as many channels as the data has.
- *Training.* Fresh weights are drawn as for all other networks, there is no dropout, and batch
  norm's running statistics have momentum 0.1: MNASNet's 0.0003 and MobileNetV3's 0.01 are for
  trainings of hundreds of epochs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from autospace.files import content_hash
from autospace.network import initialise
from autospace.vision import torchvision

if TYPE_CHECKING:
    import onnx
    from torch import nn

__all__ = ["RIVALS", "Rival"]

_NARROWEST = 8


@dataclass(frozen=True)
class Rival:
    """One of torchvision's networks at some width.

    Attributes:
        family: one of `RIVALS`.
        width: multiplier of every width.
        side: height and width of the input, in pixels.
        channels: of the input.
        classes: of the output.
    """

    family: str
    width: float
    side: int
    channels: int
    classes: int

    def build(self, seed: int) -> nn.Module:
        """The network with fresh weights.

        Args:
            seed: of the weights.

        Returns:
            A module from ``(batch, channels, side, side)`` to logits ``(batch, classes)``.
        """
        import torch
        from torch import nn

        network: nn.Module = RIVALS[self.family](self.width, self.classes)
        _take_channels(network, self.channels)
        _leave_out_first_halving(network)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.1
            elif isinstance(layer, nn.Dropout):
                layer.p = 0.0
        initialise(network, torch.Generator().manual_seed(seed))
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def onnx(self, batch: int = 1) -> onnx.ModelProto:
        """The network as it is measured; its weights are of no importance."""
        import onnx
        import torch

        images = torch.zeros(batch, self.channels, self.side, self.side)
        with warnings.catch_warnings(), TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            path = Path(folder) / "rival.onnx"
            torch.onnx.export(
                self.build(0).eval(), (images,), path, dynamo=False, opset_version=17,
                input_names=["input"], output_names=["logits"],
            )  # fmt: skip
            return onnx.load(path)

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return sum(parameter.numel() for parameter in self.build(0).parameters())

    @property
    def shape(self) -> str:
        """Tells networks apart: widths that round to the same channels give the same."""
        network = self.build(0)
        return content_hash([list(parameter.shape) for parameter in network.parameters()])

    @property
    def hash(self) -> str:
        """A stable short hash of what it is."""
        return content_hash(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Rival:
        """From what `to_json` gave."""
        return Rival(**document)


def _mobilenet_v2(width: float, classes: int) -> Any:
    from torch import nn

    network = torchvision().models.MobileNetV2(classes, width_mult=width)
    last = _scaled(1280, width)
    head, norm = network.features[-1][0], network.features[-1][1]
    network.features[-1][0] = nn.Conv2d(head.in_channels, last, 1, bias=False)
    network.features[-1][1] = nn.BatchNorm2d(last, norm.eps)
    network.classifier = nn.Linear(last, classes)
    return network


def _mobilenet_v3_small(width: float, classes: int) -> Any:
    network = torchvision().models.mobilenet_v3_small(
        weights=None, width_mult=width, num_classes=classes
    )
    return network


def _mnasnet(width: float, classes: int) -> Any:
    from torch import nn

    network = torchvision().models.MNASNet(width, classes)
    last = _scaled(1280, width)
    head = network.layers[-3]
    network.layers[-3] = nn.Conv2d(head.in_channels, last, 1, bias=False)
    network.layers[-2] = nn.BatchNorm2d(last)
    network.classifier = nn.Linear(last, classes)
    return network


def _shufflenet_v2(width: float, classes: int) -> Any:
    widths = [_scaled(own, width) for own in (24, 116, 232, 464, 1024)]
    network = torchvision().models.ShuffleNetV2([4, 8, 4], widths, classes)
    return network


RIVALS: Mapping[str, Callable[[float, int], Any]] = {
    "MobileNetV2": _mobilenet_v2,
    "MobileNetV3-small": _mobilenet_v3_small,
    "MNASNet": _mnasnet,
    "ShuffleNetV2": _shufflenet_v2,
}
"""What builds each family, from a width multiplier and the number of classes."""


def _scaled(width: int, multiplier: float) -> int:
    """A multiple of 8, never below 90 % of what is asked for: torchvision's rule."""
    target = width * multiplier
    rounded = max(_NARROWEST, int(target + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * target else rounded


def _take_channels(network: nn.Module, channels: int) -> None:
    """Gives the first convolution another number of input channels."""
    from torch import nn

    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    made = nn.Conv2d(channels, first.out_channels, first.kernel_size, bias=False)  # type: ignore[arg-type]
    first.in_channels, first.weight = channels, made.weight


def _leave_out_first_halving(network: nn.Module) -> None:
    from torch import nn

    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    first.stride = (1, 1)
