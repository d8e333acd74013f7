"""How well clicks are predicted on sessions that no model has seen, next to three baselines."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from slaterl.data.groups import summed
from slaterl.data.trajectories import Trajectories

BINS = 10  # of a calibration curve, with equally many predictions
EDGE = 1e-7  # probabilities are kept this far from 0 and 1
PRIOR = 10.0  # impressions at the rank's rate that the rate of an item at a rank starts with
BASELINES = {
    "overall": "overall click rate",
    "rank": "click rate of the rank",
    "item_rank": "click rate of item and rank",
}


def baselines(training: Trajectories, slates: Tensor, num_items: int) -> dict[str, Tensor]:
    """Predict the clicks on slates by rates of the training sessions, the same in every turn.

    The rate of item i at rank r is (clicks + PRIOR * rate_r) / (impressions + PRIOR), where rate_r is the rank's.

    Args:
        slates: [N, H, S] to predict.

    Returns:
        probabilities [N, H, S] by the names of BASELINES.
    """
    shown, clicks = shown_turns(training)
    items, ranks = shown.long(), torch.arange(shown.shape[1], device=shown.device)
    by_rank = clicks.double().mean(0)
    cells, count = (items * len(ranks) + ranks).flatten(), num_items * len(ranks)
    clicked = cells.bincount(clicks.flatten().double(), minlength=count).view(-1, len(ranks))
    impressions = cells.bincount(minlength=count).view(-1, len(ranks))
    by_both = (clicked + PRIOR * by_rank) / (impressions + PRIOR)
    return {
        "overall": by_rank.mean().expand(slates.shape),
        "rank": by_rank.expand(slates.shape),
        "item_rank": by_both[slates.long(), ranks],
    }


def shown_turns(data: Trajectories) -> tuple[Tensor, Tensor]:
    """Return the slates and clicks of all turns, [turns, S], without frame 0 and without padding."""
    mask = data.mask
    return data.slates[:, 1:][mask], data.clicks[:, 1:][mask]


def quality(chance: Tensor, data: Trajectories) -> dict[str, Any]:
    """Measure predicted clicks.

    Args:
        chance: [N, H, S] probabilities.
        data: N sessions with what happened.

    Returns:
        log_loss: mean over impressions, in nats.
        auc: probability that a click got a higher prediction than an impression without one; None if all are alike.
        r2: 1 - squared error / variance of the clicks of a turn; None if all turns are alike.
        ranks: the same log_loss and auc for each rank, its click `rate`, and its calibration curve: mean prediction,
            click rate and impressions in each of BINS groups.
    """
    mask = data.mask
    predicted, clicks = (part[mask].double().cpu().numpy() for part in (chance, data.clicks[:, 1:]))  # [turns, S]
    columns = zip(predicted.T, clicks.T, strict=True)
    ranks = [{**_measures(p, y), "rate": float(y.mean()), "calibration": _calibration(p, y)} for p, y in columns]
    return {**_measures(predicted.ravel(), clicks.ravel()), "r2": _r2(predicted.sum(1), clicks.sum(1)), "ranks": ranks}


def quality_of_leaving(chance: Tensor, data: Trajectories) -> dict[str, float | None]:
    """Measure the predicted probability [N, H] of leaving after each turn, next to a constant one.

    Returns:
        log_loss, auc; baseline: the log-loss of the rate of leaving in these sessions; rate.
    """
    left, known = departures(data)
    predicted, happened = (part[known].double().cpu().numpy() for part in (chance, left))
    constant = np.full_like(predicted, happened.mean())
    measured = _measures(predicted, happened)
    return {**measured, "baseline": _measures(constant, happened)["log_loss"], "rate": float(happened.mean())}


def departures(data: Trajectories) -> tuple[Tensor, Tensor]:
    """Return whether the user left after each turn, and whether that is known: bool [N, H] each.

    It is unknown after the last turn of a session that was cut off.
    """
    mask = data.mask
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1), value=False)
    if data.truncated is None:
        return last, mask
    cut = last & data.truncated.unsqueeze(1)
    return last & ~cut, mask & ~cut


def advantage(chance: Tensor, other: Tensor, data: Trajectories) -> dict[str, float | None]:
    """Compare two predictions [N, H, S] of N sessions by their log-loss.

    Returns:
        mean: how much lower the first one's log-loss is, mean over impressions.
        interval: half-width of its 95 % interval over sessions, or users with several; None for a single one.
    """
    mask = data.mask.double().unsqueeze(2)
    clicks = data.clicks[:, 1:].double()
    gain = (_surprise(other.double(), clicks) - _surprise(chance.double(), clicks)).mul_(mask).sum((1, 2))
    size = mask.sum() * clicks.shape[2]
    mean = gain.sum() / size
    rest = summed(gain - mean * mask.sum((1, 2)) * clicks.shape[2], data)  # a ratio of two sums over sessions
    count = len(rest)
    if count == 1:
        return {"mean": mean.item(), "interval": None}
    return {"mean": mean.item(), "interval": 1.96 * (rest.std() * math.sqrt(count) / size).item()}


def _surprise(chance: Tensor, clicks: Tensor) -> Tensor:
    chance = chance.clamp(EDGE, 1 - EDGE)
    return -(clicks * chance.log() + (1 - clicks) * (-chance).log1p())


def _measures(predicted: np.ndarray, happened: np.ndarray) -> dict[str, float | None]:
    loss = _surprise(torch.from_numpy(predicted), torch.from_numpy(happened)).mean().item()
    ones = int(happened.sum())
    zeros = len(happened) - ones
    auc = None
    if ones and zeros:  # Mann-Whitney, with equal predictions counted half
        auc = float((rankdata(predicted)[happened > 0].sum() - ones * (ones + 1) / 2) / (ones * zeros))
    return {"log_loss": loss, "auc": auc}


def _r2(predicted: np.ndarray, happened: np.ndarray) -> float | None:
    variance = np.square(happened - happened.mean()).sum()
    return float(1 - np.square(happened - predicted).sum() / variance) if variance > 0 else None


def _calibration(predicted: np.ndarray, happened: np.ndarray) -> list[dict[str, float]]:
    groups = np.array_split(np.argsort(predicted, kind="stable"), BINS)
    return [
        {"predicted": float(predicted[group].mean()), "rate": float(happened[group].mean()), "impressions": len(group)}
        for group in groups
        if len(group)
    ]
