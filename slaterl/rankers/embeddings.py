"""Sources of the item embeddings by which a ranker or an agent compares items."""

from __future__ import annotations

import torch
from torch import Tensor

from slaterl.envs.env import Env
from slaterl.errors import UserError, check_counts, check_positive, check_range


def scratch(*, num_items: int, dim: int) -> Tensor:
    """Random embeddings [N, E] from N(0, 1), without knowledge of the items."""
    check_counts(**{"item_embeddings.dim": dim})
    return torch.randn(num_items, dim)


def ideal(*, env: Env) -> Tensor:
    """The simulator's own embeddings [N, D]: an upper bound, since no recommender has them.

    Raises:
        UserError: the environment has none.
    """
    if env.item_embeddings is None:
        raise UserError(f"item_embeddings=ideal: env={env.name} has no item embeddings; use scratch or mf")
    return env.item_embeddings.cpu()


def initial_factors(
    *, num_items: int, dim: int, lr: float, batch_size: int, epochs: int, weight_decay: float, holdout: float
) -> Tensor:
    """The item factors [N, E] that stage=mf starts from, N(0, 0.1^2). The rest are settings of that stage."""
    check_counts(**{"item_embeddings.dim": dim, "item_embeddings.batch_size": batch_size})
    check_counts(**{"item_embeddings.epochs": epochs})
    check_positive(**{"item_embeddings.lr": lr, "item_embeddings.holdout": holdout})
    check_range(0, 1, **{"item_embeddings.weight_decay": weight_decay, "item_embeddings.holdout": holdout})
    return 0.1 * torch.randn(num_items, dim)
