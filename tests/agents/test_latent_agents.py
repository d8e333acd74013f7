"""TD3, REINFORCE and Wolpertinger against derivations in NumPy. SAC has its own file."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slaterl.agents.base import LatentAgent
from slaterl.agents.online.reinforce import REINFORCE, returns_to_go
from slaterl.agents.online.td3 import TD3
from slaterl.agents.online.wolpertinger import Wolpertinger
from slaterl.beliefs.gru import GRUBelief
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation
from slaterl.errors import UserError
from slaterl.rollout import rollout
from slaterl.seeds import seeded_weights, stream
from tests.agents.derivations import (
    assert_gradients,
    assert_learning_rates,
    assert_named,
    drift,
    parameters_of,
    returns_of,
    rewards_of,
    stepped_by,
)
from tests.agents.test_sac import belief_states, gradients, policy, q_values
from tests.helpers import (
    ITEMS,
    LATENT,
    SLOTS,
    TURNS,
    Array,
    arrays,
    copy_of,
    mlp_forward,
    tiny_env,
    tiny_gems,
    tiny_trajectories,
)

BATCH, EMBEDDING, NEIGHBOURS = 3, 2, 5


def build(kind: type[LatentAgent], settings: dict[str, Any], changes: dict[str, Any]) -> Any:
    """Build an agent whose learning rates all differ, so that none can replace another unnoticed."""
    shared: dict[str, Any] = dict(
        belief=partial(GRUBelief, num_items=ITEMS, slate_size=SLOTS, item_dim=2, hidden_dim=5),
        gamma=0.8,
        pi_lr=3e-3,
        pi_hidden=[12, 8],
    )
    with seeded_weights(0, "tiny latent agent"):
        agent = kind(**(shared | settings | changes))
    with torch.no_grad():  # actions then differ from turn to turn
        agent.actor[-1].weight.mul_(4)
    return agent


def tiny_td3(**changes: Any) -> TD3:
    """Build a TD3 whose target noise reaches both its own bound and that of the actions."""
    settings = dict(ranker=tiny_gems(), generator=stream(0, "update"), tau=0.1, q_lr=1e-3, q_hidden=[16])
    settings |= dict(exploration_noise=0.4, target_noise=0.7, noise_clip=0.5, policy_delay=2)
    agent = build(TD3, settings, changes)
    drift(agent.target_critics, agent.target_actor)
    return agent


def tiny_reinforce(**changes: Any) -> REINFORCE:
    return build(REINFORCE, dict(ranker=tiny_gems(), sigma=0.3), changes)


def tiny_wolpertinger(**changes: Any) -> Wolpertinger:
    settings = dict(num_items=ITEMS, slate_size=SLOTS, neighbours=NEIGHBOURS, generator=stream(0, "update"), tau=0.1)
    settings |= dict(
        q_lr=1e-3, alpha_lr=2e-3, q_hidden=[16], num_critics=2, initial_alpha=0.5, target_entropy_scale=1.0
    )
    settings |= dict(item_embeddings=torch.randn(ITEMS, EMBEDDING, generator=stream(0, "items")))
    agent = build(Wolpertinger, settings, changes)
    drift(agent.target_critics)
    return agent


def states(weights: dict[str, Array], whose: str, batch: Trajectories) -> Array:
    """States of the actor's or the critics' belief at the start of each turn, [B, H, state]."""
    return belief_states(weights, f"{whose}_belief.", batch)


def state_dict_of(agent: LatentAgent, *modules: str) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in agent.state_dict().items() if k.split(".")[0] in modules}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one and one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


# --- TD3


class TD3Derivation:
    """Derivation of one update on a batch, from the weights and the generator before it."""

    def __init__(self, agent: TD3, batch: Trajectories) -> None:
        assert batch.actions is not None
        self.batch, self.before = batch, arrays(agent)
        self.actions = batch.actions.double().numpy()
        generator = copy_of(agent.generators["update"])
        shape = (len(batch), batch.actions.shape[1] - 1, LATENT)
        self.noise = 0.7 * torch.randn(shape, generator=generator).double().numpy()
        self.next_q = np.zeros((2, *shape[:2]))
        self.target = self._target()

    def _target(self) -> Array:
        """r + gamma * min_i Q'_i(s', clip(pi'(s') + clip(noise))) and r alone in the last turn."""
        target, last = rewards_of(self.batch), self.noise.shape[1]
        actor_states, critic_states = (
            states(self.before, "actor", self.batch),
            states(self.before, "critic", self.batch),
        )
        for turn in range(last):
            action = np.tanh(mlp_forward(self.before, "target_actor.", actor_states[:, turn + 1]))
            action = np.clip(action + np.clip(self.noise[:, turn], -0.5, 0.5), -1, 1)
            self.next_q[:, :, turn] = q_values(self.before, "target_critics", critic_states[:, turn + 1], action)
            target[:, turn] += 0.8 * self.next_q[:, :, turn].min(0)
        return target

    def q(self, weights: dict[str, Array]) -> Array:
        return q_values(weights, "critics", states(weights, "critic", self.batch), self.actions)

    def critic_loss(self, weights: dict[str, Array]) -> float:
        return float(((self.q(weights) - self.target) ** 2).mean())

    def actor_loss(self, weights: dict[str, Array]) -> float:
        """-Q_1(s, pi(s)) as a function of actor and actor belief, with the critics of before the update."""
        action = np.tanh(mlp_forward(weights, "actor.", states(weights, "actor", self.batch)))
        return -float(q_values(self.before, "critics", states(self.before, "critic", self.batch), action)[0].mean())


@pytest.mark.parametrize("turns", [1, TURNS])
def test_td3_terms_equal_the_derivation(turns: int) -> None:
    agent, batch = tiny_td3(), tiny_trajectories(BATCH, turns=turns)
    expected = TD3Derivation(agent, batch)
    terms = {name: value.item() for name, value in agent.update(batch).items()}
    wanted = {"loss/critic": expected.critic_loss(expected.before), "loss/actor": expected.actor_loss(expected.before)}
    wanted |= {"value/q": expected.q(expected.before).mean(), "value/target": expected.target.mean()}
    assert terms == pytest.approx(wanted, rel=2e-5)


def test_td3_derivation_reaches_every_bound() -> None:
    """Otherwise the test above would pass without the bound on the noise, or without the minimum."""
    expected = TD3Derivation(tiny_td3(), tiny_trajectories(BATCH))
    smaller = expected.next_q.argmin(0)
    assert 0 < smaller.mean() < 1
    assert 0.2 < (np.abs(expected.noise) > 0.5).mean() < 0.8
    means = np.tanh(mlp_forward(expected.before, "target_actor.", states(expected.before, "actor", expected.batch)))
    assert (np.abs(means[:, 1:] + np.clip(expected.noise, -0.5, 0.5)) > 1).any()


@pytest.mark.parametrize("step", [1, 2])
def test_td3_gradients(step: int) -> None:
    """The critics get the gradient of their own loss, and the policy that of Q_1 through its action."""
    agent, batch = tiny_td3(), tiny_trajectories(BATCH)
    agent.step = step
    expected = TD3Derivation(agent, batch)
    agent.update(batch)
    critic, actor = parameters_of(agent, "critics", "critic_belief"), parameters_of(agent, "actor", "actor_belief")
    assert_gradients(agent, expected.before, expected.critic_loss, critic)
    if step == 2:
        assert_gradients(agent, expected.before, expected.actor_loss, actor)
    else:
        assert all(gradient.abs().sum() == 0 for name, gradient in gradients(agent).items() if name in actor)


def test_td3_policy_and_targets_move_every_other_update() -> None:
    agent, batch = tiny_td3(), tiny_trajectories(BATCH)
    slow = ("actor", "actor_belief", "target_actor", "target_critics")
    for step, learns in enumerate([True, False, True, False]):
        agent.step = step
        before, critics = state_dict_of(agent, *slow), state_dict_of(agent, "critics", "critic_belief")
        agent.update(batch)
        after = state_dict_of(agent, *slow)
        assert all(torch.equal(after[name], before[name]) != learns for name in before)
        assert not same(state_dict_of(agent, "critics", "critic_belief"), critics)


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_td3_targets_move_by_tau(tau: float) -> None:
    agent, batch = tiny_td3(tau=tau), tiny_trajectories(BATCH)
    old = state_dict_of(agent, "target_actor", "target_critics")
    agent.update(batch)
    online = state_dict_of(agent, "actor", "critics")
    for name, target in state_dict_of(agent, "target_actor", "target_critics").items():
        expected = (1 - tau) * old[name] + tau * online[name.removeprefix("target_")]
        torch.testing.assert_close(target, expected)


def test_td3_actor_loss_is_the_last_one_until_the_next() -> None:
    agent, batch = tiny_td3(), tiny_trajectories(BATCH)
    losses = []
    for step in range(4):
        agent.step = step
        losses.append(agent.update(batch)["loss/actor"].item())
    assert losses[0] == losses[1] != losses[2] == losses[3]


def test_td3_explores_with_clipped_noise() -> None:
    agent = tiny_td3()
    state = torch.randn(200, agent.actor_belief.state_dim, generator=stream(0, "states"))
    generator = stream(0, "exploration")
    noise = torch.randn(200, LATENT, generator=copy_of(generator)).double().numpy()
    means = np.tanh(mlp_forward(arrays(agent), "actor.", state.double().numpy()))
    unclipped = means + 0.4 * noise
    assert (np.abs(unclipped) > 1).any()
    np.testing.assert_allclose(agent.action(state, generator).detach(), unclipped.clip(-1, 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(agent.action(state, None).detach(), means, rtol=1e-4, atol=1e-5)


# --- REINFORCE in a latent space


def reinforce_loss(weights: dict[str, Array], batch: Trajectories, sigma: float = 0.3) -> float:
    """Minus the mean over trajectories of sum_t G_t * log N(atanh(a_t); mean(s_t), sigma)."""
    assert batch.actions is not None
    raw = np.arctanh(batch.actions.double().numpy())
    means = mlp_forward(weights, "actor.", states(weights, "actor", batch))
    density = np.exp(-((raw - means) ** 2) / (2 * sigma**2)) / math.sqrt(2 * math.pi * sigma**2)
    return -float((returns_of(batch, gamma=0.8) * np.log(density).sum(2)).sum(1).mean())


def near_policy_batch() -> Trajectories:
    """Take actions close enough to the policy that no density vanishes."""
    batch = tiny_trajectories(BATCH)
    assert batch.actions is not None
    batch.actions.mul_(0.5)
    return batch


def test_reinforce_equals_the_derivation() -> None:
    agent, batch = tiny_reinforce(), near_policy_batch()
    before = arrays(agent)
    assert agent.update(batch)["loss/actor"].item() == pytest.approx(reinforce_loss(before, batch), rel=2e-5)
    assert_gradients(agent, before, partial(reinforce_loss, batch=batch), parameters_of(agent, "actor", "actor_belief"))


def test_returns_to_go_are_discounted_sums() -> None:
    rewards = torch.tensor([[1.0, 0.0, 2.0, 4.0], [0.0, 8.0, 0.0, 0.0]])
    expected = [[1 + 2 / 4 + 4 / 8, 2 / 2 + 4 / 4, 2 + 4 / 2, 4], [4, 8, 0, 0]]
    assert returns_to_go(rewards, 0.5).tolist() == expected
    assert returns_to_go(rewards, 0.0).tolist() == rewards.tolist()


def test_reinforce_draws_what_it_takes_for_likely() -> None:
    """Actions are the tanh of draws around the mean with deviation sigma, and without exploration of the mean."""
    agent = tiny_reinforce()
    state = torch.randn(50, agent.actor_belief.state_dim, generator=stream(0, "states"))
    generator = stream(0, "exploration")
    noise = torch.randn(50, LATENT, generator=copy_of(generator)).double().numpy()
    means = mlp_forward(arrays(agent), "actor.", state.double().numpy())
    np.testing.assert_allclose(
        agent.action(state, generator).detach(), np.tanh(means + 0.3 * noise), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(agent.action(state, None).detach(), np.tanh(means), rtol=1e-4, atol=1e-5)


def test_reinforce_survives_saturated_actions() -> None:
    agent, batch = tiny_reinforce(), near_policy_batch()
    assert batch.actions is not None
    batch.actions[:, 0], batch.actions[:, 1] = 1.0, -1.0
    assert agent.update(batch)["loss/actor"].isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(agent).values())


# --- Wolpertinger


def slate_values(weights: dict[str, Array], critics: str, state: Array, slate: list[int]) -> Array:
    """Value a slate for one user by both critics, [2]. They read the embeddings of its items."""
    inputs = np.concatenate([state, weights["ranker.item_embeddings"][slate].ravel()])
    return np.array([mlp_forward(weights, f"{critics}.members.{i}.", inputs)[0] for i in range(2)])


def refined(weights: dict[str, Array], state: Array, action: Array, neighbours: int = NEIGHBOURS) -> list[int]:
    """Choose slot after slot, among the nearest items, the one of the largest Q' if it fills all later slots."""
    items = weights["ranker.item_embeddings"]
    proto_items = (weights["ranker.center"] + weights["ranker.half_width"] * action).reshape(SLOTS, -1)
    slate: list[int] = []
    for slot, proto_item in enumerate(proto_items):
        candidates = np.argsort(np.linalg.norm(items - proto_item, axis=1))[:neighbours].tolist()
        values = {
            c: slate_values(weights, "target_critics", state, slate + [c] * (SLOTS - slot))[0] for c in candidates
        }
        slate.append(max(values, key=values.__getitem__))
    return slate


