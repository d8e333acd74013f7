"""Logged sessions in the format of the code published with GeMS (Deffayet et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from slaterl.data.formats.checks import check_fields, reading
from slaterl.data.formats.rows import Rows, Session, rows_of_sessions
from slaterl.errors import UserError


def read(file: Path, slate_size: int) -> Rows:
    """Read {session: {"slate": [L, S], "clicks": [L, S]}} from a .pt file, without running any code in it.

    The length of the sessions decides whether row 0 is the frame of reset.

    Raises:
        UserError: the file is damaged or has other content, or a session has another shape.
    """
    with reading(file):
        content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise UserError(f"{file}: found {type(content).__name__}, expected a dict of sessions")

    def sessions() -> Iterator[Session]:
        for name, session in content.items():
            if not isinstance(session, dict):
                raise UserError(f"{file}: session {name}: found {type(session).__name__}, expected a dict")
            check_fields(f"{file}: session {name}", session, ("slate", "clicks"))
            for field in ("slate", "clicks"):
                if not isinstance(session[field], Tensor):
                    kind = type(session[field]).__name__
                    raise UserError(f"{file}: {field} of session {name}: found {kind}, expected a tensor")
            slate, clicks = (session[field].detach() for field in ("slate", "clicks"))
            # NumPy has no bfloat16
            yield name, *((t.double() if t.is_floating_point() else t).numpy() for t in (slate, clicks))

    return rows_of_sessions(str(file), sessions(), slate_size, has_frame_0=None)
