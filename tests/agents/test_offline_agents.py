"""Offline agents against derivations in NumPy: every loss, its constants, and the parameters that it moves."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.special import erf

from slaterl import layers
from slaterl.agents.init_from import start_from
from slaterl.agents.offline import decision_transformer
from slaterl.agents.offline.action_vae import ActionVAE
from slaterl.agents.offline.actor_critic import Turns
from slaterl.agents.offline.awac import AWAC
from slaterl.agents.offline.base import OfflineAgent, with_actions, with_labels
from slaterl.agents.offline.bc import BC
from slaterl.agents.offline.bcq import BCQ
from slaterl.agents.offline.cal_ql import CalQL
from slaterl.agents.offline.cql import CQL
from slaterl.agents.offline.decision_transformer import Context, DecisionTransformer
from slaterl.agents.offline.diffusion_ql import DiffusionQL
from slaterl.agents.offline.fql import FQL
from slaterl.agents.offline.iql import IQL
from slaterl.agents.offline.plas import PLAS
from slaterl.agents.offline.rebrac import ReBRAC
from slaterl.agents.offline.sac_n import EDAC, SACN
from slaterl.agents.offline.td3_bc import TD3BC
from slaterl.beliefs.base import states_of
from slaterl.beliefs.gru import GRUBelief
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation
from slaterl.errors import UserError
from slaterl.evaluation.fqe import policy_actions, with_places
from slaterl.networks import EDGE, log_prob_of
from slaterl.paths import CONF
from slaterl.rollout import rollout
from slaterl.seeds import seeded_weights, stream
from tests.agents.derivations import assert_gradients, assert_named, drift, parameters_of, returns_of, rewards_of
from tests.agents.test_latent_agents import states
from tests.agents.test_sac import policy
from tests.helpers import (
    ITEMS,
    LATENT,
    SLOTS,
    TURNS,
    Array,
    arrays,
    copy_of,
    tiny_env,
    tiny_gems,
    tiny_sac,
    tiny_trajectories,
)

BATCH, GAMMA, SCALE = 3, 0.8, 0.5
CRITIC, ACTOR = ("critics", "critic_belief"), ("actor", "actor_belief")
ENTROPY = dict(alpha_lr=2e-3, initial_alpha=0.5)
SOFT = dict(ENTROPY, entropy_in_target=True)
TARGET_POLICY = dict(policy_delay=2, target_noise=0.7, noise_clip=0.5)
# With a layer norm the tiny critics of some agents order themselves alike in all states; see the test of it below.
PLAIN = dict(layer_norm=False)
SETTINGS: dict[type, dict[str, Any]] = {
    BC: dict(policy="gaussian", top_fraction=1.0),
    TD3BC: dict(TARGET_POLICY, alpha=2.5),
    ReBRAC: dict(TARGET_POLICY, actor_penalty=0.3, critic_penalty=0.2),
    AWAC: dict(PLAIN, temperature=0.03),
    IQL: dict(PLAIN, expectile=0.7, beta=8.0, decay_steps=100),
    CQL: dict(ENTROPY, **PLAIN, conservatism=5.0, threshold=None, actions=4, turns=3),
    CalQL: dict(ENTROPY, **PLAIN, conservatism=5.0, threshold=None, actions=4, turns=3),
    SACN: dict(SOFT, **PLAIN, num_critics=3),
    EDAC: dict(SOFT, **PLAIN, num_critics=3, eta=2.0, turns=3),
    BCQ: dict(candidates=4, acting_candidates=5, weight_of_min=0.75, phi=0.3, latent_clip=0.5, vae_hidden=[10]),
    PLAS: dict(weight_of_min=0.75, max_latent=1.5, vae_hidden=[10], vae_lr=2e-3, vae_share=0.5, max_steps=2),
    FQL: dict(alpha=0.7, flow_steps=3),
    DiffusionQL: dict(PLAIN, steps=4, eta=0.6, candidates=5, decay_steps=100),
}
BY_THE_FIRST = (TD3BC, BCQ, IQL, PLAS)  # the policy's critic; the others read the minimum
BY_THE_MEAN = (FQL, DiffusionQL)
LEARNERS = [kind for kind in SETTINGS if kind not in (BC, EDAC)]


def tiny(kind: type[OfflineAgent], **changes: Any) -> Any:
    """Build an agent with scaled rewards, drifted targets, and actions that differ from turn to turn."""
    settings: dict[str, Any] = dict(
        ranker=tiny_gems(),
        belief=partial(GRUBelief, num_items=ITEMS, slate_size=SLOTS, item_dim=2, hidden_dim=5),
        generator=stream(0, "update"),
        pi_lr=3e-3,
        pi_hidden=[12, 8],
    )
    if kind is not BC:
        settings |= dict(
            gamma=GAMMA, reward_scale=SCALE, tau=0.1, q_lr=1e-3, q_hidden=[16, 9], num_critics=2, layer_norm=True
        )
    with seeded_weights(0, "tiny offline agent"):
        agent = kind(**(settings | SETTINGS[kind] | changes))
    with torch.no_grad():
        if kind is not DiffusionQL:
            agent.actor[-1].weight.mul_(4)
        if kind is not BC:  # each critic is the smaller one somewhere
            for member in (*agent.critics.members, *agent.target_critics.members):
                member[-1].weight.mul_(3)
            agent.critics.members[0][-1].bias.add_(0.45)
        if kind is DiffusionQL:
            agent.critics.members[0][-1].bias.sub_(1.0)
        if kind is IQL:
            agent.value[-1].bias.sub_(1.4)
        if kind is CalQL:  # some values are above the returns, and some below
            for member in agent.critics.members:
                member[-1].bias.add_(1.5)
    drift(*(getattr(agent, name) for name in ("target_critics", "target_actor") if hasattr(agent, name)))
    agent.step = 2  # policies with a delay learn, and PLAS has its VAE
    return agent


def by(kind: type[OfflineAgent], q: Array) -> Array:
    """Values [...] of critics [n, ...], as an agent's policy reads them."""
    return q[0] if kind in BY_THE_FIRST else q.mean(0) if kind in BY_THE_MEAN else q.min(0)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def mish(x: Array) -> Array:
    return x * np.tanh(np.log1p(np.exp(x)))


def network(
    weights: dict[str, Array], prefix: str, inputs: Array, activation: Callable[[Array], Array] = relu
) -> Array:
    """Apply linear layers with an activation between them, and layer norms after it if the network has them."""
    numbers = sorted({int(name[len(prefix) :].split(".")[0]) for name in weights if name.startswith(prefix)})
    for number in numbers:
        weight, bias = (weights[f"{prefix}{number}.{name}"] for name in ("weight", "bias"))
        if weight.ndim == 1:
            centred = inputs - inputs.mean(-1, keepdims=True)
            inputs = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias
        else:
            inputs = inputs @ weight.T + bias
            inputs = inputs if number == numbers[-1] else activation(inputs)
    return inputs


def critics(weights: dict[str, Array], name: str, state: Array, action: Array) -> Array:
    """Compute the values of all critics, [n, ...]. They read latent units."""
    latent = weights["ranker.center"] + weights["ranker.half_width"] * action
    inputs = np.concatenate([state, latent], axis=-1)
    count = len({key.split(".")[2] for key in weights if key.startswith(f"{name}.members.")})
    return np.stack([network(weights, f"{name}.members.{i}.", inputs)[..., 0] for i in range(count)])


