"""The slates that an agent would show next to users with a recorded history."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slaterl.agents.base import Agent
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation

USERS = 1024  # read together


@torch.no_grad()
def next_slates(
    agent: Agent,
    data: Trajectories,
    *,
    generator: torch.Generator | None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Return the slates [N, S] int64 that an agent shows after the last frame of each of N sessions, on the CPU.

    Sessions of about the same length are read together, so that hardly any padding is.

    Args:
        agent: reads frames, not the simulator's hidden state.
        data: N sessions on the CPU. Their lengths can differ.
        generator: drives exploration, on the agent's device; None acts greedily.
        on_progress: called with the number of sessions done.
    """
    count, frames, slots = data.slates.shape
    last = torch.full((count,), frames - 1) if data.lengths is None else data.lengths.long()  # of each session
    slates, done = torch.empty(count, slots, dtype=torch.int64), 0
    for places in last.argsort(stable=True).split(USERS):
        ends = last[places]
        longest = int(ends[-1]) + 1
        shown, clicks = data.slates[places, :longest], data.clicks[places, :longest]
        slates[places] = _next(agent, shown, clicks, ends, generator).cpu()
        done += len(places)
        on_progress(done)
    return slates


def _next(agent: Agent, slates: Tensor, clicks: Tensor, ends: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return the slates [B, S] after the frames `ends` [B], which rise, of slates and clicks [B, T, S]."""
    shortest = int(ends[0])
    memory = agent.acting_belief.initial_state(len(slates))
    slates, clicks, ends = (column.to(memory.device) for column in (slates.long(), clicks, ends))
    for frame in range(slates.shape[1]):
        seen = agent.acting_belief.step(Observation(slates[:, frame], clicks[:, frame]), memory)
        memory = seen if frame <= shortest else seen.where((frame <= ends).unsqueeze(1), memory)
    users = torch.arange(len(slates), device=memory.device)
    state = agent.acting_belief.state_of(memory)
    return agent.decide(state, Observation(slates[users, ends], clicks[users, ends]), generator).slate
