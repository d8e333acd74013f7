"""Agents that choose items themselves (DQN, SlateQ, REINFORCE) against derivations in NumPy."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slaterl.agents.base import ItemAgent
from slaterl.agents.online.dqn import DQN
from slaterl.agents.online.reinforce import REINFORCESlate
from slaterl.agents.online.slateq import SlateQ
from slaterl.beliefs.gru import GRUBelief
from slaterl.data.trajectories import Trajectories
from slaterl.envs.catalog import generate
from slaterl.envs.click_models import PositionBasedModel
from slaterl.envs.observation import Hidden, Observation, PrivilegedObservation
from slaterl.envs.topic_rec import TopicRec
from slaterl.seeds import seeded_weights, stream
from tests.agents.derivations import (
    assert_gradients,
    assert_learning_rates,
    assert_named,
    drift,
    parameters_of,
    returns_of,
    stepped_by,
)
from tests.agents.test_sac import belief_states, gradients, sigmoid
from tests.helpers import ITEMS, SLOTS, TURNS, Array, arrays, mlp_forward, tiny_env, tiny_trajectories

BATCH = 3
FROM_BOTH_ENDS = PositionBasedModel(decay=0.85, bottom_weight=0.5)


def some_items(count: int) -> Tensor:
    return generate(count, 3, 2, 1.0, seed=1) * torch.linspace(1.4, 0.7, count).unsqueeze(1)


def gentle_env(**changes: Any) -> TopicRec:
    """Build a simulator where all relevances count (0.1 to 0.9), users read from both ends, and item norms differ."""
    settings: dict[str, Any] = dict(slope=5, click_model=FROM_BOTH_ENDS, item_embeddings=some_items(ITEMS))
    return tiny_env(**(settings | changes))


def build(kind: type[ItemAgent], own: dict[str, Any], changes: dict[str, Any]) -> Any:
    settings: dict[str, Any] = dict(
        num_items=ITEMS,
        slate_size=SLOTS,
        belief=partial(GRUBelief, num_items=ITEMS, slate_size=SLOTS, item_dim=2, hidden_dim=5),
        gamma=0.8,
    )
    with seeded_weights(0, "tiny item agent"):
        return kind(**(settings | own | changes))


def sharpen(network: nn.Sequential) -> None:
    """Spread the values and probabilities of a network far apart."""
    with torch.no_grad():
        network[-1].weight.mul_(4)


def tiny_dqn(kind: type[DQN] = DQN, own: dict[str, Any] | None = None, fresh: bool = False, **changes: Any) -> Any:
    """Build a DQN. Unless it is fresh, its target has drifted."""
    settings = dict(tau=0.1, q_lr=1e-3, q_hidden=[16], epsilon_start=0.9, epsilon_end=0.2, epsilon_decay=50.0)
    agent = build(kind, settings | (own or {}), changes)
    if not fresh:
        sharpen(agent.critic)
        drift(agent.target_critic)
    return agent


def tiny_slateq(**changes: Any) -> SlateQ:
    own = dict(env=gentle_env(), serving="topk", training="topk", credit="first_click")
    return tiny_dqn(SlateQ, own, **changes)


def tiny_reinforce_slate(**changes: Any) -> REINFORCESlate:
    own = dict(pi_lr=3e-3, pi_hidden=[12, 8], credit="first_click", top_k_correction=False)
    agent = build(REINFORCESlate, own, changes)
    sharpen(agent.actor)
    return agent


def some_batch(turns: int = TURNS) -> Trajectories:
    """Draw random frames and, for SlateQ, random tastes at the start of each turn."""
    batch = tiny_trajectories(BATCH, turns=turns)
    batch.hidden["effective"] = torch.rand(BATCH, turns, 6, generator=stream(0, "tastes")) / 2
    return batch


def shown_in(batch: Trajectories) -> Array:
    """Return the chosen slates, [B, H, S]. Frame 0 was not chosen."""
    return batch.slates.numpy()[:, 1:].astype(int)


def clicks_in(batch: Trajectories) -> Array:
    return batch.clicks.numpy()[:, 1:].astype(float)


def credited(clicks: Array, credit: str) -> list[tuple[int, int, int]]:
    """List user, turn and slot of the credited clicks."""
    places = [tuple(place) for place in np.argwhere(clicks)]
    if credit == "every_click":
        return places
    return [(user, turn, slot) for user, turn, slot in places if not clicks[user, turn, :slot].any()]


def values_of(weights: dict[str, Array], network: str, batch: Trajectories) -> Array:
    """Compute Q of every item at the start of each turn, [B, H, N]."""
    return mlp_forward(weights, f"{network}.", belief_states(weights, "critic_belief.", batch))


def nothing_seen(users: int) -> Observation:
    """Return an empty observation, for decisions from given states."""
    return Observation(torch.zeros(users, SLOTS, dtype=torch.int64), torch.zeros(users, SLOTS, dtype=torch.bool))


def best(scores: Array) -> Array:
    return np.argsort(-scores)[:SLOTS]


# --- DQN


def dqn_targets(weights: dict[str, Array], batch: Trajectories, gamma: float) -> Array:
    """Own click + gamma * mean target value of the next slate, chosen by the online network: [B, H, S]."""
    online, target = values_of(weights, "critic", batch), values_of(weights, "target_critic", batch)
    targets = clicks_in(batch)
    last = targets.shape[1] - 1
    for user, turn in np.ndindex(len(batch), last):
        following = best(online[user, turn + 1])
        targets[user, turn] += gamma * target[user, turn + 1, following].mean()
    return targets


def dqn_loss(weights: dict[str, Array], batch: Trajectories, targets: Array) -> float:
    shown = np.take_along_axis(values_of(weights, "critic", batch), shown_in(batch), 2)
    return float(((shown - targets) ** 2).mean())


@pytest.mark.parametrize("turns", [1, TURNS])
def test_dqn_terms_equal_the_derivation(turns: int) -> None:
    agent, batch = tiny_dqn(), some_batch(turns)
    before = arrays(agent)
    targets = dqn_targets(before, batch, gamma=0.8)
    if turns > 1:  # otherwise the test would miss a choice by the target network
        chosen = [
            np.sort(np.argsort(-values_of(before, net, batch))[..., :SLOTS]) for net in ("critic", "target_critic")
        ]
        assert (chosen[0] != chosen[1]).any(2).all()
    terms = {name: value.item() for name, value in agent.update(batch).items()}
    shown = np.take_along_axis(values_of(before, "critic", batch), shown_in(batch), 2)
    expected = {"loss/critic": dqn_loss(before, batch, targets), "value/q": shown.mean()}
    expected |= {"value/target": targets.mean(), "policy/epsilon": 0.9}
    assert terms == pytest.approx(expected, rel=2e-5)


def test_dqn_gradients() -> None:
    agent, batch = tiny_dqn(), some_batch()
    before = arrays(agent)
    targets = dqn_targets(before, batch, gamma=0.8)
    agent.update(batch)
    names = parameters_of(agent, "critic", "critic_belief")
    assert_gradients(agent, before, lambda weights: dqn_loss(weights, batch, targets), names)


def test_a_slate_is_the_top_of_the_values() -> None:
    agent = tiny_dqn()
    state = torch.randn(5, agent.critic_belief.state_dim, generator=stream(0, "states"))
    values = mlp_forward(arrays(agent), "critic.", state.double().numpy())
    shown = agent.decide(state, nothing_seen(5), None).slate
    assert shown.tolist() == [best(row).tolist() for row in values]


# --- exploration and targets of DQN and SlateQ


@pytest.mark.parametrize("step", [0, 1, 50, 10_000])
def test_epsilon_decays_exponentially(step: int) -> None:
    agent = tiny_dqn()
    agent.step = step
    assert agent.epsilon == pytest.approx(0.2 + 0.7 * math.exp(-step / 50))
    assert agent.update(some_batch())["policy/epsilon"].item() == pytest.approx(agent.epsilon)


@pytest.mark.parametrize("step", [0, 60])
def test_epsilon_is_the_share_of_random_slates(step: int) -> None:
    """Exploration replaces whole slates. A draw for each slot would leave few slates as the agent chose them."""
    agent = tiny_dqn()
    agent.step = step
    users = 4000
    state, seen = torch.zeros(users, agent.critic_belief.state_dim), nothing_seen(users)
    own, shown = agent.decide(state, seen, None).slate, agent.decide(state, seen, stream(0, "exploration")).slate
    random = shown[(shown != own).any(1)]
    share = len(random) / users
    assert share == pytest.approx(agent.epsilon, abs=5 * math.sqrt(agent.epsilon * (1 - agent.epsilon) / users))
    counts = torch.bincount(random.flatten(), minlength=ITEMS).double()
    assert (counts / counts.sum() * ITEMS - 1).abs().max() < 5 * math.sqrt(ITEMS / counts.sum())  # uniform over items


@pytest.mark.parametrize("make", [tiny_dqn, tiny_slateq])
@pytest.mark.parametrize("tau", [0.0, 0.1, 1.0])
def test_targets_move_by_tau(make: Any, tau: float) -> None:
    """The target moves towards the network after its step: tau 1 copies it, tau 0 leaves the target alone."""
    agent = make(tau=tau)
    for _ in range(2):
        old = [p.clone() for p in agent.target_critic.parameters()]
        agent.update(some_batch())
        for was, now, online in zip(old, agent.target_critic.parameters(), agent.critic.parameters(), strict=True):
            torch.testing.assert_close(now, (1 - tau) * was + tau * online.detach())


@pytest.mark.parametrize("make", [tiny_dqn, tiny_slateq])
def test_targets_start_as_the_network(make: Any) -> None:
    agent = make(fresh=True)
    pairs = zip(agent.critic.parameters(), agent.target_critic.parameters(), strict=True)
    assert all(torch.equal(online, target) and online is not target for online, target in pairs)


@pytest.mark.parametrize("make", [tiny_dqn, tiny_slateq])
def test_target_network_gets_no_gradient_and_no_optimiser(make: Any) -> None:
    agent = make()
    agent.update(some_batch())
    assert {name.split(".")[0] for name in gradients(agent)} == {"critic", "critic_belief"}
    assert stepped_by(agent) == {"critic": "critic", "critic_belief": "critic"}
    assert not any(p.requires_grad for p in agent.target_critic.parameters())


@pytest.mark.parametrize("make", [tiny_dqn, tiny_slateq])
def test_last_turn_is_terminal(make: Any) -> None:
    """The last turn ignores the target network, even if its values are large."""
    agent, batch = make(), some_batch(turns=1)
    torch.nn.init.constant_(agent.target_critic[-1].bias, 1000.0)
    promised = batch.clicks[:, 1:].float().mean().item() if make is tiny_dqn else 1.0
    assert agent.update(batch)["value/target"].item() == pytest.approx(promised)


# --- SlateQ

# Relevances and odds follow the definition of the simulator and do not call its methods.


def relevance_of(env: TopicRec, taste: Array) -> Array:
    """Compute the relevance of all items, [N]."""
    items = env.item_embeddings.double().numpy()
    return sigmoid((items @ taste / np.linalg.norm(items, axis=1).max() - env.offset) * env.slope)


def worth(env: TopicRec, taste: Array, values: Array, slate: Mapping[int, int]) -> float:
    """Sum P(click | slate) * Q over a slate's items, given by slot. Slots may be empty."""
    items = list(slate.values())
    norms = np.linalg.norm(env.item_embeddings.numpy().reshape(env.num_items, env.num_topics, -1), axis=2)
    crowded = np.bincount(norms[items].argmax(1)).max() >= env.diversity_threshold
    relevance = relevance_of(env, taste) / (env.diversity_penalty if crowded else 1)
    examination = env.examination.double().numpy()
    return float(sum(examination[slot] * relevance[item] * values[item] for slot, item in slate.items()))


