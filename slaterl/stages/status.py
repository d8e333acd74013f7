"""stage=status: the state of a sweep's jobs, and the command that runs the missing ones."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from slaterl.console import console, note
from slaterl.errors import UserError
from slaterl.runs.files import first_line
from slaterl.sweeps.records import jobs
from slaterl.sweeps.table import describe, jobs_table, label_jobs


def status(cfg: DictConfig) -> None:
    """Show the sweep in `status.sweep`, by default the newest in multirun/. The command is the last line on stdout.

    Raises:
        UserError: there is no sweep.
    """
    sweep = Path(cfg.status.sweep) if cfg.status.sweep else newest(Path("multirun"))
    found = jobs(sweep)
    if not found and (sweep / "multirun.yaml").is_file():
        raise UserError(f"status.sweep={sweep}: its jobs are not composed yet; hundreds of jobs take minutes")
    if not found:
        raise UserError(f"status.sweep={sweep}: expected the folder of a sweep (multirun/<time>), found no jobs")
    console.print(jobs_table(found))
    labels = label_jobs(found)
    for job in found:
        if job.reason:
            note(describe(job, labels[job.number]))
    if any(job.state not in ("finished", "pruned") for job in found):
        note("run only the missing jobs with:")
        print(command_of(sweep))


def newest(root: Path) -> Path:
    """Return the sweep that was launched last."""
    sweeps = sorted(root.glob("*/multirun.yaml"), key=lambda file: file.stat().st_mtime)
    if not sweeps:
        raise UserError(f"status.sweep=null: there is no sweep in {root.absolute()}; give status.sweep=<folder>")
    return sweeps[-1].parent


def command_of(sweep: Path) -> str:
    """Return the command that launched the sweep, as Hydra recorded it.

    Raises:
        UserError: the record is missing or damaged.
    """
    file = sweep / "multirun.yaml"
    try:
        overrides = OmegaConf.load(file).hydra.overrides
        given = [*overrides.task, *(entry for entry in overrides.hydra if not entry.startswith("hydra.mode="))]
    except (OSError, ValueError, TypeError, AttributeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)})") from error
    return shlex.join([Path(sys.executable).name, "-m", "slaterl.run", "-m", *given])
