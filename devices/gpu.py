"""The NVIDIA GPU of this machine, asked of its driver; no package is needed for it."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["gpu_name"]

_NAME_BYTES = 256


def gpu_name() -> str | None:
    """Name of the first NVIDIA GPU that programs may use; None without one or without a driver.

    Source: CUDA driver API, `cuInit`, `cuDeviceGet`, `cuDeviceGetName`.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    try:
        if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
            return None
        if driver.cuDeviceGetName(name, _NAME_BYTES, device):
            return None
    except AttributeError:  # a library of that name, but not this one
        return None
    return name.value.decode(errors="replace").strip() or None
