"""Write a report: a page with everything, the same in Markdown and LaTeX, numbers as CSV, and pictures as PNG."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from slaterl.report import tables
from slaterl.report.pictures import Picture
from slaterl.report.records import Record
from slaterl.runs.files import whole_file, write_text

SPREADS = {"interval": "Student's 95 % interval", "deviation": "the standard deviation"}
LEGEND = (
    "Test return: mean over seeds ± {spread}, of the best checkpoint without exploration; sampled: with exploration. "
    "IQM: mean of the middle half, with a bootstrapped 95 % interval. best val, last val: best and final validation "
    "return, mean over seeds. Normalised: 100 is the expert behind the data, 0 is random slates. "
    "p against: Welch's t-test, Holm-corrected within an environment; a method that does not explore has one return, "
    "which stands in both tests. Rows without seeds are no learned policies."
)


def write(
    folder: Path,
    records: Sequence[Record],
    runs: pd.DataFrame,
    summary: pd.DataFrame,
    spread: str,
    pictures: Sequence[Picture],
) -> None:
    """Write all files of a report.

    Args:
        runs, summary: see `tables.results` and `tables.summary`.
        spread: "interval" or "deviation", which follows ± in the tables.

    Raises:
        UserError: a file cannot be written.
    """
    text, legend = tables.shown(summary, spread), LEGEND.format(spread=SPREADS[spread])
    warnings, unfinished = tables.warnings(runs), tables.unfinished(records)
    images = {picture.name: _png(picture) for picture in pictures}
    for name, image in images.items():
        with whole_file(folder / f"{name}.png") as partial:
            partial.write_bytes(image)
    write_text(folder / "report.md", _markdown(text, legend, warnings, unfinished, pictures))
    write_text(folder / "report.tex", text.to_latex(index=False, escape=True).replace("±", r"$\pm$"))
    write_text(folder / "summary.csv", summary.to_csv(index=False))
    write_text(folder / "runs.csv", runs.to_csv(index=False))
    about = f"{len(records)} runs, {len(runs)} of them with a result."
    paths = [str(record.path) for record in records]
    write_text(folder / "report.html", _html(about, text, legend, warnings, unfinished, pictures, images, paths))


def _png(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    picture.figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def _markdown(
    text: pd.DataFrame, legend: str, warnings: Sequence[str], unfinished: pd.DataFrame, pictures: Sequence[Picture]
) -> str:
    parts = ["# Report", "", *[f"*{warning}*\n" for warning in warnings]]
    for env, table in tables.by_environment(text).items():
        parts += [f"## {env}", "", table.to_markdown(index=False, disable_numparse=True), ""]
    parts += [legend, ""]
    if len(unfinished):
        escaped = unfinished.replace(r"\|", r"\\|", regex=True)
        parts += ["## Runs without a result", "", escaped.to_markdown(index=False), ""]
    parts += [f"![{picture.caption}]({picture.name}.png)\n" for picture in pictures]
    return "\n".join(parts)


def _html(
    about: str,
    text: pd.DataFrame,
    legend: str,
    warnings: Sequence[str],
    unfinished: pd.DataFrame,
    pictures: Sequence[Picture],
    images: dict[str, bytes],
    paths: Sequence[str],
) -> str:
    """Return the page. It needs no other file, because it contains its pictures."""
    shown = [
        {
            "title": picture.title,
            "caption": picture.caption,
            "data": base64.b64encode(images[picture.name]).decode("ascii"),
        }
        for picture in pictures
    ]
    environment = Environment(loader=PackageLoader("slaterl.report", ""), autoescape=select_autoescape())
    return environment.get_template("page.html").render(
        title="slaterl: report",
        about=about,
        warnings=warnings,
        tables={  # pandas escapes the cells
            env: Markup(table.to_html(index=False, border=0)) for env, table in tables.by_environment(text).items()
        },
        legend=legend,
        unfinished=Markup(unfinished.to_html(index=False, border=0)) if len(unfinished) else "",
        pictures=shown,
        version=importlib.metadata.version("slaterl"),
        made=time.strftime("%Y-%m-%d %H:%M"),
        paths=paths,
    )
