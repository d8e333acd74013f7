"""HAC: an actor and a critic on hyper-actions, which are linear scorers of items.

Liu et al., "Exploration and Regularization of the Latent Action Space in Recommendation", arXiv 2302.03431.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, embedding

from slaterl.agents.base import LatentAgent
from slaterl.agents.losses import bootstrap, continuing_turns, mean, smoothed, valid_turns
from slaterl.beliefs.base import Belief, states_of
from slaterl.bounds import Fraction, NonNegative, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.networks import Critics, frozen, mlp, polyak, target_of
from slaterl.rankers.embedding_space import LinearScorer

NOISE_CLIP = 1.0  # on the exploration noise, as in the authors' code


class HAC(LatentAgent):
    """A deterministic policy of hyper-actions Z, a critic of the slates, and two losses that tie both to each other.

    Z = pi(s) is the weights and the bias of a linear scorer; the slate is its top k. A slate's own hyper-action is
    inferred as Z^(slate) = mean over its items of tanh(MLP(e_i)). All of them are actions in [-1, 1]^A.

        critic: (Q(s, Z^(shown slate)) - y)^2,  y = r + gamma * Q'(s', pi'(s'))
        policy: -Q(s, Z) / mean|Q| + alignment * |Z - Z^(slate of Z)|^2 / A
            + supervision * BCE(scores of shown items, clicks)

    The critic moves neither the MLP nor the policy. The alignment moves both, and nothing else moves the MLP.

    The authors take a step of Adam for each of the policy's three losses, so that no scale matters. Here it is one step
    down their sum, and Q is divided by its mean size instead.

    Args:
        item_embeddings: [N, E], fixed.
        slate_size: S of the environment.
        belief: makes a belief; called once for the actor and once for the critic.
        gamma: discount.
        tau: Polyak rate of the targets, applied at every update.
        q_lr, pi_lr: Adam's learning rates of the critic, and of policy and MLP, each with its belief.
        q_hidden, pi_hidden, inference_hidden: widths of the hidden layers of critic, policy and MLP.
        exploration_noise: standard deviation of the Gaussian noise on the actions that collect data.
        alignment, supervision: weights of the two losses.
    """

    TERMS: ClassVar = (
        "loss/critic", "loss/actor", "loss/alignment", "loss/supervision", "value/q", "value/target"
    )  # fmt: skip

    ranker: LinearScorer

    def __init__(
        self, *, item_embeddings: Tensor, slate_size: int, belief: Callable[[], Belief],
        gamma: Fraction, tau: Fraction, q_lr: Positive, pi_lr: Positive,
        q_hidden: Widths, pi_hidden: Widths, inference_hidden: Widths,
        exploration_noise: NonNegative, alignment: NonNegative, supervision: NonNegative,
    ) -> None:  # fmt: skip
        super().__init__(LinearScorer(item_embeddings=item_embeddings, slate_size=slate_size))
        self.gamma, self.tau, self.exploration_noise = gamma, tau, exploration_noise
        self.alignment, self.supervision = alignment, supervision
        self.actor_belief, self.critic_belief = belief(), belief()
        state_dim, action_dim = self.actor_belief.state_dim, self.ranker.action_dim
        self.actor = mlp(state_dim, pi_hidden, action_dim)
        self.inference = mlp(item_embeddings.shape[1], inference_hidden, action_dim)
        self.critics = Critics(1, state_dim + action_dim, q_hidden)
        self.target_actor, self.target_critics = target_of(self.actor), target_of(self.critics)
        self.add_optimizer("critic", self.critics, self.critic_belief, lr=q_lr)
        self.add_optimizer("actor", self.actor, self.inference, self.actor_belief, lr=pi_lr)

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        action = self.actor(state).tanh()
        return action if generator is None else smoothed(action, self.exploration_noise, NOISE_CLIP, generator)

    def inferred(self, slates: Tensor) -> Tensor:
        """Return the hyper-actions of slates, [..., S] -> [..., A] in [-1, 1]."""
        return embedding(slates, self.inference(self.ranker.item_embeddings).tanh()).mean(-2)

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of critic, policy, MLP and targets on B whole trajectories."""
        mask = valid_turns(batch)
        shown, clicks = batch.slates[:, 1:].long(), batch.clicks[:, 1:].float()  # [B, H, S]
        critic_state, actor_state = states_of([self.critic_belief, self.actor_belief], batch)

        # critic: y = r + gamma * Q'(s', pi'(s'))
        with torch.no_grad():
            next_action = self.target_actor(actor_state[:, 1:]).tanh()
            next_q = self.q_values(self.target_critics, critic_state[:, 1:], next_action)[0]
            target = bootstrap(batch.rewards, next_q, self.gamma, continuing_turns(batch))
            hyper_action = self.inferred(shown)
        q = self.q_values(self.critics, critic_state, hyper_action)[0]
        critic_loss = mean((q - target).square(), mask)

        # policy: -Q(s, pi(s)), the distance to what its own slates infer, and the clicks of the shown items
        action = self.actor(actor_state).tanh()
        latent = self.ranker.to_latent(action)
        with frozen(self.critics):
            policy_q = self.q_values(self.critics, critic_state.detach(), action)[0]
        own_slates = self.ranker.rank(latent.detach().flatten(0, 1)).unflatten(0, shown.shape[:2])
        alignment = mean((action - self.inferred(own_slates)).square(), mask, of_vectors=True)
        errors = binary_cross_entropy_with_logits(self.ranker.logits(latent, shown), clicks, reduction="none")
        supervision = mean(errors, mask, of_vectors=True)
        gain = mean(policy_q, mask) / mean(policy_q.detach().abs(), mask)
        actor_loss = -gain + self.alignment * alignment + self.supervision * supervision

        self.descend(critic=critic_loss, actor=actor_loss)
        polyak(self.critics, self.target_critics, self.tau)
        polyak(self.actor, self.target_actor, self.tau)
        return {
            "loss/critic": critic_loss,
            "loss/actor": actor_loss,
            "loss/alignment": alignment,
            "loss/supervision": supervision,
            "value/q": mean(q, mask),
            "value/target": mean(target, mask),
        }
