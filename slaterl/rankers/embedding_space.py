"""Rankers with actions in a space of item embeddings: one for the whole slate, or one for each slot."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from slaterl.bounds import NonNegative
from slaterl.errors import UserError
from slaterl.rankers.base import Ranker
from slaterl.runtime import exact_products

LARGEST_BIAS = 5.0  # of a linear scorer; clicks of 0.7 % to 99.3 %


class EmbeddingRanker(Ranker):
    """Compare queries with fixed item embeddings. The action box is the range of the embeddings in each dimension.

    Args:
        item_embeddings: [N, E], scratch, mf or ideal; part of the state dict.
        queries: number of queries in an action.
    """

    item_embeddings: Tensor

    def __init__(
        self, item_embeddings: Tensor, slate_size: int, queries: int, unique: bool, temperature: float = 0.0
    ) -> None:
        super().__init__(queries * item_embeddings.shape[1], unique, temperature)
        self.slate_size, self.queries = slate_size, queries
        self.register_buffer("item_embeddings", item_embeddings.clone())
        self.set_items(item_embeddings)

    def set_items(self, item_embeddings: Tensor) -> None:
        """Replace the item embeddings by these [N, E]."""
        self.item_embeddings.copy_(item_embeddings)
        low, high = (bound.repeat(self.queries) for bound in self.item_embeddings.aminmax(dim=0))
        self.set_box(low, high)

    @exact_products()
    def scores(self, latent: Tensor) -> Tensor:
        """Return the inner products of all queries with all items, [B, A] -> [B, queries, N]."""
        return latent.unflatten(1, (self.queries, -1)) @ self.item_embeddings.T


class TopK(EmbeddingRanker):
    """Show the S items with the largest inner products with one query, best first (Deffayet et al. 2023, section 6)."""

    def __init__(
        self, *, item_embeddings: Tensor, slate_size: int, unique: bool, temperature: NonNegative = 0.0
    ) -> None:
        if not unique:
            raise UserError("ranker.unique=false: the top k items never repeat; use true, or ranker=k_head_argmax")
        super().__init__(item_embeddings, slate_size, 1, unique, temperature)

    def rank(self, latent: Tensor) -> Tensor:
        return self.scores(latent)[:, 0].topk(self.slate_size, dim=1).indices

    def draw(self, latent: Tensor, generator: torch.Generator) -> Tensor:
        # the largest S of perturbed scores are S draws without replacement (Kool et al. 2019, arXiv 1903.06059)
        return self.tempered(self.scores(latent)[:, 0], generator).topk(self.slate_size, dim=1).indices

    def encode(self, slate: Tensor, clicks: Tensor) -> Tensor:
        """Return the mean of the embeddings of a slate, which lies in the box."""
        return self.item_embeddings[slate.long()].mean(-2)


class KHeadArgmax(EmbeddingRanker):
    """One query per slot: each slot gets the item with the largest inner product (Deffayet et al. 2023, section 6)."""

    def __init__(
        self, *, item_embeddings: Tensor, slate_size: int, unique: bool, temperature: NonNegative = 0.0
    ) -> None:
        super().__init__(item_embeddings, slate_size, slate_size, unique, temperature)

    def rank(self, latent: Tensor) -> Tensor:
        return self.best_by_slot(latent.unflatten(1, (self.queries, -1)), self.item_embeddings)

    def draw(self, latent: Tensor, generator: torch.Generator) -> Tensor:
        return self.best_by_slot(latent.unflatten(1, (self.queries, -1)), self.item_embeddings, generator)

    def encode(self, slate: Tensor, clicks: Tensor) -> Tensor:
        """Return the embeddings of the slate's items. Exact unless another item scores higher with one of them."""
        return self.item_embeddings[slate.long()].flatten(-2)


class LinearScorer(Ranker):
    """Show the S items that a linear scorer puts first; the action is its weights and its bias, [E + 1].

    This is the hyper-action of HAC (Liu et al. 2023, arXiv 2302.03431, section 3.2). A score is the logit of a click.
    Scorers read the embeddings scaled to a mean square of 1 in each dimension. The box of a weight is [-1, 1], so that
    one dimension alone moves a score by up to a deviation. That of the bias is [-5, 5].

    Args:
        item_embeddings: [N, E], scratch, mf or ideal. The state dict holds them scaled.
    """

    item_embeddings: Tensor

    def __init__(self, *, item_embeddings: Tensor, slate_size: int) -> None:
        super().__init__(action_dim=item_embeddings.shape[1] + 1, unique=True)
        self.slate_size = slate_size
        self.half_width[-1] = LARGEST_BIAS
        self.register_buffer("item_embeddings", item_embeddings.clone())
        self.set_items(item_embeddings)

    def set_items(self, item_embeddings: Tensor) -> None:
        """Replace the item embeddings by these [N, E]."""
        scale = item_embeddings.square().mean(0).sqrt().clamp(min=torch.finfo(item_embeddings.dtype).tiny)
        self.item_embeddings.copy_(item_embeddings / scale)

    def logits(self, latent: Tensor, slates: Tensor) -> Tensor:
        """Score the items of slates [..., S] by scorers [..., A]: [..., S]."""
        weights, bias = latent[..., :-1], latent[..., -1:]
        return (self.item_embeddings[slates.long()] @ weights.unsqueeze(-1)).squeeze(-1) + bias

    @exact_products()
    def rank(self, latent: Tensor) -> Tensor:
        return (latent[:, :-1] @ self.item_embeddings.T).topk(self.slate_size, dim=1).indices  # whatever the bias

    def encode(self, slate: Tensor, clicks: Tensor) -> Tensor:
        """Return the mean of the slate's embeddings as weights, and no bias."""
        return pad(self.item_embeddings[slate.long()].mean(-2), (0, 1))
