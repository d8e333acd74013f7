"""stage=recommend: the next slates for the sessions of a dataset, in the log's own ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("polars")

import polars as pl

from slaterl.agents.loading import load_policy
from slaterl.agents.next_slates import next_slates
from slaterl.config.check import check_config
from slaterl.data import recommendations, trajectories
from slaterl.data.sessions import Sessions
from slaterl.errors import UserError
from slaterl.run import run_stage
from tests.helpers import compose_config
from tests.stages.test_logged import SIZES, make, only

TURNS = {"b,1": 3, "a": 1, "c": 5, "ö": 2}  # sessions and their turns


def log_of(folder: Path, name: str = "shop.csv", last: str = 'say "7", x') -> Path:
    """Sessions of different lengths, with ids that CSV has to quote."""
    random, items = np.random.default_rng(0), [*(f"SKU-{item:02d}" for item in range(11)), last]
    rows = [
        {"session": session, "turn": turn, "item": items[item], "position": slot, "click": random.integers(2)}
        for session, turns in TURNS.items()
        for turn in range(turns)
        for slot, item in enumerate(random.permutation(12)[:3] if turn else [(9 + slot) % 12 for slot in range(3)])
    ]
    (folder / name).write_text(pl.DataFrame(rows).sample(fraction=1, shuffle=True, seed=0).write_csv())
    return folder / name


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A home with an agent that learned from a log, the log, and the agent's checkpoint."""
    home = tmp_path_factory.mktemp("home")
    path = log_of(home)
    make(
        home,
        path,
        "stage=offline",
        "agent=slate_bc",
        "agent.pi_lr=0.3",
        "offline.max_steps=30",
        "offline.validation=none",
    )
    return home, path, only(home, "offline/*/*/best.ckpt")


def recommended(home: Path, path: Path, checkpoint: Path, *more: str) -> tuple[Path, dict[str, Any]]:
    """Return the table and the result."""
    before = set(home.glob("recommend/*/*/result.json"))
    make(home, path, "stage=recommend", f"checkpoint='{checkpoint}'", *more)
    (result,) = set(home.glob("recommend/*/*/result.json")) - before
    content = json.loads(result.read_text())
    return result.parent / content["table"], content


def expected(home: Path, checkpoint: Path) -> list[list[str]]:
    uncut = [len(TURNS), sum(TURNS.values())]  # another test cuts the log
    made = {file.parent: json.loads(file.read_text()) for file in home.glob("collect/shop/*/result.json")}
    (folder,) = (path for path, result in made.items() if [result["trajectories"], result["turns"]] == uncut)
    data, _ = trajectories.load(folder / trajectories.FILE)
    ids = json.loads((folder / "items.json").read_text())["ids"]
    slates = next_slates(load_policy(checkpoint).policy.agent, data, generator=None)  # type: ignore[attr-defined]
    return [[ids[item] for item in slate] for slate in slates.tolist()]


def test_a_row_a_session_in_the_logs_own_ids(learned: tuple[Path, Path, Path]) -> None:
    home, path, checkpoint = learned
    slates = expected(home, checkpoint)
    table, result = recommended(home, path, checkpoint)
    assert table.name == "recommendations.parquet" and table.parent.parent.name == "shop"
    wide = pl.read_parquet(table)
    assert wide.columns == ["session", "item_0", "item_1", "item_2"]
    assert wide["session"].to_list() == sorted(TURNS)
    assert [list(row[1:]) for row in wide.rows()] == slates and len({tuple(slate) for slate in slates}) > 1
    assert result["sessions"] == 4 and result["agent"] == "slate_bc" and result["step"] == 30
    assert len(result["new_session"]) == 3 and result["distinct_items"] == len({i for slate in slates for i in slate})

    table, _ = recommended(home, path, checkpoint, "recommend.format=csv")
    assert pl.read_csv(table, infer_schema=False).equals(wide)
    table, _ = recommended(home, path, checkpoint, "recommend.format=csv", "recommend.form=long")
    rows = [(session, slot, item) for session, slate in zip(sorted(TURNS), slates, strict=True)
            for slot, item in enumerate(slate)]  # fmt: skip
    assert pl.read_csv(table).rows() == rows
    table, _ = recommended(home, path, checkpoint, "recommend.form=long")
    assert pl.read_parquet(table).rows() == rows


