"""Runs `python -m slaterl.run` and ends itself at a chosen point, as a power cut or a scheduler would.

python tests/killer.py replace:5 scale=smoke ...     SIGKILL just before the fifth file is renamed into place
python tests/killer.py update:23 scale=smoke ...     SIGKILL after the 23rd gradient update
python tests/killer.py term:23 scale=smoke ...       SIGTERM to itself after the 23rd gradient update
python tests/killer.py hup:23 scale=smoke ...        SIGHUP twice, as a closed terminal does
python tests/killer.py int_int:23 scale=smoke ...    SIGINT twice, as an impatient user does
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

SIGNALS = {
    "update": [signal.SIGKILL],
    "term": [signal.SIGTERM],
    "hup": [signal.SIGHUP, signal.SIGHUP],
    "int_int": [signal.SIGINT, signal.SIGINT],
}


def after(calls: int, signals: list[int], function: Callable[..., Any], before: bool = False) -> Callable[..., Any]:
    """The function, sending signals to this process at its n-th call."""
    count = 0

    def send() -> None:
        for signum in signals:
            os.kill(os.getpid(), signum)
            time.sleep(0.01)  # the next one comes after the first was handled

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if before and count == calls:
            send()
        result = function(*args, **kwargs)
        if not before and count == calls:
            send()
        return result

    return wrapped


if __name__ == "__main__":
    point, calls = sys.argv.pop(1).split(":")
    from slaterl.run import main
    from slaterl.training.learner import Learner

    if point == "replace":
        os.replace = after(int(calls), SIGNALS["update"], os.replace, before=True)
    else:
        Learner.training_step = after(int(calls), SIGNALS[point], Learner.training_step)
    main()
