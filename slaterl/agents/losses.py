"""Targets and losses that several actor-critic agents share, as pure functions.

All of them read columns of whole trajectories: in a column [B, H], turn t + 1 is the next state of turn t.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_WEIGHT = 100.0


def bootstrap(reward: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    """Return y = r + gamma * V(s'), and y = r in the last turn: rewards [B, H, ...] and values V(s') [B, H-1, ...]."""
    target = reward.clone()
    target[:, :-1] += gamma * next_value
    return target


def discounted_to_go(reward: Tensor, gamma: float) -> Tensor:
    """Return r_t + gamma * r_{t+1} + ... to the end, for rewards [B, H]: [B, H]."""
    turn = torch.arange(reward.shape[1], device=reward.device)
    ahead = turn.unsqueeze(1) - turn  # [H, H], turns from the column's to the row's
    return reward @ (gamma ** ahead.clamp(min=0).to(reward.dtype) * (ahead >= 0))


def soft_minimum(q: Tensor, weight_of_min: float) -> Tensor:
    """Return weight * min_i Q_i + (1 - weight) * max_i Q_i [...] of critics [num_critics, ...].

    Soft clipped double Q-learning (BCQ, arXiv 1812.02900, algorithm 1).
    """
    low, high = q.aminmax(dim=0)
    return weight_of_min * low + (1 - weight_of_min) * high


def smoothed(action: Tensor, noise: float, clip: float, generator: torch.Generator) -> Tensor:
    """Smooth a target policy's actions [..., A]: clip(a + clip(noise * N(0, 1), -clip, clip), -1, 1).

    Target policy smoothing of TD3 (arXiv 1802.09477, section 5.3).
    """
    normal = torch.randn(action.shape, generator=generator, device=action.device)
    return (action + (noise * normal).clamp(-clip, clip)).clamp(-1, 1)


def soft_policy_loss(alpha: Tensor, log_prob: Tensor, q: Tensor) -> Tensor:
    """Return mean(alpha * log pi(a|s) - Q(s, a)) for actions of the policy (SAC, arXiv 1812.05905, equation 7)."""
    return (alpha * log_prob - q).mean()


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Return -alpha * mean(log pi + target entropy): alpha rises while the entropy is below its target.

    SAC, arXiv 1812.05905, equation 18. The log-probabilities take no gradient.
    """
    return -log_alpha.exp() * (log_prob.detach().mean() + target_entropy)


def advantage_weight(scaled_advantage: Tensor) -> Tensor:
    """Return min(exp(A), 100), the weight of an action in advantage-weighted imitation."""
    return scaled_advantage.exp().clamp(max=LARGEST_WEIGHT)
