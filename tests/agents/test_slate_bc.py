"""Behaviour cloning of slates: its loss derived in NumPy, where it starts, and what it draws."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from slaterl.agents.offline.slate_bc import SlateBC
from slaterl.beliefs.gru import GRUBelief
from slaterl.seeds import seeded_weights, stream
from tests.agents.derivations import assert_gradients
from tests.agents.test_latent_agents import states
from tests.helpers import ITEMS, SLOTS, TURNS, Array, arrays, copy_of, mlp_forward, tiny_trajectories

DRAWS = 4000


def tiny_slate_bc(**changes: Any) -> SlateBC:
    """Build an agent whose embeddings and biases are not zero."""
    sizes = dict(num_items=ITEMS, slate_size=SLOTS)
    settings: dict[str, Any] = dict(unique=False, item_dim=3, turns=2, pi_lr=3e-3, pi_hidden=[12, 8])
    with seeded_weights(0, "tiny slate bc"):
        agent = SlateBC(
            **sizes,
            belief=partial(GRUBelief, **sizes, item_dim=2, hidden_dim=5),
            generator=stream(0, "update"),
            **(settings | changes),
        )
        with torch.no_grad():
            agent.item_embeddings.normal_()
            agent.slot_bias.normal_()
            agent.actor[-1].weight.mul_(4)
    return agent


def scores(weights: dict[str, Array], state: Array) -> Array:
    """Score each item for each slot at states [..., state]: [..., S, N]."""
    queries = mlp_forward(weights, "actor.", state).reshape(*state.shape[:-1], SLOTS, -1)
    return queries @ weights["item_embeddings"].T + weights["slot_bias"]


@pytest.mark.parametrize("turns", [2, TURNS])
def test_slate_bc_equals_the_derivation(turns: int) -> None:
    agent, batch = tiny_slate_bc(turns=turns), tiny_trajectories(3)
    before, shown = arrays(agent), batch.slates[:, 1:].long().numpy()
    drawn = torch.randperm(TURNS, generator=copy_of(agent.generators["update"]))[:turns].numpy()

    def loss(weights: dict[str, Array]) -> float:
        log_prob = log_softmax(scores(weights, states(weights, "actor", batch)), axis=3)
        of_shown = np.take_along_axis(log_prob, shown[..., None], axis=3)[..., 0]
        return -float(of_shown[:, drawn].mean())

    terms = agent.update(batch)
    assert terms["loss/actor"].item() == pytest.approx(loss(before), rel=1e-4)
    best = scores(before, states(before, "actor", batch)).argmax(3)
    assert terms["policy/same_item"].item() == pytest.approx((best == shown)[:, drawn].mean(), abs=1e-6)
    assert_gradients(agent, before, loss, [name for name, _ in agent.named_parameters()])


def test_starts_with_the_frequencies_of_the_data() -> None:
    agent, data = tiny_slate_bc(), tiny_trajectories(40)
    with torch.no_grad():
        agent.item_embeddings.zero_()  # as in the beginning
    agent.prepare(data)
    shown = data.slates[:, 1:].long().flatten(0, 1)
    counts = np.stack([np.bincount(column, minlength=ITEMS) for column in shown.T.numpy()])
    expected = (counts + 1 / ITEMS) / (len(shown) + 1)
    np.testing.assert_allclose(softmax(agent.slot_bias.detach().numpy(), axis=1), expected, rtol=1e-4)
    state = torch.zeros(1, agent.actor_belief.state_dim)
    assert agent.decide(state, None, None).slate.tolist() == [counts.argmax(1).tolist()]  # type: ignore[arg-type]


@pytest.mark.parametrize("unique", [False, True])
def test_draws_follow_the_softmax(unique: bool) -> None:
    """With unique slates, slot 1 draws among the items that slot 0 has left."""
    agent = tiny_slate_bc(unique=unique)
    state = torch.ones(1, agent.actor_belief.state_dim)
    with torch.no_grad():
        slates = agent.decide(state.expand(DRAWS, -1), None, stream(0, "draws")).slate.numpy()  # type: ignore[arg-type]
        best = agent.decide(state, None, None).slate[0].numpy()  # type: ignore[arg-type]
    first, second = softmax(scores(arrays(agent), state.double().numpy())[0], axis=1)[:2]
    if unique:
        assert all(len(set(slate)) == SLOTS for slate in [*slates, best])
        left = np.where(np.eye(ITEMS, dtype=bool), 0, second)  # [item of slot 0, item of slot 1]
        second = first @ (left / left.sum(1, keepdims=True))
    else:
        assert any(len(set(slate)) < SLOTS for slate in slates)
    assert best[0] == first.argmax()
    for slot, expected in ((0, first), (1, second)):
        found = np.bincount(slates[:, slot], minlength=ITEMS) / DRAWS
        assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / DRAWS)
