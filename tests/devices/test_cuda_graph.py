"""CUDA graphs, recorded and launched through a library that has the driver's interface."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from devices.cuda_graph import CudaGraph
from devices.errors import InvalidInputError, UnavailableError

STREAM = 0x7F00_1234_5678  # more than 32 bits, as pointers are
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")

# As the driver's documentation declares them. Handles are checked; calls are written down.
DRIVER = """
static char calls[64]; static int count = 0;
const char *told(void) { calls[count] = 0; return calls; }
static int did(char what, int good) { calls[count++] = what; return good ? 0 : 400; }
#define STREAM ((void *)0x7F0012345678)
#define GRAPH ((void *)0x7F00AAAA0000)
#define READY ((void *)0x7F00BBBB0000)
int cuStreamBeginCapture_v2(void *stream, int mode) {
    return did('b', stream == STREAM && mode == 1);
}
int cuStreamEndCapture(void *stream, void **graph) {
    *graph = END ? 0 : GRAPH; did('e', 1); return stream == STREAM ? END : 400;
}
int cuGraphInstantiateWithFlags(void **ready, void *graph, unsigned long long flags) {
    *ready = READY; return did('i', graph == GRAPH && flags == 0) ? 400 : INSTANTIATE;
}
int cuGraphLaunch(void *ready, void *stream) {
    return did('l', ready == READY && stream == STREAM);
}
int cuGraphDestroy(void *graph) { return did('g', graph == GRAPH); }
int cuGraphExecDestroy(void *ready) { return did('x', ready == READY); }
"""


def driver(folder: Path, end: int = 0, instantiate: int = 0) -> tuple[str, ctypes.CDLL]:
    made = folder / "libexample.so"
    values = (f"-DEND={end}", f"-DINSTANTIATE={instantiate}")
    command = ["gcc", "-shared", "-fPIC", "-x", "c", *values, "-", "-o", str(made)]
    subprocess.run(command, input=DRIVER, text=True, check=True)
    library = ctypes.CDLL(str(made))
    library.told.restype = ctypes.c_char_p
    return str(made), library


def test_work_is_recorded_once_and_launched_as_often_as_asked(tmp_path: Path) -> None:
    path, library = driver(tmp_path)
    launched = []
    graph = CudaGraph(STREAM, lambda: launched.append(library.told()), path)
    assert launched == [b"b"]  # while the stream is recording
    graph.launch()
    graph.launch()
    graph.close()
    graph.close()
    assert library.told() == b"beigllx" and len(launched) == 1


@pytest.mark.parametrize(
    ("end", "instantiate", "says", "calls"),
    [
        (901, 0, "be recorded .CUDA error 901", b"be"),
        (0, 801, "made ready .CUDA error 801", b"beig"),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    tmp_path: Path, end: int, instantiate: int, says: str, calls: bytes
) -> None:
    path, library = driver(tmp_path, end, instantiate)
    with pytest.raises(InvalidInputError, match=says):
        CudaGraph(STREAM, lambda: None, path)
    assert library.told() == calls


def test_a_launch_that_fails_ends_the_recording(tmp_path: Path) -> None:
    path, library = driver(tmp_path)

    def fails() -> None:
        raise InvalidInputError("model: tensorrt could not run the engine; build it again.")

    with pytest.raises(InvalidInputError, match="could not run the engine"):
        CudaGraph(STREAM, fails, path)
    assert library.told() == b"be"
    with pytest.raises(InvalidInputError, match=r"be begun .CUDA error 400"):
        CudaGraph(12, lambda: None, path)


def test_without_a_driver_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no NVIDIA driver that has them"):
        CudaGraph(STREAM, lambda: None, str(tmp_path / "absent.so"))
