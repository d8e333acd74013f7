"""The rankers in a space of item embeddings: what they rank, what they make of a slate, and their box."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slaterl import layers
from slaterl.config.build import make
from slaterl.errors import UserError
from slaterl.rankers.base import argmax
from slaterl.rankers.embedding_space import EmbeddingRanker, KHeadArgmax, TopK
from slaterl.seeds import stream
from tests.helpers import ITEMS, SLOTS

DIM = 5
KINDS = pytest.mark.parametrize("kind", [TopK, KHeadArgmax])


def some_items(count: int = ITEMS, dim: int = DIM) -> Tensor:
    """Of different norms, some of the dimensions wide and none around 0."""
    spread = torch.linspace(0.5, 3, dim)
    return torch.randn(count, dim, generator=stream(0, "items")) * spread + torch.linspace(-1, 2, dim)


def unit_norm(items: Tensor) -> Tensor:
    return items / items.norm(dim=1, keepdim=True)


def build(kind: type[EmbeddingRanker], items: Tensor, slate_size: int = SLOTS, unique: bool = True) -> Any:
    return kind(item_embeddings=items, slate_size=slate_size, unique=unique)


def made(kind: type[EmbeddingRanker], **settings: Any) -> Any:
    """Build it from a node of the configuration, whose values are checked against the signature."""
    node = {"_target_": f"{kind.__module__}.{kind.__name__}", **settings}
    return make(node, "ranker", item_embeddings=some_items(), slate_size=SLOTS)


def some_slates(count: int, repeats: bool = True) -> Tensor:
    draws = torch.rand(count, ITEMS, generator=stream(0, "slates"))
    return (draws * ITEMS).long()[:, :SLOTS] if repeats else draws.argsort(1)[:, :SLOTS]


def some_actions(count: int, ranker: EmbeddingRanker) -> Tensor:
    return torch.rand(count, ranker.action_dim, generator=stream(0, "actions")) * 2 - 1


def decoded(ranker: EmbeddingRanker, slates: Tensor) -> Tensor:
    """Encoded, as an agent's action, and ranked again."""
    action = ranker.to_action(ranker.encode(slates, torch.zeros_like(slates)))
    return ranker.rank(ranker.to_latent(action))


def inner_products(ranker: EmbeddingRanker, action: Tensor) -> np.ndarray:
    """Of each query of one user's action [A] with each item, [queries, N]."""
    latent = ranker.center.double().numpy() + ranker.half_width.double().numpy() * action.double().numpy()
    return latent.reshape(-1, DIM) @ ranker.item_embeddings.double().numpy().T


# --- from actions to slates


def test_top_k_are_the_largest_inner_products_best_first() -> None:
    ranker = build(TopK, some_items())
    actions = some_actions(20, ranker)
    for action, slate in zip(actions, ranker.rank(ranker.to_latent(actions)), strict=True):
        (scores,) = inner_products(ranker, action)
        assert slate.tolist() == np.argsort(-scores)[:SLOTS].tolist()


@pytest.mark.parametrize("unique", [False, True])
def test_k_head_argmax_has_the_largest_inner_product_in_each_slot(unique: bool) -> None:
    """Where unique, of the items that no slot before shows."""
    ranker = build(KHeadArgmax, some_items(), unique=unique)
    actions = some_actions(50, ranker)
    slates = ranker.rank(ranker.to_latent(actions))
    for action, slate in zip(actions, slates.tolist(), strict=True):
        expected: list[int] = []
        for scores in inner_products(ranker, action):
            left = [item for item in range(ITEMS) if not (unique and item in expected)]
            expected.append(max(left, key=scores.__getitem__))
        assert slate == expected
    assert unique == all(len(set(slate)) == SLOTS for slate in slates.tolist())


