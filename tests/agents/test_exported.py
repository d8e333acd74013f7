"""Exported policies act like slaterl's own: every agent, every ranker, every belief."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import get_object
from torch import Tensor

from slaterl.agents import exported
from slaterl.agents.base import Agent, BeliefPolicy
from slaterl.agents.online.best_constant_slate import BestConstantSlate
from slaterl.envs.observation import Observation
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.rollout import Decision, rollout
from slaterl.seeds import stream
from tests.agents.test_contract import BELIEFS, PAIRS, RANKERS, SHARED, build, settings
from tests.helpers import tiny_env, tiny_sac

AGENTS = {agent: ranker and "top_k" for agent, ranker in PAIRS}  # each once
KEEPS_PLANS = {
    agent: get_object(settings(agent, ranker).agent["_target_"]).KEEPS_PLANS for agent, ranker in AGENTS.items()
}
CASES = [
    *((agent, ranker, "") for agent, ranker in AGENTS.items() if agent != "slateq" and not KEEPS_PLANS[agent]),
    *(("sac", ranker, "") for ranker in RANKERS if ranker != "top_k"),
    ("td3_bc", "gems", "ranker.unique=true"),
    *(("sac", "top_k", belief) for belief in BELIEFS),
    ("bcq", "top_k", "belief=transformer"),  # joins two beliefs
    ("sac", "top_k", SHARED[0][1]),
    ("dqn", None, "belief=lru"),
    ("slate_bc", None, "agent.unique=true"),
]


class Served:
    """The exported policy, as a policy of rollout."""

    def __init__(self, path: Path, memory: Tensor) -> None:
        self.policy, self.initial = torch.export.load(path).module(), memory

    def reset(self, num_users: int) -> None:
        self.memory = self.initial.expand(num_users, -1)

    def act(self, observation: Observation, deterministic: bool) -> Decision:
        slate, self.memory = self.policy(observation.slate, observation.clicks, self.memory)
        return Decision(slate)


def export(agent: Agent, env: TopicRec, folder: Path) -> Path:
    program = exported.record(agent, env.slate_size, "best.ckpt")
    exported.save(program, folder / "policy.pt2")
    return folder / "policy.pt2"


def check_serves_alike(agent: Agent, env: TopicRec, served: Served) -> None:
    """Serve one user and seven for an episode, with the same draws."""
    own = agent.policy()
    for users in (1, 7):
        runs = [rollout(p, env, users, generator=stream(5, "u"), deterministic=True) for p in (own, served)]
        assert torch.equal(runs[0].slates, runs[1].slates) and torch.equal(runs[0].clicks, runs[1].clicks)
        assert torch.allclose(own.memory, served.memory, atol=1e-5)
        if not isinstance(agent, BestConstantSlate):  # the others have read what each user saw and clicked
            assert len(served.memory.unique(dim=0)) > (users > 1)


@pytest.mark.parametrize(("agent_name", "ranker", "more"), CASES)
def test_same_slates(agent_name: str, ranker: str | None, more: str, tmp_path: Path) -> None:
    agent, env = build(settings(agent_name, ranker, *more.split()))
    kept = {name: value.clone() for name, value in agent.state_dict().items()}
    path = export(agent, env, tmp_path)
    about = exported.about(agent, env.num_items, env.first_slate)
    check_serves_alike(agent, env, Served(path, torch.tensor([about["initial_memory"]])))
    assert exported.agreement(agent, path, env.first_slate, users=4, turns=3) == 1
    assert kept.keys() == agent.state_dict().keys()  # the agent itself keeps its critics


def test_the_check_sees_another_policy(tmp_path: Path) -> None:
    env = tiny_env()
    path = export(tiny_sac(), env, tmp_path)
    other = tiny_sac(seed=1)
    assert exported.agreement(other, path, env.first_slate, users=20, turns=3) < 1
    with pytest.raises(AssertionError):
        check_serves_alike(other, env, Served(path, tiny_sac().actor_belief.initial_state(1)))


def test_what_a_file_holds(tmp_path: Path) -> None:
    """Weights that acting reads and no others, and no path of the machine."""
    program = exported.record(tiny_sac(), 4, "best.ckpt")
    parts = {name.split(".")[1] for name in program.state_dict}
    assert parts == {"actor_belief", "actor", "ranker"}
    assert not any("encoder" in name for name in program.state_dict)  # of GeMS
    exported.save(program, tmp_path / "policy.pt2")
    assert str(Path(exported.__file__).parents[2]).encode() not in (tmp_path / "policy.pt2").read_bytes()


def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    for agent_name, ranker, more in (("sac", "gems", "belief=lru"), ("slate_bc", None, "belief=transformer")):
        agent, env = build(settings(agent_name, ranker, more))
        file = tmp_path / f"{agent_name}.onnx"
        exported.save_onnx(exported.record(agent, env.slate_size, "best.ckpt"), file, "best.ckpt")
        session = runtime.InferenceSession(file)

        class Onnx(Served):
            def __init__(self) -> None:
                self.initial, self.policy = agent.acting_belief.initial_state(1), self.run  # noqa: B023

            def run(self, *inputs: Tensor) -> list[Tensor]:
                arrays = {name: value.numpy() for name, value in zip(exported.INPUTS, inputs, strict=True)}
                return [torch.from_numpy(found) for found in session.run(None, arrays)]  # noqa: B023

        check_serves_alike(agent, env, Onnx())
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".onnx"]


def test_an_agent_with_plans() -> None:
    agent, _ = build(settings("decision_diffuser", "top_k"))
    with pytest.raises(
        UserError, match=r"^best.ckpt: DecisionDiffuser keeps plans between turns, which a file does not$"
    ):
        exported.refuse_plans(agent, "best.ckpt")


def test_an_agent_that_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = tiny_sac()
    monkeypatch.setattr(type(agent), "action", lambda self, state, generator: state if state.sum() > 0 else -state)
    with pytest.raises(UserError, match=r"^best.ckpt: torch.export cannot record SAC \(.+\)$"):
        exported.record(agent, 4, "best.ckpt")
    assert isinstance(agent.policy(), BeliefPolicy)
