"""PLAS: a policy in the latent space of a generative model of the recorded actions.

Zhou et al., "PLAS: Latent Action Space for Offline Reinforcement Learning", arXiv 2011.07213.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from slaterl.agents.losses import soft_minimum, valid_turns
from slaterl.agents.offline.action_vae import ActionVAE
from slaterl.agents.offline.actor_critic import OfflineActorCritic
from slaterl.agents.offline.base import MakeBelief
from slaterl.beliefs.base import JoinedBeliefs, states_of
from slaterl.bounds import Count, Fraction, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.networks import frozen, mlp, polyak, target_of
from slaterl.rankers.base import Ranker


class PLAS(OfflineActorCritic):
    """A conditional VAE of the data's actions, and then a policy that chooses what the VAE decodes.

    The first updates of a run train the VAE with a belief of its own. Both are frozen then, and the others learn.
    The policy minimises -Q1(s, dec(s, z)), z = max_latent * tanh(mu(s)). The prior of the VAE is a standard normal, so
    the decoder has seen such z.

    Critics learn y = r + gamma * V(s'). V mixes them at the target policy's action: lam * min Q' + (1 - lam) * max Q'.

    The paper also has a perturbation of the decoded action. The authors' code leaves it out by default, as this does.

    Args:
        weight_of_min: lam.
        max_latent: bound on the latents that the policy chooses, in deviations of the prior.
        vae_hidden, vae_lr: widths of the hidden layers of the VAE; Adam's learning rate of VAE and its belief.
        vae_share: share of the run's updates in which the VAE learns.
        max_steps: updates of the whole run.
        others: see OfflineActorCritic.
    """

    explores = False
    TERMS: ClassVar = (*OfflineActorCritic.TERMS, "loss/vae")

    def __init__(
        self, *, ranker: Ranker, belief: MakeBelief, generator: torch.Generator,
        gamma: Fraction, reward_scale: Positive, tau: Fraction,
        q_lr: Positive, pi_lr: Positive, q_hidden: Widths, pi_hidden: Widths, num_critics: Count, layer_norm: bool,
        weight_of_min: Fraction, max_latent: Positive, vae_hidden: Widths, vae_lr: Positive, vae_share: Fraction,
        max_steps: Count,
    ) -> None:  # fmt: skip
        super().__init__(ranker, belief, generator, gamma, reward_scale, tau)
        self.weight_of_min, self.max_latent = weight_of_min, max_latent
        self.vae_updates = int(vae_share * max_steps)
        self.vae_belief = belief()
        self.vae = ActionVAE(self.state_dim, self.action_dim, vae_hidden)
        self.actor = mlp(self.state_dim, pi_hidden, self.vae.latent_dim)
        self.build_critics(num_critics, q_hidden, layer_norm)
        self.target_actor = target_of(self.actor)
        self.add_optimizer("vae", self.vae, self.vae_belief, lr=vae_lr)
        self.add_optimizer("critic", self.critics, self.critic_belief, lr=q_lr)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)

    @property
    def acting_belief(self) -> JoinedBeliefs:
        return JoinedBeliefs([self.actor_belief, self.vae_belief])

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        """Decode the policy's latent. A generator has no effect."""
        return self.decoded(self.actor, *state.chunk(2, dim=-1))

    def decoded(self, actor: nn.Module, actor_state: Tensor, vae_state: Tensor) -> Tensor:
        """Return dec(s, max_latent * tanh(mu(s))) for states [..., state] of both beliefs: [..., A] in [-1, 1]."""
        return self.vae.decode(vae_state, self.max_latent * actor(actor_state).tanh())

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of the VAE, or later of critics, policy and targets, on B whole trajectories."""
        if self.step <= self.vae_updates:
            return self.update_vae(batch)
        turns = self.turns(batch)
        with torch.no_grad():
            (vae_state,) = states_of([self.vae_belief], batch.with_room())  # as `turns` reads them

        # critics: y = r + gamma * (lam * min Q' + (1 - lam) * max Q')(s', dec(s', z'))
        with torch.no_grad():
            next_action = self.decoded(self.target_actor, turns.actor_state[:, 1:], vae_state[:, 1:])
            next_q = self.q_values(self.target_critics, turns.critic_state[:, 1:], next_action)
            target = turns.target(soft_minimum(next_q, self.weight_of_min), self.gamma)
        q = self.q_values(self.critics, turns.critic_state, turns.action)
        critic_loss = turns.mean((q - target).square())

        # policy: -Q1(s, dec(s, z))
        with frozen(self.vae), frozen(self.critics):
            action = self.decoded(self.actor, turns.actor_state, vae_state)
            policy_q = self.first_q(turns.critic_state.detach(), action)
        actor_loss = -turns.mean(policy_q)

        self.descend(critic=critic_loss, actor=actor_loss)
        polyak(self.critics, self.target_critics, self.tau)
        polyak(self.actor, self.target_actor, self.tau)
        self.record_policy(actor_loss, action, policy_q, turns)
        terms = self.terms(critic_loss, target, q, q_data=q[0], turns=turns)
        return {**terms, "loss/vae": torch.zeros_like(actor_loss)}

    def update_vae(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of the VAE and its belief. The terms of what rests are 0."""
        assert batch.actions is not None
        generator = self.generators["update"]
        (state,) = states_of([self.vae_belief], batch)
        noise = torch.randn(*state.shape[:2], self.vae.latent_dim, generator=generator, device=state.device)
        loss = self.vae.loss(state, batch.actions, noise, valid_turns(batch))
        self.minimise("vae", loss)
        return dict.fromkeys(self.TERMS, torch.zeros_like(loss)) | {"loss/vae": loss}
