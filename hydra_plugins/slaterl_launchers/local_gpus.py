"""hydra/launcher=local_gpus: several jobs at a time on one machine, with a GPU for each job if there are any."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from concurrent.futures import Future

    from slaterl.sweeps.slots import Slot


class LocalGpus(Launcher):
    """Queue the jobs of a sweep for `gpus` x `jobs_per_gpu` slots, or for `cpu_slots` slots without a GPU.

    The processes are loky's. A process that dies ends only its own job, and a new process takes the next one.
    """

    def __init__(self, gpus: str | int, jobs_per_gpu: int, cpu_slots: int | None) -> None:
        self.gpus, self.jobs_per_gpu, self.cpu_slots = gpus, jobs_per_gpu, cpu_slots

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from slaterl.sweeps.launch import check_folder

        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        check_folder(self)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from slaterl.errors import UserError
        from slaterl.sweeps.launch import announce_jobs, compose_jobs, conclude, refuse
        from slaterl.sweeps.slots import make_slots

        setup_globals()
        try:
            slots = make_slots(self.gpus, self.jobs_per_gpu, self.cpu_slots)
        except UserError as error:
            refuse(self, error)
        slots = slots[: len(job_overrides)]
        for slot in slots:
            slot.submit(_warm_up)  # imports torch while the configurations are composed
        configs = compose_jobs(self, job_overrides, initial_job_idx)
        announce_jobs(self, configs, initial_job_idx)
        returns = _Queue(self, slots, configs, initial_job_idx).run()
        return conclude(self, returns, initial_job_idx)


class _Queue:
    """Give the next job to every free slot until all jobs are done."""

    def __init__(self, launcher: LocalGpus, slots: list[Slot], configs: list[DictConfig], first: int) -> None:
        from slaterl.sweeps.launch import sweep_folder

        self.launcher, self.slots, self.configs, self.first = launcher, slots, configs, first
        self.folders = [sweep_folder(launcher) / str(first + index) for index in range(len(configs))]
        self.waiting = deque(range(len(configs)))
        self.busy: dict[Future[Any], tuple[Slot, int]] = {}
        self.returns: dict[int, JobReturn] = {}
        self.signum: int = signal.SIGINT

    def run(self) -> list[JobReturn]:
        from concurrent.futures import FIRST_COMPLETED, wait

        from slaterl.sweeps.table import Watch

        before = self._as_ctrl_c()
        numbers = [self.first + index for index in range(len(self.configs))]
        try:
            with Watch(self.folders[0].parent, numbers) as watch:
                try:
                    while self.waiting or self.busy:
                        self._fill()
                        done, _ = wait(self.busy, timeout=1, return_when=FIRST_COMPLETED)
                        self._collect(done)
                        watch.refresh()
                except KeyboardInterrupt:
                    self._stop()
        finally:
            for slot in self.slots:
                slot.end()
            for number, handler in before.items():
                signal.signal(number, handler)
        return [self.returns[index] for index in range(len(self.configs))]

    def _fill(self) -> None:
        from slaterl.sweeps.records import assign

        taken = {id(slot) for slot, _ in self.busy.values()}
        for slot in self.slots:
            if self.waiting and id(slot) not in taken:
                index = self.waiting.popleft()
                assign(self.folders[index], slot.name)
                arguments = (self.launcher.hydra_context, self.configs[index], self.launcher.task_function)
                future = slot.submit(_run, self.folders[index], *arguments, Singleton.get_state())
                self.busy[future] = (slot, index)

    def _collect(self, done: set[Future[Any]]) -> None:
        from slaterl.sweeps.launch import lost, mark_killed

        for future in done:
            slot, index = self.busy.pop(future)
            error = future.exception()
            if error is None:
                self.returns[index] = future.result()
            else:
                reason = " ".join(str(error).split()) or type(error).__name__
                mark_killed(self.folders[index], reason)
                self.returns[index] = lost(self.configs[index], reason)
            if error is not None or self.returns[index].status.name != "COMPLETED":
                slot.end()  # after a crash or a GPU error the process cannot be trusted

    def _stop(self) -> None:
        """Let running jobs save and end. A second Ctrl-C kills them."""
        from concurrent.futures import wait

        from slaterl.console import note
        from slaterl.sweeps.records import read_job

        note("stopping: running jobs save a checkpoint; Ctrl-C again kills them")
        started = [future for future, (_, index) in self.busy.items() if "pid" in read_job(self.folders[index]).record]
        for future in started:
            with contextlib.suppress(ProcessLookupError):  # it has already ended
                os.kill(read_job(self.folders[self.busy[future][1]]).record["pid"], signal.SIGTERM)
        with contextlib.suppress(KeyboardInterrupt):
            wait(started)
        note("stopped; rerun the same command to run only the missing jobs")
        sys.exit(128 + self.signum)

    def _as_ctrl_c(self) -> dict[int, Any]:
        """Treat SIGTERM and SIGHUP (a closed terminal) like Ctrl-C. Returns the previous handlers."""
        from slaterl.runs.signals import HANGUP, first_only

        def handle(signum: int, frame: Any) -> None:
            self.signum = signum
            raise KeyboardInterrupt

        before: dict[int, Any] = {signal.SIGTERM: signal.signal(signal.SIGTERM, handle)}
        for number in HANGUP:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                before[number] = signal.signal(number, first_only(handle))
        return before


def _warm_up() -> None:
    import slaterl.stages.online  # noqa: F401  (torch and Lightning with it)


def _run(
    folder: Any,
    hydra_context: HydraContext,
    config: DictConfig,
    task_function: TaskFunction,
    singletons: dict[Any, Any],
) -> JobReturn:
    """Run one job in the worker's process."""
    from slaterl.sweeps.slots import output_to

    setup_globals()
    Singleton.set_state(singletons)
    with output_to(folder / "log.txt"):
        return run_job(
            hydra_context=hydra_context,
            task_function=task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
