"""Why a device card could not be read or written, in one line."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devices.errors import AutospaceError, InvalidInputError
from devices.onnx_files import one_line

__all__ = ["damage", "disk_full", "writing"]

_NO_SPACE = (
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_SHMMAP,
)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says in one line why a card could not be written.

    Raises:
        AutospaceError: the disk is full; what was committed stays.
        InvalidInputError: the card is damaged, read-only, or held by another program.
    """
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        full = disk_full(path, error)
        if full is not None:
            raise full from error
        if isinstance(error, OSError):
            raise
        reason = one_line(error, 80)
        primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            words = f"cannot be written ({reason}); make the file and its folder writable, or give "
            words += "another path."
        elif primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            words = f"in use by another program ({reason}); close that and repeat the command."
        elif primary == sqlite3.SQLITE_IOERR:
            words = f"cannot be written ({reason}); check the disk and repeat the command."
        else:
            words = f"damaged device card ({reason}); delete it and profile the device anew."
        raise InvalidInputError(f"{path}: {words}") from error


def disk_full(path: Path, error: sqlite3.Error | OSError) -> AutospaceError | None:
    """The error for a disk without space; None for all other causes."""
    if isinstance(error, OSError):
        # Python looks for a folder in which it can write, and finds none.
        none = "No usable temporary directory" in str(error)
        if not none and error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            return None
        what = "disk is full, here or where temporary files are kept"
    elif getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
        what = "disk is full"
    elif getattr(error, "sqlite_errorcode", 0) in _NO_SPACE:
        what = "disk is full, or a limit on the size of files is reached"
    else:
        return None
    reason = getattr(error, "strerror", None) or one_line(error, 80)
    return AutospaceError(
        f"{path}: {what} ({reason}); free some space and repeat the command, it goes on from there."
    )


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turns whatever a damaged card leads to into one line.

    Raises:
        InvalidInputError: the card is damaged, or the disk is full.
    """
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        full = disk_full(path, error)
        raise full or InvalidInputError(
            f"{path}: damaged device card ({one_line(error, 80)}); copy it again or "
            "profile the device anew."
        ) from error
    except AutospaceError as error:
        if str(path) in str(error):
            raise
        raise InvalidInputError(f"{path}: damaged device card; {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InvalidInputError(
            f"{path}: damaged device card (unreadable content); copy it again or profile the "
            "device anew."
        ) from error
