"""A toolbox for offline actor-critics. Each algorithm writes its own update with these pieces, in its own file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from slaterl.agents.offline.base import MakeBelief, OfflineAgent, gradient_norm
from slaterl.beliefs.base import states_of
from slaterl.console import note
from slaterl.data.trajectories import Trajectories
from slaterl.networks import Critics, tanh_gaussian, target_of
from slaterl.rankers.base import Ranker


class Turns(NamedTuple):
    """A batch in the symbols of the papers; turn t + 1 of a column is s' of turn t."""

    critic_state: Tensor  # [B, H, state]
    actor_state: Tensor  # [B, H, state]
    action: Tensor  # [B, H, A] in [-1, 1]
    reward: Tensor  # [B, H], scaled


class OfflineActorCritic(OfflineAgent):
    """Critics Q(s, a) and a policy, each with its own belief, trained end to end.

    A subclass builds its networks and optimisers, and gives `action` and `update`. A policy's loss reaches neither the
    critics nor their belief.

    Args:
        ranker, belief, generator: see OfflineAgent.
        gamma: discount.
        reward_scale: multiplies the clicks before training.
        tau: Polyak rate of the targets, applied at every update of the policy.

    Settings of every subclass:
        q_lr, pi_lr: Adam's learning rates of critics and policy, each with its belief.
        q_hidden, pi_hidden: widths of the hidden layers of critics and policy.
        num_critics: number of critics; the targets read their minimum.
    """

    TERMS: ClassVar = (
        "loss/critic",
        "loss/actor",
        "value/q_data",
        "value/q_policy",
        "value/gap",
        "value/target",
        "value/td_error",
        "policy/beyond_data",
        "grad/critic",
        "grad/actor",
    )

    actor: nn.Module
    critics: Critics
    target_critics: Critics
    q_range: Tensor
    of_policy: Tensor

    def __init__(
        self,
        ranker: Ranker,
        belief: MakeBelief,
        generator: torch.Generator,
        gamma: float,
        reward_scale: float,
        tau: float,
    ) -> None:
        super().__init__(ranker, belief, generator)
        self.gamma, self.reward_scale, self.tau = gamma, reward_scale, tau
        self.critic_belief = belief()
        self.state_dim, self.action_dim = self.actor_belief.state_dim, ranker.action_dim
        self.register_buffer("q_range", torch.tensor([-math.inf, math.inf]))
        self.register_buffer("of_policy", torch.zeros(4))  # terms of the policy's last update

    def build_critics(self, count: int, hidden: Sequence[int], layer_norm: bool = False) -> None:
        """Build `critics`, which read a state and an action in latent units, and their targets."""
        self.critics = Critics(count, self.state_dim + self.action_dim, hidden, layer_norm)
        self.target_critics = target_of(self.critics)

    def turns(self, batch: Trajectories) -> Turns:
        """Read B whole trajectories. One scan computes both beliefs, and each loss trains its own belief."""
        assert batch.actions is not None
        critic_state, actor_state = states_of([self.critic_belief, self.actor_belief], batch)
        return Turns(critic_state, actor_state, batch.actions, self.reward_scale * batch.rewards)

    def sample(self, actor_state: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions [..., A] of a tanh-Gaussian policy for an update, with their log-probabilities [...]."""
        return tanh_gaussian(self.actor(actor_state), self.generators["update"])

    def first_q(self, state: Tensor, action: Tensor) -> Tensor:
        """Value actions [..., A] in [-1, 1] at belief states [..., state] by the first critic alone: [...]."""
        return self.critics.members[0](state, self.ranker.to_latent(action)).squeeze(-1)

    def record_policy(self, loss: Tensor, action: Tensor, q: Tensor) -> None:
        """Keep the terms of the policy's update, so that updates of the critics alone log them, too.

        Args:
            loss: loss of the policy.
            action: actions [B, H, A] of the policy.
            q: values [B, H] of these actions.
        """
        beyond, norm = self.beyond_data(action.detach()), gradient_norm(self.optim["actor"])
        self.of_policy.copy_(torch.stack([loss.detach(), q.detach().mean(), beyond, norm]))

    def terms(self, loss: Tensor, target: Tensor, q: Tensor, q_data: Tensor) -> dict[str, Tensor]:
        """Return the terms that an update logs, in the order of TERMS.

        Args:
            loss: loss of the critics.
            target: targets [B, H].
            q: values [num_critics, B, H] of the recorded actions.
            q_data: values [B, H] of the recorded actions, from the same critics as the policy's: the first, or the
                minimum of all. Otherwise the gap would grow with the number of critics.
        """
        actor_loss, q_policy, beyond, norm = self.of_policy.clone()
        value = q_data.mean()
        return {
            "loss/critic": loss,
            "loss/actor": actor_loss,
            "value/q_data": value,
            "value/q_policy": q_policy,
            "value/gap": q_policy - value,
            "value/target": target.mean(),
            "value/td_error": (q - target).abs().mean(),
            "policy/beyond_data": beyond,
            "grad/critic": gradient_norm(self.optim["critic"]),
            "grad/actor": norm,
        }

    def prepare(self, data: Trajectories) -> Trajectories:
        data = super().prepare(data)
        # A discounted return is at most the best turn repeated, and at least the worst turn repeated.
        turns = data.rewards.shape[1]
        horizon = turns if self.gamma == 1 else (1 - self.gamma**turns) / (1 - self.gamma)
        self.q_range.copy_(torch.stack(data.rewards.aminmax()) * self.reward_scale * horizon)
        return data

    def watch(self, step: int, means: Mapping[str, float]) -> None:
        """Warn the user if a mean Q is outside the range of the data's discounted returns."""
        low, high = self.q_range.tolist()
        slack = 0.05 * (high - low)  # the critics start around zero
        for name in ("value/q_data", "value/q_policy"):
            if not low - slack <= means[name] <= high + slack:
                possible = f"the data's discounted returns can lie between {low:.1f} and {high:.1f}"
                note(f"warning: step {step:,}: {name} is {means[name]:.1f}, but {possible}")


def some_turns(turns: Turns, count: int, generator: torch.Generator) -> tuple[Turns, Tensor]:
    """Draw `count` turns uniformly, the same for every trajectory. Return their columns and their numbers [count].

    Terms with many actions per state cost as much as all others together. A few turns estimate them without bias.
    The last turn is never drawn, because it has no s'.
    """
    last = turns.reward.shape[1] - 1
    chosen = torch.randperm(last, generator=generator, device=generator.device)[:count]
    return Turns(*(column[:, chosen] for column in turns)), chosen
