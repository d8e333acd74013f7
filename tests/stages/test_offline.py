"""Collecting datasets and learning from them, as whole stages, at the smallest sizes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from slaterl.agents.loading import load_policy
from slaterl.agents.offline.base import OfflineAgent, with_actions
from slaterl.config.build import build_env
from slaterl.data import trajectories
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.evaluation.fqe import Estimate, fitted_q_evaluation
from slaterl.report.find import find
from slaterl.report.records import name_methods
from slaterl.run import run_stage
from slaterl.runs.files import fingerprint_of
from slaterl.runs.products import product_of
from slaterl.training import checkpoints
from tests.helpers import compose_config

SIZES = """scale=smoke device=cpu threads=1 env.num_items=60 env.num_topics=5 env.slate_size=4 env.episode_length=7
env.boredom_threshold=2 max_steps=24 random_steps=10 num_envs=5 batch_size=3 capacity=20 val_every_n_steps=10
val_users=6 test_users=6 save_every_n_steps=15 logged_data.trajectories=30 collect.trajectories=20 offline.max_steps=6
offline.batch_size=4 offline.val_every_n_steps=3 offline.val_users=6 offline.test_users=6
offline.save_every_n_steps=2 fqe.updates=3 fqe.members=2"""


def make(home: Path, *overrides: str) -> None:
    run_stage(compose_config(*SIZES.split(), f"paths.root={home}", *overrides))


def dataset(home: Path, name: str) -> Path:
    """The newest dataset called so."""
    return max((home / "collect").glob(f"*/{name}-*"), key=lambda path: path.stat().st_mtime)


def read(home: Path, name: str) -> Trajectories:
    return trajectories.load(dataset(home, name) / "trajectories.safetensors")[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a mixed dataset, its agent and its ranker."""
    home = tmp_path_factory.mktemp("made")
    make(home, "stage=collect", "dataset=mixed", "dataset.hidden=true")
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "home")
    return tmp_path / "home"


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """What was written to stderr since the last call, in one line."""
    return " ".join(capsys.readouterr().err.split())


def agent_run(home: Path) -> Path:
    (folder,) = (home / "online").glob("*/*")
    return folder


def test_mixture(made: Path) -> None:
    data = read(made, "mixed")
    assert data.slates.shape == (20, 8, 4)
    assert data.policy_id is not None and torch.bincount(data.policy_id.long()).tolist() == [2, 8, 6, 4]
    assert data.hidden["bored"].shape == (20, 7, 5)
    _, metadata = trajectories.load(dataset(made, "mixed") / "trajectories.safetensors")
    assert metadata["versions"]["torch"] == torch.__version__
    best, half = (fingerprint_of(agent_run(made) / name) for name in ("best.ckpt", "step15.ckpt"))
    about = [(b["name"], b["checkpoint"], b["noise"], b["trajectories"]) for b in metadata["behaviours"]]
    assert about == [
        ("expert", best, 0.0, 2),
        ("expert_with_noise", best, 0.3, 8),
        ("medium_with_noise", half, 0.3, 6),
        ("random", None, 0.0, 4),
    ]
    # the ranker of the others reads the actions of the random slates
    assert [b["actions"] for b in metadata["behaviours"]] == [*["recorded"] * 3, "read from the slates"]
    ranker = load_policy(agent_run(made) / "best.ckpt").policy.agent.ranker  # type: ignore[attr-defined]
    assert metadata["actions_of"] == ranker.fingerprint()
    assert data.actions is not None and data.actions.abs().max() <= 1
    served, random = data[data.policy_id < 3], data[data.policy_id == 3]
    assert served.actions is not None and random.actions is not None
    shown = ranker.rank(ranker.to_latent(served.actions.flatten(0, 1))).unflatten(0, served.actions.shape[:2])
    assert torch.equal(shown, served.slates[:, 1:].long())
    torch.testing.assert_close(random.actions, with_actions(random, ranker).actions)
    card = json.loads((dataset(made, "mixed") / "card.json").read_text())
    result = json.loads((dataset(made, "mixed") / "result.json").read_text())
    assert card["returns"]["mean"] == pytest.approx(result["return_mean"]) == pytest.approx(data.returns.mean().item())
    assert card["anchors"]["expert"]["return"] == result["expert_return"]
    assert card["anchors"]["most_frequent_slate"]["return"] == result["most_frequent_slate_return"]
    assert (dataset(made, "mixed") / "card.png").read_bytes()[:4] == b"\x89PNG"
    assert f"{result['return_mean']:.1f}" in (dataset(made, "mixed") / "card.md").read_text()