class WolpertingerDerivation:
    """Derivation of one update on a batch, from the weights and the generator before it."""

    def __init__(self, agent: Wolpertinger, batch: Trajectories) -> None:
        self.batch, self.before, self.alpha = batch, arrays(agent), 0.5
        generator, turns = copy_of(agent.generators["update"]), batch.clicks.shape[1] - 1
        shape = (len(batch), turns - 1, SLOTS * EMBEDDING)
        self.next_noise = torch.randn(shape, generator=generator).double().numpy()
        shape = (len(batch), turns, SLOTS * EMBEDDING)
        self.noise = torch.randn(shape, generator=generator).double().numpy()
        self.shown = batch.slates.numpy()[:, 1:].astype(int)
        self.target = self._target()

    def _target(self) -> Array:
        """r + gamma * (min Q'(s', refined slate) - alpha * log pi(a' | s')) and r alone in the last turn."""
        target = rewards_of(self.batch)
        actor_states, critic_states = (
            states(self.before, "actor", self.batch),
            states(self.before, "critic", self.batch),
        )
        actions, log_probs = policy(self.before, actor_states[:, 1:], self.next_noise)
        for user, turn in np.ndindex(log_probs.shape):
            state = critic_states[user, turn + 1]
            slate = refined(self.before, state, actions[user, turn])
            next_q = slate_values(self.before, "target_critics", state, slate).min()
            target[user, turn] += 0.8 * (next_q - self.alpha * log_probs[user, turn])
        return target

    def critic_loss(self, weights: dict[str, Array]) -> float:
        """Loss of the critics on the slates that were shown."""
        critic_states, errors = states(weights, "critic", self.batch), []
        for place in np.ndindex(self.target.shape):
            q = slate_values(weights, "critics", critic_states[place], self.shown[place].tolist())
            errors.append(q - self.target[place])
        return float(np.square(errors).mean())

    def log_prob(self, weights: dict[str, Array]) -> Array:
        return policy(weights, states(weights, "actor", self.batch), self.noise)[1]

    def actor_loss(self, weights: dict[str, Array]) -> float:
        """Loss of the policy through its proto-items, as if they were shown."""
        action, log_prob = policy(weights, states(weights, "actor", self.batch), self.noise)
        q = q_values(self.before, "critics", states(self.before, "critic", self.batch), action).min(0)
        return float((self.alpha * log_prob - q).mean())


