"""Hardware and runtimes; knows nothing of networks or search.

Names are loaded when they are first used, so that importing the package costs nothing and pulls in
no runtime.
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "AutospaceError": "errors",
    "BudgetError": "errors",
    "CompiledGraph": "runtimes.base",
    "CompiledModel": "runtimes.base",
    "Environment": "host",
    "Host": "host",
    "InvalidInputError": "errors",
    "Measurement": "measurement",
    "MismatchError": "errors",
    "Runtime": "runtimes.base",
    "RuntimeSettings": "runtimes.base",
    "RuntimeStatus": "runtimes.base",
    "UnavailableError": "errors",
    "UsageError": "errors",
    "Visit": "measurement",
    "get_runtime": "runtimes",
    "read_environment": "host",
    "resolve_host": "host",
    "runtime_statuses": "runtimes",
}

__all__ = [
    "AutospaceError",
    "BudgetError",
    "CompiledGraph",
    "CompiledModel",
    "Environment",
    "Host",
    "InvalidInputError",
    "Measurement",
    "MismatchError",
    "Runtime",
    "RuntimeSettings",
    "RuntimeStatus",
    "UnavailableError",
    "UsageError",
    "Visit",
    "get_runtime",
    "read_environment",
    "resolve_host",
    "runtime_statuses",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
