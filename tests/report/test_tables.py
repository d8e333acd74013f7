"""A report's tables: the numbers in them, what does not compare, and that each form of them can be read again."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from slaterl.errors import UserError
from slaterl.report import tables
from slaterl.report.find import find
from slaterl.report.records import REFERENCES
from slaterl.runs.products import find_or_make
from slaterl.stages.report import report
from tests.report import made

DQN = ("agent=dqn", "ranker=none")
SOFTMAX = ("agent=reinforce_slate", "ranker=none")
RANDOM = ("stage=evaluate", "agent=random", "ranker=none")
# what Markdown, LaTeX and HTML each take for their own
NASTY = "100 % of a_b & c | <script>alert(1)</script> $x$ #1 {y} ~ ^"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods in one environment, one of them in another one too, and a run that failed."""
    home = tmp_path_factory.mktemp("tables") / "home"
    for seed, test in ((1, 10.0), (2, 12.0), (3, 17.0)):
        made.finished(made.config_of(home, *DQN, seed=seed), test, (4.0, 9.0 + seed, 7.0))
    for seed, test in ((1, 20.0), (2, 24.5)):
        made.finished(made.config_of(home, *SOFTMAX, seed=seed), test, (21.0, 20.5, 22.0))
    made.finished(made.config_of(home, *RANDOM, seed=1), 8.0)
    made.finished(made.config_of(home, *DQN, "env=diffuse_mix", seed=1), 5.0, (6.0,))
    made.failed(made.config_of(home, *SOFTMAX, seed=3), NASTY)
    return home


@pytest.fixture(scope="module")
def runs(home: Path) -> pd.DataFrame:
    return tables.results(find(None, home))


@pytest.fixture(scope="module")
def written(home: Path) -> Path:
    """The folder of the report on all of it, tested against dqn."""
    cfg = made.config_of(home, "stage=report", **{"report.against": "dqn"})
    return find_or_make(report(cfg)).path


def frame(**values: list[float]) -> pd.DataFrame:
    """Runs of methods that differ in their test returns alone."""
    unknown = dict.fromkeys(["sampled", "score", *REFERENCES, "random_return", "expert_return"])
    rows = [
        {"env": "tiny", "method": method, "seed": seed, "test": test, "best": 1.0, "last": 1.0}
        | {**unknown, "steps": 60, "catalogue": "abc", "test_users": 20, "path": Path("nowhere")}
        for method, tests in values.items()
        for seed, test in enumerate(tests)
    ]
    return pd.DataFrame(rows)


def row(table: pd.DataFrame, method: str, env: str = "focused_topdown") -> pd.Series:
    (found,) = [entry for _, entry in table.iterrows() if (entry["environment"], entry["method"]) == (env, method)]
    return found


def test_one_row_for_each_finished_run(runs: pd.DataFrame) -> None:
    assert len(runs) == 7
    dqn = runs[(runs["method"] == "dqn") & (runs["env"] == "focused_topdown")].sort_values("seed")
    assert dqn[["seed", "test", "best", "last", "steps"]].to_numpy().tolist() == [
        [1, 10, 10, 7, 60],
        [2, 12, 11, 7, 60],
        [3, 17, 12, 7, 60],
    ]
    random = runs[runs["method"] == "random"].iloc[0]
    assert (random["test"], random["steps"]) == (8, 0) and pd.isna(random["best"]) and pd.isna(random["last"])


def test_last_is_the_last_validation(tmp_path: Path) -> None:
    """Later rows, which hold no validation, and a row that a kill cut off do not count."""
    folder = made.finished(made.config_of(tmp_path, *DQN), 10.0, (4.0, 9.0, 7.0))
    with open(folder / "metrics.csv", "a") as file:
        file.write("70,0.1,\n80,0.1,99")
    assert tables.results(find(str(folder), tmp_path))["last"].tolist() == [7.0]


def test_summary_by_hand(runs: pd.DataFrame) -> None:
    """Of 10, 12 and 17 the mean is 13, the deviation sqrt(13); Student's quantile for two degrees is 4.3027."""
    found = row(tables.summary(runs, {}), "dqn")
    assert (found["seeds"], found["mean"], found["median"], found["steps"]) == (3, 13, 12, 60)
    assert found["interval"] == pytest.approx(4.3027 * np.sqrt(13 / 3), rel=1e-4)
    assert found["deviation"] == pytest.approx(np.sqrt(13))
    assert (found["best val"], found["last val"]) == (11, 7)
    assert found["IQM low"] <= found["IQM"] <= found["IQM high"]
    assert not [name for name in found.index if name.startswith("p ")], "nobody asked for a test"