def test_frame_0_is_what_reset_shows_and_hidden_state_is_optional(home: Path) -> None:
    make(home, "stage=collect", "dataset=expert")
    data = read(home, "expert")
    first = build_env(compose_config(*SIZES.split()).env, torch.device("cpu")).first_slate
    assert (data.slates[:, 0] == first).all()
    assert data.hidden == {}
    assert read(home, "mixed").hidden != {}


def test_replay_is_the_buffer_of_the_run(home: Path) -> None:
    make(home, "stage=collect", "dataset=replay")
    state = checkpoints.load(agent_run(home) / "last.ckpt", "agent")["data"]["replay"]
    data = read(home, "replay")
    assert sorted(map(tuple, data.slates.flatten(1).tolist())) == sorted(
        map(tuple, state["columns"]["slates"].flatten(1).tolist())
    )
    assert data.actions is not None and data.actions.shape == (20, 7, 32)


def test_another_checkpoint_with_noise(home: Path) -> None:
    file = shutil.copy(agent_run(home) / "best.ckpt", home / "mine.ckpt")
    plainly = ["stage=collect", "dataset=expert"]
    make(home, *plainly)
    own = read(home, "expert")
    make(home, *plainly, f"dataset.behaviour.checkpoint={file}")
    assert torch.equal(read(home, "expert").slates, own.slates)
    make(home, *plainly, f"dataset.behaviour.checkpoint={file}", "dataset.behaviour.epsilon=1.0")
    shown = read(home, "expert").slates[:, 1:]
    assert shown.unique().numel() > 50 > own.slates[:, 1:].unique().numel()
    make(home, *plainly, "dataset.behaviour.noise=1.0")
    assert not torch.equal(read(home, "expert").slates, own.slates)


def test_sampled_with_the_exploration_of_training(home: Path) -> None:
    make(home, "stage=collect", "dataset=expert")
    plainly = read(home, "expert")
    assert len(plainly.slates[:, 1].unique(dim=0)) == 1  # all have seen the same slate and few clicks
    make(home, "stage=collect", "dataset=expert", "dataset.behaviour.sample=true")
    sampled = read(home, "expert")
    assert len(sampled.slates[:, 1].unique(dim=0)) > 10
    assert trajectories.load(dataset(home, "expert") / "trajectories.safetensors")[1]["behaviours"][0]["sample"] is True
    assert "expert (sampled)" in (dataset(home, "expert") / "card.md").read_text()
    with pytest.raises(UserError, match=r"sample=true of the behaviour random: it does not explore"):
        make(home, "stage=collect", "dataset=random", "dataset.behaviour.sample=true")
    with pytest.raises(UserError, match=r"behaviour.policy=replay: .* leave out sample, noise, epsilon"):
        make(home, "stage=collect", "dataset=replay", "dataset.behaviour.noise=0.5")


def test_result_has_what_to_compare_with(home: Path) -> None:
    """So a report needs no dataset: its mean return, and the constant slate of each slot's most frequent item."""
    make(home, "stage=offline", "agent=td3_bc", "dataset=mixed", "dataset.hidden=true")
    (file,) = (home / "offline").glob("*/*/result.json")
    result, data = json.loads(file.read_text()), json.loads((dataset(home, "mixed") / "result.json").read_text())
    assert result["dataset_return"] == data["return_mean"]
    assert result["most_frequent_slate_return"] == data["most_frequent_slate_return"] is not None


def test_sampled_from_an_agent_that_does_not_explore(home: Path) -> None:
    make(home, "stage=offline", "agent=td3_bc", "dataset=mixed", "dataset.hidden=true")
    (file,) = (home / "offline").glob("*/*/best.ckpt")
    with pytest.raises(UserError, match=r"sample=true of the behaviour medium: it does not explore"):
        make(home, "stage=collect", "dataset=medium", f"dataset.behaviour.checkpoint={file}")


