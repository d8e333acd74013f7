"""hydra/launcher=one_by_one: Hydra's own launcher, with the records that the other launchers write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn


class OneByOne(BasicLauncher):
    """Run the jobs of a sweep one after the other."""

    def setup(self, **context: Any) -> None:
        from slaterl.sweeps.launch import check_folder

        super().setup(**context)
        check_folder(self)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from slaterl.sweeps.launch import announce_jobs, compose_jobs, conclude

        announce_jobs(self, compose_jobs(self, job_overrides, initial_job_idx), initial_job_idx)
        return conclude(self, super().launch(job_overrides, initial_job_idx), initial_job_idx)
