"""What CQL's weight does, on toy data whose truth is known. No test: it takes a minute a row.

    python -m tests.agents.cql_toy

Actions have 32 dimensions and a deviation of 0.4. A turn pays 1.2 clicks on average. Either no action matters, so every
policy has the value of the data, or clicks rise along one direction of the action and fall off the data.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from slaterl.agents.losses import discounted_to_go
from slaterl.agents.offline.cal_ql import CalQL
from slaterl.agents.offline.cql import CQL
from slaterl.beliefs.gru import GRUBelief
from slaterl.data.trajectories import Trajectories
from slaterl.seeds import seeded_weights, stream
from tests.helpers import ITEMS, SLOTS, tiny_gems, tiny_trajectories

DIM, TURNS, GAMMA, UPDATES, DEVIATION = 32, 10, 0.8, 900, 0.4
SETTINGS: dict[str, Any] = dict(
    gamma=GAMMA, reward_scale=1.0, tau=0.02, q_lr=1e-3, pi_lr=3e-4, q_hidden=[64, 64], pi_hidden=[64, 64],
    num_critics=2, layer_norm=True, alpha_lr=3e-3, initial_alpha=0.01, threshold=None, actions=10, turns=5,
)  # fmt: skip


class OfTheData(CQL):
    """CQL whose policy draws as the data's does, so that only memory can tell its actions from recorded ones."""

    def sample(self, actor_state: Tensor) -> tuple[Tensor, Tensor]:
        idle = 0 * self.actor(actor_state)[..., :DIM]
        return drawn(idle.shape[:-1], self.generators["update"]) + idle, idle.sum(-1)


def drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return (DEVIATION * torch.randn(*shape, DIM, generator=generator)).clamp(-1, 1)


def mean_clicks(action: Tensor, matters: bool) -> Tensor:
    """Return the expected clicks of actions [..., A]: [...]."""
    if not matters:
        return torch.full(action.shape[:-1], 1.2)
    along = action.sum(-1) / DIM**0.5
    off = (action.square().sum(-1) - along.square()) / (DEVIATION**2 * (DIM - 1))  # 1 on the data
    return 1.2 + 0.15 * (along / DEVIATION).clamp(-4, 4) - 0.3 * (off - 1).clamp(min=0)


def toy(count: int, seed: int, matters: bool) -> Trajectories:
    generator, data = stream(seed, "toy"), tiny_trajectories(count, seed=seed, turns=TURNS)
    data.actions = drawn((count, TURNS), generator)
    data.reward = torch.poisson(mean_clicks(data.actions, matters).clamp(0, 10), generator=generator)
    return data


def row(kind: type[CQL], conservatism: float, count: int, matters: bool, seed: int = 0) -> str:
    """Train, and return a row of the table of docs/results/offline.md."""
    ranker = tiny_gems(latent_dim=DIM)
    ranker.set_box(-torch.ones(DIM), torch.ones(DIM))
    belief = partial(GRUBelief, num_items=ITEMS, slate_size=SLOTS, item_dim=4, hidden_dim=16)
    with seeded_weights(seed, "toy"):
        agent = kind(
            ranker=ranker, belief=belief, generator=stream(seed, "update"), conservatism=conservatism, **SETTINGS
        )
    data, batches, largest = toy(count, seed, matters), stream(seed, "batches"), -torch.inf
    for step in range(UPDATES + 1):
        if step % 300 == 0:
            with torch.no_grad():
                turns = agent.turns(data)
                q = agent.q_values(agent.critics, turns.critic_state, turns.action).mean().item()
                clicks = mean_clicks(agent.action(turns.actor_state, None), matters).mean().item()
            largest = max(largest, q)
        agent.update(data[torch.randperm(count, generator=batches)[:16]])
    to_go = discounted_to_go(data.rewards, GAMMA).mean().item()
    matter = f"{clicks:.2f}" if matters else "-"
    return f"| {kind.__name__} | {conservatism} | {count} | {to_go:.2f} | {largest:.2f} | {q:.2f} | {matter} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| | conservatism | trajectories | return to go | largest Q | last Q | clicks of the policy |")
    for kind, conservatism, count in (
        *((CQL, weight, 300) for weight in (0.0001, 0.05, 0.2, 0.5, 5.0)),
        *((CQL, weight, 3000) for weight in (0.2, 5.0)),
        *((OfTheData, 5.0, count) for count in (75, 300, 3000)),
        *((CalQL, weight, 300) for weight in (0.2, 5.0)),
    ):
        print(row(kind, conservatism, count, matters=False), flush=True)
    for conservatism in (0.05, 0.2, 0.5, 5.0):
        for seed in (0, 1):
            print(row(CQL, conservatism, 3000, matters=True, seed=seed), flush=True)
