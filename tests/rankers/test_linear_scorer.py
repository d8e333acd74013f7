"""The ranker of HAC: actions are weights and biases of linear scorers."""

from __future__ import annotations

import numpy as np
import torch

from slaterl.rankers.embedding_space import LinearScorer
from slaterl.seeds import stream

ITEMS, WIDTH, SLOTS = 40, 3, 5


def embeddings(seed: int = 0) -> torch.Tensor:
    spread = torch.tensor([0.1, 1, 5])
    return torch.randn(ITEMS, WIDTH, generator=stream(seed, "items")) * spread


def test_shows_the_items_of_the_largest_scores() -> None:
    ranker, action = LinearScorer(item_embeddings=embeddings(), slate_size=SLOTS), torch.rand(8, WIDTH + 1) * 2 - 1
    items = embeddings().double().numpy()
    items /= np.sqrt((items**2).mean(0))
    scores = action.double().numpy()[:, :-1] @ items.T + 5 * action.double().numpy()[:, -1:]
    latent = ranker.to_latent(action)
    slates = ranker.rank(latent)
    assert slates.tolist() == np.argsort(-scores, axis=1)[:, :SLOTS].tolist()
    expected = np.take_along_axis(scores, slates.numpy(), 1)
    np.testing.assert_allclose(ranker.logits(latent, slates).numpy(), expected, rtol=1e-5, atol=1e-5)
    every = ranker.logits(latent.unsqueeze(1), slates.unsqueeze(1))  # with another dimension, as in updates
    assert torch.equal(every[:, 0], ranker.logits(latent, slates))


def test_the_bias_changes_scores_and_no_slate() -> None:
    ranker, latent = LinearScorer(item_embeddings=embeddings(), slate_size=SLOTS), torch.rand(8, WIDTH + 1)
    more = latent + torch.tensor([0.0, 0, 0, 2])
    assert torch.equal(ranker.rank(latent), ranker.rank(more))
    slates = ranker.rank(latent)
    torch.testing.assert_close(ranker.logits(more, slates), ranker.logits(latent, slates) + 2)


def test_other_items_replace_the_first() -> None:
    """Their scale does not matter, also that of a dimension without any."""
    ranker = LinearScorer(item_embeddings=embeddings(0), slate_size=SLOTS)
    flat = embeddings(1)
    flat[:, 1] = 0
    ranker.set_items(3 * flat)
    assert torch.allclose(ranker.item_embeddings.square().mean(0), torch.tensor([1.0, 0, 1]))
    other = LinearScorer(item_embeddings=flat, slate_size=SLOTS)
    assert torch.allclose(ranker.item_embeddings, other.item_embeddings)


def test_encoding_is_the_mean_of_the_items() -> None:
    ranker, slates = LinearScorer(item_embeddings=embeddings(), slate_size=SLOTS), torch.arange(10).view(2, SLOTS)
    encoded = ranker.encode(slates, torch.zeros_like(slates))
    assert encoded.shape == (2, ranker.action_dim) and (encoded[:, -1] == 0).all()
    torch.testing.assert_close(encoded[:, :-1], ranker.item_embeddings[slates].mean(1))
