"""hydra/launcher=slurm_gpu, as far as it goes without a SLURM; tests/slurm has the rest."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from hydra_plugins.slaterl_launchers.slurm import check_times
from slaterl.errors import UserError
from slaterl.paths import CONF


def test_a_warning_that_comes_before_the_start_is_refused() -> None:
    with pytest.raises(UserError, match=r"signal_delay_s=120: must be less than timeout_min=1, which is 60 s"):
        check_times(timeout_min=1, signal_delay_s=120)
    check_times(timeout_min=1, signal_delay_s=30)
    settings = OmegaConf.load(CONF / "hydra" / "launcher" / "slurm_gpu.yaml")
    check_times(settings.timeout_min, settings.signal_delay_s)
