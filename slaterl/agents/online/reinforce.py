"""REINFORCE with continuous actions through a ranker, and with slates sampled from a softmax over items.

Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992. The
slate form is from Chen et al., "Top-K Off-Policy Correction for a REINFORCE Recommender System", WSDM 2019,
arXiv 1812.02353.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from slaterl.agents.base import ItemAgent, LatentAgent
from slaterl.agents.losses import mean, valid_turns
from slaterl.beliefs.base import Belief, states_of
from slaterl.bounds import Fraction, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.networks import mlp
from slaterl.rankers.base import Ranker
from slaterl.rollout import Decision


def returns_to_go(rewards: Tensor, gamma: float) -> Tensor:
    """Return G_t = r_t + gamma * G_{t+1} for rewards [B, H]: [B, H]."""
    total = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for turn in reversed(range(rewards.shape[1])):
        following = rewards[:, turn] + gamma * following
        total[:, turn] = following
    return total


class REINFORCE(LatentAgent):
    """A Gaussian policy with fixed standard deviation, squashed by tanh, in a ranker's latent space.

    It maximises the mean over trajectories of sum_t G_t * log pi(a_t | s_t), without a baseline.

    Args:
        ranker: the ranker that the agent acts through, already trained.
        belief: makes the actor's belief.
        gamma: discount of the returns to go G_t.
        pi_lr: Adam's learning rate of policy and belief; pi_hidden: widths of the hidden layers.
        sigma: standard deviation of the Gaussian before the tanh.
    """

    TERMS: ClassVar = ("loss/actor", "value/return_to_go", "policy/log_prob")
    ON_POLICY: ClassVar = True

    def __init__(
        self,
        *,
        ranker: Ranker,
        belief: Callable[[], Belief],
        gamma: Fraction,
        pi_lr: Positive,
        pi_hidden: Widths,
        sigma: Positive,
    ) -> None:
        super().__init__(ranker)
        self.gamma, self.sigma = gamma, sigma
        self.actor_belief = belief()
        self.actor = mlp(self.actor_belief.state_dim, pi_hidden, ranker.action_dim)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        mean = self.actor(state)
        if generator is not None:
            mean = mean + self.sigma * torch.randn(mean.shape, generator=generator, device=mean.device)
        return mean.tanh()

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step on B whole trajectories, each used once."""
        assert batch.actions is not None
        (state,) = states_of([self.actor_belief], batch)
        limit = 1 - torch.finfo(batch.actions.dtype).eps  # atanh is infinite where the tanh saturated
        raw = batch.actions.clamp(-limit, limit).atanh()
        # The slope of the tanh does not depend on the policy, so it is left out.
        scaled = (raw - self.actor(state)) / self.sigma
        log_prob = -(0.5 * scaled.square() + math.log(self.sigma) + 0.5 * math.log(2 * math.pi)).sum(2)
        to_go = returns_to_go(batch.rewards, self.gamma)
        mask = valid_turns(batch)
        loss = -(to_go * log_prob).sum(1).mean()  # the return to go is 0 after a session's end
        self.minimise("actor", loss)
        terms = {"value/return_to_go": mean(to_go, mask), "policy/log_prob": mean(log_prob, mask)}
        return {"loss/actor": loss, **terms}


class REINFORCESlate(ItemAgent):
    """A softmax over items: a slate is S draws with replacement, or without exploration the S most probable items.

    An item of probability pi is on the slate with probability 1 - (1 - pi)^S. The agent maximises the mean over
    trajectories of sum_t G_t * log(1 - (1 - pi)^S), summed over the credited clicks of turn t.

    Args:
        num_items, slate_size: sizes of the environment.
        belief: makes the actor's belief.
        gamma: discount of the returns to go G_t.
        pi_lr: Adam's learning rate of policy and belief; pi_hidden: widths of the hidden layers.
        credit: clicks on a slate to learn from, `first_click` or `every_click`.
        top_k_correction: maximise G_t * S * (1 - pi)^(S-1) * log pi instead. S * (1 - pi)^(S-1) is the multiplier of
            Chen et al. (equation 6, on policy) and takes no gradient.
    """

    TERMS: ClassVar = ("loss/actor", "value/return_to_go", "policy/entropy")
    CREDITS_CLICKS: ClassVar = True
    ON_POLICY: ClassVar = True

    def __init__(
        self,
        *,
        num_items: int,
        slate_size: int,
        belief: Callable[[], Belief],
        gamma: Fraction,
        pi_lr: Positive,
        pi_hidden: Widths,
        credit: Literal["first_click", "every_click"],
        top_k_correction: bool,
    ) -> None:
        super().__init__(num_items, slate_size)
        self.gamma, self.credit, self.top_k_correction = gamma, credit, top_k_correction
        self.actor_belief = belief()
        self.actor = mlp(self.actor_belief.state_dim, pi_hidden, num_items)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)

    @property
    def acting_belief(self) -> Belief:
        return self.actor_belief

    def decide(
        self, state: Tensor, observation: Observation | PrivilegedObservation, generator: torch.Generator | None
    ) -> Decision:
        logits = self.actor(state)
        if generator is None:
            return Decision(logits.topk(self.slate_size, dim=1).indices)
        probabilities = logits.softmax(1)
        return Decision(probabilities.multinomial(self.slate_size, replacement=True, generator=generator))

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step on B whole trajectories, each used once."""
        shown, clicks = batch.slates[:, 1:].long(), batch.clicks[:, 1:].float()  # [B, H, S]
        if self.credit == "first_click":
            clicks = clicks * (clicks.cumsum(2) == 1)
        (state,) = states_of([self.actor_belief], batch)
        log_policy = log_softmax(self.actor(state), dim=2)  # [B, H, N]
        log_prob = log_policy.gather(2, shown)
        # log(1 - pi). pi stays below 1, because at 1 the gradient of the next lines would be infinite.
        log_other = torch.log1p(-log_prob.exp().clamp(max=1 - 1e-6))
        if self.top_k_correction:
            weight = self.slate_size * ((self.slate_size - 1) * log_other).exp()
            objective = weight.detach() * log_prob
        else:
            objective = torch.log(-torch.expm1(self.slate_size * log_other))  # log(1 - (1 - pi)^S)
        to_go = returns_to_go(batch.rewards, self.gamma)
        mask = valid_turns(batch)
        # The return to go is 0 after a session's end.
        loss = -(to_go.unsqueeze(2) * clicks * objective).sum((1, 2)).mean()
        self.minimise("actor", loss)
        with torch.no_grad():
            entropy = -mean((log_policy.exp() * log_policy).sum(2), mask)
        return {"loss/actor": loss, "value/return_to_go": mean(to_go, mask), "policy/entropy": entropy}
