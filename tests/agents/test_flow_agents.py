"""FQL and Diffusion-QL: acting, what learns from what, going on online, and two modes that a Gaussian would join."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slaterl.agents.init_from import act_in_its_box, start_from
from slaterl.agents.offline.diffusion import Diffusion
from slaterl.agents.offline.diffusion_ql import DiffusionQL
from slaterl.agents.offline.fql import FQL
from slaterl.agents.offline.td3_bc import TD3BC
from slaterl.agents.online.fql import OnlineFQL
from slaterl.beliefs.base import states_of
from slaterl.errors import UserError
from slaterl.seeds import stream
from tests.agents.derivations import parameters_of
from tests.agents.test_offline_agents import BATCH, SETTINGS, checkpoint_of, critics, network, tiny
from tests.agents.test_sac import gradients
from tests.helpers import LATENT, arrays, copy_of, tiny_sac, tiny_trajectories

SETTINGS[OnlineFQL] = SETTINGS[FQL]
MODE, SPREAD, SHARE = 0.5, 0.1, 0.7  # of the toy's actions: SHARE of them lie around +MODE, the others around -MODE


def toy_states(count: int, width: int = 5) -> Tensor:
    return torch.randn(count, width, generator=stream(0, "states"))


# --- FQL


def test_fql_acts_by_one_step_from_noise() -> None:
    """Without a generator from z = 0, and in both cases clipped."""
    agent, state, generator = tiny(FQL), toy_states(40), stream(0, "exploration")
    noise = torch.randn(40, LATENT, generator=copy_of(generator))
    for z, given in ((noise, generator), (torch.zeros(40, LATENT), None)):
        inputs = torch.cat([state, z], dim=-1).double().numpy()
        action = agent.action(state, given).detach()
        np.testing.assert_allclose(action, network(arrays(agent), "actor.", inputs).clip(-1, 1), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        agent.actor[-1].weight.mul_(1000)
        agent.flow[-1].weight.mul_(1000)
    assert agent.action(state, generator).abs().max() == 1
    assert agent.flow_action(state, noise).abs().max() == 1


@pytest.mark.parametrize("alpha", [0.0, 100.0])
def test_only_its_own_loss_trains_the_flow(alpha: float) -> None:
    """Whatever the policy's loss weighs, the gradients of flow and its belief are the same."""
    agent, other, batch = tiny(FQL), tiny(FQL, alpha=alpha), tiny_trajectories(BATCH)
    agent.update(batch)
    other.update(batch)
    own, found = gradients(agent), gradients(other)
    for name in parameters_of(agent, "flow", "flow_belief", "critics", "critic_belief"):
        assert torch.equal(own[name], found[name]), name
    for name in parameters_of(agent, "actor", "actor_belief"):
        assert not torch.equal(own[name], found[name]), name


# --- Diffusion-QL


@pytest.mark.parametrize("sampled", [False, True])
def test_diffusion_ql_acts_by_a_proposal(sampled: bool) -> None:
    """The one with the largest min Q', or one with the probability softmax(min Q')."""
    agent, users = tiny(DiffusionQL), 20_000 if sampled else 40
    proposals = 2 * torch.rand(5, LATENT, generator=stream(0, "proposals")) - 1
    agent.drawn = lambda actor, state, noise: proposals.view(5, 1, LATENT).expand(-1, users, -1)
    state = toy_states(1 if sampled else users, 10).expand(users, -1)
    of_critic = np.broadcast_to(state[:, 5:].double().numpy(), (5, users, 5))
    actions = np.broadcast_to(proposals.double().numpy()[:, None], (5, users, LATENT))
    q = critics(arrays(agent), "target_critics", of_critic, actions).min(0)  # [5, users]
    chosen = agent.action(state, stream(0, "draws") if sampled else None)
    place = (chosen.unsqueeze(0) == proposals.unsqueeze(1)).all(-1).double().numpy()  # [5, users]
    assert (place.sum(0) == 1).all()
    if sampled:
        weight = np.exp(q[:, 0]) / np.exp(q[:, 0]).sum()
        np.testing.assert_allclose(place.mean(1), weight, atol=0.015)
        assert weight.min() > 0.02
    else:
        assert (place.argmax(0) == q.argmax(0)).all()
        assert len(set(q.argmax(0))) > 1


def test_diffusion_ql_draws_proposals_by_its_policy() -> None:
    """Each of the two beliefs matters, users have the same fixed noise, and draws differ between users."""
    agent, state = tiny(DiffusionQL), toy_states(40, 10)
    seen: list[tuple[Tensor, Tensor]] = []
    drawn = agent.drawn
    agent.drawn = lambda actor, s, noise: seen.append((s, noise)) or drawn(agent.actor, s, noise)
    agent.action(state, None)
    agent.action(state, stream(0, "draws"))
    for s, noise in seen:
        assert torch.equal(s, state[:, :5].expand(5, -1, -1))
        assert noise.shape == (4, 5, 40, LATENT)
    assert torch.equal(seen[0][1][:, :, 0], seen[0][1][:, :, 7]) and torch.equal(
        seen[0][1][:, :, 0], agent.acting_noise
    )
    assert not torch.equal(seen[1][1][:, :, 0], seen[1][1][:, :, 7])


