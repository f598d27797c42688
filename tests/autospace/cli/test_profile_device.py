"""What ``autospace profile-device`` says of a device that tells its clocks."""

from __future__ import annotations

from autospace.cli.profile_device import _states


def test_clocks_are_told_from_the_lowest_to_the_highest() -> None:
    states = [{"sm_mhz": 1980, "temperature_c": celsius, "round": 0} for celsius in (43, 41)]
    assert _states(states) == "cores 1980 MHz, temperature 41 to 43 °C"
    assert _states([{"round": 0, "at_s": 1.0}]) == _states([]) == ""
