"""What the offline agents share: batches of recorded trajectories in, and what is watched while they learn."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from slaterl.agents.base import LatentAgent
from slaterl.beliefs.base import Belief, states_of
from slaterl.console import note
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError, check_counts, check_positive, check_range, check_widths
from slaterl.networks import Critics, draw, mlp, polyak, tanh_gaussian
from slaterl.rankers.base import Ranker


class OfflineAgent(LatentAgent):
    """Learns from recorded trajectories. A subclass gives `action` and `update`.

    Actions are those of the agent's own ranker, a_t = action_of(slate of frame t + 1) in [-1, 1], so that it learns
    from any behaviour: random slates, another ranker, a log.

    Args:
        belief: makes a belief; called once for each network that reads one.
    """

    LEARNS_FROM: ClassVar = "dataset"
    VAL_TERMS: ClassVar = (*LatentAgent.VAL_TERMS, "val/normalised")

    data_low: Tensor
    data_high: Tensor

    def __init__(self, *, ranker: Ranker, belief: Callable[[], Belief], generator: torch.Generator) -> None:
        super().__init__(ranker)
        self.generators["update"] = generator
        self.actor_belief = belief()
        if self.actor_belief.sees_hidden:
            raise UserError("belief=none: a recorded trajectory is learned from what its users showed; use belief=gru")
        self.register_buffer("data_low", torch.full((ranker.action_dim,), -1.0))
        self.register_buffer("data_high", torch.full((ranker.action_dim,), 1.0))

    @torch.no_grad()
    def prepare(self, data: Trajectories) -> Trajectories:
        """Once before training: what is learned from, with actions [N, H, A], and what is remembered of it."""
        data = with_actions(data, self.ranker)
        assert data.actions is not None
        self.data_low.copy_(data.actions.amin((0, 1)))
        self.data_high.copy_(data.actions.amax((0, 1)))
        return data

    def beyond_data(self, action: Tensor) -> Tensor:
        """Share of the components of actions [..., A] that lie outside the range that the data have there."""
        return ((action < self.data_low) | (action > self.data_high)).float().mean()


@torch.no_grad()
def with_actions(data: Trajectories, ranker: Ranker) -> Trajectories:
    """The same with the actions [N, H, A] in [-1, 1] that a ranker's encoder reads from the slates."""
    actions = []
    for start in range(0, len(data), 256):
        part = data[start : start + 256]
        actions.append(ranker.action_of(part.slates[:, 1:].flatten(0, 1)).unflatten(0, (len(part), -1)))
    return dataclasses.replace(data, actions=torch.cat(actions))


class Turns(NamedTuple):
    """A batch as an algorithm's equations have it; turn t + 1 of a column is s' of turn t."""

    critic_state: Tensor  # [B, H, state]
    actor_state: Tensor  # [B, H, state]
    action: Tensor  # [B, H, A] in [-1, 1]
    reward: Tensor  # [B, H], scaled


class PolicyStep(NamedTuple):
    """What a policy's loss is computed from, and is watched by."""

    loss: Tensor
    action: Tensor  # [B, H, A] of the policy
    q: Tensor  # [B, H] of these actions


