"""The search for the best constant slate as an agent: where the best one is known, by hand, and as a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slaterl.agents.loading import load_policy
from slaterl.agents.online.best_constant_slate import BestConstantSlate, children_of
from slaterl.agents.online.collecting import OnlineData
from slaterl.data.trajectories import Trajectories
from slaterl.envs.env import Env
from slaterl.rollout import rollout
from slaterl.run import run_stage
from slaterl.seeds import stream
from tests.agents.test_contract import SMALL, Stopped, outcome, same
from tests.evaluation.test_constant_slate import GOOD, Locks
from tests.helpers import compose_config, tiny_env


def searching(env: Env, seed: int = 1, **changes: Any) -> BestConstantSlate:
    settings: dict[str, Any] = dict(candidates=50, parents=10, users=2, doubt=4.0) | changes
    sizes = dict(num_items=env.num_items, slate_size=env.slate_size, generator=stream(seed, "agent"))
    return BestConstantSlate(**sizes, **settings)


def search(env: Env, steps: int, seed: int = 1, **changes: Any) -> BestConstantSlate:
    """Search with that many users, in rounds of 100 and batches of 50."""
    agent = searching(env, seed, **changes)
    streams = {name: stream(seed, name) for name in ("users", "exploration", "batches")}
    sizes = dict(max_steps=steps, random_steps=0, num_envs=100, batch_size=50, capacity=100)
    data = OnlineData(env, agent, **sizes, **streams)
    for number, batch in enumerate(data.train_dataloader()):
        agent.training_step(batch, number)
    assert agent.step == data.trajectories == steps
    return agent


def shown_with(slates: list[list[int]], rewards: list[float]) -> Trajectories:
    """Sessions of two turns, in which the second turn pays nothing."""
    frames = torch.tensor(slates).unsqueeze(1).repeat(1, 3, 1)
    reward = torch.tensor(rewards).unsqueeze(1) * torch.tensor([1.0, 0.0])
    return Trajectories(slates=frames, clicks=torch.zeros_like(frames, dtype=torch.uint8), reward=reward)


def test_finds_the_best_slate_and_shows_it_to_everybody() -> None:
    """One of 8,000 slates, by 3,000 children; a tenth of the users click nothing."""
    env = Locks(awake=0.9)
    agent = search(env, 7500)
    data = rollout(agent.policy(), env, 30, generator=stream(0, "users"), deterministic=True)
    assert (data.slates[:, 1:] == torch.tensor(GOOD)).all()


def test_every_user_of_the_training_counts_once() -> None:
    env = Locks()
    agent = searching(env, users=3)
    served = rollout(agent.policy(stream(0, "ties")), env, 149, generator=stream(0, "users"), deterministic=False)
    agent.step = 149  # a generation takes 150
    terms = agent.update(served)
    assert agent.counts.sum() == 149 and agent.sums.sum() == served.returns.sum()
    assert agent.counts.unique().tolist() == [2, 3], "all candidates meet equally many users"
    assert terms["search/generation"] == 0 and terms["value/best"] == agent.values().max()


def test_a_user_sees_one_candidate() -> None:
    env = Locks(turns=4)
    agent = searching(env)
    policy = agent.policy(stream(0, "ties"))
    first, second = (rollout(policy, env, 20, generator=stream(0, "u"), deterministic=False).slates for _ in range(2))
    for slates in (first, second):
        assert (slates[:, 1:] == slates[:, 1:2]).all()
        assert len(slates[:, 1].unique(dim=0)) == 20
    assert not torch.equal(first, second)


def test_those_with_the_fewest_users_come_first() -> None:
    agent = searching(Locks(), candidates=4, parents=1)
    agent.counts.copy_(torch.tensor([2.0, 0, 1, 3]))
    assert torch.equal(agent.drawn(5, stream(0, "ties")), agent.slates[[1, 2, 0, 3, 1]])


def test_values_and_the_next_generation_by_hand() -> None:
    agent = searching(Locks(), candidates=3, parents=2, users=2, doubt=4.0)
    agent.slates.copy_(torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]]))
    agent.step = 4
    agent.update(shown_with([[1, 2, 3], [7, 8, 9], [1, 2, 3], [9, 9, 9]], [6.0, 3.0, 3.0, 99.0]))
    assert agent.sums.tolist() == [9, 0, 3] and agent.counts.tolist() == [2, 0, 1], "nobody was shown 9, 9, 9"
    # the mean return is 4: (9 + 4 * 4) / (2 + 4), 4, (3 + 4 * 4) / (1 + 4)
    assert agent.values().tolist() == pytest.approx([25 / 6, 4.0, 19 / 5])
    assert agent.best().tolist() == [[1, 2, 3]]
    agent.step = 6  # the generation ends
    terms = agent.update(shown_with([[7, 8, 9], [4, 5, 6]], [9.0, 1.0]))
    assert terms["search/generation"] == 1
    assert agent.slates[:2].tolist() == [[7, 8, 9], [1, 2, 3]]
    assert agent.sums.tolist() == [12, 9, 0] and agent.counts.tolist() == [2, 2, 0]


def test_children_mix_two_parents_and_get_one_new_item() -> None:
    parents = torch.arange(20).view(4, 5)
    children = children_of(parents, 500, 1_000_000, stream(0, "children"))
    inherited = (children.unsqueeze(1) == parents).any(1)  # [500, 5]
    assert ((~inherited).sum(1) <= 1).all() and (~inherited).any(1).float().mean() > 0.95
    assert all((~inherited)[:, slot].any() for slot in range(5))
    of = (children.unsqueeze(1) == parents).any(2).sum(1)  # parents of each child
    assert of.unique().tolist() == [1, 2]


def test_the_seed_determines_the_search() -> None:
    one, again, other = (search(tiny_env(), 400, seed) for seed in (1, 1, 2))
    assert torch.equal(one.slates, again.slates) and torch.equal(one.sums, again.sums)
    assert not torch.equal(one.best(), other.best())


SMALL_SEARCH = [*SMALL, "agent=best_constant_slate", "agent.candidates=4", "agent.parents=2", "agent.users=2"]


def test_a_run_counts_its_users_and_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped in the middle of a round and of a generation."""

    def folder(root: str) -> Path:
        (found,) = (file.parent for file in tmp_path.glob(f"{root}/online/*/best_constant_slate-seed*/last.ckpt"))
        return found

    run_stage(compose_config(*SMALL_SEARCH, f"paths.root={tmp_path}/through"))
    result, rows, last = outcome(folder("through"))
    assert result["steps"] == result["trajectories"] == 34 and result["turns"] == 34 * 7
    assert result["belief"] == "gru" and result["test_distinct_items"] <= 4
    assert [row["search/generation"] for row in rows if row["search/generation"]][-1] == "4"
    assert last["learner"]["optimizers"] == {}

    update, calls = BestConstantSlate.update, []

    def stopping(self: BestConstantSlate, batch: Trajectories) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == 8:
            raise Stopped
        return update(self, batch)

    monkeypatch.setattr(BestConstantSlate, "update", stopping)
    with pytest.raises(Stopped):
        run_stage(compose_config(*SMALL_SEARCH, f"paths.root={tmp_path}/stopped"))
    monkeypatch.setattr(BestConstantSlate, "update", update)
    run_stage(compose_config(*SMALL_SEARCH, f"paths.root={tmp_path}/stopped"))
    assert same(outcome(folder("stopped")), (result, rows, last))

    loaded = load_policy(folder("through") / "best.ckpt")
    data = rollout(loaded.policy, loaded.env, 9, generator=stream(3, "users"), deterministic=True)
    assert len(data.slates[:, 1:].flatten(0, 1).unique(dim=0)) == 1, "one slate for all users in all turns"
