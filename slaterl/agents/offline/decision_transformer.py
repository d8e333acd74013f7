"""Decision Transformer: a sequence model continues sequences of returns to go, observations and actions.

Chen et al., "Decision Transformer: Reinforcement Learning via Sequence Modeling", arXiv 2106.01345.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu, scaled_dot_product_attention

from slaterl.agents.losses import mean
from slaterl.agents.offline.base import OfflineAgent, gradient_norm
from slaterl.agents.offline.windows import Context, ContextWindow, Window, random_turns
from slaterl.bounds import Count, NonNegative, Positive
from slaterl.data.trajectories import Trajectories
from slaterl.envs.env import Env
from slaterl.errors import UserError
from slaterl.layers import in_blocks, product
from slaterl.rankers.base import Ranker


class DecisionTransformer(OfflineAgent):
    """Predict a_t from the returns to go, frames and actions of the last K turns. The loss is (pi(context) - a_t)^2.

    A window of K turns starts at any turn of a session, as in the published code. So late turns are learned as well as
    early ones. What lies after the session's end is masked out of attention and loss. Windows count by the length of
    their session, because the published code draws long sessions more often.

    Returns of users differ more than those of actions. So a large return to go asks for an easy user and a long
    session, rather than for good actions.

    When acting, the return to go is `target_return` minus the clicks so far. The ranker reads the actions of the
    context from the shown slates, in training as well, whichever labels a_t there are (see OfflineAgent). They are
    neither clipped nor calibrated: a calibration is linear, and so is the layer that embeds them.

    Args:
        ranker, generator: see OfflineAgent.
        env: gives sizes of slates, items and episodes.
        context: K, in turns.
        layers, heads, width: size of the transformer.
        item_dim: width of the embeddings of shown items.
        pi_lr, weight_decay: learning rate and weight decay of AdamW.
        target_return: return (clicks per episode) to ask for; None asks for the best return in the data.

    Raises:
        UserError: the width is not a multiple of the heads.
    """

    TERMS: ClassVar = ("loss/actor", "policy/beyond_data", "grad/actor")
    CREDITS_CLICKS: ClassVar = True  # its return to go counts the clicks of the context
    explores = False

    target_return: Tensor
    return_scale: Tensor

    def __init__(
        self,
        *,
        ranker: Ranker,
        generator: torch.Generator,
        env: Env,
        context: Count,
        layers: Count,
        heads: Count,
        width: Count,
        item_dim: Count,
        pi_lr: Positive,
        weight_decay: NonNegative,
        target_return: Positive | None,
    ) -> None:
        if width % heads:
            raise UserError(f"agent.width={width}: must be a multiple of agent.heads={heads}")
        self.length = min(context, env.episode_length)
        super().__init__(ranker, lambda: ContextWindow(self.length, env.slate_size, ranker), generator)
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
        """Predict the actions [B, K, A] in [-1, 1] after each frame of a context.

        Args:
            context: frames of B users.
            to_go: [B, K] return to go at each frame.
            actions: [B, K, A] action after each frame; the last one is not read.
        """
        sequence, visible = self.sequence(context, to_go, actions)
        heads = self.transformer.layers[0].self_attn.num_heads
        encoded = self.transformer(sequence, mask=(~visible).repeat_interleave(heads, dim=0))
        return self.actor(encoded.unflatten(1, (-1, 3))[:, :, 1]).tanh()

    def sequence(self, context: Context, to_go: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens [B, 3K, width] of `predict`, and which tokens each of them attends to, [B, 3K, 3K]."""
        items = embedding(context.slates.long(), self.item_embeddings)
        frames = torch.cat([items, context.clicks.unsqueeze(3).to(items.dtype)], dim=3).flatten(2)
        tokens = [
            self.embed_return(to_go.unsqueeze(2) / self.return_scale),
            self.embed_frame(frames),
            self.embed_action(actions),
        ]
        # In episodes longer than the data's, later turns use the embedding of the last one.
        turn = self.embed_turn(context.turn.clamp(0, self.embed_turn.num_embeddings - 1))
        sequence = torch.stack([token + turn for token in tokens], dim=2).flatten(1, 2)  # [B, 3K, width]
        # A token attends to itself and to the earlier tokens of the episode, not to padding.
        length = sequence.shape[1]
        there = (context.turn >= 0).repeat_interleave(3, dim=1)
        itself = torch.eye(length, dtype=torch.bool, device=there.device)
        earlier = torch.ones_like(itself).tril(-1)
        return sequence, earlier & there.unsqueeze(1) | itself

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        """Act on states of the context window: [B, state] -> [B, A]. Always deterministic."""
        window = self.actor_belief
        assert isinstance(window, ContextWindow)
        context, read, so_far = window.read_state(state)
        # The return to go at a frame is the remaining return plus the clicks since then.
        reward = context.clicks.sum(2) * (context.turn > 0)
        since = reward.flip(1).cumsum(1).flip(1) - reward
        to_go = (self.target_return - so_far).unsqueeze(1) + since
        sequence, visible = self.sequence(context, to_go, read.roll(-1, dims=1))
        # without the last action, which is not known yet
        encoded = encode_last(self.transformer, sequence[:, :-1], visible[:, :-1, :-1])
        return self.actor(encoded).tanh()

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step on a window of K turns of each of B trajectories, which starts at a random turn."""
        assert batch.actions is not None
        start, length = random_turns(batch, self.generators["update"])
        window = Window.of(batch, start + torch.arange(self.length, device=start.device), length)
        to_go = window.cut(batch.rewards.flip(1).cumsum(1).flip(1))
        context = window.context(batch)
        shown = context.actions(self.ranker).roll(-1, dims=1)  # after each frame, [B, K, A]; the last means nothing
        predicted = self.predict(context, to_go, shown)
        weight = window.there * length
        loss = mean((predicted - window.cut(batch.actions)).square(), weight, of_vectors=True)
        self.minimise("actor", loss)
        return {
            "loss/actor": loss,
            "policy/beyond_data": self.beyond_data(predicted.detach(), weight),
            "grad/actor": gradient_norm(self.optim["actor"]),
        }


@torch.no_grad()
def encode_last(encoder: nn.TransformerEncoder, sequence: Tensor, visible: Tensor) -> Tensor:
    """Return what an encoder of pre-norm layers with GELU makes of the last token, [B, T, W] -> [B, W].

    The last layer computes nothing for the other tokens. Products are those of slaterl.layers, which are faster on some
    processors. So last bits differ from those of the encoder's own forward pass.

    Args:
        visible: [B, T, T] bool, which tokens each token attends to.
    """
    hidden, mask = sequence, visible.unsqueeze(1)  # for all heads
    for number, layer in enumerate(encoder.layers, start=1):
        attention = layer.self_attn
        weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, hidden.shape[2]
        normed = layer.norm1(hidden)
        if number == len(encoder.layers):
            hidden, mask = hidden[:, -1:], mask[:, :, -1:]
            queries = _linear(normed[:, -1:], weight[:width], bias[:width])
            pairs = _linear(normed, weight[width:], bias[width:])
        else:
            queries, pairs = _linear(normed, weight, bias).split([width, 2 * width], dim=2)
        q, k, v = (
            part.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
            for part in (queries, *pairs.split(width, dim=2))
        )
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        hidden = hidden + _linear(attended, attention.out_proj.weight, attention.out_proj.bias)
        # in blocks of rows whose widest layer stays in the second-level cache
        blocks = in_blocks(hidden.flatten(0, 1), layer.linear1.out_features)
        hidden = torch.cat([_mlp(layer, rows) for rows in blocks]).view_as(hidden)
    assert encoder.norm is not None
    return encoder.norm(hidden)[:, -1]


def _mlp(layer: nn.TransformerEncoderLayer, rows: Tensor) -> Tensor:
    inner = gelu(product(layer.norm2(rows), layer.linear1.weight, layer.linear1.bias))
    return rows + product(inner, layer.linear2.weight, layer.linear2.bias)


def _linear(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return product(rows.flatten(0, 1), weight, bias).unflatten(0, rows.shape[:2])
