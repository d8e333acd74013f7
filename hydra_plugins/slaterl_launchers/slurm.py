"""hydra/launcher=slurm_gpu and slurm_cpu: a SLURM job array, watched until every job has ended."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import DictConfig, OmegaConf

POLL_SECONDS = 2.0
_GOING_ON = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD"}
# How long after its end a job without a result counts as lost. A requeued job shows its old state for a while. On a
# shared file system a result from another machine can appear a minute late. SLURM forgets jobs that ended.
_PATIENCE_SECONDS = {"COMPLETED": 120.0, "UNKNOWN": 120.0}
_PATIENCE_SECONDS_ELSE = 15.0


class Slurm(SlurmLauncher):
    """hydra-submitit-launcher, but if a job is killed, the launcher keeps watching the others."""

    def setup(self, **context: Any) -> None:
        from slaterl.sweeps.launch import check_folder

        super().setup(**context)
        check_folder(self)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from slaterl.console import note
        from slaterl.sweeps.launch import announce_jobs, compose_jobs, conclude, sweep_folder

        configs = compose_jobs(self, job_overrides, initial_job_idx)
        _check(self, configs, self.params)
        announce_jobs(self, configs, initial_job_idx)
        count = len(configs)
        jobs = self._submit(job_overrides, initial_job_idx)
        array, folder = jobs[0].job_id.split("_")[0], sweep_folder(self)
        note(f"{count} jobs submitted to SLURM as {array}; see their output in {folder / '.submitit'}")
        try:
            returns = self._watch(jobs, configs, initial_job_idx)
        except KeyboardInterrupt:
            note(f"the jobs keep running: stage=status status.sweep={folder} shows them, scancel {array} ends them")
            sys.exit(130)
        return conclude(self, returns, initial_job_idx)

    def _submit(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Any]:
        """Give the jobs to SLURM as one array. If it does not take them, record that and end the command."""
        from submitit.core.utils import FailedJobError

        from slaterl.errors import UserError
        from slaterl.runs.files import first_line
        from slaterl.sweeps.launch import mark_killed, refuse, sweep_folder

        numbers = list(range(first, first + len(job_overrides)))
        try:
            # the arguments of SlurmLauncher.__call__: overrides, the key of the sweep's folder, number, id, singletons
            return self._executor().map_array(
                self,
                [list(overrides) for overrides in job_overrides],
                ["hydra.sweep.dir"] * len(numbers),
                numbers,
                [f"job_id_for_{number}" for number in numbers],
                [Singleton.get_state()] * len(numbers),
            )
        except (FailedJobError, RuntimeError) as error:  # sbatch failed, or is not installed
            reason = f"SLURM did not take the job: {first_line(error)}"
            for number in numbers:
                mark_killed(sweep_folder(self) / str(number), reason)
            refuse(self, UserError(f"hydra/launcher: {reason}"))

    def _executor(self) -> Any:
        import submitit

        params = dict(self.params)
        folder, starts = params.pop("submitit_folder"), params.pop("max_num_timeout")
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=starts)
        general = OmegaConf.structured(BaseQueueConf).keys()
        executor.update_parameters(**{key if key in general else f"slurm_{key}": params[key] for key in params})
        return executor

    def _watch(self, jobs: Sequence[Any], configs: Sequence[DictConfig], first: int) -> list[JobReturn]:
        """Wait for every job's result, or until SLURM reports that it ended without one."""
        from slaterl.sweeps.launch import lost, mark_killed, sweep_folder
        from slaterl.sweeps.table import Watch

        returns: dict[int, JobReturn] = {}
        over_since: dict[int, float] = {}
        with Watch(sweep_folder(self), range(first, first + len(jobs))) as watch:
            while len(returns) < len(jobs):
                time.sleep(POLL_SECONDS)
                states = _states()
                for index, job in enumerate(jobs):
                    if index in returns:
                        continue
                    if job.paths.result_pickle.exists():
                        returns[index] = _result(job, configs[index])
                        continue
                    state = "PENDING" if states is None else states.get(job.job_id, "UNKNOWN")
                    if state in _GOING_ON:
                        over_since.pop(index, None)
                        continue
                    seconds = time.monotonic() - over_since.setdefault(index, time.monotonic())
                    if seconds > _PATIENCE_SECONDS.get(state, _PATIENCE_SECONDS_ELSE):
                        reason = f"SLURM: {state}; its output is in {job.paths.stderr}"
                        mark_killed(sweep_folder(self) / str(first + index), reason)
                        returns[index] = lost(configs[index], reason)
                watch.refresh()
        return [returns[index] for index in range(len(jobs))]


def _check(launcher: Slurm, configs: Sequence[DictConfig], params: Mapping[str, Any]) -> None:
    """Report mistakes now rather than after hours in the queue."""
    from slaterl.config.check import check_config, keys_of
    from slaterl.errors import UserError
    from slaterl.sweeps.launch import refuse

    try:
        check_times(**{name: params[name] for name in ("timeout_min", "signal_delay_s")})
        for config in configs:
            own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
            check_config(own, keys_of(config.hydra.overrides.task))
    except UserError as error:
        refuse(launcher, error)


def check_times(timeout_min: int, signal_delay_s: int) -> None:
    """Raise UserError if SLURM would announce the time limit as soon as a job starts, which would end every job."""
    from slaterl.errors import UserError

    if signal_delay_s >= 60 * timeout_min:
        limit = f"timeout_min={timeout_min}, which is {60 * timeout_min} s"
        raise UserError(f"hydra.launcher.signal_delay_s={signal_delay_s}: must be less than {limit}")


def _states() -> dict[str, str] | None:
    """Return the states of the user's jobs by id, including recently ended jobs; None if SLURM does not answer.

    They come from squeue, because sacct needs an accounting database.
    """
    command = ["squeue", "--noheader", "--array", "--me", "--states=all", "--format=%i %T"]
    listed = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    return dict(line.split() for line in listed.stdout.splitlines()) if listed.returncode == 0 else None


def _result(job: Any, config: DictConfig) -> JobReturn:
    from slaterl.sweeps.launch import lost

    error = job.exception()
    return job.result() if error is None else lost(config, str(error).strip().splitlines()[-1])
