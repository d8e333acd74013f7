"""A conditional VAE of the recorded actions, in which BCQ finds proposals and PLAS acts.

Fujimoto et al., "Off-Policy Deep Reinforcement Learning without Exploration", arXiv 1812.02900, section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from slaterl.agents.losses import mean
from slaterl.networks import mlp

# Standard deviation of the decoder around a decoded action. The VAE tells apart what differs by more than this.
# The authors' weights amount to 0.35: a mean of squares over A, plus half a mean of the KL over 2A. With them the VAE
# ignores its latents, because actions of the data deviate by 0.4 in all, and by less in a given state.
DECODER_DEVIATION = 0.05


class ActionVAE(nn.Module):
    """A conditional VAE of actions given belief states, with a latent of 2A dimensions."""

    def __init__(self, state_dim: int, action_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.latent_dim = 2 * action_dim
        self.encoder = mlp(state_dim + action_dim, hidden, 2 * self.latent_dim)
        self.decoder = mlp(state_dim + self.latent_dim, hidden, action_dim)

    def decode(self, state: Tensor, latent: Tensor) -> Tensor:
        """Decode states [..., state] and latents [..., 2A] into actions [..., A] in [-1, 1]."""
        return self.decoder(state, latent).tanh()

    def loss(self, state: Tensor, action: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return squared error + 2 * DECODER_DEVIATION^2 * KL, divided by A, for standard normal noise [..., 2A].

        This is the negative evidence lower bound of a Gaussian decoder, times 2 * DECODER_DEVIATION^2 / A.

        Args:
            mask: [B, H] the turns of sessions, for states [B, H, state]; None for all.
        """
        center, log_std = self.encoder(state, action).chunk(2, dim=-1)
        log_std = log_std.clamp(-4, 15)
        decoded = self.decode(state, center + log_std.exp() * noise)
        kl = mean(0.5 * (center.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(-1), mask)
        return (
            mean((decoded - action).square(), mask, of_vectors=True) + 2 * DECODER_DEVIATION**2 * kl / action.shape[-1]
        )
