"""TopicRec: simulated users with topics of interest who get bored, are influenced and click by position.

The user model of "Generative Slate Recommendation with Reinforcement Learning" (Deffayet et al., WSDM 2023,
section 5), for B users at once: every quantity is a tensor with a leading user axis, and no turn synchronises with
the host. Shapes: B users, N items, K topics of z dimensions (D = K * z), S slots, M entries in the click log.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding as rows_of

from slaterl.bounds import Count, Fraction, Number, Positive
from slaterl.envs.catalog import fingerprint, topic_components
from slaterl.envs.click_models import PositionBasedModel
from slaterl.envs.observation import Hidden, Observation
from slaterl.errors import UserError


@dataclass
class UserState:
    """The hidden state of B users."""

    turn: int
    embedding: Tensor  # [B, D] the user's own taste, moved by clicks, never by boredom
    timer: Tensor  # [B, K] int64, turns that a topic stays bored; 0 where it is not
    short_term_topic: Tensor  # [B]
    log_topic: Tensor  # [B, M] topics of the clicked items, newest last
    log_turn: Tensor  # [B, M] the turns of those clicks
    logged: Tensor  # [B] how many of the newest log entries count
    stamped: Tensor  # [B] how many of them carry a turn; the clicks of reset do not, and never expire by age

    @property
    def bored(self) -> Tensor:
        """[B, K] bool."""
        return self.timer > 0


class TopicRec:
    """The simulator. `reset` makes B users, `step` shows each one a slate.

    Args:
        item_embeddings: [N, D], see slaterl.envs.catalog.
        omega: how much of itself a user's embedding keeps at each click.
        boredom_threshold: clicks in the log that make a topic boring; boredom_timeout: for how many turns.
        boredom_moving_window: turns after which a click leaves the log; recent_items_maxlen: the log's size M.
        diversity_threshold: items of one topic from which on the whole slate is divided by diversity_penalty.

    Raises:
        UserError: the sizes do not fit together, or the item embeddings cannot be used.
    """

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
        if slate_size > num_items:
            raise UserError(f"env.slate_size={slate_size}: a slate cannot be larger than env.num_items={num_items}")
        expected = [num_items, num_topics * topic_size]
        if list(item_embeddings.shape) != expected:
            raise UserError(f"env.item_embeddings: found {list(item_embeddings.shape)}, expected {expected}")
        if not item_embeddings.isfinite().all() or not item_embeddings.any():
            raise UserError("env.item_embeddings: all zero, or not finite")
        self.name = name
        self.device = torch.device(device)
        self.num_items, self.num_topics, self.topic_size = num_items, num_topics, topic_size
        self.slate_size, self.episode_length = slate_size, episode_length
        self.omega, self.offset, self.slope = float(omega), offset, slope
        self.boredom_threshold, self.boredom_timeout = boredom_threshold, boredom_timeout
        self.boredom_moving_window, self.recent_items_maxlen = boredom_moving_window, recent_items_maxlen
        self.diversity_threshold, self.diversity_penalty = diversity_threshold, diversity_penalty
        self.short_term_boost = short_term_boost

        self.fingerprint = fingerprint(item_embeddings)
        self.item_embeddings = item_embeddings.to(self.device, torch.float32)
        topic_norms = self.item_embeddings.unflatten(1, (num_topics, topic_size)).norm(dim=2)  # [N, K]
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
        """The slate [S] of reset: the items with the largest norm in each topic, topic by topic."""
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
        """Divide by the sum over topics of the topics' norms. [B, D] -> [B, D]."""
        return users / self._topics(users).norm(dim=2).sum(1, keepdim=True)

    def _topics(self, embeddings: Tensor) -> Tensor:
        return embeddings.unflatten(1, (self.num_topics, self.topic_size))

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
            num_users: B, or None where `users` is given.
            generator: source of every draw of this episode, on the simulator's device.
            users: [B, D] embeddings to use instead of drawn ones.
            uniforms: [B, S] uniform draws that decide the first slate's clicks, instead of drawn ones.
        """
        self._generator = generator
        if users is None:
            assert num_users is not None and generator is not None, "give num_users and a generator, or users"
            users = self.new_users(num_users, generator)
        users = users.to(self.device, torch.float32)
        batch = len(users)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=self.device)

        memory = self.recent_items_maxlen
        self.state = state = UserState(
            turn=0,
            embedding=users,
            timer=zeros(batch, self.num_topics),
            short_term_topic=zeros(batch),
            log_topic=zeros(batch, memory),
            log_turn=zeros(batch, memory),
            logged=zeros(batch),
            stamped=zeros(batch),
        )
        slate = self.first_slate.expand(batch, -1)
        topics = self.item_topic.take(slate)
        self._score(rows_of(slate, self.item_embeddings), topics, users)
        clicks = self._click(uniforms)
        self._append_to_log(clicks, topics)
        state.logged = clicks.sum(1).clamp(max=memory)
        if generator is None:
            fallback = zeros(batch)
        else:
            fallback = torch.randint(self.num_topics, (batch,), generator=generator, device=self.device)
        last, any_click = self._last_clicked(clicks, topics)
        state.short_term_topic = torch.where(any_click, last, fallback)
        return Observation(slate, clicks)

    def step(
        self, slate: Tensor, *, oracle_slots: Tensor | None = None, uniforms: Tensor | None = None
    ) -> tuple[Observation, Tensor, bool]:
        """Show a slate to every user.

        Args:
            slate: [B, S] item ids; repeats are allowed.
            oracle_slots: [B, S] bool; where True, slot r is filled with the r-th best item for the user of this turn.
            uniforms: [B, S] uniform draws that decide the clicks, instead of drawn ones.

        Returns:
            the observation (with the slate as shown), the number of clicks [B] float, and whether the episode ended
            (the same for all users: the horizon is the task's, terminal and not a truncation).
        """
        if self.device.type == "cpu" and (int(slate.min()) < 0 or int(slate.max()) >= self.num_items):
            # only where looking costs no synchronisation
            raise UserError(f"slate: item ids must lie in 0..{self.num_items - 1}")
        state = self.state
        state.turn += 1
        state.timer = self._next_timer()
        effective = self._effective_user(state.timer > 0)
        if oracle_slots is not None:
            best = (effective @ self.item_embeddings.T).topk(self.slate_size, dim=1).indices
            slate = torch.where(oracle_slots, best, slate)
        items, topics = rows_of(slate, self.item_embeddings), self.item_topic.take(slate)
        self._score(items, topics, effective)
        clicks = self._click(uniforms)
        self._append_to_log(clicks, topics)
        self._expire_log(clicks)
        self._influence(items, clicks)
        last, any_click = self._last_clicked(clicks, topics)
        moves = any_click & state.bored.gather(1, state.short_term_topic.unsqueeze(1)).squeeze(1)
        state.short_term_topic = torch.where(moves, last, state.short_term_topic)
        return Observation(slate, clicks), clicks.sum(1, dtype=torch.float32), state.turn >= self.episode_length

    def hidden(self) -> Hidden:
        """The users as the next slate will find them."""
        bored = self._next_timer() > 0
        return Hidden(self.state.embedding, bored, self._effective_user(bored))

    def relevance(self, effective: Tensor) -> Tensor:
        """Probability that an examined item is clicked, of all items: tastes [..., D] -> [..., N]."""
        return self._relevance_of(effective @ self.item_embeddings.T / self.max_score)

    def click_odds(self, relevance: Tensor, topics: Tensor) -> Tensor:
        """Click probabilities of slates, from their items' relevance and topics, all [..., S]."""
        if self.diversity_penalty != 1.0:
            crowded = self._count_topics(topics, self._ones.expand_as(topics)).amax(-1) >= self.diversity_threshold
            relevance = torch.where(crowded.unsqueeze(-1), relevance / self.diversity_penalty, relevance)
        return relevance * self.examination

    def _next_timer(self) -> Tensor:
        """Timers [B, K] run down by one turn; then a topic with too many clicks in the log is bored, unless it is."""
        state = self.state
        timer = (state.timer - 1).clamp_(min=0)
        counts = self._count_topics(state.log_topic, self._newest(state.logged))
        starts = (counts >= self.boredom_threshold) & (timer == 0)
        return timer.masked_fill_(starts, self.boredom_timeout)

    def _newest(self, count: Tensor) -> Tensor:
        """Mask [B, M] of the `count` [B] newest entries of the click log."""
        memory = self.recent_items_maxlen
        return torch.arange(memory, device=self.device) >= (memory - count).unsqueeze(1)

    def _count_topics(self, topics: Tensor, weights: Tensor) -> Tensor:
        """How often each topic occurs in each row: [..., M] -> [..., K]."""
        counts = torch.zeros(*topics.shape[:-1], self.num_topics, dtype=torch.int64, device=self.device)
        return counts.scatter_add_(-1, topics, weights.long())

    def _effective_user(self, bored: Tensor) -> Tensor:
        """The taste that scores items [B, D]: without the bored topics, the short-term topic boosted."""
        state = self.state
        weight = (~bored).float()
        if self.short_term_boost != 1.0:
            index = state.short_term_topic.unsqueeze(1)
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

    def _append_to_log(self, clicks: Tensor, topics: Tensor) -> None:
        """Push the clicked items' topics, in rank order, at the new end of the log; the oldest fall out."""
        state, memory, slots = self.state, self.recent_items_maxlen, self.slate_size
        order = clicks.cumsum(1)  # the how-manieth click of the slate each one is
        count = order[:, -1:]
        # Both sources land in M + S places, the new log being the last M; slot M + S takes what was not clicked.
        old_places = torch.arange(slots, slots + memory, device=self.device) - count
        new_places = torch.where(clicks, memory + slots - count + order - 1, memory + slots)
        places = torch.cat([old_places, new_places], dim=1)

        def push(old: Tensor, new: Tensor) -> Tensor:
            both = torch.cat([old, new], dim=1)
            room = both.new_zeros(len(both), memory + slots + 1)
            return room.scatter_(1, places, both)[:, slots : slots + memory]

        # one scatter for both columns: an entry is turn * K + topic
        packed = push(
            state.log_turn * self.num_topics + state.log_topic,
            topics + state.turn * self.num_topics,
        )
        state.log_turn, state.log_topic = packed // self.num_topics, packed % self.num_topics

    def _expire_log(self, clicks: Tensor) -> None:
        """Count this turn's entries in and those beyond the moving window out.

        As in the published simulator, whose numbers depend on it: the unstamped clicks of reset sit at the old end,
        and an expiry takes away the oldest entry that is left, stamped or not.
        """
        state, memory = self.state, self.recent_items_maxlen
        count = clicks.sum(1)
        stamped = (state.stamped + count).clamp_(max=memory)
        too_old = state.log_turn < state.turn - self.boredom_moving_window
        expired = (too_old & self._newest(stamped)).sum(1)
        state.stamped = stamped - expired
        state.logged = (state.logged + count).clamp_(max=memory) - expired

    def _influence(self, items: Tensor, clicks: Tensor) -> None:
        """u <- omega * u + (1 - omega) * E_i, normalised, for each clicked item in rank order.

        The loop is over ranks (each normalisation needs the one before), with weight 0 where nothing was clicked.
        """
        weights = (clicks * (1 - self.omega)).unsqueeze(2)
        user = self.state.embedding
        for rank in range(self.slate_size):
            user = self._normalise(torch.lerp(user, items[:, rank], weights[:, rank]))
        self.state.embedding = user

    def _last_clicked(self, clicks: Tensor, topics: Tensor) -> tuple[Tensor, Tensor]:
        """Topic of the last clicked item [B] (meaningless without clicks), and whether there was a click [B]."""
        last = torch.where(clicks, self._ranks, -1).amax(1)
        return topics.gather(1, last.clamp(min=0).unsqueeze(1)).squeeze(1), last >= 0
