"""Shared by stage=online and stage=offline: an agent's product, its training, and the test of its best checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from slaterl.agents.base import Agent
from slaterl.agents.loading import LoadedPolicy, load_policy
from slaterl.beliefs.base import shares_beliefs
from slaterl.config.build import (
    AGENT_NODES,
    build_agent,
    compares_items,
    env_spec,
    parameters_of,
    plain,
    precision_spec,
    ranker_settings,
    settings_of,
    simulator,
)
from slaterl.config.fits import is_gems
from slaterl.console import note, with_interval
from slaterl.envs.env import Env
from slaterl.errors import UserError
from slaterl.evaluation.constant_slate import tested_constant_slate
from slaterl.evaluation.evaluate import anchors, evaluate_both, explores
from slaterl.evaluation.show import show_result
from slaterl.runs.files import fingerprint_of
from slaterl.runs.products import Product, product_of
from slaterl.runs.run import Run
from slaterl.training import checkpoints
from slaterl.training.curves import plot_curves
from slaterl.training.fit import Data, Schedule, fit
from slaterl.training.loggers import make_loggers

LAST = "val/step"  # the score of offline.validation=none: the last checkpoint is the best

Test = Callable[[LoadedPolicy], dict[str, Any]]


def agent_inputs(cfg: DictConfig) -> dict[str, Product]:
    """Return the inputs of an agent: its pretrained ranker, or the item embeddings of item_embeddings=mf."""
    if _takes_ranker(cfg) and is_gems(cfg):
        return {"ranker": product_of(cfg, "pretrain")}
    if compares_items(cfg) and cfg.item_embeddings.name == "mf":
        return {"item_embeddings": product_of(cfg, "mf")}
    return {}


def ranker_spec(cfg: DictConfig, inputs: Mapping[str, Product]) -> dict[str, Any]:
    """Return everything about the ranker and its item embeddings that determines an agent."""
    spec: dict[str, Any] = {name: product.run.digest for name, product in inputs.items()}
    if "item_embeddings" not in inputs and compares_items(cfg):
        spec["item_embeddings"] = settings_of(cfg.item_embeddings)
    if _takes_ranker(cfg):
        spec["unique"] = cfg.ranker.get("unique", False)
        spec |= {"temperature": cfg.ranker.temperature} if cfg.ranker.get("temperature") else {}
        spec.setdefault("ranker", ranker_settings(cfg.ranker))
    elif getattr(get_object(cfg.agent["_target_"]), "REFINES", False):
        spec["unique"] = False  # it makes its own ranker
    return spec


def agent_run(cfg: DictConfig, stage: str, name: str, inputs: Mapping[str, Product], before: Mapping[str, Any]) -> Run:
    """Return the run of an agent.

    Args:
        name: added to the readable name, between the agent and the seed.
        before: what else determines the agent, in addition to its nodes, ranker, environment and seed.
    """
    parts = [cfg.agent.name]
    parts += [cfg.ranker.name] if "_target_" in cfg.ranker else []
    parts += [cfg.item_embeddings.name] if compares_items(cfg) else []
    parts += [{"none": "oracle-state"}.get(cfg.belief.name, cfg.belief.name)] if cfg.belief.name != "gru" else []
    parts += [name] if name else []
    spec = {
        "env": env_spec(cfg.env),
        "agent": _learner_spec(cfg.agent, stage),
        "belief": _belief_spec(cfg.belief),
        **ranker_spec(cfg, inputs),
        **before,
        **precision_spec(cfg),
        "seed": cfg.seed,
    }
    full_name = "-".join([*parts, f"seed{cfg.seed}"])
    return Run(Path(cfg.paths.root), stage, cfg.env.name, full_name, spec, products=("result.json", "best.ckpt"))


def _belief_spec(node: DictConfig) -> dict[str, Any]:
    """Return a belief's settings. shared=false adds nothing, so that older runs keep their names."""
    return {key: value for key, value in settings_of(node).items() if not (key == "shared" and value is False)}


def _learner_spec(node: DictConfig, stage: str) -> dict[str, Any]:
    """Return an agent's settings. Online, layer_norm=false adds nothing, so that older runs keep their names."""
    settings = settings_of(node)
    older = stage == "online" and settings.get("layer_norm") is False
    return {key: value for key, value in settings.items() if not (older and key == "layer_norm")}


def begin_agent(cfg: DictConfig, inputs: Mapping[str, Product]) -> tuple[Env, Any]:
    """Build the simulator and the untrained agent.

    Raises:
        UserError: the agent cannot use the given item embeddings, or has no two beliefs to share one.
    """
    env = simulator(cfg)
    agent = build_agent(nodes_of(cfg), env, cfg.seed)
    if cfg.belief.get("shared") and not (isinstance(agent, Agent) and shares_beliefs(agent)):
        raise UserError(f"belief.shared=true: agent={cfg.agent.name} has no belief for critics; leave it out")
    if "item_embeddings" in inputs and not hasattr(_that_compares(agent), "set_items"):
        name = type(_that_compares(agent)).__name__
        raise UserError(f"item_embeddings=mf: {name} has no method set_items to load them; use ideal")
    return env, agent


def nodes_of(cfg: DictConfig) -> dict[str, Any]:
    """Return the nodes that an agent's checkpoint holds."""
    return {name: plain(cfg[name]) for name in ("env", *AGENT_NODES)}


