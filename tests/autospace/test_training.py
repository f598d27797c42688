from __future__ import annotations

import pytest
import torch

from autospace.data import load_data
from autospace.genotype import REFERENCE_CELLS
from autospace.network import build_network
from autospace.seeding import Seed
from autospace.skeleton import SKELETONS
from autospace.space import Architecture
from autospace.train_options import TrainOptions
from autospace.training import TrainedNetwork, accuracy, recalibrate_norms, train_network
from devices.errors import AutospaceError, InvalidInputError, UsageError

ARCHITECTURE = Architecture(SKELETONS["tiny"], (REFERENCE_CELLS[2],) * 6)
OPTIONS = TrainOptions(epochs=2, batch=128)


@pytest.fixture(scope="module")
def data():
    return load_data("digits", resolution=16)


@pytest.fixture(scope="module")
def trained(data):
    return train_network(ARCHITECTURE, data, options=TrainOptions(epochs=5, batch=64))


def test_it_learns(trained):
    assert trained.accuracy > 0.7


def test_a_checkpoint_comes_back_whole(trained, data, tmp_path):
    trained.save(tmp_path / "net.safetensors")
    loaded = TrainedNetwork.load(tmp_path / "net.safetensors")
    assert loaded.architecture == trained.architecture
    assert loaded.accuracy == trained.accuracy
    assert accuracy(loaded.network, data, data.test) == trained.accuracy


def test_a_damaged_checkpoint_is_refused_in_one_line(trained, tmp_path):
    path = tmp_path / "net.safetensors"
    trained.save(path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:20], b"", b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(InvalidInputError) as caught:
            TrainedNetwork.load(path)
        assert "\n" not in str(caught.value)


def test_interrupted_it_ends_with_the_same_weights(data, tmp_path):
    whole = train_network(ARCHITECTURE, data, options=OPTIONS, log=tmp_path / "whole.jsonl")

    def stop(fraction, message):
        if fraction >= 0.7:
            raise KeyboardInterrupt

    state, log = tmp_path / "state", tmp_path / "log.jsonl"
    with pytest.raises(KeyboardInterrupt):
        train_network(ARCHITECTURE, data, options=OPTIONS, state=state, log=log, progress=stop)
    resumed = train_network(ARCHITECTURE, data, options=OPTIONS, state=state, log=log)
    states = whole.network.state_dict(), resumed.network.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert log.read_text() == (tmp_path / "whole.jsonl").read_text()


def test_the_validation_split_is_trained_on_unless_held_out(data):
    held = train_network(ARCHITECTURE, data, options=TrainOptions(epochs=1, holdout=True))
    free = train_network(ARCHITECTURE, data, options=TrainOptions(epochs=1))
    assert held.meta["validation_accuracy"] is not None
    assert free.meta["validation_accuracy"] is None


def test_a_loss_that_is_no_number_stops_and_says_where(data):
    with pytest.raises(AutospaceError, match=r"train, step \d+: the loss is (nan|inf)"):
        train_network(ARCHITECTURE, data, options=TrainOptions(epochs=3, learning_rate=1e30))


def test_recalibrated_norms_fit_the_data(data):
    network = build_network(ARCHITECTURE, 0)
    before = network.layers["stem"].norm.running_mean.clone()
    recalibrate_norms(network, data, Seed(0), batches=2)
    assert not torch.equal(before, network.layers["stem"].norm.running_mean)
    assert network.layers["stem"].norm.momentum == 0.1
    assert not network.training


def test_impossible_recipes_are_named(data):
    with pytest.raises(UsageError, match="epochs 0"):
        train_network(ARCHITECTURE, data, options=TrainOptions(epochs=0))
