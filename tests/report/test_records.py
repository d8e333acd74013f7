"""What a report finds: runs of all fates, sweeps, globs, and folders that are none of these; and methods' names."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, open_dict

from slaterl.errors import UserError
from slaterl.report.find import find
from slaterl.report.records import Record, name_methods, without_lambdas
from slaterl.sweeps.records import announce, recording
from tests.report import made

RANDOM = ("stage=evaluate", "agent=random", "ranker=none")
DQN = ("agent=dqn", "ranker=none")
COMMAND = ["python", "agent=dqn", "seed=1"]


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that the manifests tell."""
    monkeypatch.setattr(sys, "argv", COMMAND)


def dqn(root: Path, seed: int = 1, **settings: Any) -> DictConfig:
    return made.config_of(root, *DQN, seed=seed, **settings)


def fates(found: list[Record]) -> list[tuple[str, str]]:
    return [(record.status, record.reason) for record in found]


def test_finished(tmp_path: Path) -> None:
    folder = made.finished(dqn(tmp_path, seed=3), 12.5, (5.0, 9.0, 7.0))
    (found,) = find(str(folder), tmp_path)
    assert (found.path, found.status, found.reason) == (folder, "finished", "")
    assert (found.env, found.seed, found.steps) == ("focused_topdown", 3, 60)
    assert found.result["test_return"] == 12.5
    assert list(found.command) == COMMAND[1:]


def test_what_does_not_learn_has_no_steps(tmp_path: Path) -> None:
    folder = made.finished(made.config_of(tmp_path, *RANDOM), 8.0)
    assert [record.steps for record in find(str(folder), tmp_path)] == [0]


def test_those_that_did_not_finish(tmp_path: Path) -> None:
    failed = made.failed(dqn(tmp_path, 1), "gamma=2: expected less")
    interrupted = made.interrupted(dqn(tmp_path, 2))
    found = find([str(failed), str(interrupted)], tmp_path)
    assert fates(found) == [("failed", "UserError: gamma=2: expected less"), ("interrupted", "signal 15")]
    assert [record.result for record in found] == [{}, {}]
    assert [record.seed for record in found] == [1, 2], "the seed is the configuration's, where there is no result"


def test_running(tmp_path: Path) -> None:
    """Also one that was finished before and is made again: the result that lies there is the old one."""
    folder = made.finished(dqn(tmp_path), 12.5, (5.0,))
    (folder / "manifest.json").unlink()
    with made.making(dqn(tmp_path)) as running:
        assert running == folder
        (found,) = find(str(folder), tmp_path)
        assert (found.status, found.result) == ("running", {})


def test_killed_is_told_from_running(tmp_path: Path) -> None:
    (found,) = find(str(made.killed(dqn(tmp_path))), tmp_path)
    assert found.status == "killed" and found.reason


def a_sweep(folder: Path, root: Path) -> Path:
    """Six jobs: finished, failed before it had a run, failed in its run, interrupted, waiting, and killed."""
    configs = [dqn(root, seed) for seed in range(6)]
    for number, cfg in enumerate(configs):
        announce(folder, number, [*DQN, f"seed={number}"], cfg)
    with recording(folder, 0, configs[0]):
        made.finished(configs[0], 12.5, (5.0,))
    with contextlib.suppress(UserError), recording(folder, 1, configs[1]):
        raise UserError("no space for anything")
    with contextlib.suppress(UserError), recording(folder, 2, configs[2]), made.making(configs[2]):
        raise UserError("loss/critic is not finite")
    with contextlib.suppress(UserError), recording(folder, 3, configs[3]):
        made.interrupted(configs[3])
    with recording(folder, 5, configs[5]):
        record = (folder / "5" / "job.json").read_text()
    (folder / "5" / "job.json").write_text(record)  # as it was while it ran; nobody holds its lock
    return folder


def test_jobs_of_a_sweep_with_and_without_runs(tmp_path: Path) -> None:
    found = find(str(a_sweep(tmp_path / "sweep", tmp_path / "home")), tmp_path / "home")
    assert fates(found) == [
        ("finished", ""),
        ("failed", "no space for anything"),
        ("failed", "UserError: loss/critic is not finite"),
        ("interrupted", "signal 15"),
        ("waiting", ""),
        ("killed", "the process died without reporting an error"),
    ]
    assert [record.seed for record in found] == list(range(6))
    assert {record.env for record in found} == {"focused_topdown"}
    assert list(found[4].command) == [*DQN, "seed=4"], "the job's own command, where no run tells of one"


