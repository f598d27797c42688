"""CUDA graphs by the driver's own interface: a stream's work recorded once, launched as a whole.

pycuda has streams and events but no graphs. The driver is asked directly, with the handles of
pycuda's streams. Source: CUDA driver API, stream and graph management.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

from devices.errors import InvalidInputError, UnavailableError

__all__ = ["CudaGraph"]

_CUDA = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on using the GPU
_POINTER = ctypes.c_void_p
_SIGNATURES = {
    "cuStreamBeginCapture_v2": (_POINTER, ctypes.c_int),
    "cuStreamEndCapture": (_POINTER, ctypes.POINTER(_POINTER)),
    "cuGraphInstantiateWithFlags": (ctypes.POINTER(_POINTER), _POINTER, ctypes.c_ulonglong),
    "cuGraphLaunch": (_POINTER, _POINTER),
    "cuGraphDestroy": (_POINTER,),
    "cuGraphExecDestroy": (_POINTER,),
}


class CudaGraph:
    """What was launched on a stream, ready to be launched again; needs a current context.

    Args:
        stream: its handle.
        launch: puts the work on the stream; it must have run before, so that nothing is allocated
            on the way.
        library: the driver's file.

    Raises:
        InvalidInputError: the work cannot be recorded: it waits for the GPU, allocates, or failed.
        UnavailableError: there is no driver, or one from before CUDA 11.4.
    """

    def __init__(self, stream: int, launch: Callable[[], None], library: str = _CUDA) -> None:
        self._stream = stream
        self._executable = _POINTER()
        try:
            self._driver = ctypes.CDLL(library)
            for name, arguments in _SIGNATURES.items():
                function = getattr(self._driver, name)
                function.argtypes, function.restype = arguments, ctypes.c_int
        except (OSError, AttributeError) as error:
            raise UnavailableError(
                f"CUDA graphs: no NVIDIA driver that has them ({error}); update it, or take a "
                "runtime without."
            ) from error
        graph = _POINTER()
        self._do("be begun", self._driver.cuStreamBeginCapture_v2(stream, _THREAD_LOCAL))
        try:
            launch()
        finally:  # a stream that is left recording is of no more use
            ended = self._driver.cuStreamEndCapture(stream, ctypes.byref(graph))
        self._do("be recorded", ended)
        try:
            made = self._driver.cuGraphInstantiateWithFlags(
                ctypes.byref(self._executable), graph, 0
            )
            self._do("be made ready", made)
        finally:
            self._driver.cuGraphDestroy(graph)

    def launch(self) -> None:
        """Launches it on its stream, and returns at once.

        Raises:
            InvalidInputError: the driver refuses.
        """
        self._do("be launched", self._driver.cuGraphLaunch(self._executable, self._stream))

    def close(self) -> None:
        """Frees it."""
        if self._executable:
            self._driver.cuGraphExecDestroy(self._executable)
            self._executable = _POINTER()

    def _do(self, what: str, status: int) -> None:
        if status:
            raise InvalidInputError(
                f"model: its CUDA graph could not {what} (CUDA error {status}); take a runtime "
                "that launches kernels one by one."
            )
