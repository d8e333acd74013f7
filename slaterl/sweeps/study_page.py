"""The page of a study: its best trial, what mattered, and all trials, as study.md and study.png."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from slaterl.console import note
from slaterl.runs.files import whole_file, write_text
from slaterl.sweeps.records import read_job
from slaterl.sweeps.study import Study

FEW = 4  # complete trials from which on importances are estimated


def write(study: Study) -> None:
    """Write study.md and study.png into the folder of the study."""
    names = sorted({name for trial in study.trials for name in trial.params})
    parts = [f"# {study.folder.name}", _counts(study), *_best(study), *_importance(study)]
    parts += ["## Trials", _table(study, names), "![value of each trial](study.png)"]
    _draw(study, names, study.folder / "study.png")
    write_text(study.folder / "study.md", "\n\n".join(parts) + "\n")


def show(study: Study) -> None:
    """Print the best trial."""
    note(f"{_counts(study)} {study.folder / 'study.md'}")
    if _complete(study):
        best = study.optuna.best_trial
        note(f"best val/return {best.value:.4g} in trial {best.number}: {_settings(best.params)}")


def _complete(study: Study) -> list[Any]:
    return [trial for trial in study.trials if trial.state.name == "COMPLETE"]


def _counts(study: Study) -> str:
    states = study.ended()
    kinds = ", ".join(f"{states.count(kind)} {name}" for kind, name in _NAMES.items() if kind in states)
    return f"{study.count()} trials: {kinds or 'none has ended'}."


_NAMES = {"complete": "finished", "pruned": "pruned", "fail": "failed", "running": "running"}


def _settings(params: dict[str, Any]) -> str:
    return " ".join(f"{name}={_shown(value)}" for name, value in params.items())


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _best(study: Study) -> list[str]:
    if not _complete(study):
        return ["No trial has finished."]
    best = study.optuna.best_trial
    run = read_job(study.folder / str(best.number)).record.get("run", "")
    settings = " ".join(f"{name}={value}" for name, value in best.params.items())
    said = f"The best validation return is {best.value:.4g}, of trial {best.number}:"
    return ["## Best", said, f"```text\n{settings}\n{run}\n```"]


def _importance(study: Study) -> list[str]:
    """Return the shares of PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255): which settings good trials share."""
    import optuna

    if len(_complete(study)) < FEW:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            shares = optuna.importance.get_param_importances(study.optuna, evaluator=evaluator)
    except (RuntimeError, ValueError):  # all values are equal, or no setting is part of all trials
        return []
    rows = "\n".join(f"| `{name}` | {share:.0%} |" for name, share in shares.items())
    return ["## Importance", f"| setting | share |\n|---|---:|\n{rows}"]


def _table(study: Study, names: list[str]) -> str:
    header = ["trial", "val/return", "", *(f"`{name}`" for name in names)]
    rows = [header, ["---:", "---:", "---", *("---:" for _ in names)]]
    order = {trial.number: trial.value if trial.state.name == "COMPLETE" else None for trial in study.trials}
    for trial in sorted(study.trials, key=lambda one: (order[one.number] is None, -(order[one.number] or 0))):
        value = "" if trial.value is None else f"{trial.value:.4g}"
        state = _NAMES.get(trial.state.name.lower(), trial.state.name.lower())
        rows.append([str(trial.number), value, state, *(_shown(trial.params.get(name, "")) for name in names)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _draw(study: Study, names: list[str], path: Path) -> None:
    """Draw the value of each trial, in order and against each setting."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    told = [trial for trial in study.trials if trial.value is not None]
    figure = Figure(figsize=(3.2 * (1 + len(names)), 3), layout="constrained")
    FigureCanvasAgg(figure)
    first, *others = figure.subplots(1, 1 + len(names), sharey=True, squeeze=False)[0]
    for state, marker in (("COMPLETE", "o"), ("PRUNED", "x")):
        chosen = [trial for trial in told if trial.state.name == state]
        first.scatter([t.number for t in chosen], [t.value for t in chosen], marker=marker, label=_NAMES[state.lower()])
        for name, axes in zip(names, others, strict=True):
            choices = list(getattr(study.space.get(name), "choices", ()))  # drawn in their order, not by name
            place = {choice: number for number, choice in enumerate(choices)}
            pairs = [(place.get(x, x), t.value) for t in chosen for x in [t.params.get(name)] if x is not None]
            axes.scatter([x for x, _ in pairs], [y for _, y in pairs], marker=marker, clip_on=False)
    first.set(xlabel="trial", ylabel="val/return")
    first.legend()
    for name, axes in zip(names, others, strict=True):
        axes.set_xlabel(name)
        known: Any = study.space.get(name)
        if hasattr(known, "low"):  # an interval; the others are choices
            axes.set_xscale("log" if known.log else "linear")
            axes.set_xlim(known.low, known.high)
            axes.xaxis.set_minor_formatter(NullFormatter())  # they would overlap
        elif known is not None:
            axes.set_xticks(range(len(known.choices)), known.choices)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
