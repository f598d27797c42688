"""The machine that measures: what it is, and whether a file was made on it.

A latency belongs to the machine that it was measured on, so every device card carries the
environment, and cards of another processor are refused.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from devices.errors import InvalidInputError, UnavailableError

__all__ = [
    "NOT_READABLE",
    "Environment",
    "Host",
    "involuntary_switches",
    "read_environment",
    "resolve_host",
]

NOT_READABLE = "not readable"
"""What stands in place of a value that this machine does not show."""

_VECTOR_FLAGS = ("avx", "avx2", "avx512f", "avx512_vnni", "amx_tile", "asimd", "sve", "neon")


@dataclass(frozen=True, slots=True)
class Environment:
    """What is known of the machine at the time of a measurement.

    Attributes:
        cpu: the processor's name.
        cpu_revision: family, model and stepping, as far as they are readable.
        vector: vector instruction sets, of those that kernels are written for.
        architecture: such as "x86_64".
        logical_cores: processors that the operating system shows.
        memory_gib: main memory.
        system: operating system and its version.
        clock_mhz: clock of the processor now, or `NOT_READABLE`.
        thermal: hottest sensor now, or `NOT_READABLE`.
    """

    cpu: str
    cpu_revision: str
    vector: tuple[str, ...]
    architecture: str
    logical_cores: int
    memory_gib: float
    system: str
    clock_mhz: str
    thermal: str

    @property
    def identity(self) -> str:
        """Digest of what makes two machines give the same latencies; clock and memory are not."""
        parts = (self.cpu, self.cpu_revision, ",".join(self.vector), self.architecture)
        text = "|".join((*parts, str(self.logical_cores)))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def differences(self, other: Environment) -> tuple[str, ...]:
        """What of the identity differs, each as "name: own → other's"; empty when nothing does."""
        found = []
        for name in ("cpu", "cpu_revision", "vector", "architecture", "logical_cores"):
            own, theirs = getattr(self, name), getattr(other, name)
            if own != theirs:
                words = [" ".join(v) if isinstance(v, tuple) else str(v) for v in (own, theirs)]
                found.append(f"{name.replace('_', ' ')}: {words[0]} → {words[1]}")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The environment as a JSON object."""
        return {**asdict(self), "vector": list(self.vector)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The environment from what `to_json` gave.

        Raises:
            InvalidInputError: a field is missing or unknown.
        """
        try:
            return cls(**{**data, "vector": tuple(str(flag) for flag in data["vector"])})
        except (TypeError, KeyError) as error:
            raise InvalidInputError(
                "environment: not readable; measure the device again."
            ) from error


@dataclass(frozen=True, slots=True)
class Host:
    """Where to measure; only this machine in this version.

    Attributes:
        name: "local".
    """

    name: str = "local"


def resolve_host(text: str) -> Host:
    """The host that `--host` names.

    Args:
        text: "local"; "ssh:..." and "adb:..." are understood and refused.

    Raises:
        UnavailableError: it is not "local".
    """
    if text == "local":
        return Host()
    raise UnavailableError(
        f"host {text!r}: this version measures only the machine it runs on; use 'local', or run "
        "autospace on that machine and copy the device card."
    )


def involuntary_switches() -> int:
    """How often a thread of this process lost its processor to another; 0 where it is not told."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return 0
    return getrusage(RUSAGE_SELF).ru_nivcsw


def read_environment() -> Environment:
    """The environment of this machine, now."""
    fields = _cpuinfo_fields()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return Environment(
        cpu=_cpu_name(fields),
        cpu_revision=_revision(fields),
        vector=tuple(flag for flag in _VECTOR_FLAGS if flag in flags),
        architecture=platform.machine() or NOT_READABLE,
        logical_cores=os.cpu_count() or 1,
        memory_gib=_memory_gib(),
        system=f"{platform.system()} {platform.release()}".strip() or NOT_READABLE,
        clock_mhz=_clock_mhz(),
        thermal=_thermal(),
    )


def _cpuinfo_fields() -> dict[str, str]:
    """First value of each field of Linux's processor list; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def _cpu_name(fields: Mapping[str, str]) -> str:
    name = fields.get("model name") or fields.get("Model") or ""
    if name:
        return name
    import cpuinfo  # asks the system in ways that take a second, so only where the list is silent

    return str(cpuinfo.get_cpu_info().get("brand_raw") or platform.processor() or NOT_READABLE)


def _revision(fields: Mapping[str, str]) -> str:
    names = ("cpu family", "model", "stepping", "CPU part", "CPU variant")
    return " ".join(f"{name} {fields[name]}" for name in names if name in fields) or NOT_READABLE


def _memory_gib() -> float:
    import psutil

    return round(psutil.virtual_memory().total / 2**30, 1)


def _clock_mhz() -> str:
    """The real clock where the kernel scales it; a virtual machine shows only a nominal one."""
    try:
        khz = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").read_text("ascii")
        return str(int(khz) // 1000)
    except (OSError, ValueError):
        return NOT_READABLE


def _thermal() -> str:
    import psutil

    read = getattr(psutil, "sensors_temperatures", None)
    try:
        groups = read() if read else {}
    except (OSError, RuntimeError):
        groups = {}
    degrees = [s.current for group in groups.values() for s in group if s.current]
    return f"{max(degrees):.0f} °C" if degrees else NOT_READABLE
