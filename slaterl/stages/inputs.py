"""What an agent needs made before it: its pretrained ranker, or the item embeddings that it compares items by."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from slaterl.config.build import compares_items, settings_of
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.rankers.gems import GeMS
from slaterl.runs.files import fingerprint_of
from slaterl.runs.run import Run
from slaterl.stages.mf import item_factors, mf, mf_run
from slaterl.stages.pretrain import pretrain, ranker_run
from slaterl.training import checkpoints


def inputs_of(cfg: DictConfig, env: TopicRec, agent: Any) -> dict[str, Run]:
    """The runs that an agent starts from, made or not, by what they give it.

    Raises:
        UserError: nothing of the agent can take the factors of item_embeddings=mf.
    """
    if isinstance(getattr(agent, "ranker", None), GeMS):
        return {"ranker": ranker_run(cfg, env)}
    if compares_items(cfg) and cfg.item_embeddings.name == "mf":
        if not hasattr(_that_compares(agent), "set_items"):
            name = type(_that_compares(agent)).__name__
            raise UserError(f"item_embeddings=mf: {name} has no method set_items that would take them; use ideal")
        return {"item_embeddings": mf_run(cfg, env)}
    return {}


def ranker_spec(cfg: DictConfig, agent: Any, inputs: dict[str, Run]) -> dict[str, Any]:
    """All of the ranker and its item embeddings that determines an agent."""
    spec: dict[str, Any] = {name: run.digest for name, run in inputs.items()}
    if "item_embeddings" not in inputs and compares_items(cfg):
        spec["item_embeddings"] = settings_of(cfg.item_embeddings)
    ranker = getattr(agent, "ranker", None)
    if ranker is not None:
        spec["unique"] = ranker.unique
        if "_target_" in cfg.ranker:  # else the agent made its own
            spec.setdefault("ranker", settings_of(cfg.ranker))
    return spec


def make_inputs(cfg: DictConfig, agent: Any, inputs: dict[str, Run]) -> None:
    """Find or make them, and give them to the agent."""
    if "ranker" in inputs:
        pretrain(cfg)
        state = checkpoints.load(inputs["ranker"].path / "ranker.ckpt", "ranker")
        agent.ranker.load_state_dict(state["module"])
    elif "item_embeddings" in inputs:
        mf(cfg)
        _that_compares(agent).set_items(item_factors(inputs["item_embeddings"]))


def _that_compares(agent: Any) -> Any:
    """Who compares items: the agent's ranker, or an agent without one itself."""
    return getattr(agent, "ranker", agent)


def provenance(inputs: dict[str, Run]) -> dict[str, str]:
    """Which files made an agent, as flat entries of its result."""
    found: dict[str, str] = {}
    for name, run in inputs.items():
        kind, file = ("ranker", "ranker.ckpt") if name == "ranker" else ("mf", "items.ckpt")
        found[f"{kind}_run"] = run.digest
        found[f"{kind}_sha256"] = fingerprint_of(run.path / file)
        found["logged_data_checksum"] = run.result()["logged_data_checksum"]
    return found