def test_a_query_in_every_slot_is_the_top_k_where_unique() -> None:
    one, each = build(TopK, some_items()), build(KHeadArgmax, some_items())
    query = one.to_latent(some_actions(10, one))
    assert torch.equal(each.rank(query.repeat(1, SLOTS)), one.rank(query))
    repeated = build(KHeadArgmax, some_items(), unique=False).rank(query.repeat(1, SLOTS))
    assert torch.equal(repeated, one.rank(query)[:, :1].expand(-1, SLOTS))


@pytest.mark.parametrize("unique", [False, None, 1])
def test_top_k_has_no_repeats_to_ask_for(unique: Any) -> None:
    shown = {False: "false", None: "null"}.get(unique, unique)
    with pytest.raises(UserError, match=rf"ranker\.unique={shown}: .*true"):
        made(TopK, unique=unique)


@pytest.mark.parametrize("unique", ["yes", None, 1])
def test_unique_is_true_or_false(unique: Any) -> None:
    shown = "null" if unique is None else unique
    with pytest.raises(UserError, match=rf"ranker\.unique={shown}: expected true or false"):
        made(KHeadArgmax, unique=unique)


# --- from slates to actions and back


@pytest.mark.parametrize("unique", [False, True])
def test_k_head_argmax_gets_its_slates_back(unique: bool) -> None:
    """With unit norms no item has a larger inner product with another than that has with itself."""
    ranker = build(KHeadArgmax, unit_norm(some_items()), unique=unique)
    slates = some_slates(200, repeats=not unique)
    assert unique or any(len(set(slate)) < SLOTS for slate in slates.tolist())
    assert torch.equal(decoded(ranker, slates), slates)


def test_top_k_gets_the_items_of_a_slate_back_where_they_are_orthogonal() -> None:
    """Their order is lost in the mean."""
    rotated = torch.linalg.qr(torch.randn(ITEMS, ITEMS, generator=stream(0, "rotation"))).Q
    ranker, slates = build(TopK, rotated), some_slates(50, repeats=False)
    assert torch.equal(decoded(ranker, slates).sort(1).values, slates.sort(1).values)


