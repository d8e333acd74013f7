"""GeMS with a transformer against NumPy: its decoder, what a slot may see, and that serving decodes as training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from slaterl.config.build import make, plain
from slaterl.errors import UserError
from slaterl.rankers.gems_transformer import GeMSTransformer
from slaterl.rankers.pretraining import GeMSPretraining, Slates
from slaterl.seeds import stream
from tests.helpers import ITEMS, LATENT, SLOTS, Array, arrays, compose_config, mlp_forward, tiny_transformer

BATCH = 6


def some_slates(seed: int = 0, count: int = BATCH) -> Tensor:
    return torch.randint(ITEMS, (count, SLOTS), generator=stream(seed, "slates"))


def some_latents(count: int = BATCH) -> Tensor:
    return 2 * torch.randn(count, LATENT, generator=stream(0, "latents"), dtype=torch.float64)


def norm(weights: dict[str, Array], prefix: str, inputs: Array) -> Array:
    centered = inputs - inputs.mean(-1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{prefix}.weight"] + weights[f"{prefix}.bias"]


def linear(weights: dict[str, Array], prefix: str, inputs: Array) -> Array:
    return inputs @ weights[f"{prefix}.weight"].T + weights[f"{prefix}.bias"]


def decode(gems: GeMSTransformer, latent: Array, slates: Array) -> tuple[Array, Array]:
    """Item logits [B, S, N] and click logits [B, S] in NumPy, one slate, one slot and one head at a time."""
    weights = arrays(gems)
    heads = gems.layers[0].heads
    item_logits, click_logits = [], []
    for z, slate in zip(latent, slates, strict=True):
        hidden = np.stack(
            [
                linear(weights, "from_latent", z)
                + weights["positions"][slot]
                + (weights["from_item.weight"] @ weights["item_embeddings"][slate[slot - 1]] if slot else 0)
                for slot in range(SLOTS)
            ]
        )  # [S, W]
        for number in range(len(gems.layers)):
            prefix = f"layers.{number}"
            normed = norm(weights, f"{prefix}.attention_norm", hidden)
            queries = linear(weights, f"{prefix}.to_queries", normed)
            keys, values = np.split(linear(weights, f"{prefix}.to_pairs", normed), 2, axis=1)
            width = queries.shape[1] // heads
            mixed = np.zeros_like(queries)
            for slot in range(SLOTS):
                for head in range(heads):
                    own = slice(head * width, (head + 1) * width)
                    scores = np.array(
                        [
                            queries[slot, own] @ keys[other, own] / math.sqrt(width)
                            + weights[f"{prefix}.bias"][head, slot - other]
                            for other in range(slot + 1)
                        ]
                    )
                    shares = np.exp(scores - scores.max())
                    mixed[slot, own] = (shares / shares.sum()) @ values[: slot + 1, own]
            hidden = hidden + linear(weights, f"{prefix}.joined", mixed)
            wide = linear(weights, f"{prefix}.widened", norm(weights, f"{prefix}.mlp_norm", hidden))
            gelu = wide * 0.5 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
            hidden = hidden + linear(weights, f"{prefix}.narrowed", gelu)
        hidden = norm(weights, "norm", hidden)
        item_logits.append(linear(weights, "slate_head", hidden) @ weights["item_embeddings"].T)
        click_logits.append(linear(weights, "click_head", hidden)[:, 0])
    return np.stack(item_logits), np.stack(click_logits)


def logits_of(gems: GeMSTransformer, latent: Tensor, slates: Tensor) -> tuple[Tensor, Tensor]:
    queries, clicks = gems.decode(latent, slates)
    return queries @ gems.item_embeddings.T, clicks


@pytest.mark.parametrize("sampled", [True, False])
def test_terms_equal_the_derivation(sampled: bool) -> None:
    gems, slates = tiny_transformer().double(), some_slates().to(torch.uint8)
    clicks = torch.rand(BATCH, SLOTS, generator=stream(0, "clicks")) < 0.4
    noise = torch.randn(BATCH, LATENT, generator=stream(0, "noise"), dtype=torch.float64)
    found = gems.losses(slates, clicks, noise if sampled else None)

    weights, target, clicked = arrays(gems), slates.numpy().astype(int), clicks.numpy()
    inputs = np.hstack([weights["item_embeddings"][target].reshape(BATCH, -1), clicked])
    mean, log_variance = np.split(mlp_forward(weights, "encoder.", inputs), 2, axis=1)
    latent = mean + (noise.numpy() * np.exp(log_variance) if sampled else 0)
    logits, click_logits = decode(gems, latent, target)
    log_softmax = logits - np.log(np.exp(logits).sum(2, keepdims=True))
    chance = 1 / (1 + np.exp(-click_logits))
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).mean()
    assert found.slate.item() == pytest.approx(-np.take_along_axis(log_softmax, target[..., None], 2).mean(), rel=1e-9)
    assert found.click.item() == pytest.approx(-np.log(np.where(clicked, chance, 1 - chance)).mean(), rel=1e-9)
    assert found.kl.item() == pytest.approx(kl, rel=1e-9)
    assert found.accuracy.item() == pytest.approx((logits.argmax(2) == target).mean(), rel=1e-6)


@pytest.mark.parametrize("changed", range(SLOTS))
def test_a_slot_sees_the_slots_before_it_alone(changed: int) -> None:
    gems, latent, slates = tiny_transformer().double(), some_latents(), some_slates()
    other = slates.clone()
    other[:, changed] = (slates[:, changed] + 1 + torch.arange(BATCH)) % ITEMS
    later = torch.arange(SLOTS) > changed
    for before, after in zip(logits_of(gems, latent, slates), logits_of(gems, latent, other), strict=True):
        differs = (before != after).reshape(BATCH, SLOTS, -1).any(2)
        assert torch.equal(differs, later.expand(BATCH, -1))


def test_every_slot_reads_the_latent() -> None:
    gems, slates = tiny_transformer().double(), some_slates()
    latent = some_latents().requires_grad_()
    queries, clicks = gems.decode(latent, slates)
    for slot in range(SLOTS):
        for part in (queries[:, slot].sum(), clicks[:, slot].sum()):
            assert (torch.autograd.grad(part, latent, retain_graph=True)[0] != 0).all()


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("draws", [False, True])
def test_serving_decodes_as_training_does(unique: bool, draws: bool) -> None:
    """Step by step, with a cache, each slot has the logits that teacher forcing gives for the slate that came out."""
    gems, latent = tiny_transformer(unique=unique, temperature=0.7).double(), some_latents(40)
    generator = stream(3, "draws") if draws else None
    slates = gems.fill(latent, generator)
    logits, _ = logits_of(gems, latent, slates)
    again = stream(3, "draws")
    for slot in range(SLOTS):
        scores = logits[:, slot].detach()
        if draws:
            scores = scores / 0.7 - torch.empty_like(scores).exponential_(generator=again).log()
        if unique:
            scores = scores.scatter(1, slates[:, :slot], -torch.inf)
        assert torch.equal(slates[:, slot], scores.argmax(1))
    assert len(slates.unique(dim=0)) > 5
    assert not unique or (slates.sort(1).values.diff(dim=1) > 0).all()


def test_items_learn_where_they_are_read() -> None:
    """The slate term's gradients, with the products of queries and items against constant items."""
    gems, slates = tiny_transformer().double(), some_slates()
    clicks = torch.rand(BATCH, SLOTS, generator=stream(0, "clicks")) < 0.4
    noise = torch.randn(BATCH, LATENT, generator=stream(0, "noise"), dtype=torch.float64)
    parameters = [value for name, value in gems.named_parameters() if not name.startswith(("prior", "click_head"))]
    found = torch.autograd.grad(gems.losses(slates, clicks, noise).slate, parameters)
    mean, log_variance = gems.posterior(slates, clicks)
    queries, _ = gems.decode(mean + noise * log_variance.exp(), slates)
    logits = queries.flatten(0, 1) @ gems.item_embeddings.detach().T
    expected = torch.autograd.grad(cross_entropy(logits, slates.flatten()), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert all(gradient.abs().sum() > 0 for gradient in found)


def test_rank_takes_no_gradient() -> None:
    assert not tiny_transformer().rank(some_latents().float().requires_grad_()).requires_grad


def test_learns_a_handful_of_slates_by_heart() -> None:
    generator = stream(0, "by heart")
    slates = torch.randint(ITEMS, (8, SLOTS), generator=generator)
    clicks = torch.rand(8, SLOTS, generator=generator) < 0.5
    sizes: dict[str, Any] = dict(item_dim=20, latent_dim=4, encoder_hidden=[64], decoder_dim=32, lambda_KL=0.001)
    learner = GeMSPretraining(tiny_transformer(drift=0, **sizes), lr=5e-3, generator=stream(0, "noise"))
    for _ in range(250):
        last = learner.update(Slates(slates, clicks))
    gems = learner.gems
    latent = gems.encode(slates, clicks)
    assert torch.equal(gems.rank(latent), slates)
    assert torch.equal(gems.decode(latent, slates)[1] > 0, clicks)
    assert last["accuracy/slot"] == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"decoder_dim": 10, "decoder_heads": 4},
            "ranker.decoder_dim=10: must be a multiple of ranker.decoder_heads=4",
        ),
        ({"decoder_layers": 0}, "ranker.decoder_layers=0: expected a whole number of at least 1"),
        ({"latent_dim": 0}, "ranker.latent_dim=0: expected a whole number of at least 1"),
        ({"temperature": -1.0}, "ranker.temperature=-1.0: expected a number of at least 0"),
    ],
)
def test_impossible_values_are_named(wrong: dict[str, Any], message: str) -> None:
    node = plain(compose_config("ranker=gems_transformer").ranker)
    with pytest.raises(UserError) as error:
        make({**node, **wrong}, "ranker", num_items=ITEMS, slate_size=SLOTS)
    assert str(error.value) == message


def test_slates_of_one_item() -> None:
    """No item stands before the only slot."""
    ranker = tiny_transformer(slate_size=1)
    slates = torch.tensor([[3], [7]])
    losses = ranker.losses(slates, torch.tensor([[1], [0]]), noise=None)
    ranker.total(losses).backward()
    assert losses.slate.isfinite()
    assert ranker.rank(torch.zeros(2, LATENT)).shape == (2, 1)
