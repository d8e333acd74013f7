"""Hydra's own launcher, in this process, one job after the other, with records like those of the other launchers."""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn


class OneByOne(BasicLauncher):
    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from slaterl.sweeps.launch import announce_jobs, compose_jobs, conclude

        announce_jobs(self, compose_jobs(self, job_overrides, initial_job_idx), initial_job_idx)
        return conclude(self, super().launch(job_overrides, initial_job_idx), initial_job_idx)
