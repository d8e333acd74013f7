"""SlateQ: the value of a slate is the sum over its items of P(click | slate) * Q(s, item).

Ie et al., "SlateQ: A Tractable Decomposition for Reinforcement Learning with Recommendation Sets", IJCAI 2019,
arXiv 1905.12767. The agent knows the simulator's click model and, in every turn, the relevance of all items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from slaterl.agents.losses import bootstrap, continuing_turns
from slaterl.agents.online.dqn import DQN
from slaterl.beliefs.base import Belief, states_of
from slaterl.bounds import Fraction, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.networks import polyak
from slaterl.rankers.base import argmax
from slaterl.rollout import Decision


class SlateQ(DQN):
    """Q(s, i) is the value of a click on item i, including the click. Network, target and exploration are as in DQN.

    Q minimises (Q(s, i) - y)^2 over the clicked items, y = 1 + gamma * sum_j P(j | s', A') * Q'(s', j). The sum is over
    the items j of the next slate A'.

    Args:
        env: simulator; the agent knows its click model and item embeddings.
        serving: how a slate is built. `topk` sorts the items by P(click) * Q, as if each were certainly examined (TS in
            the paper). `greedy` fills slot after slot, the most examined first, by the value of the slate (GS).
        training: next slate in the target: `topk` or `greedy` (Q-learning), or `sarsa`, the slate that was shown.
        credit: clicks on a slate to learn from, `first_click` or `every_click`.
        others: see DQN.
    """

    SEES_SIMULATOR: ClassVar = True

    def __init__(
        self,
        *,
        env: TopicRec,
        num_items: int,
        slate_size: int,
        belief: Callable[[], Belief],
        gamma: Fraction,
        tau: Fraction,
        q_lr: Positive,
        q_hidden: Widths,
        epsilon_start: Fraction,
        epsilon_end: Fraction,
        epsilon_decay: Positive,
        serving: Literal["topk", "greedy"],
        training: Literal["topk", "greedy", "sarsa"],
        credit: Literal["first_click", "every_click"],
    ) -> None:
        if not isinstance(env, TopicRec):
            raise UserError(f"agent=slateq: it needs users of TopicRec, but env={env.name} has others; use agent=sac")
        super().__init__(
            num_items=num_items,
            slate_size=slate_size,
            belief=belief,
            gamma=gamma,
            tau=tau,
            q_lr=q_lr,
            q_hidden=q_hidden,
            epsilon_start=epsilon_start,
            epsilon_end=epsilon_end,
            epsilon_decay=epsilon_decay,
        )
        self.env = env
        best_first = env.examination.sort(descending=True, stable=True)
        self.slots = list(zip(best_first.indices.tolist(), best_first.values.tolist(), strict=True))
        self.serving, self.training_slates, self.credit = serving, training, credit

    def best_slate(self, how: str, relevance: Tensor, values: Tensor) -> Tensor:
        """Build slates [..., S] from relevance and values of all items [..., N]; `how` is `topk` or `greedy`."""
        if how == "topk":
            return self.slate_of(relevance * values)
        return self._greedy(relevance, values)

    def decide(
        self, state: Tensor, observation: Observation | PrivilegedObservation, generator: torch.Generator | None
    ) -> Decision:
        assert isinstance(observation, PrivilegedObservation)
        relevance = self.env.relevance(observation.hidden.effective)
        return Decision(self.explore(self.best_slate(self.serving, relevance, self.critic(state)), generator))

    def _greedy(self, relevance: Tensor, values: Tensor) -> Tensor:
        """Fill slot after slot with the item that adds most to the slate's value, diversity penalty included."""
        env = self.env
        gain = relevance * values  # [..., N]
        taken = torch.zeros_like(gain, dtype=torch.bool)
        counts = torch.zeros(*gain.shape[:-1], env.num_topics, dtype=torch.int64, device=gain.device)
        worth = gain.new_zeros(*gain.shape[:-1], 1)
        slate: dict[int, Tensor] = {}
        for slot, examination in self.slots:
            with_item = worth + examination * gain
            # crowded: a topic was full before, or this item fills its topic
            full = counts.amax(-1, keepdim=True) >= env.diversity_threshold
            crowded = full | (counts[..., env.item_topic] + 1 >= env.diversity_threshold)
            seen = torch.where(crowded, with_item / env.diversity_penalty, with_item)
            slate[slot] = argmax(seen.masked_fill(taken, -torch.inf)).unsqueeze(-1)
            worth = with_item.gather(-1, slate[slot])
            taken.scatter_(-1, slate[slot], True)
            counts.scatter_add_(-1, env.item_topic[slate[slot]], torch.ones_like(slate[slot]))
        return torch.cat([slate[slot] for slot in range(self.slate_size)], dim=-1)

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of Q and its target on B whole trajectories with hidden state."""
        shown, clicks = batch.slates[:, 1:].long(), batch.clicks[:, 1:].float()  # [B, H, S]
        (state,) = states_of([self.critic_belief], batch)  # [B, H, state]

        # of a click: y = 1 + gamma * sum over j in the next slate A' of P(j | s', A') * Q'(s', j)
        with torch.no_grad():
            next_values = self.target_critic(state[:, 1:])  # [B, H-1, N]
            relevance = self.env.relevance(batch.hidden["effective"][:, 1:])
            if self.training_slates == "sarsa":
                following = shown[:, 1:]
            else:
                following = self.best_slate(self.training_slates, relevance, next_values)
            odds = self.env.click_odds(relevance.gather(2, following), self.env.item_topic[following])
            next_value = (odds * next_values.gather(2, following)).sum(2)
            target = bootstrap(clicks.new_ones(clicks.shape[:2]), next_value, self.gamma, continuing_turns(batch))
        clicks = clicks.where(batch.mask.unsqueeze(2), 0.0)
        if self.credit == "first_click":
            clicks = clicks * (clicks.cumsum(2) == 1)
        q = self.critic(state).gather(2, shown)
        # A mean over clicks. The clamp serves batches without clicks.
        count = clicks.sum().clamp(min=1)
        loss = (clicks * (q - target.unsqueeze(2)).square()).sum() / count
        self.minimise("critic", loss)
        polyak(self.critic, self.target_critic, self.tau)

        return {
            "loss/critic": loss,
            "value/q": (clicks * q).sum() / count,
            "value/target": (clicks * target.unsqueeze(2)).sum() / count,
            "policy/epsilon": loss.new_full((), self.epsilon),
        }
