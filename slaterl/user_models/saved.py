"""user_model.ckpt: an ensemble with all that its use needs, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from torch import Tensor

from slaterl.config.build import make
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.runs.files import in_short
from slaterl.training import checkpoints
from slaterl.user_models.click_model import ClickModel
from slaterl.user_models.coverage import Coverage
from slaterl.user_models.entropy import next_item_entropies

FILE = "user_model.ckpt"  # in the folder of every run of stage=user_model
FIRST_FRAMES = 10_000  # most that a file holds


@dataclass(frozen=True)
class UserModel:
    """A trained ensemble.

    Attributes:
        members: the K models, frozen.
        first_slates, first_clicks: [F, S] first frames of sessions in the data.
        coverage: what the data have seen at least `least` times.
        entropies: [N] of the behaviour's items after each item, see entropy.py; None in files of older versions.
        config: the node `user_model`, the sizes, the fingerprint of the items, and `item_ids`, a log's own ids or None.
    """

    members: list[ClickModel]
    first_slates: Tensor
    first_clicks: Tensor
    coverage: Coverage
    least: int
    config: dict[str, Any]
    entropies: Tensor | None


def build_member(node: Mapping[str, Any], sizes: Mapping[str, Any]) -> ClickModel:
    """Build one untrained member from a node `user_model`, with num_items, slate_size and leaves."""
    return make(node, "user_model", **sizes)


def save_user_model(
    path: Path,
    members: Sequence[ClickModel],
    data: Trajectories,
    coverage: Coverage,
    least: int,
    config: Mapping[str, Any],
    generator: torch.Generator,
) -> None:
    """Write a trained ensemble, whole or not at all.

    Args:
        data: the dataset, from which first frames are drawn and entropies are counted.
        config: see UserModel.
        generator: draws the first frames.
    """
    chosen = torch.randperm(len(data), generator=generator)[:FIRST_FRAMES].to(data.slates.device)
    state = {
        "kind": "user_model",
        "config": dict(config),
        "members": [member.state_dict() for member in members],
        "first_slates": data.slates[chosen, 0].clone(),
        "first_clicks": data.clicks[chosen, 0].clone(),
        "coverage": coverage._asdict(),
        "least": least,
        "entropies": next_item_entropies(data, config["num_items"]),
    }
    checkpoints.save(path, state)


def load_user_model(path: Path, device: torch.device) -> UserModel:
    """Read a file that `save_user_model` wrote.

    Raises:
        UserError: the file is missing or damaged, or its class has changed since.
    """
    state = checkpoints.load(path, "user_model")
    config = state["config"]
    sizes = {name: config[name] for name in ("num_items", "slate_size", "leaves")}
    members = []
    for weights in state["members"]:
        try:
            member = build_member(config["user_model"], sizes)
        except (ImportError, InstantiationException) as error:
            raise UserError(f"{path}: its user model cannot be built here ({in_short(error)})") from error
        with checkpoints.taken_by(member, path):
            member.load_state_dict(weights)
        members.append(member.to(device).requires_grad_(False).eval())
    slates, clicks = state["first_slates"].to(device), state["first_clicks"].to(device)
    entropies = state.get("entropies")
    entropies = None if entropies is None else entropies.to(device)
    return UserModel(members, slates, clicks, Coverage(**state["coverage"]), state["least"], config, entropies)


def sizes_of(file: str) -> dict[str, Any]:
    """Return num_items, slate_size, episode_length and the fingerprint of the items of a user model's file.

    Raises:
        UserError: see `load_user_model`.
    """
    path = Path(file).expanduser()
    when = path.stat().st_mtime_ns if path.is_file() else 0
    return _config_of(path, when)


@lru_cache(maxsize=8)
def _config_of(path: Path, when: int) -> dict[str, Any]:
    return checkpoints.load(path, "user_model")["config"]
