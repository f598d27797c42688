"""The environment of this machine, and the identity of others."""

from dataclasses import replace

import pytest

from devices.errors import InvalidInputError, UnavailableError
from devices.host import Environment, read_environment, resolve_host


def test_this_machine_is_readable_and_stable() -> None:
    first, second = read_environment(), read_environment()
    assert first.cpu and first.logical_cores >= 1 and first.memory_gib > 0
    assert first.identity == second.identity
    assert first.differences(second) == ()


def test_clock_and_memory_do_not_make_another_machine() -> None:
    here = read_environment()
    assert replace(here, clock_mhz="1", thermal="99 °C", memory_gib=1.0).identity == here.identity


def test_another_processor_does() -> None:
    here = read_environment()
    other = replace(here, cpu="Imaginary 9000")
    assert other.identity != here.identity
    assert "Imaginary 9000" in here.differences(other)[0]


def test_json_round_trip() -> None:
    here = read_environment()
    assert Environment.from_json(here.to_json()) == here
    with pytest.raises(InvalidInputError):
        Environment.from_json({"cpu": "x"})


def test_only_the_local_host() -> None:
    assert resolve_host("local").name == "local"
    for text in ("ssh:me@there", "adb:123", "nonsense"):
        with pytest.raises(UnavailableError, match="only the machine it runs on"):
            resolve_host(text)
