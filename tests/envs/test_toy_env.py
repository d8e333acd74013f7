"""Stages in a stranger's environment (tests/envs/toy.py), whose items have no topics and whose reward is not clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slaterl.agents.loading import load_policy
from slaterl.agents.losses import discounted_to_go
from slaterl.config.build import build_env
from slaterl.data import trajectories
from slaterl.data.trajectories import Trajectories
from slaterl.envs.env import Env
from slaterl.envs.gymnasium import SlateEnv
from slaterl.errors import UserError
from slaterl.evaluation.evaluate import anchors, evaluate, measure_names
from slaterl.evaluation.show import show_result
from slaterl.report.episodes import TopicEpisodes, watch
from slaterl.rollout import Decision, rollout
from slaterl.run import run_stage
from slaterl.runs.files import read_json
from slaterl.seeds import stream
from slaterl.training import metrics
from tests.envs.toy import Toy
from tests.helpers import compose_config

YAML = """_target_: tests.envs.toy.Toy
name: toy
num_items: 40
slate_size: 4
episode_length: 20
period: 5
bonus: 2.5
"""
SMALL = ["env=toy", "scale=smoke", "device=cpu", "threads=1", "logged_data.epsilon=1", "logged_data.trajectories=30"]
BONUS = torch.tensor([2.5, 1, 1, 1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a user's own configuration, with env/toy.yaml."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "env").mkdir()
    (folder / "env" / "toy.yaml").write_text(YAML)
    return folder


def run(folder: Path, home: Path, *overrides: str) -> float | None:
    return run_stage(compose_config(f"hydra.searchpath=[file://{folder}]", *SMALL, f"paths.root={home}", *overrides))


@pytest.fixture(scope="module")
def home(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage, one after the other in one process."""
    home = tmp_path_factory.mktemp("toy") / "home"
    run(folder, home, "agent=sac", "ranker=gems")
    run(folder, home, "agent=td3", "ranker=k_head_argmax", "item_embeddings=scratch")
    (best,) = home.glob("online/toy/sac-*/best.ckpt")
    run(folder, home, "stage=evaluate", f"checkpoint={best}")
    run(folder, home, "stage=evaluate", "agent=random")
    run(folder, home, "stage=mf", "item_embeddings=mf", "item_embeddings.epochs=1")
    for dataset in ("random", "expert"):
        run(folder, home, "stage=collect", f"dataset={dataset}")
        run(folder, home, "stage=offline", "agent=td3_bc", f"dataset={dataset}")
    run(folder, home, "stage=report", "report.users=5")
    return home


def result(home: Path, pattern: str) -> dict[str, Any]:
    (file,) = home.glob(f"{pattern}/result.json")
    return read_json(file)


def worth(data: Trajectories) -> Tensor:
    """Rewards [N, H] by hand."""
    return (data.clicks[:, 1:].float() * BONUS).sum(2)


def served(env: Env, policy: Any, users: int, seed: int) -> Trajectories:
    return rollout(policy, env, users, generator=stream(seed, "test users"), deterministic=True)


# --- what the stages leave


@pytest.mark.parametrize("run_of", ["online/toy/sac-gems*", "online/toy/td3-k_head_argmax-scratch*"])
def test_return_of_a_trained_agent_is_its_weighted_clicks(home: Path, run_of: str) -> None:
    found = result(home, run_of)
    (file,) = home.glob(f"{run_of}/best.ckpt")
    loaded = load_policy(file)
    assert isinstance(loaded.env, Toy) and loaded.env.period == 5
    data = served(loaded.env, loaded.policy, found["test_users"], found["seed"])
    assert found["test_return"] == pytest.approx(worth(data).sum(1).mean().item())
    clicks = data.clicks[:, 1:].float().sum(2).mean().item()
    assert found["test_clicks_per_turn"] == pytest.approx(clicks)
    assert clicks * 20 < found["test_return"] - 1  # another reward than clicks


def test_no_oracle_and_no_measures_of_topics(home: Path) -> None:
    found = result(home, "online/toy/sac-gems*")
    assert not [name for name in found if name.startswith("oracle_") or name.endswith("bored_share")]
    random = {f"random_{name}" for name in ("return", "interval", "clicks_per_turn", "distinct_items")}
    assert {name for name in found if name.startswith("random_")} == random
    (file,) = home.glob("online/toy/sac-gems*/metrics.csv")
    columns = [name for name in metrics.read(file)[0] if name.startswith("val/")]
    sampled = ["val/return_sampled", "val/interval_sampled"]
    assert columns == ["val/return", "val/interval", "val/clicks_per_turn", "val/distinct_items", *sampled]
    assert all(value for value in metrics.curve(file, "val/return")[1])


