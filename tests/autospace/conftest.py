"""A device card and a Fashion-MNIST look-alike that several tests share."""

from pathlib import Path

import numpy as np
import pytest
from datafiles import write_idx

from latency import DeviceCard, profile_device


@pytest.fixture(scope="session")
def simulated_card(tmp_path_factory: pytest.TempPathFactory) -> DeviceCard:
    """A finished card from the simulated runtime; its times are computed, so nothing is noisy."""
    path = tmp_path_factory.mktemp("cards") / "simulated.card"
    return profile_device(path, runtime="simulated", rounds=2, probes=10)


@pytest.fixture
def fashion_folder(tmp_path: Path) -> Path:
    """Forty training and ten test images of 28×28 in IDX files."""
    folder = tmp_path / "fashion"
    folder.mkdir()
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 10)):
        images = random.integers(0, 256, (count, 28, 28))
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(count) % 4)
    return folder
