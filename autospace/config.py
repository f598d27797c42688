"""The configuration of ``autospace run``: one TOML file, checked field by field."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autospace.accelerator import Accelerator
from autospace.data import check_data_name
from autospace.evolution_options import EvolutionOptions
from autospace.search_options import SearchOptions
from autospace.skeleton import find_skeleton
from autospace.train_options import TrainOptions
from devices.errors import AutospaceError, InvalidInputError, UsageError

__all__ = [
    "BenchmarkConfig",
    "DataConfig",
    "DeviceConfig",
    "RunConfig",
    "TargetConfig",
    "load_config",
    "with_settings",
]


@dataclass(frozen=True)
class TargetConfig:
    """What the network is for, and its limits.

    Attributes:
        skeleton: the macro layout.
        resolution: input size; the layout's own if 0.
        width_mult: multiplies every width.
        budget: multiply-adds, or a percentage of the reference network's; empty for none.
        latency: a time, or a percentage of the reference network's; empty for none.
        statistic: what the latency limit is on: latency, p50, p90 or p99.
    """

    skeleton: str = "small"
    resolution: int = 0
    width_mult: float = 1.0
    budget: str = ""
    latency: str = ""
    statistic: str = "latency"


@dataclass(frozen=True)
class DataConfig:
    """What is learned.

    Attributes:
        name: of the data set.
        root: the folder of its files; empty for its usual place.
        accelerator: where: cpu, cuda, or auto (a GPU where there is one).
    """

    name: str = "digits"
    root: str = ""
    accelerator: Accelerator = "cpu"


@dataclass(frozen=True)
class DeviceConfig:
    """The target's device.

    Attributes:
        card: an existing device card; empty to profile this machine.
        runtime: by name.
        threads: of the runtime.
        minutes: of profiling.
        rounds: a fixed number of profiling rounds instead; 0 to go by minutes.
    """

    card: str = ""
    runtime: str = "onnxruntime"
    threads: int = 1
    minutes: float = 3.0
    rounds: int = 0


@dataclass(frozen=True)
class BenchmarkConfig:
    """The final measurement.

    Attributes:
        visits: to the exported network.
    """

    visits: int = 16


@dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Attributes:
        seed: of everything random.
        target: the network's limits.
        data: what is learned.
        device: where it will run.
        evolve: the evolution of the space.
        search: the search of the space.
        train: the recipe.
        benchmark: the final measurement.
    """

    seed: int = 0
    target: TargetConfig = field(default_factory=TargetConfig)
    data: DataConfig = field(default_factory=DataConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    evolve: EvolutionOptions = field(default_factory=EvolutionOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)

    def to_json(self) -> dict[str, Any]:
        """Every field, by section."""
        return dataclasses.asdict(self)

    def check(self) -> None:
        """Refuses what cannot be run.

        Raises:
            UsageError: names the field and the rule.
        """
        from autospace.steps import STATISTICS, check_limit_texts
        from devices.runtimes import get_runtime

        if not self.target.budget and not self.target.latency:
            raise UsageError("[target]: no limit; set budget, latency or both")
        check_limit_texts(self.target.budget or None, self.target.latency or None)
        if self.target.statistic not in STATISTICS:
            raise UsageError(
                f"[target] statistic {self.target.statistic!r}: must be one of "
                f"{', '.join(STATISTICS)}"
            )
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"seed {self.seed}: must be 0 to {2**31 - 1}")
        skeleton = find_skeleton(self.target.skeleton)
        resolution = self.target.resolution or skeleton.resolution
        replace(skeleton, resolution=resolution, width_mult=self.target.width_mult)
        check_data_name(self.data.name)
        for options in (self.evolve, self.search, self.train):
            options.check()
        if self.benchmark.visits < 4:
            raise UsageError(f"[benchmark] visits {self.benchmark.visits}: at least 4")
        if not self.device.card and not self.device.rounds and self.device.minutes <= 0:
            raise UsageError(f"[device] minutes {self.device.minutes}: above 0")
        if self.device.rounds < 0:
            raise UsageError(f"[device] rounds {self.device.rounds}: 0 or more")
        if self.device.threads < 1:
            raise UsageError(f"[device] threads {self.device.threads}: at least 1")
        if not self.device.card:
            get_runtime(self.device.runtime)


def load_config(path: Path) -> RunConfig:
    """Reads a configuration.

    Raises:
        InvalidInputError: missing, not TOML, an unknown field (near ones are offered) or a value
            of the wrong type.
        UsageError: values that cannot be run.
    """
    if path.is_dir():
        raise InvalidInputError(f"{path}: is a folder, not a configuration; name the file in it")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInputError(f"{path}: no such file; expected a configuration (TOML)") from None
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInputError(
            f"{path}: not valid TOML ({reason}); expected a configuration"
        ) from None
    if not document:
        raise InvalidInputError(f"{path}: empty; expected a configuration with a [target]")
    try:
        config: RunConfig = _section(RunConfig, document, "")
        config.check()
    except AutospaceError as error:
        raise type(error)(f"{path}: {error}") from None
    return config


def with_settings(options: Any, settings: Sequence[str]) -> Any:
    """Options of a data class, changed by texts like ``momentum=0.7``.

    Args:
        options: a frozen data class.
        settings: each a field, ``=`` and a value as TOML writes it; a word needs no quotes.

    Raises:
        UsageError: no ``=``, an unknown field (near ones are offered) or a value of the wrong type.
    """
    if not settings:
        return options
    document: dict[str, Any] = {}
    for text in settings:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise UsageError(f"{text!r}: must be NAME=VALUE, as in momentum=0.7")
        try:
            document[name] = tomllib.loads(f"value = {value}")["value"]
        except (tomllib.TOMLDecodeError, KeyError):
            document[name] = value
    try:
        changed = _section(type(options), document, "")
    except InvalidInputError as error:
        raise UsageError(str(error)) from None
    return replace(options, **{name: getattr(changed, name) for name in document})


def _section(kind: Any, document: Mapping[str, Any], name: str) -> Any:
    """One section as its data class; unknown fields and wrong types are named."""
    from pydantic import TypeAdapter, ValidationError

    fields = {one.name: one for one in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in document.items():
        where = f"[{name}] {key}" if name else key
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
            raise InvalidInputError(f"{where}: unknown; {hint}")
        default = fields[key].default_factory
        if default is not dataclasses.MISSING:
            if not isinstance(value, dict):
                raise InvalidInputError(f"{where}: must be a section, [{key}]")
            values[key] = _section(default, value, key)
            continue
        annotation = _annotations(kind)[key]
        try:
            values[key] = TypeAdapter(annotation).validate_python(
                value, strict=annotation is not float
            )
        except ValidationError as error:
            reason = error.errors()[0]["msg"].replace("Input should", "must")
            if annotation is str:
                reason += f'; write {key} = "{value}"'
            raise InvalidInputError(f"{where} = {value!r}: {reason}") from None
        if annotation is float and not math.isfinite(values[key]):
            raise InvalidInputError(f"{where} = {value!r}: must be a finite number")
    return kind(**values)


def _annotations(kind: Any) -> dict[str, Any]:
    from typing import get_type_hints

    return get_type_hints(kind)
