"""Standard output and standard error that never fail, whatever the character and even without a reader."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import Any


def set_up() -> None:
    """Replace sys.stdout and sys.stderr by streams that take any text and outlive their readers.

    An ASCII stream becomes UTF-8, as in Python's UTF-8 mode: ASCII only means that no locale is set.
    Every other encoding stays, and shows characters that it lacks as escapes.
    """
    sys.stdout, sys.stderr = _robust(sys.stdout), _robust(sys.stderr)


class _Descriptor(io.FileIO):
    """A file descriptor that discards all writes after its pipe or terminal is closed."""

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: the terminal is closed
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return len(data)


def _robust(stream: Any) -> Any:
    """Wrap a stream. Return it unchanged if it has no descriptor: closed, replaced by a test, or a Windows console."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # python -u has no buffer in between
    if type(raw) is not io.FileIO or raw.fileno() not in (1, 2):
        return stream
    stream.flush()
    descriptor = _Descriptor(raw.fileno(), "wb", closefd=False)
    plain = codecs.lookup(stream.encoding).name in ("ascii", "utf-8")
    return io.TextIOWrapper(
        descriptor if raw is buffer else io.BufferedWriter(descriptor),
        encoding="utf-8" if plain else stream.encoding,
        errors="surrogateescape" if plain else "backslashreplace",  # keeps the bytes of a path
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
