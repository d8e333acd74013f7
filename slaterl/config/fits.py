"""Rules over several settings: which parts go together, and which stage reads which settings."""

from __future__ import annotations

from collections.abc import Iterable

from hydra.utils import get_object
from omegaconf import DictConfig

from slaterl.config.build import compares_items, parameters_of, plain, simulates
from slaterl.errors import UserError

# settings that only some stages read, and a hint for users who give them to another stage
_READERS = {
    "dataset": (
        {"collect", "offline", "user_model", "recommend", "export", "benchmark"},
        "stage=collect, stage=offline and recommend do; others need logged_data.source=dataset or evaluation=fqe",
    ),
    "validation": ({"online", "offline"}, "stage=online and stage=offline do; datasets take runs of the default"),
    "user_model": ({"user_model", "evaluate", "offline"}, "stage=user_model does, and evaluation=user_model"),
    "user_training": ({"user_model", "evaluate", "offline"}, "stage=user_model does, and evaluation=user_model"),
    "ips": ({"evaluate"}, "evaluation=ips does"),
    "constant_slate_users": ({"online", "collect"}, "stage=online and stage=collect do"),
    "export": ({"export"}, "stage=export does"),
    "report": ({"report"}, "stage=report does"),
    "recommend": ({"recommend"}, "stage=recommend does"),
    "status": ({"status"}, "stage=status does"),
    "evaluation": ({"evaluate"}, "stage=evaluate does; for stage=offline use offline.validation"),
}


def check_readers(cfg: DictConfig, given: Iterable[str]) -> None:
    """Refuse settings that the stage does not read.

    Usually `stage=` was forgotten, and the default stage would run for hours.
    """
    with_dataset = cfg.logged_data.source == "dataset" or cfg.evaluation != "simulator"
    # some jobs of a sweep over these settings read the dataset
    with_dataset = with_dataset or not {"logged_data.source", "evaluation"}.isdisjoint(given)
    for key in sorted(given):
        group = key.split(".")[0]
        readers, meant = _READERS.get(group, ({cfg.stage.name}, ""))
        if cfg.stage.name not in readers and not (group == "dataset" and with_dataset):
            raise UserError(f"{key}: stage={cfg.stage.name} does not read it; {meant}")


def check_protocol(cfg: DictConfig) -> None:
    """Refuse numbers of steps and sizes that contradict each other, and checkpoints that the stage does not read."""
    for key, stages in (("init_from", ("online",)), ("checkpoint", ("evaluate", "recommend", "export"))):
        if cfg[key] is not None and cfg.stage.name not in stages:
            raise UserError(f"{key}={cfg[key]}: only {' or '.join(f'stage={stage}' for stage in stages)} reads it")
    if cfg.random_steps >= cfg.max_steps:
        raise UserError(f"random_steps={cfg.random_steps}: must be less than max_steps={cfg.max_steps}")
    if cfg.random_steps + cfg.num_envs < cfg.batch_size:
        raise UserError(
            f"random_steps={cfg.random_steps}: the first batch takes batch_size={cfg.batch_size} trajectories; "
            "random_steps + num_envs must be at least that"
        )
    if cfg.capacity < cfg.batch_size:
        raise UserError(f"capacity={cfg.capacity}: must be at least batch_size={cfg.batch_size}")
    by = cfg.offline.validation
    if cfg.validation.by == "sampled" and cfg.stage.name == "offline" and by != "simulator":
        raise UserError(f"validation.by=sampled: offline.validation={by} estimates only the return without exploration")
    if by == "none" and cfg.stage.name == "offline" and simulates(cfg.env):
        raise UserError("offline.validation=none: only dataset=log has no simulator to test in; leave it out")
    if cfg.pretrain.min_delta and cfg.pretrain.patience is None:
        raise UserError(f"pretrain.min_delta={cfg.pretrain.min_delta}: nothing stops early; set pretrain.patience, too")


def check_behaviours(cfg: DictConfig) -> None:
    """Refuse a behaviour that replays recorded trajectories and would change them."""
    dataset = cfg.dataset
    behaviours = {f"dataset.behaviours.{name}": node for name, node in dataset.get("behaviours", {}).items()}
    behaviours |= {"dataset.behaviour": dataset.behaviour} if "behaviour" in dataset else {}
    for path, node in behaviours.items():
        if node.policy == "replay" and (node.sample or node.noise or node.epsilon):
            raise UserError(
                f"{path}.policy=replay: recorded trajectories stay as they are; leave out sample, noise, epsilon"
            )