def test_rows_by_environment_and_falling_mean(runs: pd.DataFrame) -> None:
    found = tables.summary(runs, {})
    assert found[["environment", "method"]].to_numpy().tolist() == [
        ["diffuse_mix", "dqn"],
        ["focused_topdown", "reinforce_slate"],
        ["focused_topdown", "dqn"],
        ["focused_topdown", "random"],
    ]


def test_p_is_welchs(runs: pd.DataFrame) -> None:
    found, column = tables.summary(runs, {"dqn": "dqn"}), "p against dqn"
    expected = stats.ttest_ind([20.0, 24.5], [10.0, 12, 17], equal_var=False).pvalue
    assert row(found, "reinforce_slate")[column] == pytest.approx(expected)
    assert pd.isna(row(found, "random")[column]), "one seed"
    assert pd.isna(row(found, "dqn")[column]), "itself"


def test_tests_are_corrected_within_an_environment() -> None:
    """Another environment's methods are another family of tests."""
    here = frame(base=[0.0, 1, 2], a=[20.0, 21, 22], b=[3.0, 4, 5])
    both = pd.concat([here, here.assign(env="other")])
    alone, together, column = (
        tables.summary(here, {"base": "base"}),
        tables.summary(both, {"base": "base"}),
        "p against base",
    )
    assert row(together, "a", "other")[column] == row(together, "a", "tiny")[column] == row(alone, "a", "tiny")[column]


def test_environment_without_the_chosen_method() -> None:
    apart = pd.concat([frame(base=[0.0, 1], a=[2.0, 4]), frame(a=[1.0, 2], b=[8.0, 9]).assign(env="other")])
    found = tables.summary(apart, {"base": "base"})
    assert not pd.isna(row(found, "a", "tiny")["p against base"])
    assert found[found["environment"] == "other"]["p against base"].isna().all()


def test_unknown_method(runs: pd.DataFrame) -> None:
    with pytest.raises(UserError, match=r"report\.against=ppo.*expected one of dqn; random; reinforce_slate"):
        tables.bases(runs, "ppo")


def test_an_agents_name_stands_for_its_only_method() -> None:
    runs = frame(**{"bc + gems": [1.0], "bc_x": [1.0], "dqn, agent.gamma=0": [1.0], "dqn, agent.gamma=1": [2.0]})
    assert tables.bases(runs, None) == {}
    named = {"bc_x": "bc_x", "bc": "bc + gems", "dqn, agent.gamma=1": "dqn, agent.gamma=1"}
    assert tables.bases(runs, list(named)) == named
    with pytest.raises(UserError, match=r"report\.against=dqn: no such method here"):
        tables.bases(runs, "dqn")


def test_both_ways_of_acting_against_several_methods() -> None:
    """Of `still`, which does not explore, both tests take the one return."""
    test = {"base": [1.0, 2, 3], "other": [2.0, 4, 6], "still": [5.0, 6, 7]}
    sampled = {"base": [1.0, 3, 5], "other": [9.0, 9.5, 11]}
    runs = frame(**test)
    runs["sampled"] = [value for name in test for value in sampled.get(name, [None] * 3)]
    found = tables.summary(runs, {"base": "base", "other": "other"})
    names = [f"p against {base}{way}" for base in ("base", "other") for way in ("", ", sampled")]
    assert [name for name in found.columns if name.startswith("p against")] == names
    for base, other in (("base", "other"), ("other", "base")):
        for way, values in (("", test), (", sampled", test | sampled)):
            raw = [stats.ttest_ind(values[name], values[base], equal_var=False).pvalue for name in (other, "still")]
            low, high = sorted(raw)
            holm = {low: min(1, 2 * low), high: max(min(1, 2 * low), high)}
            for name, p in zip((other, "still"), raw, strict=True):
                assert row(found, name, "tiny")[f"p against {base}{way}"] == pytest.approx(holm[p]), (base, name, way)


