"""Start the training of an agent from another agent's checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from slaterl.agents.base import Agent, LatentAgent
from slaterl.beliefs.base import shares_beliefs
from slaterl.errors import UserError

BOX = ("ranker.center", "ranker.half_width")


def start_from(agent: Agent, state: dict[str, Any], source: str) -> None:
    """Copy a checkpoint's networks into an untrained agent: policy, critics, their beliefs and targets.

    Networks that the checkpoint lacks stay untrained, for example the critics after behaviour cloning.

    Args:
        agent: the agent to start.
        state: content of another agent's checkpoint.
        source: its file, for messages.

    Raises:
        UserError: the checkpoint has no policy of this kind, or its networks have another size.
    """
    own, given = agent.state_dict(), state["learner"]["module"]
    name = state["config"]["agent"]["name"]
    networks = {key for key in own if not key.startswith("ranker.")}
    if not any(key.startswith("actor.") for key in networks & set(given)):
        raise UserError(f"init_from={source}: agent={name} has no policy that this agent can start from")
    if "vae" in _parts(given) - _parts(own):
        raise UserError(
            f"init_from={source}: the policy of agent={name} acts through its VAE, which no online agent has; "
            "start from another agent, such as td3_bc or cal_ql"
        )
    if "flow" in _parts(given) - _parts(own):
        raise UserError(
            f"init_from={source}: the policy of agent={name} makes actions from noise; use agent=fql_online to go on"
        )
    if "flow" in _parts(own) - _parts(given):
        raise UserError(f"init_from={source}: agent=fql_online goes on from agent=fql only, not from agent={name}")
    if isinstance(agent, LatentAgent) and _shape(given, "ranker.center") == _shape(own, "ranker.center"):
        there, here = (_gives(where, agent.ranker.action_dim) for where in (given, own))
        if there != here and _shape(given, "actor.0.weight")[1:] == _shape(own, "actor.0.weight")[1:]:
            fitting = "td3" if there == "actions" else "sac"
            raise UserError(
                f"init_from={source}: the policy of agent={name} returns {there}, but this agent needs {here}; "
                f"agent={fitting} can start from it"
            )
    if state["config"]["belief"].get("shared", False) != shares_beliefs(agent):
        raise UserError(f"init_from={source}: agent={name} has another belief.shared; give the same")
    shared = {part for part in _parts(networks) if part in _parts(given)}
    for key in sorted(key for key in networks | set(given) if key.split(".")[0] in shared):
        shapes = [list(where[key].shape) if key in where else None for where in (given, own)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"init_from={source}: {key} is {shapes[0]} there, but {shapes[1]} here; give the settings of "
                f"that agent={name} (agent.q_hidden, agent.pi_hidden, agent.num_critics, "
                f"agent.layer_norm, belief.hidden_dim, ranker)"
            )
    agent.load_state_dict(own | {key: given[key] for key in networks & set(given)})


def act_in_its_box(agent: Agent, state: dict[str, Any], source: str) -> None:
    """Give an agent the action box of a checkpoint, because its policy's actions in [-1, 1] mean nothing in another.

    Raises:
        UserError: the rankers differ in more than the box, which offline agents fit to their data.
    """
    given = state["learner"]["module"]
    for key, value in agent.state_dict().items():
        if key in BOX and key in given and given[key].shape == value.shape:
            value.copy_(given[key])
        elif key.startswith("ranker.") and not (key in given and torch.equal(given[key].to(value.device), value)):
            raise UserError(
                f"init_from={source}: its agent acts through another ranker; give that ranker's settings and seed"
            )
    unique = state["config"]["ranker"].get("unique")  # None with wolpertinger, which makes its own ranker
    if unique is not None and isinstance(agent, LatentAgent) and agent.ranker.unique != unique:
        raise UserError(f"init_from={source}: it learned with ranker.unique={str(unique).lower()}; set the same value")


def _shape(state: Mapping[str, Tensor], key: str) -> list[int]:
    return list(state[key].shape) if key in state else []


def _gives(state: Mapping[str, Tensor], action_dim: int) -> str:
    """Describe the outputs of the policy in a state dict."""
    outputs = len([value for key, value in state.items() if key.startswith("actor.")][-1])
    return "actions" if outputs == action_dim else "means and deviations"


def _parts(keys: Iterable[str]) -> set[str]:
    return {key.split(".")[0] for key in keys}
