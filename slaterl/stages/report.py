"""stage=report: compare a set of runs in tables, pictures and one page with all of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from slaterl.config.build import plain
from slaterl.console import note, table
from slaterl.errors import UserError
from slaterl.report import page, pictures, tables
from slaterl.report.find import find
from slaterl.report.keep import keep
from slaterl.report.records import Record
from slaterl.runs.products import Product
from slaterl.runs.run import Run

# columns that do not fit a terminal; of the tests only the first one does
_WIDE = ["environment", "items", "seeds", "median", "IQM", "best val", "last val", "steps"]


def report(cfg: DictConfig) -> Product:
    """Return a report on the runs in `report.runs`, by default on all runs.

    Raises:
        UserError: there are no finished runs, or no method called report.against.
    """
    root, spread = Path(cfg.paths.root), cfg.report.spread
    records = _records(cfg, root)
    runs = tables.results(records)
    against = tables.bases(runs, plain(cfg.report)["against"])
    summary = tables.summary(runs, against)
    run = Run(root, "report", _place(runs), f"{len(records)}_runs", _spec(records, against))
    missing = sum(not record.result for record in records)

    def make() -> dict[str, Any]:
        drawn = pictures.draw(records, runs, cfg.report.users)
        page.write(run.path, records, runs, summary, spread, drawn)
        if cfg.report.keep is not None:
            keep(records, Path(cfg.report.keep).expanduser())
        return {"runs": len(records), "without_result": missing, "methods": len(summary)}

    def show(made: Run) -> None:
        _show(summary, spread)
        if missing:
            note(f"{missing} of {len(records)} runs have no result; the report lists them")
        note(f"page: {made.path / 'report.html'}")
        if cfg.report.keep is not None:
            note(f"kept: {len(runs)} runs in {cfg.report.keep}")

    return Product(run, cfg, begin=lambda: make, show=show)


def _records(cfg: DictConfig, root: Path) -> list[Record]:
    """Find the runs.

    Raises:
        UserError: none of them is finished.
    """
    patterns = plain(cfg.report)["runs"]
    records = find(patterns, root)
    if not any(record.result for record in records):
        damaged = [f"; {record.reason}" for record in records if record.status == "damaged"]
        nothing = f"report.runs={patterns}: none of its {len(records)} runs is finished"
        raise UserError(nothing + "".join(damaged[:1]))
    return records


def _spec(records: list[Record], against: dict[str, str]) -> dict[str, object]:
    """The time is part of the spec, so that a report is new each time, because runs may have been added."""
    return {"runs": sorted(str(record.path.resolve()) for record in records), "against": against, "time": time.time()}


def _place(runs: pd.DataFrame) -> str:
    """Name the folder: the environment, or the number of environments."""
    envs = sorted(runs["env"].unique())
    return str(envs[0]).replace(", ", "-").replace(" ", "_") if len(envs) == 1 else f"{len(envs)}_environments"


def _show(summary: pd.DataFrame, spread: str) -> None:
    """Print one table for each environment."""
    text = tables.shown(summary, spread)
    for env, part in text.groupby(tables.by_catalogue(summary["environment"], summary["items"])):
        tests = [name for name in map(str, part) if name.startswith(tables.P_VALUES)]
        part = part.drop(columns=[*_WIDE, *tests[1:]], errors="ignore")
        table(str(env), list(part.columns), part.to_numpy().tolist())
