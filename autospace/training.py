"""Training one network: SGD with a cosine, on training and validation data, test at the end.

Whatever a network was chosen by, its accuracy is quoted on the test split, which neither the
search nor the training has seen.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from autospace.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    saved_state,
)
from autospace.checks import finite_loss
from autospace.clipping import clip_gradients
from autospace.data import Data, Split
from autospace.events import Journal, Progress, SaveClock, silent
from autospace.files import content_hash
from autospace.network import NodeGraph, build_network, weight_decay_groups
from autospace.seeding import Seed
from autospace.space import Architecture
from autospace.train_options import TrainOptions
from devices.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "TrainedNetwork",
    "accuracy",
    "classified_right",
    "recalibrate_norms",
    "train_module",
    "train_network",
]

_STATE = "autospace.training"
TRAINED = "autospace.trained"
"""The kind of a finished checkpoint."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with its weights and what is known of it.

    Attributes:
        architecture: in the skeleton of the data it was trained on.
        network: the torch module, in evaluation mode.
        accuracy: on the test split; None for untrained weights.
        meta: data, options, seed, normalisation, history.
    """

    architecture: Architecture
    network: NodeGraph
    accuracy: float | None
    meta: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Writes the checkpoint at once.

        Raises:
            UsageError: the file cannot be written.
        """
        tensors = {f"net/{name}": value for name, value in self.network.state_dict().items()}
        meta = {
            **self.meta,
            "architecture": self.architecture.to_json(),
            "accuracy": self.accuracy,
        }
        Checkpoint(TRAINED, tensors, meta).save(path)

    @staticmethod
    def load(path: Path) -> TrainedNetwork:
        """Reads a checkpoint.

        Raises:
            InvalidInputError: not one, damaged, or weights that do not fit the architecture.
        """
        checkpoint = load_checkpoint(path, TRAINED, "a trained checkpoint")
        meta = dict(checkpoint.meta)
        architecture = Architecture.from_json(meta.pop("architecture"))
        network = build_network(architecture, 0)
        try:
            network.load_state_dict(checkpoint.part("net"))
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise InvalidInputError(
                f"{path}: weights do not fit the architecture in it ({reason})"
            ) from None
        network.eval()
        return TrainedNetwork(architecture, network, meta.pop("accuracy"), meta)


def classified_right(network: nn.Module, data: Data, split: Split) -> NDArray[np.bool_]:
    """Which of a split's images are classified right, shape ``(images,)``."""
    network.eval()
    with torch.no_grad():
        right = [network(images).argmax(1) == labels for images, labels in data.batches(split)]
    return torch.cat(right).cpu().numpy()


def accuracy(network: nn.Module, data: Data, split: Split) -> float:
    """The share of a split's images that are classified right."""
    return float(classified_right(network, data, split).mean())