def test_returns_with_exploration_have_a_column() -> None:
    runs = frame(one=[1.0, 2], still=[5.0, 6])
    runs["sampled"] = [3.0, 5.0, None, None]
    found = tables.summary(runs, {})
    assert row(found, "one", "tiny")[["sampled", "sampled deviation"]].tolist() == [4, pytest.approx(np.sqrt(2))]
    shown = tables.shown(found, "deviation").set_index("method")
    assert shown["sampled"].to_dict() == {"one": "4.0 ± 1.4", "still": ""}
    assert shown["test return"].to_dict() == {"one": "1.5 ± 0.7", "still": "5.5 ± 0.7"}
    assert tables.shown(found, "interval").set_index("method")["sampled"]["one"] == "4.0 ± 12.7"
    assert "sampled" not in tables.shown(tables.summary(frame(one=[1.0]), {}), "interval")


def test_a_seed_without_its_sampled_return() -> None:
    """A mean over some of the seeds would stand next to a mean over all of them."""
    runs = frame(one=[1.0, 2])
    runs["sampled"] = [3.0, None]
    assert pd.isna(row(tables.summary(runs, {}), "one", "tiny")["sampled"])


def test_what_to_compare_with(tmp_path: Path) -> None:
    """The data and the constant slate of a dataset are rows without seeds, in the order of the returns."""
    about = {"random_return": 20.0, "expert_return": 60.0, "dataset_run": "abc", "test_return_sampled": 25.0}
    for dataset, data, slate in (("medium", 35.0, 50.0), ("random", 20.0, None)):
        entries = {**about, "dataset": dataset, "dataset_return": data, "most_frequent_slate_return": slate}
        made.finished(made.config_of(tmp_path / dataset, *DQN), 40.0, (5.0,), **entries)
        found = tables.summary(tables.results(find(None, tmp_path / dataset)), {})
        names = ["each slot's most frequent item, shown to all"] * (slate is not None)
        assert found["method"].tolist() == [*names, "dqn", "the data (mean return)"]
        shown = tables.shown(found, "interval").set_index("method")
        data_row = shown.loc["the data (mean return)"]
        assert data_row[["seeds", "test return", "sampled", "IQM", "steps"]].tolist() == ["", f"{data:.1f}", "", "", ""]
        assert data_row["normalised"] == f"{100 * (data - 20) / 40:.1f}"
        assert shown.loc["dqn"]["sampled"] == "25.0"


def test_other_items_are_another_environment() -> None:
    """Returns on two catalogues are no seeds of one method, whatever the environment is called."""
    both = pd.concat([frame(a=[1.0, 2]), frame(a=[11.0, 12]).assign(catalogue="xyz")])
    found = tables.summary(both, {})
    assert sorted(found["mean"]) == [1.5, 11.5]
    assert tables.shown(found, "interval")["items"].tolist() == ["abc", "xyz"]
    assert "2 different sets of item embeddings" in " ".join(tables.warnings(both))
    assert "items" not in tables.shown(tables.summary(frame(a=[1.0]), {}), "interval")


@pytest.mark.parametrize(("setting", "value"), [("env.boredom_threshold", 3), ("env.episode_length", 7)])
def test_changed_environments_are_not_pooled(setting: str, value: int, tmp_path: Path) -> None:
    """env=focused_topdown env.boredom_threshold=3 is another task: its return is no second seed."""
    for seed, changes in ((1, {}), (2, {setting: value})):
        made.finished(made.config_of(tmp_path, *DQN, seed=seed, **changes), 10.0 * seed, (5.0,))
    runs = tables.results(find(None, tmp_path))
    assert len(tables.summary(runs, {})) == 2 or tables.warnings(runs)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("test_users", 500, "different numbers of test users: 20, 500"),
        ("steps", 1000, "different numbers of steps: 60, 1,000"),
        ("seed", 0, "a has 2 runs with seed 0, which are not independent"),
    ],
)
def test_what_does_not_compare_is_said(column: str, value: int, message: str) -> None:
    runs = frame(a=[1.0, 2], b=[3.0])
    assert tables.warnings(runs) == []
    runs.loc[1, column] = value
    (found,) = tables.warnings(runs)
    assert found.startswith("tiny: ") and message in found


def test_methods_without_steps_are_no_other_length() -> None:
    runs = pd.concat([frame(a=[1.0, 2]), frame(random=[0.5]).assign(steps=0)])
    assert tables.warnings(runs) == []


