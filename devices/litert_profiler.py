"""Times of a LiteRT file's single operations, by LiteRT's C interface.

The Python packages tell none, but the library in them has a profiler, and exports its functions
(LiteRT's ``litert/c``: ``litert_compiled_model.h``, ``litert_profiler.h``). XNNPACK tells the time
of each of its kernels through it, in whole microseconds, cut off. The layout of an event is no
promise, so that only versions are read whose layout was seen (`is_readable`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import InvalidInputError
from devices.kernel_trace import TraceEvent

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["LiteRtProfiler", "is_readable"]

_READABLE = ("2.3.",)
"""Beginnings of the versions of ai-edge-litert whose events are laid out as `_Event`."""
_LIBRARIES = ("libLiteRt.so", "libLiteRt.dylib", "libLiteRt.dll")

_CPU = 1
_WRITE, _HOST_WORDS = 1, 64
_OPERATION, _DELEGATED = 2, 8
"""Types of the events of LiteRT's own kernels and of XNNPACK's (``litert_profiler_event.h``)."""
_CUT_OFF_MS = 0.0005
"""Half a microsecond: what is cut off in the mean."""
_MANY = 1 << 20


class _Event(ctypes.Structure):
    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory_before", ctypes.c_int64 * 3),
        ("memory_after", ctypes.c_int64 * 3),
        ("number", ctypes.c_uint64),
        ("second_number", ctypes.c_uint64),
        ("source", ctypes.c_int),
    )


def is_readable() -> bool:
    """Whether the installed version has the profiler, in a form that is understood."""
    try:
        return version("ai-edge-litert").startswith(_READABLE) and _library_file() is not None
    except PackageNotFoundError:
        return False


class LiteRtProfiler:
    """A file that was loaded with the profiler on.

    Args:
        data: the file.
        threads: of XNNPACK.
        inputs: in the order of the file's arguments, as the file takes them.

    Raises:
        InvalidInputError: LiteRT refuses the file.
    """

    def __init__(
        self, data: bytes, threads: int, inputs: Sequence[npt.NDArray[np.generic]]
    ) -> None:
        self._held: list[tuple[Any, ctypes.c_void_p]] = []
        self._data = ctypes.create_string_buffer(data, len(data))  # the weights are read from it
        try:
            self._open(len(data), threads, inputs)
        except BaseException:
            self.close()
            raise

    def run(self) -> None:
        """Runs once, with the profiler off."""
        _check(
            _library().LiteRtRunCompiledModel(
                self._model, 0, len(self._inputs), self._inputs, len(self._outputs), self._outputs
            ),
            "does not run the model",
        )

    def traced(self) -> tuple[TraceEvent, ...]:
        """Runs once, and gives the kernels in the order of execution.

        LiteRT's own kernels are called after their operation in the file, as "PADV2 @7".
        """
        _check(_library().LiteRtStartProfiler(self._profiler), "starts no profile")
        self.run()
        library, count = _library(), ctypes.c_int()
        _check(
            library.LiteRtGetNumProfilerEvents(self._profiler, ctypes.byref(count)),
            "tells no times",
        )
        if not 0 < count.value < _MANY:
            raise InvalidInputError(
                f"model: litert tells {count.value} times; install the package again."
            )
        events = (_Event * count.value)()
        _check(
            library.LiteRtGetProfilerEvents(self._profiler, count.value, events), "tells no times"
        )
        found: list[TraceEvent] = []
        for event in events[: count.value]:
            delegated = event.type == _DELEGATED
            tag = (event.tag or b"").decode(errors="replace")
            if event.type == _OPERATION:
                tag = f"{tag} @{event.number}"
            elif not delegated:
                continue
            spent_ms = event.elapsed_us / 1e3 + _CUT_OFF_MS
            found.append(TraceEvent(len(found), tag, delegated, spent_ms))
        _check(library.LiteRtResetProfiler(self._profiler), "resets no profile")
        return tuple(found)

    def close(self) -> None:
        """Frees what it holds; it cannot be used afterwards."""
        for destroy, held in reversed(self._held):
            destroy(held)
        self._held = []

    def _open(self, size: int, threads: int, inputs: Sequence[npt.NDArray[np.generic]]) -> None:
        library = _library()
        file = self._made(
            library.LiteRtCreateModelFromBuffer, library.LiteRtDestroyModel,
            _environment(), self._data, size,
        )  # fmt: skip
        options = self._made(library.LiteRtCreateOptions, library.LiteRtDestroyOptions)
        _check(library.LiteRtSetOptionsHardwareAccelerators(options, _CPU), "refuses the processor")
        for identifier, content in (
            (b"runtime_options_string", b"enable_profiling = true\n"),
            (b"xnnpack", f"num_threads = {threads}\n".encode()),
        ):
            own = ctypes.c_void_p()
            payload, free = _libc().strdup(content), ctypes.cast(_libc().free, ctypes.c_void_p)
            _check(
                library.LiteRtCreateOpaqueOptions(identifier, payload, free, ctypes.byref(own)),
                "refuses an option",
            )
            _check(library.LiteRtAddOpaqueOptions(options, own), "refuses an option")
        self._model = self._made(
            library.LiteRtCreateCompiledModel, library.LiteRtDestroyCompiledModel,
            _environment(), file, options,
        )  # fmt: skip
        signature = _asked(library.LiteRtGetModelSignature, file, 0)
        self._inputs = self._buffers(
            signature,
            library.LiteRtGetNumSignatureInputs,
            library.LiteRtGetSignatureInputTensorByIndex,
            library.LiteRtGetCompiledModelInputBufferRequirements,
        )
        self._outputs = self._buffers(
            signature,
            library.LiteRtGetNumSignatureOutputs,
            library.LiteRtGetSignatureOutputTensorByIndex,
            library.LiteRtGetCompiledModelOutputBufferRequirements,
        )
        names = []
        for place in range(len(self._inputs)):
            text = ctypes.c_char_p()
            _check(
                library.LiteRtGetSignatureInputName(signature, place, ctypes.byref(text)),
                "names no input",
            )
            names.append((text.value or b"").decode())
        # Arguments are called args_0, args_1, … in the module's order.
        order = sorted(range(len(names)), key=lambda place: int(names[place].rpartition("_")[2]))
        for place, array in zip(order, inputs, strict=True):
            self._fill(ctypes.c_void_p(self._inputs[place]), array)
        self._profiler = _asked(library.LiteRtCompiledModelGetProfiler, self._model)
        if not self._profiler:
            raise InvalidInputError(
                "model: litert has no profiler for it; install the package again."
            )

    def _made(self, create: Any, destroy: Any, *arguments: Any) -> ctypes.c_void_p:
        """What a function creates, and keeps how to free it."""
        made = _asked(create, *arguments)
        self._held.append((destroy, made))
        return made

    def _buffers(self, signature: ctypes.c_void_p, count: Any, tensor: Any, wanted: Any) -> Any:
        """Memory for all inputs or all outputs."""
        library, number = _library(), ctypes.c_size_t()
        _check(count(signature, ctypes.byref(number)), "tells no inputs and outputs")
        found = []
        for place in range(number.value):
            kind = ctypes.create_string_buffer(8 * _HOST_WORDS)
            _check(
                library.LiteRtGetRankedTensorType(_asked(tensor, signature, place), kind),
                "tells no shape",
            )
            requirements = _asked(wanted, self._model, 0, place)
            made = self._made(
                library.LiteRtCreateManagedTensorBufferFromRequirements,
                library.LiteRtDestroyTensorBuffer,
                _environment(), kind, requirements,
            )  # fmt: skip
            found.append(made.value)
        return (ctypes.c_void_p * len(found))(*found)

    def _fill(self, buffer: ctypes.c_void_p, array: npt.NDArray[np.generic]) -> None:
        import numpy as np

        library, size, start = _library(), ctypes.c_size_t(), ctypes.c_void_p()
        own = np.ascontiguousarray(array)
        _check(library.LiteRtGetTensorBufferPackedSize(buffer, ctypes.byref(size)), "tells no size")
        if size.value != own.nbytes:
            raise InvalidInputError(
                f"inputs: litert wants {size.value} bytes instead of {own.nbytes}; convert the "
                "model again."
            )
        _check(
            library.LiteRtLockTensorBuffer(buffer, ctypes.byref(start), _WRITE), "takes no input"
        )
        ctypes.memmove(start, own.ctypes.data, own.nbytes)
        _check(library.LiteRtUnlockTensorBuffer(buffer), "takes no input")


def _check(status: int, what: str) -> None:
    if status != 0:
        raise InvalidInputError(f"model: litert {what} (status {status}); use another runtime.")


def _asked(function: Any, *arguments: Any) -> ctypes.c_void_p:
    """What a function hands out by its last argument."""
    found = ctypes.c_void_p()
    _check(function(*arguments, ctypes.byref(found)), f"refuses it in {function.__name__}")
    return found


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.strdup.argtypes, libc.strdup.restype = [ctypes.c_char_p], ctypes.c_void_p
    return libc


@cache
def _environment() -> ctypes.c_void_p:
    """One for the process."""
    return _asked(_library().LiteRtCreateEnvironment, 0, None)


def _library_file() -> Path | None:
    """Where LiteRT's library lies; its package is not imported for that."""
    spec = find_spec("ai_edge_litert")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = (Path(folder, name) for folder in folders for name in _LIBRARIES)
    return next((file for file in files if file.is_file()), None)


