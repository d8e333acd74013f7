"""Exceptions that end a run with one sentence instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can fix. The message names the setting or file, its value, and what was expected.

    run.py prints the message without a traceback and exits with status 2.
    """


class Pruned(UserError):
    """A study ended this trial, because others did better at the same step."""


class Interrupted(BaseException):
    """A signal ended the run. run.py exits with status 128 + signum.

    It derives from BaseException, so that no library between the training loop and run.py handles it as a failure.

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
        """The message for the user. A second signal gives way to the message of the first."""
        error: BaseException | None = self
        while error is not None:
            if isinstance(error, Interrupted) and error.saved:
                return error.saved
            error = error.__context__
        return "finished stages and checkpoints are kept; rerun the same command to resume"
