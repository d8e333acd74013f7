"""SAC against a derivation in NumPy: every loss, every gradient, and the parameters that an update must not touch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slaterl.agents.online.sac import SAC, tanh_gaussian
from slaterl.config.build import make
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.seeds import stream
from tests.helpers import LATENT, TURNS, Array, arrays, copy_of, mlp_forward, tiny_sac, tiny_trajectories

BATCH = 3


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def belief_states(weights: dict[str, Array], prefix: str, batch: Trajectories) -> Array:
    """Apply the GRU's equations to frames 0..H-1: [B, H, state]."""
    p = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    slates, clicks = batch.slates.numpy()[:, :-1].astype(int), batch.clicks.numpy()[:, :-1].astype(float)
    state = np.zeros((len(slates), p["weight_hh"].shape[1]))
    states = []
    for turn in range(slates.shape[1]):
        items = p["item_embeddings"][slates[:, turn]]  # [B, S, E]
        inputs = np.concatenate([items, clicks[:, turn, :, None]], axis=2).reshape(len(slates), -1)
        x_r, x_z, x_n = np.split(inputs @ p["weight_ih"].T + p["bias_ih"], 3, axis=1)
        h_r, h_z, h_n = np.split(state @ p["weight_hh"].T + p["bias_hh"], 3, axis=1)
        reset, update = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        state = (1 - update) * np.tanh(x_n + reset * h_n) + update * state
        states.append(state)
    return np.stack(states, axis=1)


