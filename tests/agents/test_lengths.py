"""Contract of every agent and belief: sessions of different lengths, whose padding nothing reads.

A new file in conf/agent or conf/belief is tested at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from torch import Tensor
from torch.overrides import TorchFunctionMode

from slaterl.agents.base import Agent
from slaterl.agents.losses import bootstrap, complete_turns, continuing_turns, draw_turns, mean, percentile, valid_turns
from slaterl.agents.offline.base import OfflineAgent
from slaterl.agents.offline.bc import BC
from slaterl.beliefs.base import states_of
from slaterl.data.trajectories import Trajectories
from slaterl.envs.topic_rec import TopicRec
from slaterl.paths import CONF
from slaterl.seeds import stream
from tests.agents.test_contract import VARIANTS, WITH_BELIEFS, build, learners, same, serve, settings
from tests.agents.test_offline_agents import tiny
from tests.agents.test_sac import gradients
from tests.helpers import ITEMS, tiny_trajectories
from tests.meta import META, OnMeta, check_learns, to_meta

LENGTHS = [7, 3, 1, 5, 2, 4]
CUT = [False, True, False, True, True, False]
AGENTS = [(agent, "") for agent in learners() + learners(offline=True)] + VARIANTS
AGENTS += [one for one in WITH_BELIEFS if one[0] == "sac"]
OFFLINE = [one for one in AGENTS if one[0] in learners(offline=True)]  # rollouts are never truncated
agents = pytest.mark.parametrize(("agent", "more"), AGENTS)
BELIEFS = sorted(file.stem for file in (CONF / "belief").glob("*.yaml"))


def with_lengths(data: Trajectories, lengths: list[int] | int, truncated: list[bool] | bool = False) -> Trajectories:
    """Give trajectories lengths; `truncated` is left out if no session is."""
    count = len(data)
    lengths = [lengths] * count if isinstance(lengths, int) else lengths
    cut = torch.tensor([truncated] * count if isinstance(truncated, bool) else truncated)
    lengths_of = torch.tensor(lengths, dtype=torch.int32)
    return dataclasses.replace(data, lengths=lengths_of, truncated=cut if cut.any() else None)


def garbled(data: Trajectories, num_items: int, seed: int) -> Trajectories:
    """Write anything into the padding of every column."""
    generator, mask, columns = stream(seed, "garbage"), data.mask, data.columns()
    frames = torch.cat([torch.ones(len(data), 1, dtype=torch.bool), mask], dim=1)
    for name in sorted(set(columns) - {"policy_id", "lengths", "truncated"}):
        column = columns[name].clone()
        there = frames if name in ("slates", "clicks") else mask
        high = {"slates": num_items, "clicks": 2}.get(name)
        shape = column[~there].shape
        if high is None:
            garbage = 2 * torch.rand(shape, generator=generator) - 1
        else:
            garbage = torch.randint(high, shape, generator=generator)
        column[~there] = garbage.to(column.dtype)
        columns[name] = column
    return Trajectories.from_columns(columns)


def cut(data: Trajectories, turns: int) -> Trajectories:
    """The first turns of every trajectory, without padding."""
    fields = {n: c if n in ("policy_id", "truncated") else c[:, : turns + (n in ("slates", "clicks"))]
              for n, c in data.columns().items() if n != "lengths"}  # fmt: skip
    return Trajectories.from_columns(fields)


class PrefixDraws(TorchFunctionMode):
    """Draws whose first turns do not depend on how many turns there are."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (torch.rand, torch.randn, torch.randperm):
            return func(*args, **(kwargs or {}))
        self.calls += 1
        generator = torch.Generator().manual_seed(self.calls)
        if func is torch.randperm:
            order = torch.randperm(64, generator=generator)
            return order[order < args[0]]
        shape = args if isinstance(args[0], int) else args[0]
        drawn = func([-(-size // 16) * 16 for size in shape], generator=generator)
        return drawn[tuple(slice(size) for size in shape)].contiguous()


def learned(agent: str, more: str, data: Callable[[Agent, TopicRec], Trajectories]) -> tuple[Agent, dict[str, Tensor]]:
    """Build an agent, prepare it and update it once on the same trajectories. Return it and its terms."""
    built, env = build(settings(agent, None, *more.split()))
    batch = data(built, env)
    if built.LEARNS_FROM == "dataset":
        if isinstance(built, OfflineAgent):  # labels that are read back from the slates
            batch = dataclasses.replace(batch, actions=None)
        batch = built.prepare(batch)
    built.step = 2
    return built, built.update(batch)


def served(built: Agent, env: TopicRec) -> Trajectories:
    return serve(built, env, explore=0 if built.stochastic else None)


def close(one: tuple[Agent, dict[str, Tensor]], other: tuple[Agent, dict[str, Tensor]]) -> None:
    """Compare terms, gradients and buffers as far as floating point allows."""
    for name, value in one[1].items():
        torch.testing.assert_close(other[1][name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    expected, found = gradients(one[0]), gradients(other[0])
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for (name, value), again in zip(one[0].named_buffers(), other[0].buffers(), strict=True):
        torch.testing.assert_close(again, value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("agent", "more", "truncated"), [(*one, False) for one in AGENTS] + [(*one, CUT) for one in OFFLINE]
)
def test_nothing_reads_the_padding(agent: str, more: str, truncated: list[bool] | bool) -> None:
    """Terms, gradients, parameters and draws are the same bit for bit, whatever the padding holds."""
    results = []
    for seed in (0, 1):
        built, terms = learned(
            agent, more,
            lambda built, env, seed=seed: garbled(
                with_lengths(served(built, env), LENGTHS, truncated), env.num_items, seed
            ),
        )  # fmt: skip
        assert all(value.isfinite() for value in terms.values())
        results.append((terms, gradients(built), built.learner_state()))
    assert same(*results)


@pytest.mark.parametrize(
    ("agent", "more", "truncated"), [(*one, False) for one in AGENTS] + [(*one, True) for one in OFFLINE]
)
def test_padding_changes_nothing(agent: str, more: str, truncated: bool) -> None:
    """Sessions of 4 turns give the same with padding to 7 turns and without."""

    def long(built: Agent, env: TopicRec) -> Trajectories:
        return garbled(with_lengths(served(built, env), 4, truncated), env.num_items, 0)

    with PrefixDraws():
        padded = learned(agent, more, long)
    with PrefixDraws():
        plain = learned(agent, more, lambda built, env: cut(long(built, env), 4))
    close(padded, plain)


@agents
def test_equal_lengths_are_as_none(agent: str, more: str) -> None:
    plain = learned(agent, more, served)
    close(plain, learned(agent, more, lambda built, env: with_lengths(served(built, env), env.episode_length)))


def has_targets(agent: str) -> bool:
    return "value/target" in get_object(settings(agent, None).agent["_target_"]).TERMS


@pytest.mark.parametrize("agent", [agent for agent in learners(offline=True) if has_targets(agent)])
def test_a_cut_session_goes_on(agent: str) -> None:
    """Where the log was cut, targets hold the value of the next state."""
    built, env = build(settings(agent, None))
    more = "agent.vae_share=0" if agent == "plas" else ""  # otherwise this update is the VAE's

    def data(truncated: bool) -> Trajectories:
        return with_lengths(served(built, env), LENGTHS, truncated)

    with PrefixDraws():
        whole = learned(agent, more, lambda *_: data(False))[1]["value/target"]
    with PrefixDraws():
        cut_off = learned(agent, more, lambda *_: data(True))[1]["value/target"]
    assert (whole - cut_off).abs() > 1e-4


@pytest.mark.parametrize(("agent", "more"), AGENTS)
def test_no_update_waits_for_lengths(agent: str, more: str) -> None:
    """On the meta device, as tests/test_meta.py does."""
    built, env = build(settings(agent, None, *more.split()))
    batch = with_lengths(served(built, env), LENGTHS, CUT if built.LEARNS_FROM == "dataset" else False)
    if built.LEARNS_FROM == "dataset":
        batch = built.prepare(batch)
    built, batch, _ = to_meta(built), batch.to(META), to_meta(env)
    built.step = 1  # so that a policy with a delay rests once, and learns once
    with OnMeta():
        check_learns(built, [batch, batch])


@pytest.mark.parametrize("belief", BELIEFS)
def test_states_of_sessions_do_not_see_the_padding(belief: str) -> None:
    built, env = build(settings("sac", None, f"belief={belief}"))
    data = with_lengths(served(built, env), LENGTHS)
    own, other = (states_of([built.actor_belief], garbled(data, env.num_items, seed))[0] for seed in (0, 1))
    assert torch.equal(own[data.mask], other[data.mask])
    (shorter,) = states_of([built.actor_belief], cut(data, 4))
    first = data.mask[:, :4]
    torch.testing.assert_close(shorter[first], own[:, :4][first])


def test_not_even_sums_over_many_frames_depend_on_the_padding() -> None:
    """With many frames the GRU sums its gradients in the order of the items, those of the padding among them."""
    data = with_lengths(tiny_trajectories(60), [1 + i % 6 for i in range(60)])
    states = []
    for seed in range(6):
        agent = tiny(BC)
        agent.update(garbled(data, ITEMS, seed))
        states.append(agent.learner_state())
    assert all(same(state, states[0]) for state in states)


# --- the pieces, by hand


def test_mean_of_valid_turns() -> None:
    values = torch.tensor([[1.0, 2.0, torch.inf], [4.0, torch.nan, -9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert mean(values, mask).item() == pytest.approx(7 / 3)
    assert mean(torch.stack([values, 3 * values]), mask).item() == pytest.approx(14 / 3)
    assert mean(torch.stack([values, 3 * values], dim=-1), mask, of_vectors=True).item() == pytest.approx(14 / 3)
    assert mean(values, torch.tensor([[1.0, 3, 0], [2, 0, 0]])).item() == pytest.approx(15 / 6)
    assert mean(values[:1, :2], None) == 1.5
    assert mean(values, torch.zeros_like(mask)) == 0


def test_percentile_of_valid_turns() -> None:
    values = torch.arange(20.0).flip(0).view(2, 10)
    mask = torch.arange(10) < torch.tensor([[10], [3]])
    kept = sorted(values[mask].tolist())
    for share in (0.0, 0.5, 0.9):
        assert percentile(values, share, mask) == kept[int(share * 13)]
        assert percentile(values, share, None) == int(share * 20)
    assert percentile(values, 0.9, torch.zeros_like(mask)) == 0


def test_bootstrap_at_the_ends() -> None:
    """The first session ends after 2 of 4 turns, the second was cut there, the third has all turns and was cut."""
    data = with_lengths(tiny_trajectories(3, turns=4), [2, 2, 4], [False, True, True])
    assert valid_turns(data).tolist() == [[True, True, False, False]] * 2 + [[True] * 4]
    assert complete_turns(data).tolist() == [[True, True, False, False], [False] * 4, [False] * 4]
    roomy = data.with_room()
    assert roomy.slates.shape[1] == 6 and roomy.actions.shape[1] == 5
    continuing = continuing_turns(roomy)
    assert continuing.tolist() == [[True, False, False, False], [True, True, False, False], [True] * 4]
    reward, value = torch.ones(3, 5), torch.tensor([10.0, 20, 30, 40]).repeat(3, 1)
    target = bootstrap(reward, value, 0.5, continuing)
    assert target[0, :2].tolist() == [6, 1] and target[1, :2].tolist() == [6, 11]
    assert target[2, :4].tolist() == [6, 11, 16, 21]
    assert bootstrap(reward[:, :, None], value[:, :, None], 0.5, continuing)[..., 0].tolist() == target.tolist()
    assert bootstrap(reward, value, 0.5)[0].tolist() == [6, 11, 16, 21, 1]


def test_drawn_turns_estimate_the_mean_over_all() -> None:
    lengths = torch.tensor([[9], [4], [1], [0]])
    valid = torch.arange(9) < lengths
    values = torch.rand(4, 9, generator=stream(0, "values"))
    generator, found = stream(0, "turns"), []
    for _ in range(4000):
        chosen, weight = draw_turns(3, 9, valid, generator)
        assert chosen.shape == weight.shape == (4, 3)
        assert (weight > 0).sum(1).tolist() == [3, 3, 1, 0]
        assert (chosen < lengths)[weight > 0].all()
        assert all(len(row.unique()) == 3 for row in chosen)
        found.append(mean(values.gather(1, chosen), weight))
    assert torch.stack(found).mean().item() == pytest.approx(values[valid].mean().item(), abs=0.01)


def test_equally_long_sessions_draw_the_same_turns() -> None:
    chosen, weight = draw_turns(3, 9, torch.ones(2, 9, dtype=torch.bool), stream(0, "turns"))
    plain, none = draw_turns(3, 9, None, stream(0, "turns"))
    assert none is None and chosen.tolist() == [plain.tolist()] * 2 and len(weight.unique()) == 1
