"""Files of tensors and plain values, written so that a reader never sees half of one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from slaterl.errors import UserError

FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Write beside the target, then rename.

    Raises:
        UserError: the disk is full or the folder cannot be written. What was there before stays.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from error


def load(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; no code in it runs (weights_only).

    Args:
        kind: what is expected, "agent" or "ranker".

    Raises:
        UserError: missing, damaged, of another format or another kind.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each have their own for a damaged file
        raise UserError(f"{path}: damaged, or not a checkpoint of slaterl ({str(error).splitlines()[0]})") from error
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"{path}: not a checkpoint of slaterl")
    if state["format"] != FORMAT:
        raise UserError(f"{path}: checkpoint format {state['format']}, this version reads {FORMAT}")
    if state["kind"] != kind:
        raise UserError(f"{path}: a checkpoint of kind '{state['kind']}', expected '{kind}'")
    return state