def policy(weights: dict[str, Array], states: Array, noise: Array) -> tuple[Array, Array]:
    """Return tanh-Gaussian actions and their log-probabilities by appendix C of the paper."""
    mean, log_std = np.split(mlp_forward(weights, "actor.", states), 2, axis=-1)
    log_std = log_std.clip(-20, 2)
    raw = mean + np.exp(log_std) * noise
    log_normal = -0.5 * ((raw - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    return np.tanh(raw), (log_normal - np.log(1 - np.tanh(raw) ** 2)).sum(-1)


def q_values(weights: dict[str, Array], critics: str, states: Array, actions: Array) -> Array:
    """Return the values of both critics, [2, B, H]. They read latent units."""
    latent = weights["ranker.center"] + weights["ranker.half_width"] * actions
    inputs = np.concatenate([states, latent], axis=-1)
    return np.stack([mlp_forward(weights, f"{critics}.members.{i}.", inputs)[..., 0] for i in range(2)])


class Derivation:
    """Derivation of one update of an agent on a batch, from its weights and its generator before it."""

    def __init__(self, agent: SAC, batch: Trajectories) -> None:
        assert batch.actions is not None
        self.batch, self.before = batch, arrays(agent)
        self.gamma, self.alpha = agent.gamma, math.exp(self.before["log_alpha"])
        generator = copy_of(agent.generators["update"])
        turns = batch.actions.shape[1]
        self.next_noise = torch.randn(len(batch), turns - 1, LATENT, generator=generator).double().numpy()
        self.noise = torch.randn(len(batch), turns, LATENT, generator=generator).double().numpy()
        self.target = self._target()

    def _target(self) -> Array:
        """r + gamma * (min Q'(s', a') - alpha * log pi(a' | s')) and r alone in the last turn, as a plain loop."""
        rewards = self.batch.clicks.numpy()[:, 1:].sum(2).astype(float)
        critic_states = belief_states(self.before, "critic_belief.", self.batch)
        actor_states = belief_states(self.before, "actor_belief.", self.batch)
        target = np.zeros_like(rewards)
        last = rewards.shape[1] - 1
        for turn in range(last + 1):
            target[:, turn] = rewards[:, turn]
            if turn < last:
                action, log_prob = policy(self.before, actor_states[:, turn + 1], self.next_noise[:, turn])
                next_q = q_values(self.before, "target_critics", critic_states[:, turn + 1], action).min(0)
                target[:, turn] += self.gamma * (next_q - self.alpha * log_prob)
        return target

    def q(self, weights: dict[str, Array]) -> Array:
        states = belief_states(weights, "critic_belief.", self.batch)
        assert self.batch.actions is not None
        return q_values(weights, "critics", states, self.batch.actions.double().numpy())

    def critic_loss(self, weights: dict[str, Array]) -> float:
        """Loss of the critics as a function of critics and critic belief. The target is a constant."""
        return float(((self.q(weights) - self.target) ** 2).mean())

    def log_prob(self, weights: dict[str, Array]) -> Array:
        return policy(weights, belief_states(weights, "actor_belief.", self.batch), self.noise)[1]

    def actor_loss(self, weights: dict[str, Array]) -> float:
        """Loss of the policy as a function of actor and actor belief. Critics and their belief are constants."""
        action, log_prob = policy(weights, belief_states(weights, "actor_belief.", self.batch), self.noise)
        states = belief_states(self.before, "critic_belief.", self.batch)
        return float((self.alpha * log_prob - q_values(self.before, "critics", states, action).min(0)).mean())

    def alpha_loss(self, weights: dict[str, Array]) -> float:
        """Loss of the temperature: it falls with alpha while the entropy -mean(log pi) is above -A."""
        entropy = -self.log_prob(self.before).mean()
        return float(np.exp(weights["log_alpha"]) * (entropy - -LATENT))


@pytest.fixture
def agent() -> SAC:
    return tiny_sac()


@pytest.fixture
def batch() -> Trajectories:
    return tiny_trajectories(BATCH)


def group_of(name: str) -> str:
    """Return the loss of a parameter (critic, actor or alpha), or `frozen` if it has none."""
    owners = {"critics": "critic", "critic_belief": "critic", "actor": "actor", "actor_belief": "actor"}
    return (owners | {"log_alpha": "alpha"}).get(name.split(".")[0], "frozen")


def gradients(agent: SAC) -> dict[str, Tensor]:
    """Return the gradients of the last update."""
    return {name: p.grad.clone() for name, p in agent.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("turns", [1, TURNS])
def test_terms_equal_the_derivation(agent: SAC, turns: int) -> None:
    batch = tiny_trajectories(BATCH, turns=turns)
    expected = Derivation(agent, batch)
    terms = {name: value.item() for name, value in agent.update(batch).items()}
    assert terms == pytest.approx(
        {
            "loss/critic": expected.critic_loss(expected.before),
            "loss/actor": expected.actor_loss(expected.before),
            "loss/alpha": expected.alpha_loss(expected.before),
            "value/q": expected.q(expected.before).mean(),
            "value/target": expected.target.mean(),
            "policy/entropy": -expected.log_prob(expected.before).mean(),
            "policy/alpha": 0.5,
        },
        rel=2e-5,
    )


def test_last_turn_is_terminal(agent: SAC) -> None:
    """The target of the last turn is its reward, even if the target critics' values are large."""
    batch = tiny_trajectories(BATCH, turns=1)
    for member in agent.target_critics.members:
        torch.nn.init.constant_(member[-1].bias, 1000.0)
    assert agent.update(batch)["value/target"].item() == pytest.approx(batch.rewards.mean().item())


@pytest.mark.parametrize("group", ["critic", "actor", "alpha"])
def test_gradients_are_those_of_the_groups_own_loss(agent: SAC, batch: Trajectories, group: str) -> None:
    """Compare gradients with difference quotients along a random direction in each parameter.

    The comparison fails if the actor's loss reaches the critics, if a loss misses its belief or an embedding, or if a
    target is not held fixed.
    """
    expected = Derivation(agent, batch)
    loss: Callable[[dict[str, Array]], float] = getattr(expected, f"{group}_loss")
    agent.update(batch)
    found = gradients(agent)
    names = [name for name, _ in agent.named_parameters() if group_of(name) == group]
    assert names
    random, step = np.random.default_rng(0), 1e-6
    for name in names:
        direction = random.standard_normal(expected.before[name].shape)
        up, down = (loss({**expected.before, name: expected.before[name] + s * direction}) for s in (step, -step))
        slope = float((found[name].double().numpy() * direction).sum())
        assert slope != 0, name
        assert slope == pytest.approx((up - down) / (2 * step), rel=1e-3, abs=1e-6), name


def test_what_is_frozen_gets_no_gradient_and_no_optimiser(agent: SAC, batch: Trajectories) -> None:
    agent.update(batch)
    assert {group_of(name) for name in gradients(agent)} == {"critic", "actor", "alpha"}
    owned = {
        name: {id(p) for g in optimizer.param_groups for p in g["params"]} for name, optimizer in agent.optim.items()
    }
    for name, parameter in agent.named_parameters():
        owners = [owner for owner, ids in owned.items() if id(parameter) in ids]
        assert owners == ([] if group_of(name) == "frozen" else [group_of(name)]), name
        # the update freezes the critics for a while
        assert parameter.requires_grad == (group_of(name) != "frozen"), name


def test_learning_rates_belong_to_their_groups(agent: SAC, batch: Trajectories) -> None:
    """Adam's first step is the learning rate against the gradient's sign."""
    before = {name: p.detach().clone() for name, p in agent.named_parameters()}
    agent.update(batch)
    rates = {"critic": 1e-3, "actor": 3e-3, "alpha": 2e-3}
    for name, gradient in gradients(agent).items():
        moved = dict(agent.named_parameters())[name].detach() - before[name]
        clear = gradient.abs() > 1e-4  # Adam's epsilon is negligible here
        assert clear.any(), name
        expected = -rates[group_of(name)] * gradient.sign()
        torch.testing.assert_close(moved[clear], expected[clear], rtol=1e-3, atol=1e-6)


def test_ranker_does_not_move_one_bit(agent: SAC, batch: Trajectories) -> None:
    before = {name: value.clone() for name, value in agent.ranker.state_dict().items()}
    for _ in range(5):
        agent.update(batch)
    after = agent.ranker.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_targets_move_by_tau_only(agent: SAC, batch: Trajectories) -> None:
    for _ in range(3):
        targets = [p.clone() for p in agent.target_critics.parameters()]
        agent.update(batch)
        for old, new, online in zip(
            targets, agent.target_critics.parameters(), agent.critics.parameters(), strict=True
        ):
            torch.testing.assert_close(new, 0.9 * old + 0.1 * online)
            assert not torch.equal(new, old)


def test_targets_start_as_the_critics() -> None:
    agent = tiny_sac(drift=0, num_critics=3)
    assert len(agent.critics.members) == len(agent.target_critics.members) == 3
    pairs = zip(agent.critics.parameters(), agent.target_critics.parameters(), strict=True)
    assert all(torch.equal(online, target) and online is not target for online, target in pairs)
    # The members are not copies of one another.
    assert not torch.equal(agent.critics.members[0][0].weight, agent.critics.members[1][0].weight)


def inputs_of(agent: SAC, batch: Trajectories) -> tuple[Tensor, Tensor]:
    """Return an update's input of the critics [B, H, state + A] and output of the actor [B, H, 2A]."""
    read: list[Tensor] = []
    given: list[Tensor] = []
    critics = agent.critics
    critics.register_forward_hook(lambda module, args, output: read.append(torch.cat(args, dim=-1).detach().clone()))
    agent.actor.register_forward_hook(lambda module, args, output: given.append(output.detach().clone()))
    agent.update(batch)
    return read[0], given[0]


def test_critics_read_latent_units(agent: SAC, batch: Trajectories) -> None:
    read, _ = inputs_of(agent, batch)
    assert batch.actions is not None
    expected = agent.ranker.center + agent.ranker.half_width * batch.actions
    assert (agent.ranker.half_width != 1).all() and (agent.ranker.center != 0).any()
    torch.testing.assert_close(read[..., -LATENT:], expected)


@pytest.mark.parametrize("what", ["slates", "clicks"])
def test_turn_t_has_not_seen_frame_t_plus_1(batch: Trajectories, what: str) -> None:
    """Neither the critics' state nor the actor may know frame t + 1 at turn t: it holds a_t's slate and clicks."""
    state_dim = tiny_sac().critic_belief.state_dim
    read, given = inputs_of(tiny_sac(), batch)
    for turn in range(TURNS):
        other = copy.deepcopy(batch)
        column = getattr(other, what)
        column[:, turn + 1] = (column[:, turn + 1] + 1) % 2
        other_read, other_given = inputs_of(tiny_sac(), other)
        for old, new in ((read[..., :state_dim], other_read[..., :state_dim]), (given, other_given)):
            assert torch.equal(old[:, : turn + 1], new[:, : turn + 1])
            assert (old[:, turn + 1 :] != new[:, turn + 1 :]).any(2).all()


def normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.0), (-0.4, 0.5)])
def test_log_probability_is_the_density(mean: float, log_std: float) -> None:
    """Compare with the difference quotient of P(a <= x) = Phi((atanh(x) - mean) / std)."""
    parameters = torch.tensor([mean, log_std], dtype=torch.float64).expand(50, 2)
    action, log_prob = tanh_gaussian(parameters, stream(0, "density"))
    assert action.std() > 0.1
    for a, found in zip(action[:, 0].tolist(), log_prob.tolist(), strict=True):
        h = 1e-5 * (1 - abs(a))
        low, high = (normal_cdf((math.atanh(x) - mean) / math.exp(log_std)) for x in (a - h, a + h))
        assert found == pytest.approx(math.log((high - low) / (2 * h)), abs=1e-4)


