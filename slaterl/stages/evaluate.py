"""stage=evaluate: a checkpoint, or an agent that does not learn, on the test users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from slaterl.agents.loading import policy_of
from slaterl.config.build import (
    build_env,
    env_spec,
    parameters_of,
    precision_spec,
    resolve_device,
    settings_of,
    simulates,
)
from slaterl.config.check import given_keys
from slaterl.envs.env import Env
from slaterl.errors import UserError
from slaterl.evaluation.estimates import estimates
from slaterl.evaluation.evaluate import anchors, evaluate_both
from slaterl.evaluation.show import show_result
from slaterl.rollout import Policy
from slaterl.runs.files import fingerprint_of
from slaterl.runs.products import Make, Product
from slaterl.runs.run import Run
from slaterl.stages.agent import agent_inputs, begin_agent, give_inputs, provenance, ranker_spec
from slaterl.stages.elsewhere import TEMPERATURE, at_temperature, env_node, env_spec_elsewhere, refuse_own_parts
from slaterl.stages.estimated import estimated
from slaterl.stages.propensities import by_propensities
from slaterl.training import checkpoints


def evaluate(cfg: DictConfig) -> Product:
    """Return the evaluation of `checkpoint`, or of `agent` if no checkpoint is given.

    A checkpoint knows its environment, its ranker's temperature, seed and number of test users; the command line
    overrides them. With evaluation=fqe, ips or user_model the return is estimated from a dataset.
    """
    if cfg.checkpoint is not None:
        refuse_own_parts(Path(cfg.checkpoint), given_keys(), {TEMPERATURE} if cfg.evaluation == "simulator" else set())
    if cfg.evaluation != "simulator":
        return {"fqe": estimates, "ips": by_propensities, "user_model": estimated}[cfg.evaluation](cfg)
    return _of_agent(cfg) if cfg.checkpoint is None else _of_checkpoint(cfg)


def _of_agent(cfg: DictConfig) -> Product:
    target = get_object(cfg.agent["_target_"])
    if hasattr(target, "update"):
        raise UserError(f"checkpoint: agent={cfg.agent.name} learns, so evaluating it needs checkpoint=<path>")
    by_ranker = "ranker" in parameters_of(target) and cfg.agent.get("slate") is None  # it decodes latent 0
    inputs = agent_inputs(cfg) if by_ranker else {}
    spec = {"agent": settings_of(cfg.agent), **(ranker_spec(cfg, inputs) if inputs else {})}
    spec.pop("temperature", None)  # it shows the slate of the argmax
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
    state, served = at_temperature(cfg, checkpoints.load(file, "agent"), given)
    config, step = state["config"], state["learner"]["step"]
    if not simulates(config["env"]) and "env" not in given:
        instead = "use evaluation=user_model dataset=log dataset.path=<file>"
        raise UserError(f"checkpoint={file}: learned from a log, which no simulator knows; {instead}")
    node = env_node(cfg, config["env"], given)
    spec, items = env_spec_elsewhere(cfg, node, config)
    seed = cfg.seed if "seed" in given else config["evaluation"]["seed"]
    users = cfg.test_users if "test_users" in given else config["evaluation"]["test_users"]
    content, agent = fingerprint_of(file), config["agent"]["name"]
    name = f"{agent}-step{step}{''.join(f'-{key}{value:g}' for key, value in served.items())}-seed{seed}"
    run = _run(cfg, node["name"], name, {"checkpoint": content, "env": spec, "seed": seed, "users": users, **served})

    def begin() -> Make:
        device = resolve_device(cfg.device)
        env = build_env(node, device, **items)
        policy = policy_of(state, file, device, env).policy

        def make() -> dict[str, Any]:
            about = {"checkpoint": str(file.resolve()), "checkpoint_sha256": content, **served}
            return {"agent": agent, "step": step, **about, **_test(policy, env, seed, users)}

        return make

    return Product(run, cfg, begin, show=_show)


def _run(cfg: DictConfig, env: str, name: str, spec: dict[str, Any]) -> Run:
    spec = {**spec, **precision_spec(cfg)}
    return Run(Path(cfg.paths.root), "evaluate", env, name, spec, products=("result.json",))


def _test(policy: Policy, env: Env, seed: int, users: int) -> dict[str, Any]:
    tested = evaluate_both(policy, env, users, seed, "test", "test_")
    about = {"item_embeddings": env.fingerprint, "device": str(env.device)}
    return {"seed": seed, "test_users": users, **tested, **anchors(env, users, seed), **about}


def _show(run: Run) -> None:
    result = run.result()
    label = f"step {result['step']:,}" if "checkpoint" in result else result["agent"]
    users = f"{result['test_users']} test users of seed {result['seed']}"
    show_result(f"{result['agent']} on {result['env']}, {users}", label, result)
