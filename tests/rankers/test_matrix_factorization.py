"""Matrix factorisation by BPR: its loss and gradients in NumPy, its batches, and that it ranks what was clicked."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slaterl.config.build import make
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.rankers.embeddings import initial_factors
from slaterl.rankers.matrix_factorization import ClickData, Clicks, MatrixFactorization
from slaterl.seeds import seeded_weights, stream
from tests.agents.derivations import assert_gradients
from tests.helpers import ITEMS, SLOTS, TURNS, Array, arrays, copy_of, tiny_trajectories

USERS, DIM = 6, 4


def tiny_mf(users: int = USERS, weight_decay: float = 0.0, lr: float = 0.05, scale: float = 1.0) -> MatrixFactorization:
    with seeded_weights(0, "tiny mf"):
        mf = MatrixFactorization(
            torch.randn(ITEMS, DIM), users, lr=lr, weight_decay=weight_decay, generator=stream(0, "negatives")
        )
        with torch.no_grad():
            mf.users.copy_(torch.randn(users, DIM))
            for factors in mf.parameters():
                factors.mul_(scale)
    return mf


def some_clicks(count: int = 20) -> Clicks:
    """Of some users and items more than one."""
    generator = stream(0, "clicks")
    return Clicks(
        torch.randint(USERS, (count,), generator=generator), torch.randint(ITEMS, (count,), generator=generator)
    )


def bpr(weights: dict[str, Array], clicks: Clicks, negatives: Tensor, weight_decay: float) -> float:
    """Minus the mean of log P(user prefers the clicked item) with P the logistic of the difference, and the penalty."""
    total = 0.0
    for user, clicked, other in zip(*(ids.tolist() for ids in (*clicks, negatives)), strict=True):
        u, i, j = weights["users"][user], weights["items"][clicked], weights["items"][other]
        total -= np.log(1 / (1 + np.exp(-(u @ i - u @ j))))
        total += weight_decay * (u @ u + i @ i + j @ j)
    return total / len(clicks.users)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_loss_and_gradients_equal_the_derivation(weight_decay: float) -> None:
    mf, clicks = tiny_mf(weight_decay=weight_decay), some_clicks()
    before = arrays(mf)
    negatives = mf.negatives(20, copy_of(mf.generators["negatives"]))
    terms = mf.update(clicks)
    assert terms["loss/bpr"].item() == pytest.approx(bpr(before, clicks, negatives, weight_decay), rel=1e-5)
    loss = partial(bpr, clicks=clicks, negatives=negatives, weight_decay=weight_decay)
    assert_gradients(mf, before, loss, ["users", "items"])


def test_accuracy_is_the_share_of_pairs_in_order() -> None:
    mf = tiny_mf()
    with torch.no_grad():
        mf.users.fill_(1.0)
        mf.items.copy_(torch.arange(float(ITEMS)).unsqueeze(1).expand(-1, DIM))
    clicks = Clicks(torch.tensor([0, 1, 2, 3]), torch.tensor([10, 20, 5, 7]))
    _, accuracy = mf.losses(clicks, torch.tensor([9, 21, 4, 7]))
    assert accuracy.item() == 0.5  # an item is not preferred to itself


def test_one_update_widens_the_differences() -> None:
    mf, clicks = tiny_mf(lr=1e-3), some_clicks()
    negatives = mf.negatives(20, copy_of(mf.generators["negatives"]))
    before = mf.losses(clicks, negatives)[0].item()
    mf.update(clicks)
    assert mf.losses(clicks, negatives)[0].item() < before


def test_negatives_are_uniform_over_items() -> None:
    counts = torch.bincount(tiny_mf().negatives(30_000, stream(0, "many")), minlength=ITEMS)
    assert len(counts) == ITEMS
    assert (counts - 1000).abs().max() < 5 * 1000**0.5


def test_validation_moves_nothing_and_repeats_itself() -> None:
    mf = tiny_mf()
    state, weights = mf.generators["negatives"].get_state(), arrays(mf)
    first = mf.validate(some_clicks(), seed=3)
    assert set(first) == set(MatrixFactorization.VAL_TERMS)
    assert first == mf.validate(some_clicks(), seed=3) != mf.validate(some_clicks(), seed=4)
    assert torch.equal(mf.generators["negatives"].get_state(), state)
    assert all((weights[name] == value).all() for name, value in arrays(mf).items())


# --- batches of clicks


def click_data(mf: MatrixFactorization, log: Trajectories, **changes: Any) -> ClickData:
    return ClickData(log, mf, **(dict(batch_size=8, epochs=2, holdout=0.25, source="log", seed=1) | changes))


def pairs(*parts: Clicks) -> list[tuple[int, int]]:
    return sorted(pair for part in parts for pair in zip(part.users.tolist(), part.items.tolist(), strict=True))


def train(mf: MatrixFactorization, data: ClickData, until: int | None = None) -> list[Clicks]:
    batches = []
    for batch in data:
        mf.training_step(batch, 0)
        batches.append(batch)
        if mf.step == until:
            break
    return batches


def test_an_epoch_is_every_click_but_the_held_out_ones() -> None:
    """And none of frame 0, which nobody chose."""
    log, mf = tiny_trajectories(USERS), tiny_mf()
    data = click_data(mf, log)
    slates, clicks = log.slates.numpy(), log.clicks.numpy()
    places = np.argwhere(clicks[:, 1:])
    expected = sorted((int(user), int(slates[user, turn + 1, slot])) for user, turn, slot in places)
    assert clicks[:, 0].any()
    assert len(data.held_out.users) == round(len(expected) / 4)
    assert pairs(data.held_out, data.training) == expected
    assert len(data) == data.max_steps == 2 * data.steps_per_epoch
    batches = train(mf, data)
    assert len(batches) == data.max_steps and len(data) == 0
    assert data.counters == {"epoch": 2, "clicks": 2 * len(data.training.users)}  # the last batch of each is small
    for epoch in (batches[: data.steps_per_epoch], batches[data.steps_per_epoch :]):
        assert pairs(*epoch) == pairs(data.training)
    assert [len(batch.users) for batch in batches[: data.steps_per_epoch - 1]] == [8] * (data.steps_per_epoch - 1)
    assert not torch.equal(batches[0].items, batches[data.steps_per_epoch].items)  # shuffled anew


def test_goes_on_in_the_middle_of_an_epoch() -> None:
    log = tiny_trajectories(USERS)
    through, stopped, resumed = tiny_mf(), tiny_mf(), tiny_mf()
    data = click_data(through, log)
    middle = data.steps_per_epoch + 2
    expected = train(through, data)[middle:]
    train(stopped, click_data(stopped, log), until=middle)
    resumed.load_learner_state(stopped.learner_state())
    rest = train(resumed, click_data(resumed, log))
    assert [batch.items.tolist() for batch in rest] == [batch.items.tolist() for batch in expected]
    assert all((arrays(through)[name] == value).all() for name, value in arrays(resumed).items())


def test_held_out_clicks_are_the_seeds() -> None:
    log = tiny_trajectories(USERS)
    held = [pairs(click_data(tiny_mf(), log, seed=seed).held_out) for seed in (1, 1, 2)]
    assert held[0] == held[1] != held[2]


@pytest.mark.parametrize("holdout", [1e-6, 1.0])
def test_a_holdout_that_leaves_nothing_is_refused(holdout: float) -> None:
    with pytest.raises(UserError, match=rf"^log: too few clicks \(\d+\); item_embeddings\.holdout={holdout} keeps"):
        click_data(tiny_mf(), tiny_trajectories(USERS), holdout=holdout)


# --- what it learns


def separable_log(users: int) -> Trajectories:
    """Users of even number click on items below 15, the others on the rest; frame 0 tells the contrary."""
    slates = torch.randint(ITEMS, (users, TURNS + 1, SLOTS), generator=stream(0, "log"))
    even = torch.arange(users) % 2 == 0
    liked = (slates < 15) == even.view(-1, 1, 1)
    liked[:, 0] = ~liked[:, 0]
    return Trajectories(slates=slates, clicks=liked.to(torch.uint8))


def share_in_order(liked: Array, others: Array) -> float:
    """Of pairs of an item that is liked and one that is not, scores [users, items] of each."""
    return float((liked[:, :, None] > others[:, None, :]).mean())


def test_ranks_what_a_user_clicks_above_the_rest() -> None:
    """Also the many items that this very user has never met."""
    mf = tiny_mf(users=40, scale=0.1)
    data = click_data(mf, separable_log(40), epochs=20, batch_size=64)
    start = mf.validate(data.held_out, seed=0)
    train(mf, data)
    scores = (mf.users @ mf.items.T).detach().numpy()
    even, odd = scores[::2], scores[1::2]
    assert share_in_order(even[:, :15], even[:, 15:]) > 0.95
    assert share_in_order(odd[:, 15:], odd[:, :15]) > 0.95
    end = mf.validate(data.held_out, seed=0)
    assert end["val/loss/bpr"] < start["val/loss/bpr"]
    assert end["val/accuracy/pair"] > 0.65 > start["val/accuracy/pair"]  # half of the negatives are liked as well
    # what is liked by the same users points in one direction, which is what a ranker needs
    directions = torch.nn.functional.normalize(mf.items.detach(), dim=1)
    alike = directions @ directions.T
    assert alike[:15, :15].mean() > 0.4 and alike[:15, 15:].mean() < -0.4


# --- where it starts

SETTINGS = dict(num_items=ITEMS, dim=DIM, lr=0.01, batch_size=8, epochs=2, weight_decay=0.0, holdout=0.1)


def test_starts_from_small_factors() -> None:
    with seeded_weights(0, "factors"):
        factors = initial_factors(**(SETTINGS | dict(num_items=2000)))
    assert factors.shape == (2000, DIM)
    assert factors.std().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    "wrong",
    [{"dim": 0}, {"lr": 0}, {"batch_size": 0}, {"epochs": 0}, {"weight_decay": -0.1}, {"holdout": 0}, {"holdout": 1.5}],
)
def test_impossible_values_are_named(wrong: dict[str, Any]) -> None:
    ((field, value),) = wrong.items()
    with pytest.raises(UserError, match=rf"item_embeddings\.{field}={value}"):
        make({"_target_": "slaterl.rankers.embeddings.initial_factors", **SETTINGS, **wrong}, "item_embeddings")
