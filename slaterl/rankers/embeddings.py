"""Sources of item embeddings, for rankers and agents that compare items."""

from __future__ import annotations

import torch
from torch import Tensor

from slaterl.bounds import Count, Fraction, Holdout, Positive
from slaterl.envs.env import Env
from slaterl.errors import UserError


def scratch(*, num_items: int, dim: Count) -> Tensor:
    """Draw random embeddings [N, E] from N(0, 1), without knowledge of the items."""
    return torch.randn(num_items, dim)


def ideal(*, env: Env) -> Tensor:
    """Return the simulator's own embeddings [N, D]: an upper bound, since no recommender knows them.

    Raises:
        UserError: the environment has none.
    """
    if env.item_embeddings is None:
        raise UserError(f"item_embeddings=ideal: env={env.name} has no item embeddings; use scratch or mf")
    return env.item_embeddings.cpu()


def initial_factors(
    *,
    num_items: int,
    dim: Count,
    lr: Positive,
    batch_size: Count,
    epochs: Count,
    weight_decay: Fraction,
    holdout: Holdout,
) -> Tensor:
    """Draw the item factors [N, E] that stage=mf starts from, N(0, 0.1^2). That stage reads the other settings."""
    return 0.1 * torch.randn(num_items, dim)
