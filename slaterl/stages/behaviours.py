"""The policies whose trajectories are offline datasets: found among the online runs, or made there."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict

from slaterl.agents.base import BeliefPolicy, LatentAgent
from slaterl.agents.heuristics import EpsilonOracle
from slaterl.agents.loading import check_environment, load_policy, policy_of
from slaterl.agents.noisy import NoisyPolicy
from slaterl.config.build import AGENT_NODES, plain
from slaterl.config.fits import check_fit
from slaterl.data.replay import ReplayBuffer
from slaterl.data.trajectories import Trajectories
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.paths import CONF
from slaterl.rankers.base import Ranker
from slaterl.rollout import Policy
from slaterl.runs.files import in_short
from slaterl.runs.run import Run
from slaterl.seeds import stream
from slaterl.stages.online import online, online_plan
from slaterl.training import checkpoints


def behaviours_of(dataset: DictConfig) -> dict[str, dict[str, Any]]:
    """A dataset's behaviours by name; where there is one, it is the whole."""
    if "behaviours" in dataset:
        return {name: plain(node) for name, node in dataset.behaviours.items()}
    return {dataset.name: {"share": 1, **plain(dataset.behaviour)}}


def online_cfg(cfg: DictConfig) -> DictConfig:
    """The configuration of the online run that a dataset's checkpoints are of.

    Environment, sizes and protocol are those of `cfg`; the agent, its ranker and the seed are those of dataset.run.

    Raises:
        UserError: there is no such agent or ranker, they do not fit, or the agent does not learn in the simulator.
    """
    run = cfg.dataset.run
    # by the command line it is initialised; in a test, and in the jobs of some launchers, it is not
    started = GlobalHydra.instance().is_initialized()
    try:
        with contextlib.nullcontext() if started else initialize_config_dir(str(CONF), version_base="1.3"):
            chosen = compose("config", overrides=[f"agent={run.agent}", f"ranker={run.ranker}"])
    except MissingConfigException as error:
        group, _, name = str(error.missing_cfg_file).partition("/")
        raise UserError(f"dataset.run.{group}={name}: expected one of the files in conf/{group}") from None
    except CompactHydraException as error:
        raise UserError(f"dataset.run: {in_short(error)}") from None
    own = cfg.copy()
    with open_dict(own):
        for name in AGENT_NODES:
            own[name] = chosen[name]
        own.seed = own.ranker_seed = run.seed
        own.logged_data.source, own.init_from = "epsilon_oracle", None
        own.stage = OmegaConf.load(CONF / "stage" / "online.yaml")
    try:
        check_fit(own)
    except UserError as error:
        raise UserError(f"dataset.run: {error}") from None
    return own


def online_run(cfg: DictConfig, env: TopicRec) -> Run:
    """The run of `online_cfg`, made or not."""
    return online_plan(online_cfg(cfg), env).run


def find_or_train(cfg: DictConfig, env: TopicRec) -> None:
    """Make the online run where it is missing and dataset.run.train allows it.

    Raises:
        UserError: it is missing, and may not be made.
    """
    run = online_run(cfg, env)
    if not run.finished:
        if not cfg.dataset.run.train:
            wanted = f"agent={cfg.dataset.run.agent} ranker={cfg.dataset.run.ranker} seed={cfg.dataset.run.seed}"
            raise UserError(
                f"dataset={cfg.dataset.name}: its agent is not trained ({run.path}); stage=online {wanted} trains it, "
                "or dataset.run.train=true"
            )
        online(online_cfg(cfg))


def checkpoint_of(cfg: DictConfig, env: TopicRec, behaviour: dict[str, Any]) -> Path | None:
    """The checkpoint behind a behaviour, there or not; None where it needs none."""
    if behaviour["checkpoint"] is not None:
        return Path(behaviour["checkpoint"])
    file = file_of(cfg, behaviour["policy"])
    return None if file is None else online_run(cfg, env).path / file


def file_of(cfg: DictConfig, policy: str) -> str | None:
    """Which file of the online run a behaviour's policy is."""
    names = {"medium": f"step{cfg.dataset.run.medium_step}.ckpt", "expert": "best.ckpt", "replay": "last.ckpt"}
    return names.get(policy)


def behaviour_policy(
    behaviour: dict[str, Any], checkpoint: Path | None, env: TopicRec, spec: dict[str, Any], name: str, seed: int
) -> tuple[Policy, Ranker | None]:
    """What shows a behaviour's slates, and the ranker that it acts through.

    Args:
        spec: all that determines the environment, see `env_spec`; name: of the behaviour.

    Raises:
        UserError: the checkpoint is of another environment, noise is asked of what has no latent action, or sampling
            of what has no exploration.
    """
    generator = stream(seed, f"behaviour {name}", env.device)
    sizes = {"num_items": env.num_items, "slate_size": env.slate_size}
    ranker: Ranker | None = None
    if checkpoint is None:
        policy: Policy = EpsilonOracle(epsilon=1.0, generator=generator, **sizes)
    else:
        loaded = load_policy(checkpoint, env.device)
        check_environment(loaded, spec, checkpoint)
        policy = loaded.policy
        if isinstance(policy, BeliefPolicy):
            policy = policy.agent.policy(generator)
            if isinstance(policy.agent, LatentAgent) and not policy.agent.REFINES:
                ranker = policy.agent.ranker
    if behaviour["sample"] and not (isinstance(policy, BeliefPolicy) and policy.agent.explores):
        raise UserError(f"sample=true of the behaviour {name}: it has no exploration to act with")
    noise, epsilon = behaviour["noise"], behaviour["epsilon"]
    if noise > 0 and ranker is None:
        raise UserError(f"noise={noise} of the behaviour {name}: it has no latent action; use epsilon")
    if noise > 0 or epsilon > 0:
        policy = NoisyPolicy(
            policy, noise=noise, epsilon=epsilon, ranker=ranker, num_items=env.num_items, generator=generator
        )
    return policy, ranker


def replayed(checkpoint: Path, spec: dict[str, Any], count: int) -> Trajectories:
    """The newest `count` trajectories of the replay buffer in a run's last.ckpt, or all that there are."""
    state = checkpoints.load(checkpoint, "agent")
    check_environment(policy_of(state, checkpoint), spec, checkpoint)
    if "replay" not in state.get("data", {}):
        raise UserError(f"{checkpoint}: holds no replay buffer; the last.ckpt of a run does")
    buffer = ReplayBuffer(state["data"]["replay"]["size"])
    buffer.load_state_dict(state["data"]["replay"], "cpu")
    return buffer.trajectories()[-count:]