def check_env(cfg: DictConfig, given: Iterable[str]) -> None:
    """Refuse a click model or items that are set in the wrong place."""
    env = cfg.env
    for key, instead in (("click_model", "click_model=mixPBM"), ("item_embeddings", "env.item_embeddings.path=<file>")):
        if key in env and not (isinstance(env[key], DictConfig) and "_target_" in env[key]):
            raise UserError(f"env.{key}={env[key]}: cannot be set like this; use {instead}")
    if not any(key.split(".")[0] == "click_model" for key in given):
        return
    if "click_model" not in env:
        raise UserError(f"click_model: env={env.name} has no click model; leave it out")
    if plain(env.click_model) != plain(cfg.click_model):
        raise UserError(f"click_model: env={env.name} has its own, so set env.click_model.<setting>= instead")


def check_fit(cfg: DictConfig) -> None:
    """Refuse an agent, a stage, a ranker and item embeddings that do not fit together."""
    agent, stage, target = cfg.agent.name, cfg.stage.name, get_object(cfg.agent["_target_"])
    ranker = cfg.ranker.name.partition("_KL")[0]  # the names of gems hold the lambdas; users type gems
    learns_from = getattr(target, "LEARNS_FROM", None)  # heuristics do not learn
    needs_latent = agent == "constant_slate" and cfg.agent.slate is None
    if stage == "evaluate" and cfg.checkpoint is None and needs_latent and not is_gems(cfg):
        raise UserError(f"ranker={ranker}: only GeMS decodes latent 0 to a slate; use ranker=gems or agent.slate=[...]")
    if stage not in ("online", "offline", "benchmark"):
        return
    if learns_from is None:
        raise UserError(f"agent={agent} does not learn; use stage=evaluate agent={agent}")
    if stage == "offline" and learns_from != "dataset":
        raise UserError(f"agent={agent} learns in the simulator; use stage=online, or an offline agent such as td3_bc")
    if stage == "online" and learns_from != "simulator":
        raise UserError(f"agent={agent} learns from a dataset; use stage=offline, or an online agent such as sac")
    # the length of a log is known once it was read
    if (cfg.env.get("episode_length") or target.MIN_TURNS) < target.MIN_TURNS:
        few = f"env.episode_length={cfg.env.episode_length}"
        raise UserError(f"{few}: agent={agent} learns from the next turn; expected at least {target.MIN_TURNS}")
    takes_ranker = "ranker" in parameters_of(target)
    if takes_ranker and "_target_" not in cfg.ranker:
        raise UserError(
            f"agent={agent} acts through a ranker; use ranker=gems, top_k or k_head_argmax instead of ranker={ranker}"
        )
    if not takes_ranker and "_target_" in cfg.ranker:
        raise UserError(
            f"agent={agent} chooses the items of a slate itself; use ranker=none instead of ranker={ranker}"
        )
    if cfg.belief.name != "gru" and "belief" not in parameters_of(target):
        raise UserError(f"belief={cfg.belief.name}: agent={agent} reads no belief; leave it out")
    if stage == "offline" and not takes_ranker:
        if cfg.offline.actions != "auto":
            raise UserError(f"offline.actions={cfg.offline.actions}: agent={agent} learns from slates; leave it out")
        if cfg.offline.validation == "fqe":
            other = "simulator" if simulates(cfg.env) else "none"
            raise UserError(f"offline.validation=fqe: agent={agent} has no latent actions to value; use {other}")
    if not compares_items(cfg) and cfg.item_embeddings.name != "scratch":
        learner = f"ranker={ranker}" if takes_ranker else f"agent={agent}"
        raise UserError(
            f"item_embeddings={cfg.item_embeddings.name}: {learner} learns its own; leave out item_embeddings"
        )


def is_gems(cfg: DictConfig) -> bool:
    """Whether stage=pretrain trains the ranker, as it does GeMS and classes derived from it."""
    return "_target_" in cfg.ranker and get_object(cfg.ranker["_target_"]).PRETRAINED
