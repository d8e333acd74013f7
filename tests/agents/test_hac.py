"""HAC: its losses derived in NumPy, which gradients flow where, and its hyper-actions."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from slaterl.agents.online.hac import HAC
from slaterl.beliefs.gru import GRUBelief
from slaterl.data.trajectories import Trajectories
from slaterl.seeds import seeded_weights, stream
from tests.agents.derivations import (
    assert_gradients,
    assert_learning_rates,
    assert_named,
    drift,
    parameters_of,
    rewards_of,
    stepped_by,
)
from tests.agents.test_latent_agents import states
from tests.agents.test_sac import gradients, q_values, sigmoid
from tests.helpers import ITEMS, SLOTS, TURNS, Array, arrays, mlp_forward, tiny_trajectories

WIDTH = 3


def tiny_hac(**changes: Any) -> HAC:
    """Build a HAC with targets that have drifted."""
    settings: dict[str, Any] = dict(
        item_embeddings=torch.randn(ITEMS, WIDTH, generator=stream(0, "items")) * torch.tensor([0.1, 1, 5]),
        slate_size=SLOTS, belief=partial(GRUBelief, num_items=ITEMS, slate_size=SLOTS, item_dim=2, hidden_dim=5),
        gamma=0.8, tau=0.1, q_lr=1e-3, pi_lr=3e-3, q_hidden=[16], pi_hidden=[12, 8], inference_hidden=[10],
        exploration_noise=0.4, alignment=0.3, supervision=0.6,
    )  # fmt: skip
    with seeded_weights(0, "tiny hac"):
        agent = HAC(**(settings | changes))
    with torch.no_grad():
        agent.actor[-1].weight.mul_(4)
    drift(agent.target_critics, agent.target_actor)
    return agent


def inferred(weights: dict[str, Array], slates: Array) -> Array:
    """Mean over a slate of tanh(MLP(item)), [..., A]."""
    return np.tanh(mlp_forward(weights, "inference.", weights["ranker.item_embeddings"][slates])).mean(-2)


def q(weights: dict[str, Array], critics: str, state: Array, action: Array) -> Array:
    """The critic reads latents: weights as they are, and five times the bias. q_values maps actions to them."""
    return q_values(weights, critics, state, action)[0]


class Derivation:
    """One update on a batch, from the weights before it."""

    def __init__(self, agent: HAC, batch: Trajectories) -> None:
        self.batch, self.before, self.shown = batch, arrays(agent), batch.slates[:, 1:].long().numpy()
        self.clicks = batch.clicks[:, 1:].double().numpy()
        self.hyper_action = inferred(self.before, self.shown)
        self.target = rewards_of(batch)
        following = np.tanh(mlp_forward(self.before, "target_actor.", states(self.before, "actor", batch)[:, 1:]))
        later = q(self.before, "target_critics", states(self.before, "critic", batch)[:, 1:], following)
        self.target[:, :-1] += 0.8 * later
        action, items = self.action(self.before), self.before["ranker.item_embeddings"]
        self.own_slates = np.argsort(-(action[..., :-1] @ items.T), axis=-1)[..., :SLOTS]

    def action(self, weights: dict[str, Array]) -> Array:
        return np.tanh(mlp_forward(weights, "actor.", states(weights, "actor", self.batch)))

    def critic_loss(self, weights: dict[str, Array]) -> float:
        value = q(weights, "critics", states(weights, "critic", self.batch), self.hyper_action)
        return float(((value - self.target) ** 2).mean())

    def alignment(self, weights: dict[str, Array]) -> float:
        return float(((self.action(weights) - inferred(weights, self.own_slates)) ** 2).mean())

    def supervision(self, weights: dict[str, Array]) -> float:
        action, items = self.action(weights), weights["ranker.item_embeddings"][self.shown]
        chance = sigmoid((items * action[..., None, :-1]).sum(-1) + 5 * action[..., None, -1])
        return float(-np.where(self.clicks == 1, np.log(chance), np.log(1 - chance)).mean())

    def actor_loss(self, weights: dict[str, Array]) -> float:
        """The critic and its belief are those before the update: they get no gradient from here, and Q's size none."""
        state = states(self.before, "critic", self.batch)
        value, size = (q(self.before, "critics", state, self.action(of)) for of in (weights, self.before))
        return (
            -float(value.mean() / np.abs(size).mean()) + 0.3 * self.alignment(weights) + 0.6 * self.supervision(weights)
        )


