"""Acting is what training sees, frame for frame, and it follows from its generators alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slaterl.agents.base import BeliefPolicy
from slaterl.agents.heuristics import EpsilonOracle
from slaterl.agents.online.sac import SAC, tanh_gaussian
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation
from slaterl.rollout import Decision, collect, rollout
from slaterl.seeds import stream
from tests.helpers import ITEMS, LATENT, SLOTS, TURNS, same_columns, tiny_env, tiny_sac

USERS = 7


class Watched(BeliefPolicy):
    """Also keeps what it observed and the belief's states."""

    def reset(self, num_users: int) -> None:
        super().reset(num_users)
        self.observations: list[Observation] = []
        self.states: list[Tensor] = []

    def act(self, observation: Observation, deterministic: bool) -> Decision:
        decision = super().act(observation, deterministic)
        self.observations.append(Observation(*(part.clone() for part in observation)))
        self.states.append(self.state)
        return decision


def lively_sac() -> SAC:
    """An agent whose slates differ from user to user and from turn to turn, also without exploration."""
    agent = tiny_sac()
    with torch.no_grad():
        for layer in agent.actor[::2]:
            layer.weight.mul_(4)
            layer.bias.zero_()
        agent.ranker.half_width.mul_(10)
    return agent


def serve(seed: int = 0, deterministic: bool = False, hidden: bool = False) -> tuple[Watched, Trajectories]:
    """One rollout of the tiny agent."""
    policy = Watched(lively_sac(), stream(seed, "exploration"))
    users = stream(seed, "users")
    return policy, rollout(policy, tiny_env(), USERS, generator=users, deterministic=deterministic, hidden=hidden)


@pytest.mark.parametrize("deterministic", [True, False])
def test_follows_from_its_generators(deterministic: bool) -> None:
    _, data = serve(deterministic=deterministic, hidden=True)
    torch.rand(3)  # the global generator has no part in it
    _, again = serve(deterministic=deterministic, hidden=True)
    _, other = serve(seed=1, deterministic=deterministic)
    assert same_columns(data, again)
    assert not torch.equal(data.slates, other.slates)


def test_shapes_and_types() -> None:
    _, data = serve(hidden=True)
    assert data.slates.shape == data.clicks.shape == (USERS, TURNS + 1, SLOTS)
    assert data.slates.dtype == data.clicks.dtype == torch.uint8
    assert data.actions.shape == (USERS, TURNS, LATENT) and not data.actions.requires_grad
    assert data.hidden["bored"].shape == (USERS, TURNS, 3) and data.hidden["user"].shape == (USERS, TURNS, 6)
    assert serve()[1].hidden == {}


def test_without_exploration_the_generator_rests() -> None:
    """Validation must not move the stream that training explores with."""
    policy, _ = serve(deterministic=True)
    assert torch.equal(policy.generator.get_state(), stream(0, "exploration").get_state())
    policy, _ = serve(deterministic=False)
    assert not torch.equal(policy.generator.get_state(), stream(0, "exploration").get_state())


def test_frame_t_is_what_the_policy_observed_before_action_t() -> None:
    policy, data = serve()
    assert len(policy.observations) == TURNS
    for turn, observation in enumerate(policy.observations):
        assert torch.equal(observation.slate, data.slates[:, turn].long())
        assert torch.equal(observation.clicks, data.clicks[:, turn].bool())
    assert (data.slates[:, 0] == data.slates[0, 0]).all()  # reset shows all the same
    assert data.clicks.any() and not data.clicks.all()


def test_states_while_acting_are_those_of_training() -> None:
    """One pass over the stored frames, as an update makes it, gives the states that the actions came from."""
    policy, data = serve()
    states = policy.agent.actor_belief(data.slates[:, :-1], data.clicks[:, :-1])
    torch.testing.assert_close(torch.stack(policy.states, dim=1), states, rtol=1e-5, atol=1e-6)
    generator = stream(0, "exploration")
    for turn in range(TURNS):
        expected, _ = tanh_gaussian(policy.agent.actor(states[:, turn]), generator)
        torch.testing.assert_close(data.actions[:, turn], expected, rtol=1e-4, atol=1e-5)


def test_deterministic_actions_are_those_of_training() -> None:
    policy, data = serve(deterministic=True)
    states = policy.agent.actor_belief(data.slates[:, :-1], data.clicks[:, :-1])
    expected = policy.agent.actor(states)[..., :LATENT].tanh()
    torch.testing.assert_close(data.actions, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("deterministic", [True, False])
def test_stored_action_gives_the_stored_slate(deterministic: bool) -> None:
    policy, data = serve(deterministic=deterministic)
    ranker = policy.agent.ranker
    for turn in range(TURNS):
        latent = ranker.center + ranker.half_width * data.actions[:, turn]
        assert torch.equal(ranker.rank(latent), data.slates[:, turn + 1].long())
    assert len(data.slates[:, 1:].flatten(0, 1).unique(dim=0)) > 5


def test_a_new_rollout_starts_from_a_fresh_belief() -> None:
    policy, env = lively_sac().policy(stream(0, "exploration")), tiny_env()
    first = rollout(policy, env, USERS, generator=stream(0, "users"), deterministic=True)
    again = rollout(policy, env, USERS, generator=stream(0, "users"), deterministic=True)
    assert same_columns(first, again)


def test_random_policy_covers_the_middle_half_of_the_box() -> None:
    agent = tiny_sac()
    policy = agent.random_policy(stream(0, "exploration"))
    data = rollout(policy, tiny_env(), 500, generator=stream(0, "users"), deterministic=False)
    ranker, flat = agent.ranker, data.actions.flatten(0, 1)
    assert flat.abs().max() <= 0.5
    # uniform on [-0.5, 0.5]: mean 0 and variance 1/12 within five standard errors, and both ends reached
    assert flat.mean(0).abs().max() < 5 * (1 / 12 / len(flat)) ** 0.5
    assert (flat.var(0) * 12 - 1).abs().max() < 5 * (0.8 / len(flat)) ** 0.5
    assert (flat.amin(0) < -0.49).all() and (flat.amax(0) > 0.49).all()
    latent = ranker.center + ranker.half_width * data.actions[:, 0]
    assert torch.equal(ranker.rank(latent), data.slates[:, 1].long())


def test_heuristics_have_no_actions() -> None:
    policy = EpsilonOracle(epsilon=0.5, num_items=ITEMS, slate_size=SLOTS, generator=stream(0, "slates"))
    data = rollout(policy, tiny_env(), USERS, generator=stream(0, "users"), deterministic=False)
    assert data.actions is None


@pytest.mark.parametrize(("count", "num_envs"), [(7, 3), (6, 3), (2, 5), (1, 1)])
def test_collect_is_rollouts_one_after_another(count: int, num_envs: int) -> None:
    done: list[int] = []
    policy, users = tiny_sac().policy(stream(0, "exploration")), stream(0, "users")
    settings = dict(deterministic=False, num_envs=num_envs, on_progress=done.append)
    data = collect(policy, tiny_env(), count, generator=users, **settings)

    policy, users, env = tiny_sac().policy(stream(0, "exploration")), stream(0, "users"), tiny_env()
    sizes = [min(num_envs, count - start) for start in range(0, count, num_envs)]
    parts = [rollout(policy, env, size, generator=users, deterministic=False).columns() for size in sizes]
    expected = Trajectories.from_columns({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    assert len(data) == count
    assert same_columns(data, expected)
    assert done == [sum(sizes[: i + 1]) for i in range(len(sizes))]