@pytest.mark.filterwarnings("ignore:Precision loss")
def test_shown_as_people_read_it() -> None:
    runs = frame(one=[3.14159], two=[10.0, 14.0], still=[2.0, 2.0])
    runs.loc[runs["method"] == "one", ["steps", "best", "last"]] = [0, None, None]
    runs.loc[runs["method"] == "two", "steps"] = 100_000
    shown = tables.shown(tables.summary(runs, {"two": "two"}), "interval").set_index("method")
    assert shown["test return"].to_dict() == {"two": "12.0 ± 25.4", "one": "3.1", "still": "2.0 ± 0.0"}
    assert shown["IQM"].to_dict() == {"two": "12.0 [10.0, 14.0]", "one": "3.1", "still": "2.0 [2.0, 2.0]"}
    assert shown["steps"].to_dict() == {"two": "100,000", "one": "", "still": "60"}
    assert shown["best val"].to_dict() == {"two": "1.0", "one": "", "still": "1.0"}
    column = shown["p against two"].to_dict()
    assert column["two"] == column["one"] == "" and 0 < float(column["still"]) < 1
    assert not shown.map(lambda cell: "nan" in str(cell).lower() or "none" in str(cell).lower()).any(axis=None)


def test_normalised_score_by_hand(tmp_path: Path) -> None:
    """Half way from random slates (20) to the expert of the data (60), and a quarter of it; without an expert none."""
    for seed, test in ((1, 40.0), (2, 30.0)):
        about = {"dataset": "medium", "random_return": 20.0, "expert_return": 60.0}
        made.finished(made.config_of(tmp_path, *DQN, seed=seed), test, (5.0,), **about)
    made.finished(made.config_of(tmp_path, *SOFTMAX), 40.0, (5.0,), random_return=20.0)
    runs = tables.results(find(None, tmp_path))
    table = tables.summary(runs, {})
    assert row(table, "dqn", "focused_topdown, medium data")["score"] == pytest.approx((50 + 25) / 2)
    shown = tables.shown(table, "interval").set_index("method")
    assert shown["normalised"].to_dict() == {"dqn": "37.5", "reinforce_slate": ""}
    assert "normalised" not in tables.shown(tables.summary(frame(a=[1.0]), {}), "interval")


@pytest.mark.parametrize("expert", [20.0, 12.0])
def test_no_score_where_the_expert_is_not_above_random_slates(expert: float, tmp_path: Path) -> None:
    about = {"dataset": "medium", "random_return": 20.0, "expert_return": expert}
    made.finished(made.config_of(tmp_path, *DQN, seed=1), 40.0, (5.0,), **about)
    assert tables.results(find(None, tmp_path))["score"].tolist() == [None]


def test_estimates_have_no_test_users(tmp_path: Path) -> None:
    for seed, users in enumerate((None, 20, 30)):
        about = {"dataset": "medium", "test_users": users}
        made.finished(made.config_of(tmp_path, *DQN, seed=seed), 40.0, (5.0,), **about)
    (warning,) = (text for text in tables.warnings(tables.results(find(None, tmp_path))) if "test users" in text)
    assert warning.endswith("different numbers of test users: 20, 30.")


def test_pictures_tell_catalogues_apart_where_there_are_several() -> None:
    both = pd.concat([frame(a=[1.0, 2]), frame(a=[11.0]).assign(catalogue="xyz"), frame(a=[5.0]).assign(env="other")])
    (name,) = frame(a=[1.0])["env"].unique()
    names = tables.by_catalogue(both["env"], both["catalogue"])
    assert names.tolist() == [f"{name}, items abc"] * 2 + [
        f"{name}, items xyz",
        "other",
    ]


def test_datasets_of_one_name_are_not_pooled(tmp_path: Path) -> None:
    for seed in (1, 2):
        about = {"dataset": "file", "dataset_run": f"{seed}", "dataset_checksum": f"{seed}"}
        made.finished(made.config_of(tmp_path, *DQN, seed=seed), 10.0 * seed, (5.0,), **about)
    runs = tables.results(find(None, tmp_path))
    assert len(tables.summary(runs, {})) == 2 or tables.warnings(runs)


def test_unfinished_runs_have_their_command(home: Path) -> None:
    (failed,) = tables.unfinished(find(None, home)).to_dict("records")
    assert failed["run"].startswith("reinforce_slate-seed3-") and failed["status"] == "failed"
    assert failed["reason"] == f"UserError: {NASTY}" and failed["command"].startswith("python -m slaterl.run ")


