"""Import datasets from files: slaterl's own, or in other formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slaterl.agents.behaviours import Collected
from slaterl.data import trajectories
from slaterl.data.formats.read import read
from slaterl.data.trajectories import Trajectories
from slaterl.envs.env import Env
from slaterl.errors import UserError


def import_dataset(source: str, env: Env, force: bool) -> Collected:
    """Read a file of slaterl (.safetensors) or in another format (data.formats).

    Args:
        source: a path, or minari:<dataset id>.
        force: accept slaterl's trajectories even if the environment has other item embeddings.

    Raises:
        UserError: the file cannot be read, or does not fit the environment.
    """
    if not source.endswith(".safetensors"):
        data, about = read(
            source,
            num_items=env.num_items,
            slate_size=env.slate_size,
            episode_length=env.episode_length,
            first_slate=env.first_slate,
        )
        _check_rewards(source, data, env)
        exported = about.pop("exported", None)
        if exported is None:
            return Collected(data, [{"name": "file", **about, "trajectories": len(data)}])
        _check_catalogue(source, exported, env, force)
        return Collected(data, [{**about, **behaviour} for behaviour in exported["behaviours"]])
    data, metadata = trajectories.load(Path(source), num_items=env.num_items)
    _check_rewards(source, data, env)
    _check_catalogue(source, metadata, env, force)
    frames = (env.episode_length + 1, env.slate_size)
    if tuple(data.slates.shape[1:]) != frames:
        found = f"{data.slates.shape[1] - 1} turns of slates of {data.slates.shape[2]}"
        raise UserError(f"{source}: trajectories of {found}, expected {frames[0] - 1} turns of slates of {frames[1]}")
    return Collected(data, metadata["behaviours"], actions_of=metadata.get("actions_of"))


def _check_rewards(source: str, data: Trajectories, env: Env) -> None:
    """Raise UserError unless the dataset records rewards if and only if the environment's rewards are not clicks."""
    if env.reward_is_clicks != (data.reward is None):
        recorded = "no rewards" if data.reward is None else "rewards other than clicks"
        paid = "the number of clicks" if env.reward_is_clicks else "not the number of clicks"
        raise UserError(f"{source}: it records {recorded}, but the reward of env={env.name} is {paid}")


def _check_catalogue(source: str, metadata: Mapping[str, Any], env: Env, force: bool) -> None:
    """Raise UserError unless a dataset that slaterl wrote has the environment's items."""
    if metadata.get("item_embeddings") != env.fingerprint and not force:
        raise UserError(
            f"{source}: made with the item embeddings {metadata.get('item_embeddings')}, but env={env.name} has "
            f"{env.fingerprint}, so its slates mean something else there; force=true uses it anyway"
        )