def test_killed_job_with_a_run(tmp_path: Path) -> None:
    """Its own last word is "running", in the sweep's record as in the run's manifest."""
    cfg, sweep = dqn(tmp_path / "home"), tmp_path / "sweep"
    announce(sweep, 0, ["agent=dqn"], cfg)
    with recording(sweep, 0, cfg):
        folder = made.killed(cfg)
        record = (sweep / "0" / "job.json").read_text()
    (sweep / "0" / "job.json").write_text(record)
    (found,) = find(str(sweep), tmp_path)
    assert found.path == folder and found.result == {}
    assert (found.status, found.reason) == ("killed", "the process died without reporting an error")


def test_each_run_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a sweep, a glob, its folder, all folders, absolute or not: the same run would count as two seeds."""
    home = tmp_path / "home"
    sweep = a_sweep(tmp_path / "sweep", home)
    done = next(home.glob("online/*/dqn-seed0-*"))
    monkeypatch.chdir(tmp_path)
    patterns = [str(sweep), "home/online/*/dqn-seed[0-2]-*", str(done), "home"]
    found = find(patterns, home)
    assert len(found) == 6
    assert [record.seed for record in found if record.result] == [0]


def test_stages_that_end_with_a_return(tmp_path: Path) -> None:
    """Beside them lies what they are made from, which is no method."""
    online = made.finished(dqn(tmp_path), 12.5, (5.0,))
    evaluated = made.finished(made.config_of(tmp_path, *RANDOM), 8.0)
    for stage in ("pretrain", "log_data", "report"):
        with made.making(made.config_of(tmp_path, f"stage={stage}")) as other:
            (other / "result.json").write_text("{}")
    for runs in (None, str(tmp_path), str(tmp_path / "*"), str(tmp_path / "*" / "*" / "*"), [str(online.parents[1])]):
        found = {record.path for record in find(runs, tmp_path)}
        assert found == ({online} if isinstance(runs, list) else {online, evaluated}), runs
    with pytest.raises(UserError, match="pretrain"):
        find(str(tmp_path / "pretrain"), tmp_path)


def test_sweep_of_another_stage(tmp_path: Path) -> None:
    """Rankers pretrained by a sweep beside agents: not a KeyError for their test return."""
    sweep, cfg = tmp_path / "sweep", made.config_of(tmp_path, "stage=pretrain")
    announce(sweep, 0, ["stage=pretrain"], cfg)
    with recording(sweep, 0, cfg), made.making(cfg) as folder:
        (folder / "result.json").write_text('{"stage": "pretrain", "val_loss": 3.2}')
    announce(sweep, 1, list(DQN), dqn(tmp_path))
    with recording(sweep, 1, dqn(tmp_path)):
        made.finished(dqn(tmp_path), 12.5, (5.0,))
    assert [record.config["stage"]["name"] for record in find(str(sweep), tmp_path)] == ["online"]


@pytest.mark.parametrize("evaluation", ["fqe", "ips", "user_model"])
def test_estimates_are_no_returns(evaluation: str, tmp_path: Path) -> None:
    """An estimate tells of a policy what the data say, not what users did."""
    made.finished(made.config_of(tmp_path, *RANDOM, evaluation=evaluation), 8.0)
    assert find(None, tmp_path) == []


def test_offline_runs_are_told_apart_by_their_data(tmp_path: Path) -> None:
    folder = made.finished(dqn(tmp_path), 12.5, (5.0,), dataset="medium")
    assert [record.env for record in find(str(folder), tmp_path)] == ["focused_topdown, medium data"]


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra gives the tilde as it is typed."""
    made.finished(dqn(tmp_path / "outputs"), 12.5, (5.0,))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(find("~/outputs/*/*/*", tmp_path)) == 1


@pytest.mark.parametrize("pattern", ["nowhere", "*/nothing/*", "empty", "file.txt"])
def test_nothing_there(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence that names the pattern, also where other patterns find something."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file.txt").write_text("no run")
    made.finished(dqn(tmp_path / "home"), 12.5, (5.0,))
    for runs in (pattern, ["home", pattern]):
        with pytest.raises(UserError, match=r"report\.runs=.*: found no run of stage online") as error:
            find(runs, tmp_path)
        assert f"report.runs={pattern}" in str(error.value) and "\n" not in str(error.value)


def test_by_default_all_and_none_is_no_error_here(tmp_path: Path) -> None:
    assert find(None, tmp_path / "nowhere") == []


DAMAGE = [b"", b'{"status": ', b"\xff\x00\x00", b"[]", b'"text"', b"null", b'{"status": "finished"}']


def a_damaged_run(root: Path, name: str, content: bytes) -> tuple[Path, Path]:
    """A good run, and one with a damaged file."""
    good, bad = (made.finished(dqn(root, seed), 10.0 + seed, (5.0,)) for seed in (1, 2))
    (bad / name).write_bytes(content)
    return good, bad


