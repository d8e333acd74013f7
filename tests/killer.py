"""Runs `python -m slaterl.run` and ends itself at a chosen point, as a power cut or a scheduler would.

python tests/killer.py replace:5 scale=smoke ...     SIGKILL just before the fifth file is renamed into place
python tests/killer.py update:23 scale=smoke ...     SIGKILL after the 23rd gradient update
python tests/killer.py term:23 scale=smoke ...       SIGTERM to itself after the 23rd gradient update
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def after(calls: int, signum: int, function: Callable[..., Any], before: bool = False) -> Callable[..., Any]:
    """The function, sending a signal to this process at its n-th call."""
    count = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if before and count == calls:
            os.kill(os.getpid(), signum)
        result = function(*args, **kwargs)
        if not before and count == calls:
            os.kill(os.getpid(), signum)
        return result

    return wrapped


if __name__ == "__main__":
    point, calls = sys.argv.pop(1).split(":")
    from slaterl.run import main
    from slaterl.training.learner import Learner

    if point == "replace":
        os.replace = after(int(calls), signal.SIGKILL, os.replace, before=True)
    else:
        signum = signal.SIGKILL if point == "update" else signal.SIGTERM
        Learner.training_step = after(int(calls), signum, Learner.training_step)
    main()
