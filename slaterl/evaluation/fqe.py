"""Fitted Q evaluation: estimate a policy's return from recorded trajectories alone.

Le, Voloshin and Yue, "Batch Policy Learning under Constraints", arXiv 1903.08738. Here an ensemble learns,
and every member has its own bootstrap sample of the trajectories.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, cast

import torch
from scipy import stats
from torch import Tensor, nn

from slaterl.agents.base import LatentAgent
from slaterl.agents.losses import continuing_turns, mean, valid_turns
from slaterl.beliefs.frames import FrameBelief
from slaterl.beliefs.gru import GRUBelief
from slaterl.data.groups import numbered
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation
from slaterl.errors import UserError
from slaterl.networks import mlp, polyak, target_of
from slaterl.rankers.base import Ranker
from slaterl.seeds import seeded_weights, stream
from slaterl.training.learner import Learner


@dataclass(frozen=True)
class Estimate:
    """A policy's return, estimated from data."""

    mean_return: float  # clicks per episode
    interval: float  # half-width of the 95 % interval over the members of the ensemble
    members: int
    loss: float  # mean squared error of m in the last updates


def fitted_q_evaluation(
    agent: LatentAgent,
    data: Trajectories,
    *,
    num_items: int,
    discount: float,
    updates: int,
    batch_size: int,
    members: int,
    hidden: int,
    lr: float,
    tau: float,
    seed: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Estimate:
    """Estimate the return of an agent's policy without exploration: turns of a session, times its mean reward there.

    The heads learn m = Q(s, a, t) / w_t, a weighted mean of the remaining rewards. Unlike Q, it has the same scale at
    every turn: m(s, a, t) = (r + gamma * w_{t+1} * m'(s', pi(s'), t + 1)) / w_t. The weight w_t is the sum of gamma^k
    over k < H - t. A member of the ensemble is a belief and a head. A sigmoid keeps m between the smallest and the
    largest reward, because an unbounded head can give any number to actions that the data lack.

    The mean of m(s, pi(s), t) over the data's states is the policy's mean reward, if it visits such states. With gamma
    near 1 the first turns alone would be enough. But errors on unseen actions would add up over a hundred turns and
    outweigh the data.

    Where sessions have lengths of their own, H - t are the turns that are left of the session. The estimate is the mean
    over sessions of the sum of m. So it is the return in sessions as long as the data's: it says nothing about a
    policy that makes users stay. A session that the log cut bootstraps from the state after it, as if it went on to H.

    Args:
        data: N trajectories, on the agent's device.
        discount: gamma, how far m looks ahead; below 1.
        updates, batch_size: number of updates, and of trajectories in each.
        lr, tau: Adam's learning rate, and the Polyak rate of the heads' targets.
        members: number of members; each weights a trajectory by its count in a bootstrap sample of the data, or of the
            users with several trajectories.
        hidden: width of the two hidden layers of a head.

    Raises:
        UserError: training has diverged.
    """
    data = data.trimmed()
    count, horizon = data.rewards.shape
    device = data.slates.device
    generator = stream(seed, "fqe", device)
    # Also where actions were recorded: an estimate values slates, and the same encoder reads those of data and policy.
    # Recorded actions would give one slate many names, and those of a policy could be names that the data lack.
    # They are not calibrated: that is a linear map, which the heads' first layer can learn.
    data = with_places(data.with_room(), agent.ranker)
    own = policy_actions(agent, data)
    number, groups = numbered(data)
    weights = torch.poisson(torch.ones(members, groups, device=device), generator=generator)  # [M, G]
    weights[weights.sum(1) == 0] = 1  # a sample of few trajectories can miss them all
    weights = weights[:, number]  # [M, N]
    with seeded_weights(seed, "fqe weights"):
        sizes = dict(num_items=num_items, members=members, hidden=hidden)
        ensemble = FittedQ(data, **sizes, discount=discount, lr=lr, tau=tau).to(device)

    smoothed = torch.zeros((), device=device)
    for update in range(updates):
        places = torch.randperm(count, generator=generator, device=device)[:batch_size]
        terms = ensemble.update(Recorded(data[places], own[places], weights[:, places]))
        smoothed = torch.lerp(smoothed, terms["loss/critic"].detach(), 0.02)
        on_progress(update + 1)

    everyone = torch.arange(count, device=device)
    reward = torch.cat([ensemble.reward(data[places], own[places]) for places in everyone.split(512)], dim=1)  # [M, N]
    found = horizon * (weights * reward).sum(1) / weights.sum(1)
    if not found.isfinite().all():
        raise UserError(f"fqe.lr={lr}: fitted Q evaluation has diverged; use a smaller learning rate")
    interval = stats.t.ppf(0.975, members - 1) * found.std().item() if members > 1 else math.nan
    return Estimate(found.mean().item(), float(interval), members, smoothed.item())


class Recorded(NamedTuple):
    """B recorded trajectories to learn from."""

    data: Trajectories  # with actions
    own: Tensor  # [B, H, A] actions of the policy to evaluate
    weights: Tensor  # [M, B] weight of a trajectory for each member


class FittedQ(Learner):
    """The ensemble that learns m, see `fitted_q_evaluation`. Its updates read no value.

    Args:
        data: all trajectories, with actions.
        others: see `fitted_q_evaluation`.
    """

    TERMS: ClassVar = ("loss/critic",)

    turn: Tensor
    ahead: Tensor
    over: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self, data: Trajectories, *, num_items: int, members: int, hidden: int, discount: float, lr: float, tau: float
    ) -> None:
        super().__init__()
        assert data.actions is not None
        self.discount, self.tau = discount, tau
        # of the longest session; room for the state after it does not count
        horizon = data.rewards.shape[1] if data.lengths is None else int(data.lengths.max())
        self.horizon = horizon
        turn = torch.arange(data.rewards.shape[1], device=data.slates.device)
        rewards = data.rewards if data.lengths is None else data.rewards[data.mask]
        low, high = rewards.aminmax()
        self.register_buffer("turn", turn)
        self.register_buffer("ahead", (1 - discount ** (horizon - turn)) / (1 - discount))  # w_t, [H]
        self.register_buffer("over", (turn / horizon).view(1, -1, 1))
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        sizes = dict(num_items=num_items, slate_size=data.slates.shape[2], item_dim=20, hidden_dim=20)
        beliefs = [GRUBelief(shared=False, **sizes) for _ in range(members)]
        networks = [mlp(20 + data.actions.shape[2] + 1, [hidden, hidden], 1) for _ in range(members)]
        with torch.no_grad():
            for network in networks:  # the first guess is the mean of the data
                last = network[-1]
                assert isinstance(last, nn.Linear)
                last.bias.copy_(((rewards.mean() - low) / (high - low)).nan_to_num(0.5).logit(eps=0.01))
        self.beliefs, self.heads = nn.ModuleList(beliefs), nn.ModuleList(networks)
        self.targets = target_of(self.heads)
        self.add_optimizer("critic", self.beliefs, self.heads, lr=lr)

    def update(self, batch: Recorded) -> dict[str, Tensor]:
        """Take one step of every member and its target."""
        data = batch.data
        assert data.actions is not None
        states = self.states(data)
        with torch.no_grad():
            ahead = self.weights_of(data)
            following = self.values(self.targets, states, batch.own)[..., 1:]
            target = data.rewards.expand(len(self.heads), -1, -1).clone()
            continuing = continuing_turns(data)
            following = following if continuing is None else following.where(continuing, 0.0)
            target[..., :-1] += self.discount * ahead[..., 1:] * following
            target /= ahead
        error = (self.values(self.heads, states, data.actions) - target).square()  # [M, B, H]
        if data.lengths is None:
            loss = (batch.weights * error.mean(2)).mean()
        else:
            loss = mean(batch.weights.unsqueeze(2) * error, valid_turns(data))
        self.minimise("critic", loss)
        polyak(self.heads, self.targets, self.tau)
        return {"loss/critic": loss}

    @torch.no_grad()
    def reward(self, data: Trajectories, own: Tensor) -> Tensor:
        """Return the sum of m over the turns of B trajectories, divided by H: [M, B].

        Args:
            own: actions [B, H, A] of the policy.
        """
        values = self.values(self.heads, self.states(data), own)
        return values.mean(2) if data.lengths is None else values.where(data.mask, 0.0).sum(2) / self.horizon

    def weights_of(self, data: Trajectories) -> Tensor:
        """Return w_t: [H] for sessions of H turns, or [B, H] by the turns that are left of each; 1 in padding."""
        if data.lengths is None:
            return self.ahead
        end = data.lengths if data.truncated is None else data.lengths.where(~data.truncated, len(self.turn))
        left = (end.unsqueeze(1) - self.turn).clamp(min=1)
        return (1 - self.discount**left) / (1 - self.discount)

    def states(self, data: Trajectories) -> Tensor:
        """Return the members' states before each turn of B trajectories, [M, B, H, 20]."""
        return GRUBelief.read(cast(list[FrameBelief], list(self.beliefs)), data)

    def values(self, of: nn.ModuleList, states: Tensor, action: Tensor) -> Tensor:
        """Return m [M, B, H] at states [M, B, H, 20] and actions [B, H, A]."""
        over = self.over.expand(len(action), -1, -1)
        raw = torch.stack([head(state, action, over).squeeze(-1) for head, state in zip(of, states, strict=True)])
        return torch.lerp(self.low, self.high, raw.sigmoid())


