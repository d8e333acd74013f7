"""Tables of a report: one row for each environment and method."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

import pandas as pd

from slaterl.data.score import normalised
from slaterl.errors import UserError
from slaterl.report.records import Record, name_methods, name_tasks
from slaterl.report.statistics import summarise, welch_holm
from slaterl.training import metrics


def results(records: Sequence[Record]) -> pd.DataFrame:
    """List finished runs: env, method, seed, test, best, last, score, steps, catalogue (of items), path.

    The score of an offline run is 100 * (test - random) / (expert - random), if the expert's return is known.
    """
    finished = [record for record in records if record.result]
    rows = []
    for record, method, task in zip(finished, name_methods(finished), name_tasks(finished), strict=True):
        result = record.result
        curve = metrics.curve(record.path / "metrics.csv", "val/return")[1] if record.steps else []
        rows.append(
            {
                "env": task,
                "method": method,
                "seed": record.seed,
                "test": result["test_return"],
                "best": result.get("val_return"),
                "last": curve[-1] if curve else None,
                "score": normalised(result["test_return"], result.get("random_return"), result.get("expert_return")),
                "steps": record.steps,
                "catalogue": result["item_embeddings"],
                "test_users": result["test_users"],
                "path": record.path,
            }
        )
    return pd.DataFrame(rows)


def by_catalogue(env: pd.Series, catalogue: pd.Series) -> pd.Series:
    """Add the fingerprint of the item embeddings to the environments that have several."""
    several = catalogue.groupby(env).transform("nunique") > 1
    return env.where(~several, env + ", items " + catalogue)


def summary(runs: pd.DataFrame, against: str | None) -> pd.DataFrame:
    """Summarise each method in each environment, as numbers, sorted by falling mean.

    Raises:
        UserError: there is no method called `against`.
    """
    methods = sorted(runs["method"].unique())
    if against is not None and against not in methods:
        raise UserError(f"report.against={against}: no such method here; expected one of {'; '.join(methods)}")
    rows = []
    # environments with different items differ, even under the same name
    for (env, catalogue), group in runs.groupby(["env", "catalogue"], sort=True):
        values: dict[str, list[float]] = {str(name): part["test"].tolist() for name, part in group.groupby("method")}
        tests = welch_holm(values, against) if against is not None and against in values else {}
        for method, part in group.groupby("method"):
            found = summarise(part["test"].tolist())
            rows.append(
                {
                    "environment": env,
                    "items": catalogue,
                    "method": method,
                    "seeds": found.seeds,
                    "mean": found.mean,
                    "interval": found.interval,
                    "median": found.median,
                    "IQM": found.iqm,
                    "IQM low": found.iqm_low,
                    "IQM high": found.iqm_high,
                    "best val": part["best"].mean(),
                    "last val": part["last"].mean(),
                    "score": part["score"].astype(float).mean(),
                    "steps": int(part["steps"].max()),
                    "p": tests.get(str(method)),
                }
            )
    table = pd.DataFrame(rows).sort_values(["environment", "items", "mean"], ascending=[True, True, False])
    return table.reset_index(drop=True)


def shown(table: pd.DataFrame, against: str | None) -> pd.DataFrame:
    """Format the summary for people. Missing numbers become empty cells."""

    def number(value: float | None, form: str = ".1f") -> str:
        return "" if value is None or math.isnan(value) else format(value, form)

    columns = {
        "environment": table["environment"],
        "method": table["method"],
        "seeds": table["seeds"].astype(str),
        "test return": [
            f"{mean:.1f}" + (f" ± {interval:.1f}" if number(interval) else "")
            for mean, interval in zip(table["mean"], table["interval"], strict=True)
        ],
        "median": [number(value) for value in table["median"]],
        "IQM": [
            f"{value:.1f}" + (f" [{low:.1f}, {high:.1f}]" if number(low) else "")
            for value, low, high in zip(table["IQM"], table["IQM low"], table["IQM high"], strict=True)
        ],
        "best val": [number(value) for value in table["best val"]],
        "last val": [number(value) for value in table["last val"]],
        "steps": [f"{value:,}" if value else "" for value in table["steps"]],
    }
    if table["score"].notna().any():
        columns["normalised"] = [number(value) for value in table["score"]]
    if table.groupby("environment")["items"].nunique().max() > 1:
        columns = {"environment": columns.pop("environment"), "items": table["items"], **columns}
    if against is not None:
        columns[f"p against {against}"] = [number(value, ".3g") for value in table["p"]]
    return pd.DataFrame(columns)


def warnings(runs: pd.DataFrame) -> list[str]:
    """Return warnings about runs that cannot be compared."""
    found = []
    for env, group in runs.groupby("env"):
        if group["catalogue"].nunique() > 1:
            found.append(f"{env}: its runs use {group['catalogue'].nunique()} different sets of item embeddings.")
        users = sorted(group["test_users"].dropna().astype(int).unique())  # empty for estimates from data alone
        if len(users) > 1:
            found.append(f"{env}: different numbers of test users: {', '.join(map(str, users))}.")
        learning = group[group["steps"] > 0]
        if learning["steps"].nunique() > 1:
            steps = ", ".join(f"{value:,}" for value in sorted(learning["steps"].unique()))
            found.append(f"{env}: trained for different numbers of steps: {steps}.")
    double = runs[runs.duplicated(["env", "catalogue", "method", "seed"], keep=False)]
    for (name, method, seed), group in double.groupby(["env", "method", "seed"]):
        found.append(f"{name}: {method} has {len(group)} runs with seed {seed}, which are not independent.")
    return found


def unfinished(records: Sequence[Record]) -> pd.DataFrame:
    """List runs without a result: status, reason, and the command that resumes them."""
    rows = [
        {
            "run": record.path.name,
            "environment": record.env if record.config else "",  # unknown if the manifest is damaged
            "status": record.status,
            "reason": " ".join(record.reason.split()),
            "command": "" if record.status == "damaged" else f"python -m slaterl.run {shlex.join(record.command)}",
        }
        for record in records
        if not record.result
    ]
    return pd.DataFrame(rows, columns=["run", "environment", "status", "reason", "command"])
