"""From configuration nodes to objects, with errors that name the setting."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.seeds import seeded_weights, stream


def make(node: DictConfig | Mapping[str, Any], **objects: Any) -> Any:
    """Instantiate a node's `_target_` with its values and `objects`, as plain containers.

    Raises:
        UserError: what the constructor found wrong with its arguments.
    """
    values = dict(plain(node))
    target = get_object(values["_target_"])
    if "name" not in inspect.signature(target).parameters:
        values.pop("name", None)
    try:
        return instantiate(values, **objects, _convert_="all")
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:  # instantiate wraps what the constructor raised
            if isinstance(cause, UserError):
                raise cause from None
            cause = cause.__cause__
        raise


def plain(node: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """A node as a plain dictionary, interpolations resolved."""
    values = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    return {str(key): value for key, value in values.items()}  # type: ignore[union-attr]


def settings_of(node: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """A node's values without the label that names runs: what determines a product."""
    return {key: value for key, value in plain(node).items() if key != "name"}


def resolve_device(name: str) -> torch.device:
    """auto | cpu | cuda | cuda:<i> -> a device that exists.

    Raises:
        UserError: cuda where there is none, or a name that is none of these.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name) if isinstance(name, str) else None
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device={name}: expected auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices"
        raise UserError(f"device={name}: torch {torch.__version__} sees {found} here; use device=cpu")
    return device


def build_env(node: DictConfig | Mapping[str, Any], device: torch.device, **objects: Any) -> TopicRec:
    """The simulator of an `env` node. `objects` replace its parts (item_embeddings=...)."""
    return make(node, device=device, **objects)


def env_spec(node: DictConfig | Mapping[str, Any], env: TopicRec) -> dict[str, Any]:
    """All that determines the simulator, with the item embeddings by their fingerprint, wherever they came from."""
    return {**plain(node), "item_embeddings": env.fingerprint}


def build_agent(config: Mapping[str, Any], env: TopicRec, seed: int) -> Any:
    """The agent of a configuration's nodes `agent`, `ranker` and `belief`, on the simulator's device, untrained.

    An agent gets what its constructor asks for of: num_items, slate_size, generator, belief (a function that makes
    one), ranker. What it holds of these besides the generator is drawn from the seed's stream of weights.
    """
    sizes = {"num_items": env.num_items, "slate_size": env.slate_size}
    generator = stream(seed, "agent", env.device)
    offers: dict[str, Any] = {**sizes, "generator": generator, "belief": partial(make, config["belief"], **sizes)}
    wanted = inspect.signature(get_object(config["agent"]["_target_"])).parameters
    with seeded_weights(seed, "weights"):
        if "ranker" in wanted:
            offers["ranker"] = make(config["ranker"], **sizes)
        agent = make(config["agent"], **{name: offers[name] for name in wanted if name in offers})
    return agent.to(env.device) if isinstance(agent, torch.nn.Module) else agent
