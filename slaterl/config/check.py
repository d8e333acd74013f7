"""One look at the composed configuration, before anything starts.

Hydra refuses unknown keys on the command line, but not those added with a + or misspelt in a preset.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slaterl.agents.offline.base import OfflineAgent
from slaterl.config.build import compares_items, parameters_of, plain
from slaterl.errors import UserError, check_counts, check_positive, check_range
from slaterl.rankers.gems import GeMS

# arguments that the program gives, by node
_SUPPLIED = {
    "agent": {"num_items", "slate_size", "env", "generator", "belief", "ranker", "item_embeddings"},
    "belief": {"num_items", "slate_size", "env"},
    "ranker": {"num_items", "slate_size", "item_embeddings"},
    "item_embeddings": {"num_items", "env"},
    "env": {"device"},
    "stage": {"cfg"},
}
# nodes without a class, and what is read of them
_SECTIONS = {
    "logged_data": {"source", "trajectories", "epsilon", "num_envs", "seed"},
    "collect": {"trajectories"},
    "export": {"minari"},
    "offline": {
        "validation",
        "max_steps",
        "batch_size",
        "val_every_n_steps",
        "val_users",
        "test_users",
        "log_every_n_steps",
        "save_every_n_steps",
    },
    "fqe": {"discount", "updates", "batch_size", "members", "hidden", "lr", "tau"},
    "pretrain": {"epochs", "lr", "batch_size", "holdout", "box_trajectories"},
    "benchmark": {"repeats"},
    "report": {"runs", "against", "users"},
    "params": {"lambda_KL", "lambda_click"},
    "status": {"sweep"},
    "paths": {"root"},
}
# whole numbers, and the least they may be
_COUNTS = {
    "max_steps": 1,
    "random_steps": 0,
    "num_envs": 1,
    "batch_size": 1,
    "capacity": 1,
    "threads": 1,
    "seed": 0,
    "ranker_seed": 0,
    "log_every_n_steps": 1,
    "val_every_n_steps": 1,
    "val_users": 2,
    "test_users": 2,
    "save_every_n_steps": 1,
    "logged_data.trajectories": 2,
    "logged_data.num_envs": 1,
    "logged_data.seed": 0,
    "pretrain.epochs": 1,
    "pretrain.batch_size": 1,
    "pretrain.box_trajectories": 1,
    "collect.trajectories": 2,
    "offline.max_steps": 1,
    "offline.batch_size": 1,
    "offline.val_every_n_steps": 1,
    "offline.val_users": 2,
    "offline.test_users": 2,
    "offline.log_every_n_steps": 1,
    "offline.save_every_n_steps": 1,
    "fqe.updates": 1,
    "fqe.batch_size": 1,
    "fqe.members": 2,
    "fqe.hidden": 1,
    "benchmark.repeats": 1,
    "report.users": 2,
}


# settings that no other stages than these read, and what was meant where they are given to another one
_READERS = {
    "dataset": (
        {"collect", "offline", "export", "benchmark"},
        "stage=collect, stage=offline and stage=export do, logged_data.source=dataset and evaluation=fqe make others",
    ),
    "export": ({"export"}, "stage=export does"),
    "report": ({"report"}, "stage=report does"),
    "status": ({"status"}, "stage=status does"),
    "evaluation": ({"evaluate"}, "stage=evaluate does; of stage=offline it is offline.validation"),
}


def given_keys() -> set[str]:
    """What was set on the command line, or by a sweep: env, env.num_items, test_users."""
    return keys_of(HydraConfig.get().overrides.task) if HydraConfig.initialized() else set()


def keys_of(overrides: Iterable[str]) -> set[str]:
    return {override.lstrip("+~").split("=")[0] for override in overrides}


def check_config(cfg: DictConfig, known: set[str], given: Iterable[str] = ()) -> None:
    """Refuse settings that nothing reads, values that are missing, sizes that cannot be, parts that do not fit.

    Args:
        known: the top-level keys of the configuration.
        given: keys of the command line, such as dataset.path.

    Raises:
        UserError: names the setting.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)  # resolving would fail at what refers to a misspelt key
    assert isinstance(raw, dict)
    _check_keys(raw, known)
    _check_stage(cfg, given)
    for path in _missing(raw, ""):
        raise UserError(f"{path}: a value is needed; give {path}=...")
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    _check_values(cfg)
    _check_click_model(cfg, given)
    check_fit(cfg)


