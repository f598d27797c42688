"""Reading and writing the project's files: one line for every way a file can be wrong.

Nothing is ever half-written: a file appears under its name only when it is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devices.errors import AutospaceError, InvalidInputError, UsageError

__all__ = [
    "canonical_json",
    "check_writable",
    "content_hash",
    "disk_full",
    "read_document",
    "replacing",
    "write_json",
    "write_text",
]

_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside ``path`` and renames it to ``path`` when all went well.

    Args:
        path: where the complete file shall appear.

    Raises:
        UsageError: the folder is missing or cannot be written to.
        AutospaceError: the disk is full; what was under the name before is still there.
    """
    check_writable(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except Exception as error:  # each writer's library raises its own
        full = disk_full(error, path)
        if full is None:
            raise
        raise full from error
    finally:
        temporary.unlink(missing_ok=True)


def disk_full(error: Exception, path: Path | None = None) -> AutospaceError | None:
    """What to say when an error means that there is no space left; None for all other errors.

    Args:
        error: an `OSError`, or an error of a library that quotes one, as safetensors does.
        path: what was being written, where that is known.
    """
    number = error.errno if isinstance(error, OSError) else None
    quoted = re.search(r"\(os error (\d+)\)", str(error))
    if number not in _NO_SPACE and (quoted is None or int(quoted[1]) not in _NO_SPACE):
        return None
    reason = os.strerror(number or int(quoted[1] if quoted else 0))
    where = f"{path}: " if path is not None else ""
    return AutospaceError(f"{where}disk is full ({reason}); free some space and repeat the command")


def check_writable(path: Path) -> None:
    """Refuses an output that could not be written, before hours of work go into it.

    Raises:
        UsageError: the folder is missing, the path is a folder, or writing is not permitted.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file to write")
    parent = path.parent
    if not parent.is_dir():
        raise UsageError(f"{path}: the folder {str(parent)!r} does not exist; create it first")
    if path.exists() and not os.access(path, os.W_OK):
        raise UsageError(f"{path}: not writable; choose another output with -o")
    try:
        handle, probe = tempfile.mkstemp(prefix=f".{path.name}.", dir=parent)
    except OSError as error:
        raise disk_full(error, path) or UsageError(
            f"{path}: cannot be written ({error.strerror}); choose another output with -o"
        ) from None
    os.close(handle)
    os.unlink(probe)


def write_text(path: Path, text: str) -> None:
    """Writes a text file at once.

    Raises:
        UsageError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON file at once.

    Raises:
        UsageError: the file cannot be written.
    """
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_document(path: Path, what: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: the file.
        what: what the file should be, for the error: ``"a space file"``.

    Returns:
        The object, unchecked beyond being one.

    Raises:
        InvalidInputError: missing, a folder, empty, unreadable, truncated or not a JSON object.
    """
    if path.is_dir():
        raise InvalidInputError(f"{path}: is a folder, not {what}; name the file in it")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InvalidInputError(f"{path}: no such file; expected {what}") from None
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror})") from None
    if not data.strip():
        raise InvalidInputError(f"{path}: empty; expected {what}")
    try:
        document = json.loads(data, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path}: not text, so not {what}; check the file") from None
    except (ValueError, RecursionError) as error:  # also whole numbers of thousands of digits
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidInputError(
            f"{path}: not valid JSON{where} (truncated or foreign?); expected {what}"
        ) from None
    if not isinstance(document, dict):
        raise InvalidInputError(f"{path}: a JSON {type(document).__name__}; expected {what}")
    return document


def _no_constant(name: str) -> None:
    """Refuses NaN and Infinity, which are no JSON and which no field can hold."""
    raise ValueError(name)
