"""Estimate a policy's clicks from a log with propensities, by inverse propensity scores.

Three estimators, each self-normalised (Swaminathan and Joachims, NeurIPS 2015):

- IIPS, independent: a click depends on the item in its slot (Li et al., KDD 2018, the item-position model).
- RIPS, reward interaction: also on the items of the slots above (McInerney et al., KDD 2020).
- SIPS, slate: on the whole slate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slaterl.agents.base import Agent
from slaterl.data.groups import summed
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation

USERS = 512  # read together
FEW_SLATES, FEW_CLICKS = 100, 10  # below these an estimate comes with a warning
LEAST_WEIGHT = 0.8
MOST_LACKING = 0.05  # of the bootstrap samples, see Estimate


@dataclass(frozen=True)
class Estimate:
    """Clicks of a policy in sessions like those of the log.

    Attributes:
        value: clicks per session; None if the log never shows what the policy shows.
        low, high: 95 % interval over bootstrap samples of the sessions.
        slates: effective sample size, (sum of w)^2 / sum of w^2; of the slot where it is smallest.
        clicks: the number of clicks with a weight above 0.
        weight: mean weight, near 1 if the propensities are right and the log shows all that the policy shows.
        warning: why not to rely on it; None if nothing is known.
    """

    value: float | None
    low: float | None
    high: float | None
    slates: float
    clicks: int
    weight: float
    warning: str | None


@torch.no_grad()
def shares(agent: Agent, data: Trajectories, *, draws: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Return how often a policy shows the items that were shown, after the same history.

    Args:
        agent: reads frames, not the simulator's hidden state.
        data: N sessions of H turns on the CPU.
        draws: slates drawn at each turn. An agent with `slot_chances` needs none.
        generator: drives exploration, on the agent's device; None evaluates the policy without it.

    Returns:
        two tensors [N, H, S] float64: the share of slates with the item in its slot, and the share of slates that
        agree in this slot and all slots above it. Both are 0 after a session's end.
    """
    found: list[Tensor] = []
    for start in range(0, len(data), USERS):
        part = data[start : start + USERS]
        memory = agent.acting_belief.initial_state(len(part))
        slates, clicks = part.slates.long().to(memory.device), part.clicks.to(memory.device)
        turns = []
        for frame in range(slates.shape[1] - 1):
            seen, shown = Observation(slates[:, frame], clicks[:, frame]), slates[:, frame + 1]
            memory = agent.acting_belief.step(seen, memory)
            there = part.mask[:, frame].to(memory.device)  # nothing is decided after a session's end
            state, shown = agent.acting_belief.state_of(memory)[there], shown[there]
            seen = Observation(seen.slate[there], seen.clicks[there])
            agreeing = torch.zeros(2, *slates[:, 0].shape, dtype=torch.float64, device=memory.device)
            chances = None if generator is None else agent.slot_chances(state, shown)
            if chances is not None:
                agreeing[:, there] = torch.stack([chances.double(), chances.double().cumprod(1)])
            else:
                times = 1 if generator is None else draws
                for _ in range(times):
                    same = (agent.decide(state, seen, generator).slate == shown).double()
                    agreeing[:, there] += torch.stack([same, same.cumprod(1)]) / times
            turns.append(agreeing)
        found.append(torch.stack(turns, dim=2).cpu())
    slot, above = torch.cat(found, dim=1)
    return slot, above


def estimates(
    data: Trajectories, slot: Tensor, above: Tensor, *, resamples: int, generator: torch.Generator
) -> Mapping[str, Estimate]:
    """Return the estimates by `iips`, `rips` and `sips`.

    The states are those of the log: an estimate does not know where the policy itself would have led its users.

    Args:
        data: N sessions of H turns with `propensity`, which is the probability of an item given those above it.
        slot, above: [N, H, S] as `shares` returns them.
        resamples: number of bootstrap samples of the sessions, or of the users with several.
        generator: draws them, on the CPU.
    """
    assert data.propensity is not None
    mask = data.mask.unsqueeze(2)
    chance = data.propensity.double().where(mask, 1.0)
    clicks = data.clicks[:, 1:].double().where(mask, 0.0)
    independent, cascade = (slot / chance).where(mask, 0.0), (above / chance.cumprod(2)).where(mask, 0.0)
    turns = data.mask.sum(1).double()
    weights = {"iips": (independent, clicks), "rips": (cascade, clicks)}
    weights["sips"] = (cascade[:, :, -1:], clicks.sum(2, keepdim=True))
    sums = {name: tuple(summed(x.sum(1), data) for x in (w * r, w)) for name, (w, r) in weights.items()}  # [G, slots]
    turns_of, sessions_of = summed(turns, data), summed(torch.ones_like(turns), data)

    def values(sessions: Tensor | slice) -> list[float]:
        """Return the clicks per session by each estimator, in some of the users."""
        per_session = turns_of[sessions].sum() / sessions_of[sessions].sum()
        rates = ((gained[sessions].sum(0) / weighed[sessions].sum(0)).sum() for gained, weighed in sums.values())
        return [(rate * per_session).item() for rate in rates]

    count = len(turns_of)
    # one after the other, because all together would need N * resamples numbers
    drawn = [values(torch.randint(count, (count,), generator=generator)) for _ in range(resamples)]
    found = zip(weights.items(), values(slice(None)), torch.tensor(drawn, dtype=torch.float64).T, strict=True)
    return {name: _estimate(*of, int(turns.sum()), value, resampled) for (name, of), value, resampled in found}


def _estimate(weights: Tensor, rewards: Tensor, shown: int, value: float, resampled: Tensor) -> Estimate:
    """Judge an estimate by its weights and rewards [N, H, slots].

    Args:
        shown: number of slates in the log.
        value: the estimate.
        resampled: [R] the same in bootstrap samples; NaN where they lack what the policy shows.
    """
    total, squares = weights.sum((0, 1)), weights.square().sum((0, 1))
    slates = (total.square() / squares).nan_to_num(0.0).min().item()
    clicks = int((rewards * (weights > 0)).sum())
    weight = (total.mean() / shown).item()
    if not bool((total > 0).all()):
        return Estimate(None, None, None, slates, clicks, weight, "the log never shows what this policy shows")
    lacking = resampled.isnan().double().mean().item()
    if lacking > MOST_LACKING:
        told = f"too little data: {lacking:.0%} of the bootstrap samples lack what this policy shows"
        return Estimate(None, None, None, slates, clicks, weight, told)
    low, high = torch.nanquantile(resampled, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    warning = None
    if slates < FEW_SLATES or clicks < FEW_CLICKS:
        warning = f"too little data: it rests on {slates:,.0f} effective of {shown:,} slates, and on {clicks:,} clicks"
    elif not LEAST_WEIGHT < weight < 1 / LEAST_WEIGHT:
        off = f"the mean weight is {weight:.2f} instead of 1"
        warning = f"{off}: wrong propensities, or slates that the log never shows"
    return Estimate(value, low, high, slates, clicks, weight, warning)
