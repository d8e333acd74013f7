"""Build objects from configuration nodes, with errors that name the setting."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from slaterl.bounds import check_node, plain
from slaterl.envs.catalog import fingerprint
from slaterl.envs.env import Env
from slaterl.errors import UserError
from slaterl.runs.files import fingerprint_of
from slaterl.seeds import seeded_weights, stream

AGENT_NODES = ("agent", "ranker", "belief", "item_embeddings")  # the groups that determine an agent
# arguments that the program passes to the class of each node; they are not settings
SUPPLIED: Mapping[str, tuple[str, ...]] = {
    "env": ("device",),
    "belief": ("num_items", "slate_size", "env"),
    "item_embeddings": ("num_items", "env"),
    "ranker": ("num_items", "slate_size", "item_embeddings"),
    "agent": ("num_items", "slate_size", "env", "generator", "belief", "ranker", "item_embeddings"),
    "user_model": ("num_items", "slate_size", "leaves"),
    "stage": ("cfg",),
}

# what conf/env/learned.yaml asks about the file in env.user_model
OmegaConf.register_new_resolver(
    "user_model_of", lambda file, key: get_object("slaterl.user_models.saved.sizes_of")(file)[key], replace=True
)


def make(node: DictConfig | Mapping[str, Any], path: str = "", **objects: Any) -> Any:
    """Instantiate the `_target_` of a node with its values and `objects`. Lists stay plain lists.

    Args:
        path: dotted key of the node, for messages.

    Raises:
        UserError: a value is out of its range in the signature, or the constructor refuses the values.
    """
    values = check_node(path, node)
    if "name" not in parameters_of(get_object(values["_target_"])):
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


def settings_of(node: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a node without its name, which only labels runs."""
    return {key: value for key, value in plain(node).items() if key != "name"}


def ranker_settings(node: DictConfig | Mapping[str, Any], *unread: str) -> dict[str, Any]:
    """Return a ranker's settings without those in `unread`.

    temperature=0 adds nothing, so that older runs keep their names.
    """
    settings = settings_of(node)
    unread = unread if settings.get("temperature") else ("temperature", *unread)
    return {key: value for key, value in settings.items() if key not in unread}


def pretraining_of(settings: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `pretrain` that say how a ranker was trained.

    Without `patience` nothing stops early, and neither does it with one for all epochs after the first, which always
    improves. Runs from before that setting existed keep their names this way.
    """
    patience = settings.get("patience")
    unread = ("patience", "min_delta") if patience is None or patience >= settings["epochs"] - 1 else ()
    return {key: value for key, value in plain(settings).items() if key not in unread}


def precision_spec(cfg: DictConfig) -> dict[str, str]:
    """Return `matmul_precision` as a part of a spec. The default adds nothing, so that older runs keep their names."""
    return {} if cfg.matmul_precision == "highest" else {"matmul_precision": cfg.matmul_precision}


def validation_spec(cfg: DictConfig) -> dict[str, Any]:
    """Return `validation` as a part of a spec. The default adds nothing, so that older runs keep their names."""
    return {} if cfg.validation.by == "deterministic" else {"validation": plain(cfg.validation)}


def resolve_device(name: str) -> torch.device:
    """Choose the torch device for auto, cpu, cuda or cuda:<i>.

    Raises:
        UserError: another name, or a GPU that this machine lacks.
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


def build_env(node: DictConfig | Mapping[str, Any], device: torch.device, **objects: Any) -> Env:
    """Build the environment of an `env` node. `objects` replace its parts (item_embeddings=...)."""
    return make(node, "env", device=device, **objects)


def simulator(cfg: DictConfig) -> Env:
    """Build the simulator of a configuration. Within a process, equal settings share one simulator."""
    node, spec = (json.dumps(part, sort_keys=True) for part in (plain(cfg.env), env_spec(cfg.env)))
    return _simulator(node, spec, resolve_device(cfg.device))


@lru_cache(maxsize=8)
def _simulator(node: str, spec: str, device: torch.device) -> Env:
    return build_env(json.loads(node), device)


def env_spec(node: DictConfig | Mapping[str, Any], env: Env | None = None) -> dict[str, Any]:
    """Return the settings that determine an environment, with its catalogue's fingerprint instead of its settings.

    Args:
        env: the built environment; if None, only the catalogue is built.
    """
    settings = plain(node)
    if not simulates(settings):
        return {"_target_": settings["_target_"]}  # its sizes and items are those of the dataset
    for name in getattr(get_object(settings["_target_"]), "file_arguments", ()):
        settings[name] = fingerprint_of(Path(settings[name]).expanduser())
    part = catalogue_argument(settings)
    if part is None:
        return settings
    if env is not None:
        return {**settings, part: env.fingerprint}
    files = tuple(_state_of(value) for value in settings[part].values() if isinstance(value, str))
    return {**settings, part: _fingerprint_of(json.dumps(settings[part], sort_keys=True), part, files)}


def simulates(node: Mapping[str, Any]) -> bool:
    """Whether an `env` node is a simulator, and not the users of a log."""
    return getattr(get_object(node["_target_"]), "simulates", True)


def catalogue_argument(node: Mapping[str, Any]) -> str | None:
    """Return the setting of an `env` node that a checkpoint must carry, see Env."""
    return getattr(get_object(node["_target_"]), "catalogue_argument", None)


def _state_of(path: str) -> tuple[int, int] | None:
    """Time and size of a file, so that a changed file is read again; None if it is no file."""
    try:
        found = Path(path).expanduser().stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=64)
