"""What is learned on, and the layout at which costs are counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autospace.accelerator import Accelerator, resolve_accelerator
from autospace.data import Data, load_data
from autospace.skeleton import Skeleton, find_skeleton
from autospace.space import Architecture
from devices.errors import AutospaceError

if TYPE_CHECKING:
    from autospace.training import TrainedNetwork

__all__ = ["data_of", "load_proxy", "target_skeleton"]

_PROXY_RESOLUTION = 64


def target_skeleton(
    name: str, data: Data, *, resolution: int | None = None, width_mult: float = 1.0
) -> Skeleton:
    """The macro layout at which costs are counted.

    ``mobile`` stays ImageNet's (224×224, 3 channels, 1000 classes) whatever is learned on, unless
    that is a folder of images; the small layouts take the data's channels and classes.

    Args:
        name: of the layout.
        data: what is learned on.
        resolution: another input size of the target.
        width_mult: multiplies every width.

    Raises:
        UsageError: unknown layout.
    """
    skeleton = find_skeleton(name)
    if name != "mobile" or data.name == "folder":
        skeleton = skeleton.for_data(
            resolution=skeleton.resolution,
            in_channels=data.channels,
            num_classes=data.num_classes,
        )
    return replace(skeleton, resolution=resolution or skeleton.resolution, width_mult=width_mult)


def load_proxy(
    name: str,
    root: Path | None,
    skeleton: Skeleton,
    resolution: int | None = None,
    accelerator: Accelerator = "cpu",
) -> Data:
    """The data at the input size to learn at: the target's own where it is small.

    Raises:
        UnavailableError: the accelerator is not here; before anything is read.
    """
    where = resolve_accelerator(accelerator)
    if resolution is None and skeleton.resolution <= _PROXY_RESOLUTION:
        resolution = skeleton.resolution
    channels = skeleton.in_channels if skeleton.in_channels in (1, 3) else None
    # A one-channel layout takes colour data as it is; a three-channel one repeats grey.
    channels = channels if channels == 3 else None
    data = load_data(name, root, resolution=resolution, channels=channels)
    return replace(data, accelerator=where)


def data_of(
    network: Architecture | TrainedNetwork, name: str | None, root: Path | None
) -> tuple[Data | None, str | None]:
    """The images that a network's files are judged by.

    Args:
        network: whose input they have to fit.
        name: of a data set; None for the one that the network was trained on.
        root: the folder of its files.

    Returns:
        The data, None where there are none; and then why, where that is worth saying.

    Raises:
        UsageError: the data set that was named is unknown.
        InvalidInputError: its files are missing or broken.
    """
    from autospace.training import TrainedNetwork

    architecture = network.architecture if isinstance(network, TrainedNetwork) else network
    skeleton = architecture.skeleton
    own = network.meta.get("data") if isinstance(network, TrainedNetwork) else None
    if name is None and own is None:
        return None, None
    try:
        found = load_data(
            name or str(own).partition(" at ")[0],
            root,
            resolution=skeleton.resolution,
            channels=skeleton.in_channels,
        )
    except AutospaceError as error:
        if name is not None:
            raise
        return None, f"compared on random images: {error}"
    return found, None