@pytest.fixture
def slates_alone() -> Trajectories:
    """Build a batch without actions, because the critics learn from slates alone."""
    batch = tiny_trajectories(BATCH)
    batch.actions = None
    return batch


def test_wolpertinger_equals_the_derivation(slates_alone: Trajectories) -> None:
    agent = tiny_wolpertinger()
    expected = WolpertingerDerivation(agent, slates_alone)
    terms = agent.update(slates_alone)
    found = {name: terms[name].item() for name in ("loss/critic", "loss/actor", "value/target", "policy/entropy")}
    assert found == pytest.approx(
        {
            "loss/critic": expected.critic_loss(expected.before),
            "loss/actor": expected.actor_loss(expected.before),
            "value/target": expected.target.mean(),
            "policy/entropy": -expected.log_prob(expected.before).mean(),
        },
        rel=2e-5,
    )
    critic, actor = parameters_of(agent, "critics", "critic_belief"), parameters_of(agent, "actor", "actor_belief")
    assert_gradients(agent, expected.before, expected.critic_loss, critic)
    assert_gradients(agent, expected.before, expected.actor_loss, actor)


@pytest.mark.parametrize("neighbours", [1, NEIGHBOURS, ITEMS])
def test_refinement_is_that_of_a_plain_loop(neighbours: int) -> None:
    agent, users = tiny_wolpertinger(neighbours=neighbours), 20
    weights = arrays(agent)
    state = torch.randn(users, agent.critic_belief.state_dim, generator=stream(0, "states"))
    action = torch.rand(users, SLOTS * EMBEDDING, generator=stream(0, "actions")) * 2 - 1
    found = agent.refine(state, action).tolist()
    plain = zip(state.double().numpy(), action.double().numpy(), strict=True)
    assert found == [refined(weights, *one, neighbours=neighbours) for one in plain]
    nearest = [refined(weights, *one, neighbours=1) for one in zip(state.numpy(), action.double().numpy(), strict=True)]
    assert (found == nearest) == (neighbours == 1)


