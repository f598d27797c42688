"""A run folder, read defensively: a kill can leave any file missing or cut short."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from autospace.events import read_journal
from autospace.files import read_document
from autospace.space import Architecture, SearchSpace
from devices.errors import AutospaceError, InvalidInputError

__all__ = ["RunFolder", "number", "numbers", "records"]

_T = TypeVar("_T")

_LARGEST = 1e18
_FILES = (
    "config.toml",
    "state.json",
    "device.card",
    "space.json",
    "architecture.json",
    "evolve.jsonl",
    "search.jsonl",
    "train.jsonl",
    "verification.json",
    "checkpoint.safetensors",
    "model.onnx",
    "benchmark.json",
    "verdict.json",
)


def number(value: object) -> float | None:
    """A number that a run can have measured, or None for anything else, infinity included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= _LARGEST else None


def numbers(value: object) -> dict[str, float]:
    """The finite numbers of a JSON object, by name."""
    if not isinstance(value, Mapping):
        return {}
    found = {str(name): number(entry) for name, entry in value.items()}
    return {name: entry for name, entry in found.items() if entry is not None}


def records(value: object) -> list[dict[str, Any]]:
    """The JSON objects of a JSON list."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


@dataclass(frozen=True, eq=False)
class RunFolder:
    """What a run left behind; None or empty where a file is missing or unreadable.

    Attributes:
        path: the folder.
        config: text of ``config.toml``.
        state: stages, versions, seed.
        card: the device card's summary.
        space: the evolved space.
        architecture: the chosen network.
        evolve: one line a generation.
        search: one line an architecture step.
        train: one line an epoch.
        verification: the candidates measured.
        benchmark: models measured in the end.
        verdict: whether the limits were kept.
        faults: a line for each file that is there but cannot be read.
    """

    path: Path
    config: str | None
    state: Mapping[str, Any]
    card: Mapping[str, Any] | None
    space: SearchSpace | None
    architecture: Architecture | None
    evolve: tuple[Mapping[str, Any], ...]
    search: tuple[Mapping[str, Any], ...]
    train: tuple[Mapping[str, Any], ...]
    verification: Mapping[str, Any] | None
    benchmark: Mapping[str, Any] | None
    verdict: Mapping[str, Any] | None
    faults: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Reads what is there.

        Raises:
            InvalidInputError: no such folder, a file, or a folder without anything of a run.
        """
        if not path.is_dir():
            what = "is a file" if path.exists() else "no such folder"
            raise InvalidInputError(f"{path}: {what}; name the folder of 'autospace run'")
        if not any((path / name).is_file() for name in _FILES):
            raise InvalidInputError(
                f"{path}: holds nothing of a run (no config.toml, state.json or verdict.json); "
                "name the folder of 'autospace run'"
            )
        faults: list[str] = []

        def read(name: str, reader: Callable[[Path], _T]) -> _T | None:
            file = path / name
            if not file.exists():
                return None
            try:
                return reader(file)
            except AutospaceError as error:
                # The message names the file by its path, which is nobody's business on a page.
                faults.append(str(error).replace(str(file), name))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                faults.append(f"{name}: not readable ({type(error).__name__})")
            return None

        def document(file: Path) -> dict[str, Any]:
            return read_document(file, "a file of the run")

        return cls(
            path=path,
            config=read("config.toml", lambda file: file.read_text(encoding="utf-8")),
            state=read("state.json", document) or {},
            card=read("device.card", _card),
            space=read("space.json", SearchSpace.load),
            architecture=read("architecture.json", Architecture.load),
            evolve=tuple(records(read("evolve.jsonl", read_journal))),
            search=tuple(records(read("search.jsonl", read_journal))),
            train=tuple(records(read("train.jsonl", read_journal))),
            verification=read("verification.json", document),
            benchmark=read("benchmark.json", document),
            verdict=read("verdict.json", document),
            faults=tuple(faults),
        )

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name or "run"

    @property
    def simulated(self) -> bool:
        """Whether latencies were computed instead of measured."""
        return any(bool(part and part.get("simulated")) for part in (self.verdict, self.card))

    @property
    def limits(self) -> tuple[dict[str, Any], ...]:
        """What was asked: metric, value and text of each limit, from the surest source."""
        sources: list[object] = [(self.verdict or {}).get("limits")]
        for made in (self.architecture, self.space):
            sources.append(made.provenance.get("limits") if made else None)
        for source in sources:
            found = [
                entry
                for entry in records(source)
                if isinstance(entry.get("metric"), str) and number(entry.get("value")) is not None
            ]
            if found:
                return tuple(found)
        return ()

    def said(self, name: str) -> str | None:
        """A text such as ``data`` or ``target``, from the verdict or what made the network."""
        sources: list[Mapping[str, Any]] = [self.verdict or {}]
        sources += [made.provenance for made in (self.architecture, self.space) if made]
        for source in sources:
            value = source.get(name)
            if isinstance(value, str | int) and not isinstance(value, bool):
                return str(value)
        return None


def _card(path: Path) -> dict[str, Any]:
    from latency.card import DeviceCard

    return DeviceCard.open(path).summary()
