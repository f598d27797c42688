"""Sizes and times as people write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autospace.quantities import (
    format_count,
    format_ms,
    parse_count,
    parse_duration_s,
    parse_fraction,
    parse_latency_ms,
)
from devices.errors import UsageError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("500M", 500_000_000),
        ("0.5G", 500_000_000),
        (".5g", 500_000_000),
        ("1B", 10**9),
        ("3k", 3000),
        (" 12 ", 12),
        ("5e8", 500_000_000),
        ("5e2M", 500_000_000),
        ("+2 M", 2_000_000),
    ],
)
def test_counts(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("5ms", 5.0), ("800us", 0.8), ("800µs", 0.8), ("0.1s", 100.0), (" 5 ms ", 5.0)],
)
def test_latencies(text: str, milliseconds: float) -> None:
    assert parse_latency_ms(text) == pytest.approx(milliseconds)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("10 min", 600), ("2h", 7200), ("1.5h", 5400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


def test_fractions() -> None:
    assert parse_fraction("70%", "--latency") == pytest.approx(0.7)
    assert parse_fraction("150 %", "--latency") == pytest.approx(1.5)
    with pytest.raises(UsageError, match="not a percentage; write 70%"):
        parse_fraction("70", "--latency")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("500X", "unknown unit 'X'"),
        ("500ms", "unknown unit 'ms'"),
        ("-5M", "greater than zero"),
        ("0", "greater than zero"),
        ("-5ms", "greater than zero"),
        ("1e400M", "too large"),
        ("5e20", "larger than any network"),
        ("1e-3", "less than one"),
        ("", "not a number"),
        (" ", "not a number"),
        ("nan", "not a number"),
        ("inf", "not a number"),
        ("-inf", "not a number"),
        ("500 M M", "not a number"),
        ("1,5M", "not a number"),
        ("1_000", "not a number"),
        ("0x10", "not a number"),
        ("M", "not a number"),
        ("5\nM\nx", "not a number"),
    ],
)
def test_malformed_counts_quote_the_value_and_show_the_form(text: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_count(text, "--budget")
    message = str(caught.value)
    assert why in message
    assert message.startswith(f"--budget {text!r}: ")
    assert message.endswith("500M or 0.5G")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("5", "no unit"),
        ("5M", "unknown unit 'M'"),
        ("5MS", "unknown unit 'MS'"),
        ("-5ms", "greater than zero"),
        ("0ms", "greater than zero"),
        ("1e400ms", "too large"),
        ("1e300s", "outside"),
        ("1e-300s", "outside"),
        ("", "not a number"),
        ("nan", "not a number"),
        ("inf", "not a number"),
        ("5 ms ms", "not a number"),
    ],
)
def test_malformed_latencies(text: str, why: str) -> None:
    with pytest.raises(UsageError, match="write 5ms or 800us") as caught:
        parse_latency_ms(text)
    assert why in str(caught.value)


@pytest.mark.parametrize("text", ["5", "5ms", "2d", "0s", "", "-1h"])
def test_malformed_durations(text: str) -> None:
    with pytest.raises(UsageError, match="write 90s, 10m or 2h"):
        parse_duration_s(text)


@given(st.text(max_size=12))
def test_any_text_is_a_count_or_a_one_line_error(text: str) -> None:
    try:
        assert parse_count(text) >= 1
    except UsageError as error:
        assert "\n" not in str(error)


@given(st.text(alphabet="0123456789.eE+-µmsuh% ", max_size=10))
def test_any_near_number_is_a_latency_or_an_error(text: str) -> None:
    try:
        assert 0 < parse_latency_ms(text) < math.inf
    except UsageError as error:
        assert repr(text) in str(error)


@given(st.floats(1000, 1e12))
def test_a_formatted_count_is_read_back_to_four_digits(count: float) -> None:
    assert parse_count(format_count(count)) == pytest.approx(count, rel=6e-4)


def test_formatting() -> None:
    assert format_count(339_685_760) == "339.7M"
    assert format_count(12) == "12"
    assert format_count(0) == "0"
    assert format_ms(0.23456) == "0.235 ms"
    assert format_ms(12345.6) == "12346 ms"
