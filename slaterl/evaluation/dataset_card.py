"""The card of a dataset, with the reference policies of its environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slaterl.agents.heuristics import ConstantSlate
from slaterl.console import note
from slaterl.data import card, card_page
from slaterl.data.dependence import most_frequent_slate
from slaterl.data.trajectories import Trajectories
from slaterl.envs.env import Env
from slaterl.evaluation.constant_slate import tested_constant_slate
from slaterl.evaluation.evaluate import anchors, constant_slate_return, evaluate
from slaterl.rankers.base import Ranker
from slaterl.runs.files import whole_file, write_json

ANCHOR_USERS = 500


def reference_returns(
    env: Env,
    data: Trajectories,
    ranker: Ranker | None,
    expert: float | None,
    seed: int,
    constant_slate_users: int | None,
) -> dict[str, float | None]:
    """Return mean returns of random slates, constant slates, the short-term oracle and the expert on the same users.

    Args:
        data: the dataset, whose most frequent item of each slot makes one of the constant slates.
        ranker: ranker that a behaviour acted through; it decodes latent 0 to the constant slate.
        seed: the expert's seed, so that all policies serve the expert's test users.
        constant_slate_users: users per slate in the search for the best constant slate; None leaves it out.
    """
    known = anchors(env, ANCHOR_USERS, seed)
    slate = most_frequent_slate(data.shown()[0])
    frequent = ConstantSlate(slate=slate, num_items=env.num_items, slate_size=env.slate_size)
    searched: dict[str, float | None] = {}
    if constant_slate_users is not None:
        _, best = tested_constant_slate(env, constant_slate_users, ANCHOR_USERS, seed)
        searched = {card.SEARCHED: best.mean_return}
    return {
        "random": known["random_return"],
        "constant_slate": constant_slate_return(env, ranker, ANCHOR_USERS, seed),
        **searched,
        "most_frequent_slate": evaluate(frequent, env, ANCHOR_USERS, seed, "test").mean_return,
        "short_term_oracle": known.get("oracle_return"),
        "expert": expert,
    }


def entries_of(data: Trajectories, item_embeddings: str) -> dict[str, Any]:
    """Return what the result of every stage that makes trajectories says about them.

    Args:
        item_embeddings: fingerprint of the items.
    """
    returns = data.returns
    return {
        "item_embeddings": item_embeddings,
        "trajectories": len(data),
        "turns": data.turns,
        "return_mean": returns.mean().item(),
        "return_std": returns.std().item() if len(data) > 1 else 0.0,
    }


def write_card(
    folder: Path,
    data: Trajectories,
    behaviours: Sequence[Mapping[str, Any]],
    returns: Mapping[str, float | None] | None,
    *,
    num_items: int,
    warnings: Sequence[str],
    **about: Any,
) -> None:
    """Write card.json, card.md and card.png, and show the warnings to the user.

    Args:
        behaviours: name and other plain values of each behaviour that data.policy_id counts.
        returns: see reference_returns; None for a log, which has no simulator.
        warnings: more warnings for the card.
        about: title and checksum; top_items of a log, see Vocabulary.most_shown.
    """
    described = card.describe(data, behaviours, num_items=num_items, anchors=returns)
    described["warnings"] += warnings
    described |= about
    write_json(folder / "card.json", described)
    with whole_file(folder / "card.md") as partial:
        partial.write_text(card_page.as_markdown(described), encoding="utf-8")
    card_page.draw(described, folder / "card.png")
    for warning in described["warnings"]:
        note(f"warning: {warning}")
