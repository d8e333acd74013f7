"""GeMS with a decoder that fills a slate slot by slot, each slot seeing the slots before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from slaterl.bounds import Count
from slaterl.errors import UserError
from slaterl.networks import AttentionLayer
from slaterl.rankers.base import argmax
from slaterl.rankers.gems import SlateVAE
from slaterl.runtime import exact_products


class GeMSTransformer(SlateVAE):
    """A VAE of slates and clicks whose decoder is a causal transformer over the slots.

    GeMS (Deffayet et al. 2023) decodes all slots at once, so they are independent given z. Here

        P(slate, clicks | z) = prod_s P(item_s | z, items before s) P(click_s | z, items before s)

    A slot starts from the sum of a linear map of z, of the item before it, and a vector of its own. Training reads the
    recorded items (teacher forcing) in one pass. Serving fills one slot after the other and keeps keys and values.
    Items learn where they are read, in encoder and decoder, and not where they are scored.

    Args:
        decoder_dim: W, width of a slot.
        decoder_layers, decoder_heads: layers of attention, and heads in a layer.
        others: see SlateVAE.

    Raises:
        UserError: decoder_dim is not a multiple of decoder_heads.
    """

    layers: Sequence[AttentionLayer]

    def __init__(
        self,
        *,
        slate_size: int,
        item_dim: Count,
        latent_dim: Count,
        decoder_dim: Count,
        decoder_layers: Count,
        decoder_heads: Count,
        **others: Any,
    ) -> None:
        if decoder_dim % decoder_heads:
            raise UserError(
                f"ranker.decoder_dim={decoder_dim}: must be a multiple of ranker.decoder_heads={decoder_heads}"
            )
        super().__init__(slate_size=slate_size, item_dim=item_dim, latent_dim=latent_dim, **others)
        self.from_latent = nn.Linear(latent_dim, decoder_dim)
        self.from_item = nn.Linear(item_dim, decoder_dim, bias=False)
        self.positions = nn.Parameter(0.1 * torch.randn(slate_size, decoder_dim))
        made = (AttentionLayer(decoder_dim, decoder_heads, slate_size) for _ in range(decoder_layers))
        self.layers = nn.ModuleList(made)  # type: ignore[assignment] # it is a sequence
        self.norm = nn.LayerNorm(decoder_dim)
        self.slate_head = nn.Linear(decoder_dim, item_dim)
        self.click_head = nn.Linear(decoder_dim, 1)

    def decode(self, latent: Tensor, slates: Tensor) -> tuple[Tensor, Tensor]:
        before = self.item_embeddings.index_select(0, slates[:, :-1].reshape(-1).long())
        before = self.from_item(before).view(len(slates), self.slate_size - 1, len(self.from_item.weight))
        hidden = self.starts(latent) + pad(before, (0, 0, 1, 0))  # nothing stands before the first slot
        for layer in self.layers:
            hidden = layer(hidden)
        hidden = self.norm(hidden)
        return self.slate_head(hidden), self.click_head(hidden).squeeze(-1)

    def starts(self, latent: Tensor) -> Tensor:
        """Return the share of the latents [B, A] and of the place in the inputs of the slots: [B, S, W]."""
        return self.from_latent(latent).unsqueeze(1) + self.positions

    def rank(self, latent: Tensor) -> Tensor:
        return self.fill(latent, None)

    def draw(self, latent: Tensor, generator: torch.Generator) -> Tensor:
        return self.fill(latent, generator)

    @torch.no_grad()
    @exact_products()
    def fill(self, latent: Tensor, generator: torch.Generator | None) -> Tensor:
        """Fill the slates [B, S] of latents [B, A] slot by slot: by draws, or without a generator by the argmax."""
        starts, items = self.starts(latent), self.item_embeddings
        slate = torch.empty(starts.shape[:2], dtype=torch.int64, device=latent.device)
        taken = torch.zeros(latent.shape[0], len(items) if self.unique else 0, dtype=torch.bool, device=latent.device)
        caches = [starts.new_empty(*slate.shape, 2 * starts.shape[2]) for _ in self.layers]  # keys and values
        for slot in range(self.slate_size):
            hidden = starts[:, slot : slot + 1]
            if slot:
                hidden = hidden + self.from_item(items[slate[:, slot - 1]]).unsqueeze(1)
            for layer, cache in zip(self.layers, caches, strict=True):
                queries, cache[:, slot : slot + 1] = layer.project(hidden)
                bias = layer.bias[:, : slot + 1].flip(1).unsqueeze(1)
                hidden = layer.after(hidden, layer.attend(queries, cache[:, : slot + 1], bias))
            scores = self.tempered(self.slate_head(self.norm(hidden)).squeeze(1) @ items.T, generator)  # [B, N]
            slate[:, slot] = argmax(scores.masked_fill(taken, -torch.inf) if self.unique else scores)
            if self.unique:
                taken.scatter_(1, slate[:, slot : slot + 1], True)
        return slate
