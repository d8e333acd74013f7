"""The next slate of every agent is the one that its policy shows after the last frame of a session."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from slaterl.agents import next_slates as module
from slaterl.agents.base import Agent
from slaterl.agents.next_slates import next_slates
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation
from slaterl.seeds import seeded_weights, stream
from tests.agents.test_contract import VARIANTS, WITH_BELIEFS, build, learners, settings
from tests.agents.test_lengths import garbled

LENGTHS = [7, 3, 1, 5, 2, 4, 7, 0]
AGENTS = [
    (agent, more)
    for agent, more in [(agent, "") for agent in learners() + learners(offline=True)] + VARIANTS
    if agent != "slateq"
    and "belief=none" not in more  # they read the simulator
    # and plans that go on from the last one, which next slates do not know
    and (agent not in ("decision_diffuser", "diffusion_veteran") or "warm_steps=null" in more)
]
AGENTS += [one for one in WITH_BELIEFS if one[0] in ("slate_bc", "bcq")]  # whose memory can be more than their state


def built(agent: str, more: str = "") -> Agent:
    """An agent whose slates depend on what it has read."""
    made, _ = build(settings(agent, None, *more.split()))
    with torch.no_grad(), seeded_weights(0, "perturbed"):
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made.requires_grad_(False)


def recorded() -> Trajectories:
    """Sessions of different lengths of 60 items and slates of 4, with garbage after each end."""
    generator, frames = stream(0, "sessions"), (len(LENGTHS), 8, 4)
    slates = torch.randint(60, frames, generator=generator).to(torch.uint8)
    clicks = torch.randint(2, frames, generator=generator).to(torch.uint8)
    return Trajectories(slates, clicks, lengths=torch.tensor(LENGTHS, dtype=torch.int32))


def shown_to(agent: Agent, data: Trajectories, user: int, last: int) -> list[int]:
    """What the policy shows to one user after frame `last`, turn by turn."""
    policy = agent.policy()
    policy.reset(1)
    for frame in range(last + 1):
        seen = Observation(data.slates[user : user + 1, frame].long(), data.clicks[user : user + 1, frame])
        slate = policy.act(seen, True).slate
    return slate[0].tolist()


@pytest.mark.parametrize(("agent", "more"), AGENTS)
def test_the_policy_has_read_the_whole_session(agent: str, more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "USERS", 3)
    made, data = built(agent, more), recorded()
    found = next_slates(made, data, generator=None)
    assert found.tolist() == [shown_to(made, data, user, last) for user, last in enumerate(LENGTHS)]
    assert torch.equal(found, next_slates(made, garbled(data, 60, seed=1), generator=None))
    whole = dataclasses.replace(data, lengths=None)
    found = next_slates(made, whole, generator=None)
    assert found.tolist() == [shown_to(made, data, user, 7) for user in range(len(LENGTHS))]
    assert len({tuple(slate) for slate in found.tolist()}) > 1 or agent in (
        "decision_transformer",
        "best_constant_slate",
    )


def test_sampled_slates_depend_on_the_seed_alone() -> None:
    made, data = built("slate_bc"), recorded()
    first, again, other = (next_slates(made, data, generator=stream(seed, "draws")) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, next_slates(made, data, generator=None))


def test_progress_counts_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "USERS", 3)
    done: list[int] = []
    next_slates(built("slate_bc"), recorded(), generator=None, on_progress=done.append)
    assert done == [3, 6, 8]
