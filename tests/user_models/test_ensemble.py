"""The ensemble: its batches, when its members stop, and whether it finds known probabilities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.seeds import seeded_weights
from slaterl.user_models.click_model import ClickModel, losses
from slaterl.user_models.ensemble import Ensemble, Sessions
from tests.user_models.made import TOY_ITEMS, TOY_SLOTS, tiny_member, tiny_sessions, toy_chance, toy_log


def tiny_ensemble(patience: int = 2, lr: float = 0.01) -> Ensemble:
    return Ensemble([tiny_member(seed) for seed in range(2)], lr=lr, patience=patience)


def sessions(learner: Ensemble, data: Trajectories, **changes: Any) -> Sessions:
    settings: dict[str, Any] = dict(holdout=0.4, max_steps=4, batch_size=3, seed=0, source="dataset=file")
    return Sessions(data, learner, **(settings | changes))


def test_three_parts_and_bootstrap_samples() -> None:
    data = toy_log(20)
    data.slates[:, 0, 0] = torch.arange(20)  # names the session
    learner = tiny_ensemble()
    made = sessions(learner, data)
    parts = [part.slates[:, 0, 0].tolist() for part in (made.held_out, made.test, made.training)]
    assert sorted([*parts[0], *parts[1], *parts[2]]) == list(range(20)) and [len(part) for part in parts] == [4, 4, 12]
    assert parts[0] != [0, 1, 2, 3], "the order of a dataset is that of its behaviours"
    drawn: list[list[int]] = [[], []]
    for batch in made:
        assert len(batch) == 2
        for names, part in zip(drawn, batch, strict=True):
            names += part.slates[:, 0, 0].tolist()
        learner.step += 1
    assert [len(names) for names in drawn] == [12, 12]  # one epoch of four batches
    for names, sample in zip(drawn, made.samples, strict=True):
        assert sorted(names) == sorted(made.training.slates[sample, 0, 0].tolist())
        assert len(set(names)) < 12 and not set(names) & {*parts[0], *parts[1]}
    assert sorted(drawn[0]) != sorted(drawn[1])


def test_too_few_sessions() -> None:
    with pytest.raises(UserError, match=r"dataset=file: too few sessions \(2\); user_training.holdout=0.4"):
        sessions(tiny_ensemble(), toy_log(2))


def test_an_update_is_one_step_of_each_member_on_its_own_batch() -> None:
    learner, batches = tiny_ensemble(), [tiny_sessions(4, seed) for seed in (1, 2)]
    expected = []
    for number, batch in enumerate(batches):
        member = tiny_member(number)
        click, leave = losses(member(batch), batch)
        total = click + leave / 4
        expected.append([total.item(), click.item(), leave.item()])
        optimizer = torch.optim.Adam(member.parameters(), lr=0.01)
        total.backward()
        optimizer.step()
        if number == 1:
            weights = member.state_dict()
    terms = learner.update(batches)
    assert [terms[name].item() for name in learner.TERMS] == pytest.approx(torch.tensor(expected).mean(0).tolist())
    for name, value in learner.members[1].state_dict().items():
        torch.testing.assert_close(value, weights[name])


def test_a_member_stops_alone_and_keeps_its_best_weights() -> None:
    learner, held_out = tiny_ensemble(), tiny_sessions(8, seed=3)
    found = learner.validate(held_out)
    first = [entry[0] for entry in learner.lowest]
    assert found["val/loss/total"] == pytest.approx(sum(first) / 2) and learner.stale == [0, 0]
    best = {name: value.clone() for name, value in learner.best[0].state_dict().items()}
    with torch.no_grad():
        learner.members[0].rank_bias.add_(5)  # worse
        learner.members[1].load_state_dict(learner.best[1].state_dict())
    for stale in (1, 2):
        with torch.no_grad():  # better each time
            optimizer = torch.optim.SGD(learner.members[1].parameters(), lr=0.05)
            with torch.enable_grad():
                click, leave = losses(learner.members[1](held_out), held_out)
                learner.members[1].zero_grad()
                (click + leave / 4).backward()
            optimizer.step()
        found = learner.validate(held_out)
        assert learner.stale == [stale, 0] and learner.lowest[0][0] == first[0] and learner.lowest[1][0] < first[1]
    assert found["val/learning"] == 1 and learner.learning() == [1]
    assert all(torch.equal(value, best[name]) for name, value in learner.best[0].state_dict().items())
    before = learner.members[0].rank_bias.clone()
    learner.update([tiny_sessions(), tiny_sessions()])
    assert torch.equal(learner.members[0].rank_bias, before)
    again = tiny_ensemble()
    again.load_learner_state(learner.learner_state())
    assert (again.lowest, again.stale) == (learner.lowest, learner.stale)


def test_held_out_loss_of_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, data = tiny_ensemble(), tiny_sessions(9)
    with torch.no_grad():
        click, leave = losses(learner.members[0](data), data)
    monkeypatch.setattr("slaterl.user_models.ensemble.SESSIONS", 2)
    with torch.no_grad():
        found = learner._held_out(learner.members[0], data)
    assert found == pytest.approx(((click + leave / 4).item(), click.item(), leave.item()), abs=1e-6)


def test_finds_known_probabilities() -> None:
    """Of the items, of the neighbours in a slate, of the turn before, and of leaving."""
    sizes = dict(num_items=TOY_ITEMS, slate_size=TOY_SLOTS, item_dim=4, hidden_dim=8, slot_dim=8, leaves=True)
    with seeded_weights(0, "toy"):
        learner = Ensemble([ClickModel(**sizes) for _ in range(2)], lr=0.01, patience=3)
    made = sessions(learner, toy_log(2500), holdout=0.2, max_steps=400, batch_size=100)
    learner.start_at(made.training)
    for batch in made:
        learner.step += 1
        if not learner.learning():
            break
        learner.update(batch)
        if learner.step % 40 == 0:
            learner.validate(made.held_out)
    new = toy_log(300, seed=1)
    clicks, leaving = learner.chances(new)
    clicked = new.clicks.bool().any(2)
    truth = toy_chance(new.slates[:, 1:].long(), clicked[:, :-1])
    assert (clicks - truth)[new.mask].abs().mean() < 0.03
    assert (truth.mean() - truth)[new.mask].abs().mean() > 0.1, "a constant would pass, too"
    gone = torch.where(clicked[:, 1:], 0.05, 0.3)
    assert leaving is not None and (leaving - gone)[new.mask].abs().mean() < 0.04
    assert math.isfinite(learner.lowest[0][0])
