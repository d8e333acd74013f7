"""BCQ: a generative model of the data's actions proposes, a small perturbation improves, the critics choose.

Fujimoto et al., "Off-Policy Deep Reinforcement Learning without Exploration", arXiv 1812.02900.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from slaterl.agents.offline.base import OfflineActorCritic, PolicyStep, Turns
from slaterl.beliefs.base import JoinedBeliefs
from slaterl.errors import check_counts, check_range, check_widths
from slaterl.networks import mlp, polyak

LATENT_CLIP = 0.5  # of the draws that are decoded: the middle of the prior


class ActionVAE(nn.Module):
    """A conditional VAE of actions given belief states, with a latent of 2A dimensions."""

    def __init__(self, state_dim: int, action_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.latent_dim = 2 * action_dim
        self.encoder = mlp(state_dim + action_dim, hidden, 2 * self.latent_dim)
        self.decoder = mlp(state_dim + self.latent_dim, hidden, action_dim)

    def decode(self, state: Tensor, latent: Tensor) -> Tensor:
        """Actions [..., A] in [-1, 1] for states [..., state] and latents [..., 2A]."""
        return self.decoder(torch.cat([state, latent], dim=-1)).tanh()

    def loss(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """Squared error of the reconstruction + KL / 2, each a mean, for standard normal noise [..., 2A]."""
        mean, log_std = self.encoder(torch.cat([state, action], dim=-1)).chunk(2, dim=-1)
        log_std = log_std.clamp(-4, 15)
        decoded = self.decode(state, mean + log_std.exp() * noise)
        kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).mean()
        return (decoded - action).square().mean() + 0.5 * kl


class BCQ(OfflineActorCritic):
    """y = r + gamma * max over candidates of (lam * min + (1 - lam) * max) of Q'_i; acts on the candidate of best Q1.

    Candidates are draws of the VAE, each moved by the policy (the perturbation xi) by at most `phi`. The VAE and xi
    read the actor's belief, which the VAE trains.

    Args:
        candidates, acting_candidates: n in targets and when acting; those of acting have fixed latents.
        weight_of_min: lam; phi: the largest perturbation.
        vae_hidden: widths of the VAE's hidden layers; pi_hidden: of the perturbation's.
        others: see OfflineActorCritic.
    """

    GAUSSIAN: ClassVar = False
    FIRST_CRITIC: ClassVar = True

    acting_latents: Tensor

    def __init__(
        self,
        *,
        candidates: int,
        acting_candidates: int,
        weight_of_min: float,
        phi: float,
        vae_hidden: Sequence[int],
        **common: Any,
    ) -> None:
        check_counts(**{"agent.candidates": candidates, "agent.acting_candidates": acting_candidates})
        check_range(0, 1, **{"agent.weight_of_min": weight_of_min, "agent.phi": phi})
        check_widths(**{"agent.vae_hidden": vae_hidden})
        super().__init__(**common)
        self.candidates, self.weight_of_min, self.phi = candidates, weight_of_min, phi
        state_dim, action_dim = self.actor_belief.state_dim, self.ranker.action_dim
        self.vae = ActionVAE(state_dim, action_dim, vae_hidden)
        self.actor = mlp(state_dim + action_dim, common["pi_hidden"], action_dim)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        # the same proposals for every user and turn, so that acting is repeatable
        latents = torch.randn(acting_candidates, self.vae.latent_dim).clamp(-LATENT_CLIP, LATENT_CLIP)
        self.register_buffer("acting_latents", latents)
        self.add_optimizer("actor", self.actor, self.vae, self.actor_belief, lr=common["pi_lr"])

    @property
    def acting_belief(self) -> JoinedBeliefs:
        return JoinedBeliefs([self.actor_belief, self.critic_belief])

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        """The same with and without a generator: what is explored is what the candidates differ in."""
        actor_state, critic_state = state.chunk(2, dim=-1)
        shape = (len(self.acting_latents), *actor_state.shape[:-1])
        latents = self.acting_latents.view(shape[0], *(1 for _ in shape[1:]), -1).expand(*shape, -1)
        proposals = self.perturbed(self.actor, actor_state, latents)  # [n, ..., A]
        q = self.first_q(critic_state.expand(*shape, -1), proposals)
        return proposals.gather(0, q.argmax(0)[None, ..., None].expand(1, *proposals.shape[1:]))[0]

    def perturbed(self, perturbation: nn.Module, state: Tensor, latents: Tensor) -> Tensor:
        """clip(decoded + phi * tanh(xi)) for states [..., state] and latents [n, ..., 2A] -> [n, ..., A]."""
        state = state.expand(len(latents), *state.shape)
        decoded = self.vae.decode(state, latents)
        return (decoded + self.phi * perturbation(torch.cat([state, decoded], dim=-1)).tanh()).clamp(-1, 1)

    def proposals(self, perturbation: nn.Module, state: Tensor, count: int) -> Tensor:
        """Candidates [count, ..., A] with latents drawn anew."""
        shape = (count, *state.shape[:-1], self.vae.latent_dim)
        latents = torch.randn(shape, generator=self.generators["update"], device=state.device)
        return self.perturbed(perturbation, state, latents.clamp(-LATENT_CLIP, LATENT_CLIP))

    def next_value(self, turns: Turns) -> Tensor:
        action = self.proposals(self.target_actor, turns.actor_state[:, 1:], self.candidates)
        states = turns.critic_state[:, 1:].expand(self.candidates, -1, -1, -1)
        low, high = self.q_values(self.target_critics, states, action).aminmax(dim=0)
        return (self.weight_of_min * low + (1 - self.weight_of_min) * high).amax(0)

    def actor_loss(self, turns: Turns) -> PolicyStep:
        shape = (*turns.action.shape[:-1], self.vae.latent_dim)
        noise = torch.randn(shape, generator=self.generators["update"], device=turns.action.device)
        vae_loss = self.vae.loss(turns.actor_state, turns.action, noise)
        # the perturbation alone climbs Q1: neither the VAE nor the belief is moved by it
        state = turns.actor_state.detach()
        with torch.no_grad():
            latents = torch.randn(shape, generator=self.generators["update"], device=state.device)
            decoded = self.vae.decode(state, latents.clamp(-LATENT_CLIP, LATENT_CLIP))
        moved = decoded + self.phi * self.actor(torch.cat([state, decoded], dim=-1)).tanh()
        action = moved.clamp(-1, 1)
        q = self.first_q(turns.critic_state, action)
        return PolicyStep(vae_loss - q.mean(), action, q)

    def move_targets(self) -> None:
        super().move_targets()
        polyak(self.actor, self.target_actor, self.tau)
