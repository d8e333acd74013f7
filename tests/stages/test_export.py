"""stage=export with a checkpoint: a folder that serves users without slaterl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("polars")

from slaterl.agents.loading import load_policy
from slaterl.config.check import check_config
from slaterl.data.formats import checks
from slaterl.envs.observation import Observation
from slaterl.errors import UserError
from slaterl.run import run_stage
from slaterl.stages.exported import exported_policy
from tests.docs.pages import ROOT, blocks
from tests.helpers import compose_config
from tests.stages.test_logged import SIZES, log_of, make, only

ONLINE = [*SIZES.split(), "max_steps=12", "random_steps=10", "num_envs=5", "batch_size=3"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A home with an agent that learned from a log, the log, and the agent's checkpoint."""
    home = tmp_path_factory.mktemp("home")
    path = log_of(home)
    make(
        home, path, "stage=offline", "agent=slate_bc", "agent.pi_lr=0.3", "agent.unique=true", "offline.validation=none"
    )
    return home, path, only(home, "offline/*/*/best.ckpt")


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A home with an agent that learned in the simulator, and its checkpoint."""
    home = tmp_path_factory.mktemp("online")
    run_stage(compose_config(*ONLINE, f"paths.root={home}", "agent=dqn"))
    return home, only(home, "online/*/*/best.ckpt")


def export(home: Path, checkpoint: Path, *more: str) -> None:
    run_stage(compose_config(*SIZES.split(), f"paths.root={home}", "stage=export", f"checkpoint='{checkpoint}'", *more))


def without_slaterl(folder: Path) -> dict[str, str]:
    """The environment of a process that cannot import slaterl."""
    (folder / "slaterl").mkdir(parents=True)
    (folder / "slaterl" / "__init__.py").write_text("raise ImportError('no slaterl here')")
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def test_the_example_of_the_page_serves_a_user(learned: tuple[Path, Path, Path], tmp_path: Path) -> None:
    home, _, checkpoint = learned
    export(home, checkpoint)
    folder = only(home, "export/*/*")
    assert folder.name.startswith("slate_bc-step4-") and folder.parent.name == "shop log"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock", "manifest.json", "policy.json", "policy.pt2", "result.json"
    ]  # fmt: skip
    assert json.loads((folder / "result.json").read_text())["same_slates"] == 1
    ids = json.loads((folder / "policy.json").read_text())["items"]
    assert ids == json.loads(only(home, "collect/*/*/items.json").read_text())["ids"]

    agent = load_policy(checkpoint).policy.agent  # type: ignore[attr-defined]
    policy = agent.policy()
    policy.reset(1)
    slate, clicks, lines, answers = torch.arange(3).unsqueeze(0), torch.zeros(1, 3, dtype=torch.bool), [], []
    for turn in range(8):
        slate = policy.act(Observation(slate, clicks), deterministic=True).slate
        clicks = torch.tensor([[turn % 2 == 0, turn % 3 == 0, True]])
        shown = [ids[item] for item in slate[0]]
        lines.append(" ".join(shown))
        answers.append(" ".join(item for item, click in zip(shown, clicks[0], strict=True) if click))
    assert len(set(lines)) > 1

    (page,) = (block for block in blocks(ROOT / "docs" / "serving.md") if block.marker == "file: serve.py")
    assert len(page.text.splitlines()) <= 25
    (tmp_path / "serve.py").write_text(page.text)
    env = without_slaterl(tmp_path / "stub")
    (tmp_path / "other.py").write_text("import slaterl")

    def run(script: str, said: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tmp_path / script), str(folder)]
        return subprocess.run(command, input=said, text=True, env=env, capture_output=True)

    assert "no slaterl here" in run("other.py", "").stderr
    done = run("serve.py", "\n".join(answers[:-1]) + "\n\n")
    assert done.returncode == 0 and done.stdout.splitlines() == lines, done.stderr


def test_items_of_a_simulator(online: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    home, checkpoint = online
    export(home, checkpoint)
    folder, env = only(home, "export/focused_topdown/*"), load_policy(checkpoint).env
    about = json.loads((folder / "policy.json").read_text())
    assert about["items"] is None and about["num_items"] == env.num_items
    assert about["first_slate"] == env.first_slate.tolist()
    assert "100.0% of 1,000 slates as slaterl shows them" in capsys.readouterr().err
    written = (folder / "policy.pt2").stat().st_mtime_ns
    export(home, checkpoint)
    assert "already finished" in capsys.readouterr().err and (folder / "policy.pt2").stat().st_mtime_ns == written


def test_a_checkpoint_of_an_older_version_has_no_ids(
    learned: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(learned[2], weights_only=True)
    del state["config"]["item_ids"]
    torch.save(state, tmp_path / "old.ckpt")
    export(tmp_path, tmp_path / "old.ckpt")
    assert "the policy shows numbers of items" in capsys.readouterr().err
    assert json.loads(only(tmp_path, "export/*/*/policy.json").read_text())["items"] is None


def test_nothing_is_half_written(online: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(program: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(UserError, match=r"policy.pt2: cannot be written .No space left on device"):
        export(tmp_path, online[1])
    assert not [path for path in tmp_path.rglob("policy*")]
    assert json.loads(only(tmp_path, "export/*/*/manifest.json").read_text())["status"] == "failed"


def test_packages_of_onnx(online: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(checks, "import_module", missing)
    with pytest.raises(UserError, match=r"export.onnx=true: needs the package onnx: pip install 'slaterl\[onnx\]'"):
        export(tmp_path, online[1], "export.onnx=true")
    assert not (tmp_path / "export").exists()


def test_agents_that_read_the_simulator(tmp_path: Path) -> None:
    run_stage(compose_config(*ONLINE, f"paths.root={tmp_path}", "agent=dqn", "belief=none"))
    with pytest.raises(UserError, match=r"agent=dqn reads its users' hidden state, which only a simulator shows"):
        export(tmp_path, only(tmp_path, "online/*/*/best.ckpt"))
    assert not (tmp_path / "export").exists()


def test_planners_are_refused_before_a_folder_is_made(
    online: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slaterl.agents.base.Agent.KEEPS_PLANS", True)
    with pytest.raises(UserError, match="DQN keeps plans between turns"):
        export(tmp_path, online[1])
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("", "stage=export: give checkpoint=<file> to export a policy (agents that do not learn have none), or"),
        ("agent=short_term_oracle", "stage=export: give checkpoint=<file>"),
        ("export.minari=a/b-v0 checkpoint=x.ckpt", "export.minari: checkpoint=... exports a policy, and"),
        ("export.minari=a/b-v0 export.onnx=true", "export.onnx=true: only a policy (checkpoint=...)"),
        ("checkpoint=gone.ckpt", "gone.ckpt: no such checkpoint"),
        ("export.onnx=perhaps", "export.onnx=perhaps: expected"),
    ],
)
def test_what_cannot_be_exported(tmp_path: Path, settings: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        run_stage(compose_config(*SIZES.split(), f"paths.root={tmp_path}/home", "stage=export", *settings.split()))
    assert str(error.value).startswith(said)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("env", "env: a policy is exported for the items that it learned on; leave it out"),
        ("click_model", "click_model: a policy is exported for"),
        ("dataset", "dataset: a policy is exported for"),
        ("agent.gamma", "agent: checkpoint=x has its own; leave it out"),
    ],
)
def test_settings_that_nothing_would_read(monkeypatch: pytest.MonkeyPatch, key: str, said: str) -> None:
    monkeypatch.setattr("slaterl.stages.exported.given_keys", lambda: {key, "checkpoint"})
    cfg = compose_config("stage=export", "checkpoint=x")
    check_config(cfg)
    with pytest.raises(UserError) as error:
        exported_policy(cfg)
    assert str(error.value).startswith(said)