def test_refinement_improves_on_the_nearest_items() -> None:
    """Refined slates have the larger value by the target critic, and batches give the slates of single users."""
    agent = tiny_wolpertinger()
    state = torch.randn(10, TURNS, agent.critic_belief.state_dim, generator=stream(0, "states"))
    action = torch.rand(10, TURNS, SLOTS * EMBEDDING, generator=stream(0, "actions")) * 2 - 1
    slates, nearest = agent.refine(state, action), agent.nearest(action)[..., 0]
    assert torch.equal(slates[3, 2], agent.refine(state[3, 2], action[3, 2]))

    def value(slate: Tensor) -> Tensor:
        shown = agent.ranker.to_action(agent.ranker.encode(slate, slate))
        return agent.q_values(agent.target_critics, state, shown)[0]

    assert value(slates).mean() > value(nearest).mean()


def test_wolpertinger_acts_with_a_belief_for_each_network() -> None:
    """The actor's half of the joined state gives the proto-items, and the critics' half refines them."""
    agent, users = tiny_wolpertinger(), 8
    weights = arrays(agent)
    seen = Observation(torch.randint(ITEMS, (users, SLOTS), generator=stream(0, "slates")), torch.ones(users, SLOTS))
    with torch.no_grad():
        state = agent.acting_belief.step(seen, agent.acting_belief.initial_state(users))
        decision = agent.decide(state, seen, None)
    first = Trajectories(slates=seen.slate.unsqueeze(1).expand(-1, 2, -1), clicks=torch.ones(users, 2, SLOTS))
    actor_state, critic_state = (states(weights, whose, first)[:, 0] for whose in ("actor", "critic"))
    mean = mlp_forward(weights, "actor.", actor_state)[:, : SLOTS * EMBEDDING]
    plain = [refined(weights, *one) for one in zip(critic_state, np.tanh(mean), strict=True)]
    assert decision.slate.tolist() == plain
    assert decision.action is None


