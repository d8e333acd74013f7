"""dataset=log as whole stages: from a file to a trained agent, without a simulator."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("polars")

from slaterl.agents.loading import load_policy
from slaterl.config.check import check_config
from slaterl.data import trajectories
from slaterl.data.vocabulary import Vocabulary
from slaterl.errors import UserError
from slaterl.report.find import find
from slaterl.run import run_stage
from slaterl.runs.products import product_of
from slaterl.stages import logged
from tests.helpers import compose_config

SIZES = """scale=smoke device=cpu threads=1 offline.max_steps=4 offline.batch_size=3 offline.val_every_n_steps=2
offline.save_every_n_steps=2 fqe.updates=2 fqe.members=2"""


def log_of(folder: Path, sessions: int = 30, rate: float = 0.4, name: str = "shop log.csv") -> Path:
    """A row for each of 3 of 12 items in 5 turns, with ids of text."""
    random = np.random.default_rng(0)
    rows = ["user,time,product_id,position,click"]
    for session in range(sessions):
        for turn in range(5):
            for slot, item in enumerate(random.choice(12, 3, replace=False)):
                rows.append(
                    f"u{session},{1_700_000_000 + 60 * turn},SKU-{item:02d},{slot},{int(random.random() < rate)}"
                )
    (folder / name).write_text("\n".join(rows) + "\n")
    return folder / name


def overrides(home: Path, path: Path, *more: str) -> list[str]:
    return [*SIZES.split(), f"paths.root={home}", "dataset=log", f"dataset.path='{path}'", *more]


def make(home: Path, path: Path, *more: str) -> None:
    run_stage(compose_config(*overrides(home, path, *more)))


def only(home: Path, pattern: str) -> Path:
    (found,) = home.glob(pattern)
    return found


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A home with a dataset, GeMS and an agent that learned from a log, and the log."""
    home = tmp_path_factory.mktemp("home")
    path = log_of(home)
    make(home, path, "stage=offline", "agent=iql")
    return home, path


def test_from_a_log_to_an_agent(learned: tuple[Path, Path]) -> None:
    home, _ = learned
    assert {path.name for path in home.iterdir()} == {"shop log.csv", "collect", "pretrain", "user_model", "offline"}
    assert {path.parent.name for path in home.glob("*/*/*-*")} == {"shop log"}
    dataset = only(home, "collect/*/*")
    data, metadata = trajectories.load(dataset / trajectories.FILE)
    assert data.slates.shape == (30, 6, 3) and data.turns == 150
    items = Vocabulary.load(dataset, metadata["items"])
    assert items.ids == [f"SKU-{item:02d}" for item in range(12)] and sum(items.shown) == 450
    result = json.loads(only(home, "offline/*/*/result.json").read_text())
    assert result["env"] == "shop log" and result["dataset"] == "log" and result["test_users"] is None
    assert result["item_embeddings"] == items.fingerprint
    assert not [key for key in result if "oracle" in key or "random_" in key]
    assert "item SKU-" in result["test_warning"]  # this short log has shown nothing often enough
    config = json.loads(only(home, "offline/*/*/manifest.json").read_text())["config"]["env"]
    assert (config["num_items"], config["slate_size"], config["episode_length"]) == (12, 3, 5)


def test_the_card_has_the_logs_ids_and_no_simulator(learned: tuple[Path, Path]) -> None:
    home, _ = learned
    card, page = (only(home, f"collect/*/*/card.{kind}").read_text() for kind in ("json", "md"))
    assert "SKU-" in page and json.loads(card)["top_items"][0]["id"].startswith("SKU-")
    for word in ("oracle", "expert", "random slates", "normalised", "unknown is"):
        assert word not in page and word not in "".join(json.loads(card)["warnings"])
    assert json.loads(card)["anchors"] == {}


