"""Checkpoints: files of tensors and plain values, written whole or not at all."""

from __future__ import annotations

import contextlib
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from slaterl.errors import UserError
from slaterl.runs.files import first_line, in_short, whole_file

FORMAT = 2


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        UserError: the disk is full or the folder cannot be written. The old file stays.
    """
    with whole_file(path) as partial, open(partial, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)


def load(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint to the CPU without running code from it (weights_only).

    Args:
        kind: the expected kind: "agent", "ranker", "items", "user_model", or the training of one of these.

    Raises:
        UserError: the file is missing or damaged, or has another format or another kind.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch raise their own errors for a damaged file
        raise UserError(f"{path}: {_fault(path, error)}") from error
    if not isinstance(state, dict) or not {"format", "kind"} <= set(state):
        raise UserError(f"{path}: not a checkpoint of slaterl")
    if state["format"] != FORMAT:
        newer = isinstance(state["format"], int) and state["format"] > FORMAT
        by = f"{'a newer' if newer else 'another'} version of slaterl wrote it"
        raise UserError(f"{path}: checkpoint format {state['format']}, but this version reads {FORMAT}; {by}")
    if state["kind"] != kind:
        raise UserError(f"{path}: a checkpoint of kind '{state['kind']}', expected '{kind}'")
    return state


def _fault(path: Path, error: Exception) -> str:
    """Say in a few words why a file is no checkpoint. Torch's own messages are long, and advise to run its code."""
    if isinstance(error, OSError):
        return f"cannot be read ({first_line(error)})"
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as problem:
        return f"cannot be read ({first_line(problem)})"
    if not start:
        return "empty, not a checkpoint of slaterl"
    if start != b"PK\x03\x04":  # torch saves zip files
        return "not a checkpoint of slaterl"
    if not zipfile.is_zipfile(path):
        return "damaged: the end of the file is missing"
    if isinstance(error, pickle.UnpicklingError):
        return "not a checkpoint of slaterl: it holds pickled code or objects, which are not loaded"
    return f"damaged ({in_short(error)})"


@contextlib.contextmanager
def taken_by(learner: object, source: str | Path, advice: str = "") -> Iterator[None]:
    """Wrap a block that loads a checkpoint into a learner.

    Raises:
        UserError: the parameters do not match, because the learner's code has changed.
    """
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:  # from torch's modules, its optimisers, and ours
        if isinstance(error, RuntimeError) and "loading state_dict" not in str(error):
            raise  # an error of the device, such as out of memory: the file is fine
        written = f"{source}: written by another version of {type(learner).__name__}"
        raise UserError(f"{written} ({in_short(error)}){advice}") from error