def test_a_cut_log_has_parts(learned: tuple[Path, Path, Path]) -> None:
    home, path, checkpoint = learned
    table, result = recommended(home, path, checkpoint, "dataset.max_turns=2")
    frame = pl.read_parquet(table)
    assert frame.columns[:2] == ["session", "part"] and result["sessions"] == 7
    found = list(zip(frame["session"].to_list(), frame["part"].to_list(), strict=True))
    assert found == [("a", 1), ("b,1", 1), ("b,1", 2), ("c", 1), ("c", 2), ("c", 3), ("ö", 1)]


def test_draws(learned: tuple[Path, Path, Path]) -> None:
    home, path, checkpoint = learned
    tables = [
        pl.read_parquet(recommended(home, path, checkpoint, "recommend.sample=true", f"seed={seed}")[0])
        for seed in (1, 2)
    ]
    assert not tables[0].equals(tables[1])


def test_sessions_with_numbers_of_a_simulated_dataset(tmp_path: Path) -> None:
    sizes = [*SIZES.split(), f"paths.root={tmp_path}", "dataset=random", "collect.trajectories=10"]
    run_stage(compose_config(*sizes, "stage=offline", "agent=slate_bc"))
    checkpoint = only(tmp_path, "offline/*/*/best.ckpt")
    run_stage(compose_config(*sizes, "stage=recommend", f"checkpoint='{checkpoint}'", "recommend.form=long"))
    frame = pl.read_parquet(only(tmp_path, "recommend/focused_topdown/*/*.parquet"))
    size = load_policy(checkpoint).env.slate_size
    assert frame["session"].to_list() == [session for session in range(10) for _ in range(size)]
    assert frame["item"].dtype.is_integer()
    assert json.loads(only(tmp_path, "recommend/*/*/result.json").read_text())["new_session"] is None


