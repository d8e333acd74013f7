"""ReBRAC: TD3 + BC with the penalties of actor and critic apart, layer norm in the critics, and deeper networks.

Tarasov et al., "Revisiting the Minimalist Approach to Offline Reinforcement Learning", arXiv 2305.09836.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from slaterl.agents.offline.base import PolicyStep, Turns
from slaterl.agents.offline.td3_bc import TargetPolicy
from slaterl.errors import check_range


class ReBRAC(TargetPolicy):
    """Target min Q'(s', a~') - critic_penalty * |a~' - a'_data|^2; policy actor_penalty * |pi - a|^2 - lam * min Q.

    lam = 1 / mean |Q| without gradient.

    Args:
        actor_penalty, critic_penalty: weights of the squared distances (summed over the action) to the data's actions.
        others: see TargetPolicy.
    """

    LAYER_NORM: ClassVar = True

    def __init__(self, *, actor_penalty: float, critic_penalty: float, **common: Any) -> None:
        penalties = {"agent.actor_penalty": actor_penalty, "agent.critic_penalty": critic_penalty}
        check_range(0, float("inf"), **penalties)
        super().__init__(**common)
        self.actor_penalty, self.critic_penalty = actor_penalty, critic_penalty

    def next_value(self, turns: Turns) -> Tensor:
        action = self.target_action(turns.actor_state[:, 1:])
        value = self.q_values(self.target_critics, turns.critic_state[:, 1:], action).amin(0)
        return value - self.critic_penalty * (action - turns.action[:, 1:]).square().sum(-1)

    def actor_loss(self, turns: Turns) -> PolicyStep:
        action = self.actor(turns.actor_state).tanh()
        q = self.q_values(self.critics, turns.critic_state, action).amin(0)
        distance = (action - turns.action).square().sum(-1)
        return PolicyStep((self.actor_penalty * distance - q / q.detach().abs().mean()).mean(), action, q)
