"""The one exception tree of the project, and the exit code that each branch means.

::

    AutospaceError            1  a failure explained in one line
    ├── InvalidInputError     1  a file or value that breaks a rule
    │   └── MismatchError     1  a card made for another runtime, device or setting
    ├── UsageError            2  a command or configuration that asks for the impossible
    ├── BudgetError           3  the budget was not kept
    └── UnavailableError      4  a runtime or device that is not there

Every message is one line: the value, the rule it broke, and what to do.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AutospaceError",
    "BudgetError",
    "InvalidInputError",
    "MismatchError",
    "UnavailableError",
    "UsageError",
]


class AutospaceError(Exception):
    """A failure that the user can act on; its message is one line.

    Attributes:
        exit_code: what the command line exits with.
    """

    exit_code: ClassVar[int] = 1


class InvalidInputError(AutospaceError):
    """A file or value that breaks a rule: missing, truncated, foreign, inconsistent."""


class MismatchError(InvalidInputError):
    """A device card used for a runtime, version, device or setting it was not made for."""


class UsageError(AutospaceError):
    """A command or configuration that cannot be carried out as written."""

    exit_code: ClassVar[int] = 2


class BudgetError(AutospaceError):
    """The best network found does not keep the limit."""

    exit_code: ClassVar[int] = 3


class UnavailableError(AutospaceError):
    """A runtime or device that is not installed or not reachable."""

    exit_code: ClassVar[int] = 4
