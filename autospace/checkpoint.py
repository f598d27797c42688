"""Weights and training state as safetensors, with a JSON header: no pickle, one file, at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autospace.files import replacing
from devices.errors import InvalidInputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Checkpoint", "load_checkpoint", "optimizer_tensors", "restore_optimizer", "saved_state"]

_HEADER = "autospace"


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors and a JSON header.

    Attributes:
        kind: what it is a checkpoint of; checked on loading.
        tensors: by name.
        meta: anything JSON can hold.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Writes the file at once.

        Raises:
            UsageError: the file cannot be written.
        """
        from safetensors.torch import save_file

        header = json.dumps({"kind": self.kind, "meta": dict(self.meta)})
        tensors = {name: value.detach().contiguous() for name, value in self.tensors.items()}
        with replacing(path) as temporary:
            save_file(tensors, str(temporary), metadata={_HEADER: header})

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name begins with ``prefix/``, without it."""
        start = f"{prefix}/"
        return {
            name.removeprefix(start): value
            for name, value in self.tensors.items()
            if name.startswith(start)
        }


def load_checkpoint(path: Path, kind: str, what: str) -> Checkpoint:
    """Reads a checkpoint of the given kind.

    Args:
        path: the file.
        kind: as it was saved.
        what: for the error: ``"a trained checkpoint"``.

    Raises:
        InvalidInputError: missing, empty, truncated, foreign, or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        raise InvalidInputError(f"{path}: is a folder, not {what}; name the file in it")
    try:
        if not path.stat().st_size:
            raise InvalidInputError(f"{path}: empty; expected {what}")
        with safe_open(str(path), framework="pt") as opened:
            header = json.loads((opened.metadata() or {}).get(_HEADER, "null"))
            if not isinstance(header, dict) or header.get("kind") != kind:
                found = header.get("kind") if isinstance(header, dict) else "another program's"
                raise InvalidInputError(f"{path}: not {what} ({found} file)")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except FileNotFoundError:
        raise InvalidInputError(f"{path}: no such file; expected {what}") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInputError(f"{path}: not readable ({reason}); expected {what}") from None
    return Checkpoint(kind, tensors, header["meta"])


def saved_state(path: Path | None, kind: str, digest: str) -> Checkpoint | None:
    """The state of an interrupted piece of work, if it was the very same work.

    Args:
        path: where it would be; None if nothing is saved.
        kind: of the checkpoint.
        digest: of everything the work depends on, kept in the header as ``digest``.

    Raises:
        InvalidInputError: the file is damaged or another program's.
    """
    if path is None or not path.exists():
        return None
    checkpoint = load_checkpoint(path, kind, "the state of an interrupted run (or remove it)")
    return checkpoint if checkpoint.meta.get("digest") == digest else None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors: ``<parameter number>/<name>``."""
    import torch

    return {
        f"{index}/{name}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` returned."""
    document = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": document["param_groups"]})
