"""The only place that imports torchvision.

The package index carries torchvision built for CUDA; beside a CPU build of torch its import
stops at ``operator torchvision::nms does not exist``. Exactly that case is handled here, by
declaring the two operators that are missing, and importing again.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from types import ModuleType

from devices.errors import UnavailableError

__all__ = ["torchvision"]

_MISSING = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache
def torchvision() -> ModuleType:
    """The torchvision package, imported.

    Raises:
        UnavailableError: not installed, or it does not fit the installed torch.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise UnavailableError(
            "torchvision is not installed; run: pip install -c constraints.txt torchvision"
        ) from None
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise UnavailableError(
                f"torchvision does not fit the installed torch ({error}); install both from "
                "constraints.txt"
            ) from None
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _MISSING:
        library.define(schema)  # type: ignore[no-untyped-call]
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    module = importlib.import_module("torchvision")
    module.__autospace_operators__ = library  # type: ignore[attr-defined]  # keeps it alive
    return module
