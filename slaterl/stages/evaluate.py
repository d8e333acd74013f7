"""stage=evaluate: a checkpoint, or an agent that does not learn, on the test users."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from slaterl.build import build_agent, build_env, env_spec, plain, resolve_device
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.evaluation import anchors, show_result
from slaterl.evaluation import evaluate as serve
from slaterl.learner import Learner
from slaterl.policies import LoadedPolicy, load_policy
from slaterl.rollout import Policy
from slaterl.runs import Run, write_json


def evaluate(cfg: DictConfig) -> Run:
    """Find or make the evaluation of `checkpoint`, or of `agent` where none is given.

    A checkpoint knows its environment, its seed and its number of test users; of these, what was given on the
    command line is used instead.
    """
    device = resolve_device(cfg.device)
    if cfg.checkpoint is None:
        node, env, seed, users = plain(cfg.env), build_env(cfg.env, device), cfg.seed, cfg.test_users
        policy: Policy = build_agent({name: plain(cfg[name]) for name in ("agent", "ranker", "belief")}, env, seed)
        if isinstance(policy, Learner):
            raise UserError(f"checkpoint: agent={cfg.agent.name} learns, so evaluating it needs checkpoint=<path>")
        about: dict[str, Any] = {"agent": cfg.agent.name, "step": 0}
        spec: dict[str, Any] = {"agent": plain(cfg.agent)}
        name = f"{cfg.agent.name}-seed{seed}"
    else:
        file = Path(cfg.checkpoint)
        loaded = load_policy(file, device)
        given = _given()
        node, env = loaded.config["env"], loaded.env
        if given & {"env", "click_model"}:
            node, env = plain(cfg.env), _other_env(cfg, loaded)
        seed = cfg.seed if "seed" in given else loaded.config["evaluation"]["seed"]
        users = cfg.test_users if "test_users" in given else loaded.config["evaluation"]["test_users"]
        policy = loaded.policy
        content = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        about = {"agent": loaded.config["agent"]["name"], "step": loaded.step, "checkpoint": str(file.resolve())}
        about["checkpoint_sha256"] = content
        spec = {"checkpoint": content}
        name = f"{about['agent']}-step{loaded.step}-seed{seed}"
    spec |= {"env": env_spec(node, env), "seed": seed, "users": users}
    run = Run(Path(cfg.paths.root), "evaluate", env.name, name, spec)
    with run.making(cfg, inputs={}) as needed:
        if needed:
            tested = serve(policy, env, users, seed, "test")
            result = {"stage": "evaluate", "env": env.name, **about, "seed": seed, "test_users": users}
            result |= {**tested.named("test_"), **anchors(env, users, seed)}
            write_json(run.path / "result.json", {**result, "item_embeddings": env.fingerprint, "device": str(device)})
    result = run.result()
    label = f"step {result['step']:,}" if cfg.checkpoint is not None else result["agent"]
    show_result(f"{result['agent']} on {result['env']}, {users} test users of seed {seed}", label, result)
    return run


def _given() -> set[str]:
    """First words of what was set on the command line: env.num_items=200 -> env."""
    if not HydraConfig.initialized():
        return set()
    return {override.lstrip("+~").split("=")[0].split(".")[0] for override in HydraConfig.get().overrides.task}


def _other_env(cfg: DictConfig, loaded: LoadedPolicy) -> TopicRec:
    """The environment of the command line, if the policy can act there."""
    env, own = build_env(cfg.env, loaded.env.device), loaded.env
    if (env.num_items, env.slate_size) != (own.num_items, own.slate_size):
        raise UserError(
            f"checkpoint={cfg.checkpoint}: made for {own.num_items} items and slates of {own.slate_size}, "
            f"env={env.name} has {env.num_items} and {env.slate_size}"
        )
    if env.fingerprint != own.fingerprint and not cfg.force:
        raise UserError(
            f"checkpoint={cfg.checkpoint}: learned on the item embeddings {own.fingerprint} of {own.name}, "
            f"env={env.name} has {env.fingerprint}, where its slates mean something else; force=true evaluates anyway"
        )
    return env
