"""The configurations behind a dataset: its behaviours, and the online run that made its checkpoints."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict

from slaterl.config.build import AGENT_NODES, plain
from slaterl.config.fits import check_fit
from slaterl.config.logs import is_log, log_name
from slaterl.data.formats import tables
from slaterl.data.formats.read import source_fingerprint
from slaterl.errors import UserError
from slaterl.paths import CONF
from slaterl.runs.files import fingerprint_of, in_short

MEDIUM = (35, 50, 65)  # normalised validation return of a half-trained agent: least, best, most
BY_RETURN = f"return {MEDIUM[0]}..{MEDIUM[2]}"  # in place of a file that is known only when the run is finished


def behaviours_of(dataset: DictConfig) -> dict[str, dict[str, Any]]:
    """Return the behaviours of a dataset by name; a single behaviour gets share 1."""
    if "behaviours" in dataset:
        return {name: plain(node) for name, node in dataset.behaviours.items()}
    return {dataset.name: {"share": 1, **plain(dataset.behaviour)}}


def needs_online_run(behaviour: dict[str, Any]) -> bool:
    """Whether a behaviour is a checkpoint of the online run that dataset.run names."""
    return behaviour["checkpoint"] is None and not is_random(behaviour)


def is_random(behaviour: dict[str, Any]) -> bool:
    """Whether a behaviour shows random slates."""
    return behaviour["checkpoint"] is None and behaviour["policy"] == "random"


def dataset_spec(dataset: DictConfig) -> tuple[str, dict[str, Any]]:
    """Return a readable name of a dataset, and everything that determines it except its environment and online run.

    Raises:
        UserError: a file does not exist.
    """
    settings = plain(dataset)
    if is_log(dataset):
        source = settings.pop("path")
        return f"{dataset.name}-{log_name(dataset)}", {"dataset": settings, "file": tables.fingerprint(source)}
    if dataset.name == "file":
        source = settings.pop("path")
        name = Path(source.removeprefix("minari:")).stem.replace("/", "-")
        return f"{dataset.name}-{name}", {"dataset": settings, "file": source_fingerprint(source)}
    settings = {key: value for key, value in settings.items() if key not in ("run", "behaviour")}
    behaviours = behaviours_of(dataset)
    if settings["actions"] == "auto" and all(map(is_random, behaviours.values())):
        settings["actions"] = False  # it would record none, and datasets from before that setting keep their names
    settings["behaviours"] = {name: _behaviour_spec(dataset, own) for name, own in behaviours.items()}
    return f"{dataset.name}-{settings['trajectories']}-seed{settings['seed']}", {"dataset": settings}


def _behaviour_spec(dataset: DictConfig, behaviour: dict[str, Any]) -> dict[str, Any]:
    """Return a behaviour with its checkpoint's fingerprint, or the name of the online run's file, if it has either."""
    spec = {key: value for key, value in behaviour.items() if key != "checkpoint"}
    if behaviour["checkpoint"] is not None:
        if not Path(behaviour["checkpoint"]).is_file():
            raise UserError(f"dataset.behaviour.checkpoint={behaviour['checkpoint']}: no such file")
        spec["checkpoint"] = fingerprint_of(Path(behaviour["checkpoint"]))
    elif needs_online_run(behaviour):
        spec["checkpoint"] = file_of(dataset, behaviour["policy"])
    return spec


def file_of(dataset: DictConfig, policy: str) -> str | None:
    """Return the file of the online run that holds a behaviour's policy; None for random slates.

    BY_RETURN stands for the checkpoint that evaluation/medium.py finds.
    """
    step = dataset.run.medium_step
    names = {"medium": BY_RETURN if step is None else f"step{step}.ckpt", "expert": "best.ckpt", "replay": "last.ckpt"}
    return names.get(policy)


def is_foreign(dataset: DictConfig) -> bool:
    """Whether the dataset is a file in another format, which need not come from a simulator."""
    return dataset.name == "file" and not dataset.path.endswith(".safetensors")


def source_of(cfg: DictConfig) -> str:
    """Name the setting that chose the logged data, for messages."""
    if cfg.logged_data.source == "dataset":
        return source_of_dataset(cfg)
    return f"logged_data.trajectories={cfg.logged_data.trajectories}"


def source_of_dataset(cfg: DictConfig) -> str:
    """Name the setting that chose the dataset, for messages."""
    return f"dataset.path={cfg.dataset.path}" if "path" in cfg.dataset else f"dataset={cfg.dataset.name}"


def online_cfg(cfg: DictConfig) -> DictConfig:
    """Return the configuration of the online run whose checkpoints collect a dataset.

    Environment, sizes and protocol come from `cfg`; agent, ranker and seed come from dataset.run.

    Raises:
        UserError: the agent or the ranker does not exist, they do not fit, or the agent does not learn online.
    """
    run = cfg.dataset.run
    chosen = _composed(run.agent, run.ranker)
    own = cfg.copy()
    with open_dict(own):
        for name in AGENT_NODES:
            own[name] = chosen[name]
        own.seed = own.ranker_seed = run.seed
        own.logged_data.source, own.init_from = "epsilon_oracle", None
        own.constant_slate_users = None  # the search is for the dataset's card
        own.validation.by = "deterministic"  # so that learners that validate in another way share their dataset
        own.stage = OmegaConf.load(CONF / "stage" / "online.yaml")
    try:
        check_fit(own)
    except UserError as error:
        raise UserError(f"dataset.run: {error}") from None
    return own


@lru_cache(maxsize=8)
def _composed(agent: str, ranker: str) -> DictConfig:
    """Compose the configuration of an agent and a ranker, once per process."""
    # Hydra is initialised by the command line, but not in a test or in the jobs of some launchers
    started = GlobalHydra.instance().is_initialized()
    try:
        with contextlib.nullcontext() if started else initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", overrides=[f"agent={agent}", f"ranker={ranker}"])
    except MissingConfigException as error:
        group, _, name = str(error.missing_cfg_file).partition("/")
        raise UserError(f"dataset.run.{group}={name}: expected one of the files in conf/{group}") from None
    except CompactHydraException as error:
        raise UserError(f"dataset.run: {in_short(error)}") from None