def test_wolpertinger_records_no_actions() -> None:
    agent = tiny_wolpertinger()
    explore = stream(0, "exploration")
    for behaviour in (agent.policy(explore), agent.random_policy(explore)):
        data = rollout(behaviour, tiny_env(), 4, generator=stream(0, "users"), deterministic=False)
        assert data.actions is None


# --- what must not move


FROZEN = [
    (tiny_td3, ("ranker", "target_actor", "target_critics"), {"critics": "critic", "critic_belief": "critic"}),
    (tiny_reinforce, ("ranker",), {}),
    (tiny_wolpertinger, ("target_critics",), {"critics": "critic", "critic_belief": "critic", "log_alpha": "alpha"}),
]


@pytest.mark.parametrize(("make", "frozen", "others"), FROZEN)
def test_what_is_frozen_gets_no_gradient_and_no_optimiser(make: Any, frozen: Any, others: dict[str, str]) -> None:
    agent, batch = make(), tiny_trajectories(BATCH)
    ranker = state_dict_of(agent, "ranker")
    for _ in range(3):
        agent.update(batch)
    owners = {"actor": "actor", "actor_belief": "actor"} | others
    assert stepped_by(agent) == owners
    assert {name.split(".")[0] for name in gradients(agent)} == set(owners)
    for name, parameter in agent.named_parameters():  # an update freezes the critics for a while
        assert parameter.requires_grad == (name.split(".")[0] not in frozen), name
    assert same(state_dict_of(agent, "ranker"), ranker)


