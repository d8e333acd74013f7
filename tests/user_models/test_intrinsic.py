"""Terms of the reward of env=learned, against NumPy: penalties of MOPO and DORL, and the entropy of the behaviour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slaterl.config.build import build_env
from slaterl.config.check import check_config
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.run import run_stage
from slaterl.runs.products import product_of
from slaterl.user_models import coverage
from slaterl.user_models.entropy import next_item_entropies
from slaterl.user_models.env import LearnedEnv
from slaterl.user_models.intrinsic import BehaviourEntropy, Disagreement, LargestDeviation, LargestVariance
from tests.helpers import ITEMS, Array, compose_config
from tests.user_models.made import padded_otherwise, save_tiny_user_model, tiny_member, tiny_sessions
from tests.user_models.test_env import learned_env, served


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save_tiny_user_model(tmp_path / "user_model.ckpt")


def entropies(data: Trajectories) -> Array:
    """H(next item | item) / log N, by counting one session, one turn and one pair after the other."""
    counts = np.zeros((ITEMS, ITEMS))
    lengths = [data.slates.shape[1] - 1] * len(data) if data.lengths is None else data.lengths.tolist()
    for slates, length in zip(data.slates.numpy(), lengths, strict=True):
        for turn in range(1, length):
            for item in slates[turn]:
                for other in slates[turn + 1]:
                    counts[item, other] += 1
    found = np.zeros(ITEMS)
    for item, its in enumerate(counts):
        shares = its[its > 0] / its.sum() if its.sum() else np.ones(1)
        found[item] = -(shares * np.log(shares)).sum() / np.log(ITEMS)
    return found


def test_entropies_are_counted_from_the_sessions() -> None:
    data = tiny_sessions()
    found, expected = next_item_entropies(data, ITEMS), entropies(data)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-7)
    assert (found == 0).any() and len(found.unique()) > 5
    assert torch.equal(next_item_entropies(padded_otherwise(data), ITEMS), found)
    whole = Trajectories(data.slates, data.clicks)
    np.testing.assert_allclose(next_item_entropies(whole, ITEMS).numpy(), entropies(whole), rtol=1e-6)


def test_entropies_do_not_depend_on_how_many_sessions_are_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = next_item_entropies(tiny_sessions(), ITEMS)
    monkeypatch.setattr(coverage, "SESSIONS", 2)
    assert torch.equal(next_item_entropies(tiny_sessions(), ITEMS), expected)


def test_entropy_is_1_after_uniform_items_and_0_after_one() -> None:
    slates = torch.tensor([[[0], [0], [item]] for item in range(8)] + [[[1], [1], [5]]] * 3, dtype=torch.uint8)
    found = next_item_entropies(Trajectories(slates, torch.zeros_like(slates)), 8)
    torch.testing.assert_close(found, torch.tensor([1.0] + [0.0] * 7))


def measures(data: Trajectories) -> dict[str, Array]:
    """What each term measures, [B, H], by members that read whole trajectories."""
    with torch.no_grad():
        chances = np.stack([tiny_member(seed)(data).clicks.sigmoid().double().numpy() for seed in range(3)])
    variance = np.stack([(each * (1 - each)).sum(2) for each in chances]).max(0)
    expected = chances.sum(3)  # [3, B, H]
    spread = np.sqrt(((expected - expected.mean(0)) ** 2).sum(0) / 2)
    bonus = entropies(tiny_sessions())[data.slates[:, 1:].numpy()].mean(2)
    return {"disagreement": -spread, "variance": -variance, "deviation": -np.sqrt(variance), "entropy": bonus}


TERMS = {
    "disagreement": Disagreement,
    "variance": LargestVariance,
    "deviation": LargestDeviation,
    "entropy": BehaviourEntropy,
}


@pytest.mark.parametrize("names", [*([name] for name in TERMS), ["variance", "entropy"]])
def test_rewards_are_clicks_and_weighted_terms(file: Path, names: list[str]) -> None:
    weights = dict(zip(TERMS, (0.7, 0.3, 1.5, 5.0), strict=True))
    env = learned_env(file, intrinsic={name: TERMS[name](weight=weights[name]) for name in names})
    data = served(env)
    assert not env.reward_is_clicks and torch.equal(data.clicks, served(learned_env(file)).clicks)
    expected = data.clicks[:, 1:].sum(2).double().numpy()
    for name in names:
        expected = expected + weights[name] * measures(data)[name]
    mask = data.mask.numpy()
    np.testing.assert_allclose(data.rewards.numpy()[mask], expected[mask], rtol=1e-5, atol=1e-5)
    assert all(np.abs(measures(data)[name][mask]).max() > 0.05 for name in names)


def test_penalty_is_disagreement(file: Path) -> None:
    short, long = (served(learned_env(file, **its)) for its in (
        {"penalty": 2.0}, {"intrinsic": {"term": Disagreement(weight=2.0)}},
    ))  # fmt: skip
    assert torch.equal(short.rewards, long.rewards)


@pytest.mark.parametrize(
    ("preset", "terms"),
    [
        ("learned_mopo", [(LargestDeviation, 1.0)]),
        ("learned_dorl", [(LargestVariance, 0.05), (BehaviourEntropy, 5.0)]),
    ],
)
def test_presets(file: Path, preset: str, terms: list[tuple[type, float]]) -> None:
    cfg = compose_config(f"env={preset}", f"env.user_model={file}")
    check_config(cfg)
    env = build_env(cfg.env, torch.device("cpu"))
    assert isinstance(env, LearnedEnv) and env.name == preset
    assert [(type(term), term.weight) for term in env.terms] == terms


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("env.intrinsic.entropy.weight=-1", "env.intrinsic.entropy.weight=-1: expected a number of at least 0"),
        ("env.intrinsic=null", "env.intrinsic=null: expected settings below names of their own, or {} for none"),
        ("env.intrinsic.entropy=3", "env.intrinsic.entropy=3: expected a term with _target_, as in env=learned_dorl"),
    ],
)
def test_wrong_terms_are_named(file: Path, more: str, message: str) -> None:
    cfg = compose_config("env=learned_dorl", f"env.user_model={file}", more)
    with pytest.raises(UserError) as error:
        check_config(cfg)
        build_env(cfg.env, torch.device("cpu"))
    assert str(error.value) == message


def test_terms_without_a_weight_leave_the_reward_the_clicks(file: Path) -> None:
    """So agents that learn from clicks may take part in a sweep over weights."""
    weighted = learned_env(file, intrinsic={"term": LargestVariance(weight=0.1)})
    none = learned_env(file, intrinsic={"term": LargestVariance(weight=0.0)})
    assert (weighted.reward_is_clicks, none.reward_is_clicks) == (False, True)
    assert torch.equal(served(none).rewards, served(learned_env(file)).rewards)


def test_a_file_without_entropies_is_refused(file: Path) -> None:
    state: dict[str, Any] = torch.load(file, weights_only=True)
    del state["entropies"]
    torch.save(state, file)
    assert served(learned_env(file)).clicks.any(), "other terms need none"
    with pytest.raises(UserError, match=r"env\.user_model=.*: it has no entropies of the behaviour; make it again"):
        served(learned_env(file, intrinsic={"entropy": BehaviourEntropy(weight=1.0)}))


def test_an_agent_trains_in_dorl(tmp_path: Path) -> None:
    common = ["scale=smoke", "device=cpu", "threads=1", f"paths.root={tmp_path}"]
    model = compose_config("stage=user_model", "dataset=random", *common)
    run_stage(model)
    file = product_of(model, "user_model").run.path / "user_model.ckpt"
    cfg = compose_config(
        "env=learned_dorl", f"env.user_model={file}", "logged_data.epsilon=1", "agent.gamma=0.9", *common
    )
    run_stage(cfg)
    result = product_of(cfg, "online").run.result()
    # random items follow every item, so a turn pays almost 5 in addition to its clicks
    extra = result["test_return"] - result["test_clicks_per_turn"] * cfg.env.episode_length
    assert 0.5 * 5 < extra / cfg.env.episode_length < 5