def test_each_critic_is_drawn() -> None:
    """The policy's loss reads Q_i / mean |Q_j|, with i and j in both orders."""
    agent, batch, gains = tiny(DiffusionQL, eta=1.0, q_lr=1e-12), tiny_trajectories(BATCH), []
    with torch.no_grad():
        for critic, value in zip(agent.critics.members, (1.0, 4.0), strict=True):
            critic[-1].weight.zero_()
            critic[-1].bias.fill_(value)
    for _ in range(10):
        terms = agent.update(batch)
        gains.append(round((terms["loss/imitation"] - terms["loss/actor"]).item(), 4))
    assert set(gains) == {0.25, 4.0}


def test_diffusion_ql_decays_both_learning_rates() -> None:
    agent, batch, rates = tiny(DiffusionQL), tiny_trajectories(BATCH), []
    for step in (0, 50, 150):
        agent.step = step
        agent.update(batch)
        rates.append([agent.optim[name].param_groups[0]["lr"] for name in ("critic", "actor")])
    assert rates == [pytest.approx(pair) for pair in ([1e-3, 3e-3], [5e-4, 1.5e-3], [0, 0])]


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_diffusion_ends_in_noise_and_comes_back(steps: int) -> None:
    """The last step has hardly any data left, and with the true noise known every step leads back to the data."""
    diffusion = Diffusion(steps)
    clean = 2 * torch.rand(200, LATENT, generator=stream(0, "data")) - 1
    noise = torch.randn(steps, 200, LATENT, generator=stream(0, "noise"))
    assert diffusion.keep[-1] < 0.1
    torch.testing.assert_close(diffusion.keep**2 + diffusion.spread**2, torch.ones(steps))

    def exact(x: Tensor, step: Tensor) -> Tensor:
        return (x - diffusion.keep[step] * clean) / diffusion.spread[step]

    torch.testing.assert_close(diffusion.denoised(exact, noise), clean, rtol=1e-4, atol=1e-4)
    assert not list(diffusion.state_dict())


# --- few steps


def kept_by_diffusion(steps: int, deviation: float) -> float:
    """Share of the deviation of Gaussian data that T steps with the best prediction return."""
    diffusion, noise = Diffusion(steps), torch.randn(steps, 100_000, generator=stream(0, "noise"))

    def best(x: Tensor, step: Tensor) -> Tensor:  # E[noise | x]
        keep, spread = diffusion.keep[step], diffusion.spread[step]
        return spread * x / ((keep * deviation) ** 2 + spread**2)

    return diffusion.denoised(best, noise).std().item() / deviation


def kept_by_flow(steps: int, deviation: float) -> float:
    """The same share for Euler steps along the exact velocity."""
    agent, noise = tiny(FQL, flow_steps=steps), torch.randn(50_000, LATENT, generator=stream(0, "noise"))

    def exact(state: Tensor, x: Tensor, time: Tensor) -> Tensor:
        return x * (time * deviation**2 - (1 - time)) / ((1 - time) ** 2 + (time * deviation) ** 2)

    agent.flow.forward = exact
    return agent.flow_action(noise, noise).std().item() / deviation


@pytest.mark.parametrize(
    ("kept", "steps", "wide", "narrow"),
    [
        (kept_by_diffusion, 5, 0.55, 0.36),
        (kept_by_diffusion, 20, 0.81, 0.71),
        (kept_by_flow, 10, 0.85, 0.77),
        (kept_by_flow, 20, 0.92, 0.88),
    ],
)
def test_few_steps_make_narrow_policies(kept: Any, steps: int, wide: float, narrow: float) -> None:
    """For actions that deviate by 0.4 and by 0.2. docs/agents/offline_critics.md says these numbers."""
    assert kept(steps, 0.4) == pytest.approx(wide, abs=0.01)
    assert kept(steps, 0.2) == pytest.approx(narrow, abs=0.01)


# --- two modes


def two_modes(signs: int = 1) -> Any:
    """Trajectories whose actions lie around two points, or have a sign for each dimension. Those below 0 earn more."""
    data, generator = tiny_trajectories(200), stream(0, "toy")
    shape = data.actions.shape
    sign = torch.where(torch.rand(*shape[:2], signs, generator=generator) < SHARE, 1.0, -1.0)
    data.actions = MODE * sign + SPREAD * torch.randn(shape, generator=generator)
    data.reward = 2 * (sign < 0).float().mean(-1)
    return data


def learned(kind: type, data: Any, imitates: bool = False, **changes: Any) -> Any:
    """Train an agent, or only let Diffusion-QL imitate."""
    sizes = dict(q_hidden=[32, 32], pi_hidden=[64, 64], q_lr=3e-3, pi_lr=3e-3, gamma=0.0)
    agent, batches = tiny(kind, **sizes, **changes), stream(0, "batches")
    for step in range(1200 if imitates else 400):
        agent.step, batch = step, data[torch.randperm(200, generator=batches)[:40]]
        agent.minimise("actor", agent.imitation(agent.turns(batch))) if imitates else agent.update(batch)
    return agent