@torch.no_grad()
def with_places(data: Trajectories, ranker: Ranker) -> Trajectories:
    """Set the actions [N, H, A] to what a ranker reads from the slates, see `Ranker.place_of`; of padding, any."""
    parts = [data.slates[start : start + 256, 1:] for start in range(0, len(data), 256)]
    places = [ranker.place_of(part.flatten(0, 1)).unflatten(0, part.shape[:2]) for part in parts]
    return replace(data, actions=torch.cat(places))


@torch.no_grad()
def policy_actions(agent: LatentAgent, data: Trajectories) -> Tensor:
    """Return an agent's actions without exploration in each turn of recorded trajectories, [N, H, A].

    They are read from the slates that it would show, like the data's actions (`with_places`). The policy's own actions
    can lie outside the range of the encoder.
    """
    found = []
    for start in range(0, len(data), 512):
        part = data[start : start + 512]
        belief = agent.acting_belief
        memory = belief.initial_state(len(part))
        turns = []
        for slate, clicks in zip(part.slates[:, :-1].unbind(1), part.clicks[:, :-1].unbind(1), strict=True):
            memory = belief.step(Observation(slate.long(), clicks), memory)
            slate = agent.ranker.rank(agent.ranker.to_latent(agent.action(belief.state_of(memory), None)))
            turns.append(agent.ranker.place_of(slate))
        found.append(torch.stack(turns, dim=1))
    return torch.cat(found)
