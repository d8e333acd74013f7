"""What ends a run with one sentence instead of a traceback."""

from __future__ import annotations

import math
from collections.abc import Sequence


class UserError(Exception):
    """A mistake the user can mend. The message names the field or file, what was found and what was expected.

    run.py prints it without a traceback and exits with status 2.
    """


class Interrupted(BaseException):
    """A signal ended the run; run.py exits with status 128 + signum.

    A BaseException, so that no library between the training loop and run.py takes it for an ordinary failure.

    Attributes:
        signum: the signal's number.
        saved: whether anything was saved, and how to resume. None if the run was not training.
    """

    def __init__(self, signum: int, saved: str | None = None) -> None:
        super().__init__(f"signal {signum}")
        self.signum = signum
        self.saved = saved

    @property
    def outcome(self) -> str:
        """What the user is told. A second signal can arrive while the first one ends the run, which tells more."""
        error: BaseException | None = self
        while error is not None:
            if isinstance(error, Interrupted) and error.saved:
                return error.saved
            error = error.__context__
        return "finished stages and checkpoints are kept; rerun the same command to resume"


def check_positive(**values: float) -> None:
    """Raise UserError naming the first argument that is not > 0 and finite."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise UserError(f"{name}={value}: expected a number above zero")


def check_counts(**values: int) -> None:
    """Raise UserError naming the first argument that is not a whole number above zero."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={value}: expected a whole number of at least 1")


def check_widths(**values: Sequence[int]) -> None:
    """Raise UserError naming the first argument that is not a list of layer widths, with at least one."""
    for name, widths in values.items():
        if not isinstance(widths, list | tuple) or not widths:
            raise UserError(f"{name}={widths}: expected a list of layer widths, such as [256]")
        for width in widths:
            check_counts(**{name: width})


def check_range(low: float, high: float, **values: float) -> None:
    """Raise UserError naming the first argument that is outside [low, high], or infinite."""
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not low <= value <= high:
            raise UserError(f"{name}={value}: expected a number from {low} to {high}")