@pytest.mark.parametrize("content", DAMAGE)
@pytest.mark.parametrize("name", ["manifest.json", "result.json"])
def test_damaged_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    """Instead of ending the report on the others."""
    good, bad = a_damaged_run(tmp_path, name, content)
    found = {record.path: record for record in find(None, tmp_path)}
    assert found[good].result["test_return"] == 11.0
    assert (found[bad].status, found[bad].result) == ("damaged", {})
    assert found[bad].reason.startswith(str(bad / name)) and "\n" not in found[bad].reason


@pytest.mark.parametrize(
    ("key", "value"),
    [("test_return", None), ("test_return", "many"), ("item_embeddings", 5), ("steps", []), ("val_return", {})],
)
def test_damaged_value_of_a_result(key: str, value: Any, tmp_path: Path) -> None:
    good, bad = a_damaged_run(tmp_path, "note.txt", b"")
    (bad / "result.json").write_text(json.dumps({**json.loads((good / "result.json").read_text()), key: value}))
    assert {record.path: record.status for record in find(None, tmp_path)} == {good: "finished", bad: "damaged"}


@pytest.mark.parametrize("content", [b"step,val/return\n1,many\n", b"\xff\x00\n\n", b"val/return\n7\n", None])
def test_damaged_metrics(content: bytes | None, tmp_path: Path) -> None:
    good, bad = a_damaged_run(tmp_path, "metrics.csv", content or b"")
    if content is None:
        (bad / "metrics.csv").unlink()
    found = {record.path: record for record in find(None, tmp_path)}
    assert found[good].status == "finished" and found[bad].status == "damaged"
    assert str(bad / "metrics.csv") in found[bad].reason


@pytest.mark.parametrize("content", [*DAMAGE, b'{"status": "waiting", "overrides": [], "config": {"stage": 3}}'])
def test_damaged_record_of_a_job(content: bytes, tmp_path: Path) -> None:
    sweep = a_sweep(tmp_path / "sweep", tmp_path / "home")
    (sweep / "4" / "job.json").write_bytes(content)
    found = find(str(sweep), tmp_path)
    assert [record.status for record in found if record.path != sweep / "4"] == [
        *("finished", "failed", "failed", "interrupted", "killed")
    ]
    (damaged,) = [record for record in found if record.path == sweep / "4"]
    assert damaged.status == "damaged" and damaged.reason.startswith(str(sweep / "4" / "job.json"))


def names(*runs: tuple[DictConfig, dict[str, Any]], root: Path) -> list[str]:
    paths = [made.finished(cfg, 1.0, (1.0,), **entries) for cfg, entries in runs]
    return name_methods(find([str(path) for path in paths], root))


def test_seeds_of_one_method_share_its_name(tmp_path: Path) -> None:
    """Neither the seeds nor where and how a run was made are part of a method."""
    settings: list[dict[str, Any]] = [{}, {"ranker_seed": 7}, {"threads": 4}, {"device": "cuda"}, {"report.users": 7}]
    runs = [(made.config_of(tmp_path, seed=i, **its), {"ranker_run": f"{i}"}) for i, its in enumerate(settings)]
    found = names(*runs, root=tmp_path)
    assert len(set(found)) == 1 and "seed" not in found[0] and "sac + gems" in found[0]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("agent.gamma", 0.0),
        ("max_steps", 77),
        ("batch_size", 9),
        ("belief.hidden_dim", 5),
        ("pretrain.epochs", 8),
        ("matmul_precision", "medium"),
    ],
)
def test_other_settings_make_another_name(setting: str, value: Any, tmp_path: Path) -> None:
    runs = [(made.config_of(tmp_path, seed=seed), {}) for seed in (1, 2)]
    runs += [(made.config_of(tmp_path, seed=1, **{setting: value}), {})]
    one, same, other = names(*runs, root=tmp_path)
    assert one == same != other
    assert f"{setting}={value}" in other and f"{setting}=" in one, "both say what they have of it"


def test_patience_that_was_not_set_is_not_named(tmp_path: Path) -> None:
    """Older runs lack the two settings; with neither of them set they are seeds of one method."""
    epochs = {"pretrain.epochs": 8}  # enough for a patience to end before them
    old, new = (made.config_of(tmp_path, seed=seed, **epochs) for seed in (1, 2))
    with open_dict(old):
        del old.pretrain["patience"], old.pretrain["min_delta"]
    patient = made.config_of(tmp_path, seed=3, **epochs, **{"pretrain.patience": 2})
    assert len(set(names((old, {}), (new, {}), root=tmp_path))) == 1
    assert "pretrain.patience=2" in names((old, {}), (patient, {}), root=tmp_path)[1]


