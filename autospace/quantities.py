"""Sizes and times as people write them: ``500M``, ``0.5G``, ``5ms``, ``2h``, ``70%``.

Every parser raises `UsageError` with one line that quotes the value and shows the right form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from devices.errors import UsageError

__all__ = [
    "format_count",
    "format_ms",
    "parse_count",
    "parse_duration_s",
    "parse_fraction",
    "parse_latency_ms",
    "parse_shape",
    "parse_shapes",
]

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-zµ%]*)\s*")
_COUNT_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
_LATENCY_UNITS_MS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_DURATION_UNITS_S = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_LARGEST_COUNT = 1e15
_SIZE = re.compile(r"[0-9]{1,18}")


def _split(text: str, what: str, example: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise UsageError(f"{what} {text!r}: not a number with a unit; write {example}")
    number, unit = float(match[1]), match[2]
    if not math.isfinite(number):
        raise UsageError(f"{what} {text!r}: the number is too large; write {example}")
    if number <= 0:
        raise UsageError(f"{what} {text!r}: must be greater than zero; write {example}")
    return number, unit


def parse_count(text: str, what: str = "--budget") -> int:
    """A number of multiply-adds or parameters.

    Args:
        text: for example ``500M``, ``0.5G``, ``340000000``.
        what: the option named in the error.

    Returns:
        The count, at least 1.

    Raises:
        UsageError: not a positive number with one of the units K, M, G, B.

    >>> parse_count("500M")
    500000000
    >>> parse_count("0.5G")
    500000000
    """
    number, unit = _split(text, what, "500M or 0.5G")
    scale = _COUNT_UNITS.get(unit.upper())
    if scale is None:
        raise UsageError(f"{what} {text!r}: unknown unit {unit!r}; write 500M or 0.5G")
    count = number * scale
    if count > _LARGEST_COUNT:
        raise UsageError(
            f"{what} {text!r}: larger than any network ({_LARGEST_COUNT:g}); write 500M or 0.5G"
        )
    if count < 1:
        raise UsageError(f"{what} {text!r}: less than one multiply-add; write 500M or 0.5G")
    return round(count)


def parse_latency_ms(text: str, what: str = "--latency") -> float:
    """A latency, in milliseconds.

    Args:
        text: for example ``5ms``, ``800us``, ``0.1s``.
        what: the option named in the error.

    Returns:
        Milliseconds, greater than zero.

    Raises:
        UsageError: not a positive time with one of the units us, ms, s.

    >>> parse_latency_ms("5ms")
    5.0
    >>> parse_latency_ms("800us")
    0.8
    """
    number, unit = _split(text, what, "5ms or 800us")
    scale = _LATENCY_UNITS_MS.get(unit)
    if scale is None:
        missing = "no unit" if not unit else f"unknown unit {unit!r}"
        raise UsageError(f"{what} {text!r}: {missing}; write 5ms or 800us")
    latency_ms = number * scale
    if not 1e-6 <= latency_ms <= 1e7:
        raise UsageError(f"{what} {text!r}: outside 1e-6 ms to 1e7 ms; write 5ms or 800us")
    return latency_ms


def parse_duration_s(text: str, what: str = "--time") -> float:
    """A duration, in seconds.

    Args:
        text: for example ``90s``, ``10m``, ``2h``.
        what: the option named in the error.

    Returns:
        Seconds, greater than zero.

    Raises:
        UsageError: not a positive time with one of the units s, m, min, h.

    >>> parse_duration_s("2h")
    7200.0
    """
    number, unit = _split(text, what, "90s, 10m or 2h")
    scale = _DURATION_UNITS_S.get(unit)
    if scale is None:
        missing = "no unit" if not unit else f"unknown unit {unit!r}"
        raise UsageError(f"{what} {text!r}: {missing}; write 90s, 10m or 2h")
    return number * scale


def parse_fraction(text: str, what: str) -> float:
    """A percentage as a fraction: ``70%`` is 0.7.

    Raises:
        UsageError: not a positive percentage.

    >>> parse_fraction("70%", "--latency")
    0.7
    """
    number, unit = _split(text, what, "70%")
    if unit != "%":
        raise UsageError(f"{what} {text!r}: not a percentage; write 70%")
    return number / 100.0


def parse_shape(text: str, what: str = "--shape") -> tuple[str, tuple[int, ...]]:
    """An input's name and its shape.

    Args:
        text: for example ``input=1x3x224x224``; the name may hold a ``=`` itself.
        what: the option named in the error.

    Returns:
        The name, and sizes of at least 1.

    Raises:
        UsageError: no name, no sizes, or a size that is no whole number above 0.

    >>> parse_shape("input=1x3x224x224")
    ('input', (1, 3, 224, 224))
    """
    name, equals, sizes = text.rpartition("=")
    if not equals or not name:
        raise UsageError(f"{what} {text!r}: names no input; write input=1x3x224x224")
    if not sizes.strip():
        raise UsageError(f"{what} {text!r}: no sizes; write {name}=1x3x224x224")
    shape = []
    for size in sizes.split("x"):
        if not _SIZE.fullmatch(size.strip()) or int(size) < 1:
            raise UsageError(
                f"{what} {text!r}: {size!r} is no whole number above 0; write {name}=1x3x224x224"
            )
        shape.append(int(size))
    return name, tuple(shape)


def parse_shapes(texts: Iterable[str], what: str = "--shape") -> dict[str, tuple[int, ...]]:
    """Shapes by the input's name, see `parse_shape`.

    Raises:
        UsageError: malformed, or two for one input.

    >>> parse_shapes(["a=1x3", "b=2"])
    {'a': (1, 3), 'b': (2,)}
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, shape = parse_shape(text, what)
        if name in shapes:
            raise UsageError(f"{what} {text!r}: given twice for {name!r}; give one shape an input")
        shapes[name] = shape
    return shapes


def format_count(count: float) -> str:
    """A count with four significant digits and a unit.

    >>> format_count(339_700_000)
    '339.7M'
    >>> format_count(4_306_000)
    '4.306M'
    """
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(count) >= scale:
            return f"{count / scale:.4g}{unit}"
    return f"{count:.4g}"


def format_ms(latency_ms: float) -> str:
    """A latency in milliseconds with three significant digits.

    >>> format_ms(0.23456)
    '0.235 ms'
    """
    return f"{latency_ms:.3g} ms" if abs(latency_ms) < 1000 else f"{latency_ms:.0f} ms"
