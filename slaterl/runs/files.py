"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from slaterl.errors import UserError
from slaterl.runs.signals import deferred


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to the target. At the end of the block it is renamed to the target.

    Raises:
        UserError: the disk is full or the folder cannot be written. An existing file stays unchanged.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner can read
        with open(partial, "rb") as file:
            os.fsync(file.fileno())  # otherwise a power cut could keep the manifest and lose the files it lists
        os.replace(partial, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's writer on a full disk
            raise
        raise UserError(f"{path}: cannot be written ({first_line(error)})") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file. Raises UserError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove its folder to make it again") from error


def write_json(path: Path, value: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write a JSON file whole or not at all. Raises UserError if it cannot be written."""
    with deferred():  # a run that is interrupted twice must not stay "running"
        write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, whatever the locale. Raises UserError if it cannot be written.

    A path that is not in the locale's encoding keeps its bytes (surrogateescape).
    """
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def fingerprint_of(path: Path) -> str:
    """Return 16 hex digits that change with any byte of the file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):  # logs can be larger than the memory
            digest.update(block)
    return digest.hexdigest()[:16]


def fingerprint_of_files(folder: Path, files: Iterable[Path]) -> str:
    """Return 16 hex digits that change with any byte or name of these files below a folder."""
    lines = [f"{path.relative_to(folder)} {fingerprint_of(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the operating system's message if that was the cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return (str(error) or type(error).__name__).splitlines()[0]


def in_short(error: BaseException) -> str:
    """Shorten an error's message to one line."""
    return textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" ...")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
