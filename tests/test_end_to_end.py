"""The command line as users meet it: all stages, interruptions, mistakes."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from slaterl.errors import UserError
from slaterl.paths import CONF
from slaterl.run import run_stage
from slaterl.training import checkpoints, metrics

KILLER = str(Path(__file__).parent / "killer.py")
ENVIRONMENTS = [f"{items}_{clicks}" for items in ("focused", "diffuse") for clicks in ("topdown", "mix", "divpen")]
# the smallest job that has several checkpoints in each stage
SMOKE = ["scale=smoke", "device=cpu", "threads=1", "pretrain.epochs=3"]


def run(home: Path, *arguments: str, script: list[str] | None = None, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, *(script or ["-m", "slaterl.run"]), *arguments]
    environment = {**os.environ, "SLATERL_HOME": str(home), "COLUMNS": "200"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=home.parent, **options)


def folder(done: subprocess.CompletedProcess) -> Path:
    """The run's folder: the last line on stdout."""
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


def results(home: Path) -> dict[str, dict]:
    """Every result.json below home but for the times, which no two runs share."""
    found = {}
    for file in sorted(home.glob("*/*/*/result.json")):
        entries = json.loads(file.read_text()).items()
        found[str(file.relative_to(home))] = {key: value for key, value in entries if "seconds" not in key}
    return found


def same_results(home: Path, undisturbed: Path) -> bool:
    """Whether home holds the results of one main job, equal to the undisturbed ones."""
    found, expected = results(home), results(undisturbed)
    return len(found) == 3 and all(expected[name] == result for name, result in found.items())