def test_checkpoint_is_all_that_evaluation_needs(home: Path) -> None:
    trained, again = result(home, "online/toy/sac-gems*"), result(home, "evaluate/toy/sac-*")
    assert again["test_return"] == trained["test_return"]
    random = result(home, "evaluate/toy/random-*")
    assert random["test_return"] == trained["random_return"]


@pytest.mark.parametrize("dataset", ["random", "expert"])
def test_dataset_records_rewards(home: Path, dataset: str) -> None:
    (file,) = home.glob(f"collect/toy/{dataset}-*/trajectories.safetensors")
    data, _ = trajectories.load(file, num_items=40)
    assert data.reward is not None and torch.equal(data.rewards, worth(data))
    about = result(home, f"collect/toy/{dataset}-*")
    assert about["return_mean"] == pytest.approx(worth(data).sum(1).mean().item())
    assert about["short_term_oracle_return"] is None
    card = read_json(file.with_name("card.json"))
    assert card["returns"]["mean"] == pytest.approx(about["return_mean"])
    assert sum(card["returns"]["histogram"]) == len(data)
    clicks = data.clicks[:, 1:].double().sum(2).mean(0)
    assert card["clicks_per_turn"] == pytest.approx(clicks.tolist())


def test_offline_agent_learns_from_rewards(home: Path) -> None:
    """The return that Q is compared with is of rewards, not of clicks."""
    (file,) = home.glob("offline/toy/td3_bc-*-random-*/best.ckpt")
    (recorded,) = home.glob("collect/toy/random-*/trajectories.safetensors")
    agent, data = load_policy(file).policy.agent, trajectories.load(recorded)[0]  # type: ignore[attr-defined]
    expected = agent.mean_return.item()
    clicks = data.clicks[:, 1:].sum(2).float()
    assert expected == pytest.approx(discounted_to_go(worth(data).float(), agent.gamma).abs().mean().item(), rel=1e-4)
    assert expected != pytest.approx(discounted_to_go(clicks, agent.gamma).mean().item(), rel=1e-2)
    about = result(home, "offline/toy/td3_bc-*-random-*")
    assert about["dataset_return"] == pytest.approx(worth(data).sum(1).mean().item())


def test_report_shows_returns_and_no_topics(home: Path) -> None:
    (page,) = home.glob("report/*/*/report.html")
    pictures = {file.stem for file in page.parent.glob("*.png")}
    assert any(name.startswith("return_per_turn_toy") for name in pictures)
    assert not [name for name in pictures if name.startswith(("topics", "ranks", "score_density"))]
    (file,) = home.glob("online/toy/sac-*/best.ckpt")
    shown, loaded = watch(file, 5, 0), load_policy(file)
    assert not isinstance(shown, TopicEpisodes)
    assert np.allclose(shown.rewards, worth(served(loaded.env, loaded.policy, 5, 0)))


# --- what the environment cannot do is refused before anything is made


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["agent=sac", "logged_data.epsilon=0.5"], r"logged_data\.epsilon=0\.5: .*use logged_data\.epsilon=1"),
        (["stage=log_data", "logged_data.epsilon=0"], r"logged_data\.epsilon=0: .*use logged_data\.epsilon=1"),
        (["stage=evaluate", "agent=short_term_oracle"], r"agent\.epsilon=0\.0: env=toy .*use agent=random"),
        (["stage=evaluate", "agent=epsilon_oracle"], r"agent\.epsilon=0\.5: env=toy .*use agent=random"),
        (["agent=dqn"], r"agent=dqn: .* env=toy .* such as sac"),
        (["agent=slateq", "ranker=none"], r"agent=slateq: .*TopicRec.* env=toy"),
        (["agent=reinforce_slate", "ranker=none"], r"agent=reinforce_slate: .* env=toy"),
        (["stage=offline", "agent=decision_transformer", "dataset=random"], r"agent=decision_transformer: .* env=toy"),
        (["agent=sac", "belief=none"], r"belief=none: env=toy .*use belief=gru"),
        (["agent=sac", "ranker=top_k", "item_embeddings=ideal"], r"item_embeddings=ideal: env=toy .*use scratch"),
    ],
)
def test_refusals(folder: Path, tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(folder, tmp_path / "home", *overrides)
    assert not (tmp_path / "home").exists()


def test_hidden_columns_of_a_dataset_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"env=toy: .*hidden state; dataset\.hidden=true"):
        run(folder, tmp_path, "stage=collect", "dataset=random", "dataset.hidden=true")


