"""A user model against NumPy; acting and padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation
from slaterl.user_models.click_model import ClickModel, Logits, losses
from tests.helpers import SLOTS, TURNS, Array, arrays
from tests.user_models.made import padded_otherwise, tiny_member, tiny_sessions


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def by_hand(member: ClickModel, slates: Array, clicks: Array) -> tuple[Array, Array]:
    """Logits of clicks [H, S] and of leaving [H] of one session, frame by frame."""
    w = arrays(member)
    state, found, leaving = np.zeros(member.state_dim), [], []
    for turn in range(len(slates)):
        items = w["items"][slates[turn]]
        if turn:
            taste = w["taste.weight"] @ state + w["taste.bias"]
            z = np.concatenate([items, items * taste], axis=1) @ w["slots.weight"].T + w["slots.bias"] + w["ranks"]
            logits = []
            for slot in range(SLOTS):
                scores = np.array([(w["query.weight"] @ z[slot]) @ other / np.sqrt(z.shape[1]) for other in z])
                weights = np.exp(scores) / np.exp(scores).sum()
                mixed = z[slot] + sum(
                    weight * (w["value.weight"] @ other) for weight, other in zip(weights, z, strict=True)
                )
                logit = w["rank_bias"][slot] + w["item_bias"][slates[turn, slot]] + taste @ items[slot]
                logits.append(logit + (w["interaction.weight"] @ np.maximum(mixed, 0)).item())
            found.append(logits)
        read = np.concatenate([clicks[turn] @ items, items.sum(0), clicks[turn]])
        inputs = (w["cell.weight_ih"] @ read + w["cell.bias_ih"]).reshape(3, -1)
        before = (w["cell.weight_hh"] @ state + w["cell.bias_hh"]).reshape(3, -1)
        reset, keep = sigmoid(inputs[0] + before[0]), sigmoid(inputs[1] + before[1])
        state = keep * state + (1 - keep) * np.tanh(inputs[2] + reset * before[2])
        if turn:
            leaving.append((w["leaving.weight"] @ state + w["leaving.bias"]).item())
    return np.array(found), np.array(leaving)


def test_logits_and_losses_by_hand() -> None:
    member, data = tiny_member(), tiny_sessions()
    logits = member(data)
    assert logits.leaving is not None
    assert data.lengths is not None and data.truncated is not None
    clicked, left = [], []
    for number, length in enumerate(data.lengths.tolist()):
        slates, clicks = data.slates[number].numpy(), data.clicks[number].numpy().astype(float)
        of_clicks, of_leaving = by_hand(member, slates, clicks)
        np.testing.assert_allclose(logits.clicks[number].detach(), of_clicks, atol=2e-5)
        np.testing.assert_allclose(logits.leaving[number].detach(), of_leaving, atol=2e-5)
        for turn in range(length):
            chance = sigmoid(of_clicks[turn])
            clicked += np.where(clicks[turn + 1], -np.log(chance), -np.log(1 - chance)).tolist()
            chance = sigmoid(of_leaving[turn])
            if turn < length - 1:
                left.append(-np.log(1 - chance))
            elif not data.truncated[number]:
                left.append(-np.log(chance))
    for found, expected in zip(losses(logits, data), (clicked, left), strict=True):
        assert found.item() == pytest.approx(np.mean(expected), abs=1e-5)


def test_equal_lengths_are_those_of_no_lengths() -> None:
    member, data = tiny_member(leaves=False), tiny_sessions()
    equal = Trajectories(data.slates, data.clicks, lengths=torch.full((len(data),), TURNS).int())
    plain = Trajectories(data.slates, data.clicks)
    assert losses(member(equal), equal)[0].item() == pytest.approx(losses(member(plain), plain)[0].item())
    assert member(plain).leaving is None and losses(member(plain), plain)[1] == 0


def test_acting_turn_by_turn_is_one_pass() -> None:
    member, data = tiny_member(), tiny_sessions()
    whole = member(data)
    state = member.initial_state(len(data))
    for turn in range(TURNS):
        state = member.step(Observation(data.slates[:, turn].long(), data.clicks[:, turn].bool()), state)
        torch.testing.assert_close(member.click_logits(state, data.slates[:, turn + 1]), whole.clicks[:, turn])
        if turn:
            torch.testing.assert_close(member.leave_logits(state), whole.leaving[:, turn - 1])


def test_no_turn_reads_what_it_predicts() -> None:
    member, data = tiny_member(), tiny_sessions()
    changed = Trajectories(data.slates.clone(), data.clicks.clone())
    changed.clicks[:, 3] = 1 - changed.clicks[:, 3]
    changed.slates[:, 4:] = 0
    before, after = member(data), member(changed)
    assert torch.equal(before.clicks[:, :3], after.clicks[:, :3]) and torch.equal(
        before.leaving[:, :2], after.leaving[:, :2]
    )
    assert not torch.equal(before.leaving[:, 2], after.leaving[:, 2])


def test_padding_changes_no_loss_and_no_gradient() -> None:
    data = tiny_sessions()
    found = []
    for part in (data, padded_otherwise(data)):
        member = tiny_member()
        click, leave = losses(member(part), part)
        (click + leave).backward()
        found.append([click, leave, *(parameter.grad for parameter in member.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_padding_may_be_anything() -> None:
    """Also where a prediction is not a number."""
    data = tiny_sessions()
    logits = tiny_member()(data)
    assert logits.leaving is not None
    spoilt = [
        part.masked_fill(~mask, torch.nan)
        for part, mask in ((logits.clicks, data.mask.unsqueeze(2)), (logits.leaving, data.mask))
    ]
    for one, other in zip(losses(logits, data), losses(Logits(*spoilt), data), strict=True):
        torch.testing.assert_close(one, other)