@pytest.mark.parametrize("make", [tiny_td3, tiny_reinforce, tiny_wolpertinger])
def test_learning_rates_belong_to_their_groups(make: Any) -> None:
    assert_learning_rates(make(), tiny_trajectories(BATCH), {"critic": 1e-3, "actor": 3e-3, "alpha": 2e-3})


@pytest.mark.parametrize("make", [tiny_td3, tiny_reinforce, tiny_wolpertinger])
def test_continues_identically_from_its_state(make: Any) -> None:
    agent, resumed, batch = make(), make(), tiny_trajectories(BATCH)
    for step in (4, 5):  # then two updates between two of TD3's policy
        agent.step = step
        agent.update(batch)
    resumed.load_learner_state(copy.deepcopy(agent.learner_state()))
    for _ in range(2):
        terms, other = agent.update(batch), resumed.update(batch)
        assert all(torch.equal(terms[name], other[name]) for name in agent.TERMS)
    assert same(dict(agent.state_dict()), dict(resumed.state_dict()))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *((TD3, wrong) for wrong in ({"gamma": 1.1}, {"tau": -0.1}, {"policy_delay": 0}, {"noise_clip": -1.0})),
        *((REINFORCE, wrong) for wrong in ({"gamma": -0.1}, {"pi_lr": 0}, {"sigma": 0.0})),
        (Wolpertinger, {"neighbours": 0}),
    ],
)
def test_impossible_values_are_named(kind: type, wrong: dict[str, Any]) -> None:
    assert_named(kind, wrong)


def test_more_neighbours_than_items_are_refused() -> None:
    with pytest.raises(UserError, match=r"agent\.neighbours="):
        tiny_wolpertinger(neighbours=ITEMS + 1)