def _fingerprint_of(catalogue: str, part: str, files: tuple[tuple[int, int] | None, ...]) -> str:
    return fingerprint(make(json.loads(catalogue), f"env.{part}"))


def build_agent(config: Mapping[str, Any], env: Env, seed: int) -> Any:
    """Build the untrained agent of the nodes `agent`, `ranker`, `belief` and `item_embeddings`, on the env's device.

    Each constructor gets the arguments in `SUPPLIED` that it takes. `belief` is a function that makes a belief.
    Weights are initialised from the seed's `weights` stream.
    """
    offers: dict[str, Any] = {"num_items": env.num_items, "slate_size": env.slate_size, "env": env}
    offers["generator"] = stream(seed, "agent", env.device)
    offers["belief"] = lambda: make_with(config["belief"], "belief", offers)
    with seeded_weights(seed, "weights"):
        if compares_items(config):
            offers["item_embeddings"] = make_with(config["item_embeddings"], "item_embeddings", offers)
        if "ranker" in _wanted(config["agent"]) and "_target_" in config["ranker"]:
            offers["ranker"] = make_with(config["ranker"], "ranker", offers).to(env.device)
        agent = make_with(config["agent"], "agent", offers)
    if getattr(agent, "CREDITS_CLICKS", False) and not env.reward_is_clicks:
        raise UserError(
            f"agent={config['agent']['name']}: it learns from clicks, but env={env.name} pays another reward; "
            "use an agent that learns from rewards, such as sac, or td3_bc on a dataset"
        )
    return agent.to(env.device) if isinstance(agent, torch.nn.Module) else agent


def make_with(node: DictConfig | Mapping[str, Any], path: str, offers: Mapping[str, Any]) -> Any:
    """Instantiate a node with the offered objects that its constructor takes and the program supplies."""
    wanted = _wanted(node)
    return make(node, path, **{name: offers[name] for name in SUPPLIED[path] if name in wanted and name in offers})


def compares_items(config: DictConfig | Mapping[str, Any]) -> bool:
    """Whether the agent or its ranker reads the group item_embeddings."""
    agent, ranker = _wanted(config["agent"]), _wanted(config["ranker"])
    return "item_embeddings" in agent or ("ranker" in agent and "item_embeddings" in ranker)


def parameters_of(target: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class or function. If a class passes on **others, include its bases' parameters."""
    found: dict[str, inspect.Parameter] = {}
    for base in inspect.getmro(target) if inspect.isclass(target) else (target,):
        if inspect.isclass(target) and "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base).parameters
        passed_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        found = {n: p for n, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD} | found
        if not passed_on:
            break
    return found


def _wanted(node: DictConfig | Mapping[str, Any]) -> Mapping[str, inspect.Parameter]:
    return parameters_of(get_object(node["_target_"])) if "_target_" in node else {}
