"""How a checkpoint is evaluated: in its own environment, a changed or another one, and at which temperature."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from slaterl.config.build import AGENT_NODES, catalogue_argument, env_spec, parameters_of, plain
from slaterl.envs.catalog import fingerprint
from slaterl.errors import UserError

TEMPERATURE = "ranker.temperature"


def refuse_own_parts(file: Path, given: Set[str], changes: Set[str] = frozenset()) -> None:
    """Raise UserError if the command line sets a part that the checkpoint has, except for the keys in `changes`."""
    for key in (*AGENT_NODES, "params"):
        if any(name.split(".")[0] == key for name in given - changes):
            raise UserError(f"{key}: checkpoint={file} has its own; leave it out")


def at_temperature(cfg: DictConfig, state: dict[str, Any], given: Set[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """Return an agent's checkpoint with the command line's temperature of its ranker, and this temperature, if given.

    Raises:
        UserError: the agent acts through no ranker with a temperature.
    """
    if TEMPERATURE not in given:
        return state, {}
    config, temperature = state["config"], cfg.ranker.temperature
    ranker, agent = config["ranker"], config["agent"]
    draws = "_target_" in ranker and "temperature" in parameters_of(get_object(ranker["_target_"]))
    if not draws or "ranker" not in parameters_of(get_object(agent["_target_"])):
        raise UserError(
            f"{TEMPERATURE}: agent={agent['name']} of checkpoint={cfg.checkpoint} has no ranker that draws items"
        )
    served = {**config, "ranker": {**ranker, "temperature": temperature}}
    return {**state, "config": served}, {"temperature": temperature}


def env_node(cfg: DictConfig, own: Mapping[str, Any], given: Set[str]) -> dict[str, Any]:
    """Return the checkpoint's environment with the command line's changes, or another environment as a whole."""
    if "env" in given:
        return plain(cfg.env)
    node = copy.deepcopy(dict(own))
    for key in given:
        first, *path, last = key.split(".") if "." in key else (key, "")
        if first == "click_model" and "click_model" not in own:
            raise UserError(f"{key}: env={own['name']} of checkpoint={cfg.checkpoint} has no click model")
        if key == "click_model":
            node["click_model"] = plain(cfg.click_model)
        elif first == "click_model" and "click_model" not in given:
            node["click_model"][last] = OmegaConf.select(cfg, key)
        elif first == "env":
            inner: Any = node
            for name in path:
                inner = inner.get(name) if isinstance(inner, dict) else None
            if not isinstance(inner, dict) or last not in inner:
                raise UserError(
                    f"{key}: env={own['name']} of checkpoint={cfg.checkpoint} has no such setting; to change its own "
                    f"settings, give env={own['name']} as well"
                )
            inner[last] = OmegaConf.select(cfg, key)
    for part, settings in own.items():  # a part that repeats a setting of the environment keeps repeating it
        for name in settings if isinstance(settings, Mapping) else ():
            if name in own and settings[name] == own[name]:
                node[part][name] = node[name]
    return node


def env_spec_elsewhere(
    cfg: DictConfig, node: dict[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the spec of an environment for a checkpoint's agent, and the parts that the checkpoint gives to it.

    Raises:
        UserError: the agent cannot act there, because its slates have other items or another size.
    """
    own = config["env"]
    sizes = [(where["num_items"], where["slate_size"]) for where in (own, node)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"checkpoint={cfg.checkpoint}: made for {sizes[0][0]} items and slates of {sizes[0][1]}, "
            f"not for {sizes[1][0]} items and slates of {sizes[1][1]}"
        )
    # item ids mean the same if catalogues are equal; without catalogues, if the environments are of one class
    known, part = own.get("items", own["_target_"]), catalogue_argument(own)
    if part is not None:
        known = fingerprint(config["catalogue"])
        if (node["_target_"], node.get(part)) == (own["_target_"], own[part]):
            return {**node, part: known}, {part: config["catalogue"]}
    spec = env_spec(node)
    there = spec.get("items") or spec[catalogue_argument(node) or "_target_"]
    if there != known and not cfg.force:
        raise UserError(
            f"checkpoint={cfg.checkpoint}: learned with the items {known} of {own['name']}; env={node['name']} has "
            f"{there}, so its slates mean something else there; force=true evaluates anyway"
        )
    return spec, {}
