"""autospace: the most accurate network for a device and a limit, with proof that it fits.

The chain as functions: `profile`, `evolve`, `search` (`search_pareto` for a family of limits),
`train`, `export`, `benchmark`, and `predict`. Each takes and returns the frozen data classes that
the files hold. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autospace.genotype import Cell, MBConv, Zero
    from autospace.skeleton import Skeleton
    from autospace.space import Architecture, SearchSpace
    from autospace.steps import (
        benchmark,
        evolve,
        export,
        open_device,
        predict,
        profile,
        search,
        search_pareto,
        train,
    )

__all__ = [
    "Architecture",
    "Cell",
    "MBConv",
    "SearchSpace",
    "Skeleton",
    "Zero",
    "benchmark",
    "evolve",
    "export",
    "open_device",
    "predict",
    "profile",
    "search",
    "search_pareto",
    "train",
]

_HOMES = {
    "Architecture": "autospace.space",
    "SearchSpace": "autospace.space",
    "Cell": "autospace.genotype",
    "MBConv": "autospace.genotype",
    "Zero": "autospace.genotype",
    "Skeleton": "autospace.skeleton",
    **dict.fromkeys(
        (
            "benchmark",
            "evolve",
            "export",
            "open_device",
            "predict",
            "profile",
            "search",
            "search_pareto",
            "train",
        ),
        "autospace.steps",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
