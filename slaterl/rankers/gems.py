"""GeMS: a variational auto-encoder of slates and clicks. Its latent space is the agent's action space.

What such auto-encoders share is in SlateVAE; one with another decoder is a subclass with `decode`, `rank` and `draw`.

Deffayet et al., "Generative Slate Recommendation with Reinforcement Learning", WSDM 2023, section 4.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from slaterl.bounds import Count, NonNegative, Widths
from slaterl.layers import first_derivative_only, in_blocks, layers, product
from slaterl.networks import mlp
from slaterl.rankers.base import Ranker
from slaterl.runtime import exact_products


class GeMSLosses(NamedTuple):
    """The unweighted terms of the loss (scalars), and the share of slots reconstructed."""

    slate: Tensor  # cross-entropy over items, mean over slots
    click: Tensor  # binary cross-entropy, mean over slots
    kl: Tensor  # mean over latent dimensions
    prior: Tensor  # squared distance of a learned prior from the standard normal
    accuracy: Tensor


class SlateVAE(Ranker):
    """Encoder, prior and losses of a VAE of slates and clicks, which is a ranker when frozen. A subclass decodes.

    Args:
        item_dim: E, width of the item embeddings, learned from scratch.
        latent_dim: A.
        encoder_hidden: widths of the hidden layers.
        lambda_click, lambda_KL: weights of the click and the KL term.
        lambda_prior: if positive, the prior's mean and log-variance are learned and kept close to the standard normal
            with this weight; if 0, the prior is the standard normal.
        posterior_noise: factor on the noise in a posterior sample: `variance`, as in the published code and its
            figures, or `std`, as in the reparameterisation of a Gaussian.
        unique, temperature: see Ranker.
    """

    PRETRAINED: ClassVar = True

    def __init__(
        self,
        *,
        num_items: int,
        slate_size: int,
        item_dim: Count,
        latent_dim: Count,
        encoder_hidden: Widths,
        lambda_click: NonNegative,
        lambda_KL: NonNegative,  # noqa: N803 (the paper's name)
        lambda_prior: NonNegative,
        posterior_noise: Literal["variance", "std"],
        unique: bool,
        temperature: NonNegative = 0.0,
    ) -> None:
        super().__init__(latent_dim, unique, temperature)
        self.slate_size, self.item_dim = slate_size, item_dim
        self.lambda_click, self.lambda_kl, self.lambda_prior = lambda_click, lambda_KL, lambda_prior
        self.posterior_noise = posterior_noise
        self.item_embeddings = nn.Parameter(torch.randn(num_items, item_dim))
        self.encoder = mlp(slate_size * (item_dim + 1), encoder_hidden, 2 * latent_dim)
        self.prior = nn.Parameter(torch.zeros(2, latent_dim), requires_grad=lambda_prior > 0)

    def decode(self, latent: Tensor, slates: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries [B, S, E], whose products with items are their logits, and logits of clicks [B, S].

        Args:
            latent: [B, A].
            slates: [B, S]. A slot may read the items of the slots before it, but neither its own nor a later one.
        """
        raise NotImplementedError

    def posterior(self, slates: Tensor, clicks: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance [B, A] of the latent, given slates and clicks [B, S]."""
        items = self.item_embeddings.index_select(0, slates.reshape(-1).long()).view(slates.shape[0], -1)
        mean, log_variance = self.encoder(items, clicks.to(items.dtype)).chunk(2, dim=1)
        return mean, log_variance

    def encode(self, slate: Tensor, clicks: Tensor) -> Tensor:
        return self.posterior(slate, clicks)[0]

    def losses(self, slates: Tensor, clicks: Tensor, noise: Tensor | None) -> GeMSLosses:
        """Return the terms of the negative ELBO for slates and clicks [B, S].

        Args:
            noise: [B, A] standard normal draws; None decodes the posterior mean (validation).
        """
        mean, log_variance = self.posterior(slates, clicks)
        latent = mean
        if noise is not None:
            scale = log_variance if self.posterior_noise == "variance" else log_variance / 2
            latent = mean + noise * scale.exp()
        queries, click_logits = self.decode(latent, slates)
        slate_loss, accuracy = _ItemCrossEntropy.apply(
            queries.flatten(0, 1), self.item_embeddings.detach(), slates.flatten().long()
        )
        prior_mean, prior_log_variance = self.prior
        ratio = ((mean - prior_mean).square() + log_variance.exp()) / prior_log_variance.exp()
        return GeMSLosses(
            slate=slate_loss,
            click=binary_cross_entropy_with_logits(click_logits, clicks.to(click_logits.dtype)),
            kl=0.5 * (ratio - 1 + prior_log_variance - log_variance).mean(),
            prior=self.prior.square().sum(),
            accuracy=accuracy,
        )

    def total(self, losses: GeMSLosses) -> Tensor:
        """Return the weighted sum of the terms."""
        elbo = losses.slate + self.lambda_click * losses.click + self.lambda_kl * losses.kl
        return elbo + self.lambda_prior * losses.prior

    @torch.no_grad()
    def fit_box(self, slates: Tensor, clicks: Tensor) -> None:
        """Set the action box to the range of posterior mean ± standard deviation over slates and clicks [M, S]."""
        lows, highs = [], []
        for part_slates, part_clicks in zip(slates.split(8192), clicks.split(8192), strict=True):
            mean, log_variance = self.posterior(part_slates, part_clicks)
            deviation = (log_variance / 2).exp()
            lows.append((mean - deviation).amin(0))
            highs.append((mean + deviation).amax(0))
        self.set_box(torch.stack(lows).amin(0), torch.stack(highs).amax(0))


class GeMS(SlateVAE):
    """The VAE of the paper: one MLP decodes all slots at once, so that they are independent given z.

    Args:
        decoder_hidden: widths of the hidden layers.
        others: see SlateVAE.
    """

    def __init__(
        self, *, slate_size: int, item_dim: Count, latent_dim: Count, decoder_hidden: Widths, **others: Any
    ) -> None:
        super().__init__(slate_size=slate_size, item_dim=item_dim, latent_dim=latent_dim, **others)
        self.decoder = nn.Sequential(mlp(latent_dim, decoder_hidden[:-1], decoder_hidden[-1]), nn.ReLU())
        self.slate_head = nn.Linear(decoder_hidden[-1], slate_size * item_dim)
        self.click_head = nn.Linear(decoder_hidden[-1], slate_size)

    def decode(self, latent: Tensor, slates: Tensor) -> tuple[Tensor, Tensor]:
        hidden = layers([latent], list(self.decoder.parameters()), relu_last=True)
        queries = layers([hidden], list(self.slate_head.parameters()))
        clicks = layers([hidden], list(self.click_head.parameters()))
        return queries.view(-1, self.slate_size, self.item_dim), clicks

    def rank(self, latent: Tensor) -> Tensor:
        return self.best_by_slot(self.queries(latent), self.item_embeddings)

    def draw(self, latent: Tensor, generator: torch.Generator) -> Tensor:
        return self.best_by_slot(self.queries(latent), self.item_embeddings, generator)

    def queries(self, latent: Tensor) -> Tensor:
        """Return the queries of `decode` alone, [B, A] -> [B, S, E]."""
        queries = layers([latent], [*self.decoder.parameters(), *self.slate_head.parameters()])
        return queries.unflatten(1, (self.slate_size, self.item_dim))


class _ItemCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of queries [R, E] over items [N, E] for target ids [R], and the share of hits.

    Equals cross_entropy(queries @ items.T, target) without a gradient into the items, in a third of the time. A block
    of logits stays in the second-level cache. The forward pass takes the exponentials once, in place. It also computes
    the gradient with respect to the queries, (softmax @ items - item of target) / R.
    """

    @staticmethod
    @exact_products()
    def forward(ctx: Any, queries: Tensor, items: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        # with a column of ones, the product that averages the items also sums the exponentials
        summed = torch.cat([items, items.new_ones(len(items), 1)], dim=1).t().contiguous()  # [E + 1, N]
        losses, hits, averages = [], [], []
        blocks = zip(in_blocks(queries, len(items)), in_blocks(target, len(items)), strict=True)
        for block, wanted in blocks:
            logits = product(block, items)
            of_target = logits.gather(1, wanted.unsqueeze(1))
            largest = logits.amax(1, keepdim=True)
            sums = product(logits.sub_(largest).exp_(), summed)  # [block, E + 1]
            losses.append(sums[:, -1:].log() + largest - of_target)
            hits.append(of_target >= largest)
            averages.append(sums[:, :-1] / sums[:, -1:])
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((torch.cat(averages) - items[target]) / len(queries))
        accuracy = torch.cat(hits).float().mean()
        ctx.mark_non_differentiable(accuracy)
        return torch.cat(losses).mean(), accuracy

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        first_derivative_only("cross-entropy of GeMS")
        (grad_queries,) = ctx.saved_tensors
        return grad_loss * grad_queries, None, None
