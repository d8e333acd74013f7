"""BCQ: a generative model of the recorded actions proposes, a small perturbation improves, the critics choose.

Fujimoto et al., "Off-Policy Deep Reinforcement Learning without Exploration", arXiv 1812.02900.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slaterl.agents.losses import soft_minimum
from slaterl.agents.offline.action_vae import ActionVAE
from slaterl.agents.offline.actor_critic import OfflineActorCritic, best_of
from slaterl.agents.offline.base import MakeBelief
from slaterl.beliefs.base import JoinedBeliefs
from slaterl.bounds import Count, Fraction, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.networks import frozen, mlp, polyak, target_of
from slaterl.rankers.base import Ranker


class BCQ(OfflineActorCritic):
    """Q-learning whose maximum runs over proposals that look like the data (algorithm 1 of the paper).

    A proposal is a draw of the VAE, moved by the perturbation xi by at most `phi`. The target is y = r + gamma * max
    over n proposals of (lam * min_i Q'_i + (1 - lam) * max_i Q'_i). The perturbation (the `actor`) maximises Q1, and
    the agent acts on the proposal with the largest Q1. Both read the actor's belief, which the VAE trains.

    Args:
        candidates, acting_candidates: number of proposals in targets and when acting. Proposals for acting have
            fixed latents.
        weight_of_min: lam.
        phi: largest perturbation.
        latent_clip: bound on the latents that are decoded, which the prior draws.
        vae_hidden, pi_hidden: widths of the hidden layers of VAE and perturbation.
        others: see OfflineActorCritic.
    """

    explores = False

    acting_latents: Tensor

    def __init__(
        self, *, ranker: Ranker, belief: MakeBelief, generator: torch.Generator,
        gamma: Fraction, reward_scale: Positive, tau: Fraction,
        q_lr: Positive, pi_lr: Positive, q_hidden: Widths, pi_hidden: Widths, num_critics: Count, layer_norm: bool,
        candidates: Count, acting_candidates: Count, weight_of_min: Fraction, phi: Fraction, latent_clip: Positive,
        vae_hidden: Widths,
    ) -> None:  # fmt: skip
        super().__init__(ranker, belief, generator, gamma, reward_scale, tau)
        self.candidates, self.weight_of_min, self.phi = candidates, weight_of_min, phi
        self.latent_clip = latent_clip
        # Replaced below. It is built because its random draws keep all later weights of a seed unchanged.
        self.actor = mlp(self.state_dim, pi_hidden, self.action_dim)
        self.build_critics(num_critics, q_hidden, layer_norm)
        self.vae = ActionVAE(self.state_dim, self.action_dim, vae_hidden)
        self.actor = mlp(self.state_dim + self.action_dim, pi_hidden, self.action_dim)
        self.target_actor = target_of(self.actor)
        # The same proposals for every user and turn, so that acting is repeatable.
        latents = torch.randn(acting_candidates, self.vae.latent_dim).clamp(-latent_clip, latent_clip)
        self.register_buffer("acting_latents", latents)
        self.add_optimizer("critic", self.critics, self.critic_belief, lr=q_lr)
        self.add_optimizer("actor", self.actor, self.vae, self.actor_belief, lr=pi_lr)

    @property
    def acting_belief(self) -> JoinedBeliefs:
        return JoinedBeliefs([self.actor_belief, self.critic_belief])

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        """Choose the proposal with the largest Q1. A generator has no effect."""
        actor_state, critic_state = state.chunk(2, dim=-1)
        shape = (len(self.acting_latents), *actor_state.shape[:-1])
        latents = self.acting_latents.view(shape[0], *(1 for _ in shape[1:]), -1).expand(*shape, -1)
        proposals = self.perturbed(self.actor, actor_state, latents)  # [n, ..., A]
        q = self.first_q(critic_state.expand(*shape, -1), proposals)
        return best_of(proposals, q)

    def perturbed(self, perturbation: nn.Module, state: Tensor, latents: Tensor) -> Tensor:
        """Return clip(decoded + phi * tanh(xi)) for states [..., state] and latents [n, ..., 2A]: [n, ..., A]."""
        state = state.expand(len(latents), *state.shape)
        decoded = self.vae.decode(state, latents)
        return self.moved(perturbation, state, decoded)

    def moved(self, perturbation: nn.Module, state: Tensor, decoded: Tensor) -> Tensor:
        """Return clip(decoded + phi * tanh(xi)) for states [..., state] and decoded actions [..., A]: [..., A]."""
        return (decoded + self.phi * perturbation(state, decoded).tanh()).clamp(-1, 1)

    def noise(self, *shape: int) -> Tensor:
        """Draw standard normal latents [*shape, 2A] for an update."""
        return self.normal(*shape, self.vae.latent_dim)

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of critics, VAE, perturbation and targets on B whole trajectories."""
        turns = self.turns(batch)
        count, horizon = turns.reward.shape

        # critics: y = r + gamma * max over proposals of (lam * min Q' + (1 - lam) * max Q')
        with torch.no_grad():
            latents = self.noise(self.candidates, count, horizon - 1).clamp(-self.latent_clip, self.latent_clip)
            proposals = self.perturbed(self.target_actor, turns.actor_state[:, 1:], latents)
            states = turns.critic_state[:, 1:].expand(self.candidates, -1, -1, -1)
            next_q = self.q_values(self.target_critics, states, proposals)
            target = turns.target(soft_minimum(next_q, self.weight_of_min).amax(0), self.gamma)
        q = self.q_values(self.critics, turns.critic_state, turns.action)
        critic_loss = turns.mean((q - target).square())

        # VAE: squared error + weighted KL
        vae_loss = self.vae.loss(turns.actor_state, turns.action, self.noise(count, horizon), turns.valid)

        # perturbation: -Q1(s, decoded + phi * tanh(xi)). It moves neither the VAE nor the belief.
        state = turns.actor_state.detach()
        with torch.no_grad():
            decoded = self.vae.decode(state, self.noise(count, horizon).clamp(-self.latent_clip, self.latent_clip))
        action = self.moved(self.actor, state, decoded)
        with frozen(self.critics):
            policy_q = self.first_q(turns.critic_state.detach(), action)
        actor_loss = vae_loss - turns.mean(policy_q)

        self.descend(critic=critic_loss, actor=actor_loss)
        polyak(self.critics, self.target_critics, self.tau)
        polyak(self.actor, self.target_actor, self.tau)
        self.record_policy(actor_loss, action, policy_q, turns)
        return self.terms(critic_loss, target, q, q_data=q[0], turns=turns)
