"""The dataset card in numbers: contents and quality of an offline dataset, and warnings about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slaterl.console import with_interval
from slaterl.data.dependence import explained_by_history, items_per_slot
from slaterl.data.groups import half_width_of_mean
from slaterl.data.score import normalised
from slaterl.data.trajectories import Trajectories

ANCHORS = {
    "random": "random slates",
    "constant_slate": "constant slate, decode(0)",
    "best_constant_slate": "best constant slate of a search",
    "most_frequent_slate": "constant slate, each slot's most frequent item",
    "short_term_oracle": "short-term oracle",
    "expert": "expert",
}
SEARCHED = "best_constant_slate"  # this anchor takes a search, so most cards lack it
ONE_SLATE = 0.05  # of a behaviour's variance: with less, its slates do not depend on the history
TOO_EASY = 90.0  # warn if the constant slate reaches this normalised score
MAX_BINS = 40  # of the histogram


def describe(
    data: Trajectories,
    behaviours: Sequence[Mapping[str, Any]],
    *,
    num_items: int,
    anchors: Mapping[str, float | None] | None,
) -> dict[str, Any]:
    """Compute the card as plain values. Frame 0 does not count, because no behaviour chose its slate.

    Returns are clicks per trajectory, or sums of the rewards if the data record them. Shares and rates lie in 0..1.
    Scores are 100 * (return - random) / (expert - random). "behaviours" holds the same statistics
    for each behaviour. "turns" is H; if sessions have lengths of their own, "lengths" describes them.

    Args:
        data: N trajectories.
        behaviours: name and other plain values (noise, epsilon, ...) of each behaviour, indexed by data.policy_id.
        num_items: size of the catalogue.
        anchors: mean returns of the policies in ANCHORS in the environment of the data, each None if unknown. None for
            a log, which has no simulator: then the card has no anchors.
    """
    data = data.trimmed()
    known = (
        {} if anchors is None else {name: anchors.get(name) for name in ANCHORS if name in anchors or name != SEARCHED}
    )
    edges = _edges(data.returns)

    def part(chosen: Tensor | slice) -> dict[str, Any]:
        found = _part(data[chosen], num_items, edges)
        return found | ({"normalised_score": _score(found["returns"]["mean"], known)} if known else {})

    whole = part(slice(None))
    ids = torch.zeros(len(data), dtype=torch.int16) if data.policy_id is None else data.policy_id
    parts, warnings = [], []
    for index in range(max(len(behaviours), int(ids.max()) + 1)):
        # an imported file may have more policy ids than descriptions of behaviours
        behaviour = behaviours[index] if index < len(behaviours) else {"name": f"policy {index}"}
        chosen = ids == index
        if chosen.any():
            parts.append({**behaviour, **(whole if chosen.all() else part(chosen))})
        else:
            warnings.append(f"{behaviour['name']} has no trajectories.")
    card = whole | {
        "turns": data.slates.shape[1] - 1,
        "slate_size": data.slates.shape[2],
        "num_items": num_items,
        "histogram_edges": edges,
        "behaviours": parts,
        "anchors": {name: {"return": value, "normalised_score": _score(value, known)} for name, value in known.items()},
    }
    return card | {"warnings": _warnings(card) + warnings}


def _edges(returns: Tensor) -> list[float]:
    """Return histogram edges halfway between whole numbers, so that no return lies on an edge."""
    low, high = math.floor(returns.min()), math.ceil(returns.max())
    width = -(-(high - low + 1) // MAX_BINS)
    return [edge - 0.5 for edge in range(low, high + 1 + width, width)]


def _part(data: Trajectories, num_items: int, edges: Sequence[float]) -> dict[str, Any]:
    """Compute the statistics of trajectories, without frame 0 and padding."""
    returns, (slates, clicks) = data.returns.double(), data.shown()
    variety = {
        **_variety(slates),
        "items_per_slot": items_per_slot(slates, num_items),
        "explained_by_history": explained_by_history(data),
    }
    return {
        "trajectories": len(data),
        "returns": _distribution(returns)
        | _interval(data)
        | {"histogram": np.histogram(returns.numpy(), edges)[0].tolist()},
        **_lengths(data),
        "slates": variety,
        "items": _concentration(slates, num_items),
        "click_rate_by_rank": [column.double().mean().item() for column in clicks.unbind(1)],
        "clicks_per_turn": _clicks_per_turn(data),
    }


def _distribution(values: Tensor) -> dict[str, float]:
    """Mean, deviation and quartiles of values [N]."""
    quartiles = values.quantile(torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)).tolist()
    return {
        "mean": values.mean().item(),
        "std": values.std().item() if len(values) > 1 else 0.0,
        **dict(zip(("min", "q25", "median", "q75", "max"), quartiles, strict=True)),
    }


def _interval(data: Trajectories) -> dict[str, float | None]:
    """Half-width of the mean return's interval, if it does not follow from the deviation of the returns."""
    return {} if data.group is None else {"interval": half_width_of_mean(data.returns, data)}


def _told(value: float) -> str:
    """Write a return with as many digits as it needs."""
    return with_interval(value, None)


def _lengths(data: Trajectories) -> dict[str, Any]:
    """Describe how many turns sessions have, and which share of them the log cut; nothing if all have H turns."""
    if data.lengths is None:
        return {}
    cut = 0.0 if data.truncated is None else data.truncated.double().mean().item()
    return {"lengths": {**_distribution(data.lengths.double()), "truncated": cut}}