def test_hac_equals_the_derivation() -> None:
    agent, batch = tiny_hac(), tiny_trajectories(3)
    derived = Derivation(agent, batch)
    terms = {name: value.item() for name, value in agent.update(batch).items()}
    value = q(derived.before, "critics", states(derived.before, "critic", batch), derived.hyper_action)
    expected = {
        "loss/critic": derived.critic_loss(derived.before),
        "loss/actor": derived.actor_loss(derived.before),
        "loss/alignment": derived.alignment(derived.before),
        "loss/supervision": derived.supervision(derived.before),
        "value/q": value.mean(),
        "value/target": derived.target.mean(),
    }
    assert terms == pytest.approx(expected, rel=1e-4)
    of_critic = parameters_of(agent, "critics", "critic_belief")
    assert_gradients(agent, derived.before, derived.critic_loss, of_critic)
    of_actor = parameters_of(agent, "actor", "actor_belief", "inference")
    assert_gradients(agent, derived.before, derived.actor_loss, of_actor)
    owners = {"critics": "critic", "critic_belief": "critic"} | dict.fromkeys(
        ("actor", "actor_belief", "inference"), "actor"
    )
    assert stepped_by(agent) == owners
    assert {name.split(".")[0] for name in gradients(agent)} == set(owners)


def test_the_inference_learns_from_the_alignment_alone() -> None:
    agent, batch = tiny_hac(alignment=0), tiny_trajectories(3)
    agent.update(batch)
    moved = {name: gradient.abs().max().item() for name, gradient in gradients(agent).items()}
    assert all(moved[name] == 0 for name in parameters_of(agent, "inference"))
    assert all(moved[name] > 0 for name in parameters_of(agent, "actor", "critics"))


def test_the_critic_reads_slates_and_not_recorded_actions() -> None:
    """So it learns from slates that no hyper-action made."""
    terms = []
    for action in (-1.0, 1.0):
        batch = tiny_trajectories(3)
        batch.actions = torch.full((3, TURNS, WIDTH + 1), action)
        terms.append(tiny_hac().update(batch)["loss/critic"])
    assert torch.equal(*terms)


@pytest.mark.parametrize("tau", [0.0, 0.1, 1.0])
def test_targets_move_by_tau(tau: float) -> None:
    agent = tiny_hac(tau=tau)
    targets = (agent.target_actor, agent.target_critics)
    old = [p.clone() for target in targets for p in target.parameters()]
    agent.update(tiny_trajectories(3))
    online = [p for network in (agent.actor, agent.critics) for p in network.parameters()]
    for was, now, own in zip(old, [p for t in targets for p in t.parameters()], online, strict=True):
        torch.testing.assert_close(now, (1 - tau) * was + tau * own.detach())


def test_exploration_adds_gaussian_noise() -> None:
    agent, users = tiny_hac(), 5000
    with torch.no_grad():
        agent.actor[-1].weight.mul_(0.1)  # so that the box clips nothing
    state = torch.ones(1, agent.actor_belief.state_dim)
    own = agent.action(state, None)
    noise = agent.action(state.expand(users, -1), stream(0, "exploration")) - own
    assert noise.std(0).detach().numpy() == pytest.approx(0.4, rel=0.1)
    assert noise.mean(0).detach().numpy() == pytest.approx(0, abs=0.05)
    assert noise.abs().max() <= 1


def test_learning_rates() -> None:
    assert_learning_rates(tiny_hac(), tiny_trajectories(3), {"critic": 1e-3, "actor": 3e-3})


@pytest.mark.parametrize("wrong", [{"gamma": 1.1}, {"alignment": -1}, {"supervision": -0.1}, {"inference_hidden": []}])
def test_impossible_values_are_named(wrong: dict[str, Any]) -> None:
    assert_named(HAC, wrong)