def rows(file: Path) -> list[list[str]]:
    """metrics.csv but for times and speeds."""
    lines = [line.split(",") for line in file.read_text().splitlines()]
    keep = [i for i, name in enumerate(lines[0]) if not name.startswith(("time/", "speed/"))]
    return [[line[i] for i in keep] for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    folder(run(home, *SMOKE))
    return home


@pytest.fixture
def first(undisturbed: Path) -> Path:
    """The folder of the agent of `undisturbed`, to which other tests add runs of other settings."""
    runs = undisturbed.glob("online/focused_topdown/*/manifest.json")
    return min(runs, key=lambda file: json.loads(file.read_text())["started"]).parent


def test_same_command_twice_is_one_run(undisturbed: Path, first: Path) -> None:
    before = {
        file: file.stat().st_mtime_ns for file in undisturbed.rglob("*") if file.suffix in (".ckpt", ".json", ".csv")
    }
    again = run(undisturbed, *SMOKE)
    assert folder(again) == first
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert "already finished" in again.stderr
    assert "short-term oracle" in again.stderr


def test_what_a_run_leaves(first: Path) -> None:
    online = first
    names = {file.name for file in online.iterdir()}
    expected = {"manifest.json", "result.json", "metrics.csv", "curves.png", "best.ckpt", "last.ckpt"}
    kept = {"step30.ckpt", "step60.ckpt", "kept-step40.ckpt", "kept-step60.ckpt"}
    assert names - {".lock"} == expected | kept
    manifest = json.loads((online / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert Path(manifest["inputs"]["ranker"]["path"]).is_dir()
    assert (online / "curves.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((online / "result.json").read_text())
    assert all(not isinstance(value, dict | list) for value in result.values())
    assert (result["steps"], result["updates"], result["trajectories"], result["turns"]) == (60, 40, 60, 1200)


def test_evaluate_needs_the_checkpoint_alone(first: Path, tmp_path: Path) -> None:
    online = first
    alone = tmp_path / "somewhere.ckpt"
    alone.write_bytes((online / "best.ckpt").read_bytes())
    evaluated = folder(run(tmp_path / "home", "stage=evaluate", f"checkpoint={alone}", "device=cpu", "threads=1"))
    found, expected = (json.loads((path / "result.json").read_text()) for path in (evaluated, online))
    for name in ("test_return", "test_interval", "test_distinct_items", "oracle_return", "random_return"):
        assert found[name] == expected[name]

    other = run(tmp_path / "home", "stage=evaluate", f"checkpoint={alone}", "env=diffuse_mix")
    assert other.returncode == 2 and "force=true" in other.stderr and "Traceback" not in other.stderr
    smaller = run(tmp_path / "home", "stage=evaluate", f"checkpoint={alone}", "env.num_items=500")
    assert smaller.returncode == 2 and "1000 items" in smaller.stderr and "500" in smaller.stderr


def test_killed_again_and_again(undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL between writing and renaming, and between two updates, through all stages: the same results."""
    home, kills = tmp_path / "home", 0
    for point in ["replace:2", "replace:4", "update:7", "replace:7", "update:4", "update:3", "update:21", "replace:9"]:
        done = run(home, *SMOKE, script=[KILLER, point])
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
    assert kills >= 6, "the job was over before it was killed in each stage"
    folder(run(home, *SMOKE))
    assert same_results(home, undisturbed)
    for file in home.glob("*/*/*/metrics.csv"):
        assert rows(file) == rows(undisturbed / file.relative_to(home))
    assert not list(home.rglob("*.partial"))


def test_sigterm_saves_and_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    # 3 epochs of pretraining are 15 updates: this is the 12th of the agent, between two validations
    done = run(home, *SMOKE, script=[KILLER, "term:27"])
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    online = next(home.glob("online/*/*"))
    assert json.loads((online / "manifest.json").read_text())["status"] == "interrupted"
    again = run(home, *SMOKE)
    assert "resuming from step 32" in again.stderr
    folder(again)
    assert same_results(home, undisturbed)


def test_another_number_of_threads_warns(undisturbed: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert run(home, *SMOKE, script=[KILLER, "term:27"]).returncode == 128 + signal.SIGTERM
    again = run(home, *SMOKE, "threads=2")
    (online,) = home.glob("online/*/*")
    assert folder(again) == online
    written = f"{online / 'last.ckpt'} was written with threads=1"
    differ = "the results will differ from those of an undisturbed run"
    assert again.stderr.count("warning") == again.stderr.count(f"warning: threads=2, but {written}; {differ}") == 1
    threads = {file.parts[-4]: json.loads(file.read_text())["threads"] for file in home.glob("*/*/*/manifest.json")}
    assert threads == {"log_data": 1, "pretrain": 1, "online": 2}


def test_auto_resumes_with_the_threads_of_the_run(undisturbed: Path, tmp_path: Path) -> None:
    """On a machine with free cores it would take two."""
    home = tmp_path / "home"
    assert run(home, *SMOKE, script=[KILLER, "term:27"]).returncode == 128 + signal.SIGTERM
    free = "import slaterl.cores; slaterl.cores.free_cores = lambda: 2; from slaterl.run import main; main()"
    again = run(home, *SMOKE, "threads=auto", script=["-c", free])
    assert json.loads((folder(again) / "manifest.json").read_text())["threads"] == 1
    assert "resuming from step 32" in again.stderr and "warning" not in again.stderr
    assert same_results(home, undisturbed)


def test_closed_terminal_saves_and_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    """SIGHUP arrives twice, from the kernel and from the shell; the second must not hurry the first."""
    home = tmp_path / "home"
    done = run(home, *SMOKE, script=[KILLER, "hup:27"])
    assert done.returncode == 128 + signal.SIGHUP, done.stderr
    assert "interrupted by signal 1: saved at step 32; rerun the same command to resume" in done.stderr
    online = next(home.glob("online/*/*"))
    assert json.loads((online / "manifest.json").read_text())["status"] == "interrupted"
    again = run(home, *SMOKE)
    assert "resuming from step 32" in again.stderr
    folder(again)
    assert same_results(home, undisturbed)


@pytest.mark.parametrize(
    ("point", "saved"),
    [
        (2, "nothing was saved; rerun the same command to start again"),  # in the first epoch of pretraining
        (7, "nothing new was saved; rerun the same command to resume from step 5"),  # after its validation
        (37, "nothing new was saved; rerun the same command to resume from step 40"),
    ],
)
def test_two_quick_ctrl_c_say_what_is_saved(point: int, saved: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    heeding = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    done = run(home, *SMOKE, script=[KILLER, f"int_int:{point}"], preexec_fn=heeding)
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert done.stderr.splitlines()[-1] == f"interrupted by signal 2: {saved}"
    manifests = [json.loads(file.read_text()) for file in home.glob("*/*/*/manifest.json")]
    assert "running" not in [manifest["status"] for manifest in manifests]
    again = run(home, *SMOKE)
    assert folder(again)
    step = saved.rpartition("step ")[2] if "step" in saved else None
    assert (f"resuming from step {step}" in again.stderr) == (step is not None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+agent.gama=0.9"], "agent.gama: no such setting; did you mean gamma?"),
        (["agent.gamma=1.5"], "agent.gamma=1.5"),
        (["agent.q_lr=inf"], "agent.q_lr=inf"),
        (["agent.target_entropy_scale=inf"], "agent.target_entropy_scale=inf"),
        (["env.num_items=0"], "env.num_items=0"),
        (["ranker.latent_dim=-1"], "ranker.latent_dim=-1"),
        (["max_steps=-5"], "max_steps=-5"),
        (["env.item_embeddings.path=/nowhere.pt"], "/nowhere.pt"),
        (["ranker=none"], "ranker=gems"),
        (["paths.root=5"], "paths.root=5: expected a folder"),
        (["agent=random"], "stage=evaluate"),
        (["stage=evaluate"], "checkpoint"),
        (["ranker=none", "checkpoint=x"], "checkpoint=x: only stage=evaluate"),
        (["env.click_model=mixPBM"], "use click_model=mixPBM"),
        (["env.item_embeddings=foo.pt"], "use env.item_embeddings.path="),
        (["+gamma=0.9"], "did you mean agent.gamma?"),
        (["agent._target_=foo.bar"], "agent._target_=foo.bar"),
        (["agent.target_entropy_scale=abc"], "agent.target_entropy_scale=abc"),
        (["stage=evaluate", "checkpoint=/nowhere.ckpt"], "/nowhere.ckpt"),
        (["stage=evaluate", "agent=constant_slate", "agent.slate=5"], "agent.slate=5: expected 10 item ids"),
        (["stage=evaluate", "agent=epsilon_oracle", "agent.epsilon=2"], "agent.epsilon=2: expected"),
        (["stage=report", "report.runs=3"], "report.runs=3: expected folders"),
        (["stage=report", "report.runs=[]"], "report.runs=[]: expected folders"),
        (["stage=report", "report.against=3"], "report.against=3: expected the name of a method in the report"),
    ],
)
def test_mistakes_start_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLATERL_HOME", str(tmp_path / "home"))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["scale=smoke", *arguments])
    with pytest.raises(UserError, match=re.escape(message)):
        run_stage(cfg)
    assert not (tmp_path / "home").exists(), "nothing may be left of a job that never started"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("agent.gama=0.9", "gama"),
        ("report.users=7", "error: report.users: stage=online does not read it"),
        ("env=moon", "moon"),
        ("device=gpu", "error: device=gpu: expected auto, cpu or cuda"),
    ],
)
def test_mistakes_end_in_one_message(argument: str, message: str, tmp_path: Path) -> None:
    done = run(tmp_path / "home", "scale=smoke", argument)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    done = run(tmp_path / "home", "scale=smoke")
    assert done.returncode == 2 and str(tmp_path / "home") in done.stderr and "Traceback" not in done.stderr


def test_full_disk(undisturbed: Path, tmp_path: Path) -> None:
    """Files cannot grow beyond what the manifest needs: the error names the file, and nothing half-written stays."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = run(tmp_path / "home", *SMOKE, preexec_fn=limit)
    assert done.returncode == 2 and "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "home").rglob("*.partial"))
    folder(run(tmp_path / "home", *SMOKE))
    assert same_results(tmp_path / "home", undisturbed)


def test_diverging_loss_names_term_and_step(undisturbed: Path) -> None:
    """NaN stops the run; what was saved before it loads and is finite."""
    # the first validation comes one step after the first update, the second long after everything is NaN
    done = run(undisturbed, *SMOKE, "agent.q_lr=1e30", "val_every_n_steps=21")
    assert done.returncode == 2
    assert re.search(r"error: (loss|value)/\w+ is not finite since step 2\d;", done.stderr)
    assert "Traceback" not in done.stderr
    failed = [file for file in undisturbed.glob("online/*/*/manifest.json") if '"failed"' in file.read_text()]
    saved = list(failed[0].parent.glob("*.ckpt"))
    assert saved, "the first validation saves a checkpoint"
    for file in saved:
        tensors = checkpoints.load(file, "agent")["learner"]["module"].values()
        assert all(tensor.isfinite().all() for tensor in tensors)


def test_part_of_the_environment_of_a_checkpoint(undisturbed: Path, tmp_path: Path) -> None:
    """What the command line says of the environment changes the checkpoint's own, and nothing else of it."""
    trained = folder(run(undisturbed, *SMOKE, "env=focused_divpen", "env.boredom_threshold=3"))
    arguments = [f"checkpoint={trained / 'best.ckpt'}", "env.episode_length=7", "click_model=tdPBM", "threads=1"]
    found = folder(run(tmp_path / "home", "stage=evaluate", *arguments))
    assert found.parent.name == "focused_divpen"
    spec = json.loads((found / "manifest.json").read_text())["spec"]["env"]
    assert (spec["diversity_penalty"], spec["boredom_threshold"], spec["episode_length"]) == (3, 3, 7)
    assert spec["click_model"]["bottom_weight"] == 0


def test_all_environments(undisturbed: Path) -> None:
    """One process a job would spend its time on imports: the stages are called as run.py calls them."""
    script = (
        "import sys\n"
        "from hydra import compose, initialize_config_dir\n"
        "from slaterl.paths import CONF\n"
        "from slaterl.run import run_stage\n"
        "with initialize_config_dir(str(CONF), version_base='1.3'):\n"
        "    for env in sys.argv[1:]:\n"
        "        run_stage(compose('config', [f'env={env}', 'scale=smoke', 'threads=1', 'device=cpu']))\n"
    )
    done = run(undisturbed, *ENVIRONMENTS, script=["-c", script])
    assert done.returncode == 0, done.stderr
    for env in ENVIRONMENTS:
        online = list(undisturbed.glob(f"online/{env}/*/result.json"))
        assert online and json.loads(online[0].read_text())["env"] == env


def in_process(home: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Path:
    """The run's folder, without a process of its own."""
    monkeypatch.setenv("SLATERL_HOME", str(home))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*SMOKE, *arguments])
    run_stage(cfg)
    return max(home.glob(f"{cfg.stage.name}/*/*"), key=lambda path: path.stat().st_mtime)


def test_validation_does_not_move_training(undisturbed: Path, first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validating more often, with more users, changes no number of the training itself."""
    often = in_process(undisturbed, monkeypatch, "val_every_n_steps=10", "val_users=13")
    assert often != first
    files = [metrics.read(path / "metrics.csv") for path in (often, first)]
    for column in ("loss/critic", "loss/actor", "policy/entropy", "train/return"):
        assert [row[column] for row in files[0]] == [row[column] for row in files[1]]


def test_benchmark(undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = in_process(undisturbed, monkeypatch, "stage=benchmark", "benchmark.repeats=1")
    result = json.loads((found / "result.json").read_text())
    for name in ("simulator_turns_per_s", "pretrain_slates_per_s", "online_step_s", "validation_s", "estimate_s"):
        assert result[name] > 0


def test_swanlab_offline_beside_csv(undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another logger changes neither metrics.csv nor the result, and writes in the run's folder alone."""
    home = undisturbed.parent / "swanlab"
    monkeypatch.chdir(undisturbed.parent)
    found = in_process(home, monkeypatch, "logger=[csv,swanlab]", "logger.swanlab.mode=offline")
    assert list(found.glob("swanlog/run-*"))
    assert not (undisturbed.parent / "swanlog").exists()
    assert same_results(home, undisturbed)
