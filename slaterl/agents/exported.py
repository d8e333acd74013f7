"""Policies as files that act without slaterl: a graph of torch.export, also as ONNX, and what a caller must know."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from slaterl.agents.base import Agent
from slaterl.envs.observation import Observation
from slaterl.errors import UserError
from slaterl.runs.files import in_short, whole_file

INPUTS, OUTPUTS = ("slate", "clicks", "memory"), ("next_slate", "next_memory")
USERS = 3  # in the recording; any number but 0 and 1, which torch.export takes for constants


class Step(nn.Module):
    """One turn of an agent without exploration, as a function of tensors alone.

    Args:
        agent: reads frames, not the simulator's hidden state, and keeps no plans.
    """

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent = agent

    def initial_memory(self, num_users: int) -> Tensor:
        """Return the memories [B, M] of users who have seen nothing."""
        return self.agent.acting_belief.initial_state(num_users)

    @torch.no_grad()
    def forward(self, slate: Tensor, clicks: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Read the last slates [B, S] int64 with their clicks [B, S] bool. Returns the next slates and the memories."""
        belief, observation = self.agent.acting_belief, Observation(slate, clicks)
        memory = belief.step(observation, memory)
        return self.agent.decide(belief.state_of(memory), observation, None).slate, memory


def refuse_plans(agent: Agent, source: str | Path) -> None:
    """Refuse an agent whose policy keeps more than the memory of its belief.

    Args:
        source: see `record`.
    """
    if agent.KEEPS_PLANS:
        raise UserError(f"{source}: {type(agent).__name__} keeps plans between turns, which a file does not")


def record(agent: Agent, slate_size: int, source: str | Path) -> ExportedProgram:
    """Record one turn of an agent on the CPU, for any number of users.

    The agent is recorded twice. The first graph says which weights acting reads. The second one is without the others,
    such as critics and targets.

    Args:
        source: file of the agent's checkpoint, for messages.

    Raises:
        UserError: torch.export cannot record it.
    """
    step = Step(copy.deepcopy(agent).requires_grad_(False))
    memory = step.initial_memory(USERS).clone()
    shape = (USERS, slate_size)
    example = (torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool), memory)
    users = {0: Dim("users")}
    try:
        with _quiet(), torch.no_grad():
            for _ in range(2):
                program = torch.export.export(step, example, dynamic_shapes=(users,) * 3, strict=False)
                _drop_unread(step, program)
    except Exception as error:  # whatever the agent's code raises when its tensors are symbols
        raise UserError(f"{source}: torch.export cannot record {type(agent).__name__} ({in_short(error)})") from error
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it has the paths of this machine
    return program


def _drop_unread(step: Step, program: ExportedProgram) -> None:
    """Remove the parameters and buffers that a recorded graph does not read."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names and not node.users:
            owner, _, name = names[node.name].rpartition(".")
            delattr(step.get_submodule(owner), name)


def save(program: ExportedProgram, path: Path) -> None:
    """Write a recorded policy for `torch.export.load`, whole or not at all."""
    with whole_file(path) as partial, open(partial, "wb") as file:
        torch.export.save(program, file)


def save_onnx(program: ExportedProgram, path: Path, source: str | Path) -> None:
    """Write a recorded policy as ONNX, whole or not at all. It needs onnx and onnxscript.

    Raises:
        UserError: ONNX lacks an operation of the policy, or the file cannot be written.
    """
    with _quiet():
        try:
            found = torch.onnx.export(program, dynamo=True, input_names=INPUTS, output_names=OUTPUTS, verbose=False)
        except Exception as error:
            raise UserError(f"{source}: ONNX has no form of this policy ({in_short(error)})") from error
        assert found is not None
        with whole_file(path) as partial:
            found.save(str(partial))


def about(agent: Agent, num_items: int, first_slate: Tensor) -> dict[str, Any]:
    """Return what a caller of the recorded policy must know, as plain values."""
    return {
        "num_items": num_items,
        "slate_size": len(first_slate),
        "first_slate": first_slate.tolist(),
        "initial_memory": agent.acting_belief.initial_state(1)[0].tolist(),
        "inputs": {"slate": "[B, S] int64", "clicks": "[B, S] bool", "memory": "[B, M] float32"},
        "outputs": {"next_slate": "[B, S] int64", "next_memory": "[B, M] float32"},
        "torch": torch.__version__,
    }


@torch.no_grad()
def agreement(agent: Agent, path: Path, first_slate: Tensor, users: int, turns: int) -> float:
    """Return the share of slates that the policy in a file shows as the agent does, when clicks are drawn at random."""
    own, recorded = Step(agent), torch.export.load(path).module()
    generator = torch.Generator().manual_seed(0)
    slate, memory = first_slate.expand(users, -1), own.initial_memory(users)
    theirs, same = memory.clone(), 0
    for _ in range(turns):
        clicks = torch.rand(slate.shape, generator=generator) < 0.3
        other, theirs = recorded(slate, clicks, theirs)
        slate, memory = own(slate, clicks, memory)
        same += int((other == slate).all(1).sum())
    return same / (users * turns)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch's exporters warn of and log, which is about their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