def test_top_k_gets_a_slate_of_alike_items_back() -> None:
    """Six bundles of five items each, of which any slate from one bundle comes back from that bundle."""
    bundles = unit_norm(torch.randn(6, 12, generator=stream(0, "bundles"))).repeat_interleave(5, dim=0)
    ranker = build(TopK, bundles + 0.05 * torch.randn(ITEMS, 12, generator=stream(0, "within")))
    slates = torch.tensor([[5 * bundle + item for item in (0, 2, 3, 4)] for bundle in range(6)])
    assert torch.equal(decoded(ranker, slates) // 5, slates // 5)


def test_top_k_gets_more_of_a_slate_back_than_chance() -> None:
    """Of unrelated items in few dimensions not all come back."""
    ranker, slates = build(TopK, unit_norm(some_items())), some_slates(200, repeats=False)
    back = (decoded(ranker, slates).unsqueeze(2) == slates.unsqueeze(1)).any(2).float()
    assert back.mean() > 2 * SLOTS / ITEMS  # twice what random slates would hold


@KINDS
def test_encoding_is_inside_the_box(kind: type[EmbeddingRanker]) -> None:
    """So that no part of it is clipped away; and it does not depend on the clicks, nor on how ids are stored."""
    ranker, slates = build(kind, some_items()), some_slates(100)
    encoded = ranker.encode(slates, torch.zeros_like(slates))
    torch.testing.assert_close(ranker.to_latent(ranker.to_action(encoded)), encoded, rtol=1e-4, atol=1e-5)
    assert torch.equal(ranker.encode(slates.to(torch.uint8), torch.ones_like(slates)), encoded)


@KINDS
def test_a_dimension_without_spread_has_the_action_zero(kind: type[EmbeddingRanker]) -> None:
    """As in embeddings from a file that have a column of zeros: its box is a point."""
    items = some_items()
    items[:, 1] = 0
    ranker, slates = build(kind, items), some_slates(10)
    action = ranker.to_action(ranker.encode(slates, slates)).unflatten(1, (-1, items.shape[1]))
    assert action.isfinite().all() and (action[..., 1] == 0).all()


@KINDS
def test_encoding_of_trajectories_is_that_of_their_slates(kind: type[EmbeddingRanker]) -> None:
    ranker, slates = build(kind, some_items()), some_slates(6)
    by_turn = ranker.encode(slates.view(2, 3, SLOTS), slates.view(2, 3, SLOTS))
    assert by_turn.shape == (2, 3, ranker.action_dim)
    assert torch.equal(by_turn.flatten(0, 1), ranker.encode(slates, slates))


# --- the box


@KINDS
def test_box_is_the_range_of_the_items(kind: type[EmbeddingRanker]) -> None:
    items = some_items()
    ranker = build(kind, items)
    queries = 1 if kind is TopK else SLOTS
    assert ranker.action_dim == queries * DIM
    corners = ranker.to_latent(torch.tensor([[-1.0], [1.0]]).expand(-1, ranker.action_dim))
    expected = torch.stack([items.amin(0).repeat(queries), items.amax(0).repeat(queries)])
    torch.testing.assert_close(corners, expected)
    random = ranker.random_action(300, stream(0, "random"))
    assert random.shape == (300, ranker.action_dim) and 0.45 < random.abs().max() <= 0.5


@KINDS
def test_other_items_move_scores_and_box(kind: type[EmbeddingRanker]) -> None:
    """A ranker that is given items is the one that was made of them; neither keeps hold of the tensor."""
    made_of, given = some_items(), some_items()
    ranker, other = build(kind, torch.ones(ITEMS, DIM)), build(kind, made_of)
    ranker.set_items(given)
    given.zero_()
    made_of.zero_()
    assert other.item_embeddings.any()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in ranker.state_dict().items())
    latent = other.to_latent(some_actions(20, other))
    assert torch.equal(ranker.rank(latent), other.rank(latent))


@KINDS
def test_state_dict_carries_items_and_box(kind: type[EmbeddingRanker]) -> None:
    ranker, loaded = build(kind, some_items()), build(kind, torch.ones(ITEMS, DIM))
    loaded.load_state_dict(ranker.state_dict())
    actions = some_actions(20, ranker)
    assert torch.equal(loaded.rank(loaded.to_latent(actions)), ranker.rank(ranker.to_latent(actions)))
    assert not list(ranker.parameters())  # fixed: an optimiser finds nothing to move


def test_best_by_slot_where_unique_is_best_of_what_is_left() -> None:
    """Against every order in which three slots could be filled: slot by slot, the earlier choose first."""
    ranker = build(KHeadArgmax, some_items(5), slate_size=3)
    queries = torch.randn(40, 3, DIM, generator=stream(0, "queries"))
    every = list(itertools.permutations(range(5), 3))
    slates = ranker.best_by_slot(queries, ranker.item_embeddings).tolist()
    for score, slate in zip(queries @ ranker.item_embeddings.T, slates, strict=True):
        by_slot = [[score[slot, item].item() for slot, item in enumerate(items)] for items in every]
        assert tuple(slate) == every[by_slot.index(max(by_slot))]


def test_argmax_is_the_first_largest() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0], [float("nan"), 5.0, 0.0], [2.0, 2.0, 2.0]])
    assert argmax(scores).tolist() == scores.argmax(-1).tolist() == [1, 0, 0]


def test_blocks_do_not_change_slates(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = build(KHeadArgmax, some_items())
    actions = some_actions(9, ranker)
    slates = ranker.rank(ranker.to_latent(actions))
    monkeypatch.setattr(layers, "BLOCK", 2 * ranker.slate_size * len(ranker.item_embeddings))  # two users
    assert torch.equal(ranker.rank(ranker.to_latent(actions)), slates)