def greedy(env: TopicRec, taste: Array, values: Array) -> list[int]:
    """Fill the slots, the most examined first, with the item that makes the slate so far worth most."""
    slate: dict[int, int] = {}
    for slot in np.argsort(-env.examination.numpy(), kind="stable"):
        left = [item for item in range(env.num_items) if item not in slate.values()]
        slate[int(slot)] = max(left, key=lambda item: worth(env, taste, values, {**slate, int(slot): item}))
    return [slate[slot] for slot in range(env.slate_size)]


def next_slate(training: str, env: TopicRec, taste: Array, values: Array, shown: Array) -> list[int]:
    if training == "sarsa":
        return shown.tolist()
    return greedy(env, taste, values) if training == "greedy" else best(relevance_of(env, taste) * values).tolist()


def slateq_targets(weights: dict[str, Array], batch: Trajectories, agent: SlateQ) -> Array:
    """Target of a click: 1 + gamma * value of the next slate to its user by the target network, [B, H]."""
    values = values_of(weights, "target_critic", batch)
    tastes, shown = batch.hidden["effective"].double().numpy(), shown_in(batch)
    targets = np.ones(shown.shape[:2])
    for user, turn in np.ndindex(len(batch), shown.shape[1] - 1):
        met = tastes[user, turn + 1], values[user, turn + 1]
        following = next_slate(agent.training_slates, agent.env, *met, shown[user, turn + 1])
        targets[user, turn] += agent.gamma * worth(agent.env, *met, dict(enumerate(following)))
    return targets


