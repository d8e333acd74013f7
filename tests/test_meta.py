"""Every learner and every policy on the meta device: no turn and no update reads a number or leaves its device.

So the code is ready for a GPU. A new agent or ranker in conf/ is tested at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.agents.noisy import NoisyPolicy
from slaterl.agents.offline.base import with_actions
from slaterl.agents.offline.recorded import OfflineData
from slaterl.agents.online.collecting import OnlineData
from slaterl.data.trajectories import Trajectories
from slaterl.envs.env import Env
from slaterl.evaluation.fqe import FittedQ, Recorded, policy_actions
from slaterl.paths import CONF
from slaterl.rankers.gems import SlateVAE
from slaterl.rankers.matrix_factorization import ClickData, Clicks, MatrixFactorization
from slaterl.rankers.pretraining import GeMSPretraining, SlateData
from slaterl.rollout import Policy, rollout
from slaterl.seeds import stream
from slaterl.user_models.ensemble import Ensemble
from slaterl.user_models.env import LearnedEnv
from slaterl.user_models.intrinsic import BehaviourEntropy, Disagreement, Intrinsic, LargestDeviation, LargestVariance
from tests.agents.test_contract import PAIRS, RANKERS, VARIANTS, WITH_BELIEFS, build, learners, serve, settings
from tests.helpers import ITEMS, SLOTS, TURNS, tiny_gems, tiny_trajectories, tiny_transformer
from tests.meta import META, OnMeta, Stream, check_learns, to_meta
from tests.user_models.made import save_tiny_user_model, tiny_member, tiny_sessions

USERS = 6
SHORT = "env.episode_length=5"  # each turn takes as long as any other
OF_THE_CPU = torch.arange(2)
CASES = [
    *((agent, ranker, "") for agent, ranker in PAIRS),
    *((agent, None, more) for agent, more in VARIANTS + WITH_BELIEFS),
    *(("sac", ranker, "ranker.unique=true ranker.temperature=1") for ranker in RANKERS),
    *(("td3_bc", ranker, "ranker.temperature=1") for ranker in RANKERS),
]
HEURISTICS = sorted({file.stem for file in (CONF / "agent").glob("*.yaml")} - {*learners(), *learners(offline=True)})


def check_serves(policy: Policy, env: Env, deterministic: bool, hidden: bool = False) -> Trajectories:
    """Serve users on the meta device, as training and evaluation do."""
    data = rollout(policy, env, USERS, generator=Stream(), deterministic=deterministic, hidden=hidden)
    assert data.slates.shape == (USERS, env.episode_length + 1, env.slate_size)
    assert all(column.device == META for column in data.columns().values())
    return data


@pytest.mark.parametrize(("agent", "ranker", "more"), CASES)
def test_learns_and_acts(agent: str, ranker: str | None, more: str) -> None:
    built, env = map(to_meta, build(settings(agent, ranker, SHORT, *more.split())))
    # so that a policy rests once, and learns once
    updates = max(getattr(built, "policy_delay", 1), getattr(built, "vae_updates", 0)) + 1
    with OnMeta():
        data: OfflineData | OnlineData
        if built.LEARNS_FROM == "dataset":
            recorded = check_serves(built.random_policy(Stream()), env, deterministic=False)
            data = OfflineData(recorded, built, max_steps=updates, batch_size=3, batches=Stream())
            if built.stochastic:
                check_serves(built.policy(Stream()), env, deterministic=False)
        else:
            streams = {name: Stream() for name in ("users", "exploration", "batches")}
            sizes = dict(max_steps=USERS + updates, random_steps=USERS, num_envs=USERS, batch_size=3, capacity=8)
            data = OnlineData(env, built, **sizes, **streams)
        assert check_learns(built, data.train_dataloader()) >= updates
        check_serves(built.policy(), env, deterministic=True, hidden=True)


@pytest.mark.parametrize(
    ("agent", "more"),
    [
        *((agent, "") for agent in HEURISTICS),
        ("constant_slate", "agent.slate=[3,1,3,2]"),
        ("epsilon_oracle", "env.diversity_penalty=3 env.short_term_boost=2 click_model=mixPBM"),
    ],
)
def test_heuristics_act(agent: str, more: str) -> None:
    built, env = map(to_meta, build(settings(agent, None, "stage=evaluate", SHORT, *more.split())))
    with OnMeta():
        check_serves(built, env, deterministic=True, hidden=True)


def test_policies_with_noise_act() -> None:
    agent, env = map(to_meta, build(settings("sac", None, SHORT)))
    sizes = dict(noise=0.5, epsilon=0.5, num_items=env.num_items, generator=Stream())
    with OnMeta():
        check_serves(NoisyPolicy(agent.policy(Stream()), ranker=agent.ranker, **sizes), env, deterministic=False)


@pytest.mark.parametrize("made", [tiny_gems, tiny_transformer])
@pytest.mark.parametrize("changes", [{}, {"lambda_prior": 0.1, "posterior_noise": "std"}])
def test_gems_is_pretrained(made: Callable[..., SlateVAE], changes: dict[str, Any]) -> None:
    learner = to_meta(GeMSPretraining(made(**changes), lr=0.1, generator=stream(0, "noise")))
    recorded = to_meta(tiny_trajectories(7))
    with OnMeta():
        data = SlateData(recorded, learner, holdout=0.3, source="", batch_size=4, epochs=1, seed=0)
        slates = data.take(torch.arange(4, device=META))
        check_learns(learner, [slates, slates])
        learner.gems.fit_box(slates.slates, slates.clicks)


def test_items_are_factorised() -> None:
    factors = torch.ones(ITEMS, 3)
    learner = MatrixFactorization(factors, 7, lr=0.1, weight_decay=0.1, generator=stream(0, "negatives"))
    data = ClickData(tiny_trajectories(7), learner, holdout=0.3, source="", batch_size=4, epochs=1, seed=0)
    data.training = Clicks(*map(to_meta, data.training))
    to_meta(learner)
    with OnMeta():
        clicks = data.take(torch.arange(4, device=META))
        check_learns(learner, [clicks, clicks])


@pytest.mark.parametrize("ranker", RANKERS)
def test_fitted_q_evaluation(ranker: str) -> None:
    agent, env = build(settings("bcq", ranker, SHORT))
    data = with_actions(serve(agent, env), agent.ranker)
    ensemble = FittedQ(data, num_items=env.num_items, members=2, hidden=8, discount=0.9, lr=0.1, tau=0.1)
    agent, data, ensemble = map(to_meta, (agent, data, ensemble))
    with OnMeta():
        data = with_actions(data, agent.ranker)
        own = policy_actions(agent, data)
        batch = Recorded(data, own, torch.ones(2, len(data), device=META))
        check_learns(ensemble, [batch, batch])
        assert ensemble.reward(data, own).shape == (2, len(data))


@pytest.mark.parametrize("lengths", [False, True])
def test_user_models(lengths: bool) -> None:
    learner = to_meta(Ensemble([tiny_member(leaves=lengths) for _ in range(2)], lr=0.1, patience=2))
    data = tiny_sessions() if lengths else tiny_trajectories(7)
    recorded = to_meta(data)
    with OnMeta():
        assert check_learns(learner, [[recorded, recorded]] * 2) == 2


@pytest.mark.parametrize("intrinsic", [[], [Disagreement, LargestDeviation], [LargestVariance, BehaviourEntropy]])
def test_users_of_a_user_model(intrinsic: list[type[Intrinsic]], tmp_path: Path) -> None:
    file = save_tiny_user_model(tmp_path / "user_model.ckpt")
    sizes: dict[str, Any] = dict(name="learned", num_items=ITEMS, slate_size=SLOTS, episode_length=TURNS)
    settings: dict[str, Any] = dict(items="0123456789abcdef", leaves=True, member=None, penalty=0.0)
    terms = {term.__name__: term(weight=1.0) for term in intrinsic}
    env = LearnedEnv(user_model=str(file), intrinsic=terms, **settings, **sizes)
    model = env.model
    frames = [to_meta(frame) for frame in (model.first_slates, model.first_clicks)]
    model = replace(model, entropies=to_meta(model.entropies))
    env = to_meta(env)
    env.model = replace(
        model, members=[to_meta(m) for m in model.members], first_slates=frames[0], first_clicks=frames[1]
    )
    policy = to_meta(EpsilonOracle(epsilon=1, num_items=ITEMS, slate_size=SLOTS, generator=stream(0, "slates")))
    with OnMeta():
        check_serves(policy, env, deterministic=True)


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x.cpu(),
        lambda x: bool(x.any()),
        lambda x: int(x.sum()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x + torch.zeros(3),
        lambda x: x[OF_THE_CPU],  # a GPU would take this index, and wait for it
        lambda x: x[None, :, None][:, OF_THE_CPU],
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: x.new_tensor(1.0),
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: torch.zeros(2).to(x.device),
        lambda x: torch.rand(3, generator=Stream()),
        lambda x: torch.rand((), generator=Stream()),
        lambda x: torch.rand(3, generator=stream(0, "of the CPU"), device=x.device),
    ],
)
def test_the_meta_device_notices(forbidden: Callable[[Tensor], Any]) -> None:
    with OnMeta(), pytest.raises((AssertionError, RuntimeError, TypeError)):  # NotImplementedError is a RuntimeError
        forbidden(torch.zeros(3, device=META))
