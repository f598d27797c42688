"""The NVIDIA GPU of this machine, asked of its driver; no package is needed for it."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

__all__ = ["gpu_name", "gpu_state"]

_NAME_BYTES = 256
_NVML = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
_SM_CLOCK, _MEMORY_CLOCK, _GPU_TEMPERATURE = 1, 2, 0  # of NVML's enumerations


def gpu_name() -> str | None:
    """Name of the first NVIDIA GPU that programs may use; None without one or without a driver.

    Source: CUDA driver API, `cuInit`, `cuDeviceGet`, `cuDeviceGetName`.
    """
    name = _of_first_gpu("cuDeviceGetName")
    return None if name is None else name.strip() or None


def gpu_state(library: str = _NVML) -> dict[str, Any] | None:
    """Name, clocks and temperature of the first GPU at this moment; None where NVML is not there.

    NVML comes with the driver. It counts all GPUs, CUDA those that programs may use, so the one is
    found by its place on the bus.

    Args:
        library: NVML's file.

    Returns:
        ``name``, ``driver``, ``sm_mhz``, ``memory_mhz``, ``temperature_c``; what the GPU does not
        tell is left out.

    Source: NVML API reference, `nvmlDeviceGetClockInfo`, `nvmlDeviceGetTemperature`.
    """
    try:
        nvml = ctypes.CDLL(library)
        if nvml.nvmlInit_v2():
            return None
    except (OSError, AttributeError):  # no library, or another one of that name
        return None
    try:
        gpu = ctypes.c_void_p()
        bus = _of_first_gpu("cuDeviceGetPCIBusId")
        if bus is None or nvml.nvmlDeviceGetHandleByPciBusId_v2(bus.encode(), ctypes.byref(gpu)):
            if nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(gpu)):
                return None
        text = ctypes.create_string_buffer(_NAME_BYTES)
        number = ctypes.c_uint()
        told: dict[str, Any] = {}
        if not nvml.nvmlDeviceGetName(gpu, text, _NAME_BYTES):
            told["name"] = text.value.decode(errors="replace")
        if not nvml.nvmlSystemGetDriverVersion(text, _NAME_BYTES):
            told["driver"] = text.value.decode(errors="replace")
        for key, ask, which in (
            ("sm_mhz", nvml.nvmlDeviceGetClockInfo, _SM_CLOCK),
            ("memory_mhz", nvml.nvmlDeviceGetClockInfo, _MEMORY_CLOCK),
            ("temperature_c", nvml.nvmlDeviceGetTemperature, _GPU_TEMPERATURE),
        ):
            if not ask(gpu, which, ctypes.byref(number)):
                told[key] = number.value
        return told
    except AttributeError:
        return None
    finally:
        nvml.nvmlShutdown()


def _of_first_gpu(function: str) -> str | None:
    """What a function of CUDA's driver writes about the first GPU that programs may use."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device = ctypes.c_int()
    text = ctypes.create_string_buffer(_NAME_BYTES)
    try:
        if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
            return None
        # The name's buffer comes first in both, then its length, then the GPU.
        if getattr(driver, function)(text, _NAME_BYTES, device):
            return None
    except AttributeError:  # a library of that name, but not this one
        return None
    return text.value.decode(errors="replace")