def test_names_do_not_depend_on_whether_the_log_was_read(learned: tuple[Path, Path], tmp_path: Path) -> None:
    home, path = learned
    for stage in ("collect", "pretrain", "offline"):
        cfg = compose_config(*overrides(tmp_path, path, f"stage={stage}", "agent=iql"))
        check_config(cfg)
        assert (home / product_of(cfg, stage).run.path.relative_to(tmp_path)).is_dir()
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_knows_its_log(learned: tuple[Path, Path], tmp_path: Path) -> None:
    home, path = learned
    checkpoint = only(home, "offline/*/*/best.ckpt")
    loaded = load_policy(checkpoint)
    assert (loaded.env.num_items, loaded.env.slate_size, loaded.env.episode_length) == (12, 3, 5)
    with pytest.raises(
        UserError, match=r"best.ckpt: learned from a log, which no simulator knows; use evaluation=user_model"
    ):
        run_stage(compose_config(*SIZES.split(), f"paths.root={home}", "stage=evaluate", f"checkpoint='{checkpoint}'"))
    make(home, path, "stage=evaluate", "evaluation=fqe", f"checkpoint='{checkpoint}'", "agent=iql")
    result = json.loads(only(home, "evaluate/shop log/*/result.json").read_text())
    assert result["checkpoints"][0]["simulated"] is None and result["rank_correlation"] is None
    other = tmp_path / "other.csv"
    other.write_text(path.read_text().replace("SKU-11", "SKU-12"))
    for evaluation in ("fqe", "user_model"):
        with pytest.raises(
            UserError, match=r"best.ckpt: learned from a log without the item SKU-12 \(1 of the 12 items"
        ):
            make(home, other, "stage=evaluate", f"evaluation={evaluation}", f"checkpoint='{checkpoint}'", "agent=iql")
    rows = [row for row in path.read_text().splitlines() if "SKU-00" not in row]
    other.write_text("\n".join(rows) + "\n")
    ragged = [f"checkpoint='{checkpoint}'", "agent=iql", "dataset.ragged=drop", "stage=evaluate"]
    make(tmp_path, other, *ragged, "evaluation=fqe")
    with pytest.raises(UserError, match=r"shows the item SKU-00, which other does not have \(1 of 12 items\)"):
        make(tmp_path, other, *ragged, "evaluation=user_model")


def test_without_an_estimate_the_last_checkpoint_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, log_of(tmp_path, 8), "stage=offline", "agent=slate_bc", "offline.validation=none")
    result = json.loads(only(tmp_path, "offline/*/*/result.json").read_text())
    assert (result["best_step"], result["test_return"], result["val_return"]) == (4, None, None)
    assert "not tested: offline.validation=none" in " ".join(capsys.readouterr().err.split())
    best, last = (
        torch.load(only(tmp_path, f"offline/*/*/{name}.ckpt"))["learner"]["module"] for name in ("best", "last")
    )
    assert all(torch.equal(best[name], last[name]) for name in last)
    assert find(None, tmp_path) == []  # a report compares returns


def test_a_report_simulates_nobody(learned: tuple[Path, Path]) -> None:
    run_stage(compose_config("stage=report", f"paths.root={learned[0]}"))
    drawn = {path.stem for path in learned[0].glob("report/*/*/*.png")}
    assert drawn and not [name for name in drawn if "per_turn" in name]


@pytest.mark.parametrize("stage", ["stage=pretrain", "stage=mf item_embeddings=mf"])
def test_other_stages_learn_from_the_log(learned: tuple[Path, Path], stage: str) -> None:
    cfg = compose_config(*overrides(learned[0], learned[1], *stage.split()))
    check_config(cfg, given={"dataset", "dataset.path", "stage"})
    run_stage(cfg)
    assert not (learned[0] / "log_data").exists()


def test_few_clicks_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, log_of(tmp_path, 100, 0.003), "stage=collect")
    result = json.loads(only(tmp_path, "collect/*/*/result.json").read_text())
    mean, interval = result["return_mean"], result["return_interval"]
    assert 0 < mean < 0.1 and interval == pytest.approx(1.96 * result["return_std"] / 10)
    expected = f"{mean:.3f} ± {interval:.3f}"
    assert f"clicks per session {expected} (95 %)" in " ".join(capsys.readouterr().err.split())
    assert f"mean {expected} (95 %)" in only(tmp_path, "collect/*/*/card.md").read_text()


def test_a_changed_file_is_another_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = log_of(tmp_path, 5)
    make(tmp_path, path, "stage=collect")
    path.write_text(path.read_text().replace("u4", "u5"))
    os.utime(path, ns=(1, 1))
    make(tmp_path, path, "stage=collect")
    assert len(list(tmp_path.glob("collect/*/*/result.json"))) == 2
    read = logged.read_log

    def read_while_it_grows(*arguments: Any) -> Any:
        with open(path, "a") as file:
            file.write("u9,1700000000,SKU-01,0,1\nu9,1700000000,SKU-02,1,1\nu9,1700000000,SKU-03,2,1\n")
        return read(*arguments)

    monkeypatch.setattr(logged, "read_log", read_while_it_grows)
    with pytest.raises(UserError, match="changed since the command began; run it again"):
        make(tmp_path, path, "stage=collect", "dataset.max_turns=3")
    assert len(list(tmp_path.glob("collect/*/*/result.json"))) == 2