def _check_keys(raw: Mapping[str, Any], known: set[str]) -> None:
    for key in sorted(set(raw) - known):
        inside = [f"{group}.{key}" for group, node in raw.items() if isinstance(node, dict) and key in node]
        if inside:
            raise UserError(f"{key}: no such setting; did you mean {inside[0]}?")
    _compare("", set(raw), known, needed=known - {"logger"})
    for section, keys in _SECTIONS.items():
        if not isinstance(raw[section], dict):
            raise UserError(f"{section}={raw[section]}: expected the settings {', '.join(sorted(keys))}")
        _compare(section, set(raw[section]), keys, needed=keys)
    _check_dataset(raw["dataset"])
    for path, node in _nodes(raw):
        if "_target_" not in node:
            if path != "ranker":  # ranker=none
                raise UserError(f"{path}: its class (_target_) is missing; choose one of the files in conf/")
            _compare(path, set(node), {"name"}, needed={"name"})
            continue
        try:
            parameters = parameters_of(get_object(node["_target_"]))
        except (ImportError, ValueError, AttributeError) as error:
            raise UserError(f"{path}._target_={node['_target_']}: no such class ({error})") from error
        supplied = _SUPPLIED.get(path, set())
        settings = {name for name in parameters if name not in supplied} | {"name", "_target_"}
        needed = {name for name in settings & set(parameters) if parameters[name].default is inspect.Parameter.empty}
        needed |= {"name"} if path in ("agent", "ranker", "belief", "item_embeddings", "env", "stage") else set()
        _compare(path, set(node), settings, needed)


def _check_dataset(node: Any) -> None:
    if not isinstance(node, dict):
        raise UserError(f"dataset={node}: expected one of the files in conf/dataset")
    if node.get("name") == "file":
        _compare("dataset", set(node), {"name", "path"}, needed={"name", "path"})
        return
    several = "behaviours" in node
    keys = {"name", "trajectories", "num_envs", "seed", "hidden", "actions", "run"}
    keys |= {"behaviours" if several else "behaviour"}
    _compare("dataset", set(node), keys, needed=keys)
    run = {"agent", "ranker", "seed", "medium_step", "train"}
    _compare("dataset.run", set(node["run"]), run, needed=run)
    inner = {"policy", "checkpoint", "sample", "noise", "epsilon"} | ({"share"} if several else set())
    for name, behaviour in node["behaviours"].items() if several else [("", node["behaviour"])]:
        path = f"dataset.behaviours.{name}" if several else "dataset.behaviour"
        if not isinstance(behaviour, dict):
            raise UserError(f"{path}={behaviour}: expected the settings {', '.join(sorted(inner))}")
        _compare(path, set(behaviour), inner, needed=inner)