def _clicks_per_turn(data: Trajectories) -> list[float | None]:
    """Mean clicks of each turn over the sessions that have it; None where none has."""
    clicks = data.clicks[:, 1:].sum(2, dtype=torch.float32)
    if data.lengths is None:
        return clicks.mean(0, dtype=torch.float64).tolist()
    total, count = (clicks * data.mask).sum(0, dtype=torch.float64), data.mask.sum(0)
    return [t / n if n else None for t, n in zip(total.tolist(), count.tolist(), strict=True)]


def _variety(slates: Tensor) -> dict[str, float]:
    """Count distinct slates [M, S] (order matters); their share, and that of slates with a repeated item."""
    # each slate is hashed by a polynomial of its items modulo 2^64; among a million slates, a collision occurs in one
    # of 30 million datasets
    key = torch.zeros(len(slates), dtype=torch.int64)
    for column in slates.unbind(1):
        key = key * 6364136223846793005 + column
    ordered = slates.sort(1).values
    repeats = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    count, total = key.unique().numel(), key.numel()
    return {"count": count, "distinct": count / total, "with_repeats": repeats.sum().item() / total}


def _concentration(slates: Tensor, num_items: int) -> dict[str, Any]:
    """Measure how impressions spread over the catalogue.

    The `most_shown[i]` most shown items account for `share[i]` of all impressions.
    """
    counts = slates.reshape(-1).bincount(minlength=num_items).sort(descending=True).values
    total = counts.cumsum(0)
    share = total.double() / total[-1]
    most = np.unique(np.geomspace(1, num_items, 60).round().astype(int))
    shown = int((counts > 0).sum())
    return {
        "shown": shown,
        "coverage": shown / num_items,
        "half_of_impressions": int((2 * total < total[-1]).sum()) + 1,
        "gini": (2 * share.sum().item() - 1) / num_items - 1,  # twice the area above the diagonal
        "top_1_percent": share[max(1, num_items // 100) - 1].item(),
        "top_10": share[min(10, num_items) - 1].item(),
        "most_shown": most.tolist(),
        "share": share[most - 1].tolist(),
    }


def _score(value: float | None, anchors: Mapping[str, float | None]) -> float | None:
    return normalised(value, anchors.get("random"), anchors.get("expert"))


def _warnings(card: Mapping[str, Any]) -> list[str]:
    """Return warnings to read before training on the data."""
    found = _of_anchors(card) if card["anchors"] else []
    for part in card["behaviours"]:
        if part["items"]["shown"] < 2 * card["slate_size"] and part["slates"]["count"] > 1:
            few = f"shows only {part['items']['shown']} different items in slates of {card['slate_size']}"
            found.append(f"{label_of(part)} {few}: almost no variety to learn from.")
        found += _one_slate(part, card["num_items"])
    return found


def _of_anchors(card: Mapping[str, Any]) -> list[str]:
    """Return warnings about the data next to the policies in ANCHORS."""
    names = ("random", "most_frequent_slate", "short_term_oracle", "expert")
    random, frequent, oracle, expert = (card["anchors"][name]["return"] for name in names)
    constant = [card["anchors"][name] for name in ("constant_slate", SEARCHED) if name in card["anchors"]]
    best = max(constant, key=lambda one: -math.inf if one["return"] is None else one["return"])
    score, mean = best["normalised_score"], card["returns"]["mean"]
    found = []
    if score is not None and score >= TOO_EASY:
        reached = (
            f"has a mean return of {_told(best['return'])}, the expert {_told(expert)} (normalised score {score:.0f})"
        )
        found.append(f"The environment is too easy: a constant slate {reached}.")
    if random is None or expert is None:
        missing = [who for who, value in (("random slates", random), ("the expert", expert)) if value is None]
        found.append(f"No normalised scores: the mean return of {' and '.join(missing)} is unknown.")
    elif expert <= random:
        returned = f"the expert has a mean return of {_told(expert)}, random slates {_told(random)}"
        found.append(f"No normalised scores: {returned}.")
    elif oracle is not None and oracle > expert:
        found.append(f"The expert's mean return of {_told(expert)} is below the short-term oracle's {_told(oracle)}.")
    if frequent is not None and frequent >= mean > 0:
        returned = f"{_told(frequent)} ({frequent / mean:.0%} of the data)"
        beaten = f"each slot's most frequent item, shown to all, returns {returned}"
        found.append(f"A constant slate is better than the data: {beaten}. Compare learned policies with it.")
    if random is not None and mean < random:
        found.append(
            f"The mean return of the data, {_told(mean)}, is below the return of random slates, {_told(random)}."
        )
    return found


def _one_slate(part: Mapping[str, Any], num_items: int) -> list[str]:
    """Return a warning if a behaviour shows the same slate whatever happened before, with or without noise."""
    slates, label = part["slates"], label_of(part)
    if slates["count"] == 1:
        return [f"{label} is one slate for all users in all turns."]
    explained, various = slates["explained_by_history"], slates["items_per_slot"]
    uniform = various is None or various > num_items / 2  # random slates depend on nothing either, but are not one
    if explained is None or explained >= ONE_SLATE or uniform:
        return []
    told = f"turn and clicks explain {explained:.1%} of the variance of its slates"
    return [f"{label} is one slate with noise: {told}, so they hardly depend on the user."]


def label_of(behaviour: Mapping[str, Any]) -> str:
    """Return a behaviour's name with the noise on its actions."""
    disturbed = ["sampled"] if behaviour.get("sample") else []
    disturbed += [f"{name} {behaviour[name]:g}" for name in ("noise", "epsilon") if behaviour.get(name)]
    return behaviour["name"] + (f" ({', '.join(disturbed)})" if disturbed else "")