def test_a_wrong_log_leaves_nothing_half_written(tmp_path: Path) -> None:
    path = log_of(tmp_path, 3)
    path.write_text(path.read_text() + "u1,1700000000,SKU-01,0,maybe\n")
    for stage in ("collect", "offline"):
        with pytest.raises(UserError, match="click of session u1, turn 1700000000"):
            make(tmp_path, path, f"stage={stage}", "agent=slate_bc")
    left = [file.name for file in tmp_path.rglob("*") if file.is_file() and file != path]
    assert set(left) <= {"manifest.json", ".lock"}
    assert not (tmp_path / "offline").exists()


def test_damaged_items_are_seen(learned: tuple[Path, Path], tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(only(learned[0], "collect/shop log/*"), tmp_path / "copy"))
    _, metadata = trajectories.load(dataset / trajectories.FILE)
    file = dataset / "items.json"
    for content in ("{", "{}", file.read_text().replace("SKU-03", "SKU-3")):
        file.write_text(content)
        with pytest.raises(UserError, match=r"items.json: "):
            Vocabulary.load(dataset, metadata["items"])


@pytest.mark.parametrize(
    ("file", "name"),
    [("shop.csv.gz", "shop"), ("2024.05 shop.parquet", "2024.05 shop"), ("日志.CSV", "日志"), ("parts.d", "parts.d")],
)
def test_runs_lie_below_the_name_of_the_file(file: str, name: str) -> None:
    cfg = compose_config("stage=collect", "dataset=log", f"dataset.path='/data/{file}'")
    check_config(cfg)
    assert cfg.env.name == name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("stage=online", "stage=online: dataset=log has no simulator to act in; train with stage=offline"),
        ("stage=log_data", "stage=log_data: dataset=log has no simulator to act in; stage=collect reads it"),
        ("stage=benchmark", "stage=benchmark: dataset=log has no simulator to act in"),
        ("stage=evaluate", "stage=evaluate: dataset=log has no simulator to act in; use evaluation=user_model"),
        ("stage=collect env=focused_topdown", "env=focused_topdown: dataset=log comes from no simulator; leave out"),
        ("stage=online env=learned", "env=learned: leave out dataset=log; to pretrain on its data, give"),
        ("stage=collect dataset.session_gap=soon", "dataset.session_gap=soon: expected a time such as 45s, 30m"),
        ("stage=collect dataset.ragged=keep", "dataset.ragged=keep: expected refuse or drop"),
        ("stage=collect dataset.columns.item=3", "dataset.columns.item=3: expected the name of a column, or a list"),
        ("stage=offline agent=slate_bc offline.validation=fqe", "offline.validation=fqe: agent=slate_bc has no latent"),
        ("stage=offline agent=sac", "agent=sac learns in the simulator; use stage=online, or an offline agent"),
    ],
)
def test_what_needs_a_simulator_is_refused(tmp_path: Path, settings: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        make(tmp_path / "home", log_of(tmp_path, 3), *settings.split())
    assert str(error.value).startswith(said)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("env.num_items", 5, "env.num_items: dataset=log sets it; use dataset.num_items"),
        ("env.name", "shop", "env.name: dataset=log sets it; leave it out"),
        ("logged_data.source", "epsilon_oracle", "logged_data.source=epsilon_oracle: its items are not those of"),
        (
            "offline.validation",
            "simulator",
            "offline.validation=simulator: dataset=log has no simulator; use user_model",
        ),
    ],
)
def test_settings_of_simulators_that_were_typed(tmp_path: Path, key: str, value: Any, said: str) -> None:
    cfg = compose_config(*overrides(tmp_path, tmp_path / "log.csv", "stage=offline", "agent=iql", f"{key}={value}"))
    with pytest.raises(UserError) as error:
        check_config(cfg, given={key})
    assert str(error.value).startswith(said)


def test_the_environment_of_logs_alone_is_refused() -> None:
    with pytest.raises(UserError, match=r"^env=log: only dataset=log sets it; give dataset=log dataset.path=<file>$"):
        check_config(compose_config("env=log"))


def test_a_session_of_one_turn_has_no_next_turn(tmp_path: Path) -> None:
    path = log_of(tmp_path, 4)
    with pytest.raises(UserError, match=r"env.episode_length=1: agent=\w+ learns from the next turn"):
        make(tmp_path, path, "stage=offline", "agent=cql", "dataset.max_turns=1")