def test_sampled_as_much_as_the_agent_explored_in_the_end(home: Path) -> None:
    """DQN's epsilon falls with its steps, which are the checkpoint's."""
    decay = ["agent.epsilon_decay=0.5", "agent.epsilon_end=0"]
    make(home, "agent=dqn", "ranker=none", *decay)
    (file,) = (home / "online").glob("*/dqn*/last.ckpt")
    about = f"dataset.behaviour.checkpoint={file}"
    make(home, "stage=collect", "dataset=expert", about)
    plainly = read(home, "expert")
    make(home, "stage=collect", "dataset=expert", about, "dataset.behaviour.sample=true")
    assert torch.equal(read(home, "expert").slates, plainly.slates)


def test_scores_of_another_expert_are_another_dataset(tmp_path: Path) -> None:
    """Also where the trajectories need none: its return, and the users of the anchors, are in the card."""
    cfg = compose_config(*SIZES.split(), f"paths.root={tmp_path}", "stage=collect", "dataset=random")
    digests = set()
    for key, value in (("seed", 3), ("dataset.run.seed", 1), ("max_steps", 40), ("dataset.run.seed", 58407201)):
        OmegaConf.update(cfg, key, value)
        digests.add(product_of(cfg, "collect").run.digest)
    assert len(digests) == 4


def test_a_log_is_not_compared_with_a_simulator_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = dict(slates=np.ones((28, 4)), clicks=np.zeros((28, 4)), episode_ids=np.repeat(range(4), 7))
    np.savez(tmp_path / "log.npz", **rows, timesteps=np.tile(np.arange(7), 4))
    make(tmp_path / "home", "stage=offline", "agent=bc", "dataset=file", f"dataset.path={tmp_path}/log.npz")
    said = told(capsys)
    assert "validating and testing on focused_topdown" in said and "offline.validation=user_model" in said
    assert (
        "The reference policies act in focused_topdown" in (dataset(tmp_path / "home", "file") / "card.md").read_text()
    )


def test_training_only_where_it_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset=medium.*not trained.*dataset.run.train=true"):
        make(tmp_path, "stage=collect", "dataset=medium", "dataset.run.train=false")
    assert not list(tmp_path.rglob("result.json"))


def test_a_checkpoint_that_the_run_did_not_keep(home: Path) -> None:
    with pytest.raises(UserError, match=r"step17.ckpt: no such"):
        make(home, "stage=collect", "dataset=medium", "dataset.run.medium_step=17")


def test_a_checkpoint_of_another_environment(home: Path) -> None:
    file = agent_run(home) / "best.ckpt"
    with pytest.raises(UserError, match=r"best.ckpt: learned in another environment: env.boredom_threshold is 2 .* 3"):
        make(
            home,
            "stage=collect",
            "dataset=expert",
            f"dataset.behaviour.checkpoint={file}",
            "env.boredom_threshold=3",
        )


def test_files_of_slaterl_that_do_not_fit(home: Path) -> None:
    source = dataset(home, "mixed") / "trajectories.safetensors"
    given = ["stage=collect", "dataset=file", f"dataset.path={source}"]
    make(home, *given)
    assert torch.equal(read(home, "file").slates, read(home, "mixed").slates)
    with pytest.raises(UserError, match=r"trajectories.safetensors: made with the item embeddings .*force=true"):
        make(home, *given, "env.item_embeddings.seed=5")
    with pytest.raises(UserError, match=r"trajectories.safetensors: trajectories of 7 turns .*expected 6 turns"):
        make(home, *given, "env.episode_length=6")
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"trajectories.safetensors: truncated"):
        make(home, *given)
    source.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"trajectories.safetensors: its content does not match"):
        make(home, *given)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (["stage=pretrain"], r"too few trajectories \(1\); pretrain\.holdout=0\.1 keeps 1"),
        (["stage=mf", "item_embeddings=mf"], r"too few clicks \(0\); item_embeddings\.holdout=0\.1 keeps 0"),
    ],
)
def test_log_of_one_session_without_clicks(stage: list[str], said: str, tmp_path: Path) -> None:
    """The message names the file that the user gave, not a number of trajectories that nobody set."""
    file = tmp_path / "log.npz"
    rows = dict(slates=np.ones((7, 4)), clicks=np.zeros((7, 4)), episode_ids=np.zeros(7), timesteps=np.arange(7))
    np.savez(file, **rows)
    with pytest.raises(UserError, match=rf"^dataset\.path={file}: {said} for validation"):
        make(tmp_path / "home", *stage, "logged_data.source=dataset", "dataset=file", f"dataset.path={file}")


