"""The one entrypoint: compose an experiment, check it, run its stage.

    python -m slaterl.run env=focused_topdown agent=sac ranker=gems

torch and Lightning are imported inside the task, so that --help, --cfg and submitting a sweep start at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from slaterl import output
from slaterl.config.listing import as_help, check_flags, check_one_of_each
from slaterl.config.quoting import explain_quoting
from slaterl.config.spelling import explain_spelling
from slaterl.paths import CONF

# Read when torch is imported. GNU OpenMP's threads spin for milliseconds while they wait for each other, so an
# update takes 20 times as long if another process wants their core. A shorter spin costs nothing on a free core.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

OmegaConf.register_new_resolver("choices", as_help, replace=True)  # what --help shows


@explain_quoting
@explain_spelling
@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float | None:
    from slaterl.console import note
    from slaterl.errors import Interrupted, Pruned, UserError
    from slaterl.runs.signals import handling, requeue
    from slaterl.sweeps.records import recording
    from slaterl.sweeps.study import as_trial

    output.set_up()  # also in the processes of a sweep's jobs

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    def save(signum: int, frame: FrameType | None) -> None:
        """Outside of training there is nothing to save."""

    hydra_cfg = HydraConfig.get()
    sweep = Path(hydra_cfg.sweep.dir) if hydra_cfg.mode == RunMode.MULTIRUN else None
    try:
        launcher = hydra_cfg.runtime.choices["hydra/launcher"]
        if not sweep and launcher != "one_by_one":
            raise UserError(f"hydra/launcher={launcher}: only sweeps use it; add -m")
        record = recording(sweep, hydra_cfg.job.num, cfg) if sweep else nullcontext()
        with handling(stop=stop, save=save), record, as_trial(hydra_cfg):
            return run_stage(cfg)
    except Pruned as error:
        note(str(error))
        return None
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        if sweep:
            raise CompactHydraException(str(error)) from None  # other jobs continue; the launcher reports it later
        sys.exit(2)
    except Interrupted as error:
        print(f"interrupted by signal {error.signum}: {error.outcome}", file=sys.stderr)
        if error.signum == signal.SIGUSR2:  # from SLURM
            requeue()
        sys.exit(128 + error.signum)
    except Exception:
        if sweep:  # Hydra reports it only after all jobs
            traceback.print_exc()
        raise


def run_stage(cfg: DictConfig) -> float | None:
    """Check the configuration and run its stage. Returns the validation return, if the stage has one, for tuners."""
    from hydra.utils import get_object

    from slaterl.config.build import resolve_device
    from slaterl.config.check import check_config, given_keys
    from slaterl.runs.products import find_or_make
    from slaterl.runtime import prepare, warn_without_amx
    from slaterl.stages.logged import sized
    from slaterl.training.logger_settings import check_loggers

    check_loggers(cfg)
    check_config(cfg, given=given_keys())
    # an empty SLATERL_HOME counts as unset
    cfg.paths.root = str(Path(cfg.paths.root or "outputs").expanduser().absolute())
    cfg.paths.kept = cfg.paths.kept and str(Path(cfg.paths.kept).expanduser().absolute())
    prepare(cfg.threads, cfg.matmul_precision)
    if cfg.matmul_precision == "medium":
        warn_without_amx(resolve_device(cfg.device))
    product = get_object(cfg.stage["_target_"])(cfg)
    if product is None:  # stage=status makes nothing
        return None
    run = find_or_make(sized(product, cfg))
    if cfg.paths.kept and cfg.stage.name in ("online", "offline", "evaluate"):
        from slaterl.report.keep import keep_run  # here, because it imports pandas

        keep_run(run.path, Path(cfg.paths.kept))
    print(run.path)
    return run.result().get("val_return")


def command() -> None:
    """The command line: `python -m slaterl.run`, or `slaterl`."""
    from slaterl.errors import UserError
    from slaterl.training.logger_settings import check_overrides

    output.set_up()
    try:
        check_overrides(sys.argv[1:])
        check_one_of_each(sys.argv[1:])
        check_flags(sys.argv[1:])
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # while Hydra composes the jobs of a sweep
        sys.exit(130)


if __name__ == "__main__":
    command()