def states_for(data: Any, *beliefs: Any) -> Tensor:
    """States of some beliefs in all turns, joined: [N * H, states]."""
    return torch.cat(list(states_of(beliefs, data)), dim=-1).flatten(0, 1).detach()


def assert_two_modes(action: Tensor, share: float) -> None:
    """Check that actions lie around the two points, with a share of them around the first."""
    assert ((action.abs() - MODE).abs() < 3 * SPREAD).float().mean() > 0.8  # of a Gaussian 0.57
    assert (action > 0).float().mean().item() == pytest.approx(share, abs=0.1)
    first = action[(action > 0).all(-1)]
    assert len(first) + len(action[(action < 0).all(-1)]) > 0.9 * len(action)
    assert first.std(0).mean().item() == pytest.approx(SPREAD, abs=0.06)


def test_fql_learns_two_modes() -> None:
    """Flow and one-step policy show both. z = 0 is in the larger one, and the mean over z in none."""
    data = two_modes()
    agent = learned(FQL, data, alpha=100.0, flow_steps=10)
    state, of_flow = (states_for(data, belief) for belief in (agent.actor_belief, agent.flow_belief))
    noise = torch.randn(len(state), LATENT, generator=stream(0, "noise"))
    with torch.no_grad():
        assert_two_modes(agent.flow_action(of_flow, noise), SHARE)
        drawn = agent.action(state, stream(0, "draws"))
        assert_two_modes(drawn, SHARE)
        assert ((agent.action(state, None) - MODE).abs() < 3 * SPREAD).float().mean() > 0.9
    assert drawn.mean().abs() < MODE - 2 * SPREAD


def test_diffusion_ql_learns_two_modes() -> None:
    data = two_modes()
    agent = learned(DiffusionQL, data, imitates=True, steps=5)
    state = states_for(data, agent.actor_belief)
    noise = torch.randn(5, len(state), LATENT, generator=stream(0, "noise"))
    with torch.no_grad():
        assert_two_modes(agent.drawn(agent.actor, state, noise), SHARE)


@pytest.mark.parametrize(
    ("kind", "changes"), [(FQL, dict(alpha=0.5)), (DiffusionQL, dict(steps=5, eta=1.0, decay_steps=1000))]
)
def test_q_chooses_the_better_mode(kind: type, changes: dict[str, Any]) -> None:
    """In each dimension it is the smaller one here."""
    data = two_modes(LATENT)
    agent = learned(kind, data, **changes)
    state = states_for(data, *([agent.actor_belief] if kind is FQL else agent.acting_belief.beliefs))
    with torch.no_grad():
        for generator in (None, stream(0, "draws")):
            assert (agent.action(state, generator) < 0).float().mean() > 0.8  # in the data 0.3


# --- online


def test_fql_goes_on_online() -> None:
    """Everything but the optimisers goes on: networks, beliefs, targets, and the box of the data."""
    given, agent = tiny(FQL), tiny(OnlineFQL)
    for kept in (given.actor, given.flow, given.critics, given.flow_belief):
        with torch.no_grad():
            for parameter in kept.parameters():
                parameter.add_(1)
    given.prepare(tiny_trajectories(30))
    config = {"agent": {"name": "fql"}, "ranker": {"unique": False}, "belief": {}}
    state = checkpoint_of(given, "fql") | {"config": config}
    start_from(agent, state, "given.ckpt")
    act_in_its_box(agent, state, "given.ckpt")
    own, learned = agent.state_dict(), given.state_dict()
    assert own.keys() == learned.keys()
    assert all(torch.equal(value, learned[name]) for name, value in own.items())


def test_online_fql_is_fql_on_what_it_shows() -> None:
    """The update is the same to the bit, and it may read the hidden state."""
    agent, other, batch = tiny(FQL), tiny(OnlineFQL), tiny_trajectories(BATCH)
    first, second = agent.update(batch), other.update(batch)
    assert all(torch.equal(first[name], second[name]) for name in FQL.TERMS)
    assert (FQL.LEARNS_FROM, OnlineFQL.LEARNS_FROM) == ("dataset", "simulator")


@pytest.mark.parametrize(
    ("given", "agent"), [(FQL, tiny_sac), (FQL, partial(tiny, TD3BC)), (TD3BC, partial(tiny, OnlineFQL))]
)
def test_policies_with_noise_start_only_from_each_other(given: type, agent: Any) -> None:
    with pytest.raises(UserError, match=r"given\.ckpt: .*agent=fql_online"):
        start_from(agent(), checkpoint_of(tiny(given), "given"), "given.ckpt")


def test_nothing_starts_from_a_diffusion_policy() -> None:
    with pytest.raises(UserError, match=r"given\.ckpt: agent=diffusion_ql has no policy"):
        start_from(tiny_sac(), checkpoint_of(tiny(DiffusionQL), "diffusion_ql"), "given.ckpt")
