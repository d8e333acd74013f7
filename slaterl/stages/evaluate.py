"""stage=evaluate: a checkpoint, or an agent that does not learn, on the test users."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from slaterl.agents.heuristics import ConstantSlate
from slaterl.agents.loading import LoadedPolicy, policy_of
from slaterl.config.build import AGENT_NODES, build_agent, build_env, env_spec, plain, resolve_device, settings_of
from slaterl.config.check import given_keys
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.evaluation.evaluate import anchors
from slaterl.evaluation.evaluate import evaluate as serve
from slaterl.evaluation.show import show_result
from slaterl.rollout import Policy
from slaterl.runs.files import fingerprint_of
from slaterl.runs.run import Run, write_json
from slaterl.stages.fqe import fqe
from slaterl.stages.inputs import inputs_of, make_inputs, provenance, ranker_spec
from slaterl.training import checkpoints
from slaterl.training.learner import Learner


def evaluate(cfg: DictConfig) -> Run:
    """Find or make the evaluation of `checkpoint`, or of `agent` where none is given.

    A checkpoint knows its environment, its seed and its number of test users; of these, what was given on the
    command line is used instead. With evaluation=fqe the data tell, see stages/fqe.py.
    """
    if cfg.evaluation == "fqe":
        return fqe(cfg)
    device = resolve_device(cfg.device)
    inputs: dict[str, Run] = {}  # a constant slate can be a ranker's
    if cfg.checkpoint is None:
        node, env, seed, users = plain(cfg.env), build_env(cfg.env, device), cfg.seed, cfg.test_users
        policy: Policy = build_agent({name: plain(cfg[name]) for name in AGENT_NODES}, env, seed)
        if isinstance(policy, Learner):
            raise UserError(f"checkpoint: agent={cfg.agent.name} learns, so evaluating it needs checkpoint=<path>")
        if isinstance(policy, ConstantSlate) and policy.slate is None:
            inputs = inputs_of(cfg, env, policy)
        about: dict[str, Any] = {"agent": cfg.agent.name, "step": 0}
        spec: dict[str, Any] = {"agent": settings_of(cfg.agent), **(ranker_spec(cfg, policy, inputs) if inputs else {})}
        name = f"{cfg.agent.name}-seed{seed}"
    else:
        file, given = Path(cfg.checkpoint), given_keys()
        for key in (*AGENT_NODES, "params"):
            if any(name.split(".")[0] == key for name in given):
                raise UserError(f"{key}: checkpoint={file} knows its own; leave it out")
        state = checkpoints.load(file, "agent")
        loaded = policy_of(state, file, device)
        node = _env_node(cfg, loaded, given)
        env = loaded.env if node == loaded.config["env"] else _other_env(cfg, node, loaded)
        seed = cfg.seed if "seed" in given else loaded.config["evaluation"]["seed"]
        users = cfg.test_users if "test_users" in given else loaded.config["evaluation"]["test_users"]
        policy = loaded.policy if env is loaded.env else policy_of(state, file, device, env).policy
        content = fingerprint_of(file)
        about = {"agent": loaded.config["agent"]["name"], "step": loaded.step, "checkpoint": str(file.resolve())}
        about["checkpoint_sha256"] = content
        spec = {"checkpoint": content}
        name = f"{about['agent']}-step{loaded.step}-seed{seed}"
    spec |= {"env": env_spec(node, env), "seed": seed, "users": users}
    run = Run(Path(cfg.paths.root), "evaluate", env.name, name, spec, products=("result.json",))
    with run.making(cfg, inputs) as needed:
        if needed:
            make_inputs(cfg, policy, inputs)
            tested = serve(policy, env, users, seed, "test")
            result = {"stage": "evaluate", "env": env.name, **about, "seed": seed, "test_users": users}
            if inputs:
                result |= {"ranker": cfg.ranker.name, **provenance(inputs)}
            result |= {**tested.named("test_"), **anchors(env, users, seed)}
            write_json(run.path / "result.json", {**result, "item_embeddings": env.fingerprint, "device": str(device)})
    result = run.result()
    label = f"step {result['step']:,}" if cfg.checkpoint is not None else result["agent"]
    show_result(f"{result['agent']} on {result['env']}, {users} test users of seed {seed}", label, result)
    return run


def _env_node(cfg: DictConfig, loaded: LoadedPolicy, given: set[str]) -> dict[str, Any]:
    """The env node of the checkpoint with the changes of the command line, or the node of another environment."""
    if "env" in given:
        return plain(cfg.env)
    own = loaded.config["env"]
    node = copy.deepcopy(own)
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
    for part, settings in own.items():  # a part that repeats a setting of the environment keeps doing so
        for name in settings if isinstance(settings, dict) else ():
            if name in own and settings[name] == own[name]:
                node[part][name] = node[name]
    return node


def _other_env(cfg: DictConfig, node: dict[str, Any], loaded: LoadedPolicy) -> TopicRec:
    """Build an environment other than the checkpoint's.

    Raises:
        UserError: the policy cannot act there.
    """
    own, ids = loaded.env, (node["num_items"], node["slate_size"])
    if ids != (own.num_items, own.slate_size):
        raise UserError(
            f"checkpoint={cfg.checkpoint}: made for {own.num_items} items and slates of {own.slate_size}, "
            f"not for {ids[0]} items and slates of {ids[1]}"
        )
    part = own.catalogue_argument
    same = part is not None and node.get(part) == loaded.config["env"][part]
    objects = {part: getattr(own, part)} if part is not None and same else {}
    env = build_env(node, own.device, **objects)
    if env.fingerprint != own.fingerprint and not cfg.force:
        raise UserError(
            f"checkpoint={cfg.checkpoint}: learned on the item embeddings {own.fingerprint} of {own.name}, "
            f"env={env.name} has {env.fingerprint}, where its slates mean something else; force=true evaluates anyway"
        )
    return env
