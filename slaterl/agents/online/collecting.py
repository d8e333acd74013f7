"""Batches of online training: a round adds trajectories to the replay buffer, then as many batches are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch

from slaterl.agents.base import Agent
from slaterl.console import note
from slaterl.data.replay import ReplayBuffer
from slaterl.data.trajectories import Trajectories
from slaterl.envs.env import Env
from slaterl.rollout import Policy, rollout


class OnlineData(L.LightningDataModule):
    """Collect `num_envs` trajectories in parallel, then yield as many batches. The first `random_steps` are random.

    A step is one trajectory and one update; random trajectories are steps without an update. So `agent.step` and this
    module's state determine everything that follows. An agent that learns on policy gets no random or old trajectories:
    its batches hold each trajectory of the round once.

    Args:
        env: environment to collect in.
        agent: the agent to train.
        max_steps: total number of trajectories, including random ones.
        random_steps: number of random trajectories before the first update.
        num_envs: trajectories per round.
        batch_size: trajectories per batch.
        capacity: trajectories that the replay buffer holds.
        warm: whether the agent is already trained; if so, it collects the first `random_steps` trajectories itself.
        users, exploration, batches: random streams of training users, the policy's noise and the batches.
    """

    def __init__(
        self,
        env: Env,
        agent: Agent,
        *,
        max_steps: int,
        random_steps: int,
        num_envs: int,
        batch_size: int,
        capacity: int,
        warm: bool = False,
        users: torch.Generator,
        exploration: torch.Generator,
        batches: torch.Generator,
    ) -> None:
        super().__init__()
        self.env, self.agent = env, agent
        self.max_steps, self.random_steps = max_steps, 0 if agent.ON_POLICY else random_steps
        self.num_envs, self.batch_size = num_envs, batch_size
        self.replay = ReplayBuffer(num_envs if agent.ON_POLICY else capacity)
        self.generators = {"users": users, "exploration": exploration, "batches": batches}
        self.policy = agent.policy(exploration)
        self.first_policy = self.policy if warm else agent.random_policy(exploration)
        self.trajectories = self.updates = 0  # so far
        self.turns: torch.Tensor | int = 0  # so far; a tensor where users can leave, so that no round waits for it
        self.last_return: torch.Tensor | float = float("nan")

    @property
    def counters(self) -> dict[str, int]:
        """Numbers of trajectories, turns and updates so far; each is logged under its own name."""
        return {
            "trajectories": self.trajectories,
            "turns": int(self.turns),
            "updates": self.updates,
        }

    @property
    def measures(self) -> dict[str, float]:
        """Return the mean return of the last round, with exploration."""
        return {"train/return": float(self.last_return)}

    def _collect(self, policy: Policy, count: int) -> None:
        generator = self.generators["users"]
        hidden = self.agent.sees_hidden
        data = rollout(policy, self.env, count, generator=generator, deterministic=False, hidden=hidden)
        self.replay.push(data)
        self.trajectories += count
        self.turns += count * self.env.episode_length if data.lengths is None else data.lengths.sum()
        self.last_return = data.returns.mean()

    def train_dataloader(self) -> _Batches:
        return _Batches(self)

    def state_dict(self) -> dict[str, Any]:
        return {
            "replay": self.replay.state_dict(),
            "generators": {name: generator.get_state() for name, generator in self.generators.items()},
            "trajectories": self.trajectories,
            "turns": int(self.turns),
            "updates": self.updates,
            "last_return": float(self.last_return),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.replay.load_state_dict(state["replay"], self.env.device)
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])
        self.trajectories, self.updates = state["trajectories"], state["updates"]
        # a checkpoint of an older version has only environments in which nobody leaves
        self.turns = state.get("turns", self.trajectories * self.env.episode_length)
        self.last_return = state["last_return"]


class _Batches:
    """The remaining batches as a sized iterable: given a length, Lightning does not fetch a batch ahead."""

    def __init__(self, data: OnlineData) -> None:
        self.data = data

    def __len__(self) -> int:
        data = self.data
        start, end = max(data.agent.step, data.random_steps), data.max_steps
        if not data.agent.ON_POLICY:
            return end - start

        def batches(steps: int) -> int:
            rounds, rest = divmod(steps, data.num_envs)
            return rounds * -(-data.num_envs // data.batch_size) + -(-rest // data.batch_size)

        return batches(end) - batches(start)

    def __iter__(self) -> Iterator[Trajectories]:
        data, agent = self.data, self.data.agent
        if agent.step < data.random_steps:
            note(f"collecting the first {data.random_steps:,} trajectories")
            while data.trajectories < data.random_steps:
                data._collect(data.first_policy, min(data.num_envs, data.random_steps - data.trajectories))
            agent.step = data.random_steps
        while agent.step < data.max_steps:
            place = (agent.step - data.random_steps) % data.num_envs
            size = min(data.num_envs, data.max_steps - agent.step + place) if agent.ON_POLICY else data.num_envs
            if place == 0:
                data._collect(data.policy, size)
            data.updates += 1
            if agent.ON_POLICY:
                yield data.replay.at(slice(place, min(place + data.batch_size, size)))
            else:
                yield data.replay.sample(data.batch_size, data.generators["batches"])
