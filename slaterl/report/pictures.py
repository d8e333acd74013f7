"""Choose the pictures of a report, with the data, title and caption of each."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from slaterl.console import note
from slaterl.envs.log import NoSimulatorError
from slaterl.errors import UserError
from slaterl.report import figures, tables
from slaterl.report.episodes import Episodes, TopicEpisodes, watch
from slaterl.report.records import Record, name_methods, name_tasks, without_lambdas

# drawn from the episodes of each method: file name, title, caption, figure
LOOKS = (
    (
        "score_density",
        "Scores of recommended items, by boredom",
        "Scores of the recommended items by the number of bored topics",
        figures.score_density,
    ),
    (
        "topics",
        "One user's episode: topics",
        "Items of each topic on the slates of one user",
        figures.slate_heat_map,
    ),
    ("ranks", "One user's episode: ranks", "Topic at each rank of these slates", figures.slate_ranks),
)


@dataclass(frozen=True)
class Picture:
    """A figure with its file name (without suffix), its heading and its caption."""

    name: str
    title: str
    caption: str
    figure: Figure


def draw(records: list[Record], runs: pd.DataFrame, users: int) -> list[Picture]:
    """Draw learning curves, the grid of GeMS' weights, and the episodes of each environment.

    Args:
        runs: one row for each finished run, see `tables.results`.
        users: number of users whose episodes are drawn.
    """
    found = []
    runs = runs.assign(env=tables.by_catalogue(runs["env"], runs["catalogue"]))
    if (runs["steps"] > 0).any():
        caption = "Validation return over steps: mean over seeds, with its 95 % interval. Dotted: without learning."
        found.append(Picture("learning_curves", "Learning curves", caption, figures.learning_curves(runs)))
    grid = lambda_grid(records)
    if grid is not None:
        caption = "Test return against the weights of GeMS' loss, mean over seeds."
        found.append(Picture("lambda_grid", "lambda_KL and lambda_click", caption, figures.lambda_grid(grid)))
    for env, group in runs.groupby("env"):
        found += _of_episodes(str(env), group, users, runs["method"])
    return found


def _of_episodes(env: str, runs: pd.DataFrame, users: int, methods: pd.Series) -> list[Picture]:
    episodes = best_episodes(runs, users)
    if not episodes:
        return []
    whose = f"{env}; the run of each method with the best test return, {users} users of seed {runs['seed'].min()}"
    file = env.replace(", ", "_").replace(" ", "_")
    caption = f"Reward in each turn, mean over users with its 95 % interval ({whose})."
    per_turn = figures.return_per_turn(episodes, methods)
    found = [Picture(f"return_per_turn_{file}", f"Return per turn ({env})", caption, per_turn)]
    topical = {method: shown for method, shown in episodes.items() if isinstance(shown, TopicEpisodes)}
    for name, title, caption, figure in LOOKS if topical else ():
        found.append(Picture(f"{name}_{file}", f"{title} ({env})", f"{caption} ({whose}).", figure(topical)))
    return found


def best_episodes(runs: pd.DataFrame, users: int) -> dict[str, Episodes]:
    """Return episodes of the best run of each method that learns. All serve the same users, those of the first seed."""
    found, seed = {}, int(runs["seed"].min())
    for method, group in runs.groupby("method"):
        best = group.sort_values("test").iloc[-1]
        if not (best["path"] / "best.ckpt").is_file():
            continue
        try:
            found[str(method)] = watch(best["path"] / "best.ckpt", users, seed)
        except NoSimulatorError:  # the users of a log, whom nobody can simulate
            continue
        except UserError as error:  # a damaged file must not cost the tables of all other runs
            note(f"no pictures of the episodes of {method}: {error}")
    return found


def lambda_grid(records: list[Record]) -> pd.DataFrame | None:
    """Return test returns of the runs with GeMS, for the methods with several lambdas; None if no method has several.

    Another gamma or agent belongs in another grid, so a method is named here by its settings without the lambdas.

    Returns:
        columns env, catalogue, method, lambda_KL, lambda_click and test.
    """
    with_gems = [record for record in records if record.result.get("ranker_run")]
    methods, tasks = name_methods([without_lambdas(record) for record in with_gems]), name_tasks(with_gems)
    grid = pd.DataFrame(
        {
            "env": task,
            "catalogue": record.result["item_embeddings"],
            "method": method,
            **{name: record.config["ranker"][name] for name in ("lambda_KL", "lambda_click")},
            "test": record.result["test_return"],
        }
        for record, method, task in zip(with_gems, methods, tasks, strict=True)
    )
    if not len(grid):
        return None
    grid["env"] = tables.by_catalogue(grid["env"], grid["catalogue"])
    lambdas = grid.groupby(["env", "method"])[["lambda_KL", "lambda_click"]]
    grid = grid[(lambdas.transform("nunique") > 1).any(axis=1)]
    return grid if len(grid) else None
