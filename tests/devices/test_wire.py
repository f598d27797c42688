"""Messages between a process and its child, over a real pipe."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.runtimes.base import CompiledGraph, NodeTiming
from devices.wire import (
    Closed,
    TimedOut,
    arrays_from,
    arrays_to,
    graph_from,
    graph_to,
    receive,
    send,
    timings_from,
    timings_to,
)


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            pass


@given(st.dictionaries(st.text(), st.integers() | st.text()), st.lists(st.binary(max_size=100)))
def test_what_is_sent_is_received(message: dict, blobs: list[bytes]) -> None:
    message.pop("blobs", None)
    reading, writing = os.pipe()
    try:
        send(writing, message, blobs)
        assert receive(reading, 1.0) == (message, blobs)
    finally:
        os.close(reading)
        os.close(writing)


def test_more_than_a_pipe_holds(pipe) -> None:
    reading, writing = pipe
    blob = os.urandom(5_000_000)
    sender = threading.Thread(target=send, args=(writing, {"a": 1}, [blob, b""]))
    sender.start()
    assert receive(reading, 10.0) == ({"a": 1}, [blob, b""])
    sender.join()


def test_silence_ends_at_the_limit(pipe) -> None:
    reading, writing = pipe
    with pytest.raises(TimedOut):
        receive(reading, 0.02)
    os.write(writing, b"\x02")  # a message that never ends is no better
    with pytest.raises(TimedOut):
        receive(reading, 0.02)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"chatter on the pipe that is no message",
        b"\xff" * 16,
        (2).to_bytes(8, "little") + bytes(8) + b"[]",
        (2).to_bytes(8, "little") + bytes(8) + b"{}",
        (13).to_bytes(8, "little") + bytes(8) + b'{"blobs":[3]}',
        (14).to_bytes(8, "little") + bytes(8) + b'{"blobs":[-1]}',
    ],
)
def test_nonsense_counts_as_gone(pipe, said: bytes) -> None:
    reading, writing = pipe
    os.write(writing, said)
    os.close(writing)
    with pytest.raises(Closed):
        receive(reading, 1.0)


def test_nobody_reads(pipe) -> None:
    reading, writing = pipe
    os.close(reading)
    with pytest.raises(Closed):
        send(writing, {})


def test_graphs_and_timings() -> None:
    for executed in (None, b"told"):
        graph = CompiledGraph("a", "1", b"data", (("x", (1, 3), "float32"),), ("y",), executed)
        again = graph_from(*graph_to(graph))
        assert again == graph and again.executed == executed
    timings = {"b": NodeTiming("Conv", (1.0, 2.0)), "a": NodeTiming("Add", ())}
    again = timings_from(timings_to(timings))
    assert again == timings and list(again) == ["b", "a"]


def test_arrays_keep_shape_and_type() -> None:
    arrays = {
        "f": np.arange(6, dtype=np.float32).reshape(1, 2, 3).transpose(0, 2, 1),
        "h": np.float16([1.5]),
        "s": np.array(3, dtype=np.int64),
        "b": np.zeros((0, 2), dtype=bool),
    }
    found = arrays_from(*arrays_to(arrays))
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("rows", "blobs"),
    [
        ([["x", "object", [1]]], [b"12345678"]),
        ([["x", "float32", [3]]], [b"1234"]),
        ([["x", "float32", [1]]], []),
        ([["x", "nonsense", [1]]], [b"1234"]),
    ],
)
def test_arrays_that_are_none_are_refused(rows: list, blobs: list[bytes]) -> None:
    with pytest.raises((ValueError, TypeError)):
        arrays_from(rows, blobs)
