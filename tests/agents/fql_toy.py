"""What the weights of FQL and Diffusion-QL do, on toy data whose truth is known. No test: it takes half a minute a row.

    python -m tests.agents.fql_toy

Actions have 32 dimensions and a deviation of 0.4, as in the box that agents fit. A turn pays 1.2 clicks on average.
Clicks rise along one direction up to two deviations, where the data end, and fall beyond. They also fall off the data.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from slaterl.agents.offline.diffusion_ql import DiffusionQL
from slaterl.agents.offline.fql import FQL
from slaterl.agents.offline.td3_bc import TD3BC
from slaterl.beliefs.base import states_of
from slaterl.beliefs.gru import GRUBelief
from slaterl.data.trajectories import Trajectories
from slaterl.seeds import seeded_weights, stream
from tests.agents.cql_toy import DEVIATION, DIM, GAMMA, TURNS, drawn
from tests.helpers import ITEMS, SLOTS, tiny_gems, tiny_trajectories

COUNT, UPDATES, REACH = 3000, 900, 2
SETTINGS: dict[str, Any] = dict(
    gamma=GAMMA, reward_scale=1.0, tau=0.02, q_lr=1e-3, pi_lr=1e-3, q_hidden=[64, 64], pi_hidden=[64, 64],
    num_critics=2, layer_norm=True,
)  # fmt: skip


def deviations(action: Tensor) -> Tensor:
    """Return how far actions [..., A] lie along the direction that pays, in deviations of the data: [...]."""
    return action.sum(-1) / DIM**0.5 / DEVIATION


def mean_clicks(action: Tensor) -> Tensor:
    """Return the expected clicks of actions [..., A]: [...]."""
    along = deviations(action)
    off = (action.square().sum(-1) - (along * DEVIATION).square()) / (DEVIATION**2 * (DIM - 1))  # 1 on the data
    rise = torch.where(along < REACH, along, 2 * REACH - along).clamp(min=-4)
    return 1.2 + 0.15 * rise - 0.3 * (off - 1).clamp(min=0)


def toy(seed: int) -> Trajectories:
    generator, data = stream(seed, "toy"), tiny_trajectories(COUNT, seed=seed, turns=TURNS)
    data.actions = drawn((COUNT, TURNS), generator)
    data.reward = torch.poisson(mean_clicks(data.actions).clamp(0, 10), generator=generator)
    return data


def row(kind: type[Any], seed: int, **weights: Any) -> str:
    """Train, and return a row of the table of docs/results/offline.md."""
    ranker = tiny_gems(latent_dim=DIM)
    ranker.set_box(-torch.ones(DIM), torch.ones(DIM))
    belief = partial(GRUBelief, num_items=ITEMS, slate_size=SLOTS, item_dim=4, hidden_dim=16)
    with seeded_weights(seed, "toy"):
        agent = kind(ranker=ranker, belief=belief, generator=stream(seed, "update"), **SETTINGS, **weights)
    data, batches = toy(seed), stream(seed, "batches")
    for step in range(UPDATES):
        agent.step = step
        agent.update(data[torch.randperm(COUNT, generator=batches)[:16]])
    found = []
    with torch.no_grad():
        state = torch.cat(
            list(states_of(getattr(agent.acting_belief, "beliefs", [agent.actor_belief]), data[:100])), -1
        )
        for generator in (None, stream(9, "draws")):
            action = agent.action(state, generator)
            found += [f"{mean_clicks(action).mean().item():.2f}", f"{deviations(action).mean().item():.1f}"]
    return f"| {kind.__name__} | {next(iter(weights.values()))} | {seed} | {' | '.join(found)} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| | weight | seed | clicks | deviations | clicks, sampled | deviations, sampled |")
    for seed in (0, 1):
        for alpha in (0.3, 1.0, 3.0, 10.0):
            print(row(FQL, seed, alpha=alpha, flow_steps=10), flush=True)
        for eta in (1.0, 0.3, 0.1, 0.03):
            print(row(DiffusionQL, seed, eta=eta, steps=5, candidates=10, decay_steps=100_000), flush=True)
        print(row(TD3BC, seed, alpha=2.5, policy_delay=2, target_noise=0.2, noise_clip=0.5), flush=True)
