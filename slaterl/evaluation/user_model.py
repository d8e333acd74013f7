"""The return of a policy by a user model: rolled out in every member, with what the data have not seen."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from slaterl.data.trajectories import Trajectories
from slaterl.rollout import Policy, rollout
from slaterl.runs.run import Run
from slaterl.seeds import stream
from slaterl.user_models.coverage import cell_keys, covered, pair_keys, strangeness
from slaterl.user_models.env import LearnedEnv
from slaterl.user_models.page import doubt
from slaterl.user_models.quality import shown_turns
from slaterl.user_models.saved import FILE, UserModel, sizes_of

# with smaller shares seen, an estimate comes with a warning; by chance 5 % of the slates are stranger than most
ENOUGH_CELLS, ENOUGH_PAIRS, ENOUGH_SLATES = 0.9, 0.5, 0.75
NAMED = 3  # unseen items that a warning names


@dataclass(frozen=True)
class Estimate:
    """A policy's return by a user model.

    Attributes:
        mean_return: clicks per episode, mean over the members.
        interval: half-width of the 95 % interval, from the spread of the members and of the users.
        members: mean return in each member.
        covered_cells, covered_pairs: shares of the shown items at their ranks, and of the pairs of items in the shown
            slates, that the data hold often enough.
        covered_slates: share of the shown slates that are no stranger than the data's; None if the file is too old.
        warning: what is not covered, and whether the model itself is no good; None if there is nothing to say.
    """

    mean_return: float
    interval: float
    members: list[float]
    covered_cells: float
    covered_pairs: float
    covered_slates: float | None
    warning: str | None

    def named(self, prefix: str) -> dict[str, Any]:
        """Return the entries of a result, each name after a prefix."""
        found = asdict(self) | {"return": self.mean_return}
        return {prefix + name: value for name, value in found.items() if name != "mean_return"}


class Members:
    """The members of a user model, each as an environment of its own.

    Args:
        doubt: why its estimates say nothing, for their warnings; None if it is good.
    """

    def __init__(self, file: Path, members: int, device: torch.device, doubt: str | None = None) -> None:
        self.doubt = doubt
        about = sizes_of(str(file))
        sizes = {name: about[name] for name in ("num_items", "slate_size", "episode_length", "items", "leaves")}
        common: dict[str, Any] = {"name": "learned", "user_model": str(file), "penalty": 0.0, "device": device, **sizes}
        self.envs = [LearnedEnv(member=member, **common) for member in range(members)]

    @classmethod
    def of(cls, run: Run, device: torch.device) -> Members:
        """Return the members of a finished run of stage=user_model."""
        result = run.result()
        return cls(run.path / FILE, result["members"], device, doubt(result))

    def estimate(self, policy: Policy, users: int, seed: int, name: str) -> Estimate:
        """Serve users without exploration.

        Args:
            users: in all; each member serves the same number of them.
            seed, name: determine the users and their clicks, the same for every policy.
        """
        served, each = [], max(2, -(-users // len(self.envs)))
        for number, env in enumerate(self.envs):
            generator = stream(seed, f"{name} users of member {number}", env.device)
            served.append(rollout(policy, env, each, generator=generator, deterministic=True))
        mean, interval = mean_and_interval(torch.stack([data.returns for data in served]))
        model, num_items = self.envs[0].model, self.envs[0].num_items
        shares = [covered(model.coverage, data, num_items) for data in served]
        share = {key: sum(part[key] for part in shares) / len(shares) for key in shares[0]}
        return Estimate(
            mean_return=mean,
            interval=interval,
            members=[data.returns.mean().item() for data in served],
            covered_cells=share["covered_cells"],
            covered_pairs=share["covered_pairs"],
            covered_slates=share.get("covered_slates"),
            warning="; ".join(filter(None, (self.doubt, _warning(share, model, served[0], num_items)))) or None,
        )


def mean_and_interval(returns: Tensor) -> tuple[float, float]:
    """Return the mean of returns [K, users] and the half-width of its 95 % interval.

    The variance is that of the members' means, for the error of a model, plus that of the mean over all users.
    The members' own is not divided by K, because all of them learn from the same data.
    """
    count, users = returns.shape
    means = returns.double().mean(1)
    variance = means.var().item() + returns.double().var(1).mean().item() / (count * users)
    return means.mean().item(), float(stats.t.ppf(0.975, count - 1)) * math.sqrt(variance)


def _warning(share: dict[str, float], model: UserModel, data: Trajectories, num_items: int) -> str | None:
    told, ids = [], model.config["item_ids"] or range(num_items)
    if share["covered_cells"] < ENOUGH_CELLS:
        keys = cell_keys(shown_turns(data)[0].cpu(), num_items).flatten()
        cells, counts = keys[~torch.isin(keys, model.coverage.cells)].unique(return_counts=True)
        most = counts.sort(descending=True, stable=True).indices[:NAMED].tolist()
        named = ", ".join(f"item {ids[cells[i] % num_items]} at rank {cells[i] // num_items + 1}" for i in most)
        told.append(f"{1 - share['covered_cells']:.0%} of the items at their ranks (most of all {named})")
    if share["covered_pairs"] < ENOUGH_PAIRS:
        told.append(f"{1 - share['covered_pairs']:.0%} of the pairs of items in a slate")
    rarely = f"of what this policy shows, the data have shown fewer than {model.least} times: {'; '.join(told)}"
    parts = [rarely] if told else []
    if share.get("covered_slates", 1.0) < ENOUGH_SLATES:
        first, second = (ids[item] for item in _strangest_pair(model, data, num_items))
        parts.append(
            f"{1 - share['covered_slates']:.0%} of its slates are further from the data than nearly all of theirs: "
            f"they join items that the data show often, but hardly together, such as {first} and {second}"
        )
    return "; ".join(parts) or None


def _strangest_pair(model: UserModel, data: Trajectories, num_items: int) -> tuple[int, int]:
    """Return the pair of items that contributes most to the strangeness of the shown slates."""
    slates = shown_turns(data)[0].cpu()
    keys, place = pair_keys(slates, num_items).flatten().unique(return_inverse=True)
    of_pairs = strangeness(model.coverage, slates, num_items).flatten()
    key = int(keys[torch.zeros(len(keys), dtype=of_pairs.dtype).index_add_(0, place, of_pairs).argmax()])
    return key // num_items, key % num_items