def test_runs_from_before_rankers_had_a_temperature(tmp_path: Path) -> None:
    old, new, warm = (made.config_of(tmp_path, seed=seed) for seed in (1, 2, 3))
    with open_dict(old):
        del old.ranker["temperature"]
    warm.ranker.temperature = 0.5
    found = names(*((cfg, {"ranker_run": "its"}) for cfg in (old, new, warm)), root=tmp_path)
    assert found[0] == found[1] != found[2]
    assert "ranker.temperature=0.5" in found[2]


def test_a_grid_of_lambdas_keeps_the_kinds_of_gems_apart(tmp_path: Path) -> None:
    kinds = [made.config_of(tmp_path, f"ranker={name}", seed=1) for name in ("gems", "gems_transformer")]
    records = [find(str(made.finished(cfg, 1.0)), tmp_path)[0] for cfg in kinds]
    assert [without_lambdas(record).config["ranker"]["name"] for record in records] == ["gems", "gems_transformer"]


def test_runs_from_before_the_precision_was_a_setting(tmp_path: Path) -> None:
    old = made.config_of(tmp_path, seed=1)
    with open_dict(old):
        del old["matmul_precision"]
    assert len(set(names((old, {}), (made.config_of(tmp_path, seed=2), {}), root=tmp_path))) == 1


@pytest.mark.parametrize(("setting", "value"), [("item_embeddings.dim", 3), ("init_from", "other.ckpt")])
def test_settings_outside_of_the_agent_make_another_name(setting: str, value: Any, tmp_path: Path) -> None:
    """Of other embeddings to compare items by, or fine-tuned from another agent: no seeds of one method."""
    choices = ("ranker=top_k", "item_embeddings=mf")
    runs = [made.config_of(tmp_path, *choices, seed=1), made.config_of(tmp_path, *choices, seed=2, **{setting: value})]
    one, other = names(*((cfg, {"compared_by": "mf", "init_from": cfg.init_from}) for cfg in runs), root=tmp_path)
    assert one != other


def test_what_only_other_methods_have_is_not_named(tmp_path: Path) -> None:
    """A difference within one plain name says nothing about the others."""
    runs = [(dqn(tmp_path, 1), {}), (dqn(tmp_path, 1, **{"agent.gamma": 0.5}), {}), (made.config_of(tmp_path), {})]
    plain = names(*runs, root=tmp_path)[2]
    assert "gamma" not in plain


def test_same_method_in_two_environments(tmp_path: Path) -> None:
    """Environments are the table's other column."""
    runs = [(dqn(tmp_path), {}), (made.config_of(tmp_path, *DQN, "env=diffuse_mix"), {})]
    assert names(*runs, root=tmp_path) == ["dqn", "dqn"]


def test_checkpoints_are_of_their_own_environment(tmp_path: Path) -> None:
    """stage=evaluate checkpoint=... knows it; what the command composes beside it is the default."""
    entries = {"checkpoint": "/a/best.ckpt", "step": 7, "agent": "sac", "env": "diffuse_mix"}
    folder = made.finished(made.config_of(tmp_path, *RANDOM), 8.0, **entries)
    assert [record.env for record in find(str(folder), tmp_path)] == ["diffuse_mix"]


def test_different_checkpoints_are_no_seeds_of_one_method(tmp_path: Path) -> None:
    runs = []
    for seed, folder in ((1, "sac-gems-seed1-a"), (2, "sac-gems-seed1-a"), (3, "sac-top_k-seed1-b")):
        entries = {"checkpoint": f"/out/{folder}/best.ckpt", "step": 7, "agent": "sac"}
        runs.append((made.config_of(tmp_path, *RANDOM, seed=seed), entries))
    one, same, other = names(*runs, root=tmp_path)
    assert one == same == "sac (checkpoint, step 7), checkpoint=sac-gems-seed1-a/best.ckpt" != other


def test_precisions_are_no_seeds_of_one_checkpoint(tmp_path: Path) -> None:
    entries = {"checkpoint": "/a/best.ckpt", "step": 7, "agent": "sac"}
    configs = [made.config_of(tmp_path, *RANDOM, *more) for more in ([], ["matmul_precision=medium"])]
    one, other = names(*((config, entries) for config in configs), root=tmp_path)
    assert one != other


def test_names_say_what_the_agent_saw(tmp_path: Path) -> None:
    runs = [
        (dqn(tmp_path, 1), {}),
        (dqn(tmp_path, 2), {"belief": "none"}),
        (dqn(tmp_path, 3), {"agent": "wolpertinger", "compared_by": "mf"}),
        (made.config_of(tmp_path, *RANDOM), {"checkpoint": "/a/best.ckpt", "step": 50_000, "agent": "sac"}),
    ]
    found = names(*runs, root=tmp_path)
    assert found[1].startswith("dqn + oracle state")
    assert "mf" in found[2]
    assert found[3] == "sac (checkpoint, step 50,000)"
