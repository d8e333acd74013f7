"""Targets, losses and means that several agents share, as pure functions.

All of them read columns of whole trajectories: in a column [B, H], turn t + 1 is the next state of turn t. Sessions may
have lengths of their own. What a column holds after a session's end never counts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slaterl.data.trajectories import Trajectories

LARGEST_WEIGHT = 100.0


def valid_turns(batch: Trajectories) -> Tensor | None:
    """Return which turns [B, H] belong to their sessions; None if all do."""
    return None if batch.lengths is None else batch.mask


def complete_turns(batch: Trajectories) -> Tensor | None:
    """Return which turns [B, H] belong to sessions whose whole return is known; None if all do."""
    return valid_turns(batch) if batch.truncated is None else batch.mask & ~batch.truncated.unsqueeze(1)


def continuing_turns(batch: Trajectories) -> Tensor | None:
    """Return which turns but the last, [B, H-1], have a next state whose value counts; None if all have one.

    The last turn of a session has none, unless the log was cut there. Where H turns leave no place for the state after
    it, `Trajectories.with_room` makes one.
    """
    if batch.lengths is None:
        return None
    mask = batch.mask
    following = mask[:, 1:]
    return following if batch.truncated is None else following | (mask[:, :-1] & batch.truncated.unsqueeze(1))


def mean(values: Tensor, weight: Tensor | None, *, of_vectors: bool = False) -> Tensor:
    """Return the mean of values [..., B, H] over the turns of sessions.

    Args:
        weight: [B, H] which turns count, or how much (0 or at least 1); None for the plain mean over all.
        of_vectors: whether the values have one more dimension, [..., B, H, A].
    """
    if weight is None:
        return values.mean()
    weight = weight.unsqueeze(-1) if of_vectors else weight
    total = (values * weight).where(weight > 0, 0.0).sum()
    # The clamp serves batches in which nothing counts.
    return total / (weight.sum() * (values.numel() // weight.numel())).clamp(min=1)


def percentile(values: Tensor, share: float, mask: Tensor | None) -> Tensor:
    """Return the value below which a share of the values [B, H] lies, among the turns of a mask; 0 without any."""
    if mask is None:
        return values.flatten().sort().values[int(share * values.numel())]
    count = mask.sum()
    ordered = values.where(mask, -torch.inf).flatten().sort().values  # what does not count comes first
    place = values.numel() - count + (share * count.double()).long()
    found = ordered.gather(0, place.clamp(max=values.numel() - 1).unsqueeze(0))[0]
    return found.where(count > 0, 0.0)


def draw_turns(
    count: int, among: int, valid: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Draw `count` of the turns 0..among-1 uniformly, without repeats.

    One order of the turns serves all B sessions. Each takes the first `count` of those that it has.

    Args:
        valid: [B, among] the turns that each session has; None if it has all.

    Returns:
        Numbers of turns [count] and None; with `valid`, numbers [B, count], and weights [B, count] for `mean`, which
        then estimates the mean over all valid turns. The weight is 0 where a session has fewer turns.
    """
    order = torch.randperm(among, generator=generator, device=generator.device)
    if valid is None:
        return order[:count], None
    there = valid[:, order]
    first = (~there).byte().argsort(dim=1, stable=True)[:, :count]
    total = there.sum(1, keepdim=True)
    return order[first], there.gather(1, first) * (total / total.clamp(1, count))


def at(column: Tensor, turns: Tensor, users: int = 0) -> Tensor:
    """Select turns, [T] for all sessions or [B, T], of a column [..., B, H, ...]; dimension `users` is that of B."""
    before: list[Any] = [slice(None)] * users
    if turns.ndim == 1:
        return column[(*before, slice(None), turns)]
    return column[(*before, torch.arange(len(turns), device=turns.device).unsqueeze(1), turns)]


def bootstrap(reward: Tensor, next_value: Tensor, gamma: float, continuing: Tensor | None = None) -> Tensor:
    """Return y = r + gamma * V(s'), and y = r in a session's last turn.

    Args:
        reward: [B, H, ...]; next_value: V(s'), [B, H-1, ...].
        continuing: [B, H-1] see `continuing_turns`.
    """
    target = reward.clone()
    if continuing is not None:
        continuing = continuing.view(*continuing.shape, *(1 for _ in next_value.shape[2:]))
        next_value = next_value.where(continuing, 0.0)
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


def soft_policy_loss(alpha: Tensor, log_prob: Tensor, q: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return mean(alpha * log pi(a|s) - Q(s, a)) for actions of the policy (SAC, arXiv 1812.05905, equation 7).

    Args:
        log_prob, q: [B, H]; mask: [B, H] the turns of sessions, None for all.
    """
    return mean(alpha * log_prob - q, mask)


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float, mask: Tensor | None = None) -> Tensor:
    """Return -alpha * mean(log pi + target entropy): alpha rises while the entropy is below its target.

    SAC, arXiv 1812.05905, equation 18. The log-probabilities [B, H] take no gradient; `mask` as in soft_policy_loss.
    """
    return -log_alpha.exp() * (mean(log_prob.detach(), mask) + target_entropy)


def advantage_weight(scaled_advantage: Tensor) -> Tensor:
    """Return min(exp(A), 100), the weight of an action in advantage-weighted imitation."""
    return scaled_advantage.exp().clamp(max=LARGEST_WEIGHT)


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """Return |tau - [u < 0]| * u^2 of errors u [...] (IQL, arXiv 2110.06169, equation 5)."""
    return (expectile - (error.detach() < 0).float()).abs() * error.square()
