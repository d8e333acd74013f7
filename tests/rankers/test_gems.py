"""GeMS against NumPy: each term of its loss, ranking, the action box; and that it can learn slates by heart."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import cross_entropy

from slaterl.config.build import make, plain
from slaterl.errors import UserError
from slaterl.rankers.gems import GeMS, _ItemCrossEntropy
from slaterl.rankers.pretraining import GeMSPretraining, SlateData, Slates
from slaterl.seeds import stream
from tests.helpers import ITEMS, LATENT, SLOTS, Array, arrays, compose_config, mlp_forward, tiny_gems, tiny_trajectories

BATCH = 6


@pytest.fixture
def slates() -> Tensor:
    return torch.randint(ITEMS, (BATCH, SLOTS), generator=stream(0, "slates")).to(torch.uint8)


@pytest.fixture
def clicks() -> Tensor:
    return torch.rand(BATCH, SLOTS, generator=stream(0, "clicks")) < 0.4


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(BATCH, LATENT, generator=stream(0, "noise"), dtype=torch.float64)


def with_prior(gems: GeMS) -> GeMS:
    """Another prior than the standard normal, as one that is learned comes to be."""
    with torch.no_grad():
        gems.prior.copy_(torch.tensor([[0.3, -0.6, 1.0], [0.2, -0.4, 0.7]]))
    return gems


def posterior(weights: dict[str, Array], slates: Tensor, clicks: Tensor) -> tuple[Array, Array]:
    """Mean and log-variance in NumPy."""
    items = weights["item_embeddings"][slates.numpy()].reshape(len(slates), -1)
    mean, log_variance = np.split(mlp_forward(weights, "encoder.", np.hstack([items, clicks.numpy()])), 2, axis=1)
    return mean, log_variance


def decode(weights: dict[str, Array], latent: Array) -> tuple[Array, Array]:
    """Item logits [B, S, N] and click logits [B, S] in NumPy."""
    hidden = np.maximum(mlp_forward(weights, "decoder.0.", latent), 0)
    queries = hidden @ weights["slate_head.weight"].T + weights["slate_head.bias"]
    logits = queries.reshape(len(latent), SLOTS, -1) @ weights["item_embeddings"].T
    return logits, hidden @ weights["click_head.weight"].T + weights["click_head.bias"]


@pytest.mark.parametrize("posterior_noise", ["variance", "std"])
@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("learned_prior", [True, False])
def test_terms_equal_the_derivation(
    slates: Tensor, clicks: Tensor, noise: Tensor, posterior_noise: str, sampled: bool, learned_prior: bool
) -> None:
    gems = tiny_gems(posterior_noise=posterior_noise, lambda_prior=0.3 if learned_prior else 0.0)
    gems = (with_prior(gems) if learned_prior else gems).double()
    weights = arrays(gems)
    found = gems.losses(slates, clicks, noise if sampled else None)

    mean, log_variance = posterior(weights, slates, clicks)
    variance, latent = np.exp(log_variance), mean
    if sampled:
        latent = mean + noise.numpy() * (variance if posterior_noise == "variance" else np.sqrt(variance))
    logits, click_logits = decode(weights, latent)
    log_softmax = logits - np.log(np.exp(logits).sum(2, keepdims=True))
    target, clicked = slates.numpy().astype(int), clicks.numpy()
    click_probability = 1 / (1 + np.exp(-click_logits))
    prior_mean, prior_log_variance = weights["prior"]
    expected_kl = kl_divergence(
        Normal(torch.from_numpy(mean), torch.from_numpy(np.sqrt(variance))),
        Normal(torch.from_numpy(prior_mean), torch.from_numpy(np.exp(prior_log_variance / 2))),
    )

    assert found.slate.item() == pytest.approx(-np.take_along_axis(log_softmax, target[..., None], 2).mean(), rel=1e-9)
    assert found.click.item() == pytest.approx(
        -np.log(np.where(clicked, click_probability, 1 - click_probability)).mean(), rel=1e-9
    )
    assert found.kl.item() == pytest.approx(expected_kl.mean().item(), rel=1e-9)
    assert found.prior.item() == pytest.approx((weights["prior"] ** 2).sum(), rel=1e-9)
    assert found.accuracy.item() == pytest.approx((logits.argmax(2) == target).mean(), rel=1e-6)


def test_accuracy_is_the_share_of_hits() -> None:
    items = torch.eye(4, dtype=torch.float64)
    _, accuracy = _ItemCrossEntropy.apply(items[[0, 1, 2, 0]], items, torch.tensor([0, 1, 3, 1]))
    assert accuracy.item() == 0.5


def test_total_is_the_weighted_sum(slates: Tensor, clicks: Tensor, noise: Tensor) -> None:
    gems = with_prior(tiny_gems(lambda_click=0.2, lambda_KL=0.7, lambda_prior=0.05)).double()
    terms = gems.losses(slates, clicks, noise)
    expected = terms.slate + 0.2 * terms.click + 0.7 * terms.kl + 0.05 * terms.prior
    torch.testing.assert_close(gems.total(terms), expected)


def test_item_cross_entropy_is_torchs() -> None:
    generator = stream(0, "queries")
    queries = (3 * torch.randn(7, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    items = torch.randn(11, 5, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randint(11, (7,), generator=generator)
    loss, _ = _ItemCrossEntropy.apply(queries, items, target)
    (found,) = torch.autograd.grad(2.5 * loss, queries, retain_graph=True)
    reference = cross_entropy(queries @ items.detach().T, target)
    (expected,) = torch.autograd.grad(2.5 * reference, queries)
    torch.testing.assert_close(loss, reference, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    # nothing goes into the embeddings through this product
    assert torch.autograd.grad(loss, items, allow_unused=True) == (None,)
    assert torch.autograd.gradcheck(lambda q: _ItemCrossEntropy.apply(q, items.detach(), target)[0], queries)


def test_embeddings_learn_through_the_encoder_alone(slates: Tensor, clicks: Tensor, noise: Tensor) -> None:
    """The slate term's gradients, of every parameter, with the decoder's product against constant embeddings."""
    gems = tiny_gems().double()
    parameters = [gems.item_embeddings, *gems.encoder.parameters(), *gems.decoder.parameters()]
    found = torch.autograd.grad(gems.losses(slates, clicks, noise).slate, parameters)
    mean, log_variance = gems.posterior(slates, clicks)
    hidden = gems.decoder(mean + noise * log_variance.exp())
    logits = gems.slate_head(hidden).reshape(-1, 5) @ gems.item_embeddings.detach().T
    expected = torch.autograd.grad(cross_entropy(logits, slates.flatten().long()), parameters)
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("lambda_prior", [0.0, 0.3])
def test_prior_is_learned_only_where_it_has_a_weight(
    slates: Tensor, clicks: Tensor, noise: Tensor, lambda_prior: float
) -> None:
    learner = GeMSPretraining(tiny_gems(lambda_prior=lambda_prior), lr=0.01, generator=stream(0, "noise"))
    for _ in range(2):
        learner.update(Slates(slates, clicks))
    moved = not torch.equal(learner.gems.prior, torch.zeros(2, LATENT))
    assert moved == (lambda_prior > 0)


def test_rank_is_the_argmax() -> None:
    gems = tiny_gems()
    latent = 3 * torch.randn(20, LATENT, generator=stream(0, "latents"))
    logits, _ = decode(arrays(gems), latent.double().numpy())
    assert len(np.unique(logits.argmax(2))) > 3
    np.testing.assert_array_equal(gems.rank(latent).numpy(), logits.argmax(2))


def test_encode_is_the_posterior_mean(slates: Tensor, clicks: Tensor) -> None:
    gems = tiny_gems()
    expected, _ = posterior(arrays(gems), slates, clicks)
    np.testing.assert_allclose(gems.encode(slates, clicks).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_box_spans_mean_and_deviation(slates: Tensor, clicks: Tensor) -> None:
    gems = tiny_gems()
    mean, log_variance = posterior(arrays(gems), slates, clicks)
    low, high = (mean - np.exp(log_variance / 2)).min(0), (mean + np.exp(log_variance / 2)).max(0)
    gems.fit_box(slates, clicks)
    np.testing.assert_allclose(gems.center.numpy(), (low + high) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gems.half_width.numpy(), (high - low) / 2, rtol=1e-5)
    ones = torch.ones(LATENT)
    np.testing.assert_allclose(gems.to_latent(-ones).numpy(), low, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gems.to_latent(ones).numpy(), high, rtol=1e-4, atol=1e-5)


def test_to_action_undoes_to_latent() -> None:
    gems = tiny_gems()
    actions = torch.rand(5, 4, LATENT, generator=stream(0, "actions")) * 2 - 1
    torch.testing.assert_close(gems.to_action(gems.to_latent(actions)), actions)
    # outside the box it clips
    assert gems.to_action(gems.center + 5 * gems.half_width).tolist() == [1.0] * LATENT
    assert gems.to_action(gems.center - 5 * gems.half_width).tolist() == [-1.0] * LATENT


def test_state_dict_carries_the_box(slates: Tensor, clicks: Tensor) -> None:
    gems, other = tiny_gems(), tiny_gems(seed=1)
    gems.fit_box(slates, clicks)
    assert not torch.equal(gems.half_width, other.half_width)
    other.load_state_dict(gems.state_dict())
    assert torch.equal(gems.center, other.center) and torch.equal(gems.half_width, other.half_width)
    latent = gems.to_latent(torch.linspace(-1, 1, 2 * LATENT).view(2, LATENT))
    assert torch.equal(gems.rank(latent), other.rank(latent))


def test_learns_a_handful_of_slates_by_heart() -> None:
    generator = stream(0, "by heart")
    slates = torch.randint(ITEMS, (8, SLOTS), generator=generator)
    clicks = torch.rand(8, SLOTS, generator=generator) < 0.5
    # 20 dimensions: in few, an item inside the hull of the others is never the argmax
    sizes = dict(item_dim=20, latent_dim=4, encoder_hidden=[64], decoder_hidden=[64], lambda_KL=0.001)
    learner = GeMSPretraining(tiny_gems(**sizes), lr=5e-3, generator=stream(0, "noise"))
    first = learner.update(Slates(slates, clicks))
    for _ in range(300):
        last = learner.update(Slates(slates, clicks))
    gems = learner.gems
    assert torch.equal(gems.rank(gems.encode(slates, clicks)), slates)
    assert torch.equal(gems.click_head(gems.decoder(gems.encode(slates, clicks))) > 0, clicks)
    assert first["loss/slate"] > math.log(ITEMS) / 2 > 10 * last["loss/slate"]
    assert last["accuracy/slot"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"latent_dim": 0},
        {"item_dim": -1},
        {"lambda_click": -0.1},
        {"lambda_KL": -1},
        {"lambda_prior": -0.5},
        {"posterior_noise": "sigma"},
    ],
)
def test_impossible_values_are_named(wrong: dict[str, Any]) -> None:
    ((field, value),) = wrong.items()
    with pytest.raises(UserError, match=rf"ranker\.{field}={value}"):
        make({**plain(compose_config().ranker), **wrong}, "ranker", num_items=ITEMS, slate_size=SLOTS)


def test_slates_are_counted_where_the_last_batch_is_small() -> None:
    learner = SimpleNamespace(step=0)
    sizes = dict(batch_size=5, epochs=2, seed=0)
    data = SlateData(tiny_trajectories(5), learner, holdout=0.2, source="log", **sizes)  # type: ignore[arg-type]
    assert data.size % 5
    learner.step = data.max_steps
    assert data.counters == {"epoch": 2, "slates": 2 * data.size}