def clicked_values(weights: dict[str, Array], batch: Trajectories, targets: Array, credit: str) -> tuple[Array, Array]:
    """Return Q and its target for each credited click."""
    values, shown = values_of(weights, "critic", batch), shown_in(batch)
    places = credited(clicks_in(batch), credit)
    q = [values[user, turn, shown[user, turn, slot]] for user, turn, slot in places]
    return np.array(q), np.array([targets[user, turn] for user, turn, _ in places])


@pytest.mark.parametrize("credit", ["first_click", "every_click"])
@pytest.mark.parametrize("training", ["topk", "greedy", "sarsa"])
def test_slateq_equals_the_derivation(training: str, credit: str) -> None:
    agent, batch = tiny_slateq(training=training, credit=credit), some_batch()
    before = arrays(agent)
    targets = slateq_targets(before, batch, agent)

    def loss(weights: dict[str, Array]) -> float:
        """Average over the credited clicks."""
        q, target = clicked_values(weights, batch, targets, credit)
        return float(((q - target) ** 2).mean())

    q, target = clicked_values(before, batch, targets, credit)
    expected = {"loss/critic": loss(before), "value/q": q.mean(), "value/target": target.mean(), "policy/epsilon": 0.9}
    assert {name: value.item() for name, value in agent.update(batch).items()} == pytest.approx(expected, rel=2e-5)
    assert_gradients(agent, before, loss, parameters_of(agent, "critic", "critic_belief"))


