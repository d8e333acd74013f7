"""Decision Transformer: actions as a sequence model continues (return to go, observation, action) sequences.

Chen et al., "Decision Transformer: Reinforcement Learning via Sequence Modeling", arXiv 2106.01345.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from slaterl.agents.offline.base import OfflineAgent, gradient_norm
from slaterl.beliefs.base import Belief
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError, check_counts, check_positive, check_range
from slaterl.rankers.base import Ranker


class Context(NamedTuple):
    """The last K frames of B users."""

    slates: Tensor  # [B, K, S]
    clicks: Tensor  # [B, K, S]
    turn: Tensor  # [B, K] at which each frame is o_t; below zero where there was none yet


class ContextWindow(Belief):
    """What a transformer reads: the last K frames, the number of frames and of clicks so far, as one row of numbers."""

    def __init__(self, length: int, slate_size: int) -> None:
        super().__init__()
        self.length, self.slate_size = length, slate_size
        self.state_dim = length * 2 * slate_size + 2
        self.register_buffer("_zeros", torch.zeros(self.state_dim), persistent=False)

    def initial_state(self, num_users: int) -> Tensor:
        return self._zeros.expand(num_users, -1)

    def step(self, observation: Observation | PrivilegedObservation, state: Tensor) -> Tensor:
        frames, count, clicks = state[:, :-2], state[:, -2:-1], state[:, -1:]
        new = torch.cat([observation.slate, observation.clicks], dim=1).to(state.dtype)
        earned = observation.clicks.sum(1, keepdim=True) * (count > 0)  # nobody chose frame 0
        return torch.cat([frames[:, new.shape[1] :], new, count + 1, clicks + earned], dim=1)

    def read_state(self, state: Tensor) -> tuple[Context, Tensor]:
        """The context in states [B, state], and the clicks so far [B]."""
        slates, clicks = state[:, :-2].unflatten(1, (self.length, 2, self.slate_size)).unbind(2)
        turn = state[:, -2:-1].long() - torch.arange(self.length, 0, -1, device=state.device)
        return Context(slates.long(), clicks, turn), state[:, -1]


class DecisionTransformer(OfflineAgent):
    """Predicts a_t from the returns to go, frames and actions of the last K turns; loss: squared error.

    When acting, the return to go is what is left of `target_return` after the clicks so far. The actions of its context
    are read from the frames themselves (see OfflineAgent), so it continues what was shown.

    Args:
        context: K; layers, heads, width: of the transformer; item_dim: of the embeddings of shown items.
        pi_lr, weight_decay: of AdamW.
        target_return: clicks of an episode to ask for; None asks for the best of the data.
    """

    TERMS: ClassVar = ("loss/actor", "policy/beyond_data", "grad/actor")
    explores = False

    target_return: Tensor
    return_scale: Tensor

    def __init__(
        self,
        *,
        ranker: Ranker,
        generator: torch.Generator,
        env: TopicRec,
        context: int,
        layers: int,
        heads: int,
        width: int,
        item_dim: int,
        pi_lr: float,
        weight_decay: float,
        target_return: float | None,
    ) -> None:
        sizes = {"agent.context": context, "agent.layers": layers, "agent.heads": heads}
        check_counts(**sizes, **{"agent.width": width, "agent.item_dim": item_dim})
        check_positive(**{"agent.pi_lr": pi_lr})
        check_range(0, float("inf"), **{"agent.weight_decay": weight_decay})
        if target_return is not None:
            check_positive(**{"agent.target_return": target_return})
        if width % heads:
            raise UserError(f"agent.width={width}: must be a multiple of agent.heads={heads}")
        self.length = min(context, env.episode_length)
        super().__init__(ranker, lambda: ContextWindow(self.length, env.slate_size), generator)
        self.given_return = target_return
        self.register_buffer("target_return", torch.tensor(target_return or 1.0))
        self.register_buffer("return_scale", torch.tensor(1.0))
        self.item_embeddings = nn.Parameter(torch.randn(env.num_items, item_dim))
        self.embed_frame = nn.Linear(env.slate_size * (item_dim + 1), width)
        self.embed_return = nn.Linear(1, width)
        self.embed_action = nn.Linear(ranker.action_dim, width)
        self.embed_turn = nn.Embedding(env.episode_length, width)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(block, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.actor = nn.Linear(width, ranker.action_dim)
        learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.optim["actor"] = torch.optim.AdamW(learned, lr=pi_lr, weight_decay=weight_decay, fused=True)

    def prepare(self, data: Trajectories) -> Trajectories:
        data = super().prepare(data)
        best = data.returns.max().clamp(min=1)
        self.return_scale.copy_(best)
        if self.given_return is None:
            self.target_return.copy_(best)
        return data

    def predict(self, context: Context, to_go: Tensor, actions: Tensor) -> Tensor:
        """Actions [B, K, A] in [-1, 1] after each frame of a context.

        Args:
            to_go: [B, K] return to go at each frame.
            actions: [B, K, A] that followed each frame; the last one is not looked at.
        """
        items = embedding(context.slates.long(), self.item_embeddings)
        frames = torch.cat([items, context.clicks.unsqueeze(3).to(items.dtype)], dim=3).flatten(2)
        tokens = [
            self.embed_return(to_go.unsqueeze(2) / self.return_scale),
            self.embed_frame(frames),
            self.embed_action(actions),
        ]
        # in episodes longer than those learned from, later turns count as the last one
        turn = self.embed_turn(context.turn.clamp(0, self.embed_turn.num_embeddings - 1))
        sequence = torch.stack([token + turn for token in tokens], dim=2).flatten(1, 2)  # [B, 3K, width]
        # a token sees itself and, of what came before it, what there was
        length = sequence.shape[1]
        there = (context.turn >= 0).repeat_interleave(3, dim=1)
        itself = torch.eye(length, dtype=torch.bool, device=there.device)
        earlier = torch.ones_like(itself).tril(-1)
        hidden_keys = ~(earlier & there.unsqueeze(1) | itself)  # [B, 3K, 3K]
        heads = self.transformer.layers[0].self_attn.num_heads
        encoded = self.transformer(sequence, mask=hidden_keys.repeat_interleave(heads, dim=0))
        return self.actor(encoded.unflatten(1, (-1, 3))[:, :, 1]).tanh()

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        """[B, A] for states of its window; deterministic."""
        window = self.actor_belief
        assert isinstance(window, ContextWindow)
        context, so_far = window.read_state(state)
        # return to go at a frame: what was left then, that is now and what has come since
        reward = context.clicks.sum(2) * (context.turn > 0)
        since = reward.flip(1).cumsum(1).flip(1) - reward
        to_go = (self.target_return - so_far).unsqueeze(1) + since
        # the action after a frame is that of the next frame
        actions = self.ranker.action_of(context.slates.flatten(0, 1)).unflatten(0, context.turn.shape).roll(-1, dims=1)
        return self.predict(context, to_go, actions)[:, -1]

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """One step on a window of K turns of each of B trajectories, where it begins drawn uniformly."""
        assert batch.actions is not None
        count, horizon = batch.rewards.shape
        device = batch.slates.device
        starts = torch.randint(
            horizon - self.length + 1, (count, 1), generator=self.generators["update"], device=device
        )
        turn = starts + torch.arange(self.length, device=device)  # [B, K]
        user = torch.arange(count, device=device).unsqueeze(1)
        to_go = batch.rewards.flip(1).cumsum(1).flip(1)[user, turn]
        context = Context(batch.slates[user, turn], batch.clicks[user, turn], turn)
        actions = batch.actions[user, turn]
        predicted = self.predict(context, to_go, actions)
        loss = (predicted - actions).square().mean()
        self.minimise("actor", loss)
        return {
            "loss/actor": loss,
            "policy/beyond_data": self.beyond_data(predicted.detach()),
            "grad/actor": gradient_norm(self.optim["actor"]),
        }
