"""REINFORCE, with continuous actions through a ranker, or with slates sampled from a softmax over items.

Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992; the
slate form is that of Chen et al., "Top-K Off-Policy Correction for a REINFORCE Recommender System", WSDM 2019,
arXiv 1812.02353.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from slaterl.agents.base import ItemAgent, LatentAgent
from slaterl.beliefs.base import Belief, states_of
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.errors import UserError, check_positive, check_range, check_widths
from slaterl.networks import mlp
from slaterl.rankers.base import Ranker
from slaterl.rollout import Decision


def returns_to_go(rewards: Tensor, gamma: float) -> Tensor:
    """G_t = r_t + gamma * G_{t+1}, [B, H]."""
    total = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for turn in reversed(range(rewards.shape[1])):
        following = rewards[:, turn] + gamma * following
        total[:, turn] = following
    return total


class REINFORCE(LatentAgent):
    """A Gaussian of fixed deviation, squashed by tanh, in a ranker's latent space.

    Args:
        belief: makes the actor's belief.
        gamma: discount of the returns to go.
        sigma: deviation of the Gaussian before the tanh.
    """

    TERMS: ClassVar = ("loss/actor", "value/return_to_go", "policy/log_prob")
    ON_POLICY: ClassVar = True

    def __init__(
        self,
        *,
        ranker: Ranker,
        belief: Callable[[], Belief],
        gamma: float,
        pi_lr: float,
        pi_hidden: Sequence[int],
        sigma: float,
    ) -> None:
        check_range(0, 1, **{"agent.gamma": gamma})
        check_positive(**{"agent.pi_lr": pi_lr, "agent.sigma": sigma})
        check_widths(**{"agent.pi_hidden": pi_hidden})
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
        """One step up the gradient of mean over trajectories of sum_t G_t * log pi(a_t)."""
        assert batch.actions is not None
        (state,) = states_of([self.actor_belief], batch)
        limit = 1 - torch.finfo(batch.actions.dtype).eps  # where the tanh saturated, atanh would be infinite
        raw = batch.actions.clamp(-limit, limit).atanh()
        # the tanh's slope does not depend on the policy and is left out
        scaled = (raw - self.actor(state)) / self.sigma
        log_prob = -(0.5 * scaled.square() + math.log(self.sigma) + 0.5 * math.log(2 * math.pi)).sum(2)
        to_go = returns_to_go(batch.rewards, self.gamma)
        loss = -(to_go * log_prob).sum(1).mean()
        self.minimise("actor", loss)
        return {"loss/actor": loss, "value/return_to_go": to_go.mean(), "policy/log_prob": log_prob.mean()}


class REINFORCESlate(ItemAgent):
    """A softmax over items: a slate is S draws with replacement; without exploration, the S most probable.

    With pi the probability of a clicked item, that of its being on the slate is 1 - (1 - pi)^S: its logarithm is what
    is weighted by the return.

    Args:
        credit: clicks that are learned from: `first_click` of a slate, or `every_click`.
        top_k_correction: instead weight log pi by the return and by S * (1 - pi)^(S-1), the multiplier of Chen et al.
            (equation 6 there, on policy).
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
        gamma: float,
        pi_lr: float,
        pi_hidden: Sequence[int],
        credit: Literal["first_click", "every_click"],
        top_k_correction: bool,
    ) -> None:
        check_range(0, 1, **{"agent.gamma": gamma})
        check_positive(**{"agent.pi_lr": pi_lr})
        check_widths(**{"agent.pi_hidden": pi_hidden})
        if credit not in ("first_click", "every_click"):
            raise UserError(f"agent.credit={credit}: expected first_click, every_click")
        if not isinstance(top_k_correction, bool):
            raise UserError(f"agent.top_k_correction={top_k_correction}: expected true or false")
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
        """One step up the gradient of mean over trajectories of sum_t G_t * (sum over the credited clicks)."""
        shown, clicks = batch.slates[:, 1:].long(), batch.clicks[:, 1:].float()  # [B, H, S]
        if self.credit == "first_click":
            clicks = clicks * (clicks.cumsum(2) == 1)
        (state,) = states_of([self.actor_belief], batch)
        log_policy = log_softmax(self.actor(state), dim=2)  # [B, H, N]
        log_prob = log_policy.gather(2, shown)
        # log(1 - pi), with pi kept off 1, where the gradient of what follows would be infinite
        log_other = torch.log1p(-log_prob.exp().clamp(max=1 - 1e-6))
        if self.top_k_correction:
            weight = self.slate_size * ((self.slate_size - 1) * log_other).exp()
            objective = weight.detach() * log_prob
        else:
            objective = torch.log(-torch.expm1(self.slate_size * log_other))  # log(1 - (1 - pi)^S)
        to_go = returns_to_go(batch.rewards, self.gamma)
        loss = -(to_go.unsqueeze(2) * clicks * objective).sum((1, 2)).mean()
        self.minimise("actor", loss)
        with torch.no_grad():
            entropy = -(log_policy.exp() * log_policy).sum(2).mean()
        return {"loss/actor": loss, "value/return_to_go": to_go.mean(), "policy/entropy": entropy}
