"""The one entrypoint: compose an experiment, check it, run its stage.

    python -m slaterl.run env=focused_topdown agent=sac ranker=gems

torch and Lightning are imported inside the task, so that --help, --cfg and submitting a sweep start at once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from slaterl.listing import CONF, as_help

# Read when torch is imported. GNU OpenMP's threads spin for milliseconds while they wait for each other, so that an
# update takes 20 times as long where another process wants their core; a shorter spin costs nothing on a free one.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

OmegaConf.register_new_resolver("choices", as_help, replace=True)  # what --help shows


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float | None:
    from slaterl.errors import Interrupted, UserError

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        return run_stage(cfg)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # the other jobs go on, and hydra fails the sweep at its end
        sys.exit(2)
    except Interrupted as error:
        print(f"interrupted by signal {error.signum}; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + error.signum)


def run_stage(cfg: DictConfig) -> float | None:
    """Check the configuration and run its stage. Returns the validation return where there is one, for tuners."""
    from hydra.utils import get_object

    from slaterl.check import check_config
    from slaterl.loggers import check_loggers
    from slaterl.runtime import prepare

    check_loggers(cfg)
    check_config(cfg, known=top_level_keys())
    # an empty SLATERL_HOME is none
    cfg.paths.root = str(Path(cfg.paths.root or "outputs").expanduser().absolute())
    prepare(cfg.threads)
    run = get_object(cfg.stage["_target_"])(cfg)
    print(run.path)
    return run.result().get("val_return")


def top_level_keys() -> set[str]:
    """What config.yaml and its groups define."""
    config = OmegaConf.load(CONF / "config.yaml")
    groups = {str(key) for entry in config.defaults if isinstance(entry, DictConfig) for key in entry}
    sizes = {str(key) for key in OmegaConf.load(CONF / "scale" / "paper.yaml")}
    elsewhere = {"defaults", "hydra", "experiment", "method", "scale", "override hydra/job_logging"}
    return ({str(key) for key in config} | groups | sizes) - elsewhere


if __name__ == "__main__":
    main()