@pytest.mark.parametrize(
    ("column", "wrong", "said"),
    [
        ("slates", 60, r"log.npz: slates of .*found 60.0, expected item ids 0..59"),
        ("clicks", float("nan"), r"log.npz: clicks of .*found nan, expected 0 or 1"),
    ],
)
def test_logs_that_are_wrong(column: str, wrong: float, said: str, tmp_path: Path) -> None:
    rows = dict(slates=np.ones((14, 4)), clicks=np.zeros((14, 4)), episode_ids=np.repeat([0, 1], 7))
    rows |= dict(timesteps=np.tile(np.arange(7), 2))
    rows[column][3, 2] = wrong
    np.savez(tmp_path / "log.npz", **rows)
    with pytest.raises(UserError, match=said):
        make(tmp_path / "home", "stage=collect", "dataset=file", f"dataset.path={tmp_path}/log.npz")


def test_out_by_minari_and_in_again(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(home / "minari"))
    make(home, "stage=export", "dataset=mixed", "dataset.hidden=true", "export.minari=slaterl/mixed-v0")
    assert minari.load_dataset("slaterl/mixed-v0").total_episodes == 20
    make(home, "stage=collect", "dataset=file", "dataset.path=minari:slaterl/mixed-v0")
    assert torch.equal(read(home, "file").slates, read(home, "mixed").slates)
    card = json.loads((dataset(home, "file") / "card.json").read_text())
    names = ["expert", "expert_with_noise", "medium_with_noise", "random"]
    assert [behaviour["name"] for behaviour in card["behaviours"]] == names
    with pytest.raises(UserError, match=r"minari:slaterl/mixed-v0: made with the item embeddings .*force=true"):
        make(
            home, "stage=collect", "dataset=file", "dataset.path=minari:slaterl/mixed-v0", "env.item_embeddings.seed=5"
        )
    exported = {file: file.stat().st_mtime_ns for file in (home / "minari").rglob("*")}
    capsys.readouterr()
    make(home, "stage=export", "dataset=mixed", "dataset.hidden=true", "export.minari=slaterl/mixed-v0")
    assert f"already exported: {home / 'minari' / 'slaterl' / 'mixed-v0'}" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"slaterl/mixed-v0: already exists"):  # of other data
        make(home, "stage=export", "dataset=random", "export.minari=slaterl/mixed-v0")
    assert {file: file.stat().st_mtime_ns for file in (home / "minari").rglob("*")} == exported


def test_rankers_learn_from_a_dataset(home: Path) -> None:
    source = ["dataset=mixed", "dataset.hidden=true", "logged_data.source=dataset"]
    make(home, "stage=pretrain", *source)
    manifests = [json.loads(path.read_text()) for path in (home / "pretrain").glob("*/*/manifest.json")]
    paths = {manifest["inputs"]["logged_data"]["path"].split("/")[-3] for manifest in manifests}
    assert paths == {"collect", "log_data"}


