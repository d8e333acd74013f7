"""Item embeddings from logged clicks: matrix factorisation by Bayesian personalised ranking.

Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009, arXiv 1205.2618.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, logsigmoid

from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.seeds import stream
from slaterl.training.epochs import Epochs
from slaterl.training.learner import Learner


class Clicks(NamedTuple):
    """C clicks of users on items."""

    users: Tensor  # [C] each trajectory is a user
    items: Tensor  # [C]


class MatrixFactorization(Learner):
    """User and item vectors whose inner products rank clicked items above random ones.

    Args:
        item_factors: initial values [N, E].
        num_users: trajectories in the log.
        generator: draws the negative items, one per click, uniformly over all items.
        weight_decay: weight of the squared norms of the factors in a triple (lambda in the paper).
    """

    TERMS: ClassVar = ("loss/bpr", "accuracy/pair")
    VAL_TERMS: ClassVar = tuple(f"val/{name}" for name in TERMS)

    def __init__(
        self, item_factors: Tensor, num_users: int, *, lr: float, weight_decay: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.items = nn.Parameter(item_factors.clone())
        self.users = nn.Parameter(0.1 * torch.randn(num_users, item_factors.shape[1]))
        self.weight_decay = weight_decay
        self.generators["negatives"] = generator
        self.add_optimizer("factors", self.items, self.users, lr=lr)

    def losses(self, batch: Clicks, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of -log sigmoid(x_ui - x_uj) over clicks plus the penalty, and the share of ordered pairs."""
        user, clicked, other = (
            embedding(batch.users, self.users),
            embedding(batch.items, self.items),
            embedding(negatives, self.items),
        )
        difference = (user * (clicked - other)).sum(1)
        norms = (user.square() + clicked.square() + other.square()).sum(1)
        loss = (-logsigmoid(difference) + self.weight_decay * norms).mean()
        return loss, (difference > 0).float().mean()

    def negatives(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self.items), (count,), generator=generator, device=self.items.device)

    def update(self, batch: Clicks) -> dict[str, Tensor]:
        loss, accuracy = self.losses(batch, self.negatives(len(batch.users), self.generators["negatives"]))
        self.minimise("factors", loss)
        return {"loss/bpr": loss, "accuracy/pair": accuracy}

    @torch.no_grad()
    def validate(self, held_out: Clicks, seed: int) -> dict[str, float]:
        """Return metrics over held-out clicks, with the same negative items every time."""
        generator = stream(seed, "validation negatives", self.items.device)
        losses = self.losses(held_out, self.negatives(len(held_out.users), generator))
        return {name: value.item() for name, value in zip(self.VAL_TERMS, losses, strict=True)}


class ClickData(Epochs):
    """The clicks in logged trajectories, without padding and without frame 0, which no policy chose.

    Args:
        holdout: share of the clicks used for validation.
        source: the setting that chose the data, for the message.
        others: see Epochs.

    Raises:
        UserError: no click would be left to train on, or to validate on.
    """

    UNIT: ClassVar = "clicks"

    def __init__(
        self, data: Trajectories, learner: Learner, *, holdout: float, source: str, seed: int, **others: int
    ) -> None:
        user, turn, slot = (data.clicks[:, 1:] * data.mask.unsqueeze(2)).nonzero(as_tuple=True)
        everything = Clicks(user, data.slates[user, turn + 1, slot].long())
        order = torch.randperm(len(user), generator=stream(seed, "held-out clicks")).to(user.device)
        held = round(len(user) * holdout)
        if not 0 < held < len(user):
            raise UserError(
                f"{source}: too few clicks ({len(user)}); item_embeddings.holdout={holdout} keeps {held} for "
                f"validation and leaves {len(user) - held} to train on; both need at least 1"
            )
        super().__init__(learner, len(user) - held, seed=seed, **others)
        self.held_out, self.training = (Clicks(*(c[part] for c in everything)) for part in (order[:held], order[held:]))

    def take(self, index: Tensor) -> Clicks:
        return Clicks(*(column[index] for column in self.training))
