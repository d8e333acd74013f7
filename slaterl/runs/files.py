"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from slaterl.errors import UserError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a name beside the target to write to; what is there at the end is renamed to the target.

    Raises:
        UserError: the disk is full or the folder cannot be written. What was there before stays.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.chmod(0o666 & ~_umask())  # safetensors writes for its owner alone; inputs are shared
        with open(partial, "rb") as file:
            os.fsync(file.fileno())  # a manifest must not outlive a power cut that its product does not
        os.replace(partial, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's writer on a full disk
            raise
        raise UserError(f"{path}: cannot be written ({first_line(error)})") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file. Raises UserError if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove its folder to make it again") from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all. Raises UserError if it cannot be written."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def fingerprint_of(path: Path) -> str:
    """16 hex digits that change with any byte of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def first_line(error: BaseException) -> str:
    """What an error says, in one line: the operating system's words where it was the cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return (str(error) or type(error).__name__).splitlines()[0]


def in_short(error: BaseException) -> str:
    """All that a library says in several lines, in one of them."""
    return textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" ...")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
