"""From configuration nodes to objects, with errors that name the setting."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.seeds import seeded_weights, stream

# keys of a node that are not arguments: hydra's own, and the label that names runs
_NOT_ARGUMENTS = {"_target_", "name"}


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


def resolve_device(name: str) -> torch.device:
    """auto | cpu | cuda | cuda:<i> -> a device that exists.

    Raises:
        UserError: cuda where there is none, or a name that is none of these.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and name.split(":")[0] != "cuda":
        raise UserError(f"device={name}: expected auto, cpu or cuda")
    if name != "cpu" and not torch.cuda.is_available():
        raise UserError(f"device={name}: torch {torch.__version__} sees no CUDA device here; use device=cpu")
    return torch.device(name)


def build_env(node: DictConfig | Mapping[str, Any], device: torch.device, **objects: Any) -> TopicRec:
    """The simulator of an `env` node. `objects` replace its parts (item_embeddings=...)."""
    return make(node, device=device, **objects)


def env_spec(node: DictConfig | Mapping[str, Any], env: TopicRec) -> dict[str, Any]:
    """All that determines the simulator, with the item embeddings by their fingerprint, wherever they came from."""
    return {**plain(node), "item_embeddings": env.fingerprint}


def build_agent(config: Mapping[str, Any], env: TopicRec, seed: int) -> Any:
    """The agent of a configuration's nodes `agent`, `ranker` and `belief`, on the simulator's device, untrained.

    Agents get, of what is listed here, what their constructor asks for.
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


def check_config(cfg: DictConfig, known: set[str]) -> None:
    """Refuse settings that nothing reads, values that are missing, and sizes that cannot be.

    Args:
        known: the top-level keys of the configuration.

    Raises:
        UserError: names the setting.
    """
    for key in cfg:
        if str(key) not in known:
            raise UserError(f"{key}: no such setting{_suggest(str(key), known)}")
    for missing in OmegaConf.missing_keys(cfg):
        raise UserError(f"{missing}: a value is needed; give {missing}=...")
    for path, node in _targets(cfg, ""):
        parameters = inspect.signature(get_object(node["_target_"])).parameters
        for key in node:
            if key not in parameters and key not in _NOT_ARGUMENTS:
                raise UserError(f"{path}.{key}: no such setting{_suggest(key, set(parameters))}")
    for section, keys in _SECTIONS.items():
        for key in cfg[section]:
            if key not in keys:
                raise UserError(f"{section}.{key}: no such setting{_suggest(str(key), keys)}")
    _check_sizes(cfg)
    _check_fit(cfg)


_SECTIONS = {
    "logged_data": {"trajectories", "epsilon", "num_envs", "seed"},
    "pretrain": {"epochs", "lr", "batch_size", "holdout", "box_trajectories"},
    "benchmark": {"repeats"},
    "params": {"lambda_KL", "lambda_click"},
    "paths": {"root"},
}
_COUNTS = (
    "max_steps num_envs batch_size capacity log_every_n_steps val_every_n_steps val_users test_users "
    "save_every_n_steps logged_data.trajectories logged_data.num_envs pretrain.epochs pretrain.batch_size "
    "pretrain.box_trajectories benchmark.repeats threads"
).split()


def _check_sizes(cfg: DictConfig) -> None:
    for key in [*_COUNTS, "random_steps", "seed", "ranker_seed", "logged_data.seed"]:
        value, low = OmegaConf.select(cfg, key), 1 if key in _COUNTS else 0
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise UserError(f"{key}={value}: expected a whole number of at least {low}")
    if cfg.random_steps >= cfg.max_steps:
        raise UserError(f"random_steps={cfg.random_steps}: must be less than max_steps={cfg.max_steps}")
    if cfg.random_steps < cfg.batch_size - cfg.num_envs:
        raise UserError(
            f"random_steps={cfg.random_steps}: the first batch takes batch_size={cfg.batch_size} trajectories; "
            f"random_steps + num_envs must be at least that"
        )
    if cfg.capacity < cfg.batch_size:
        raise UserError(f"capacity={cfg.capacity}: must be at least batch_size={cfg.batch_size}")
    if not 0 < cfg.pretrain.holdout < 1:
        raise UserError(f"pretrain.holdout={cfg.pretrain.holdout}: expected a share between 0 and 1")
    if not isinstance(cfg.pretrain.lr, int | float) or not cfg.pretrain.lr > 0:
        raise UserError(f"pretrain.lr={cfg.pretrain.lr}: expected a number above zero")


def _check_fit(cfg: DictConfig) -> None:
    """Agent and ranker must fit before anything starts."""
    wants_ranker = "ranker" in inspect.signature(get_object(cfg.agent["_target_"])).parameters
    if wants_ranker and "_target_" not in cfg.ranker and cfg.checkpoint is None:
        raise UserError(f"agent={cfg.agent.name} acts through a ranker; use ranker=gems instead of ranker={cfg.ranker.name}")
    # a heuristic beside the default ranker is no contradiction where nothing is trained
    if not wants_ranker and cfg.stage.name == "online":
        raise UserError(f"agent={cfg.agent.name} does not learn; use stage=evaluate agent={cfg.agent.name}")


def _targets(node: DictConfig, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in node.items():
        if not isinstance(value, DictConfig):
            continue
        here = f"{path}.{key}" if path else str(key)
        if "_target_" in value:
            yield here, {str(k): v for k, v in value.items_ex(resolve=False)}
        yield from _targets(value, here)


def _suggest(key: str, known: set[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(known - {'self'}))}"
