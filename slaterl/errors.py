"""Exceptions that end a run with one sentence instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can fix. The message names the setting or file, its value, and what was expected.

    run.py prints the message without a traceback and exits with status 2.
    """


class Interrupted(BaseException):
    """A signal arrived and the state was saved. run.py exits with status 128 + signum.

    It derives from BaseException, so that no library between the training loop and run.py handles it as a failure.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.signum = signum