def test_another_catalogue_is_refused(learned: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, _, checkpoint = learned
    other = log_of(tmp_path, "other.csv", last="SKU-11")
    with pytest.raises(UserError) as error:
        make(tmp_path / "home", other, "stage=recommend", f"checkpoint='{checkpoint}'")
    unknown = "SKU-11 (1 of the 10 items of other are unknown to it)"
    assert str(error.value) == f"{checkpoint}: learned from a log without the item {unknown}"
    assert not (tmp_path / "home" / "recommend").exists()


def test_a_log_of_fewer_items_is_read_by_their_ids(learned: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The same session gets the same slate, though its items have other numbers there."""
    home, path, checkpoint = learned
    part = tmp_path / "part.csv"
    pl.read_csv(path).filter(pl.col("session") == "a").write_csv(part)
    table, result = recommended(tmp_path / "home", part, checkpoint)
    assert len(json.loads(only(tmp_path, "home/collect/part/*/items.json").read_text())["ids"]) == 3
    assert [list(row[1:]) for row in pl.read_parquet(table).rows()] == expected(home, checkpoint)[:1]
    assert result["distinct_items"] == 3


def test_nothing_is_half_written(learned: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    home, path, checkpoint = learned

    def full(*arguments: Any, **settings: Any) -> None:
        arguments[1].write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(UserError, match=r"recommendations.parquet: cannot be written .No space left on device"):
        make(home, path, "stage=recommend", f"checkpoint='{checkpoint}'", "recommend.sample=true", "seed=9")
    assert not [file for file in home.rglob("*") if file.name.endswith(".partial")]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("", "checkpoint: stage=recommend needs checkpoint=<file>; agents that do not learn have none"),
        ("agent=short_term_oracle", "checkpoint: stage=recommend needs checkpoint=<file>"),
        ("checkpoint=gone.ckpt", "gone.ckpt: "),
        ("recommend.format=xlsx", "recommend.format=xlsx: expected parquet or csv"),
        ("recommend.form=tall", "recommend.form=tall: expected wide or long"),
    ],
)
def test_what_cannot_be_recommended(tmp_path: Path, settings: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        make(tmp_path / "home", log_of(tmp_path), "stage=recommend", *settings.split())
    assert str(error.value).startswith(said)
    assert not (tmp_path / "home").exists()


def test_agents_that_read_the_simulator(tmp_path: Path) -> None:
    sizes = [*SIZES.split(), f"paths.root={tmp_path}", "dataset=random", "collect.trajectories=10"]
    sizes += ["max_steps=12", "random_steps=10", "num_envs=5", "batch_size=3"]
    run_stage(compose_config(*sizes, "agent=dqn", "belief=none"))
    with pytest.raises(
        UserError, match=r"best.ckpt: agent=dqn reads its users' hidden state, which only a simulator shows"
    ):
        checkpoint = only(tmp_path, "online/*/*/best.ckpt")
        run_stage(compose_config(*sizes, "stage=recommend", f"checkpoint='{checkpoint}'"))


def test_only_this_stage_reads_its_settings() -> None:
    with pytest.raises(UserError, match=r"recommend.form: stage=online does not read it; stage=recommend does"):
        check_config(compose_config("recommend.form=long"), given={"recommend.form"})
    with pytest.raises(
        UserError, match="checkpoint=x: only stage=evaluate or stage=recommend or stage=export reads it"
    ):
        check_config(compose_config("checkpoint=x"))


def test_damaged_sessions_are_seen(tmp_path: Path) -> None:
    sessions = Sessions(["a", "b"], [1, 2])
    sessions.save(tmp_path)
    assert Sessions.load(tmp_path, sessions.fingerprint) == sessions and len(sessions) == 3
    file = tmp_path / "sessions.json"
    for content in ("{", "{}", file.read_text().replace('"b"', '"c"'), file.read_text().replace("2]", "3]")):
        file.write_text(content)
        with pytest.raises(UserError, match=r"sessions.json: "):
            Sessions.load(tmp_path, sessions.fingerprint)
        sessions.save(tmp_path)


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    slates = torch.tensor([[1, 0], [0, 1]])
    items = [2**40, 2**41]
    recommendations.write(tmp_path / "t.parquet", slates, items, Sessions([-5, 7]), form="wide", format="parquet")
    assert pl.read_parquet(tmp_path / "t.parquet").rows() == [(-5, 2**41, 2**40), (7, 2**40, 2**41)]


def test_estimates_by_propensities(
    learned: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, path, checkpoint = learned
    evaluation = ["stage=evaluate", "evaluation=ips", f"checkpoint='{checkpoint}'"]
    with pytest.raises(UserError, match=r"^evaluation=ips: dataset=log holds no propensities; name their column with"):
        make(home, path, *evaluation)
    frame = pl.read_csv(path).with_columns(propensity=pl.lit(0.1))
    frame.write_csv(tmp_path / "shop.csv")
    make(home, tmp_path / "shop.csv", *evaluation)
    results = [json.loads(file.read_text()) for file in home.glob("evaluate/shop/ips-*/result.json")]
    (result,) = results
    assert [row["sampled"] for row in result["checkpoints"]] == [False, True]
    for row in result["checkpoints"]:
        assert set(row["estimates"]) == {"iips", "rips", "sips"} and row["agent"] == "slate_bc"
    told = " ".join(capsys.readouterr().err.split())
    assert "too little data: it rests on" in told and "best, sampled, " in told and " SIPS: too little" in told