class OfflineActorCritic(OfflineAgent):
    """Critics Q(s, a) and a policy, each on a belief of its own, trained end to end. Subclasses give the equations.

    All gradients of an update are taken at the same parameters; the policy's loss reaches neither the critics nor
    their belief. What a subclass can give: `next_value`, `further_loss`, `actor_loss`.

    Args:
        gamma: discount; reward_scale: what clicks are multiplied by before anything learns from them.
        tau: share of the online networks that enters the targets with every update of the policy.
        q_lr, pi_lr: Adam's learning rates of critics and policy, each with its belief.
        q_hidden, pi_hidden: widths of the hidden layers.
        num_critics: of which the minimum counts.
        policy_delay: updates of the critics for one of the policy.
    """

    TERMS: ClassVar = (
        "loss/critic",
        "loss/actor",
        "value/q_data",
        "value/q_policy",
        "value/gap",
        "value/target",
        "value/td_error",
        "policy/beyond_data",
        "grad/critic",
        "grad/actor",
    )
    GAUSSIAN: ClassVar[bool] = True  # whether the policy is a tanh-Gaussian, or deterministic
    LAYER_NORM: ClassVar[bool] = False  # whether the critics normalise their hidden layers
    FIRST_CRITIC: ClassVar[bool] = False  # whether the policy is valued by Q1, or by the minimum of the critics

    q_range: Tensor
    of_policy: Tensor

    def __init__(
        self,
        *,
        belief: Callable[[], Belief],
        gamma: float,
        reward_scale: float,
        tau: float,
        q_lr: float,
        pi_lr: float,
        q_hidden: Sequence[int],
        pi_hidden: Sequence[int],
        num_critics: int = 2,
        policy_delay: int = 1,
        **common: Any,
    ) -> None:
        check_range(0, 1, **{"agent.gamma": gamma, "agent.tau": tau})
        check_positive(**{"agent.reward_scale": reward_scale, "agent.q_lr": q_lr, "agent.pi_lr": pi_lr})
        check_counts(**{"agent.num_critics": num_critics, "agent.policy_delay": policy_delay})
        check_widths(**{"agent.q_hidden": q_hidden, "agent.pi_hidden": pi_hidden})
        super().__init__(belief=belief, **common)
        self.gamma, self.reward_scale, self.tau, self.policy_delay = gamma, reward_scale, tau, policy_delay
        self.explores = self.GAUSSIAN
        self.critic_belief = belief()
        state_dim, action_dim = self.actor_belief.state_dim, self.ranker.action_dim
        self.actor = mlp(state_dim, pi_hidden, (2 if self.GAUSSIAN else 1) * action_dim)
        self.critics = Critics(num_critics, state_dim + action_dim, q_hidden, self.LAYER_NORM)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.register_buffer("q_range", torch.tensor([-math.inf, math.inf]))
        self.register_buffer("of_policy", torch.zeros(4))  # terms of its last update, for those that leave it alone
        self.add_optimizer("critic", self.critics, self.critic_belief, lr=q_lr)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)

    def prepare(self, data: Trajectories) -> Trajectories:
        data = super().prepare(data)
        # a discounted return is at most that of the best turn over and over, and at least that of the worst
        turns = data.rewards.shape[1]
        horizon = turns if self.gamma == 1 else (1 - self.gamma**turns) / (1 - self.gamma)
        self.q_range.copy_(torch.stack(data.rewards.aminmax()) * self.reward_scale * horizon)
        return data

    def watch(self, step: int, means: Mapping[str, float]) -> None:
        low, high = self.q_range.tolist()
        slack = 0.05 * (high - low)  # the critics begin around zero
        for name in ("value/q_data", "value/q_policy"):
            if not low - slack <= means[name] <= high + slack:
                possible = f"the data's discounted returns can lie between {low:.1f} and {high:.1f}"
                note(f"warning: step {step:,}: {name} is {means[name]:.1f}, but {possible}")

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        parameters = self.actor(state)
        if not self.GAUSSIAN:
            return parameters.tanh()
        return (parameters.chunk(2, dim=-1)[0] if generator is None else draw(parameters, generator)[0]).tanh()

    def sample(self, actor_state: Tensor) -> tuple[Tensor, Tensor]:
        """Draws of the policy for updates, [..., A], and their log-probabilities [...]."""
        return tanh_gaussian(self.actor(actor_state), self.generators["update"])

    def first_q(self, state: Tensor, action: Tensor) -> Tensor:
        """Q1 [...] at belief states [..., state] and actions [..., A] in [-1, 1], without the work of the others."""
        return self.critics.members[0](torch.cat([state, self.ranker.to_latent(action)], dim=-1)).squeeze(-1)

    def next_value(self, turns: Turns) -> Tensor:
        """[B, H-1] of the states s', in the target of Q: min Q'(s', a') for a' of the policy."""
        next_action, _ = self.sample(turns.actor_state[:, 1:])
        return self.q_values(self.target_critics, turns.critic_state[:, 1:], next_action).amin(0)

    def further_loss(self, turns: Turns, q: Tensor) -> Tensor | float:
        """What the critics' optimiser minimises beside (Q - target)^2, given q [n, B, H] of the data's actions."""
        return 0.0

    def actor_loss(self, turns: Turns) -> PolicyStep:
        """The policy's loss. The critics' parameters are frozen meanwhile, and their states carry no gradient."""
        raise NotImplementedError

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """One step of the critics, and every policy_delay-th time of policy and targets, on B whole trajectories."""
        assert batch.actions is not None
        policy_turn = self.step % self.policy_delay == 0
        # both beliefs in one scan; each loss reaches its own
        critic_state, actor_state = states_of([self.critic_belief, self.actor_belief], batch)
        turns = Turns(critic_state, actor_state, batch.actions, self.reward_scale * batch.rewards)

        # critics: y = r + gamma * V(s'), and y = r in the last turn
        with torch.no_grad():
            target = turns.reward.clone()
            target[:, :-1] += self.gamma * self.next_value(turns)
        q = self.q_values(self.critics, turns.critic_state, turns.action)
        error = q - target
        critic_loss = error.square().mean() + self.further_loss(turns, q)

        loss = critic_loss
        if policy_turn:
            with frozen(self.critics):
                policy = self.actor_loss(turns._replace(critic_state=turns.critic_state.detach()))
            loss = loss + policy.loss

        for optimizer in self.optim.values():
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for name, optimizer in self.optim.items():
            if policy_turn or name == "critic":
                optimizer.step()
        if policy_turn:
            self.move_targets()
            beyond, norm = self.beyond_data(policy.action.detach()), gradient_norm(self.optim["actor"])
            self.of_policy.copy_(torch.stack([policy.loss.detach(), policy.q.detach().mean(), beyond, norm]))

        # by the same critics as the policy's, else the gap would grow with their number
        q_data = (q[0] if self.FIRST_CRITIC else q.amin(0)).mean()
        actor_loss, q_policy, beyond, norm = self.of_policy.clone()
        return {
            "loss/critic": critic_loss,
            "loss/actor": actor_loss,
            "value/q_data": q_data,
            "value/q_policy": q_policy,
            "value/gap": q_policy - q_data,
            "value/target": target.mean(),
            "value/td_error": error.abs().mean(),
            "policy/beyond_data": beyond,
            "grad/critic": gradient_norm(self.optim["critic"]),
            "grad/actor": norm,
        }

    def move_targets(self) -> None:
        polyak(self.critics, self.target_critics, self.tau)