def recalibrate_norms(
    network: nn.Module, data: Data, seed: Seed, *, batches: int = 8, batch: int = 128
) -> None:
    """Recomputes batch norm's running statistics as the plain average over training batches."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    with torch.no_grad():
        for step in range(batches):
            network(data.training_batch(data.train, batch, step, seed, augment=False)[0])
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    network.eval()


def train_network(
    architecture: Architecture,
    data: Data,
    *,
    options: TrainOptions | None = None,
    seed: Seed | None = None,
    state: Path | None = None,
    log: Path | None = None,
    progress: Progress = silent,
) -> TrainedNetwork:
    """Trains a network from fresh weights and tests it.

    Args:
        architecture: what to train; its skeleton takes the data's input size and classes.
        data: training and validation splits are learned, the test split is for the end.
        options: the recipe.
        seed: of weights, order and augmentation.
        state: where the state is saved as it goes, and resumed from if it is there.
        log: the JSON-lines log, one line an epoch.
        progress: is told as it goes.

    Raises:
        UsageError: an impossible recipe.
        AutospaceError: the loss is no longer a number.
    """
    options = options or TrainOptions()
    seed = (seed or Seed(0)).child("train")
    options.check()
    skeleton = architecture.skeleton.for_data(
        resolution=data.resolution, in_channels=data.channels, num_classes=data.num_classes
    )
    adapted = architecture.for_skeleton(skeleton)
    network = build_network(adapted, seed.integer("weights"))
    meta = train_module(
        network, data, identity=adapted.hash, options=options, seed=seed, state=state, log=log,
        progress=progress,
    )  # fmt: skip
    network.to("cpu")  # what is exported and saved there
    return TrainedNetwork(
        replace(adapted, provenance=architecture.provenance), network, meta.pop("accuracy"), meta
    )


def train_module(
    network: nn.Module,
    data: Data,
    *,
    identity: str,
    options: TrainOptions,
    seed: Seed,
    state: Path | None = None,
    log: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Trains any network in place, and tests it.

    Args:
        network: with fresh weights; from ``(batch, channels, size, size)`` to logits. It is left
            where it learned: on the data's accelerator.
        data: training and validation splits are learned, the test split is for the end.
        identity: of the network; a state of another one is not gone on with.
        options: the recipe.
        seed: of order and augmentation.
        state: where the state is saved as it goes, and resumed from if it is there.
        log: the JSON-lines log, one line an epoch.
        progress: is told as it goes.

    Returns:
        ``accuracy`` on the test split, and how it was come by.

    Raises:
        UsageError: an impossible recipe.
        AutospaceError: the loss is no longer a number.
    """
    options.check()
    network.to(data.accelerator)
    split = data.train if options.holdout else data.train.concatenated(data.validation)
    optimizer = torch.optim.SGD(
        weight_decay_groups(network.named_parameters(), options.weight_decay),
        lr=options.learning_rate,
        momentum=0.9,
        nesterov=True,
    )
    per_epoch = max(1, len(split) // min(options.batch, len(split)))
    total = per_epoch * options.epochs
    digest = content_hash([identity, asdict(options), seed.root, data.description])
    step, epoch_loss = 0, 0.0
    saved = saved_state(state, _STATE, digest)
    if saved is not None:
        _load_weights(network, saved.part("net"))
        restore_optimizer(optimizer, saved.part("optimizer"))
        step, epoch_loss = saved.meta["step"], saved.meta["epoch_loss"]
    journal = Journal(log, keep=saved.meta["lines"] if saved else 0)

    def save() -> None:
        if state is not None:
            tensors = {f"net/{name}": value for name, value in network.state_dict().items()}
            tensors |= {f"optimizer/{k}": v for k, v in optimizer_tensors(optimizer).items()}
            meta = {"digest": digest, "step": step, "epoch_loss": epoch_loss,
                    "lines": len(journal.lines)}  # fmt: skip
            Checkpoint(_STATE, tensors, meta).save(state)

    clock, started_s = SaveClock(), time.monotonic()
    warmup = max(1, total // 20)
    try:
        while step < total:
            rate = options.learning_rate * min(
                (step + 1) / warmup, 0.5 * (1 + float(np.cos(np.pi * step / total)))
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            images, labels = data.training_batch(split, options.batch, step, seed)
            network.train()
            optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(
                network(images), labels, label_smoothing=options.label_smoothing
            )
            value = finite_loss(loss, f"train, step {step}")
            loss.backward()  # type: ignore[no-untyped-call]
            clip_gradients(network.parameters(), options.clipping)
            optimizer.step()
            step += 1
            epoch_loss += value
            if step % per_epoch == 0:
                held = accuracy(network, data, data.validation) if options.holdout else None
                line = {
                    "epoch": step // per_epoch,
                    "train_loss": epoch_loss / per_epoch,
                    "learning_rate": rate,
                    "validation_accuracy": held,
                }
                journal.add(line)
                epoch_loss = 0.0
            progress(step / total, _message(step, per_epoch, options, value))
            if state is not None and clock.due():
                save()
    except KeyboardInterrupt:
        save()
        raise
    return {
        "accuracy": accuracy(network, data, data.test),
        "data": data.description,
        "mean": list(data.mean),
        "std": list(data.std),
        "options": asdict(options),
        "seed": seed.root,
        "seconds": round(time.monotonic() - started_s, 1),
        "validation_accuracy": (
            accuracy(network, data, data.validation) if options.holdout else None
        ),
    }


def _load_weights(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Loads a state that `train_module` saved.

    A file holds tensors alone. What modules say beside them of how their state is to be read is
    taken from the network itself: it is of the same code, and some refuse a state without it
    (torchvision's MNASNet).
    """
    state = OrderedDict(tensors)
    state._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(state)


def _message(step: int, per_epoch: int, options: TrainOptions, loss: float) -> str:
    epoch = (step - 1) // per_epoch + 1
    return f"epoch {epoch}/{options.epochs} · loss {loss:.3f}"