def test_command_can_be_pasted_into_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["logger=[csv,swanlab]", "experiment=null", "env.item_embeddings.path=/my files/items.pt"]
    monkeypatch.setattr("sys.argv", ["run.py", *arguments])
    made.failed(made.config_of(tmp_path, *DQN), "out of luck")
    command = tables.unfinished(find(None, tmp_path))["command"][0]
    assert "'logger=[csv,swanlab]' experiment=null 'env.item_embeddings.path=/my files/items.pt'" in command


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Cells of every table in Markdown, without the line of dashes."""
    blocks = re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE)
    return [
        [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.strip().splitlines()]
        for block in blocks
    ]


def test_markdown_read_back(written: Path, runs: pd.DataFrame) -> None:
    text = (written / "report.md").read_text()
    expected = tables.by_environment(tables.shown(tables.summary(runs, {"dqn": "dqn"}), "interval"))
    assert list(expected) == ["diffuse_mix", "focused_topdown"]
    for (env, table), (header, _, *body) in zip(expected.items(), markdown_tables(text), strict=False):
        assert f"## {env}\n" in text and "environment" not in header
        assert header == list(table.columns)
        assert body == table.to_numpy().tolist()


@pytest.mark.parametrize("reason", [NASTY, "RuntimeError: Error(s) in loading state_dict:\n\tMissing key: a"])
def test_reasons_stay_in_their_cell(reason: str, tmp_path: Path) -> None:
    """torch's errors have several lines: five cells in each row of the table all the same."""
    made.finished(made.config_of(tmp_path, *DQN), 10.0, (5.0,))
    made.failed(made.config_of(tmp_path, *DQN, seed=2), reason)
    folder = find_or_make(report(made.config_of(tmp_path, "stage=report"))).path
    text = (folder / "report.md").read_text()
    *_, table = markdown_tables(text)
    assert "## Runs without a result" in text and table[0] == ["run", "environment", "status", "reason", "command"]
    assert [len(line) for line in table] == [5, 5, 5]


def test_latex_is_escaped(written: Path, runs: pd.DataFrame) -> None:
    """Every row has the cells of the table, with LaTeX's own characters escaped and nothing beyond ASCII."""
    text = (written / "report.tex").read_text()
    assert text.isascii() and text.startswith(r"\begin{tabular}{") and text.endswith("\\end{tabular}\n")
    lines = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r"\\")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)&", line)] for line in lines]
    assert not re.search(r"(?<!\\)[_%#]", text)

    def escaped(cell: str) -> str:
        return cell.replace("_", r"\_").replace("±", r"$\pm$")

    expected = tables.shown(tables.summary(runs, {"dqn": "dqn"}), "interval")
    assert cells == [[escaped(cell) for cell in line] for line in [list(expected), *expected.to_numpy().tolist()]]
    assert any(r"reinforce\_slate" in line and r"22.2 $\pm$ 28.6" in line for line in lines)


def test_csv_read_back(written: Path, runs: pd.DataFrame) -> None:
    """All digits, names and gaps survive, so that other programs can go on from them."""
    empty = ["sampled", "sampled interval", "sampled deviation", "score"]
    expected = tables.summary(runs, {"dqn": "dqn"}).astype(dict.fromkeys(empty, float))
    pd.testing.assert_frame_equal(pd.read_csv(written / "summary.csv"), expected, rtol=1e-12)
    again = pd.read_csv(written / "runs.csv", dtype={"catalogue": str})
    empty = ["dataset", "sampled", "score", *REFERENCES, "random_return", "expert_return"]
    written_down = runs.assign(path=runs["path"].map(str)).astype(dict.fromkeys(empty, float))
    pd.testing.assert_frame_equal(again, written_down, rtol=1e-12)


def test_names_with_commas_survive_csv(tmp_path: Path) -> None:
    """Methods that differ in a setting have commas in their names."""
    for gamma in (0.0, 0.8):
        made.finished(made.config_of(tmp_path, *DQN, **{"agent.gamma": gamma}), 10.0, (5.0,))
    folder = find_or_make(report(made.config_of(tmp_path, "stage=report"))).path
    assert sorted(pd.read_csv(folder / "summary.csv")["method"]) == ["dqn, agent.gamma=0.0", "dqn, agent.gamma=0.8"]