def test_credits_and_targets_differ_on_this_batch() -> None:
    """Otherwise the test above could not tell them apart."""
    clicks = clicks_in(some_batch())
    assert len(credited(clicks, "every_click")) > len(credited(clicks, "first_click")) > 5
    agents = [tiny_slateq(training=training) for training in ("topk", "greedy", "sarsa")]
    targets = [slateq_targets(arrays(agent), some_batch(), agent)[:, :-1] for agent in agents]
    assert all((a != b).all() for a, b in itertools.combinations(targets, 2))


def test_without_clicks_there_is_nothing_to_learn() -> None:
    agent, batch = tiny_slateq(), some_batch()
    batch.clicks.zero_()
    terms = agent.update(batch)
    assert terms["loss/critic"].item() == 0
    assert all((gradient == 0).all() for gradient in gradients(agent).values())


SMALL = dict(num_items=7, item_embeddings=some_items(7), slate_size=3, diversity_threshold=2)


def catalogues(count: int, low: float) -> list[tuple[Array, Array]]:
    """Draw tastes [D], and values [N] between `low` and 1."""
    random = np.random.default_rng(0)
    return [(random.random(6) / 2, low + (1 - low) * random.random(7)) for _ in range(count)]


def found_slate(agent: SlateQ, how: str, taste: Array, values: Array) -> list[int]:
    relevance = agent.env.relevance(torch.tensor(taste, dtype=torch.float32).unsqueeze(0))
    return agent.best_slate(how, relevance, torch.tensor(values, dtype=torch.float32).unsqueeze(0))[0].tolist()


@pytest.mark.parametrize("click_model", [FROM_BOTH_ENDS, PositionBasedModel(decay=0.85, bottom_weight=0.0)])
@pytest.mark.parametrize(("penalty", "low"), [(1.0, 0.0), (1.0, -1.0), (1000.0, 0.2)])
def test_greedy_slate_is_the_best_of_all(click_model: PositionBasedModel, penalty: float, low: float) -> None:
    """Greedy slates are the best slates where greed costs nothing.

    That is so without a penalty, and with a penalty that nothing outweighs: each of three slots takes another topic.
    """
    env = gentle_env(**SMALL, click_model=click_model, diversity_penalty=penalty)
    agent = tiny_slateq(env=env, num_items=7, slate_size=3)
    for taste, values in catalogues(10, low):
        everything = itertools.permutations(range(7), 3)
        most = max(worth(env, taste, values, dict(enumerate(slate))) for slate in everything)
        found = found_slate(agent, "greedy", taste, values)
        assert worth(env, taste, values, dict(enumerate(found))) == pytest.approx(most, rel=1e-6)