class EntropyActor(OfflineActorCritic):
    """With SAC's policy: maximises min Q + alpha * entropy, with a learned temperature alpha.

    Args:
        alpha_lr: Adam's learning rate of the temperature; initial_alpha: the temperature before the first update.
        others: see OfflineActorCritic.
    """

    def __init__(self, *, alpha_lr: float, initial_alpha: float, **common: Any) -> None:
        check_positive(**{"agent.alpha_lr": alpha_lr, "agent.initial_alpha": initial_alpha})
        super().__init__(**common)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(initial_alpha)))
        self.add_optimizer("alpha", self.log_alpha, lr=alpha_lr)

    def actor_loss(self, turns: Turns) -> PolicyStep:
        """mean(alpha * log pi - min Q), and the temperature's loss towards an entropy of -A."""
        action, log_prob = self.sample(turns.actor_state)
        q = self.q_values(self.critics, turns.critic_state, action).amin(0)
        alpha_loss = -self.log_alpha.exp() * (log_prob.detach().mean() - self.ranker.action_dim)
        actor_loss = (self.log_alpha.detach().exp() * log_prob - q).mean()
        return PolicyStep(actor_loss + (alpha_loss - alpha_loss.detach()), action, q)  # its gradient, not its value


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, the module's parameters take no gradient from what is computed with it."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Euclidean norm of all gradients of an optimiser's parameters."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return torch.stack(torch._foreach_norm(gradients)).norm()


def some_turns(turns: Turns, count: int, generator: torch.Generator) -> tuple[Turns, Tensor]:
    """`count` turns of the episode, drawn uniformly, of every trajectory, and which they are.

    Terms that take many actions in each state cost as much as all others together; over some turns they are estimated
    without bias. The last turn is never one of them: it has no s'.
    """
    last = turns.reward.shape[1] - 1
    chosen = torch.randperm(last, generator=generator, device=generator.device)[:count]
    return Turns(*(column[:, chosen] for column in turns)), chosen
