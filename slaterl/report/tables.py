"""Tables of a report: one row for each environment and method, and for what a learned policy is compared with."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence

import pandas as pd

from slaterl.console import decimals_of, with_interval
from slaterl.data.score import normalised
from slaterl.errors import UserError
from slaterl.report.records import REFERENCES, Record, name_methods, name_tasks
from slaterl.report.statistics import summarise, welch_holm
from slaterl.training import metrics

P_VALUES = "p against "  # columns of a summary begin with it


def results(records: Sequence[Record]) -> pd.DataFrame:
    """List finished runs, one row for each.

    Columns: env (environment and dataset), dataset, agent, method, seed; test and sampled (returns without and with
    exploration); best and last (validation returns); score; the returns in REFERENCES; random_return and
    expert_return; steps, catalogue (of items), test_users, path.

    The score of an offline run is 100 * (test - random) / (expert - random), if the expert's return is known.
    `sampled` is None if the agent does not explore.
    """
    finished = [record for record in records if record.result]
    rows = []
    for record, method, task in zip(finished, name_methods(finished), name_tasks(finished), strict=True):
        result = record.result
        curve = metrics.curve(record.path / "metrics.csv", "val/return")[1] if record.steps else []
        ends = {name: result.get(name) for name in ("random_return", "expert_return")}
        rows.append(
            {
                "env": task,
                "dataset": result.get("dataset"),
                "agent": result.get("agent", record.config["agent"]["name"]),
                "method": method,
                "seed": record.seed,
                "test": result["test_return"],
                "sampled": result.get("test_return_sampled"),
                "best": result.get("val_return"),
                "last": curve[-1] if curve else None,
                "score": normalised(result["test_return"], *ends.values()),
                **{name: result.get(name) for name in REFERENCES},
                **ends,
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


def bases(runs: pd.DataFrame, against: str | Sequence[str] | None) -> dict[str, str]:
    """Return the methods that all others are tested against, by the names in `against`.

    The name of an agent stands for its only method.

    Raises:
        UserError: there is no such method, or the agent has several.
    """
    methods = sorted(runs["method"].unique())
    found = {}
    for name in [against] if isinstance(against, str) else against or []:
        own = [name] if name in methods else [method for method in methods if re.split(r" \+ |, ", method)[0] == name]
        if len(own) != 1:
            raise UserError(f"report.against={name}: no such method here; expected one of {'; '.join(methods)}")
        found[name] = own[0]
    return found


def summary(runs: pd.DataFrame, against: Mapping[str, str]) -> pd.DataFrame:
    """Summarise each method in each environment, as numbers, sorted by falling mean.

    References have a mean and a score only, and no seeds.

    Args:
        against: methods that all others are tested against, see `bases`.
    """
    rows = []
    explores = bool(runs["sampled"].notna().any())
    # environments with different items differ, even under the same name
    for (env, catalogue), group in runs.groupby(["env", "catalogue"], sort=True):
        place = {"environment": env, "items": catalogue}
        tests = _tests(group, against, explores)
        for method, part in group.groupby("method"):
            found = summarise(part["test"].tolist())
            sampled = summarise(part["sampled"].tolist()) if part["sampled"].notna().all() else None
            rows.append(
                {
                    **place,
                    "method": method,
                    "seeds": found.seeds,
                    "mean": found.mean,
                    "interval": found.interval,
                    "deviation": found.deviation,
                    "sampled": sampled.mean if sampled else None,
                    "sampled interval": sampled.interval if sampled else None,
                    "sampled deviation": sampled.deviation if sampled else None,
                    "median": found.median,
                    "IQM": found.iqm,
                    "IQM low": found.iqm_low,
                    "IQM high": found.iqm_high,
                    "best val": part["best"].mean(),
                    "last val": part["last"].mean(),
                    "score": part["score"].astype(float).mean(),
                    "steps": int(part["steps"].max()),
                    **{column: values.get(str(method)) for column, values in tests.items()},
                }
            )
        rows += [{**place, **row} for row in _references(group)]
    table = pd.DataFrame(rows).sort_values(["environment", "items", "mean"], ascending=[True, True, False])
    return table.reset_index(drop=True)


def _tests(group: pd.DataFrame, against: Mapping[str, str], explores: bool) -> dict[str, dict[str, float]]:
    """Return p-values by column and method.

    Args:
        explores: whether returns with exploration are tested, too. A method that does not explore has one return,
            which stands in both tests.
    """
    parts = {str(method): part for method, part in group.groupby("method")}
    ways = {"": {method: part["test"].tolist() for method, part in parts.items()}}
    if explores:
        ways[", sampled"] = {
            method: part["sampled" if part["sampled"].notna().all() else "test"].tolist()
            for method, part in parts.items()
        }
    return {
        f"{P_VALUES}{name}{way}": welch_holm(values, base) if base in values else {}
        for name, base in against.items()
        for way, values in ways.items()
    }


def _references(group: pd.DataFrame) -> list[dict[str, object]]:
    """Return the rows of what the learned policies of an environment are compared with."""
    known = {name: group[name].astype(float).mean() for name in (*REFERENCES, "random_return", "expert_return")}
    ends = [None if math.isnan(value) else value for value in (known["random_return"], known["expert_return"])]
    return [
        {"method": label, "seeds": 0, "mean": known[name], "score": normalised(known[name], *ends), "steps": 0}
        for name, label in REFERENCES.items()
        if not math.isnan(known[name])
    ]


def shown(table: pd.DataFrame, spread: str) -> pd.DataFrame:
    """Format the summary for people. Missing numbers become empty cells.

    Args:
        spread: "interval" or "deviation", which follows ±.
    """

    def number(value: float | None, form: str = ".1f") -> str:
        return "" if value is None or math.isnan(value) else format(value, form)

    def returned(value: float | None, width: float | None = None) -> str:
        known = value is not None and not math.isnan(value)
        return with_interval(value, width if number(width) else None) if known and value is not None else ""

    def with_spread(mean: str, its_spread: str) -> list[str]:
        return [returned(*pair) for pair in zip(table[mean], table[its_spread], strict=True)]

    def with_bounds(value: float, low: float, high: float) -> str:
        if not number(low):
            return returned(value)
        decimals = decimals_of(value, (high - low) / 2)
        return f"{value:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"

    columns = {
        "environment": table["environment"],
        "method": table["method"],
        "seeds": [f"{count}" if count else "" for count in table["seeds"]],
        "test return": with_spread("mean", spread),
        "sampled": with_spread("sampled", f"sampled {spread}"),
        "normalised": [number(value) for value in table["score"]],
        "median": [returned(value) for value in table["median"]],
        "IQM": [with_bounds(*of) for of in zip(table["IQM"], table["IQM low"], table["IQM high"], strict=True)],
        "best val": [returned(value) for value in table["best val"]],
        "last val": [returned(value) for value in table["last val"]],
        "steps": [f"{value:,}" if value else "" for value in table["steps"]],
    }
    for name, column in (("sampled", "sampled"), ("score", "normalised")):
        if not table[name].notna().any():
            del columns[column]
    if table.groupby("environment")["items"].nunique().max() > 1:
        columns = {"environment": columns.pop("environment"), "items": table["items"], **columns}
    for name in table.columns:
        if name.startswith(P_VALUES):
            columns[name] = [number(value, ".3g") for value in table[name]]
    return pd.DataFrame(columns)


def by_environment(text: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return a table for each environment, from the one that `shown` returns."""
    return {str(env): part.drop(columns="environment") for env, part in text.groupby("environment", sort=False)}


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
