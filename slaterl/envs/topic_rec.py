"""TopicRec: simulated users with topics of interest who get bored, are influenced and click by position.

The user model of "Generative Slate Recommendation with Reinforcement Learning" (Deffayet et al., WSDM 2023,
section 5), for B users at once. Every quantity is a tensor with a leading user axis, and no turn synchronises with
the host. Shapes: B users, N items, K topics of z dimensions (D = K * z), S slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding as rows_of

from slaterl.bounds import Count, Fraction, Number, Positive
from slaterl.data.trajectories import Trajectories
from slaterl.envs.catalog import fingerprint, topic_components
from slaterl.envs.click_log import ClickLog, count_topics
from slaterl.envs.click_models import PositionBasedModel
from slaterl.envs.env import Env
from slaterl.envs.observation import Observation
from slaterl.envs.user_state import UserState
from slaterl.errors import UserError
from slaterl.runtime import exact_products


class Hidden(NamedTuple):
    """The users' state before the next slate."""

    user: Tensor  # [B, D] the user's own taste
    bored: Tensor  # [B, K] bool, the topics that will be bored while the next slate is shown
    effective: Tensor  # [B, D] the taste that scores items: bored topics removed, the short-term topic boosted


class TopicRec(Env):
    """The simulator. `reset` makes B users, `step` shows each one a slate.

    Args:
        item_embeddings: [N, D], see slaterl.envs.catalog.
        omega: share of its old value that a user's embedding keeps at each click.
        boredom_threshold: number of clicks in the log that make a topic boring.
        boredom_timeout: number of turns that a topic stays boring.
        boredom_moving_window: number of turns after which a click leaves the log.
        recent_items_maxlen: M, the most clicks that the log holds.
        diversity_threshold: with this many items of one topic, diversity_penalty divides the slate's attractiveness.

    Raises:
        UserError: the sizes do not fit together, or the item embeddings cannot be used.
    """

    fills_oracle_slots = True
    hidden_columns = Hidden._fields
    own_measures = ("bored_share",)  # share of (user, turn) pairs with at least one bored topic
    catalogue_argument = "item_embeddings"
    item_embeddings: Tensor

    def __init__(
        self,
        *,
        name: str,
        item_embeddings: Tensor,
        click_model: PositionBasedModel,
        num_items: Count,
        num_topics: Count,
        topic_size: Count,
        slate_size: Count,
        episode_length: Count,
        omega: Fraction,
        offset: Number,
        slope: Positive,
        boredom_threshold: Count,
        boredom_moving_window: Count,
        boredom_timeout: Count,
        recent_items_maxlen: Count,
        diversity_threshold: Count,
        diversity_penalty: Positive,
        short_term_boost: Number,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(
            name=name, num_items=num_items, slate_size=slate_size, episode_length=episode_length, device=device
        )
        expected = [num_items, num_topics * topic_size]
        if list(item_embeddings.shape) != expected:
            raise UserError(f"env.item_embeddings: found {list(item_embeddings.shape)}, expected {expected}")
        if not item_embeddings.isfinite().all() or not item_embeddings.any():
            raise UserError("env.item_embeddings: all zero, or not finite")
        self.num_topics, self.topic_size = num_topics, topic_size
        self.full_state_dim = num_topics * (topic_size + 1)
        self.omega, self.offset, self.slope = float(omega), offset, slope
        self.boredom_threshold, self.boredom_timeout = boredom_threshold, boredom_timeout
        self.boredom_moving_window, self.recent_items_maxlen = boredom_moving_window, recent_items_maxlen
        self.diversity_threshold, self.diversity_penalty = diversity_threshold, diversity_penalty
        self.short_term_boost = short_term_boost

        self.fingerprint = fingerprint(item_embeddings)
        self.item_embeddings = item_embeddings.to(self.device, torch.float32)
        topic_norms = self._topics(self.item_embeddings).norm(dim=2)  # [N, K]
        self.item_topic = topic_norms.argmax(1)
        self.max_score = self.item_embeddings.norm(dim=1).max()
        self.examination = click_model.examination(slate_size).to(self.device)
        if self.examination.shape != (slate_size,) or not ((self.examination >= 0) & (self.examination <= 1)).all():
            found = f"{type(click_model).__name__}.examination({slate_size}) is {self.examination.tolist()}"
            raise UserError(f"click_model: {found}; expected {slate_size} probabilities")
        self.first_slate = self._first_slate(topic_norms)
        self._ones = torch.ones((), dtype=torch.int64, device=self.device)
        self._ranks = torch.arange(slate_size, device=self.device)

    def _first_slate(self, topic_norms: Tensor) -> Tensor:
        """Return the slate [S] of the items with the largest norm in each topic, topic by topic."""
        per_topic, rest = divmod(self.slate_size, self.num_topics)
        if per_topic == 0:
            return topic_norms.argmax(0)[: self.slate_size]
        best = topic_norms.topk(min(per_topic + 1, self.num_items), dim=0).indices.T  # [K, per_topic + 1]
        return torch.cat([best[:, :per_topic].flatten(), best[:rest, -1]])

    def new_users(self, num_users: int, generator: torch.Generator) -> Tensor:
        """Draw user embeddings [B, D] whose topics' norms sum to 1."""
        components = topic_components(num_users, self.num_topics, self.topic_size, generator)
        weights = torch.rand(num_users, self.num_topics, generator=generator, device=generator.device).pow(3)
        weights = weights / weights.sum(1, keepdim=True)
        return self._normalise((weights.unsqueeze(2) * components).flatten(1))

    def _normalise(self, users: Tensor) -> Tensor:
        """Divide users [B, D] by the sum of the norms of their topics."""
        return users / self._topics(users).norm(dim=2).sum(1, keepdim=True)

    def _topics(self, embeddings: Tensor) -> Tensor:
        """Cut [..., D] into [..., K, z]."""
        return embeddings.unflatten(-1, (self.num_topics, self.topic_size))

    def reset(
        self,
        num_users: int | None = None,
        *,
        generator: torch.Generator | None = None,
        users: Tensor | None = None,
        uniforms: Tensor | None = None,
    ) -> Observation:
        """Start an episode for B users and show all of them the same first slate.

        Args:
            num_users: B; not needed if `users` is given.
            generator: source of every draw of this episode, on the simulator's device.
            users: [B, D] embeddings to use instead of drawn ones.
            uniforms: [B, S] numbers in [0, 1) that decide the clicks on the first slate, instead of drawn ones.
        """
        self._generator = generator
        if users is None:
            assert num_users is not None and generator is not None, "give num_users and a generator, or users"
            users = self.new_users(num_users, generator)
        users = users.to(self.device, torch.float32)
        batch = len(users)
        self.state = state = UserState(
            turn=0,
            embedding=users,
            timer=torch.zeros(batch, self.num_topics, dtype=torch.int64, device=self.device),
            short_term_topic=torch.zeros(batch, 1, dtype=torch.int64, device=self.device),
            log=ClickLog.empty(batch, self.recent_items_maxlen, self.num_topics, self.device),
        )
        slate = self.first_slate.expand(batch, -1)
        topics = self.item_topic.take(slate)
        self._score(rows_of(slate, self.item_embeddings), topics, users)
        clicks = self._click(uniforms)
        state.log.start(clicks, topics)
        if generator is None:
            fallback = state.short_term_topic
        else:
            fallback = torch.randint(self.num_topics, (batch, 1), generator=generator, device=self.device)
        last, any_click = self._last_clicked(clicks, topics)
        state.short_term_topic = torch.where(any_click, last, fallback)
        return Observation(slate, clicks)

    def step(
        self, slate: Tensor, *, oracle_slots: Tensor | None = None, uniforms: Tensor | None = None
    ) -> tuple[Observation, Tensor, bool]:
        """Show a slate to every user.

        Args:
            slate: [B, S] item ids; repeats are allowed.
            oracle_slots: [B, S] bool; if True, slot r shows the r-th best item for the user in this turn.
            uniforms: [B, S] numbers in [0, 1) that decide the clicks, instead of drawn ones.

        Returns:
            the observation (with the slate as shown), the number of clicks [B] float, and whether the episode ended.
            It ends for all users together. The horizon is part of the task, so this is a termination, not a truncation.

        Raises:
            UserError: an item id out of range (only checked on the CPU).
        """
        if self.device.type == "cpu":  # on a GPU the check would synchronise with the host
            low, high = slate.aminmax()
            if int(low) < 0 or int(high) >= self.num_items:
                raise UserError(f"slate: item ids must lie in 0..{self.num_items - 1}")
        state = self.state
        state.turn += 1
        state.timer, bored, effective = self._upcoming()
        state.upcoming = None
        if oracle_slots is not None:
            best = (effective @ self.item_embeddings.T).topk(self.slate_size, dim=1).indices
            slate = torch.where(oracle_slots, best, slate)
        items, topics = rows_of(slate, self.item_embeddings), self.item_topic.take(slate)
        self._score(items, topics, effective)
        clicks = self._click(uniforms)
        state.log.append(clicks, topics, state.turn, self.boredom_moving_window)
        self._influence(items, clicks)
        last, any_click = self._last_clicked(clicks, topics)
        moves = any_click & bored.gather(1, state.short_term_topic)
        state.short_term_topic = torch.where(moves, last, state.short_term_topic)
        return Observation(slate, clicks), clicks.sum(1, dtype=torch.float32), state.turn >= self.episode_length

    def hidden(self) -> Hidden:
        """Return the users' state before the next slate."""
        _, bored, effective = self._upcoming()
        return Hidden(self.state.embedding, bored, effective)

    def full_state(self, hidden: Mapping[str, Tensor]) -> Tensor:
        """Return the users' own tastes and the bored topics, [..., D + K]."""
        return torch.cat([hidden["user"], hidden["bored"].float()], dim=-1)

    def measures(self, data: Trajectories) -> dict[str, float]:
        """Return the share of (user, turn) pairs with at least one bored topic."""
        return {"bored_share": data.hidden["bored"].any(2).float().mean().item()}

    def info(self) -> dict[str, Tensor]:
        """Return the topics that were bored in this turn, [B, K] bool, and the users' own tastes [B, D]."""
        return {"bored": self.state.bored, "user": self.state.embedding}

    @exact_products()
    def relevance(self, effective: Tensor) -> Tensor:
        """Return the probability [..., N] of a click on each item if examined, for users with tastes [..., D]."""
        return self._relevance_of(effective @ self.item_embeddings.T / self.max_score)

    def click_odds(self, relevance: Tensor, topics: Tensor) -> Tensor:
        """Return the click probabilities of slates from the relevance and topics of their items, all [..., S]."""
        if self.diversity_penalty != 1.0:
            counts = count_topics(topics, self._ones.expand_as(topics), self.num_topics)
            crowded = counts.amax(-1) >= self.diversity_threshold
            relevance = torch.where(crowded.unsqueeze(-1), relevance / self.diversity_penalty, relevance)
        return relevance * self.examination

    def _upcoming(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the timers [B, K], the bored topics [B, K] and the taste [B, D] of the next turn.

        The timers run down by one turn. Then those of topics with too many clicks in the log start.
        """
        state = self.state
        if state.upcoming is None:
            timer = (state.timer - 1).clamp_(min=0)
            starts = (state.log.counts() >= self.boredom_threshold) & (timer == 0)
            timer.masked_fill_(starts, self.boredom_timeout)
            state.upcoming = timer, timer > 0, self._effective_user(timer > 0)
        return state.upcoming

    def _effective_user(self, bored: Tensor) -> Tensor:
        """Return the taste [B, D] that scores the items: bored topics removed, the short-term topic boosted."""
        state = self.state
        weight = (~bored).float()
        if self.short_term_boost != 1.0:
            index = state.short_term_topic
            weight.scatter_(1, index, weight.gather(1, index) * self.short_term_boost)
        return (self._topics(state.embedding) * weight.unsqueeze(2)).flatten(1)

    def _score(self, items: Tensor, topics: Tensor, effective: Tensor) -> None:
        """Set `scores` and `click_probabilities` [B, S] of slates with embeddings [B, S, D] and topics [B, S]."""
        self.scores = torch.bmm(items, effective.unsqueeze(2)).squeeze(2) / self.max_score
        self.click_probabilities = self.click_odds(self._relevance_of(self.scores), topics)

    def _relevance_of(self, scores: Tensor) -> Tensor:
        return torch.sigmoid((scores - self.offset) * self.slope)

    def _click(self, uniforms: Tensor | None) -> Tensor:
        if uniforms is None:
            shape = self.click_probabilities.shape
            uniforms = torch.rand(shape, generator=self._generator, device=self.device)
        return uniforms < self.click_probabilities

    def _influence(self, items: Tensor, clicks: Tensor) -> None:
        """Update u <- omega * u + (1 - omega) * E_i and normalise it, for each clicked item in rank order.

        The loop runs over ranks, because each normalisation needs the previous one. Items without a click get weight 0.
        """
        weights = (clicks * (1 - self.omega)).view(*clicks.shape, 1, 1)
        user = self._topics(self.state.embedding).clone()  # [B, K, z]
        for item, weight in zip(self._topics(items).unbind(1), weights.unbind(1), strict=True):
            user.lerp_(item, weight)
            user.div_(torch.linalg.vector_norm(user, dim=2, keepdim=True).sum(1, keepdim=True))
        self.state.embedding = user.flatten(1)

    def _last_clicked(self, clicks: Tensor, topics: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last clicked item's topic [B, 1], meaningless without clicks, and whether there was one [B, 1]."""
        last = torch.where(clicks, self._ranks, -1).amax(1, keepdim=True)
        return topics.gather(1, last.clamp(min=0)), last >= 0
