"""A belief without recurrence: the running mean of what each frame says, the simplest baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from slaterl.beliefs.frames import EmbeddedFrames
from slaterl.bounds import Count, Share
from slaterl.envs.observation import Observation, PrivilegedObservation


class MeanBelief(EmbeddedFrames):
    """The weighted mean of the embedded frames 0..t, where frame s has the weight decay^(t - s).

    Its memory is the mean and the sum of the weights.

    Args:
        item_dim: width of the item embeddings.
        hidden_dim: width of the embedded frames, and so of the state.
        decay: 1 is the plain mean; below 1, frames further back count less.
        shared: see Belief.
    """

    def __init__(
        self, *, num_items: int, slate_size: int, item_dim: Count, hidden_dim: Count, decay: Share, shared: bool = False
    ) -> None:
        super().__init__(num_items, slate_size, item_dim, hidden_dim, shared)
        self.decay = decay

    @property
    def memory_dim(self) -> int:
        return self.state_dim + 1

    def step(self, observation: Observation | PrivilegedObservation, memory: Tensor) -> Tensor:
        mean, total = memory[:, :-1], self.decay * memory[:, -1:] + 1
        return torch.cat([mean + (self.embed(observation) - mean) / total, total], dim=1)

    def over(self, embedded: Tensor) -> Tensor:
        turn = torch.arange(len(embedded), device=embedded.device, dtype=embedded.dtype)
        back = turn.unsqueeze(1) - turn  # [T, T] how far a frame lies back; below zero in the future
        weight = (self.decay ** back.clamp(min=0)).tril()
        weight = weight / weight.sum(1, keepdim=True)
        return (weight @ embedded.flatten(1)).view_as(embedded)