def test_log_probability_sums_over_dimensions_and_survives_saturation() -> None:
    mean, log_std = torch.tensor([9.0, -0.3, 14.0]), torch.tensor([-1.0, 0.2, 0.5])
    parameters = torch.cat([mean, log_std]).expand(8, -1)
    generator = stream(0, "saturated")
    noise = torch.randn(8, 3, generator=copy_of(generator)).double()
    action, log_prob = tanh_gaussian(parameters, generator)
    assert (action[:, 2] == 1).any()  # in float32
    raw = mean.double() + log_std.double().exp() * noise
    log_slope = -2 * torch.log(torch.cosh(raw))  # 1 - tanh^2 = 1 / cosh^2
    normal = torch.distributions.Normal(mean.double(), log_std.double().exp())
    torch.testing.assert_close(log_prob.double(), (normal.log_prob(raw) - log_slope).sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("log_std", "bound"), [(7.0, 2.0), (-50.0, -20.0)])
def test_deviation_is_bounded(log_std: float, bound: float) -> None:
    for result, expected in zip(
        tanh_gaussian(torch.tensor([[0.3, log_std]]), stream(0, "bounds")),
        tanh_gaussian(torch.tensor([[0.3, bound]]), stream(0, "bounds")),
        strict=True,
    ):
        assert torch.equal(result, expected)