def test_what_a_ranker_is_chosen_by_is_of_all_behaviours(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a dataset one lies after the other; the first trajectories are held out, and span the action box."""
    given: list[Trajectories] = []

    def stop(data: Trajectories, *_: Any, **__: Any) -> None:
        given.append(data)
        raise InterruptedError

    monkeypatch.setattr("slaterl.stages.pretrain.SlateData", stop)
    with pytest.raises(InterruptedError):
        make(home, "stage=pretrain", "dataset=mixed", "dataset.hidden=true", "logged_data.source=dataset")
    (data,), recorded = given, read(home, "mixed")
    assert data.policy_id is not None and recorded.policy_id is not None
    assert data.policy_id.sort().values.tolist() == recorded.policy_id.tolist() != data.policy_id.tolist()
    assert len(data.policy_id[:6].unique()) > 1


def test_learning_without_a_simulator(home: Path) -> None:
    source = ["dataset=mixed", "dataset.hidden=true"]
    make(home, "stage=offline", "agent=bc", *source, "offline.validation=fqe")
    (file,) = (home / "offline").glob("*/*/result.json")
    result = json.loads(file.read_text())
    assert result["test_users"] is None and "random_return" not in result
    assert 0 <= result["test_return"] <= 28 and result["dataset"] == "mixed"
    # the best of several estimates would be too good; the test is another one
    assert result["test_return"] != result["val_return"]
    (record,) = [record for record in find(None, home) if "dataset" in record.result]
    assert name_methods([record]) == ["bc + gems_KL1.0_click0.5 + estimated by FQE"]


def test_estimates_while_training_are_of_all_the_data(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def estimate(agent: Any, data: Trajectories, **settings: Any) -> Estimate:
        sizes.append(len(data))
        return Estimate(1.0, 0.5, 2, 0.1)

    monkeypatch.setattr("slaterl.stages.estimated.fitted_q_evaluation", estimate)
    source = ["dataset=mixed", "dataset.hidden=true"]
    make(home, "stage=offline", "agent=pct_bc", *source, "offline.validation=fqe")
    assert set(sizes) == {20}


def test_estimates_of_a_run_beside_the_simulator(home: Path) -> None:
    source = ["dataset=mixed", "dataset.hidden=true"]
    make(home, "stage=offline", "agent=td3_bc", *source)
    (folder,) = (home / "offline").glob("*/*")
    make(home, "stage=evaluate", "evaluation=fqe", f"checkpoint={folder}", *source)
    (file,) = (home / "evaluate").glob("*/fqe-*/result.json")
    rows = json.loads(file.read_text())["checkpoints"]
    assert [row["checkpoint"] for row in rows] == ["step2.ckpt", "step4.ckpt", "step6.ckpt", "best.ckpt"]
    assert all(row["interval"] > 0 and row["simulated"] is not None for row in rows)
    assert (file.parent / "fqe.png").is_file()
    with pytest.raises(UserError, match="no checkpoints in this folder"):
        make(home, "stage=evaluate", "evaluation=fqe", f"checkpoint={home}", *source)


def test_slates_that_are_not_of_their_actions(home: Path) -> None:
    """Wolpertinger refines them: there is no action to disturb, and none to estimate the value of."""
    make(home, "stage=online", "agent=wolpertinger", "ranker=none", "item_embeddings=scratch")
    (file,) = (home / "online").glob("*/wolpertinger*/best.ckpt")
    behaviour = [f"dataset.behaviour.checkpoint={file}", "dataset.behaviour.noise=0.5"]
    with pytest.raises(UserError, match=r"noise=0.5 of the behaviour expert: it has no latent actions"):
        make(home, "stage=collect", "dataset=expert", *behaviour)
    with pytest.raises(UserError, match=r"best.ckpt: evaluation=fqe needs an agent .*, unlike agent=wolpertinger"):
        make(home, "stage=evaluate", "evaluation=fqe", f"checkpoint={file}", "dataset=random")


def test_estimates_of_a_checkpoint_of_other_slates(home: Path) -> None:
    file = agent_run(home) / "best.ckpt"
    with pytest.raises(
        UserError, match=r"best.ckpt: learned in another environment: env.slate_size is 4 there, but 5 here"
    ):
        make(home, "stage=evaluate", "evaluation=fqe", f"checkpoint={file}", "dataset=random", "env.slate_size=5")


@pytest.mark.parametrize("evaluation", ["simulator", "fqe"])
def test_precision_is_part_of_the_evaluation_of_a_checkpoint(evaluation: str, home: Path) -> None:
    of_it = ["stage=evaluate", f"evaluation={evaluation}", f"checkpoint={agent_run(home) / 'best.ckpt'}"]
    names = {
        product_of(compose_config(f"paths.root={home}", f"matmul_precision={precision}", *of_it), "evaluate").run.path
        for precision in ("highest", "medium")
    }
    assert len(names) == 2


def test_estimates_value_slates_whichever_actions_were_recorded(home: Path) -> None:
    """Those of data and policy are read from slates, because recorded ones may be of another box or ranker."""
    data, other = read(home, "mixed"), read(home, "mixed")
    assert other.actions is not None
    other.actions = -other.actions
    agent = load_policy(agent_run(home) / "best.ckpt").policy.agent  # type: ignore[attr-defined]
    settings = dict(num_items=60, discount=0.8, updates=3, batch_size=4, members=2, hidden=8, lr=1e-2, tau=0.05, seed=0)
    assert fitted_q_evaluation(agent, data, **settings) == fitted_q_evaluation(agent, other, **settings)


def test_estimates_from_hardly_any_data(home: Path) -> None:
    """Bootstrap samples of one trajectory, of which some are empty."""
    data = read(home, "mixed")[:1]
    agent = load_policy(agent_run(home) / "best.ckpt").policy.agent  # type: ignore[attr-defined]
    settings = dict(num_items=60, discount=0.8, updates=2, batch_size=4, hidden=8, tau=0.05, seed=0)
    found = fitted_q_evaluation(agent, data, members=12, lr=1e-3, **settings)
    assert math.isfinite(found.mean_return) and math.isfinite(found.interval)
    with pytest.raises(UserError, match=r"fqe.lr=1e\+30: .*diverged"):
        fitted_q_evaluation(agent, data, members=2, lr=1e30, **settings)


def test_actions_of_different_rankers_are_not_put_together(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(home, "stage=online", "agent=sac", "ranker=k_head_argmax", "item_embeddings=ideal")
    (file,) = (home / "online").glob("*/sac-k_head*/best.ckpt")
    given = ["stage=collect", "dataset=medium_expert", f"dataset.behaviours.medium.checkpoint={file}"]
    with pytest.raises(UserError, match=r"dataset.actions=true: the behaviours act through different rankers"):
        make(home, *given, "dataset.actions=true")
    make(home, *given)
    assert "no actions are recorded: the behaviours act through different rankers" in told(capsys)
    assert read(home, "medium_expert").actions is None
    card = (dataset(home, "medium_expert") / "card.md").read_text()
    assert card.count("none: the behaviours act through different rankers") == 2


def test_slates_with_random_items_are_not_those_of_their_actions(home: Path) -> None:
    make(home, "stage=collect", "dataset=expert", "dataset.behaviour.epsilon=0.5")
    assert read(home, "expert").actions is None
    with pytest.raises(UserError, match=r"dataset.actions=true: no behaviour has actions .* epsilon"):
        make(home, "stage=collect", "dataset=expert", "dataset.behaviour.epsilon=0.5", "dataset.actions=true")


def learned(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The actions of every dataset that an agent learns from now on, in the box of the ranker that they belong to."""
    found: list[torch.Tensor] = []
    fit_box = OfflineAgent.fit_box

    def kept(self: OfflineAgent, data: Trajectories) -> Trajectories:
        assert data.actions is not None
        found.append(data.actions)
        return fit_box(self, data)

    monkeypatch.setattr(OfflineAgent, "fit_box", kept)
    return found


def test_labels(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Recorded actions are learned where they are of the agent's own ranker, and the choice is part of the run."""
    found = learned(monkeypatch)
    source = ["stage=offline", "agent=bc", "dataset=medium"]
    make(home, *source)
    assert "offline.actions=auto: recorded, because" in told(capsys)
    make(home, *source, "offline.actions=recorded")
    make(home, *source, "offline.actions=encoded")
    assert "offline.actions" not in told(capsys)
    data, ranker = read(home, "medium"), load_policy(agent_run(home) / "best.ckpt").policy.agent.ranker  # type: ignore[attr-defined]
    read_back = with_actions(data, ranker).actions
    assert data.actions is not None and read_back is not None and not torch.equal(data.actions, read_back)
    for actions, expected in zip(found, (data.actions, data.actions, read_back), strict=True):
        torch.testing.assert_close(actions, expected)
    results = [json.loads(file.read_text()) for file in (home / "offline").glob("*/bc-*/result.json")]
    assert sorted(result["actions"] for result in results) == ["encoded", "recorded", "recorded"]


def test_labels_of_another_ranker(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = learned(monkeypatch)
    source = ["stage=offline", "agent=bc", "dataset=medium", "ranker_seed=3"]
    with pytest.raises(UserError, match=r"offline.actions=recorded: the dataset's actions are of the ranker \w{16}"):
        make(home, *source, "offline.actions=recorded")
    make(home, *source)
    said = told(capsys)
    assert "offline.actions=auto: encoded, because the dataset's actions are of the ranker" in said
    assert "agent=slate_bc" in said
    data = read(home, "medium")
    assert data.actions is not None and not torch.equal(found[-1], data.actions)
    with pytest.raises(UserError, match=r"offline.actions=recorded: the dataset has no recorded actions; use auto"):
        make(home, *source, "dataset.actions=false", "offline.actions=recorded")


def test_recorded_actions_come_along_with_a_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = dataset(home, "mixed") / "trajectories.safetensors"
    make(home, "stage=offline", "agent=bc", "dataset=file", f"dataset.path={file}", "offline.actions=recorded")
    data, metadata = trajectories.load(file)
    del metadata["checksum"]
    trajectories.save(home / "old.safetensors", data, {**metadata, "actions_of": None})
    make(home, "stage=offline", "agent=bc", "dataset=file", f"dataset.path={home}/old.safetensors")
    assert "encoded, because the dataset does not say which ranker its actions belong to" in told(capsys)


def test_anchors_are_those_of_the_dataset_and_not_of_who_asked_first(tmp_path: Path) -> None:
    results = []
    for seed in (1, 2):
        make(tmp_path / str(seed), "stage=collect", "dataset=random", f"seed={seed}")
        results.append(json.loads((dataset(tmp_path / str(seed), "random") / "result.json").read_text()))
        del results[-1]["seconds"]
    assert results[0] == results[1]


def test_online_from_offline(home: Path) -> None:
    source = ["dataset=mixed", "dataset.hidden=true"]
    make(home, "stage=offline", "agent=cql", *source)
    (start,) = (home / "offline").glob("*/*/best.ckpt")
    sizes = ["agent.q_hidden=[256,256]", "agent.pi_hidden=[256,256]", "agent.layer_norm=true"]
    with pytest.raises(UserError, match=r"best.ckpt: .* there, but .* here; give the settings"):
        make(home, f"init_from={start}")
    with pytest.raises(
        UserError, match=r"agent=cql returns means and deviations, but this agent needs actions; agent=sac"
    ):
        make(home, "agent=td3", f"init_from={start}", *sizes)
    with pytest.raises(UserError, match=r"learned with ranker.unique=false"):
        make(home, f"init_from={start}", "ranker.unique=true", *sizes)
    with pytest.raises(UserError, match="another ranker"):
        make(home, f"init_from={start}", "ranker_seed=4", *sizes)
    with pytest.raises(UserError, match=r"init_from=.*best.ckpt: .* env.boredom_threshold is 2 there, but 3 here"):
        make(home, f"init_from={start}", "env.boredom_threshold=3", *sizes)
    # one update at a rate of nearly nothing: what was learned offline is where it begins
    still = ["agent.q_lr=1e-12", "agent.pi_lr=1e-12", "agent.alpha_lr=1e-12", "random_steps=23"]
    make(home, f"init_from={start}", *sizes, *still)
    (folder,) = (path.parent for path in (home / "online").glob("*/*from_cql*/last.ckpt"))
    learned, began = (checkpoints.load(path, "agent")["learner"]["module"] for path in (folder / "last.ckpt", start))
    for name in ("actor.0.weight", "actor_belief.weight_hh", "critics.members.1.2.weight", "log_alpha"):
        torch.testing.assert_close(learned[name], began[name], rtol=0, atol=1e-9)
    for name in ("ranker.center", "ranker.half_width"):  # the box of the data, in which the policy acts
        assert torch.equal(learned[name], began[name])
    made_of = json.loads((folder / "manifest.json").read_text())["spec"]["init_from"]
    assert made_of == fingerprint_of(start)


def test_a_dataset_is_one_file_that_says_what_made_it(made: Path) -> None:
    columns = load_file(dataset(made, "mixed") / "trajectories.safetensors")
    assert {"slates", "clicks", "policy_id"} <= set(columns)
    assert columns["slates"].dtype == columns["clicks"].dtype == torch.uint8
