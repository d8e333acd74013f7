"""A toolbox for offline actor-critics. Each algorithm writes its own update with these pieces, in its own file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from slaterl.agents.losses import (
    at,
    bootstrap,
    complete_turns,
    continuing_turns,
    discounted_to_go,
    draw_turns,
    mean,
    percentile,
    valid_turns,
)
from slaterl.agents.offline.base import MakeBelief, OfflineAgent, gradient_norm
from slaterl.beliefs.base import for_actor_and_critics, states_of
from slaterl.console import note
from slaterl.data.trajectories import Trajectories
from slaterl.networks import LOG_STD_MIN, Critics, tanh_gaussian, target_of
from slaterl.rankers.base import Ranker

ENTROPY_TERMS = ("policy/alpha", "policy/entropy_bonus")


class Turns(NamedTuple):
    """A batch in the symbols of the papers; turn t + 1 of a column is s' of turn t."""

    critic_state: Tensor  # [B, H, state]
    actor_state: Tensor  # [B, H, state]
    action: Tensor  # [B, H, A] in [-1, 1]
    reward: Tensor  # [B, H], scaled
    valid: Tensor | None = None  # [B, H] turns of sessions, or their weights; None: all
    continuing: Tensor | None = None  # [B, H-1] turns with an s' that counts; None: all
    complete: Tensor | None = None  # [B, H] turns whose return to go is known; None: all

    def mean(self, values: Tensor, *, of_vectors: bool = False) -> Tensor:
        """Return the mean of values [..., B, H], or of vectors [..., B, H, A], over the turns of sessions."""
        return mean(values, self.valid, of_vectors=of_vectors)

    def target(self, next_value: Tensor, gamma: float) -> Tensor:
        """Return y = r + gamma * V(s') [B, H] for values V(s') [B, H-1], and y = r where no s' counts."""
        return bootstrap(self.reward, next_value, gamma, self.continuing)


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
        layer_norm: a layer norm after each ReLU of the critics, and of V if there is one.
    """

    TERMS: ClassVar[tuple[str, ...]] = (
        "loss/critic",
        "loss/actor",
        "value/q_data",
        "value/q_policy",
        "value/gap",
        "value/target",
        "value/td_error",
        "value/over_return",
        "value/over_return_p90",
        "policy/beyond_data",
        "grad/critic",
        "grad/actor",
    )

    LEAST_LOG_STD: ClassVar = LOG_STD_MIN  # floor of a Gaussian policy's log-deviations

    actor: nn.Module
    critics: Critics
    target_critics: Critics
    mean_return: Tensor
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
        self.actor_belief, self.critic_belief = for_actor_and_critics(self.actor_belief, belief)
        self.state_dim, self.action_dim = self.actor_belief.state_dim, ranker.action_dim
        self.register_buffer("mean_return", torch.tensor(torch.inf))
        self.warned = False
        self.register_buffer("of_policy", torch.zeros(4))  # terms of the policy's last update

    def build_critics(self, count: int, hidden: Sequence[int], layer_norm: bool) -> None:
        """Build `critics`, which read a state and an action in latent units, and their targets."""
        self.critics = Critics(count, self.state_dim + self.action_dim, hidden, layer_norm)
        self.target_critics = target_of(self.critics)

    def turns(self, batch: Trajectories) -> Turns:
        """Read B whole trajectories. One scan computes both beliefs, and each loss trains its own belief."""
        batch = batch.with_room()
        assert batch.actions is not None
        critic_state, actor_state = states_of([self.critic_belief, self.actor_belief], batch)
        masks = valid_turns(batch), continuing_turns(batch), complete_turns(batch)
        return Turns(critic_state, actor_state, batch.actions, self.reward_scale * batch.rewards, *masks)

    def sample(self, actor_state: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions [..., A] of a tanh-Gaussian policy for an update, with their log-probabilities [...]."""
        return tanh_gaussian(self.actor(actor_state), self.generators["update"], self.LEAST_LOG_STD)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers [*shape] for an update."""
        generator = self.generators["update"]
        return torch.randn(shape, generator=generator, device=generator.device)

    def uniform(self, *shape: int) -> Tensor:
        """Draw uniform numbers [*shape] from 0 to 1 for an update."""
        generator = self.generators["update"]
        return torch.rand(shape, generator=generator, device=generator.device)

    def decay(self, optimizer: str, lr: float, steps: int) -> None:
        """Set an optimiser's learning rate to that of a cosine schedule from `lr` to zero in `steps` updates."""
        progress = min(self.step / steps, 1.0)
        self.optim[optimizer].param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * progress)) / 2

    def first_q(self, state: Tensor, action: Tensor) -> Tensor:
        """Value actions [..., A] in [-1, 1] at belief states [..., state] by the first critic alone: [...]."""
        return self.critics.members[0](state, self.ranker.to_latent(action)).squeeze(-1)

    def record_policy(self, loss: Tensor, action: Tensor, q: Tensor, turns: Turns) -> None:
        """Keep the terms of the policy's update, so that updates of the critics alone log them, too.

        Args:
            loss: loss of the policy.
            action: actions [B, H, A] of the policy.
            q: values [B, H] of these actions.
        """
        beyond, norm = self.beyond_data(action.detach(), turns.valid), gradient_norm(self.optim["actor"])
        self.of_policy.copy_(torch.stack([loss.detach(), turns.mean(q.detach()), beyond, norm]))

    def terms(
        self, loss: Tensor, target: Tensor, q: Tensor, q_data: Tensor, turns: Turns, bonus: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the terms that an update logs, in the order of TERMS.

        Args:
            loss: loss of the critics.
            target: targets [B, H].
            q: values [num_critics, B, H] of the recorded actions.
            q_data: values [B, H] of the recorded actions, from the same critics as the policy's: the first, or the
                minimum of all. Otherwise the gap would grow with the number of critics.
            bonus: [B, H-1] what the targets add to V(s') for entropy. It is not overestimation, so it counts as reward.
        """
        actor_loss, q_policy, beyond, norm = self.of_policy.clone()
        value = turns.mean(q_data)
        paid = turns.reward if bonus is None else turns.target(bonus, self.gamma)
        over = (q_data - discounted_to_go(paid, self.gamma)).detach()
        return {
            "loss/critic": loss,
            "loss/actor": actor_loss,
            "value/q_data": value,
            "value/q_policy": q_policy,
            "value/gap": q_policy - value,
            "value/target": turns.mean(target),
            "value/td_error": turns.mean((q - target).abs()),
            "value/over_return": mean(over, turns.complete),
            "value/over_return_p90": percentile(over, 0.9, turns.complete),
            "policy/beyond_data": beyond,
            "grad/critic": gradient_norm(self.optim["critic"]),
            "grad/actor": norm,
        }

    def entropy_terms(self, alpha: Tensor, log_prob: Tensor, turns: Turns) -> dict[str, Tensor]:
        """Return alpha, and alpha * entropy of a turn in clicks, for log-probabilities [B, H] of own actions."""
        bonus = -alpha * turns.mean(log_prob.detach()) / self.reward_scale
        return {"policy/alpha": alpha, "policy/entropy_bonus": bonus}

    def prepare(self, data: Trajectories) -> Trajectories:
        data = super().prepare(data)
        to_go = discounted_to_go(self.reward_scale * data.rewards, self.gamma)
        self.mean_return.copy_(mean(to_go.abs(), complete_turns(data)))
        return data

    def watch(self, step: int, means: Mapping[str, float]) -> None:
        """Warn once if Q of the data's actions exceeds their returns to go by twice the data's mean discounted return.

        A correct Q is r + gamma * V(s'), V of the policy. The return to go has a sample of V of the data instead.
        So the difference has the mean gamma * (V of the policy - V of the data). It stays below twice the data's mean
        unless the policy returns three times as much as the data. Then the message can be wrong, and it says so.
        """
        over, least = means["value/over_return"], 2 * self.mean_return.item()
        if over > least and not self.warned:
            self.warned = True
            note(
                f"warning: step {step:,}: value/over_return is {over:.3g}, above {least:.3g}, twice the mean "
                "discounted return of the data; unless the policy returns three times as much, its critics overestimate"
            )


def some_turns(turns: Turns, count: int, generator: torch.Generator) -> tuple[Turns, Tensor]:
    """Draw `count` turns uniformly. Return their columns and their numbers, [count] for all trajectories or [B, count].

    Terms with many actions per state cost as much as all others together. A few turns estimate them without bias.
    A session's last turn is never drawn, because it has no s'. `mean` of the columns weighs the turns of sessions of
    different lengths.
    """
    chosen, weight = draw_turns(count, turns.reward.shape[1] - 1, turns.continuing, generator)
    return Turns(*(at(column, chosen) for column in turns[:4]))._replace(valid=weight), chosen


def best_of(proposals: Tensor, score: Tensor) -> Tensor:
    """Return the proposal [..., A] with the largest score, of proposals [n, ..., A] with scores [n, ...]."""
    return proposals.gather(0, score.argmax(0)[None, ..., None].expand(1, *proposals.shape[1:]))[0]