def give_inputs(agent: Any, inputs: Mapping[str, Product]) -> None:
    """Load finished inputs into an agent."""
    if "ranker" in inputs:
        state = checkpoints.load(inputs["ranker"].run.path / "ranker.ckpt", "ranker")
        agent.ranker.load_state_dict(state["module"])
    if "item_embeddings" in inputs:
        items = checkpoints.load(inputs["item_embeddings"].run.path / "items.ckpt", "items")
        _that_compares(agent).set_items(items["item_embeddings"])


def provenance(inputs: Mapping[str, Product]) -> dict[str, str]:
    """Return the files that an agent started from, as flat entries of its result."""
    found: dict[str, str] = {}
    for name, product in inputs.items():
        kind, file = ("ranker", "ranker.ckpt") if name == "ranker" else ("mf", "items.ckpt")
        found[f"{kind}_run"] = product.run.digest
        found[f"{kind}_sha256"] = fingerprint_of(product.run.path / file)
        found["logged_data_checksum"] = product.run.result()["logged_data_checksum"]
    return found


def train(
    cfg: DictConfig,
    run: Run,
    env: Env,
    agent: Agent,
    data: Data,
    schedule: Schedule,
    users: int,
    validate: Callable[[], dict[str, float]],
    validated: Sequence[str],
    test: Test,
    item_ids: Sequence[int] | Sequence[str] | None = None,
) -> dict[str, Any]:
    """Fit an agent, test its best checkpoint and draw its curves. Returns the entries of the result.

    Args:
        users: number of test users.
        validated: names of the metrics that `validate` returns.
        test: measures the best checkpoint: test_users, test_return, test_interval and more.
        item_ids: a log's own ids, for the checkpoints; None without a log.
    """
    catalogue, protocol = env.catalogue(), {"seed": cfg.seed, "test_users": users}
    ids = {} if item_ids is None else {"item_ids": list(item_ids)}
    # both scores are one if the agent does not explore
    by_sampled = cfg.validation.by == "sampled" and "val/return_sampled" in validated
    outcome = fit(
        agent,
        data,
        folder=run.path,
        kind="agent",
        config={**nodes_of(cfg), "catalogue": catalogue, "evaluation": protocol, **ids},
        schedule=schedule,
        validate=validate,
        validated=validated,
        score=LAST if LAST in validated else "val/return_sampled" if by_sampled else "val/return",
        maximise=True,
        loggers=make_loggers(cfg, run),
        title=f"{cfg.agent.name} on {env.name}",
    )
    best = load_policy(run.path / "best.ckpt", env.device)
    measured = [name for name in ("val/return",) if name in validated]
    plot_curves(run.path / "curves.png", run.path / "metrics.csv", [*measured, *data.measures, *agent.TERMS])
    return {
        "agent": cfg.agent.name,
        "ranker": cfg.ranker.name,
        "belief": cfg.belief.name,
        "compared_by": cfg.item_embeddings.name if compares_items(cfg) else None,
        "seed": cfg.seed,
        "ranker_seed": cfg.ranker_seed,
        # a run of an older version that is resumed has no record of its best validation
        "val_return": None if LAST in validated else outcome["best_metrics"].get("val/return", outcome["best_score"]),
        **({"val_return_sampled": outcome["best_metrics"].get("val/return_sampled")} if explores(best.policy) else {}),
        "best_step": outcome["best_step"],
        **test(best),
        "steps": agent.step,
        **data.counters,
        "item_embeddings": env.fingerprint,
        "device": str(env.device),
        "seconds": outcome["seconds"],
    }


def in_simulator(env: Env, users: int, seed: int, constant_slate_users: int | None = None) -> Test:
    """Return a test on the simulator's test users, next to random slates and, if it exists, the short-term oracle.

    Args:
        constant_slate_users: users per slate in the search for the best constant slate, which is tested, too. None
            leaves it out. It is no part of a run's name, because the agent stays the same.
    """

    def test(best: LoadedPolicy) -> dict[str, Any]:
        tested = evaluate_both(best.policy, env, users, seed, "test", "test_")
        found: dict[str, Any] = {"test_users": users, **tested, **anchors(env, users, seed)}
        if constant_slate_users is None:
            return found
        slate, reached = tested_constant_slate(env, constant_slate_users, users, seed)
        return {**found, "best_constant_slate": slate, **reached.named("best_constant_")}

    return test


def show_agent(run: Run) -> None:
    """Show the table at the end of a run."""
    result = run.result()
    parts = [part for part in (result["agent"], result["ranker"], result["compared_by"]) if part and part != "none"]
    title = f"{' + '.join(parts)} on {result['env']}, seed {result['seed']}"
    if result["test_users"] is None:
        if result["test_return"] is None:
            note(f"{title}: the last checkpoint (step {result['best_step']:,}), not tested: offline.validation=none")
            return
        shown = with_interval(result["test_return"], result["test_interval"])
        by = "the user model" if "test_members" in result else "fitted Q evaluation"
        note(f"{title}: best (step {result['best_step']:,}) by {by}: {shown}")
        if result.get("test_warning"):
            note(f"warning: {result['test_warning']}")
        return
    show_result(title, f"best (step {result['best_step']:,})", result)
    served = f"{result['trajectories']:,} users in {result['turns']:,} turns and " if "turns" in result else ""
    note(f"{result['test_users']} test users; trained with {served}{result['updates']:,} updates")


def _takes_ranker(cfg: DictConfig) -> bool:
    """Whether the agent acts through the configured ranker."""
    return "_target_" in cfg.ranker and "ranker" in parameters_of(get_object(cfg.agent["_target_"]))


def _that_compares(agent: Any) -> Any:
    """Return the part that compares items: the agent's ranker, or the agent itself if it has none."""
    return getattr(agent, "ranker", agent)
