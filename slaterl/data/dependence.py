"""How much slates depend on what happened before: the share of their variance that turn and clicks explain."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from slaterl.data.groups import numbered
from slaterl.data.trajectories import Trajectories

TRAJECTORIES, TURNS = 1000, 20  # at most so many are read, evenly spaced
LEAST = 200  # trajectories; fewer say nothing
CLICKED, SHOWN = 128, 200  # items told apart: the most clicked ones, and in each slot the most shown ones
DECAY = 0.8  # of past clicks
STAGES = 10  # of an episode, one indicator each
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # of ridge regression, in mean squares of the features


def explained_by_history(data: Trajectories) -> float | None:
    """Return the share of the slates' variance that a linear function of turn and clicks explains, in 0..1.

    A slate is a vector of indicators, one for each slot and item. Its variance is the sum of p (1 - p) over them.
    Ridge regression predicts it from the stage of the episode and the clicks on each item. Three sums of clicks are
    read: of the last slate, of all slates, and of all slates with weights that fall by DECAY a turn.

    Half of the trajectories fit the weights, and a quarter chooses the penalty. Pieces of one user of a log are in the
    same part. On the last quarter, R^2 = 1 - squared error / squared error of the mean. Other functions may explain
    more, so it is a lower bound.

    Of sessions that differ in length, only their own turns are read.

    Returns:
        None if there are fewer than LEAST trajectories, or if all slates are one.
    """
    count = len(data)
    if count < LEAST:
        return None
    chosen = torch.from_numpy(np.linspace(0, count - 1, min(count, TRAJECTORIES)).astype(int))
    data = data[chosen].blanked()
    turns, slates = _turns(data), data.slates.long()
    there = data.mask[:, turns - 1]  # [n, turns]
    inputs = _features(slates, data.clicks.float(), turns)[there]  # [rows, d]
    group = (numbered(data)[0] % 4).unsqueeze(1).expand_as(there)[there]
    fit, choose, test = group < 2, group == 2, group == 3
    mean = inputs[fit].mean(0)
    inputs = inputs - mean
    x = inputs[fit]
    squares, axes = torch.linalg.eigh((x.T @ x).double())
    squares = squares.clamp(min=0)
    items = [_numbered(column, SHOWN) for column in slates[:, turns][there].unbind(1)]  # [rows] for each slot
    shares, moments = [], []
    for column in items:
        y, classes = column[fit], int(column.max()) + 1
        shares.append(y.bincount(minlength=classes) / len(y))
        moments.append(torch.zeros(classes, x.shape[1]).index_add_(0, y, x).double() @ axes)

    def error(part: Tensor, penalty: float) -> float:
        """Squared error over the rows `part`; an infinite penalty leaves the mean."""
        told, found = inputs[part], 0.0
        for column, share, moment in zip(items, shares, moments, strict=True):
            weights = (moment / (squares + penalty * squares.mean()) @ axes.T).float()
            found += _squared_error(share + told @ weights.T, column[part])
        return found

    if not (squares.mean() > 0 and error(test, math.inf) > 0):
        return None
    best = min((*PENALTIES, math.inf), key=lambda penalty: error(choose, penalty))
    return max(0.0, 1 - error(test, best) / error(test, math.inf))


def _turns(data: Trajectories) -> np.ndarray:
    """Choose turns to read: evenly spaced, or so that each stands for as many turns of the sessions."""
    horizon = data.slates.shape[1] - 1
    if data.lengths is None:
        return np.unique(np.linspace(1, horizon, min(horizon, TURNS)).astype(int))
    present = data.mask.nonzero()[:, 1].numpy() + 1
    return np.unique(np.quantile(present, np.linspace(0, 1, TURNS), method="nearest"))


def _features(slates: Tensor, clicks: Tensor, turns: np.ndarray) -> Tensor:
    """Stage of the episode, and clicks on each of the most clicked items before these turns: [n, turns, d]."""
    count, frames, _ = slates.shape
    items = _numbered(slates, CLICKED, clicks)
    width = int(items.max()) + 1
    total, recent = torch.zeros(count, width), torch.zeros(count, width)
    rows = []
    for turn in range(1, frames):
        last = torch.zeros(count, width).scatter_add_(1, items[:, turn - 1], clicks[:, turn - 1])
        total, recent = total + last, DECAY * recent + last
        if turn in turns:
            stage = torch.zeros(count, STAGES)
            stage[:, (turn - 1) * STAGES // (frames - 1)] = 1
            rows.append(torch.cat([stage, last, recent, total], 1))
    return torch.stack(rows, 1)


def _numbered(items: Tensor, most: int, weights: Tensor | None = None) -> Tensor:
    """Number items by falling frequency (or sum of weights); all others share the number `most`."""
    flat = items.flatten()
    counts = flat.bincount(None if weights is None else weights.flatten())
    order = counts.argsort(descending=True, stable=True)[:most]
    numbers = torch.full((len(counts),), len(order))
    numbers[order] = torch.arange(len(order))
    return numbers[items]


def _squared_error(predicted: Tensor, truth: Tensor) -> float:
    """Sum of squared differences of predictions [n, classes] and indicators of the classes `truth` [n]."""
    hit = predicted.gather(1, truth.unsqueeze(1)).sum()
    return (predicted.square().sum() - 2 * hit).item() + len(truth)


def items_per_slot(slates: Tensor, num_items: int) -> float | None:
    """Return the effective number of items in a slot of slates [..., S].

    It is 1 / (chance that two slates have the same item in a slot): 1 for a fixed slate, and num_items for uniform
    items. The chance is estimated without bias (Simpson 1949). None if no slot shows an item twice.
    """
    chance = 0.0
    for column in slates.flatten(0, -2).long().unbind(1):
        counts = column.bincount(minlength=num_items).double()
        pairs = max(1, len(column) * (len(column) - 1))
        chance += (counts * (counts - 1)).sum().item() / pairs / slates.shape[-1]
    return 1 / chance if chance else None


def most_frequent_slate(slates: Tensor) -> list[int]:
    """Return the item that each slot shows most often, from slates [..., S]."""
    return [int(column.bincount().argmax()) for column in slates.flatten(0, -2).long().unbind(1)]
