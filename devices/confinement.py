"""Keeps this process to one folder and off the network, for the rest of its life.

Converters are other people's programs: some ask a server for updates, some write beside the model
or into the home folder. Where Linux can forbid it, Linux does, for native code and for programs
started from here as well: a network namespace without a network, and Landlock for writing. Where it
cannot, an audit hook refuses what Python's own functions are asked for, which native code can
avoid. Reading is left free, for that is where the packages are.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

__all__ = ["OFFLINE", "confine", "confined_environment"]

_NOWHERE = "http://127.0.0.1:9"
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "PIP_NO_INDEX": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    **{f"{name}_{word}": _NOWHERE for name in ("http", "https", "all") for word in ("proxy",)},
    **{f"{name}_PROXY": _NOWHERE for name in ("HTTP", "HTTPS", "ALL")},
    "NO_PROXY": "",
    "no_proxy": "",
}
"""Variables by which programs are told to stay offline; the proxy is one that never answers."""

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_VERSION = 1
_PATH_BENEATH = 1
_WRITE_FILE, _REMOVE_FILE, _MAKE_REGULAR = 1 << 1, 1 << 5, 1 << 8
_WRITING = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_NETWORK_EVENTS = frozenset(
    {"socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname"}
    | {"socket.sendto", "socket.sendmsg"}
)
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def confined_environment(folder: Path) -> dict[str, str]:
    """This process's environment for a child that shall be offline and write into a folder only.

    Args:
        folder: its home, its temporary folder and every cache's place.
    """
    homes = ("HOME", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
    caches = ("HF_HOME", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    return {
        **os.environ,
        **OFFLINE,
        **dict.fromkeys((*homes, *caches, "CUDA_CACHE_PATH"), str(folder)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry),
    }


def confine(folder: Path, *, kernel: bool = True) -> dict[str, str]:
    """Cuts this process off from the network and from writing outside a folder, for good.

    To be called before any thread is started. The process also ends with its parent, and leaves no
    core file behind when it crashes.

    Args:
        folder: where it may write; devices such as ``/dev/null`` and shared memory are allowed too.
        kernel: False leaves it all to Python's audit hook, as where Linux cannot help.

    Returns:
        By what means: ``{"network": "namespace" | "audit hook", "files": "landlock" | "audit
        hook"}``.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = _libc()
    offline = limited = False
    if libc is not None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if kernel:
            offline = _leave_network(libc)
            limited = _limit_writing(libc, folder)
    _refuse_by_hook(folder, network=not offline, files=not limited)
    hook = "audit hook"
    return {
        "network": "namespace" if offline else hook,
        "files": "landlock" if limited else hook,
    }


def _libc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return ctypes.CDLL(None, use_errno=True)


def _leave_network(libc: Any) -> bool:
    """Whether this process is now in a network namespace of its own, in which there is nothing."""
    return any(
        libc.unshare(flags) == 0 for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET)
    )


def _limit_writing(libc: Any, folder: Path) -> bool:
    """Whether Landlock now refuses writing outside the folder."""
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION)
    if version < 1:
        return False
    handled = _WRITING | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    attributes = _RulesetAttributes(handled)
    size = ctypes.sizeof(attributes)
    rules = libc.syscall(_LANDLOCK_CREATE_RULESET, ctypes.byref(attributes), size, 0)
    if rules < 0:
        return False
    devices = handled & (_WRITE_FILE | _REMOVE_FILE | _MAKE_REGULAR | _TRUNCATE)
    try:
        for path, allowed in ((str(folder), handled), ("/dev", devices)):
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = _PathBeneath(allowed, descriptor)
            failed = libc.syscall(_LANDLOCK_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(rule), 0)
            os.close(descriptor)
            if failed:
                return False
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            return False
        return bool(libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0) == 0)
    finally:
        os.close(rules)


def _refuse_by_hook(folder: Path, *, network: bool, files: bool) -> None:
    inside = (os.path.join(os.path.realpath(folder), ""), "/dev/")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if network and event in _NETWORK_EVENTS:
            raise PermissionError(f"{event}: the network is switched off here")
        if files and event == "open" and isinstance(arguments[0], str | bytes):
            path, _, flags = arguments
            if flags & _WRITE_FLAGS and not _real(path).startswith(inside):
                raise PermissionError(f"{_real(path)}: outside the folder that may be written")

    if network or files:
        sys.addaudithook(hook)


def _real(path: str | bytes) -> str:
    return os.path.realpath(os.fsdecode(path))
