"""Keeping results: what is copied, that nothing is half-written, and that what lies there is not made again."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import DictConfig

from slaterl.errors import UserError
from slaterl.report import tables
from slaterl.report.find import find
from slaterl.report.keep import keep
from slaterl.run import run_stage
from slaterl.runs.products import find_or_make, product_of
from slaterl.stages.report import report
from tests.report import made

DQN = ("agent=dqn", "ranker=none")
SMALL = ("agent=dqn", "max_steps=40", "val_users=4", "test_users=6", "env.num_items=100", "agent.q_hidden=[16]")
FILES = {"manifest.json", "result.json", "metrics.csv"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two finished runs, one that does not learn, and two that have no result."""
    monkeypatch.setattr(sys, "argv", ["/nowhere/slaterl/run.py", "env.item_embeddings.path=/nowhere/items.pt"])
    home = tmp_path / "home"
    for seed in (1, 2):
        made.finished(made.config_of(home, *DQN, seed=seed), 10.0 + seed, (4.0, 9.0), test_return_sampled=7.0)
    made.finished(made.config_of(home, "stage=evaluate", "agent=random", "ranker=none"), 8.0)
    made.failed(made.config_of(home, *DQN, seed=3), "out of luck")
    made.interrupted(made.config_of(home, *DQN, seed=4))
    return home


def kept_in(folder: Path) -> dict[str, set[str]]:
    return {
        str(path.parent.relative_to(folder)): {f.name for f in path.parent.iterdir()} for path in folder.rglob("*.json")
    }


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of every file."""
    return {str(f): (f.read_bytes(), f.stat().st_mtime_ns) for f in folder.rglob("*") if f.is_file()}


def test_finished_runs_are_copied_to_their_places(home: Path, tmp_path: Path) -> None:
    cfg = made.config_of(home, "stage=report", **{"report.keep": str(tmp_path / "kept")})
    find_or_make(report(cfg))
    runs = {str(record.path.relative_to(home)): record for record in find(None, home) if record.result}
    found = kept_in(tmp_path / "kept")
    assert set(found) == set(runs) and len(runs) == 3
    assert found == {name: FILES if record.steps else FILES - {"metrics.csv"} for name, record in runs.items()}
    for name, record in runs.items():
        for file in found[name] - {"manifest.json"}:
            assert (tmp_path / "kept" / name / file).read_bytes() == (record.path / file).read_bytes()


def test_a_report_of_the_copies_has_the_same_numbers(home: Path, tmp_path: Path) -> None:
    keep(find(None, home), tmp_path / "kept")
    of_all, of_kept = (tables.results(find(str(path), home)) for path in (home, tmp_path / "kept"))
    pd.testing.assert_frame_equal(of_kept.drop(columns="path"), of_all.drop(columns="path"))
    summary = pd.read_csv(
        find_or_make(report(made.config_of(tmp_path, "stage=report", **{"report.runs": str(tmp_path / "kept")}))).path
        / "summary.csv"
    )
    assert summary["mean"].tolist() == [11.5, 8.0]
    runs = pd.read_csv(tmp_path / "kept" / "runs.csv")
    assert runs["test"].tolist() == of_all["test"].tolist()
    assert all((tmp_path / "kept" / path / "result.json").is_file() for path in runs["path"])


def test_copies_name_no_machine(home: Path, tmp_path: Path) -> None:
    entries = {"checkpoint": f"{home}/online/focused_topdown/dqn-seed1-abc/best.ckpt", "step": 7}
    made.finished(made.config_of(home, "stage=evaluate", "agent=random", "ranker=none", seed=5), 8.0, **entries)
    keep(find(None, home), tmp_path / "kept")
    text = "".join(file.read_text() for file in (tmp_path / "kept").rglob("*") if file.is_file())
    assert str(tmp_path) not in text and "/nowhere" not in text and f'"{socket.gethostname()}"' not in text
    assert "env.item_embeddings.path=items.pt" in text and platform.platform() in text
    assert '"checkpoint": "dqn-seed1-abc/best.ckpt"' in text, "the run's folder names the method"


def test_again_nothing_is_written(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    keep(find(None, home), tmp_path / "kept")
    before = content(tmp_path / "kept" / "online")
    keep(find(None, home), tmp_path / "kept")
    keep(find(str(tmp_path / "kept"), home), tmp_path / "kept")  # also of itself
    assert content(tmp_path / "kept" / "online") == before and "warning" not in capfd.readouterr().err


def test_what_differs_stays_and_is_named(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    keep(find(None, home), tmp_path / "kept")
    file = next((tmp_path / "kept").rglob("dqn-seed1-*/result.json"))
    file.write_text(file.read_text().replace("11.0", "99.0"))
    keep(find(None, home), tmp_path / "kept")
    assert "99.0" in file.read_text()
    assert f"warning: {file} differs from {home}" in capfd.readouterr().err


def test_more_runs_join_those_that_are_there(home: Path, tmp_path: Path) -> None:
    one, two = (str(next(home.glob(f"online/*/dqn-seed{seed}-*"))) for seed in (1, 2))
    for run in (one, two):
        keep(find(run, home), tmp_path / "kept")
    assert sorted(pd.read_csv(tmp_path / "kept" / "runs.csv")["seed"]) == [1, 2]


def test_runs_in_two_folders_count_once(home: Path, tmp_path: Path) -> None:
    keep(find(None, home), tmp_path / "kept")
    found = [record for record in find([str(home), str(tmp_path / "kept")], home) if record.result]
    assert len(found) == 3 and all(record.path.is_relative_to(home) for record in found)


KILLED = """
import os, signal, sys
from pathlib import Path
from slaterl.report.find import find
from slaterl.report.keep import keep
replace, left = os.replace, int(sys.argv[3])
def counted(*args):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*args)
os.replace = counted
keep(find(None, Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("renamed", [1, 2, 3, 5])
def test_kill_leaves_no_half_run(renamed: int, home: Path, tmp_path: Path) -> None:
    """What counts as a run is whole, whatever was just written; the next command completes the others."""
    folder = tmp_path / "kept"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(home), str(folder), str(renamed)], cwd=Path(__file__).parents[2]
    )
    assert done.returncode == -signal.SIGKILL
    for manifest in folder.rglob("manifest.json"):
        assert {file.name for file in manifest.parent.iterdir()} >= FILES
        assert [record.status for record in find(str(manifest.parent), home)] == ["finished"]
    assert len(list(folder.rglob("manifest.json"))) == (renamed - 1) // 3
    keep(find(None, home), folder)
    assert len([record for record in find(str(folder), home) if record.result]) == 3


