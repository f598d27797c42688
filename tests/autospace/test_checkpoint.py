"""Checkpoints: exact, at once, and refused in a line when anything is wrong with them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from autospace.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
)
from devices.errors import InvalidInputError, UsageError

WHAT = "a trained checkpoint"


@pytest.fixture
def checkpoint() -> Checkpoint:
    random = torch.Generator().manual_seed(0)
    return Checkpoint(
        "trained",
        {
            "net/weight": torch.randn(3, 4, generator=random),
            "net/turned": torch.randn(4, 3, generator=random).t(),
            "net/double": torch.randn(2, generator=random, dtype=torch.float64),
            "other/count": torch.tensor(7),
        },
        {"step": 3, "names": ["ü", "→"], "rate": 0.1},
    )


def test_round_trip(tmp_path: Path, checkpoint: Checkpoint) -> None:
    path = tmp_path / "file.safetensors"
    checkpoint.save(path)
    read = load_checkpoint(path, "trained", WHAT)
    assert read.meta == checkpoint.meta
    assert set(read.tensors) == set(checkpoint.tensors)
    for name, value in checkpoint.tensors.items():
        assert torch.equal(read.tensors[name], value)
        assert read.tensors[name].dtype == value.dtype
    assert set(read.part("net")) == {"weight", "turned", "double"}
    assert list(tmp_path.iterdir()) == [path]


def test_any_reader_of_safetensors_can_read_it(tmp_path: Path, checkpoint: Checkpoint) -> None:
    checkpoint.save(tmp_path / "file")
    arrays = load_file(tmp_path / "file")
    assert set(arrays) == set(checkpoint.tensors)
    np.testing.assert_array_equal(arrays["net/turned"], checkpoint.tensors["net/turned"].numpy())


@pytest.mark.parametrize("size", [1, 7, 8, 9, 100, -1])
def test_truncated_files(tmp_path: Path, checkpoint: Checkpoint, size: int) -> None:
    path = tmp_path / "file.safetensors"
    checkpoint.save(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InvalidInputError, match=f"not readable .*; expected {WHAT}") as caught:
        load_checkpoint(path, "trained", WHAT)
    assert "\n" not in str(caught.value)


def test_other_files(tmp_path: Path, checkpoint: Checkpoint) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(InvalidInputError, match="no such file; expected a trained"):
        load_checkpoint(path, "trained", WHAT)
    with pytest.raises(InvalidInputError, match="is a folder"):
        load_checkpoint(tmp_path, "trained", WHAT)
    path.touch()
    with pytest.raises(InvalidInputError, match="empty"):
        load_checkpoint(path, "trained", WHAT)
    path.write_text('{"format": "autospace.space"}' * 9)
    with pytest.raises(InvalidInputError, match="not readable"):
        load_checkpoint(path, "trained", WHAT)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(InvalidInputError, match=r"not a trained checkpoint \(another program's"):
        load_checkpoint(path, "trained", WHAT)
    save_file({"a": torch.zeros(2)}, path, metadata={"autospace": "{"})
    with pytest.raises(InvalidInputError, match="not readable"):
        load_checkpoint(path, "trained", WHAT)
    checkpoint.save(path)
    with pytest.raises(InvalidInputError, match=r"not a search state \(trained file\)"):
        load_checkpoint(path, "search", "a search state")


def test_an_output_that_cannot_be_written(tmp_path: Path, checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        checkpoint.save(tmp_path / "missing" / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_an_optimizer_goes_on_where_it_was(tmp_path: Path, kind: str) -> None:
    def made() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        value = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        optimizer: torch.optim.Optimizer = (
            torch.optim.SGD([value], 0.1, momentum=0.9, nesterov=True)
            if kind == "sgd"
            else torch.optim.Adam([value], 0.1)
        )
        return value, optimizer

    def steps(value: torch.nn.Parameter, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            (value**2).sum().backward()
            optimizer.step()

    whole, whole_optimizer = made()
    steps(whole, whole_optimizer, 5)
    first, first_optimizer = made()
    steps(first, first_optimizer, 3)
    saved = Checkpoint(
        "state", {f"o/{k}": v for k, v in optimizer_tensors(first_optimizer).items()}, {}
    )
    saved.save(tmp_path / "state")
    second, second_optimizer = made()
    with torch.no_grad():
        second.copy_(first)
    restored = load_checkpoint(tmp_path / "state", "state", "a state").part("o")
    assert restored
    restore_optimizer(second_optimizer, restored)
    steps(second, second_optimizer, 2)
    assert torch.equal(second, whole)
