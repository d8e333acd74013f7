"""stage=report: what a set of runs tells, as tables, pictures and one page that holds all of it."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import time
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from slaterl.console import note, table
from slaterl.errors import UserError
from slaterl.report import figures, tables
from slaterl.report.episodes import Episodes, TopicEpisodes, watch
from slaterl.report.records import Record, find, name_methods, name_tasks, without_lambdas
from slaterl.runs.files import whole_file
from slaterl.runs.products import Product
from slaterl.runs.run import Run

LEGEND = (
    "Test return: mean over seeds ± Student's 95 % interval. IQM: mean of the middle half, with a bootstrapped 95 % "
    "interval. best val, last val: best and final validation return, mean over seeds. Normalised: 100 is the expert of "
    "the data, 0 are random slates."
)
# of one method's episodes: file name, title, caption, figure
LOOKS = (
    (
        "score_density",
        "How well items suit, by boredom",
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


def report(cfg: DictConfig) -> Product:
    """Report on the runs in `report.runs`, by default on all of them, below outputs/report/.

    Raises:
        UserError: there are no finished runs, or no method called report.against.
    """
    root, against = Path(cfg.paths.root), cfg.report.against
    patterns = OmegaConf.to_container(cfg.report.runs) if OmegaConf.is_list(cfg.report.runs) else cfg.report.runs
    records = find(patterns, root)  # type: ignore[arg-type]
    if not any(record.result for record in records):
        raise UserError(f"report.runs={patterns}: none of {len(records)} runs there is finished")
    runs = tables.results(records)
    summary = tables.summary(runs, against)
    envs = sorted(runs["env"].unique())
    spec = {"runs": sorted(str(record.path.resolve()) for record in records), "against": against, "time": time.time()}
    where = str(envs[0]).replace(", ", "-").replace(" ", "_") if len(envs) == 1 else f"{len(envs)}_environments"
    run = Run(root, "report", where, f"{len(records)}_runs", spec)

    def make() -> dict[str, Any]:
        _write(run.path, records, runs, summary, against, _pictures(records, runs, cfg.report.users))
        return {"runs": len(records), "without_result": _missing(records), "methods": len(summary)}

    def show(made: Run) -> None:
        text = tables.shown(summary, against)
        wide = ["environment", "items", "median", "IQM", "best val", "last val"]  # too wide for a terminal
        for env, part in text.groupby(tables.by_catalogue(summary["environment"], summary["items"])):
            part = part.drop(columns=wide, errors="ignore")
            table(str(env), list(part.columns), part.to_numpy().tolist())
        if _missing(records):
            note(f"{_missing(records)} of {len(records)} runs have no result; the report lists them")
        note(f"the page: {made.path / 'report.html'}")

    return Product(run, cfg, begin=lambda: make, show=show)


def _missing(records: list[Record]) -> int:
    return sum(not record.result for record in records)


def _pictures(records: list[Record], runs: pd.DataFrame, users: int) -> dict[str, tuple[str, str, Figure]]:
    """File name -> title, caption and picture."""
    found: dict[str, tuple[str, str, Figure]] = {}
    runs = runs.assign(env=tables.by_catalogue(runs["env"], runs["catalogue"]))
    if (runs["steps"] > 0).any():
        caption = "Validation return over steps: mean over seeds, with its 95 % interval. Dotted: what does not learn."
        found["learning_curves"] = ("Learning curves", caption, figures.learning_curves(runs))
    grid = _lambdas(records)
    if grid is not None:
        caption = "Test return against the weights of GeMS' loss, mean over seeds."
        found["lambda_grid"] = ("lambda_KL and lambda_click", caption, figures.lambda_grid(grid))
    for env, group in runs.groupby("env"):
        episodes = _episodes(group, users)
        if not episodes:
            continue
        served = f"{users} users of seed {group['seed'].min()}"
        whose = f"{env}; of each method the run with the best test return, {served}"
        file = env.replace(", ", "_").replace(" ", "_")
        caption = f"Reward in each turn, mean over users with its 95 % interval ({whose})."
        per_turn = figures.return_per_turn(episodes, runs["method"])
        found[f"return_per_turn_{file}"] = (f"Return per turn ({env})", caption, per_turn)
        looked = {method: shown for method, shown in episodes.items() if isinstance(shown, TopicEpisodes)}
        for name, title, caption, draw in LOOKS if looked else ():
            found[f"{name}_{file}"] = (f"{title} ({env})", f"{caption} ({whose}).", draw(looked))
    return found


def _episodes(runs: pd.DataFrame, users: int) -> dict[str, Episodes]:
    """Of each method that learned, the episodes of its best run, all with the same users: those of the first seed."""
    found, seed = {}, int(runs["seed"].min())
    for method, group in runs.groupby("method"):
        best = group.sort_values("test").iloc[-1]
        if not (best["path"] / "best.ckpt").is_file():
            continue
        try:
            found[str(method)] = watch(best["path"] / "best.ckpt", users, seed)
        except UserError as error:  # a damaged file must not cost the tables of all the others
            note(f"no pictures of the episodes of {method}: {error}")
    return found


def _lambdas(records: list[Record]) -> pd.DataFrame | None:
    """env, method, lambda_KL, lambda_click and test of the runs with GeMS, for the methods of which a lambda varies.

    A method is here what a run is besides its lambdas: returns of another gamma or agent are not of the same grid.
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


def _write(
    folder: Path,
    records: list[Record],
    runs: pd.DataFrame,
    summary: pd.DataFrame,
    against: str | None,
    pictures: dict[str, tuple[str, str, Figure]],
) -> None:
    text, unfinished = tables.shown(summary, against), tables.unfinished(records)
    warnings = tables.warnings(runs)
    parts = ["# Report", "", *[f"*{warning}*\n" for warning in warnings]]
    parts += [text.to_markdown(index=False, disable_numparse=True), "", LEGEND, ""]
    if len(unfinished):
        parts += [
            "## Runs without a result",
            "",
            unfinished.replace(r"\|", r"\\|", regex=True).to_markdown(index=False),
            "",
        ]
    parts += [f"![{caption}]({name}.png)\n" for name, (_, caption, _) in pictures.items()]
    _text(folder / "report.md", "\n".join(parts))
    _text(folder / "report.tex", text.to_latex(index=False, escape=True).replace("±", r"$\pm$"))
    _text(folder / "summary.csv", summary.to_csv(index=False))
    _text(folder / "runs.csv", runs.to_csv(index=False))
    shown: list[dict[str, Any]] = []
    for name, (title, caption, figure) in pictures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110, format="png")
        with whole_file(folder / f"{name}.png") as partial:
            partial.write_bytes(buffer.getvalue())
        shown.append({"title": title, "caption": caption, "data": base64.b64encode(buffer.getvalue()).decode()})
    template = Environment(loader=PackageLoader("slaterl.report", ""), autoescape=select_autoescape()).get_template(
        "page.html"
    )
    page = template.render(
        title="slaterl: report",
        about=f"{len(records)} runs, {len(runs)} of them with a result.",
        warnings=warnings,
        table=Markup(text.to_html(index=False, border=0)),  # pandas escapes the cells
        legend=LEGEND,
        unfinished=Markup(unfinished.to_html(index=False, border=0)) if len(unfinished) else "",
        pictures=shown,
        version=importlib.metadata.version("slaterl"),
        made=time.strftime("%Y-%m-%d %H:%M"),
        paths=[str(record.path) for record in records],
    )
    _text(folder / "report.html", page)


def _text(path: Path, content: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(content)
