"""Slots for jobs on this machine. Each is a process with at most one GPU and a share of the cores."""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from loky import BrokenProcessPool, ProcessPoolExecutor

from slaterl.bounds import Count, check_arguments
from slaterl.cores import usable_cores
from slaterl.errors import UserError

# An idle worker ends after this time. If the launcher is killed, nothing else ends its workers.
IDLE_SECONDS = 60.0


class Slot:
    """A worker process that runs one job after the other, so that it imports torch once. A crash starts a new worker.

    Every slot has its own executor, because a worker that dies ends all jobs of its executor.
    """

    def __init__(self, name: str, env: dict[str, str]) -> None:
        self.name, self.env = name, env
        self.executor: ProcessPoolExecutor | None = None

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        if self.executor is not None:
            try:
                return self.executor.submit(function, *arguments)
            except BrokenProcessPool:  # the worker died while it was idle
                self.end()
        # in the launcher's process group, the worker would receive Ctrl-C together with the launcher
        settings = {"max_workers": 1, "timeout": IDLE_SECONDS, "env": self.env}
        self.executor = ProcessPoolExecutor(**settings, initializer=os.setpgid, initargs=(0, 0))
        return self.executor.submit(function, *arguments)

    def end(self) -> None:
        """Kill the worker, even during a job. The next job gets a new one."""
        if self.executor is not None:
            self.executor.shutdown(wait=True, kill_workers=True)
            self.executor = None


def make_slots(gpus: str | int, jobs_per_gpu: Count, cpu_slots: Count | None) -> list[Slot]:
    """Make the slots of this machine.

    Args:
        gpus: number of GPUs to use, or "auto" for all. Without a GPU, make `cpu_slots` slots.
        cpu_slots: None for one per core.

    Raises:
        UserError: this machine has fewer GPUs, or a number is out of range.
    """
    cores = usable_cores()
    visible = visible_gpus()
    if gpus != "auto" and (isinstance(gpus, bool) or not isinstance(gpus, int) or not 0 <= gpus <= len(visible)):
        raise UserError(f"hydra.launcher.gpus={gpus}: expected auto or a number up to {len(visible)}, the GPUs here")
    numbers = {"jobs_per_gpu": jobs_per_gpu, "cpu_slots": cpu_slots}
    jobs_per_gpu, cpu_slots = check_arguments("hydra.launcher", make_slots, numbers).values()
    used = visible if isinstance(gpus, str) else visible[:gpus]
    if used:
        names = [(f"gpu {gpu}", gpu) for _ in range(jobs_per_gpu) for gpu in used]
    else:
        names = [(f"cpu {number}", "") for number in range(cores if cpu_slots is None else cpu_slots)]
    # for libraries that start their own threads; torch follows the job's setting `threads`
    share = str(max(1, cores // len(names)))
    pools = {f"{library}_NUM_THREADS": share for library in ("OMP", "MKL", "OPENBLAS")}
    return [Slot(name, {"CUDA_VISIBLE_DEVICES": gpu, **pools}) for name, gpu in names]


def visible_gpus() -> list[str]:
    """GPUs in CUDA_VISIBLE_DEVICES, else all GPUs that the driver lists. Importing torch would take seconds."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        names = [name.strip() for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
        return list(itertools.takewhile(lambda name: not name.startswith("-"), names))  # CUDA stops at -1
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, encoding="utf-8")
    return [str(number) for number, _ in enumerate(listed.stdout.splitlines())] if listed.returncode == 0 else []


@contextlib.contextmanager
def output_to(file: Path) -> Iterator[None]:
    """Within the block, append stdout and stderr of this process to the file, as UTF-8, including output of C."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")  # whatever the locale
    saved = [os.dup(1), os.dup(2)]
    with open(file, "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
