"""Networks and device cards that several tests share."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from latency import DeviceCard, profile_device
from latency.graph_builder import GraphBuilder


def block_model(width: int = 32, side: int = 28, act: str = "relu6") -> onnx.ModelProto:
    """A little network with everything that mobile networks have, ONNX nodes named by layer."""
    g = GraphBuilder((1, 3, side, side), np.random.default_rng(0))
    x = g.activation("stem/act", g.conv("stem", "input", width, 3, 2), act)
    y = g.activation("blocks.0/act1", g.conv("blocks.0/expand", x, width * 3), act)
    y = g.conv("blocks.0/depthwise", y, width * 3, 3, 1, width * 3)
    y = g.activation("blocks.0/act2", y, act)
    y = g.squeeze_excite("blocks.0/se", y, 8)
    x = g.add("blocks.0/add", g.conv("blocks.0/project", y, width), x)
    a = g.pool("pools/max", x, 3, 2, mean=False)
    b = g.pool("pools/mean", x, 3, 2, mean=True)
    x = g.concat("join", [a, b])
    x = g.activation("grouped/act", g.conv("grouped", x, width * 2, 3, 1, 4), "hardswish")
    x = g.activation("dilated/act", g.conv("dilated", x, width, 3, 1, 1, 2), "silu")
    return g.finish(g.head("head", x, 10))


@pytest.fixture(scope="session")
def network() -> onnx.ModelProto:
    return block_model()


@pytest.fixture(scope="session")
def make_network():
    return block_model


@pytest.fixture(scope="session")
def simulated_card(tmp_path_factory: pytest.TempPathFactory) -> DeviceCard:
    """A finished card from the simulated runtime."""
    path = tmp_path_factory.mktemp("cards") / "simulated.card"
    return profile_device(
        path,
        runtime="simulated",
        rounds=3,
        probes=30,
        extra_models={"block": block_model()},
    )


@pytest.fixture(scope="session")
def real_card(tmp_path_factory: pytest.TempPathFactory) -> DeviceCard:
    """A small finished card from ONNX Runtime on this machine."""
    path: Path = tmp_path_factory.mktemp("cards") / "real.card"
    return profile_device(path, rounds=4, probes=10, extra_models={"block": block_model()})
