"""Clocks and temperature of a GPU, read from a library that has NVML's interface."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from devices.gpu import gpu_state
from devices.runtimes import get_runtime

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")

# As NVML's documentation declares them; 0 is success, 3 "not supported".
NVML = """
#include <string.h>
int nvmlInit_v2(void) { return INIT; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **gpu) { *gpu = (void *)42; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **gpu) {
    *gpu = (void *)42; return index ? 2 : 0;
}
int nvmlDeviceGetName(void *gpu, char *name, unsigned int length) {
    strncpy(name, "NVIDIA Example", length); return gpu != (void *)42;
}
int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    strncpy(version, "580.1", length); return 0;
}
int nvmlDeviceGetClockInfo(void *gpu, int type, unsigned int *clock) {
    *clock = type == 1 ? 1980 : type == 2 ? 3201 : 0; return gpu != (void *)42;
}
int nvmlDeviceGetTemperature(void *gpu, int sensor, unsigned int *celsius) {
    *celsius = 41; return sensor ? 2 : TEMPERATURE;
}
"""


def library(folder: Path, source: str, **values: int) -> str:
    made = folder / "libexample.so"
    options = [f"-D{name}={value}" for name, value in values.items()]
    command = ["gcc", "-shared", "-fPIC", "-x", "c", *options, "-", "-o", str(made)]
    subprocess.run(command, input=source, text=True, check=True)
    return str(made)


@needs_compiler
def test_clocks_and_temperature_are_read(tmp_path: Path) -> None:
    assert gpu_state(library(tmp_path, NVML, INIT=0, TEMPERATURE=0)) == {
        "name": "NVIDIA Example", "driver": "580.1", "sm_mhz": 1980, "memory_mhz": 3201,
        "temperature_c": 41,
    }  # fmt: skip


@needs_compiler
def test_what_a_gpu_does_not_tell_is_left_out(tmp_path: Path) -> None:
    state = gpu_state(library(tmp_path, NVML, INIT=0, TEMPERATURE=3))
    assert state is not None and "temperature_c" not in state and state["sm_mhz"] == 1980


@needs_compiler
def test_a_library_that_fails_or_is_another_tells_nothing(tmp_path: Path) -> None:
    assert gpu_state(library(tmp_path, NVML, INIT=9, TEMPERATURE=0)) is None
    (tmp_path / "other").mkdir()
    other = "int nvmlInit_v2(void) { return 0; } int nvmlShutdown(void) { return 0; }"
    assert gpu_state(library(tmp_path / "other", other)) is None
    assert gpu_state(str(tmp_path / "absent.so")) is None


def test_runtimes_on_the_processor_tell_nothing() -> None:
    for name in ("onnxruntime", "openvino", "torch", "simulated", "ncnn"):
        assert get_runtime(name).device_state() is None