@pytest.mark.parametrize("name", sorted(FILES))
def test_damaged_copy_is_named(name: str, home: Path, tmp_path: Path) -> None:
    keep(find(None, home), tmp_path / "kept")
    file = next((tmp_path / "kept").rglob(f"dqn-seed1-*/{name}"))
    file.write_bytes(b"\xff{")
    (damaged,) = [record for record in find(str(tmp_path / "kept"), home) if not record.result]
    assert damaged.status == "damaged" and damaged.reason.startswith(str(file))


def test_unwritable_folder(home: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=f"{tmp_path}/kept/.*: cannot be written"):
        keep(find(None, home), tmp_path / "kept")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[DictConfig, Path]:
    """The settings of a run whose files are gone, except the kept ones; and the folder of these."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = made.config_of(folder / "home", *SMALL, seed=1)
    run_stage(cfg)
    keep(find(None, folder / "home"), folder / "kept")
    shutil.rmtree(folder / "home")
    cfg.paths.kept = str(folder / "kept")
    return cfg, folder / "kept"


def test_what_is_kept_is_not_made_again(
    trained: tuple[DictConfig, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cfg, kept = trained
    cfg = cfg.copy()
    cfg.paths.root = str(tmp_path / "home")
    before = content(kept)
    returned = run_stage(cfg)
    (result,) = (json.loads(file.read_text()) for file in kept.rglob("result.json"))
    out, err = capfd.readouterr()
    assert returned == result["val_return"] and not (tmp_path / "home").exists() and content(kept) == before
    assert out.splitlines()[-1] == str(next(kept.rglob("result.json")).parent)
    assert "already finished" in err and f"{result['test_return']:.1f}" in err, "its result is shown"


def test_other_settings_are_made_and_kept_at_once(trained: tuple[DictConfig, Path], tmp_path: Path) -> None:
    cfg = trained[0].copy()
    cfg.paths.root, cfg.paths.kept, cfg.seed = str(tmp_path / "home"), str(tmp_path / "kept"), 2
    run_stage(cfg)
    (run,) = (file.parent for file in tmp_path.rglob("best.ckpt"))
    assert kept_in(tmp_path / "kept") == {str(run.relative_to(tmp_path / "home")): FILES}
    shutil.rmtree(tmp_path / "home")
    run_stage(cfg)
    assert not (tmp_path / "home").exists()


def test_a_needed_checkpoint_is_made(trained: tuple[DictConfig, Path], tmp_path: Path) -> None:
    """Of a kept run there is only the result, so what starts from it trains it."""
    cfg = trained[0].copy()
    cfg.paths.root = str(tmp_path / "home")
    cfg.stage = made.composed("stage=collect").stage
    cfg.dataset = made.composed("dataset=expert", "dataset.run.agent=dqn", "dataset.run.ranker=none").dataset
    cfg.dataset.run.seed = cfg.seed
    cfg.paths.kept = str(shutil.copytree(trained[1], tmp_path / "kept"))
    assert product_of(cfg, "collect").inputs["online"].run.stage == "online"
    run_stage(cfg)
    assert len(list(tmp_path.glob("home/online/*/*/best.ckpt"))) == 1


def test_damaged_kept_manifest_ends_in_a_message(trained: tuple[DictConfig, Path], tmp_path: Path) -> None:
    cfg, kept = trained
    shutil.copytree(kept, tmp_path / "kept")
    cfg = cfg.copy()
    cfg.paths.kept, cfg.paths.root = str(tmp_path / "kept"), str(tmp_path / "home")
    file = next((tmp_path / "kept").rglob("manifest.json"))
    file.write_bytes(b"{")
    with pytest.raises(UserError, match=f"{file}: cannot be read"):
        run_stage(cfg)
    assert not (tmp_path / "home").exists()


def test_a_sweep_leaves_out_what_is_kept(trained: tuple[DictConfig, Path], tmp_path: Path) -> None:
    """A report of the sweep finds the kept run in its place."""
    kept = shutil.copytree(trained[1], tmp_path / "kept")
    arguments = ["-m", *SMALL, "scale=smoke", "device=cpu", "threads=1", "seed=1,2"]
    arguments += [f"paths.kept={kept}", f"hydra.sweep.dir={tmp_path}/sweep"]
    done = subprocess.run(
        [sys.executable, "-m", "slaterl.run", *arguments],
        env={**os.environ, "SLATERL_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    one, two = find(str(tmp_path / "sweep"), tmp_path)
    assert (one.seed, two.seed) == (1, 2) and one.result and two.result
    assert one.path.is_relative_to(kept) and two.path.is_relative_to(tmp_path / "home")
