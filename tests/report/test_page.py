"""stage=report as a whole: the page and its companions, over runs that were trained for it."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import shutil
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from slaterl.errors import UserError
from slaterl.report.find import find
from slaterl.report.pictures import best_episodes, lambda_grid
from slaterl.run import run_stage
from slaterl.runs.products import find_or_make
from slaterl.stages.report import report
from tests.report import made

# enough to learn from and to be bored in, and no more
SMALL = ("agent=dqn", "max_steps=40", "val_users=4", "test_users=6", "env.num_items=100", "agent.q_hidden=[16]")
WITH_EPISODES = {"return_per_turn", "score_density", "topics", "ranks"}


class Page(HTMLParser):
    """What an HTML page consists of: its headings, tables as lists of cells, and all that it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self._into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th", "h2"):
            self._into = self.headings if tag == "h2" else self.tables[-1][-1]
            self._into.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "h2"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[-1] += data


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of DQN, random slates, a run that diverged, and one that was interrupted."""
    home = tmp_path_factory.mktemp("page") / "home"
    for seed in (1, 2):
        run_stage(made.config_of(home, *SMALL, seed=seed))
    run_stage(made.config_of(home, *SMALL[1:-1], "stage=evaluate", "agent=random", seed=1))
    with pytest.raises(UserError, match="not finite"):
        run_stage(made.config_of(home, *SMALL, seed=3, **{"agent.q_lr": 1e30}))
    made.interrupted(made.config_of(home, *SMALL, seed=4))
    return home


def command(home: Path) -> list[str]:
    return ["stage=report", "report.against=dqn", f"report.runs={home}/*/*/*"]


@pytest.fixture(scope="module")
def said(home: Path) -> tuple[str, str]:
    """stdout and stderr of the command, which warns of nothing."""
    cfg = made.config_of(home, *command(home), **{"report.users": 30})
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        for kind in (RuntimeWarning, UserWarning, FutureWarning):
            warnings.simplefilter("error", kind)
        run_stage(cfg)
    return out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def folder(said: tuple[str, str]) -> Path:
    """The report's: the last line on stdout."""
    return Path(said[0].splitlines()[-1])


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


def test_what_is_said(said: tuple[str, str], folder: Path) -> None:
    """The table is in the terminal, too."""
    assert "2 of 5 runs have no result" in said[1] and str(folder / "report.html") in said[1]
    assert "dqn" in said[1] and "random" in said[1]


def test_what_a_report_leaves(folder: Path, home: Path) -> None:
    names = {file.name for file in folder.iterdir()} - {".lock"}
    pictures = {"learning_curves.png"} | {f"{name}_focused_topdown.png" for name in WITH_EPISODES}
    assert names == pictures | {"report.html", "report.md", "report.tex", "summary.csv", "runs.csv"} | {
        "manifest.json",
        "result.json",
    }
    assert folder.is_relative_to(home / "report")
    assert json.loads((folder / "manifest.json").read_text())["status"] == "finished"
    result = json.loads((folder / "result.json").read_text())
    assert (result["runs"], result["without_result"], result["methods"]) == (5, 2, 2)


def test_page_needs_no_other_file(page: Page, folder: Path) -> None:
    """Sent by mail, or opened without a network, it is whole."""
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    text = re.sub(r"data:image/png;base64,[^\"]*", "", (folder / "report.html").read_text())
    assert "//" not in re.sub(r"</?\w[^>]*>", "", text), "no address, wherever it stands"
    assert not re.search(r"url\(|@import|https?:|file:", text)


def test_page_has_every_picture(page: Page, folder: Path) -> None:
    inlined = [base64.b64decode(link.split(",")[1]) for link in page.links]
    files = [file.read_bytes() for file in folder.glob("*.png")]
    assert sorted(inlined) == sorted(files) and len(set(files)) == 5
    assert all(picture.startswith(b"\x89PNG") for picture in inlined)
    for title in ("Learning curves", "Return per turn", "Scores of recommended items, by boredom"):
        assert any(heading.startswith(title) for heading in page.headings)


def test_page_has_every_table(page: Page, folder: Path) -> None:
    """The numbers of the CSV, rounded."""
    results, unfinished = page.tables
    summary = pd.read_csv(folder / "summary.csv").set_index("method")
    shown = {row["method"]: row for row in (dict(zip(results[0], line, strict=True)) for line in results[1:])}
    assert set(shown) == set(summary.index) == {"dqn", "random"}
    numbers = summary.loc["dqn"]
    assert shown["dqn"]["test return"] == f"{numbers['mean']:.1f} ± {numbers['interval']:.1f}"
    assert shown["dqn"]["median"] == f"{numbers['median']:.1f}"
    assert shown["dqn"]["IQM"] == f"{numbers['IQM']:.1f} [{numbers['IQM low']:.1f}, {numbers['IQM high']:.1f}]"
    assert (shown["dqn"]["best val"], shown["dqn"]["last val"]) == tuple(
        f"{numbers[name]:.1f}" for name in ("best val", "last val")
    )
    assert (shown["dqn"]["seeds"], shown["random"]["seeds"]) == ("2", "1")
    assert "p against dqn" in results[0]
    assert unfinished[0] == ["run", "environment", "status", "reason", "command"] and len(unfinished) == 3