def test_acting_draws_from_the_policy_that_is_trained(agent: SAC) -> None:
    state = torch.randn(4, agent.actor_belief.state_dim, generator=stream(0, "states"))
    parameters = agent.actor(state)
    generator = stream(0, "acting")
    expected, _ = tanh_gaussian(parameters, copy_of(generator))
    torch.testing.assert_close(agent.action(state, generator), expected, rtol=0, atol=0)
    torch.testing.assert_close(agent.action(state, None), parameters[:, :LATENT].tanh(), rtol=0, atol=0)


def test_continues_identically_from_its_state(batch: Trajectories) -> None:
    agent, resumed = tiny_sac(seed=0), tiny_sac(seed=1)
    agent.update(batch)
    resumed.load_learner_state(copy.deepcopy(agent.learner_state()))
    for _ in range(2):
        terms, other = agent.update(batch), resumed.update(batch)
        assert all(torch.equal(terms[name], other[name]) for name in SAC.TERMS)
    pairs = zip(agent.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "wrong", [{"gamma": 1.1}, {"tau": -0.1}, {"q_lr": 0}, {"pi_lr": -1.0}, {"alpha_lr": 0.0}, {"initial_alpha": 0}]
)
def test_impossible_values_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"agent\.{next(iter(wrong))}="):
        make({"_target_": "slaterl.agents.online.sac.SAC", **wrong}, "agent")