@pytest.mark.parametrize(
    ("penalty", "threshold", "crowds"), [(1.02, 3, {True, False}), (1.5, 3, {False}), (1.05, 2, {True})]
)
def test_greedy_slate_weighs_the_penalty(penalty: float, threshold: int, crowds: set[bool]) -> None:
    """Greedy slates equal those of a plain loop.

    With a small penalty some are crowded, with a large one none. Four items of three topics always crowd, some of them
    before the last slot is filled.
    """
    agent = tiny_slateq(env=gentle_env(diversity_penalty=penalty, diversity_threshold=threshold))
    random, found_crowds = np.random.default_rng(0), set()
    for _ in range(20):
        taste, values = random.random(6) / 2, random.random(ITEMS) - 0.1
        found = found_slate(agent, "greedy", taste, values)
        assert found == greedy(agent.env, taste, values)
        found_crowds.add(int(torch.bincount(agent.env.item_topic[found]).max()) >= threshold)
    assert found_crowds == crowds


@pytest.mark.parametrize("serving", ["topk", "greedy"])
def test_slateq_serves_the_user_whom_the_slate_meets(serving: str) -> None:
    agent, users = tiny_slateq(serving=serving), 6
    state = torch.randn(users, agent.critic_belief.state_dim, generator=stream(0, "states"))
    tastes = torch.rand(users, 6, generator=stream(0, "tastes")) / 2
    hidden = Hidden(user=tastes.flip(0), bored=torch.zeros(users, 3, dtype=torch.bool), effective=tastes)
    seen = PrivilegedObservation(*nothing_seen(users), hidden)
    values = mlp_forward(arrays(agent), "critic.", state.double().numpy())
    shown = agent.decide(state, seen, None).slate.tolist()
    for slate, taste, value in zip(shown, tastes.double().numpy(), values, strict=True):
        if serving == "greedy":
            assert slate == greedy(agent.env, taste, value)
        else:
            assert slate == best(relevance_of(agent.env, taste) * value).tolist()


# --- REINFORCE with a softmax over items


def policy_of(weights: dict[str, Array], batch: Trajectories) -> Array:
    """Compute the probabilities of all items at the start of each turn, [B, H, N]."""
    logits = mlp_forward(weights, "actor.", belief_states(weights, "actor_belief.", batch))
    return np.exp(logits) / np.exp(logits).sum(2, keepdims=True)


def on_slate(probability: float) -> float:
    """Probability that at least one of S draws is the item."""
    return 1 - (1 - probability) ** SLOTS


def reinforce_loss(
    weights: dict[str, Array], batch: Trajectories, behaviour: dict[str, Array], credit: str, corrected: bool
) -> float:
    """Minus the mean over trajectories of sum_t G_t * (log-probabilities of the credited clicks).

    Corrected: of log pi, times d on_slate / d pi at the behaviour's policy, a constant (Chen et al. 2019, section 4.3).
    """
    policy, acted, shown = policy_of(weights, batch), policy_of(behaviour, batch), shown_in(batch)
    returns, total = returns_of(batch, gamma=0.8), 0.0
    for user, turn, slot in credited(clicks_in(batch), credit):
        item, h = shown[user, turn, slot], 1e-6
        probability, before = policy[user, turn, item], acted[user, turn, item]
        if corrected:
            multiplier = (on_slate(before + h) - on_slate(before - h)) / (2 * h)
            total += returns[user, turn] * multiplier * math.log(probability)
        else:
            total += returns[user, turn] * math.log(on_slate(probability))
    return -total / len(batch)