def test_numbers_are_those_of_the_runs(folder: Path) -> None:
    runs = pd.read_csv(folder / "runs.csv")
    assert len(runs) == 3
    for _, row in runs.iterrows():
        result = json.loads((Path(row["path"]) / "result.json").read_text())
        assert row["test"] == pytest.approx(result["test_return"]) and row["seed"] == result["seed"]
        if row["method"] == "dqn":
            assert row["best"] == pytest.approx(result["val_return"])
            values = pd.read_csv(Path(row["path"]) / "metrics.csv")["val/return"].dropna()
            assert row["last"] == pytest.approx(values.iloc[-1]) and values.max() == pytest.approx(row["best"])


def test_failed_and_interrupted_runs_are_listed(page: Page, folder: Path) -> None:
    failed, interrupted = sorted(page.tables[1][1:], key=lambda row: row[2])
    assert failed[0].startswith("dqn-seed3-") and failed[1:3] == ["focused_topdown", "failed"]
    assert "is not finite since step" in failed[3]
    assert interrupted[0].startswith("dqn-seed4-") and interrupted[2:4] == ["interrupted", "signal 15"]
    assert all(row[4].startswith("python -m slaterl.run") for row in (failed, interrupted))
    text = (folder / "report.md").read_text()
    assert failed[3] in text and interrupted[3] in text


def test_markdown_refers_to_pictures_that_are_there(folder: Path) -> None:
    named = re.findall(r"!\[[^\]]*\]\((.*?)\)", (folder / "report.md").read_text())
    assert sorted(named) == sorted(file.name for file in folder.glob("*.png"))


