"""stage=evaluate: a checkpoint, or an agent that does not learn, on the test users."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from slaterl.agents.loading import policy_of
from slaterl.config.build import (
    AGENT_NODES,
    build_env,
    catalogue_argument,
    env_spec,
    parameters_of,
    plain,
    resolve_device,
    settings_of,
)
from slaterl.config.check import given_keys
from slaterl.envs.catalog import fingerprint
from slaterl.envs.env import Env
from slaterl.errors import UserError
from slaterl.evaluation.estimates import estimates
from slaterl.evaluation.evaluate import anchors
from slaterl.evaluation.evaluate import evaluate as serve
from slaterl.evaluation.show import show_result
from slaterl.rollout import Policy
from slaterl.runs.files import fingerprint_of
from slaterl.runs.products import Make, Product
from slaterl.runs.run import Run
from slaterl.stages.agent import agent_inputs, begin_agent, give_inputs, provenance, ranker_spec
from slaterl.training import checkpoints


def evaluate(cfg: DictConfig) -> Product:
    """Return the evaluation of `checkpoint`, or of `agent` if no checkpoint is given.

    A checkpoint knows its environment, seed and number of test users; the command line overrides them. With
    evaluation=fqe the return is estimated from a dataset, see evaluation/estimates.py.
    """
    if cfg.evaluation == "fqe":
        return estimates(cfg)
    return _of_agent(cfg) if cfg.checkpoint is None else _of_checkpoint(cfg)


def _of_agent(cfg: DictConfig) -> Product:
    target = get_object(cfg.agent["_target_"])
    if hasattr(target, "update"):
        raise UserError(f"checkpoint: agent={cfg.agent.name} learns, so evaluating it needs checkpoint=<path>")
    by_ranker = "ranker" in parameters_of(target) and cfg.agent.get("slate") is None  # it decodes latent 0
    inputs = agent_inputs(cfg) if by_ranker else {}
    spec = {"agent": settings_of(cfg.agent), **(ranker_spec(cfg, inputs) if inputs else {})}
    spec |= {"env": env_spec(cfg.env), "seed": cfg.seed, "users": cfg.test_users}
    run = _run(cfg, cfg.env.name, f"{cfg.agent.name}-seed{cfg.seed}", spec)

    def begin() -> Make:
        env, policy = begin_agent(cfg, inputs)

        def make() -> dict[str, Any]:
            give_inputs(policy, inputs)
            about = {"ranker": cfg.ranker.name, **provenance(inputs)} if inputs else {}
            return {"agent": cfg.agent.name, "step": 0, **about, **_test(policy, env, cfg.seed, cfg.test_users)}

        return make

    return Product(run, cfg, begin, inputs, _show)


def _of_checkpoint(cfg: DictConfig) -> Product:
    file, given = Path(cfg.checkpoint), given_keys()
    for key in (*AGENT_NODES, "params"):
        if any(name.split(".")[0] == key for name in given):
            raise UserError(f"{key}: checkpoint={file} has its own; leave it out")
    state = checkpoints.load(file, "agent")
    config, step = state["config"], state["learner"]["step"]
    node = _env_node(cfg, config["env"], given)
    spec, items = _spec_elsewhere(cfg, node, config)
    seed = cfg.seed if "seed" in given else config["evaluation"]["seed"]
    users = cfg.test_users if "test_users" in given else config["evaluation"]["test_users"]
    content, agent = fingerprint_of(file), config["agent"]["name"]
    name = f"{agent}-step{step}-seed{seed}"
    run = _run(cfg, node["name"], name, {"checkpoint": content, "env": spec, "seed": seed, "users": users})

    def begin() -> Make:
        device = resolve_device(cfg.device)
        env = build_env(node, device, **items)
        policy = policy_of(state, file, device, env).policy

        def make() -> dict[str, Any]:
            about = {"checkpoint": str(file.resolve()), "checkpoint_sha256": content}
            return {"agent": agent, "step": step, **about, **_test(policy, env, seed, users)}

        return make

    return Product(run, cfg, begin, show=_show)


def _run(cfg: DictConfig, env: str, name: str, spec: dict[str, Any]) -> Run:
    return Run(Path(cfg.paths.root), "evaluate", env, name, spec, products=("result.json",))


def _test(policy: Policy, env: Env, seed: int, users: int) -> dict[str, Any]:
    tested = serve(policy, env, users, seed, "test").named("test_")
    about = {"item_embeddings": env.fingerprint, "device": str(env.device)}
    return {"seed": seed, "test_users": users, **tested, **anchors(env, users, seed), **about}


def _show(run: Run) -> None:
    result = run.result()
    label = f"step {result['step']:,}" if "checkpoint" in result else result["agent"]
    users = f"{result['test_users']} test users of seed {result['seed']}"
    show_result(f"{result['agent']} on {result['env']}, {users}", label, result)


def _env_node(cfg: DictConfig, own: Mapping[str, Any], given: Set[str]) -> dict[str, Any]:
    """Return the checkpoint's environment with the command line's changes, or another environment as a whole."""
    if "env" in given:
        return plain(cfg.env)
    node = copy.deepcopy(dict(own))
    for key in given:
        first, *path, last = key.split(".") if "." in key else (key, None)
        if first == "click_model" and "click_model" not in own:
            raise UserError(f"{key}: env={own['name']} of checkpoint={cfg.checkpoint} has no click model")
        if key == "click_model":
            node["click_model"] = plain(cfg.click_model)
        elif first == "click_model" and "click_model" not in given:
            node["click_model"][last] = OmegaConf.select(cfg, key)
        elif first == "env":
            inner = node
            for name in path:
                inner = inner[name]
            inner[last] = OmegaConf.select(cfg, key)
    for part, settings in own.items():  # a part that repeats a setting of the environment keeps repeating it
        for name in settings if isinstance(settings, Mapping) else ():
            if name in own and settings[name] == own[name]:
                node[part][name] = node[name]
    return node


def _spec_elsewhere(
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
    known, part = own["_target_"], catalogue_argument(own)
    if part is not None:
        known = fingerprint(config["catalogue"])
        if (node["_target_"], node.get(part)) == (own["_target_"], own[part]):
            return {**node, part: known}, {part: config["catalogue"]}
    spec = env_spec(node)
    there = spec[catalogue_argument(node) or "_target_"]
    if there != known and not cfg.force:
        raise UserError(
            f"checkpoint={cfg.checkpoint}: learned on the item embeddings {known} of {own['name']}; env={node['name']} "
            f"has {there}, so its slates mean something else there; force=true evaluates anyway"
        )
    return spec, {}