@pytest.mark.parametrize("credit", ["first_click", "every_click"])
@pytest.mark.parametrize("corrected", [False, True])
def test_reinforce_slate_equals_the_derivation(credit: str, corrected: bool) -> None:
    agent, batch = tiny_reinforce_slate(credit=credit, top_k_correction=corrected), some_batch()
    before = arrays(agent)
    loss = partial(reinforce_loss, batch=batch, behaviour=before, credit=credit, corrected=corrected)
    terms = {name: value.item() for name, value in agent.update(batch).items()}
    policy = policy_of(before, batch)
    expected = {"loss/actor": loss(before), "value/return_to_go": returns_of(batch, 0.8).mean()}
    expected["policy/entropy"] = -(policy * np.log(policy)).sum(2).mean()
    assert terms == pytest.approx(expected, rel=2e-5)
    assert_gradients(agent, before, loss, parameters_of(agent, "actor", "actor_belief"))
    assert stepped_by(agent) == {"actor": "actor", "actor_belief": "actor"}


def test_reinforce_slate_makes_what_was_clicked_likelier() -> None:
    agent, batch = tiny_reinforce_slate(), some_batch(turns=1)
    batch.slates[:, 1] = torch.tensor([4, 5, 6, 7])
    batch.clicks[:, 1] = torch.tensor([0, 1, 0, 1])
    before = policy_of(arrays(agent), batch)
    for _ in range(20):
        agent.update(batch)
    after = policy_of(arrays(agent), batch)
    assert (after[..., 5] > 1.2 * before[..., 5]).all()
    assert (after[..., [4, 6, 7]] < before[..., [4, 6, 7]]).all()  # 7 is not the first click


@pytest.mark.parametrize("corrected", [False, True])
def test_a_certain_item_leaves_gradients_finite(corrected: bool) -> None:
    agent, batch = tiny_reinforce_slate(top_k_correction=corrected, credit="every_click"), some_batch()
    with torch.no_grad():
        agent.actor[-1].bias[3] = 100.0
    batch.slates[:, 1:] = 3
    assert agent.update(batch)["loss/actor"].isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(agent).values())


def test_reinforce_slate_draws_with_replacement_from_its_policy() -> None:
    agent, users = tiny_reinforce_slate(), 5000
    state = torch.randn(1, agent.actor_belief.state_dim, generator=stream(0, "states")).expand(users, -1)
    logits = mlp_forward(arrays(agent), "actor.", state[:1].double().numpy())[0]
    policy = np.exp(logits) / np.exp(logits).sum()
    seen = nothing_seen(users)
    slates: Tensor = agent.decide(state, seen, stream(0, "exploration")).slate
    for slot in slates.T:
        share = np.bincount(slot.numpy(), minlength=ITEMS) / users
        assert (np.abs(share - policy) < 5 * np.sqrt(policy * (1 - policy) / users)).all()
    # Two slots agree as often as independent draws do.
    same, expected = (slates[:, 0] == slates[:, 1]).double().mean().item(), (policy**2).sum()
    assert same == pytest.approx(expected, abs=5 * math.sqrt(expected / users))
    assert agent.decide(state, seen, None).slate[0].tolist() == best(policy).tolist()


# --- all three agents


@pytest.mark.parametrize(("make", "rate"), [(tiny_dqn, 1e-3), (tiny_slateq, 1e-3), (tiny_reinforce_slate, 3e-3)])
def test_learning_rate(make: Any, rate: float) -> None:
    agent = make()
    assert_learning_rates(agent, some_batch(), dict.fromkeys(agent.optim, rate))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *((DQN, wrong) for wrong in ({"gamma": 1.1}, {"tau": -0.1}, {"q_lr": 0}, {"epsilon_decay": 0})),
        (DQN, {"epsilon_start": 1.5}),
        *((SlateQ, wrong) for wrong in ({"serving": "best"}, {"training": "all"}, {"credit": "last"})),
        *((REINFORCESlate, wrong) for wrong in ({"pi_lr": 0}, {"credit": "last"}, {"top_k_correction": 1})),
    ],
)
def test_impossible_values_are_named(kind: type, wrong: dict[str, Any]) -> None:
    assert_named(kind, wrong)


@pytest.mark.parametrize("make", [tiny_dqn, tiny_slateq, tiny_reinforce_slate])
def test_continues_identically_from_its_state(make: Any) -> None:
    agent, resumed = make(), make()
    agent.step = 7
    for _ in range(2):
        agent.update(some_batch())
    resumed.load_learner_state(copy.deepcopy(agent.learner_state()))
    terms, other = agent.update(some_batch()), resumed.update(some_batch())
    assert all(torch.equal(terms[name], other[name]) for name in agent.TERMS)
    pairs = zip(agent.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