def _nodes(raw: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for group in ("env", "click_model", "belief", "item_embeddings", "ranker", "agent", "stage"):
        if not isinstance(raw[group], dict):
            raise UserError(f"{group}={raw[group]}: expected one of the files in conf/{group}")
        yield group, raw[group]
        yield from ((f"{group}.{key}", value) for key, value in raw[group].items() if isinstance(value, dict))


def _compare(path: str, found: set[str], known: set[str], needed: set[str]) -> None:
    dot = f"{path}." if path else ""
    for key in sorted(found - known):
        close = difflib.get_close_matches(key, known, n=1)
        shown = ", ".join(sorted(known - {"_target_"}))
        hint = f"did you mean {close[0]}?" if close else f"there are {shown}"
        raise UserError(f"{dot}{key}: no such setting; {hint}")
    for key in sorted(needed - found):
        raise UserError(f"{dot}{key}: a value is needed; give {dot}{key}=...")


def _missing(raw: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, value in raw.items():
        if isinstance(value, dict):
            yield from _missing(value, f"{path}{key}.")
        elif value == "???":
            yield f"{path}{key}"


def _check_values(cfg: DictConfig) -> None:
    for key, low in _COUNTS.items():
        value = OmegaConf.select(cfg, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise UserError(f"{key}={value}: expected a whole number of at least {low}")
    for key, low, high in (("pretrain.lr", 0, float("inf")), ("pretrain.holdout", 0, 1), ("logged_data.epsilon", 0, 1)):
        value = OmegaConf.select(cfg, key)
        inside = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        if not inside or (value in (low, high) and key != "logged_data.epsilon"):
            raise UserError(f"{key}={value}: expected a number between {low} and {high}")
    for key, kind, what in (("paths.root", str, "a folder"), ("force", bool, "true or false")):
        if not isinstance(OmegaConf.select(cfg, key), kind):
            raise UserError(f"{key}={OmegaConf.select(cfg, key)}: expected {what}")
    check_positive(**{"fqe.lr": cfg.fqe.lr, "fqe.tau": cfg.fqe.tau})
    check_range(0, 1, **{"fqe.tau": cfg.fqe.tau, "fqe.discount": cfg.fqe.discount})
    if cfg.fqe.discount == 1:
        raise UserError("fqe.discount=1: expected a number below 1")
    if cfg.checkpoint is not None and not isinstance(cfg.checkpoint, str):
        raise UserError(f"checkpoint={cfg.checkpoint}: expected a path")
    runs, against = OmegaConf.to_container(cfg.report)["runs"], cfg.report.against  # type: ignore[index, call-overload]
    patterns = runs if isinstance(runs, list) and runs else [runs]
    if runs is not None and not all(isinstance(pattern, str) for pattern in patterns):
        raise UserError(f"report.runs={runs}: expected folders, globs, or the folder of a sweep")
    if against is not None and not isinstance(against, str):
        raise UserError(f"report.against={against}: expected a method's name, as the report shows it")
    _check_dataset_values(cfg.dataset)
    _choice(cfg, "evaluation", "simulator", "fqe")
    _choice(cfg, "offline.validation", "simulator", "fqe")
    _choice(cfg, "logged_data.source", "epsilon_oracle", "dataset")
    if cfg.init_from is not None and cfg.stage.name != "online":
        raise UserError(f"init_from={cfg.init_from}: only stage=online reads it")
    if cfg.checkpoint is not None and cfg.stage.name != "evaluate":
        raise UserError(f"checkpoint={cfg.checkpoint}: only stage=evaluate reads it")
    for key, instead in (("click_model", "click_model=mixPBM"), ("item_embeddings", "env.item_embeddings.path=<file>")):
        if key in cfg.env and (not isinstance(cfg.env[key], DictConfig) or "_target_" not in cfg.env[key]):
            raise UserError(f"env.{key}={cfg.env[key]}: not how it is set; use {instead}")
    if cfg.random_steps >= cfg.max_steps:
        raise UserError(f"random_steps={cfg.random_steps}: must be less than max_steps={cfg.max_steps}")
    if cfg.random_steps + cfg.num_envs < cfg.batch_size:
        raise UserError(
            f"random_steps={cfg.random_steps}: the first batch takes batch_size={cfg.batch_size} trajectories; "
            "random_steps + num_envs must be at least that"
        )
    if cfg.capacity < cfg.batch_size:
        raise UserError(f"capacity={cfg.capacity}: must be at least batch_size={cfg.batch_size}")


def _check_dataset_values(dataset: DictConfig) -> None:
    if dataset.name == "file":
        if not isinstance(dataset.path, str):
            raise UserError(f"dataset.path={dataset.path}: expected a path, or minari:<dataset id>")
        return
    check_counts(**{f"dataset.{key}": dataset[key] for key in ("trajectories", "num_envs")})
    check_counts(**{"dataset.run.medium_step": dataset.run.medium_step})
    for key in ("seed", "run.seed"):
        value = OmegaConf.select(dataset, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UserError(f"dataset.{key}={value}: expected a whole number of at least 0")
    for key in ("hidden", "actions", "run.train"):
        if not isinstance(OmegaConf.select(dataset, key), bool):
            raise UserError(f"dataset.{key}={OmegaConf.select(dataset, key)}: expected true or false")
    for path, behaviour in dataset.get("behaviours", {"": dataset.get("behaviour")}).items():
        path = f"dataset.behaviours.{path}" if path else "dataset.behaviour"
        check_range(0, 1, **{f"{path}.{key}": behaviour[key] for key in ("noise", "epsilon")})
        if not isinstance(behaviour["sample"], bool):
            raise UserError(f"{path}.sample={behaviour['sample']}: expected true or false")
        if "share" in behaviour:
            check_positive(**{f"{path}.share": behaviour.share})
        if behaviour.policy not in ("random", "medium", "expert", "replay"):
            raise UserError(f"{path}.policy={behaviour.policy}: expected random, medium, expert or replay")
        if behaviour.policy == "replay" and (behaviour["sample"] or behaviour.noise or behaviour.epsilon):
            raise UserError(f"{path}.policy=replay: what was recorded stays as it is; leave out sample, noise, epsilon")
        if behaviour.checkpoint is not None and not isinstance(behaviour.checkpoint, str):
            raise UserError(f"{path}.checkpoint={behaviour.checkpoint}: expected a path")


def _check_stage(cfg: DictConfig, given: Iterable[str]) -> None:
    """Refuse what the stage does not read: `stage=` was forgotten, and what would start instead can take hours."""
    with_dataset = cfg.logged_data.source == "dataset" or cfg.evaluation == "fqe"
    # a sweep over these reads the dataset in some of its jobs
    with_dataset = with_dataset or not {"logged_data.source", "evaluation"}.isdisjoint(given)
    for key in sorted(given):
        group = key.split(".")[0]
        readers, meant = _READERS.get(group, ({cfg.stage.name}, ""))
        if cfg.stage.name not in readers and not (group == "dataset" and with_dataset):
            raise UserError(f"{key}: stage={cfg.stage.name} does not read it; {meant}")


def _check_click_model(cfg: DictConfig, given: Iterable[str]) -> None:
    """Refuse settings of the group where the environment's file has a click model of its own."""
    if not any(key.split(".")[0] == "click_model" for key in given):
        return
    if "click_model" not in cfg.env:
        raise UserError(f"click_model: env={cfg.env.name} has no click model; leave it out")
    if plain(cfg.env.click_model) != plain(cfg.click_model):
        raise UserError(f"click_model: env={cfg.env.name} has its own, which is set by env.click_model.<setting>=")


def _choice(cfg: DictConfig, key: str, *choices: str) -> None:
    value = OmegaConf.select(cfg, key)
    if value not in choices:
        raise UserError(f"{key}={value}: expected {' or '.join(choices)}")


def check_fit(cfg: DictConfig) -> None:
    """Agent and stage, agent and ranker, ranker and item embeddings."""
    agent, ranker, items = cfg.agent.name, cfg.ranker.name, cfg.item_embeddings.name
    ranker = "gems" if is_gems(cfg) else ranker  # its name holds the lambdas; this is what is typed
    target = get_object(cfg.agent["_target_"])
    takes = parameters_of(target)
    learns = hasattr(target, "update")
    if cfg.stage.name in ("online", "offline", "benchmark") and not learns:
        raise UserError(f"agent={agent} does not learn; use stage=evaluate agent={agent}")
    if cfg.stage.name == "offline" and not issubclass(target, OfflineAgent):
        raise UserError(f"agent={agent} learns in the simulator; use stage=online, or an offline agent such as td3_bc")
    if cfg.stage.name == "online" and issubclass(target, OfflineAgent):
        raise UserError(f"agent={agent} learns from a dataset; use stage=offline, or an online agent such as sac")
    if cfg.stage.name == "evaluate" and cfg.checkpoint is None and not learns:
        if agent == "constant_slate" and cfg.agent.slate is None and not is_gems(cfg):
            raise UserError(f"ranker={ranker}: it has no latent 0 to decode; use ranker=gems or agent.slate=[...]")
        return  # the ranker beside a heuristic is that of the defaults
    if cfg.stage.name not in ("online", "offline", "benchmark"):
        return
    if cfg.env.episode_length < target.MIN_TURNS:
        few = f"env.episode_length={cfg.env.episode_length}"
        raise UserError(f"{few}: agent={agent} learns from what follows a turn; expected at least {target.MIN_TURNS}")
    if "ranker" in takes and "_target_" not in cfg.ranker:
        raise UserError(
            f"agent={agent} acts through a ranker; use ranker=gems, top_k or k_head_argmax instead of ranker={ranker}"
        )
    if "ranker" not in takes and "_target_" in cfg.ranker:
        raise UserError(
            f"agent={agent} chooses the items of a slate itself; use ranker=none instead of ranker={ranker}"
        )
    if not compares_items(cfg) and items != "scratch":
        what = f"ranker={ranker}" if "ranker" in takes else f"agent={agent}"
        raise UserError(f"item_embeddings={items}: {what} learns its own; leave out item_embeddings")


def is_gems(cfg: DictConfig) -> bool:
    """Whether the ranker is GeMS or derived from it: what is pretrained."""
    return "_target_" in cfg.ranker and issubclass(get_object(cfg.ranker["_target_"]), GeMS)