def test_dataset_without_rewards_is_refused(folder: Path, home: Path, tmp_path: Path) -> None:
    """Its clicks would pass for rewards."""
    (file,) = home.glob("collect/toy/random-*/trajectories.safetensors")
    data, metadata = trajectories.load(file)
    data.reward = None
    metadata.pop("checksum")
    trajectories.save(tmp_path / "clicks.safetensors", data, metadata)
    with pytest.raises(UserError, match=r"clicks\.safetensors: it records no rewards, .* env=toy"):
        run(folder, tmp_path / "home", "stage=collect", "dataset=file", f"dataset.path={tmp_path}/clicks.safetensors")


# --- the pieces


@pytest.fixture
def toy(folder: Path) -> Toy:
    return build_env(compose_config(f"hydra.searchpath=[file://{folder}]", *SMALL).env, torch.device("cpu"))  # type: ignore[return-value]


class AsksForOracle:
    def reset(self, num_users: int) -> None:
        pass

    def act(self, observation: Any, deterministic: bool) -> Decision:
        return Decision(observation.slate, oracle_slots=torch.ones_like(observation.clicks))


def test_rollout_refuses_oracle_slots(toy: Toy) -> None:
    with pytest.raises(UserError, match=r"env=toy: .*no short-term oracle"):
        served(toy, AsksForOracle(), 3, 0)


@pytest.mark.parametrize("turns", [3, 30])
def test_rollout_refuses_episodes_of_another_length(toy: Toy, turns: int) -> None:
    class Other(Toy):
        def step(self, slate: Tensor, *, oracle_slots: Tensor | None = None) -> Any:
            observation, reward, _ = super().step(slate)
            return observation, reward, self.turn == turns

    toy.__class__ = Other
    policy = AsksForOracle()
    policy.act = lambda observation, deterministic: Decision(observation.slate)  # type: ignore[method-assign]
    with pytest.raises(UserError, match=rf"turn {min(turns, 20)}; all must have env\.episode_length=20"):
        served(toy, policy, 3, 0)


def test_names_of_the_measures_are_those_of_an_evaluation(toy: Toy) -> None:
    policy = AsksForOracle()
    policy.act = lambda observation, deterministic: Decision(observation.slate)  # type: ignore[method-assign]
    found = evaluate(policy, toy, 4, 0, "test").named("x/")
    assert list(found) == [f"x/{name}" for name in measure_names(toy)]
    assert set(anchors(toy, 4, 0)) == {f"random_{name}" for name in measure_names(toy)}


def test_table_leaves_out_what_was_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    names = {"return": 3.0, "interval": 1.0, "clicks_per_turn": 0.5, "distinct_items": 7}
    result = {prefix + name: value for prefix in ("test_", "random_") for name, value in names.items()}
    show_result("toy", "mine", result)
    shown = "".join(capsys.readouterr())
    assert "mine" in shown and "random slates" in shown and "oracle" not in shown
    show_result("topics", "mine", {**result, "test_bored_share": 0.25, "random_bored_share": 0.5})
    shown = "".join(capsys.readouterr())
    assert "bored" in shown and "share" not in shown and "25%" in shown and "50%" in shown


def test_gymnasium_serves_it(folder: Path) -> None:
    env = SlateEnv(env="toy", overrides=[f"hydra.searchpath=[file://{folder}]", "env.episode_length=6"])
    _, info = env.reset(seed=1)
    assert info == {"hidden": {}}
    total = 0.0
    for turn in range(1, 7):
        observation, reward, terminated, _, _ = env.step(np.arange(4) + turn)
        assert reward == (observation["clicks"] * BONUS.numpy()).sum()
        assert terminated == (turn == 6)
        total += reward
    assert total > 0


def test_another_catalogue_is_another_fingerprint(toy: Toy) -> None:
    larger = Toy(name="toy", num_items=50, slate_size=4, episode_length=20, period=5, bonus=2.5)
    assert len(toy.fingerprint) == 16 and toy.fingerprint != larger.fingerprint


@pytest.mark.parametrize("size", ["num_items", "slate_size", "episode_length"])
def test_sizes_that_cannot_be(size: str) -> None:
    sizes: dict[str, Any] = {"num_items": 40, "slate_size": 4, "episode_length": 20} | {size: 0}
    node = {"_target_": "tests.envs.toy.Toy", "name": "toy", "period": 5, "bonus": 1.0, **sizes}
    with pytest.raises(UserError, match=rf"env\.{size}=0"):
        build_env(node, torch.device("cpu"))


def test_factors_of_its_clicks(home: Path) -> None:
    """They are named by the items that were logged, not by a catalogue that the environment does not have."""
    assert result(home, "mf/toy/*")["item_embeddings"] == result(home, "log_data/toy/*")["item_embeddings"]
