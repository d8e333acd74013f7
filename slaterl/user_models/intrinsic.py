"""What a turn of env=learned pays besides clicks: penalties where the model may be wrong, and bonuses.

The K members expect clicks on a slate with the chances p [K, B, S].
"""

from __future__ import annotations

import torch
from torch import Tensor

from slaterl.bounds import NonNegative
from slaterl.errors import UserError
from slaterl.user_models.saved import UserModel


class Intrinsic:
    """A term of the reward. A subclass gives `measure`, and says by SIGN whether it is a penalty or a bonus.

    Args:
        weight: factor on the measure.
    """

    SIGN = -1.0

    def __init__(self, *, weight: NonNegative) -> None:
        self.weight = weight

    def begin(self, model: UserModel) -> None:
        """Read what the term needs of the model, before users come. Raise UserError if it is not there."""

    def measure(self, chances: Tensor, slate: Tensor) -> Tensor:
        """Return the measure [B] of slates [B, S], on which the members expect clicks with chances [K, B, S]."""
        raise NotImplementedError

    def reward(self, chances: Tensor, slate: Tensor) -> Tensor:
        """Return what users pay less or more for slates [B, S]: [B]."""
        return self.SIGN * self.weight * self.measure(chances, slate)


class Disagreement(Intrinsic):
    """A penalty on the standard deviation over the members of the number of clicks that they expect.

    It is the deviation of an ensemble's means, as in Lu et al. (arXiv 2110.04135). One member cannot disagree.
    """

    def measure(self, chances: Tensor, slate: Tensor) -> Tensor:
        expected = chances.sum(2)
        return expected.std(0) if len(expected) > 1 else torch.zeros_like(expected[0])


class LargestVariance(Intrinsic):
    """A penalty on the largest variance that a member gives the number of clicks: max_k sum_s p_ks (1 - p_ks).

    This is DORL's uncertainty (Gao et al., arXiv 2307.04571). Its members are Gaussian and learn their variances. A
    click's variance follows from its chance, so the penalty is on doubtful clicks, of seen slates as well as unseen.
    """

    def measure(self, chances: Tensor, slate: Tensor) -> Tensor:
        return (chances * (1 - chances)).sum(2).amax(0)


class LargestDeviation(LargestVariance):
    """A penalty on the largest deviation that a member gives the number of clicks: the root of LargestVariance.

    This is MOPO's u(s, a) = max_k |Sigma_k(s, a)| (Yu et al., arXiv 2005.13239, section 4.3). A member's clicks on a
    slate are independent, so it is the norm of their deviations.
    """

    def measure(self, chances: Tensor, slate: Tensor) -> Tensor:
        return super().measure(chances, slate).sqrt()


class BehaviourEntropy(Intrinsic):
    """A bonus for items after which the behaviour of the data showed many different items (DORL, arXiv 2307.04571).

    It is the mean over the slate of H(next item | item) / log N, which is in [0, 1]. See entropy.py.
    """

    SIGN = 1.0

    def begin(self, model: UserModel) -> None:
        if model.entropies is None:
            raise UserError("it has no entropies of the behaviour; make it again")
        self.entropies = model.entropies

    def measure(self, chances: Tensor, slate: Tensor) -> Tensor:
        return self.entropies[slate].mean(1)