def test_the_same_command_again(home: Path, folder: Path, page: Page) -> None:
    """Another report, since runs may have been added: the same numbers of the same runs, and no report of reports."""
    fewer = {"report.users": 2}  # of whom the numbers know nothing
    again = find_or_make(report(made.config_of(home, *command(home), **fewer))).path
    assert again != folder and folder.is_dir()
    for name in ("summary.csv", "runs.csv", "report.tex"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    assert Page((again / "report.html").read_text()).tables == page.tables


def test_no_picture_of_episodes_without_checkpoints(home: Path, tmp_path: Path) -> None:
    """Checkpoints are large, and may be gone when the report is made."""
    copy = tmp_path / "copy"
    shutil.copytree(home / "online", copy / "online", ignore=shutil.ignore_patterns("*.ckpt"))
    found = find_or_make(report(made.config_of(copy, "stage=report"))).path
    assert [file.name for file in found.glob("*.png")] == ["learning_curves.png"]
    assert len(Page((found / "report.html").read_text()).tables) == 2


def test_damaged_checkpoint_costs_its_own_pictures_alone(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "online", tmp_path / "copy" / "online")
    for file in (tmp_path / "copy").rglob("best.ckpt"):
        file.write_bytes(b"half a file")
    found = find_or_make(report(made.config_of(tmp_path / "copy", "stage=report"))).path
    assert [file.name for file in found.glob("*.png")] == ["learning_curves.png"]
    assert "no pictures of the episodes of dqn: " in capfd.readouterr().err


def test_all_methods_serve_the_same_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their best runs are of different seeds; the first test user of each of these would be another person."""
    rows = []
    for method, seed, test in (("a", 3, 10.0), ("a", 2, 9.0), ("b", 2, 5.0), ("b", 5, 8.0)):
        path = tmp_path / f"{method}{seed}"
        path.mkdir()
        (path / "best.ckpt").touch()
        rows.append({"method": method, "seed": seed, "test": test, "path": path})
    served: list[tuple[str, int]] = []
    monkeypatch.setattr("slaterl.report.pictures.watch", lambda file, _, seed: served.append((file.parent.name, seed)))
    best_episodes(pd.DataFrame(rows), 7)
    assert served == [("a3", 2), ("b5", 2)]


def test_grid_of_lambdas(tmp_path: Path) -> None:
    """Figure 3, once a lambda varies."""
    grid = {(0.1, 0.2): 10.0, (0.1, 1.0): 20.0, (1.0, 0.2): 30.0}
    for seed in (1, 2):
        for (kl, click), test in grid.items():
            settings = {"ranker.lambda_KL": kl, "ranker.lambda_click": click}
            cfg = made.config_of(tmp_path, seed=seed, **settings)
            made.finished(cfg, test + seed, (5.0,), ranker_run="abc", ranker=cfg.ranker.name)
    found = find_or_make(report(made.config_of(tmp_path, "stage=report"))).path
    assert (found / "lambda_grid.png").is_file()
    methods = pd.read_csv(found / "summary.csv").set_index("method")
    assert sorted(methods["mean"]) == [11.5, 21.5, 31.5] and set(methods["seeds"]) == {2}


def test_grid_of_lambdas_is_of_one_method(tmp_path: Path) -> None:
    """Another gamma or another agent would move the mean of a cell; what has one pair of lambdas has no grid."""
    sac, td3 = ("agent=sac",), ("agent=td3",)
    chosen = [(sac, 0.8, 1.0, 30.0), (sac, 0.8, 0.1, 10.0), (sac, 0.0, 1.0, 90.0), (td3, 0.8, 1.0, 50.0)]
    chosen += [(td3, 0.8, 0.1, 70.0)]
    for choices, gamma, kl, test in chosen:
        cfg = made.config_of(tmp_path, *choices, **{"agent.gamma": gamma, "ranker.lambda_KL": kl})
        made.finished(cfg, test, (5.0,), ranker_run="abc", ranker=cfg.ranker.name)
    grid = lambda_grid(find(None, tmp_path))
    assert grid is not None
    found = {method: group.sort_values("lambda_KL")["test"].tolist() for method, group in grid.groupby("method")}
    assert found == {"sac + gems, agent.gamma=0.8": [10.0, 30.0], "td3 + gems": [70.0, 50.0]}


def test_page_is_safe_from_what_runs_say(tmp_path: Path) -> None:
    made.finished(made.config_of(tmp_path, *SMALL), 10.0, (5.0,))
    reason = "<img src=http://example.com/x.png> & <script>alert(1)</script>"
    made.failed(made.config_of(tmp_path, *SMALL, seed=2), reason)
    found = Page((find_or_make(report(made.config_of(tmp_path, "stage=report"))).path / "report.html").read_text())
    assert not any("example.com" in link for link in found.links) and "script" not in found.tags
    assert found.tables[1][1][3] == f"UserError: {reason}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report.runs=nothing"], "report.runs=nothing: found no run of stage"),
        (["report.against=unknown"], "report.against=unknown: no such method here; expected one of dqn; random"),
        (["report.users=0"], "report.users=0: expected a whole number"),
    ],
)
def test_mistakes_leave_no_folder(arguments: list[str], message: str, home: Path) -> None:
    before = set(home.glob("report/*/*"))
    with pytest.raises(UserError, match=re.escape(message)):
        run_stage(made.config_of(home, "stage=report", **dict(entry.split("=") for entry in arguments)))
    assert set(home.glob("report/*/*")) == before


def test_nothing_finished_yet(tmp_path: Path) -> None:
    made.failed(made.config_of(tmp_path, *SMALL), "out of luck")
    with pytest.raises(UserError, match="none of its 1 runs is finished"):
        find_or_make(report(made.config_of(tmp_path, "stage=report")))


def test_damaged_runs_are_listed_with_their_reasons(tmp_path: Path) -> None:
    """They do not end the report on the others."""
    made.finished(made.config_of(tmp_path, *SMALL), 10.0, (5.0,))
    files = ["manifest.json", "result.json", "metrics.csv"]
    for seed, name in enumerate(files, start=2):
        (made.finished(made.config_of(tmp_path, *SMALL, seed=seed), 10.0, (5.0,)) / name).write_bytes(b"\xff{")
    found = find_or_make(report(made.config_of(tmp_path, "stage=report"))).path
    results, damaged = Page((found / "report.html").read_text(encoding="utf-8")).tables
    assert len(results) == 2 and len(damaged) == 1 + 3
    for name in files:
        (row,) = [row for row in damaged if name in row[3]]
        assert row[2] == "damaged" and row[1] == ("" if name == "manifest.json" else "focused_topdown")


def test_only_damaged_runs(tmp_path: Path) -> None:
    folder = made.finished(made.config_of(tmp_path, *SMALL), 10.0, (5.0,))
    (folder / "result.json").write_bytes(b"{")
    with pytest.raises(UserError, match=r"none of its 1 runs is finished; .*result\.json: cannot be read"):
        find_or_make(report(made.config_of(tmp_path, "stage=report")))


def test_unwritable_folder(tmp_path: Path) -> None:
    made.finished(made.config_of(tmp_path, *SMALL), 10.0, (5.0,))
    (tmp_path / "report").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=f"{tmp_path}/report/.*: cannot be written"):
        find_or_make(report(made.config_of(tmp_path, "stage=report")))
