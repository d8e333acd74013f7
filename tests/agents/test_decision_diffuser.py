"""Decision Diffuser: its losses again in NumPy, what plans read, guidance, warm starts, candidates, and a toy."""

from __future__ import annotations

import copy
import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import Tensor

from slaterl.agents.offline import decision_diffuser as module
from slaterl.agents.offline.base import with_actions
from slaterl.agents.offline.decision_diffuser import DecisionDiffuser
from slaterl.agents.offline.diffusion import TIME_DIM, Diffusion
from slaterl.agents.offline.planning import PlanningPolicy
from slaterl.beliefs.gru import GRUBelief
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation
from slaterl.errors import UserError
from slaterl.seeds import seeded_weights, stream
from tests.agents.derivations import assert_gradients, drift, parameters_of
from tests.agents.test_latent_agents import states
from tests.agents.test_lengths import with_lengths
from tests.agents.test_offline_agents import critics, linear, network, normed
from tests.agents.test_sac import gradients
from tests.helpers import ITEMS, LATENT, SLOTS, TURNS, Array, arrays, copy_of, tiny_env, tiny_gems, tiny_trajectories

BATCH, SEEN, FRAMES, STEPS, HEADS, GAMMA, FIRST, EXPECTILE = 5, 3, 2, 6, 2, 0.8, 4.0, 0.7
LENGTHS = [TURNS, 2, 5, 1, 4]
ADVANTAGE, CANDIDATES = dict(condition="advantage"), dict(condition="none", candidates=3)


def tiny(data: Trajectories | None = None, perturbed: bool = True, **changes: Any) -> DecisionDiffuser:
    """Build a prepared agent whose gates are open, unlike at the start of training."""
    settings: dict[str, Any] = dict(
        gamma=GAMMA, condition="return", context=SEEN, horizon=FRAMES, width=8, depth=2, heads=HEADS, item_dim=2,
        steps=STEPS, sample_steps=4, warm_steps=2, replan_every=1, guidance=1.4, drop=0.25, temperature=0.5,
        target_return=0.9, first_weight=FIRST, pi_lr=1e-3, tau=0.1, candidates=1, q_lr=2e-3, q_hidden=[16, 9],
        num_critics=2, layer_norm=True, expectile=EXPECTILE,
    )  # fmt: skip
    with seeded_weights(0, "tiny diffuser"):
        agent = DecisionDiffuser(
            ranker=tiny_gems(), generator=stream(0, "update"), env=tiny_env(),
            belief=partial(GRUBelief, num_items=ITEMS, slate_size=SLOTS, item_dim=2, hidden_dim=5),
            **(settings | changes),
        )  # fmt: skip
    agent.prepare(tiny_trajectories(BATCH) if data is None else data)
    if perturbed:
        drift(agent.actor)
        drift(*(getattr(agent, name) for name in ("target_critics",) if hasattr(agent, name)))
        agent.target_actor.load_state_dict(agent.actor.state_dict())
        with torch.no_grad():  # so that starts differ, and actions are better or worse than V
            agent.acting_noise.copy_(torch.randn(agent.acting_noise.shape, generator=stream(0, "noise")))
            if agent.condition == "advantage":
                batch = with_actions(tiny_trajectories(BATCH), agent.ranker)
                agent.value[-1].bias.add_(agent.advantage(batch)[1].mean())
    return agent


def windows_of(agent: DecisionDiffuser, count: int = 40) -> Tensor:
    """States of the acting belief after some turns."""
    data, belief = tiny_trajectories(count, seed=1), agent.acting_belief
    memory = belief.initial_state(count)
    for turn in range(4):
        memory = belief.step(Observation(data.slates[:, turn].long(), data.clicks[:, turn]), memory)
    return belief.state_of(memory).detach()


# --- derivation


def gelu(x: Array) -> Array:
    return x * (1 + erf(x / math.sqrt(2))) / 2


def mish(x: Array) -> Array:
    return x * np.tanh(np.logaddexp(0, x))


def by_head(x: Array) -> list[Array]:
    return np.split(x, HEADS, axis=-1)


