"""Check a source before its rows are read: its package is installed, it can be opened, and it has all fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from slaterl.errors import UserError
from slaterl.runs.files import first_line


def require_package(package: str, extra: str, where: str) -> None:
    """Raise UserError unless a package of one of slaterl's extras can be imported."""
    try:
        import_module(package)
    except ImportError as error:
        raise UserError(f"{where}: needs the package {package}: pip install 'slaterl[{extra}]'") from error


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn any error of the block into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each library raises its own errors for a damaged file
        raise UserError(f"{file}: cannot be read ({first_line(error)})") from error


def check_fields(where: Path | str, found: Iterable[str], expected: Iterable[str]) -> None:
    """Raise UserError unless all expected fields are among those found."""
    missing = [name for name in expected if name not in found]
    if missing:
        raise UserError(f"{where}: missing {', '.join(missing)}; found {', '.join(map(str, found)) or 'nothing'}")