def log_density(parameters: Array, action: Array) -> Array:
    """Log-density of recorded actions under a tanh-Gaussian of deviation at least e^-2: normal density over slope."""
    mean, log_std = np.split(parameters, 2, axis=-1)
    std, raw = np.exp(log_std.clip(-2, 2)), np.arctanh(action.clip(-EDGE, EDGE))
    normal = np.exp(-(((raw - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
    return np.log(normal / (1 - np.tanh(raw) ** 2)).sum(-1)


class Derivation:
    """Derivation of one update of an agent on a batch. Subclasses give the equations.

    `draw` repeats the agent's draws, so a subclass calls it in the order of an update.
    """

    def __init__(self, agent: OfflineAgent, batch: Trajectories) -> None:
        assert batch.actions is not None
        self.agent, self.batch, self.before = agent, batch, arrays(agent)
        self.generator = copy_of(agent.generators["update"])
        self.action = batch.actions.double().numpy()
        self.critic_state = states(self.before, "critic", batch)
        self.actor_state = states(self.before, "actor", batch)
        self.shape = (len(batch), self.action.shape[1], LATENT)
        self.next_shape = (len(batch), self.action.shape[1] - 1, LATENT)
        self.target = SCALE * rewards_of(batch)
        self.target[:, :-1] += GAMMA * self.next_value()
        self.prepare()

    def draw(self, *shape: int) -> Array:
        return torch.randn(shape, generator=self.generator).double().numpy()

    def next_value(self) -> Array:
        """min Q'(s', a'), a' ~ pi(s'), without entropy."""
        action, _ = policy(self.before, self.actor_state[:, 1:], self.draw(*self.next_shape))
        return critics(self.before, "target_critics", self.critic_state[:, 1:], action).min(0)

    def prepare(self) -> None:
        """Make the draws of the losses, after those of the target."""

    def q(self, weights: dict[str, Array]) -> Array:
        return critics(weights, "critics", states(weights, "critic", self.batch), self.action)

    def further_loss(self, weights: dict[str, Array]) -> float:
        return 0.0

    def critic_loss(self, weights: dict[str, Array]) -> float:
        return float(((self.q(weights) - self.target) ** 2).mean()) + self.further_loss(weights)

    def actor_loss(self, weights: dict[str, Array]) -> float:
        raise NotImplementedError

    def own_q(self, action: Array) -> Array:
        """Value the policy's actions. Neither the critics nor their belief move with the policy's loss."""
        return critics(self.before, "critics", self.critic_state, action)


class OfTD3BC(Derivation):
    def next_value(self) -> Array:
        action = self.target_action()
        return critics(self.before, "target_critics", self.critic_state[:, 1:], action).min(0)

    def target_action(self) -> Array:
        noise = (0.7 * self.draw(*self.next_shape)).clip(-0.5, 0.5)
        return (np.tanh(network(self.before, "target_actor.", self.actor_state[:, 1:])) + noise).clip(-1, 1)

    def actor_loss(self, weights: dict[str, Array]) -> float:
        """-lam * Q1(s, pi) + squared error to the data; lam = 2.5 / mean |Q1| is a constant."""
        action = np.tanh(network(weights, "actor.", states(weights, "actor", self.batch)))
        held = np.tanh(network(self.before, "actor.", self.actor_state))
        lam = 2.5 / np.abs(self.own_q(held)[0]).mean()
        return float(-lam * self.own_q(action)[0].mean() + ((action - self.action) ** 2).mean())


class OfReBRAC(OfTD3BC):
    def next_value(self) -> Array:
        action = self.target_action()
        q = critics(self.before, "target_critics", self.critic_state[:, 1:], action).min(0)
        return q - 0.2 * ((action - self.action[:, 1:]) ** 2).sum(-1)

    def actor_loss(self, weights: dict[str, Array]) -> float:
        action = np.tanh(network(weights, "actor.", states(weights, "actor", self.batch)))
        lam = 1 / np.abs(self.own_q(np.tanh(network(self.before, "actor.", self.actor_state))).min(0)).mean()
        return float((0.3 * ((action - self.action) ** 2).sum(-1) - lam * self.own_q(action).min(0)).mean())


class OfAWAC(Derivation):
    def prepare(self) -> None:
        action, _ = policy(self.before, self.actor_state, self.draw(*self.shape))
        advantage = self.q(self.before).min(0) - self.own_q(action).min(0)
        self.weight = np.exp(advantage / 0.03).clip(max=100)

    def actor_loss(self, weights: dict[str, Array]) -> float:
        parameters = network(weights, "actor.", states(weights, "actor", self.batch))
        return -float((self.weight * log_density(parameters, self.action)).mean())


class OfIQL(Derivation):
    def next_value(self) -> Array:
        return network(self.before, "value.", self.critic_state[:, 1:])[..., 0]

    def prepare(self) -> None:
        self.held = critics(self.before, "target_critics", self.critic_state, self.action).min(0)
        advantage = self.held - network(self.before, "value.", self.critic_state)[..., 0]
        self.weight = np.exp(8 * advantage).clip(max=100)

    def further_loss(self, weights: dict[str, Array]) -> float:
        """Expectile loss of V against min Q'(s, a). Only V moves."""
        u = self.held - network(weights, "value.", states(weights, "critic", self.batch))[..., 0]
        return float((np.where(u < 0, 0.3, 0.7) * u**2).mean())

    def actor_loss(self, weights: dict[str, Array]) -> float:
        parameters = network(weights, "actor.", states(weights, "actor", self.batch))
        return -float((self.weight * log_density(parameters, self.action)).mean())


class OfEntropy(Derivation):
    """SAC's policy."""

    def prepare(self) -> None:
        self.noise = self.draw(*self.shape)

    def actor_loss(self, weights: dict[str, Array]) -> float:
        action, log_prob = policy(weights, states(weights, "actor", self.batch), self.noise)
        return float((0.5 * log_prob - self.own_q(action).min(0)).mean())

    def alpha_loss(self, weights: dict[str, Array]) -> float:
        """Loss of the temperature: it falls with alpha while the entropy is above -A."""
        entropy = -policy(self.before, self.actor_state, self.noise)[1].mean()
        return float(np.exp(weights["log_alpha"]) * (entropy + LATENT))


class OfSACN(OfEntropy):
    def next_value(self) -> Array:
        action, log_prob = policy(self.before, self.actor_state[:, 1:], self.draw(*self.next_shape))
        q = critics(self.before, "target_critics", self.critic_state[:, 1:], action)
        assert len(q) == 3 and len(np.unique(q.argmin(0))) == 3
        self.next_value_of_q, self.bonus = q.min(0), -0.5 * log_prob
        return self.next_value_of_q + self.bonus


class OfEDAC(OfSACN):
    def prepare(self) -> None:
        self.turns = torch.randperm(self.shape[1] - 1, generator=self.generator)[:3].numpy()
        super().prepare()

    def slopes(self, weights: dict[str, Array], critic: int) -> Array:
        """Compute dQ_i / da at the data's actions of the drawn turns by the chain rule, [B, T, A]."""
        state, prefix = states(weights, "critic", self.batch)[:, self.turns], f"critics.members.{critic}."
        latent = weights["ranker.center"] + weights["ranker.half_width"] * self.action[:, self.turns]
        inputs = np.concatenate([state, latent], axis=-1)
        jacobian = np.eye(inputs.shape[-1])
        for number in (0, 2, 4):
            weight = weights[f"{prefix}{number}.weight"]
            inputs, jacobian = inputs @ weight.T + weights[f"{prefix}{number}.bias"], weight @ jacobian
            if number < 4:
                inputs, jacobian = np.maximum(inputs, 0), (inputs > 0)[..., None] * jacobian
        return jacobian[..., 0, state.shape[-1] :] * weights["ranker.half_width"]

    def further_loss(self, weights: dict[str, Array]) -> float:
        slopes = [self.slopes(weights, i) for i in range(3)]
        directions = [slope / np.linalg.norm(slope, axis=-1, keepdims=True) for slope in slopes]
        cosines = sum((directions[i] * directions[j]).sum(-1) for i in range(3) for j in range(3) if i != j)
        return float(2.0 / (3 - 1) * np.mean(cosines) / 3)


class OfCQL(OfEntropy):
    def prepare(self) -> None:
        self.turns = torch.randperm(self.shape[1] - 1, generator=self.generator)[:3].numpy()
        shape = (4, len(self.batch), 3, LATENT)
        uniform = 2 * torch.rand(shape, generator=self.generator).double().numpy() - 1
        self.draws = [uniform]
        for turns in (self.turns, self.turns + 1):  # of pi(s), of pi(s'), both taken in s
            self.draws.append(policy(self.before, self.actor_state[:, turns], self.draw(*shape))[0])
        super().prepare()

    def penalty(self, weights: dict[str, Array]) -> float:
        """Log of the mean of exp Q over 4 actions of each kind - Q of the data's action. The actions are constants."""
        state = states(weights, "critic", self.batch)
        here = np.broadcast_to(state[:, self.turns], (4, len(self.batch), 3, state.shape[-1]))
        uniform, *own = (critics(weights, "critics", here, action) for action in self.draws)
        values = np.concatenate([uniform, *map(self.own_values, own)], axis=1)
        spread = np.log(np.exp(values).mean(1))
        return float((spread - self.q(weights)[:, :, self.turns]).mean())

    def own_values(self, q: Array) -> Array:
        return q

    def further_loss(self, weights: dict[str, Array]) -> float:
        return 5.0 * self.penalty(weights)


class OfCalQL(OfCQL):
    def own_values(self, q: Array) -> Array:
        """max(Q, return to go of the data) at the policy's actions, not at uniform ones."""
        to_go = to_go_of(self.batch)[:, self.turns]
        self.bounded = (q < to_go).mean()
        return np.maximum(q, to_go)


def decoded(weights: dict[str, Array], state: Array, latent: Array) -> Array:
    return np.tanh(network(weights, "vae.decoder.", np.concatenate([state, latent], axis=-1)))


def vae_loss(weights: dict[str, Array], state: Array, action: Array, noise: Array) -> float:
    """Minus the evidence lower bound of a decoder with the deviation 0.05, times 2 * 0.05^2 / A."""
    mean, log_std = np.split(network(weights, "vae.encoder.", np.concatenate([state, action], axis=-1)), 2, axis=-1)
    std = np.exp(log_std.clip(-4, 15))
    kl = (mean**2 + std**2 - 1 - 2 * np.log(std)) / 2
    errors = decoded(weights, state, mean + std * noise) - action
    return float(((errors**2 / (2 * 0.05**2)).sum(-1) + kl.sum(-1)).mean() * 2 * 0.05**2 / LATENT)


class OfPLAS(Derivation):
    """The critics and the policy, when the VAE is trained. The VAE and its belief are constants."""

    def next_value(self) -> Array:
        """0.75 * min + 0.25 * max of Q' at the target policy's action."""
        self.vae_state = states(self.before, "vae", self.batch)
        latent = 1.5 * np.tanh(network(self.before, "target_actor.", self.actor_state[:, 1:]))
        action = decoded(self.before, self.vae_state[:, 1:], latent)
        q = critics(self.before, "target_critics", self.critic_state[:, 1:], action)
        return 0.75 * q.min(0) + 0.25 * q.max(0)

    def actor_loss(self, weights: dict[str, Array]) -> float:
        latent = 1.5 * np.tanh(network(weights, "actor.", states(weights, "actor", self.batch)))
        return -float(self.own_q(decoded(self.before, self.vae_state, latent))[0].mean())


class OfBCQ(Derivation):
    def moved(self, actor: Array, proposal: Array) -> Array:
        return (proposal + 0.3 * np.tanh(actor)).clip(-1, 1)

    def next_value(self) -> Array:
        """max over 4 candidates of 0.75 * min + 0.25 * max of Q'."""
        latent = self.draw(4, *self.next_shape[:2], 2 * LATENT).clip(-0.5, 0.5)
        actor_state, critic_state = (
            np.broadcast_to(state[:, 1:], (4, *state[:, 1:].shape)) for state in (self.actor_state, self.critic_state)
        )
        proposal = decoded(self.before, actor_state, latent)
        xi = network(self.before, "target_actor.", np.concatenate([actor_state, proposal], axis=-1))
        q = critics(self.before, "target_critics", critic_state, self.moved(xi, proposal))
        return (0.75 * q.min(0) + 0.25 * q.max(0)).max(0)

    def prepare(self) -> None:
        self.noise, latent = (self.draw(*self.shape[:2], 2 * LATENT) for _ in range(2))
        self.proposal = decoded(self.before, self.actor_state, latent.clip(-0.5, 0.5))

    def vae_loss(self, weights: dict[str, Array]) -> float:
        return vae_loss(weights, states(weights, "actor", self.batch), self.action, self.noise)

    def climb(self, weights: dict[str, Array]) -> float:
        """-Q1 of the moved proposals. The proposals and the state are constants."""
        xi = network(weights, "actor.", np.concatenate([self.actor_state, self.proposal], axis=-1))
        return -float(self.own_q(self.moved(xi, self.proposal))[0].mean())

    def actor_loss(self, weights: dict[str, Array]) -> float:
        return self.vae_loss(weights) + self.climb(weights)


class OfFQL(Derivation):
    """The mean of the critics counts. The flow is a constant in the policy's loss."""

    def mu(self, weights: dict[str, Array], state: Array, noise: Array) -> Array:
        return network(weights, "actor.", np.concatenate([state, noise], axis=-1))

    def next_value(self) -> Array:
        action = self.mu(self.before, self.actor_state[:, 1:], self.draw(*self.next_shape)).clip(-1, 1)
        return critics(self.before, "target_critics", self.critic_state[:, 1:], action).mean(0)

    def prepare(self) -> None:
        self.start = self.draw(*self.shape)
        self.time = torch.rand(*self.shape[:2], 1, generator=self.generator).double().numpy()
        self.noise = self.draw(*self.shape)

    def flow_loss(self, weights: dict[str, Array]) -> float:
        """Squared error of the velocity on the straight way from noise to the data's action."""
        between = self.start + self.time * (self.action - self.start)
        inputs = np.concatenate([states(weights, "flow", self.batch), between, self.time], axis=-1)
        return float(((network(weights, "flow.", inputs) - (self.action - self.start)) ** 2).mean())

    def flow(self) -> Array:
        state, x = states(self.before, "flow", self.batch), self.noise
        for time in (0, 1 / 3, 2 / 3):
            x = x + network(self.before, "flow.", np.concatenate([state, x, 0 * x[..., :1] + time], axis=-1)) / 3
        return x.clip(-1, 1)

    def actor_loss(self, weights: dict[str, Array]) -> float:
        """0.7 * squared distance to the flow - Q / mean |Q|; the distance is that before the clip."""
        action = self.mu(weights, states(weights, "actor", self.batch), self.noise)
        held = self.own_q(self.mu(self.before, self.actor_state, self.noise).clip(-1, 1)).mean(0)
        q = self.own_q(action.clip(-1, 1)).mean(0)
        return float(0.7 * ((action - self.flow()) ** 2).mean() - q.mean() / np.abs(held).mean())


class OfDiffusionQL(Derivation):
    STEPS = 4

    def kept(self, step: int) -> float:
        """Share of the variance left after `step` steps: the variance-preserving SDE at the time step / T."""
        time = step / self.STEPS
        return math.exp(-(0.1 * time + (10 - 0.1) * time**2 / 2))

    def predicted(self, weights: dict[str, Array], actor: str, state: Array, x: Array, step: Array) -> Array:
        """The noise in x. Steps count from 0, the one next to the data."""
        angle = step[..., None] * 10_000 ** (-np.arange(8) / 7)
        time = network(
            weights, f"{actor}.embedding.layers.", np.concatenate([np.sin(angle), np.cos(angle)], axis=-1), mish
        )
        return network(weights, f"{actor}.layers.", np.concatenate([state, x, time], axis=-1), mish)

    def drawn(self, weights: dict[str, Array], actor: str, state: Array, noise: Array) -> Array:
        """From noise to actions: in each step the mean of q(x_{t-1} | x_t, x_0) by Bayes' rule, and then its noise."""
        x = noise[0]
        for step, fresh in zip(range(self.STEPS, 0, -1), [*noise[1:], None], strict=True):
            kept, before = self.kept(step), self.kept(step - 1)
            found = self.predicted(weights, actor, state, x, np.full(x.shape[:-1], step - 1.0))
            clean = ((x - math.sqrt(1 - kept) * found) / math.sqrt(kept)).clip(-1, 1)
            if fresh is None:
                return clean
            alpha = kept / before
            precision = 1 / (1 - before) + alpha / (1 - alpha)
            x = (math.sqrt(before) / (1 - before) * clean + math.sqrt(alpha) / (1 - alpha) * x) / precision
            x = x + fresh / math.sqrt(precision)
        raise AssertionError

    def next_value(self) -> Array:
        noise = self.draw(self.STEPS, *self.next_shape)
        action = self.drawn(self.before, "target_actor", self.actor_state[:, 1:], noise)
        return critics(self.before, "target_critics", self.critic_state[:, 1:], action).min(0)

    def prepare(self) -> None:
        drawn = torch.rand(*self.shape[:2], generator=self.generator).double().numpy()
        self.step = np.floor(self.STEPS * drawn)
        self.added, self.noise = self.draw(*self.shape), self.draw(self.STEPS, *self.shape)
        self.order = torch.randperm(2, generator=self.generator).tolist()

    def imitation(self, weights: dict[str, Array]) -> float:
        kept = np.vectorize(self.kept)(self.step + 1)[..., None]
        x = np.sqrt(kept) * self.action + np.sqrt(1 - kept) * self.added
        found = self.predicted(weights, "actor", states(weights, "actor", self.batch), x, self.step)
        return float(((found - self.added) ** 2).mean())

    def actor_loss(self, weights: dict[str, Array]) -> float:
        """Error of the noise - 0.6 * Q_i / mean |Q_j|, with a gradient through all steps of the action."""
        i, j = self.order
        action = self.drawn(weights, "actor", states(weights, "actor", self.batch), self.noise)
        held = np.abs(self.own_q(self.drawn(self.before, "actor", self.actor_state, self.noise))[j]).mean()
        return self.imitation(weights) - 0.6 * float(self.own_q(action)[i].mean() / held)


DERIVATIONS: dict[type, Callable[[Any, Trajectories], Any]] = {
    TD3BC: OfTD3BC,
    ReBRAC: OfReBRAC,
    AWAC: OfAWAC,
    IQL: OfIQL,
    CQL: OfCQL,
    CalQL: OfCalQL,
    SACN: OfSACN,
    BCQ: OfBCQ,
    PLAS: OfPLAS,
    FQL: OfFQL,
    DiffusionQL: OfDiffusionQL,
}


def updated(kind: type[OfflineAgent], **changes: Any) -> tuple[Any, Any, dict[str, float]]:
    """Update policy and critics of an agent once. Return the agent, its derivation, and its terms."""
    agent, batch = tiny(kind, **changes), tiny_trajectories(BATCH)
    expected = DERIVATIONS[kind](agent, batch)
    return agent, expected, {name: value.item() for name, value in agent.update(batch).items()}


@pytest.mark.parametrize("kind", LEARNERS)
def test_terms_equal_the_derivation(kind: type[OfflineAgent]) -> None:
    _, expected, terms = updated(kind)
    found = {name: terms[name] for name in ("loss/critic", "loss/actor", "value/target", "value/td_error")}
    wanted = {
        "loss/critic": expected.critic_loss(expected.before),
        "loss/actor": expected.actor_loss(expected.before),
        "value/target": expected.target.mean(),
        "value/td_error": np.abs(expected.q(expected.before) - expected.target).mean(),
    }
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("kind", [AWAC, IQL, CQL])
def test_layer_norm_is_in_critics_and_values(kind: type[OfflineAgent]) -> None:
    agent, expected, terms = updated(kind, layer_norm=True)
    assert terms["loss/critic"] == pytest.approx(expected.critic_loss(expected.before), rel=1e-4)
    normed = {name.split(".")[0] for name, part in agent.named_modules() if isinstance(part, torch.nn.LayerNorm)}
    assert normed == {"critics", "target_critics"} | ({"value"} if kind is IQL else set())


@pytest.mark.parametrize("kind", LEARNERS)
def test_the_gap_is_of_values_by_the_same_critics(kind: type[OfflineAgent]) -> None:
    """Both values are the critics' minimum, their mean, or the first critic's."""
    agent, batch = tiny(kind), tiny_trajectories(BATCH)
    expected, seen = DERIVATIONS[kind](agent, batch), []
    beyond_data = agent.beyond_data
    # called with the policy's action
    agent.beyond_data = lambda action, mask: seen.append(action) or beyond_data(action, mask)
    terms = agent.update(batch)
    of_data, of_policy = (expected.own_q(action.double().numpy()) for action in (batch.actions, *seen))
    assert terms["value/q_data"].item() == pytest.approx(by(kind, of_data).mean(), rel=1e-4)
    assert terms["value/q_policy"].item() == pytest.approx(by(kind, of_policy).mean(), rel=1e-4)
    assert terms["value/gap"] == terms["value/q_policy"] - terms["value/q_data"]


@pytest.mark.parametrize("kind", LEARNERS)
def test_gradients_are_those_of_the_groups_own_loss(kind: type[OfflineAgent]) -> None:
    agent, expected, _ = updated(kind)
    critic = parameters_of(agent, *CRITIC, *(["value"] if kind is IQL else []))
    assert_gradients(agent, expected.before, expected.critic_loss, critic)
    if kind is BCQ:
        assert_gradients(agent, expected.before, expected.vae_loss, parameters_of(agent, "vae", "actor_belief"))
        assert_gradients(agent, expected.before, expected.climb, parameters_of(agent, "actor"))
    else:
        assert_gradients(agent, expected.before, expected.actor_loss, parameters_of(agent, *ACTOR))
    if kind is FQL:
        assert_gradients(agent, expected.before, expected.flow_loss, parameters_of(agent, "flow", "flow_belief"))
    if hasattr(expected, "alpha_loss"):
        assert_gradients(agent, expected.before, expected.alpha_loss, ["log_alpha"])


def test_edac_weighs_cosines_against_the_sum_of_the_critics_errors() -> None:
    """eta / (N - 1) * sum over i != j of cos(dQ_i/da, dQ_j/da), next to sum_i (Q_i - y)^2, all divided by N."""
    agent, batch = tiny(EDAC), tiny_trajectories(BATCH)
    expected = OfEDAC(agent, batch)
    assert agent.update(batch)["loss/critic"].item() == pytest.approx(expected.critic_loss(expected.before), rel=1e-4)
    assert_gradients(agent, expected.before, expected.critic_loss, parameters_of(agent, *CRITIC))


@pytest.mark.parametrize("kind", LEARNERS)
def test_each_critic_is_the_smaller_one_somewhere(kind: type[OfflineAgent]) -> None:
    """Otherwise the tests above would pass without the minimum."""
    _, expected, _ = updated(kind)
    for name in ("critics", "target_critics"):
        q = critics(expected.before, name, expected.critic_state, expected.action)
        assert len(np.unique(q.argmin(0))) > 1


@pytest.mark.parametrize("kind", [AWAC, IQL])
def test_weights_reach_their_bound_and_do_not_only(kind: type[OfflineAgent]) -> None:
    """Otherwise the tests above would pass without the bound."""
    _, expected, _ = updated(kind)
    assert 0 < (expected.weight == 100).mean() < 1


def test_cql_learns_its_weight_where_there_is_a_threshold() -> None:
    agent, batch = tiny(CQL, threshold=1.5), tiny_trajectories(BATCH)
    expected = OfCQL(agent, batch)
    agent.update(batch)

    def dual(weights: dict[str, Array]) -> float:
        return -float(np.exp(weights["log_conservatism"]) * (expected.penalty(expected.before) - 1.5))

    assert_gradients(agent, expected.before, dual, ["log_conservatism"])
    assert_gradients(agent, expected.before, expected.critic_loss, parameters_of(agent, *CRITIC))


@pytest.mark.parametrize("gaussian", [True, False])
def test_bc_equals_the_derivation(gaussian: bool) -> None:
    agent, batch = tiny(BC, policy="gaussian" if gaussian else "deterministic"), tiny_trajectories(BATCH)
    assert batch.actions is not None
    before, action = arrays(agent), batch.actions.double().numpy()

    def loss(weights: dict[str, Array]) -> float:
        parameters = network(weights, "actor.", states(weights, "actor", batch))
        if gaussian:
            return -float(log_density(parameters, action).mean())
        return float(((np.tanh(parameters) - action) ** 2).mean())

    assert agent.update(batch)["loss/actor"].item() == pytest.approx(loss(before), rel=1e-4)
    assert_gradients(agent, before, loss, parameters_of(agent, *ACTOR))


def test_actions_say_nothing_of_clicks() -> None:
    """The reward of a_t is the clicks of its frame, so an action that holds them would hold the label."""
    data, ranker = tiny_trajectories(3), tiny_gems()
    other = copy.deepcopy(data)
    other.clicks = 1 - other.clicks
    encoded = [ranker.encode(each.slates[:, 1], each.clicks[:, 1]) for each in (data, other)]
    assert not torch.equal(*encoded)  # the encoder does read them
    assert torch.equal(with_actions(data, ranker).actions, with_actions(other, ranker).actions)


def test_estimates_write_a_policys_actions_as_the_datas() -> None:
    agent, env = tiny(BC), tiny_env()
    data = rollout(agent.policy(), env, 6, generator=torch.Generator().manual_seed(3), deterministic=True)
    # Not to the bit: one call encodes a turn of all users, the other all turns.
    torch.testing.assert_close(policy_actions(agent, data), with_places(data, agent.ranker).actions)


def test_top_fraction_is_the_trajectories_of_the_largest_returns() -> None:
    data = tiny_trajectories(20)
    kept = tiny(BC, top_fraction=0.25).prepare(data)
    assert kept.returns.sort().values.tolist() == data.returns.sort().values[-5:].tolist()


def test_log_probability_of_recorded_actions_depends_on_them() -> None:
    parameters = torch.randn(50, 2 * LATENT, generator=stream(0, "parameters"))
    action = 2 * torch.rand(50, LATENT, generator=stream(0, "actions")) - 1
    found = log_prob_of(parameters, action)
    np.testing.assert_allclose(found, log_density(parameters.double().numpy(), action.double().numpy()), rtol=1e-4)
    assert (found != log_prob_of(parameters, -action)).all()
    assert log_prob_of(parameters, action.sign()).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *((BC, wrong) for wrong in ({"policy": "laplace"}, {"top_fraction": 0}, {"top_fraction": 1.1}, {"pi_lr": 0})),
        *((TD3BC, wrong) for wrong in ({"gamma": 1.1}, {"tau": -0.1}, {"reward_scale": 0}, {"alpha": -1.0})),
        *((ReBRAC, wrong) for wrong in ({"actor_penalty": -1.0}, {"critic_penalty": -1.0}, {"policy_delay": 0})),
        *((AWAC, wrong) for wrong in ({"temperature": 0}, {"q_hidden": []}, {"pi_hidden": "wide"})),
        *((IQL, wrong) for wrong in ({"expectile": 1.5}, {"beta": -1.0}, {"decay_steps": 0})),
        *((CQL, wrong) for wrong in ({"conservatism": 0}, {"threshold": -1.0}, {"actions": 0}, {"turns": 1.5})),
        *((SACN, wrong) for wrong in ({"alpha_lr": 0}, {"initial_alpha": 0}, {"num_critics": 0})),
        *((EDAC, wrong) for wrong in ({"eta": -1.0}, {"num_critics": 1}, {"initial_alpha": 0})),
        *(
            (BCQ, wrong)
            for wrong in (
                {"phi": 2.0},
                {"weight_of_min": -0.1},
                {"vae_hidden": [0]},
                {"candidates": 0},
            )
        ),
        (BCQ, {"latent_clip": 0}),
        *((PLAS, wrong) for wrong in ({"vae_share": 1.5}, {"max_latent": 0}, {"vae_lr": 0}, {"max_steps": 0})),
        (CalQL, {"conservatism": 0}),
        *((FQL, wrong) for wrong in ({"alpha": -1.0}, {"flow_steps": 0})),
        *((DiffusionQL, wrong) for wrong in ({"steps": 0}, {"eta": -1.0}, {"candidates": 0}, {"num_critics": 1})),
        (DiffusionQL, {"decay_steps": 0}),
        *((DecisionTransformer, wrong) for wrong in ({"context": 0}, {"weight_decay": -1.0}, {"target_return": 0})),
    ],
)
def test_impossible_values_are_named(kind: type, wrong: dict[str, Any]) -> None:
    assert_named(kind, wrong)


def test_iql_decays_the_policy_learning_rate_by_a_cosine() -> None:
    agent, batch, rates = tiny(IQL), tiny_trajectories(BATCH), []
    for step in (0, 50, 100, 150):
        agent.step = step
        agent.update(batch)
        rates.append(agent.optim["actor"].param_groups[0]["lr"])
    assert rates == pytest.approx([3e-3, 1.5e-3, 0, 0])
    assert agent.optim["critic"].param_groups[0]["lr"] == 1e-3


def test_bcq_stays_within_the_range_of_actions() -> None:
    """Actions stay in range also with an extreme decoder and a full perturbation."""
    agent, state = tiny(BCQ), torch.randn(40, 10, generator=stream(0, "states"))
    with torch.no_grad():
        agent.vae.decoder[-1].weight.mul_(1000)
    action = agent.action(state, None)
    assert action.shape == (40, LATENT) and action.abs().max() <= 1
    assert agent.vae.decode(state[:, :5], agent.acting_latents[:1].expand(40, -1)).abs().max() <= 1


def test_plas_first_trains_the_vae_and_its_belief_alone() -> None:
    """In the first updates nothing else moves, and the VAE reads no belief but its own."""
    agent, batch = tiny(PLAS), tiny_trajectories(BATCH)
    assert batch.actions is not None
    before, action = arrays(agent), batch.actions.double().numpy()
    noise = torch.randn(*action.shape[:2], 2 * LATENT, generator=copy_of(agent.generators["update"])).double().numpy()

    def loss(weights: dict[str, Array]) -> float:
        return vae_loss(weights, states(weights, "vae", batch), action, noise)

    agent.step = 1  # of 2 updates; the VAE takes the first
    terms = agent.update(batch)
    assert terms["loss/vae"].item() == pytest.approx(loss(before), rel=1e-4)
    assert_gradients(agent, before, loss, parameters_of(agent, "vae", "vae_belief"))
    assert {name: value.item() for name, value in terms.items() if value != 0} == {"loss/vae": terms["loss/vae"].item()}
    moved = {name.split(".")[0] for name, value in arrays(agent).items() if (value != before[name]).any()}
    assert moved == {"vae", "vae_belief"}


def test_plas_then_keeps_the_vae_and_its_belief() -> None:
    """No gradient reaches them, and they stay the same to the bit, also with what Adam remembers of their updates."""
    agent, batch = tiny(PLAS), tiny_trajectories(BATCH)
    for agent.step in (1, 2, 3):
        before = arrays(agent)
        agent.update(batch)
    for name in parameters_of(agent, "vae", "vae_belief"):
        assert agent.get_parameter(name).grad is None, name
        assert agent.get_parameter(name).requires_grad, name  # a resumed run has the same optimisers
    moved = {name.split(".")[0] for name, value in arrays(agent).items() if (value != before[name]).any()}
    assert moved == {"actor", "target_actor", "actor_belief", "critics", "target_critics", "critic_belief", "of_policy"}


def test_plas_acts_by_what_the_vae_decodes() -> None:
    """Each of the two beliefs matters, and the latents stay within their bound."""
    agent, state = tiny(PLAS), torch.randn(40, 10, generator=stream(0, "states"))
    action, seen = agent.action(state, None), []
    assert action.shape == (40, LATENT) and action.abs().max() <= 1
    for half in (slice(0, 5), slice(5, 10)):
        other = state.clone()
        other[:, half] += 1
        assert (agent.action(other, None) != action).any(1).all()
    with torch.no_grad():
        agent.actor[-1].weight.mul_(1000)
    decode = agent.vae.decode
    agent.vae.decode = lambda state, latent: seen.append(latent) or decode(state, latent)
    agent.action(state, None)
    assert seen[0].abs().max().item() == pytest.approx(1.5, rel=1e-4)


def test_cal_ql_bounds_some_values_and_not_all() -> None:
    """Otherwise the tests above would pass without the bound, or with nothing but the bound."""
    _, expected, _ = updated(CalQL)
    expected.further_loss(expected.before)
    assert 0.1 < expected.bounded < 0.9


def test_cal_ql_pushes_nothing_below_the_returns_of_the_data() -> None:
    """With all values far below the returns, the policy's actions add no gradient, and in CQL they do."""
    slopes = {}
    for kind in (CQL, CalQL):
        agent, batch = tiny(kind), tiny_trajectories(BATCH)
        with torch.no_grad():
            for member in agent.critics.members:
                member[-1].bias.sub_(50)
        turns = agent.turns(batch)
        own = agent.q_values(agent.critics, turns.critic_state, agent.sample(turns.actor_state)[0].detach())
        read = agent.own_values(own.unsqueeze(1), turns, torch.arange(TURNS))
        slopes[kind] = torch.autograd.grad(read.sum(), own)[0].abs().sum().item()
    assert slopes[CalQL] == 0 < slopes[CQL]


def test_cal_ql_has_no_bound_where_the_log_was_cut() -> None:
    """The return to go of such a session is unknown. It would be too small where a part of it is missing."""
    agent, batch = tiny(CalQL), tiny_trajectories(2)
    batch.lengths, batch.truncated = torch.tensor([TURNS, 3]), torch.tensor([False, True])
    turns = agent.turns(batch)
    q = torch.full((2, 4, *turns.reward.shape), -50.0)
    read = agent.own_values(q, turns, torch.arange(TURNS + 1))
    assert (read[:, :, 1] == -50).all()
    torch.testing.assert_close(read[1, 3, 0, :TURNS], torch.tensor(to_go_of(batch)[0], dtype=torch.float32))


@pytest.mark.parametrize("kind", [CQL, CalQL])
def test_sac_starts_from_conservative_agents(kind: type[OfflineAgent]) -> None:
    given, agent = tiny(kind), tiny_sac(seed=7, q_hidden=[16, 9])
    start_from(agent, checkpoint_of(given, "given"), "given.ckpt")
    learned = given.state_dict()
    shared = {name for name in agent.state_dict() if not name.startswith("ranker.")}
    assert shared <= set(learned)
    assert all(torch.equal(agent.state_dict()[name], learned[name]) for name in shared)


@pytest.mark.parametrize(("kind", "name"), [(PLAS, "plas"), (BCQ, "bcq")])
def test_no_online_agent_starts_from_a_policy_in_the_space_of_a_vae(kind: type[OfflineAgent], name: str) -> None:
    """The policy of PLAS has as many outputs as SAC's, but they are latents."""
    with pytest.raises(UserError, match=f"given.ckpt: the policy of agent={name} acts through its VAE"):
        start_from(tiny_sac(q_hidden=[16, 9]), checkpoint_of(tiny(kind), name), "given.ckpt")


def checkpoint_of(agent: OfflineAgent, name: str) -> dict[str, Any]:
    return {"learner": {"module": agent.state_dict()}, "config": {"agent": {"name": name}, "belief": {}}}


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_targets_move_by_tau(kind: type[OfflineAgent], tau: float) -> None:
    agent, batch = tiny(kind, tau=tau), tiny_trajectories(BATCH)
    old = {k: v.clone() for k, v in agent.state_dict().items() if k.startswith("target_")}
    assert old
    agent.update(batch)
    online = agent.state_dict()
    for name, before in old.items():
        torch.testing.assert_close(online[name], (1 - tau) * before + tau * online[name.removeprefix("target_")])


@pytest.mark.parametrize("kind", list(SETTINGS))
def test_states_while_acting_are_those_of_training(kind: type[OfflineAgent]) -> None:
    agent, batch = tiny(kind), tiny_trajectories(BATCH)
    others = {BCQ: ["critic_belief"], PLAS: ["vae_belief"], DiffusionQL: ["critic_belief"]}.get(kind, [])
    beliefs = [agent.actor_belief, *(getattr(agent, name) for name in others)]
    with torch.no_grad():
        trained = torch.cat(list(states_of(beliefs, batch)), dim=-1)
        state = agent.acting_belief.initial_state(BATCH)
        for turn in range(TURNS):
            seen = Observation(batch.slates[:, turn].long(), batch.clicks[:, turn])
            state = agent.acting_belief.step(seen, state)
            torch.testing.assert_close(state, trained[:, turn])


def to_go_of(data: Trajectories) -> Array:
    """Discounted return to go of every turn, times the scale, [N, H]."""
    return SCALE * returns_of(data, GAMMA)


@pytest.mark.parametrize("kind", LEARNERS)
def test_q_is_compared_with_the_return_to_go(kind: type[OfflineAgent]) -> None:
    """Entropy that a target promises is no overestimation: it is subtracted as well."""
    _, expected, terms = updated(kind)
    paid = SCALE * rewards_of(expected.batch)
    if kind is SACN:
        paid[:, :-1] += GAMMA * expected.bonus
    since = np.subtract.outer(np.arange(TURNS), np.arange(TURNS))
    over = by(kind, expected.q(expected.before)) - paid @ np.where(since >= 0, GAMMA ** np.maximum(since, 0.0), 0)
    assert terms["value/over_return"] == pytest.approx(over.mean(), rel=1e-4)
    assert terms["value/over_return_p90"] == pytest.approx(np.sort(over.ravel())[int(0.9 * over.size)], rel=1e-4)


def test_entropy_can_be_left_out_of_the_target() -> None:
    agent, batch = tiny(SACN, entropy_in_target=False), tiny_trajectories(BATCH)
    expected = OfSACN(agent, batch)
    without = SCALE * rewards_of(batch)
    without[:, :-1] += GAMMA * (expected.next_value_of_q)
    terms = agent.update(batch)
    assert terms["value/target"].item() == pytest.approx(without.mean(), rel=1e-4)
    over = expected.q(expected.before).min(0) - to_go_of(batch)
    assert terms["value/over_return"].item() == pytest.approx(over.mean(), rel=1e-4)


@pytest.mark.parametrize("kind", [SACN, CQL])
def test_entropy_bonus_is_in_clicks_of_a_turn(kind: type[OfflineAgent]) -> None:
    _, expected, terms = updated(kind)
    _, log_prob = policy(expected.before, expected.actor_state, expected.noise)
    assert terms["policy/alpha"] == pytest.approx(0.5)
    assert terms["policy/entropy_bonus"] == pytest.approx(-0.5 * log_prob.mean() / SCALE, rel=1e-4)


@pytest.mark.parametrize(("times", "warns"), [(0, False), (1, False), (2.9, False), (3.1, True), (24, True)])
def test_overestimation_is_said_once_with_its_step(
    times: float, warns: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Q of a policy that returns `times` as much as the data do. Below three times it can be right, so nothing is said.

    The values have the noise of returns: Q of an action has the mean of its returns, not the recorded one.
    """
    agent, data = tiny(AWAC), tiny_trajectories(30)
    agent.prepare(data)
    to_go = to_go_of(data)
    assert agent.mean_return.item() == pytest.approx(to_go.mean(), rel=1e-5)
    q = torch.tensor(np.broadcast_to(times * to_go.mean(0), to_go.shape).copy(), dtype=torch.float32)
    reward = torch.tensor(SCALE * rewards_of(data), dtype=torch.float32)
    agent.update(tiny_trajectories(BATCH))  # for the gradients that the terms measure
    found = agent.terms(q.mean(), q, q[None], q, Turns(*[reward] * 4))["value/over_return"].item()
    assert found == pytest.approx((times - 1) * to_go.mean(), rel=1e-4, abs=1e-6)
    for step in (70, 80):
        agent.watch(step, {"value/over_return": found})
    said = "".join(capsys.readouterr())
    assert said.count("overestimate") == warns
    assert ("step 70" in said) == warns and "step 80" not in said


@pytest.mark.parametrize("kind", [BC, AWAC, IQL])
def test_densities_and_draws_have_the_same_floor(kind: type[OfflineAgent]) -> None:
    """A policy whose deviations fall below the floor draws with those that its likelihood had."""
    agent = tiny(kind)
    with torch.no_grad():
        agent.actor[-1].weight.zero_()
        agent.actor[-1].bias.zero_()
        agent.actor[-1].bias[LATENT:] = -15.0
    state = torch.zeros(20_000, 5)
    drawn = agent.action(state, stream(0, "draws")).atanh()
    assert drawn.std().item() == pytest.approx(math.exp(-2), rel=0.02)
    if kind is not BC:
        assert agent.sample(state)[0].atanh().std().item() == pytest.approx(math.exp(-2), rel=0.02)


def test_the_box_is_fitted_to_the_data_and_slates_stay_the_same() -> None:
    """Mean and deviation of the data become 0 and 1 / 2.5, in latent units nothing changes, and a checkpoint has it."""
    agent, data = tiny(BC), tiny_trajectories(200)
    assert data.actions is not None
    spread = torch.tensor([0.1, 0.3, 0.0])  # the last dimension does not vary
    actions = torch.tensor([0.2, -0.5, 0.4]) + spread * torch.randn(data.actions.shape, generator=stream(0, "actions"))
    data.actions = actions.clamp(-1, 1)
    latent = agent.ranker.to_latent(data.actions)
    fitted = agent.fit_box(data).actions
    torch.testing.assert_close(fitted.mean((0, 1))[[0, 2]], torch.zeros(2), atol=2e-3, rtol=0)
    assert fitted.std((0, 1)).tolist() == pytest.approx([0.4, 0.4, 0], rel=0.2)
    inside = fitted.abs() < 1
    assert inside.float().mean() > 0.96
    torch.testing.assert_close(agent.ranker.to_latent(fitted)[inside], latent[inside], rtol=1e-4, atol=1e-4)
    low, high = (tiny_gems().to_action(agent.ranker.to_latent(edge * torch.ones(LATENT))) for edge in (-1.0, 1.0))
    assert low.min() >= -1 and high.max() <= 1 and (high - low).min() > 0.04
    other = tiny(BC)
    other.load_state_dict(agent.state_dict())
    assert torch.equal(other.ranker.to_latent(fitted), agent.ranker.to_latent(fitted))
    assert agent.beyond_data(agent.ranker.to_action(latent)).item() < 0.1
    assert agent.beyond_data(torch.ones(5, LATENT)) == 1


@pytest.mark.parametrize("recorded", [True, False])
def test_prepare_gives_actions_of_the_fitted_box(recorded: bool) -> None:
    """Of recorded actions as of those that are read from the slates."""
    agent, data = tiny(BC), tiny_trajectories(50)
    assert data.actions is not None
    data.actions /= 4  # those of the helper fill the box
    own = data.actions if recorded else with_labels(data, tiny_gems()).actions
    latent = tiny_gems().to_latent(own)
    prepared = agent.prepare(data if recorded else dataclasses.replace(data, actions=None))
    torch.testing.assert_close(prepared.actions, agent.ranker.to_action(latent), rtol=1e-4, atol=1e-4)
    assert not torch.equal(agent.ranker.half_width, tiny_gems().half_width)


def test_proposals_of_bcq_spread_like_the_data() -> None:
    """Actions deviate by 0.2 around a mean that depends on the state. Collapsed proposals would all be this mean."""
    generator = stream(0, "toy")
    with seeded_weights(0, "toy"):
        vae = ActionVAE(2, LATENT, [64, 64])
    optimizer, deviation = torch.optim.Adam(vae.parameters(), lr=2e-3), 0.2
    way = torch.randn(2, LATENT, generator=generator) / 3

    def drawn(state: torch.Tensor) -> torch.Tensor:
        return (state @ way).tanh() * 0.5 + deviation * torch.randn(len(state), LATENT, generator=generator)

    for _ in range(600):
        state = torch.randn(128, 2, generator=generator)
        optimizer.zero_grad()
        vae.loss(state, drawn(state).clamp(-1, 1), torch.randn(128, 2 * LATENT, generator=generator)).backward()
        optimizer.step()
    state, clip = torch.randn(20, 1, 2, generator=generator), OmegaConf.load(CONF / "agent" / "bcq.yaml").latent_clip
    latent = torch.randn(20, 400, 2 * LATENT, generator=generator).clamp(-clip, clip)
    with torch.no_grad():
        proposals = vae.decode(state.expand(-1, 400, -1), latent)
    assert (proposals.std(1).mean(0) > deviation / 2).all()
    assert (proposals.std(1).mean(0) < 1.2 * deviation).all()
    torch.testing.assert_close(proposals.mean(1), (state[:, 0] @ way).tanh() * 0.5, atol=0.12, rtol=0)


def test_cql_digs_no_pit_at_uniform_actions() -> None:
    """In 32 dimensions, draws weighed by inverse densities leave uniform actions 38 clicks below the policy's.

    Rewards say nothing of actions here, so the penalty alone tells uniform actions from the policy's.
    """
    changes = dict(ranker=tiny_gems(latent_dim=32), layer_norm=True, reward_scale=1.0, pi_hidden=[64, 64])
    agent = tiny(CQL, **changes, q_hidden=[64, 64], q_lr=3e-3, initial_alpha=0.01, alpha_lr=3e-3, actions=10)
    data, generator = tiny_trajectories(64), stream(0, "toy")
    data.actions = (0.4 * torch.randn(64, TURNS, 32, generator=generator)).clamp(-1, 1)
    for _ in range(150):
        agent.update(data[torch.randperm(64, generator=generator)[:16]])
    with torch.no_grad():
        turns = agent.turns(data)
        uniform = 2 * torch.rand(turns.action.shape, generator=generator) - 1
        own, of_uniform = (
            agent.q_values(agent.critics, turns.critic_state, action).mean().item()
            for action in (agent.sample(turns.actor_state)[0], uniform)
        )
    assert own - of_uniform < rewards_of(data).sum(1).max()  # the largest return of an episode


# --- Decision Transformer


def tiny_transformer(**changes: Any) -> DecisionTransformer:
    settings = dict(context=3, layers=2, heads=2, width=8, item_dim=2, pi_lr=1e-3, weight_decay=0.0, target_return=5.0)
    with seeded_weights(0, "tiny transformer"):
        agent = DecisionTransformer(
            ranker=tiny_gems(), generator=stream(0, "update"), env=tiny_env(), **(settings | changes)
        )
    agent.prepare(tiny_trajectories(BATCH))
    return agent


def normed(weights: dict[str, Array], name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(weights: dict[str, Array], name: str, x: Array) -> Array:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def transformed(weights: dict[str, Array], x: Array) -> Array:
    """Apply two pre-norm blocks of two causal heads and a last norm: [3K, width]."""
    for block in ("transformer.layers.0", "transformer.layers.1"):
        inner = normed(weights, f"{block}.norm1", x)
        joint = inner @ weights[f"{block}.self_attn.in_proj_weight"].T + weights[f"{block}.self_attn.in_proj_bias"]
        heads = []
        for query, key, value in zip(
            *(np.split(part, 2, axis=-1) for part in np.split(joint, 3, axis=-1)), strict=True
        ):
            scores = query @ key.T / math.sqrt(query.shape[-1])
            scores[np.triu_indices(len(x), 1)] = -np.inf
            share = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(share / share.sum(-1, keepdims=True) @ value)
        x = x + linear(weights, f"{block}.self_attn.out_proj", np.concatenate(heads, axis=-1))
        inner = linear(weights, f"{block}.linear1", normed(weights, f"{block}.norm2", x))
        x = x + linear(weights, f"{block}.linear2", inner * (1 + erf(inner / math.sqrt(2))) / 2)
    return normed(weights, "transformer.norm", x)


def test_decision_transformer_equals_the_derivation() -> None:
    agent, batch = tiny_transformer(), tiny_trajectories(BATCH)
    assert batch.actions is not None
    before, action, rewards = arrays(agent), batch.actions.double().numpy(), rewards_of(batch)
    read_back = with_places(batch, agent.ranker).actions
    assert read_back is not None
    shown = read_back.double().numpy()  # the context holds these, and not the labels
    drawn = torch.rand(BATCH, 1, generator=copy_of(agent.generators["update"])).flatten()
    starts = (TURNS * drawn.double().numpy()).astype(int).tolist()
    assert max(starts) > TURNS - 3  # a window that the end of the episode cuts

    def loss(weights: dict[str, Array]) -> float:
        errors = []
        for user, start in enumerate(starts):
            tokens = []
            for turn in range(start, min(start + 3, TURNS)):
                slate, clicks = batch.slates[user, turn].long().numpy(), batch.clicks[user, turn].numpy()[:, None]
                frame = np.concatenate([weights["item_embeddings"][slate], clicks], axis=1).ravel()
                to_go = np.array([rewards[user, turn:].sum() / rewards.sum(1).max()])
                for name, value in (("return", to_go), ("frame", frame), ("action", shown[user, turn])):
                    tokens.append(linear(weights, f"embed_{name}", value) + weights["embed_turn.weight"][turn])
            after_frames = transformed(weights, np.stack(tokens))[1::3]
            errors.append(np.tanh(linear(weights, "actor", after_frames)) - action[user, start : start + 3])
        return float((np.concatenate(errors) ** 2).mean())

    assert agent.update(batch)["loss/actor"].item() == pytest.approx(loss(before), rel=1e-4)
    assert_gradients(agent, before, loss, [name for name, p in agent.named_parameters() if p.requires_grad])


@pytest.mark.parametrize("column", ["slates", "clicks", "actions"])
def test_decision_transformer_has_not_seen_what_it_is_to_choose(column: str) -> None:
    """The prediction for turn 2 reads neither the frame nor the action that reveal it, only the return."""
    agent, batch = tiny_transformer(context=TURNS), tiny_trajectories(BATCH)
    to_go = torch.ones(BATCH, TURNS)

    def predicted(batch: Trajectories) -> torch.Tensor:
        assert batch.actions is not None
        turn = torch.arange(TURNS).expand(BATCH, -1)
        with torch.no_grad():
            return agent.predict(Context(batch.slates[:, :-1], batch.clicks[:, :-1], turn), to_go, batch.actions)

    other = copy.deepcopy(batch)
    changed = getattr(other, column)[:, 2 if column == "actions" else 3]
    changed.copy_(-changed if column == "actions" else (changed + 1) % 2)
    own, found = predicted(batch), predicted(other)
    assert torch.equal(own[:, :3], found[:, :3])
    assert (own[:, 3] != found[:, 3]).any()


@pytest.mark.parametrize("context", [3, TURNS])
def test_decision_transformer_acts_as_it_was_trained(context: int) -> None:
    """Acting on a recorded trajectory, with its return as the target, gives the actions predicted from the record."""
    agent, data = tiny_transformer(context=context), tiny_trajectories(1)
    data = with_places(data, agent.ranker)
    assert data.actions is not None
    agent.target_return.copy_(data.returns[0])
    to_go = data.rewards.flip(1).cumsum(1).flip(1)
    state = agent.acting_belief.initial_state(1)
    with torch.no_grad():
        for turn in range(TURNS):
            state = agent.acting_belief.step(Observation(data.slates[:, turn].long(), data.clicks[:, turn]), state)
            seen = slice(max(0, turn + 1 - context), turn + 1)
            shown = Context(data.slates[:, seen], data.clicks[:, seen], torch.arange(TURNS)[seen].unsqueeze(0))
            predicted = agent.predict(shown, to_go[:, seen], data.actions[:, seen])[:, -1]
            torch.testing.assert_close(agent.action(state, None), predicted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [1 << 19, 64])  # a block of rows, and many
@pytest.mark.parametrize("padded", [0, 4])
def test_decision_transformer_encodes_the_last_token_alone(
    block: int, padded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "BLOCK", block)
    encoder = tiny_transformer().transformer
    sequence = torch.randn(5, 7, 8, generator=stream(0, "tokens"))
    visible = torch.ones(7, 7, dtype=torch.bool).tril().repeat(5, 1, 1)
    visible[:, :, :padded] = torch.eye(7, dtype=torch.bool)[:, :padded]
    with torch.no_grad():
        expected = encoder(sequence, mask=(~visible).repeat_interleave(2, dim=0))[:, -1]
    torch.testing.assert_close(decision_transformer.encode_last(encoder, sequence, visible), expected)


def test_decision_transformer_acts_in_longer_episodes() -> None:
    agent, data = tiny_transformer(), tiny_trajectories(BATCH, turns=TURNS + 4)
    decided = agent.policy()
    decided.reset(BATCH)
    for turn in range(TURNS + 4):
        seen = Observation(data.slates[:, turn].long(), data.clicks[:, turn])
        with torch.no_grad():
            assert decided.act(seen, deterministic=True).slate.shape == (BATCH, SLOTS)