def softmax(x: Array) -> Array:
    grown = np.exp(x - x.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


def seen_frames(w: dict[str, Array], slates: Array, clicks: Array, actions: Array, place: Array) -> Array:
    """The seen frames of one user after their own layers, [K', W], for those of the K that the episode has."""
    slots = np.concatenate([w["item_embeddings"][slates], clicks[..., None]], axis=2).reshape(len(slates), -1)
    x = gelu(linear(w, "embed_frame", np.concatenate([slots, actions], axis=1))) + place
    for i in (0, 1):
        layer, heads = f"seen_layers.{i}", []
        inner = normed(w, f"{layer}.attention_norm", x)
        keys, values = np.split(linear(w, f"{layer}.to_pairs", inner), 2, axis=-1)
        queries = linear(w, f"{layer}.to_queries", inner)
        for head, (q, k, v) in enumerate(zip(by_head(queries), by_head(keys), by_head(values), strict=True)):
            scores = q @ k.T / math.sqrt(q.shape[1])
            for row in range(len(x)):
                for column in range(len(x)):
                    far = w[f"{layer}.bias"][head, row - column] if column <= row else -np.inf
                    scores[row, column] += far
            heads.append(softmax(scores) @ v)
        x = x + linear(w, f"{layer}.joined", np.concatenate(heads, axis=-1))
        x = x + linear(w, f"{layer}.narrowed", gelu(linear(w, f"{layer}.widened", normed(w, f"{layer}.mlp_norm", x))))
    return normed(w, "seen_norm", x)


def bare_norm(x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def noise_found(w: dict[str, Array], seen: Array, noisy: Array, step: int, asked: float | None) -> Array:
    """The noise in one user's plan [F', A + 1]; nothing is asked for with None."""
    half = TIME_DIM // 2
    angle = step * np.exp(-math.log(10_000) * np.arange(half) / (half - 1))
    guide = linear(
        w, "widen_step", network(w, "embed_step.layers.", np.concatenate([np.sin(angle), np.cos(angle)]), mish)
    )
    if asked is not None:
        guide = guide + network(w, "embed_condition.", np.array([asked]), mish)
    guide = mish(guide)
    x = linear(w, "embed_plan", noisy) + w["place"][: len(noisy)]
    for i in (0, 1):
        layer, heads = f"plan_layers.{i}", []
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = np.split(linear(w, f"{layer}.modulation", guide), 6)
        queries, keys, values = np.split(linear(w, f"{layer}.to_triples", bare_norm(x) * (1 + scale) + shift), 3, -1)
        past_keys, past_values = np.split(linear(w, f"{layer}.to_pairs", seen), 2, axis=-1)
        keys, values = np.concatenate([past_keys, keys]), np.concatenate([past_values, values])
        for q, k, v in zip(by_head(queries), by_head(keys), by_head(values), strict=True):
            heads.append(softmax(q @ k.T / math.sqrt(q.shape[1])) @ v)
        x = x + gate * linear(w, f"{layer}.joined", np.concatenate(heads, axis=-1))
        inner = linear(w, f"{layer}.widened", bare_norm(x) * (1 + mlp_scale) + mlp_shift)
        x = x + mlp_gate * linear(w, f"{layer}.narrowed", gelu(inner))
    shift, scale = np.split(linear(w, "last_modulation", guide), 2)
    return linear(w, "last", bare_norm(x) * (1 + scale) + shift)


def part_of(weights: dict[str, Array], name: str) -> dict[str, Array]:
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def means_ahead(rewards: Array, lengths: list[int]) -> list[Array]:
    """The weighted mean of the rewards ahead of each turn of each session; 0 after the session's end."""
    found = []
    for row, length in zip(rewards, lengths, strict=True):
        padded = np.where(np.arange(len(row)) < length, row, 0)[: max(lengths)]
        weight = GAMMA ** np.arange(len(padded))
        found.append(
            np.array(
                [(padded[t:] @ weight[: len(padded) - t]) / weight[: len(padded) - t].sum() for t in range(length)]
            )
        )
    return found


class Derivation:
    """Both losses of an update, from the weights and the generator before it."""

    def __init__(self, agent: DecisionDiffuser, batch: Trajectories) -> None:
        assert batch.actions is not None and batch.lengths is not None
        self.agent, self.batch, self.before = agent, batch, arrays(agent)
        self.lengths = batch.lengths.tolist()
        self.actions = batch.actions.double().numpy()
        self.rewards = batch.clicks.numpy()[:, 1:].sum(2).astype(float)
        with torch.no_grad():
            slates = batch.slates.flatten(0, 1)
            self.shown = agent.ranker.action_of(slates).unflatten(0, batch.slates.shape[:2]).double().numpy()
        generator, count = copy_of(agent.generators["update"]), len(batch)
        self.starts = (torch.rand(count, 1, generator=generator).flatten().double().numpy() * self.lengths).astype(int)
        self.kept = np.ones(count, dtype=bool)
        if agent.condition != "none":
            self.kept = (torch.rand(count, 1, generator=generator) >= agent.drop).flatten().numpy()
        drawn = torch.rand(count, 1, generator=generator).flatten().double().numpy()
        self.steps = (STEPS * drawn).astype(int)
        self.noise = torch.randn(count, FRAMES, LATENT + 1, generator=generator).double().numpy()
        played = np.concatenate([row[:length] for row, length in zip(self.rewards, self.lengths, strict=True)])
        self.scale = played.min(), played.max()
        ahead = means_ahead(self.rewards, self.lengths)
        in_order = np.sort(np.concatenate(ahead))
        low, high = (in_order[int(share * len(in_order))] for share in (0.01, 0.99))
        self.ahead = [(row - low) / (high - low) for row in ahead]

    def achieved(self) -> list[float]:
        """The condition of each window."""
        if self.agent.condition == "return":
            return [float(row[t].clip(0, 1)) for row, t in zip(self.ahead, self.starts, strict=True)]
        state = states(self.before, "critic", self.batch)
        advantage = critics(self.before, "target_critics", state, self.actions).min(0)
        advantage -= network(self.before, "value.", state)[..., 0]
        return [float(advantage[user, t] > 0) for user, t in enumerate(self.starts)]

    def planner(self, weights: dict[str, Array]) -> float:
        """Mean (eps - eps(...))^2, where the first frame of a plan counts FIRST times, and windows by their length."""
        w, kept = part_of(weights, "actor"), Diffusion(STEPS).keep.double().numpy()
        asked = self.achieved() if self.agent.condition != "none" else []
        total = count = 0.0
        for user, (t, step, length) in enumerate(zip(self.starts, self.steps, self.lengths, strict=True)):
            past, ahead = range(max(0, t - SEEN + 1), t + 1), range(t, min(t + FRAMES, length))
            seen = seen_frames(
                w, self.batch.slates[user, list(past)].long().numpy(), self.batch.clicks[user, list(past)].numpy(),
                self.shown[user, list(past)], w["seen_place"][SEEN - len(past) :],
            )  # fmt: skip
            low, high = self.scale
            reward = 2 * (self.rewards[user, list(ahead)] - low) / (high - low) - 1
            clean = np.concatenate([self.actions[user, list(ahead)], reward[:, None]], axis=1)
            noise = self.noise[user, : len(ahead)]
            noisy = kept[step] * clean + math.sqrt(1 - kept[step] ** 2) * noise
            error = (noise_found(w, seen, noisy, step, asked[user] if asked and self.kept[user] else None) - noise) ** 2
            weight = length * np.array([FIRST, *[1.0] * (FRAMES - 1)])[: len(ahead)]
            total += (weight[:, None] * error).sum()
            count += weight.sum() * error.shape[1]
        return total / count

    def critic(self, weights: dict[str, Array]) -> float:
        """IQL's losses of Q and V; or the squared error of candidates' scores."""
        state, mask = states(weights, "critic", self.batch), np.arange(TURNS) < np.array(self.lengths)[:, None]
        if self.agent.condition == "none":
            latent = weights["ranker.center"] + weights["ranker.half_width"] * self.actions
            total = 0.0
            for user, (t, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
                plan = np.zeros((FRAMES, LATENT))
                plan[: length - t] = latent[user, t : min(t + FRAMES, length)]
                inputs = np.concatenate([state[user, t], plan.ravel()])
                for i in (0, 1):
                    found = network(weights, f"critics.members.{i}.", inputs)[0]
                    total += length * (found - self.ahead[user][t]) ** 2 / 2
            return total / sum(self.lengths)
        value = network(weights, "value.", state)[..., 0]
        held = network(self.before, "value.", states(self.before, "critic", self.batch))[..., 0]  # takes no gradient
        following = np.concatenate([held[:, 1:] * mask[:, 1:], np.zeros((len(held), 1))], axis=1)
        q = critics(weights, "critics", state, self.actions)
        of_q = ((q - self.rewards - GAMMA * following) ** 2)[:, mask].mean()
        u = (
            critics(self.before, "target_critics", states(self.before, "critic", self.batch), self.actions).min(0)
            - value
        )
        return of_q + (np.abs(EXPECTILE - (u < 0)) * u**2)[mask].mean()


def recorded() -> Trajectories:
    return with_lengths(tiny_trajectories(BATCH), LENGTHS)


@pytest.mark.parametrize("changes", [{}, ADVANTAGE, CANDIDATES], ids=["return", "advantage", "candidates"])
def test_losses_equal_the_derivation(changes: dict[str, Any]) -> None:
    batch = recorded()
    agent = tiny(batch, **changes)
    derived = Derivation(agent, batch)
    assert any(t + FRAMES > length for t, length in zip(derived.starts, LENGTHS, strict=True))  # the end cuts a plan
    assert any(t + 1 < SEEN for t in derived.starts) and any(t + 1 >= SEEN for t in derived.starts)
    if agent.condition != "none":
        assert 0 < derived.kept.sum() < BATCH
        assert len(set(np.array(derived.achieved())[derived.kept])) > 1
    terms = agent.update(batch)
    assert terms["loss/actor"].item() == pytest.approx(derived.planner(derived.before), rel=1e-4)
    assert_gradients(agent, derived.before, derived.planner, parameters_of(agent, "actor"))
    if changes:
        assert terms["loss/critic"].item() == pytest.approx(derived.critic(derived.before), rel=1e-4)
        modules = {"critics", "critic_belief", "value"} & {name for name, _ in agent.named_children()}
        assert_gradients(agent, derived.before, derived.critic, parameters_of(agent, *modules))
    else:
        assert terms["loss/critic"] == 0 and not hasattr(agent, "critics")
    if agent.condition != "none":
        told = np.array(derived.achieved()), derived.kept * np.array(LENGTHS)
        assert terms["value/condition"].item() == pytest.approx(np.average(told[0], weights=told[1]), rel=1e-4)


# --- what plans read


def test_seen_frames_are_the_past_and_stay_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update reads frames up to o_t alone, without noise, and has no loss on them."""
    agent, batch = tiny(), with_actions(tiny_trajectories(BATCH), tiny_gems())
    starts = Derivation(agent, with_lengths(batch, TURNS)).starts
    other = copy.deepcopy(batch)
    for user, t in enumerate(starts):
        for column in (other.slates, other.clicks):
            column[user, t + 1 :] = (column[user, t + 1 :] + 1) % 2
    read: list[tuple[Tensor, ...]] = []
    found: list[Tensor] = []
    for data in (batch, other):
        again = copy.deepcopy(agent)
        reading, forward = again.actor.read, again.actor.forward
        monkeypatch.setattr(again.actor, "read", lambda c, a, f=reading: read.append((*c, a)) or f(c, a))
        monkeypatch.setattr(again.actor, "forward", lambda *given, f=forward: found.append(f(*given)) or found[-1])
        again.generators["update"] = copy_of(agent.generators["update"])
        again.update(data)
    assert all(torch.equal(one, two) for one, two in zip(*read, strict=True))
    assert found[0].shape == (BATCH, 1, FRAMES, LATENT + 1)  # noise of planned frames alone
    slates, clicks, turn, actions = read[0]
    for user, t in enumerate(starts):
        there = turn[user] >= 0
        assert turn[user, -1] == t and int(there.sum()) == min(SEEN, t + 1)
        seen = slice(max(0, t - SEEN + 1), t + 1)
        assert torch.equal(slates[user, there], batch.slates[user, seen])
        assert torch.equal(clicks[user, there], batch.clicks[user, seen])
        expected = agent.ranker.action_of(batch.slates[user, seen])
        torch.testing.assert_close(actions[user, there], expected, rtol=1e-4, atol=1e-5)


def test_every_step_of_a_plan_reads_the_same_past(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, calls, reads = tiny(), [], []
    forward, reading = agent.target_actor.forward, agent.target_actor.read
    monkeypatch.setattr(
        agent.target_actor,
        "forward",
        lambda *given: calls.append((given[0], copy.deepcopy(given[0]))) or forward(*given),
    )
    monkeypatch.setattr(agent.target_actor, "read", lambda *given: reads.append(given) or reading(*given))
    with torch.no_grad():
        agent.plan(windows_of(agent), None)
    assert len(calls) == 4 and len(reads) == 1
    for seen, before in calls:
        for given, kept, first in zip(seen.pairs, before.pairs, calls[0][1].pairs, strict=True):
            assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(given, kept, first, strict=True))


@torch.no_grad()
def test_padding_before_the_start_changes_nothing() -> None:
    agent = tiny()
    data, belief = tiny_trajectories(7), agent.acting_belief
    memory = belief.step(Observation(data.slates[:, 0].long(), data.clicks[:, 0]), belief.initial_state(7))
    own = agent.plan(memory, None)
    other = memory.clone()
    other[:, : 2 * (2 * SLOTS + LATENT)] = 1  # items and clicks of frames that do not exist
    assert torch.equal(agent.plan(other, None), own)
    other[:, 2 * (2 * SLOTS + LATENT)] += 1  # an item of the frame that does
    assert not torch.equal(agent.plan(other, None), own)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, CANDIDATES])
def test_users_do_not_depend_on_each_other(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    agent = tiny(**changes)
    state = windows_of(agent)
    together = agent.plan(state, None)
    assert together.shape == (40, FRAMES, LATENT + 1) and together.abs().max() <= 1
    monkeypatch.setattr(module, "ROWS", 20)  # blocks of a few users
    torch.testing.assert_close(agent.plan(state, None), together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(agent.plan(state[3:4], None)[0], together[3], rtol=1e-4, atol=1e-5)


# --- guidance


@torch.no_grad()
@pytest.mark.parametrize("w", [0.0, 1.0, 1.4])
def test_guidance(w: float) -> None:
    """With w = 1 it is the conditional prediction, with 0 the unconditional one; both branches are one call."""
    agent, state = tiny(guidance=w), windows_of(tiny())
    context, shown, _ = agent.window.read_state(state)
    seen, x = agent.actor.read(context, shown), torch.randn(40, 1, FRAMES, LATENT + 1, generator=stream(0, "x"))
    weights = part_of(arrays(agent), "actor")
    expected = []
    for user in range(40):
        there = context.turn[user] >= 0
        past = seen_frames(
            weights, context.slates[user, there].numpy(), context.clicks[user, there].double().numpy(),
            shown[user, there].double().numpy(), weights["seen_place"][~there.numpy() == 0],
        )  # fmt: skip
        asked, nothing = (noise_found(weights, past, x[user, 0].double().numpy(), 3, c) for c in (0.9, None))
        expected.append(nothing + w * (asked - nothing))
    calls, forward = [], agent.target_actor.forward
    agent.target_actor.forward = lambda *given: calls.append(given[1].shape[1]) or forward(*given)
    found = agent.guided_noise(seen, x, torch.tensor(3))
    np.testing.assert_allclose(found[:, 0], np.stack(expected), rtol=1e-3, atol=1e-4)
    assert calls == [1 if w == 1 else 2]


def test_what_is_asked_for() -> None:
    for changes, asked in (({}, 0.9), (ADVANTAGE, 1.0)):
        agent, given = tiny(**changes), []
        agent.target_actor.forward = lambda seen, x, step, c, given=given: given.append(c) or torch.zeros_like(x)
        agent.plan(windows_of(agent), None)
        assert all((c.value == np.float32(asked)).all() and c.known.tolist() == [[True, False]] for c in given)


def test_nothing_is_known_of_cut_sessions() -> None:
    """Their return goes on, so they teach plans that ask for nothing. Advantages bootstrap there."""
    cut = with_lengths(tiny_trajectories(BATCH), LENGTHS, True)
    for changes, known in (({}, 0), (ADVANTAGE, BATCH)):
        agent, given = tiny(drop=0.0, **changes), []
        forward = agent.actor.forward
        agent.actor.forward = lambda *a, given=given, forward=forward: given.append(a[3]) or forward(*a)
        agent.update(cut)
        assert int(given[0].known.sum()) == known


# --- DDIM


@pytest.mark.parametrize(("count", "ladder"), [(1, [5]), (2, [5, 0]), (3, [5, 3, 0]), (6, [5, 4, 3, 2, 1, 0])])
def test_ladder(count: int, ladder: list[int]) -> None:
    assert Diffusion(6).ladder(count) == ladder


def test_implicit_steps() -> None:
    """With the true noise every ladder leads to the data; otherwise each step is equation 12 with sigma = 0."""
    diffusion, noise = Diffusion(20), torch.randn(50, 3, generator=stream(0, "noise"))
    clean = 2 * torch.rand(50, 3, generator=stream(0, "data")) - 1
    for ladder in ([19], [19, 10, 0], [8, 2]):
        x = diffusion.noised(clean, noise, torch.tensor([ladder[0]]))
        found = diffusion.implicit(
            lambda x, step: (x - diffusion.keep[step] * clean) / diffusion.spread[step], x, ladder
        )
        torch.testing.assert_close(found, clean, rtol=1e-3, atol=1e-4)
    keep, spread = diffusion.keep.double().numpy(), diffusion.spread.double().numpy()
    x = noise.double().numpy()
    for step, lower in ((12, 5), (5, None)):
        data = ((x - spread[step] * np.tanh(x)) / keep[step]).clip(-1, 1)
        x = data if lower is None else keep[lower] * data + spread[lower] * (x - keep[step] * data) / spread[step]
    found = diffusion.implicit(lambda x, step: x.tanh(), noise, [12, 5])
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_plans_are_repeatable_and_start_at_a_low_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, state = tiny(), windows_of(tiny())
    assert torch.equal(agent.plan(state, None), agent.plan(state, None))
    first, again, other = (agent.plan(state, stream(seed, "draws")) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    starts = []
    monkeypatch.setattr(agent, "drawn", lambda s, noise, ladder: starts.append((noise, ladder)) or noise)
    agent.plan(state, None)
    agent.plan(state, stream(0, "draws"))
    assert [ladder for _, ladder in starts] == [agent.ladder] * 2
    assert torch.equal(starts[0][0], 0.5**0.5 * agent.acting_noise.expand(40, -1, -1, -1))
    drawn = torch.randn(40, 1, FRAMES, LATENT + 1, generator=stream(0, "draws"))
    torch.testing.assert_close(starts[1][0], 0.5**0.5 * drawn)


# --- the policy


def served(agent: DecisionDiffuser, policy: PlanningPolicy) -> tuple[list[Tensor], list[tuple[Tensor, Tensor | None]]]:
    """Actions of each turn, and the plans that were made, each with the plan that it started from."""
    plans: list[tuple[Tensor, Tensor | None]] = []
    plan = agent.plan

    def planned(state: Tensor, generator: Any, expected: Tensor | None) -> Tensor:
        plans.append((plan(state, generator, expected), expected))
        return plans[-1][0]

    agent.plan = planned  # type: ignore[method-assign]
    data = tiny_trajectories(7)
    policy.reset(7)
    with torch.no_grad():
        actions = [
            policy.act(Observation(data.slates[:, t].long(), data.clicks[:, t]), True).action for t in range(TURNS)
        ]
    agent.plan = plan  # type: ignore[method-assign]
    return actions, plans


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("warm", [None, 2])
def test_the_policy_plays_its_plans(every: int, warm: int | None) -> None:
    """Frame after frame; then the plan moves to the present, and its last frame fills the end."""
    agent = tiny(horizon=4, replan_every=every, warm_steps=warm)
    policy = agent.policy()
    actions, plans = served(agent, policy)
    assert len(plans) == -(-TURNS // every)
    for turn, action in enumerate(actions):
        assert action is not None and torch.equal(action, plans[turn // every][0][:, turn % every, :-1])
    for (before, _), (_, expected) in itertools.pairwise(plans):
        if warm is None:
            assert expected is None
        else:
            places = [min(frame + every, 3) for frame in range(4)]
            assert expected is not None and torch.equal(expected, before[:, places])
    assert plans[0][1] is None
    again, fresh = served(agent, policy)  # a restarted rollout begins without a plan
    assert fresh[0][1] is None and all(torch.equal(a, b) for a, b in zip(actions, again, strict=True))


@torch.no_grad()
def test_a_warm_start_gives_the_last_plan_some_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, state = tiny(), windows_of(tiny())
    expected = 2 * torch.rand(40, FRAMES, LATENT + 1, generator=stream(0, "plan")) - 1
    starts = []
    monkeypatch.setattr(agent, "drawn", lambda s, noise, ladder: starts.append((noise, ladder)) or noise)
    agent.plan(state, None, expected)
    noise, ladder = starts[0]
    assert ladder == agent.ladder[-2:] == [2, 0]
    kept = 0.5**0.5 * agent.diffusion.spread[2] * agent.acting_noise[0] + agent.diffusion.keep[2] * expected
    torch.testing.assert_close(noise[:, 0], kept)


def test_action_is_the_first_of_a_plan_from_noise() -> None:
    agent, state = tiny(replan_every=2), windows_of(tiny())
    with torch.no_grad():
        assert torch.equal(agent.action(state, None), agent.plan(state, None)[:, 0, :-1])


# --- critics


@pytest.mark.parametrize("changes", [ADVANTAGE, CANDIDATES], ids=["advantage", "candidates"])
def test_planner_and_critics_learn_apart(changes: dict[str, Any]) -> None:
    """Neither loss reaches the other's networks, whatever it weighs."""
    batch = recorded()
    agent, other = tiny(batch, **changes), tiny(batch, **changes, first_weight=50.0)
    with torch.no_grad():
        for member in other.critics.members:  # far from the first agent's, but with the same order of target critics
            member[0].weight.mul_(3)
    kept = tiny(batch, **changes)
    agent.update(batch)
    other.update(batch)
    kept.update(batch)
    own, found, same = gradients(agent), gradients(other), gradients(kept)
    for name in own:
        planner = name.startswith("actor.")
        assert torch.equal(own[name], same[name]), name
        assert planner or name.startswith(("critic", "value")), name
    for agent_of, part in ((agent, "actor"), (agent, "critic")):
        parameters = {id(p) for group in agent_of.optim[part].param_groups for p in group["params"]}
        names = {name for name, p in agent_of.named_parameters() if id(p) in parameters}
        assert {name.startswith("actor.") for name in names} == {part == "actor"}
    # the planner's weights change no gradient of the critics
    heavy = tiny(batch, **changes, first_weight=50.0)
    heavy.update(batch)
    for name, gradient in gradients(heavy).items():
        assert torch.equal(gradient, own[name]) != name.startswith("actor."), name
    # and the critics' weights none of the planner
    for name in parameters_of(agent, "actor"):
        assert torch.equal(found[name], gradients(heavy)[name]), name


@pytest.mark.parametrize("sampled", [False, True])
def test_a_critic_chooses_the_plan(sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one with the largest score, or one by softmax. Rewards that a plan expects do not count."""
    agent, users = tiny(**CANDIDATES), 20_000 if sampled else 40
    with torch.no_grad():
        for member in agent.critics.members:
            member[-1].weight.mul_(4)
    plans = 2 * torch.rand(3, FRAMES, LATENT + 1, generator=stream(0, "plans")) - 1
    monkeypatch.setattr(agent, "drawn", lambda s, noise, ladder: plans.expand(len(s), -1, -1, -1))
    state = windows_of(agent, 40)[: 1 if sampled else 40].expand(users, -1)
    with torch.no_grad():
        chosen = agent.plan(state, stream(0, "draws") if sampled else None)
    weights = arrays(agent)
    latent = weights["ranker.center"] + weights["ranker.half_width"] * plans[..., :-1].double().numpy()
    of_critic = state[: 1 if sampled else 40, agent.window.state_dim :].double().numpy()
    inputs = np.stack([np.concatenate([of_critic, np.tile(plan.ravel(), (len(of_critic), 1))], 1) for plan in latent])
    score = np.min([network(weights, f"critics.members.{i}.", inputs)[..., 0] for i in (0, 1)], axis=0)  # [3, users]
    turns = sum(GAMMA**k for k in range(TURNS))
    score = score * (weights["high"] - weights["low"]) * turns
    place = (chosen.unsqueeze(0) == plans.unsqueeze(1)).flatten(2).all(2).double().numpy()  # [3, users]
    assert (place.sum(0) == 1).all()
    if sampled:
        np.testing.assert_allclose(place.mean(1), np.exp(score[:, 0]) / np.exp(score[:, 0]).sum(), atol=0.015)
    else:
        assert (place.argmax(0) == score.argmax(0)).all() and len(set(score.argmax(0))) > 1


def test_returns_are_scaled_by_the_data() -> None:
    data = with_lengths(tiny_trajectories(200), [1 + i % TURNS for i in range(200)])
    agent = tiny(data)
    means = means_ahead(data.clicks.numpy()[:, 1:].sum(2).astype(float), data.lengths.tolist())
    in_order = np.sort(np.concatenate(means))
    low, high = in_order[int(0.01 * len(in_order))], in_order[int(0.99 * len(in_order))]
    found = agent.ahead(data)
    for row, expected, length in zip(found, means, data.lengths.tolist(), strict=True):
        np.testing.assert_allclose(row[:length], (expected - low) / (high - low), rtol=1e-4, atol=1e-5)
    data.reward = torch.zeros(200, TURNS)
    data.reward[0, 0] = 1  # no return but this one is above zero
    agent = tiny(data)
    assert agent.low == 0 and agent.high > 0 and agent.ahead(data)[0, 0].item() == pytest.approx(1)
    assert agent.scaled(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1, 0, 1]
    data.reward = data.reward + 3  # padding is no reward of 0
    assert tiny(data).scaled(torch.tensor([3.0, 4.0])).tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("wrong", "parts"),
    [
        (dict(width=9), ["agent.width=9", "agent.heads=2"]),
        (dict(sample_steps=7), ["agent.sample_steps=7", "agent.steps=6"]),
        (dict(warm_steps=5), ["agent.warm_steps=5", "agent.sample_steps=4"]),
        (dict(replan_every=3), ["agent.replan_every=3", "agent.horizon=2"]),
        (dict(CANDIDATES, temperature=0.0), ["agent.candidates=3", "agent.temperature"]),
        (dict(candidates=2), ["agent.candidates=2", "agent.condition=none"]),
    ],
)
def test_settings_that_contradict_each_other(wrong: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        tiny(**wrong)
    assert all(part in str(error.value) for part in parts)


# --- two modes


MODE, SPREAD, SHARE = 0.5, 0.1, 0.7  # of the toy's actions: SHARE of them lie around +MODE, the others around -MODE


@pytest.mark.parametrize("asks", ["return", "advantage", "candidates", "nothing"])
def test_the_better_mode_is_chosen(asks: str) -> None:
    """Actions around -MODE earn 2, those around +MODE nothing. Without a condition, plans are as the data."""
    data, generator = tiny_trajectories(200), stream(0, "toy")
    assert data.actions is not None
    sign = torch.where(torch.rand(200, TURNS, 1, generator=generator) < SHARE, 1.0, -1.0)
    data.actions = MODE * sign + SPREAD * torch.randn(data.actions.shape, generator=generator)
    data.reward = 2 * (sign[..., 0] < 0).float()
    condition = asks if asks in ("return", "advantage") else "none"
    changes = dict(condition=condition, candidates=8 if asks == "candidates" else 1, gamma=0.0, tau=0.05)
    agent = tiny(
        data, perturbed=False, width=16, depth=1, steps=10, sample_steps=10, temperature=1.0, pi_lr=5e-3, q_lr=5e-3,
        expectile=0.5, **changes,
    )  # fmt: skip
    agent.ranker.set_box(-torch.ones(LATENT), torch.ones(LATENT))
    batches = stream(0, "batches")
    for step in range(350):
        agent.step = step
        agent.update(data[torch.randperm(200, generator=batches)[:64]])
    state = windows_of(agent, 200)
    with torch.no_grad():
        action = agent.action(state, stream(0, "draws"))
        best = agent.action(state, None)
    better = (action < 0).all(1).float().mean().item()
    assert ((action < 0).all(1) | (action > 0).all(1)).float().mean() > 0.85  # of the two modes, not between them
    if asks == "nothing":
        assert better == pytest.approx(1 - SHARE, abs=0.15)
    else:
        assert better > 2 * (1 - SHARE) and (best < 0).all(1).float().mean() > 0.75
