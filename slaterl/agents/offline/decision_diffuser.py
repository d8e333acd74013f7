"""Decision Diffuser: plan the next frames by diffusion, given the last ones, and play the plan's actions.

Ajay et al., "Is Conditional Generative Modeling All You Need for Decision-Making?", arXiv 2211.15657.
The advantage's sign as a condition is of Frans et al., "Diffusion Guidance Is a Controllable Policy Improvement
Operator", arXiv 2505.23458. Candidates that a critic scores are of Diffusion Veteran: Lu et al., "What Makes a Good
Diffusion Planner for Decision Making?", arXiv 2503.00535.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from slaterl.agents.losses import complete_turns, mean
from slaterl.agents.offline.actor_critic import best_of
from slaterl.agents.offline.base import MakeBelief, gradient_norm
from slaterl.agents.offline.diffusion import Diffusion
from slaterl.agents.offline.plan_values import PlanValues
from slaterl.agents.offline.planner import Condition, Planner, Seen
from slaterl.agents.offline.planning import PlanningPolicy
from slaterl.agents.offline.windows import ContextWindow, Window, random_turns
from slaterl.beliefs.base import Belief, JoinedBeliefs
from slaterl.bounds import Count, Discount, Fraction, NonNegative, Positive, Several, Share, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.envs.env import Env
from slaterl.errors import UserError
from slaterl.networks import polyak, target_of, with_gumbel_noise
from slaterl.rankers.base import Ranker

ROWS = 2048  # frames that go through the network together while acting; measured: more leave the cache


class DecisionDiffuser(PlanValues):
    """A diffusion model of the next F frames (action, reward) given the last K frames of a session.

    The loss is the error of the noise that it predicts in recorded frames. Frames after a session's end are masked out
    of attention and loss. A window starts at any turn of a session, and counts by the session's length.

    The action is that of the first planned frame, so the inverse model of the paper is the identity here. Guidance
    (equation 8): eps = eps(nothing) + w * (eps(condition) - eps(nothing)).

    `action` plans from noise in each turn. `policy` keeps each user's plan, see PlanningPolicy.

    Args:
        ranker, belief, generator: see OfflineAgent; only critics read the belief.
        env: gives sizes of slates, items and episodes.
        gamma: discount of returns, and of the critics.
        condition: plans are asked for a return, for actions with an advantage above zero, or for nothing.
        context, horizon: K and F, in turns.
        width, depth, heads, item_dim: see Planner.
        steps, sample_steps: steps of the diffusion T, and those of them that a plan from noise takes.
        warm_steps: last ones of sample_steps that a plan from the last plan takes; None plans from noise every time.
        replan_every: frames of a plan that are played before the next plan.
        guidance: w; 1 only asks for the condition, without guidance.
        drop: probability with which an update asks for nothing.
        temperature: variance of the noise that plans start from, when exploring or choosing among candidates.
        target_return: what condition=return asks for; 1 is the data's 99th percentile (see PlanValues.ahead).
        first_weight: weight of the first planned frame in the loss; the others have 1.
        pi_lr, tau: learning rate of the planner, and rate of its moving average, which acts, and of target critics.
        candidates: plans among which critics choose.
        q_lr, q_hidden, num_critics, layer_norm: critics of condition=advantage or of candidates.
        expectile: of V's loss; condition=advantage asks for actions better than V.

    Raises:
        UserError: settings contradict each other.
    """

    TERMS: ClassVar = ("loss/actor", "loss/first_action", "loss/critic", "value/condition", "grad/actor")

    KEEPS_PLANS: ClassVar = True

    acting_noise: Tensor

    def __init__(
        self, *, ranker: Ranker, belief: MakeBelief, generator: torch.Generator, env: Env,
        gamma: Discount, condition: Literal["return", "advantage", "none"],
        context: Count, horizon: Count, width: Count, depth: Count, heads: Count, item_dim: Count,
        steps: Several, sample_steps: Count, warm_steps: Count | None, replan_every: Count,
        guidance: NonNegative, drop: Fraction, temperature: NonNegative, target_return: Fraction,
        first_weight: Positive, pi_lr: Positive, tau: Share, candidates: Count,
        q_lr: Positive, q_hidden: Widths, num_critics: Count, layer_norm: bool, expectile: Fraction,
    ) -> None:  # fmt: skip
        for wrong, why in (
            (width % heads, f"agent.width={width}: must be a multiple of agent.heads={heads}"),
            (sample_steps > steps, f"agent.sample_steps={sample_steps}: there are only agent.steps={steps}"),
            (
                warm_steps and warm_steps > sample_steps,
                f"agent.warm_steps={warm_steps}: there are only agent.sample_steps={sample_steps}",
            ),
            (
                replan_every > horizon,
                f"agent.replan_every={replan_every}: a plan has only agent.horizon={horizon} frames",
            ),
            (
                candidates > 1 and condition != "none",
                f"agent.candidates={candidates}: critics choose among plans that are asked for nothing; "
                "use agent.condition=none",
            ),
            (
                candidates > 1 and temperature == 0,
                f"agent.candidates={candidates}: without noise all plans are the same; use agent.temperature above 0",
            ),
        ):
            if wrong:
                raise UserError(why)
        length = min(context, env.episode_length)
        super().__init__(ranker, ContextWindow(length, env.slate_size, ranker), generator, gamma, expectile)
        self.condition, self.guidance, self.drop, self.tau = condition, guidance, drop, tau
        self.temperature, self.first_weight, self.candidates = temperature, first_weight, candidates
        self.asked = target_return if condition == "return" else 1.0
        self.frames = min(horizon, env.episode_length)
        self.replan_every, self.warm_steps = min(replan_every, self.frames), warm_steps
        self.diffusion = Diffusion(steps)
        self.ladder = self.diffusion.ladder(sample_steps)
        self.actor = Planner(
            num_items=env.num_items, slate_size=env.slate_size, action_dim=ranker.action_dim, context=length,
            frames=self.frames, item_dim=item_dim, width=width, depth=depth, heads=heads,
            conditional=condition != "none",
        )  # fmt: skip
        self.target_actor = target_of(self.actor)
        # The same noise for every user and turn, so that acting is repeatable. A plan alone starts from zeros, as the
        # first candidate does: a draw for everybody would be the luck of one seed.
        noise = torch.randn(candidates, self.frames, ranker.action_dim + 1)
        noise[0] = 0
        self.register_buffer("acting_noise", noise)
        self.add_optimizer("actor", self.actor, lr=pi_lr)
        if condition == "advantage":
            self.build_advantage(belief, num_critics, q_hidden, layer_norm)
            self.add_optimizer("critic", self.critics, self.value, self.critic_belief, lr=q_lr)
        elif candidates > 1:
            self.build_scores(belief, num_critics, q_hidden, layer_norm, self.frames)
            self.add_optimizer("critic", self.critics, self.critic_belief, lr=q_lr)

    # --- acting

    @property
    def acting_belief(self) -> Belief | JoinedBeliefs:
        """The window, and the critics' belief if they choose among plans."""
        return JoinedBeliefs([self.actor_belief, self.critic_belief]) if self.candidates > 1 else self.actor_belief

    def policy(self, generator: torch.Generator | None = None) -> PlanningPolicy:
        return PlanningPolicy(self, generator)

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the first action of plans from noise: [B, state] -> [B, A]."""
        return self.actions_of(self.plan(state, generator))[:, 0]

    def actions_of(self, plans: Tensor) -> Tensor:
        """Return the actions [..., F, A] of plans [..., F, A + 1]."""
        return plans[..., :-1]

    def plan(self, state: Tensor, generator: torch.Generator | None, expected: Tensor | None = None) -> Tensor:
        """Plan F frames for B users: [B, F, A + 1] in [-1, 1].

        Args:
            state: [B, state] of the acting belief.
            generator: draws noise and candidates. None takes the noise of `acting_noise`, and the best candidate.
            expected: [B, F, A + 1] a plan to start from; None starts from noise.
        """
        shape = (len(state), *self.acting_noise.shape)
        if generator is None:
            noise = self.acting_noise.expand(shape)
        else:
            noise = torch.randn(shape, generator=generator, device=state.device)
        noise, ladder = self.temperature**0.5 * noise, self.ladder
        if expected is not None:
            assert self.warm_steps is not None
            ladder = ladder[-self.warm_steps :]
            step = torch.full((1,), ladder[0], device=state.device)
            noise = self.diffusion.noised(expected.unsqueeze(1), noise, step)
        branches = 2 if self.guided else 1
        size = max(1, ROWS // max(branches * self.candidates * self.frames, self.window.length))
        parts = zip(state.split(size), noise.split(size), strict=True)
        plans = torch.cat([self.drawn(some[:, : self.window.state_dim], start, ladder) for some, start in parts])
        if self.candidates == 1:
            return plans[:, 0]
        plans = plans.transpose(0, 1)  # [n, B, F, A + 1]
        score = self.scores(state[:, self.window.state_dim :], self.actions_of(plans))
        if generator is not None:
            score = with_gumbel_noise(score, generator)
        return best_of(plans.flatten(2), score).view_as(plans[0])

    @property
    def window(self) -> ContextWindow:
        assert isinstance(self.actor_belief, ContextWindow)
        return self.actor_belief

    @property
    def guided(self) -> bool:
        """Whether each step of a plan needs both branches of the guidance."""
        return self.condition != "none" and self.guidance != 1

    def drawn(self, state: Tensor, noise: Tensor, ladder: list[int]) -> Tensor:
        """Turn noise [B, n, F, A + 1] into plans of that shape, for windows [B, state]."""
        context, actions, _ = self.window.read_state(state)
        seen = self.target_actor.read(context, actions)
        return self.diffusion.implicit(lambda x, step: self.guided_noise(seen, x, step), noise, ladder)

    def guided_noise(self, seen: Seen, x: Tensor, step: Tensor) -> Tensor:
        """Return the noise in plans [B, n, F, A + 1] at a step [], with guidance. Both branches go together."""
        count = x.shape[1]
        if self.condition == "none":
            return self.target_actor(seen, x, step, None)
        rows = 2 * count if self.guided else count
        known = (torch.arange(rows, device=x.device) < count).unsqueeze(0)
        asked = Condition(torch.full((1, rows), self.asked, device=x.device), known)
        if not self.guided:
            return self.target_actor(seen, x, step, asked)
        with_it, without = self.target_actor(seen, torch.cat([x, x], dim=1), step, asked).chunk(2, dim=1)
        return torch.lerp(without, with_it, self.guidance)

    # --- learning

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of the planner on a window of each of B sessions, and of the critics on what they need."""
        assert batch.actions is not None
        start, length = random_turns(batch, self.generators["update"])
        turns = torch.arange(-self.window.length, self.frames, device=start.device)
        past = Window.of(batch, start + turns[1 : self.window.length + 1], length)  # up to o_t
        taken = Window.of(batch, start + turns[self.window.length :], length)  # from a_t on
        losses, condition = self.critic_loss(batch, start, taken, length)

        # planner: (eps - eps(x_t, t, condition, past))^2
        recorded = torch.cat([batch.actions, self.scaled(batch.rewards).unsqueeze(2)], dim=2)
        frames = taken.cut(recorded).where(taken.there.unsqueeze(2), 0.0)
        noise, step = self.noise_for(frames)
        context = past.context(batch)
        noisy = self.diffusion.noised(frames, noise, step).unsqueeze(1)
        seen = self.actor.read(context, context.actions(self.ranker))
        found = self.actor(seen, noisy, step, condition, ~taken.there).squeeze(1)
        error = (found - noise).square()
        weight = taken.there * length * torch.where(turns[self.window.length :] == 0, self.first_weight, 1.0)
        losses["actor"] = mean(error, weight, of_vectors=True)

        self.descend(**losses)
        polyak(self.actor, self.target_actor, self.tau)
        if self.condition == "advantage":
            polyak(self.critics, self.target_critics, self.tau)
        nothing = noise.new_zeros(())
        return {
            "loss/actor": losses["actor"],
            "loss/first_action": mean(self.actions_of(error)[:, 0], length, of_vectors=True),
            "loss/critic": losses.get("critic", nothing),
            "value/condition": mean(condition.value, length * condition.known) if condition else nothing,
            "grad/actor": gradient_norm(self.optim["actor"]),
        }

    def noise_for(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Draw noise for frames [B, F, A + 1], and a step [B, 1] of the diffusion for each session."""
        generator, steps = self.generators["update"], self.diffusion.steps
        drawn = torch.rand(len(frames), 1, generator=generator, device=frames.device)
        noise = torch.randn(frames.shape, generator=generator, device=frames.device)
        return noise, (steps * drawn).long().clamp(max=steps - 1)

    def critic_loss(
        self, batch: Trajectories, start: Tensor, taken: Window, length: Tensor
    ) -> tuple[dict[str, Tensor], Condition | None]:
        """Return the loss of the critics, if there are any, and what the windows from turns `start` [B, 1] achieved.

        Returns of sessions that the log cut are not known, so their plans are asked for nothing.
        """
        complete = complete_turns(batch)
        known = torch.ones_like(start, dtype=torch.bool) if complete is None else complete[taken.users, start]
        if self.candidates > 1:
            return {"critic": self.score_loss(batch, start, taken, known * length)}, None
        if self.condition == "none":
            return {}, None
        losses = {}
        if self.condition == "advantage":
            losses["critic"], advantage = self.advantage(batch)
            value, known = (advantage[taken.users, start] > 0).float(), torch.ones_like(known)
        else:
            value = self.ahead(batch)[taken.users, start].clamp(0, 1)
        kept = torch.rand(start.shape, generator=self.generators["update"], device=start.device) >= self.drop
        return losses, Condition(value, known & kept)