@cache
def _library() -> Any:
    """LiteRT's library, with the types of what is called of it."""
    library = ctypes.CDLL(str(_library_file()))
    handle, size = ctypes.c_void_p, ctypes.c_size_t
    for name, arguments in {
        "LiteRtCreateEnvironment": [ctypes.c_int, handle, handle],
        "LiteRtCreateModelFromBuffer": [handle, handle, size, handle],
        "LiteRtCreateOptions": [handle],
        "LiteRtSetOptionsHardwareAccelerators": [handle, ctypes.c_int],
        "LiteRtCreateOpaqueOptions": [ctypes.c_char_p, handle, handle, handle],
        "LiteRtAddOpaqueOptions": [handle, handle],
        "LiteRtCreateCompiledModel": [handle, handle, handle, handle],
        "LiteRtGetModelSignature": [handle, size, handle],
        "LiteRtGetNumSignatureInputs": [handle, handle],
        "LiteRtGetNumSignatureOutputs": [handle, handle],
        "LiteRtGetSignatureInputName": [handle, size, handle],
        "LiteRtGetSignatureInputTensorByIndex": [handle, size, handle],
        "LiteRtGetSignatureOutputTensorByIndex": [handle, size, handle],
        "LiteRtGetRankedTensorType": [handle, handle],
        "LiteRtGetCompiledModelInputBufferRequirements": [handle, size, size, handle],
        "LiteRtGetCompiledModelOutputBufferRequirements": [handle, size, size, handle],
        "LiteRtCreateManagedTensorBufferFromRequirements": [handle, handle, handle, handle],
        "LiteRtGetTensorBufferPackedSize": [handle, handle],
        "LiteRtLockTensorBuffer": [handle, handle, ctypes.c_int],
        "LiteRtUnlockTensorBuffer": [handle],
        "LiteRtRunCompiledModel": [handle, size, size, handle, size, handle],
        "LiteRtCompiledModelGetProfiler": [handle, handle],
        "LiteRtStartProfiler": [handle],
        "LiteRtResetProfiler": [handle],
        "LiteRtGetNumProfilerEvents": [handle, handle],
        "LiteRtGetProfilerEvents": [handle, ctypes.c_int, handle],
    }.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    for name in ("Model", "Options", "CompiledModel", "TensorBuffer"):
        function = getattr(library, f"LiteRtDestroy{name}")
        function.argtypes, function.restype = [handle], None
    return library
