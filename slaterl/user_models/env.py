"""env=learned: a user model behind the interface of an environment."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slaterl.bounds import File, NonNegative, Text, Whole
from slaterl.envs.env import Env
from slaterl.envs.observation import Observation
from slaterl.errors import UserError
from slaterl.user_models.intrinsic import Disagreement, Intrinsic
from slaterl.user_models.saved import UserModel, load_user_model


class LearnedEnv(Env):
    """Users of a trained ensemble. Each user clicks by one member, which is drawn at reset.

    All members read what the user sees. A first frame is one of the data's. Where the data have sessions of different
    lengths, users leave with the probability that their member predicts after each turn.

    Args:
        user_model: file that stage=user_model wrote. It is read at the first reset, so that a checkpoint of an agent
            can act without it.
        items: fingerprint of the items in the data.
        leaves: whether users may leave before `episode_length` turns, as in the file.
        member: the only member that all users belong to; null draws one for each user.
        penalty: what a turn pays less for each click of the members' disagreement, see Disagreement.
        intrinsic: further terms of the reward by name. With a positive weight, rewards are no longer clicks.
        common: see Env.
    """

    file_arguments = ("user_model",)

    def __init__(
        self,
        *,
        user_model: File,
        items: Text,
        leaves: bool,
        member: Whole | None,
        penalty: NonNegative,
        intrinsic: dict[str, Intrinsic] = {},  # noqa: B006 (never changed)
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.file, self.member = Path(user_model).expanduser(), member
        self.fingerprint, self.ends_early = items, leaves
        for key, term in intrinsic.items():
            if not isinstance(term, Intrinsic):
                raise UserError(f"env.intrinsic.{key}={term}: expected a term with _target_, as in env=learned_dorl")
        self.terms = [term for term in (*intrinsic.values(), Disagreement(weight=penalty)) if term.weight]
        self.reward_is_clicks = not self.terms

    @cached_property
    def model(self) -> UserModel:
        """The ensemble, with `member` alone if it is given.

        Raises:
            UserError: the file cannot be read, is of other sizes, or has no such member.
        """
        model = load_user_model(self.file, self.device)
        own_name = {"items": "fingerprint", "leaves": "ends_early"}
        for name in ("num_items", "slate_size", "items", "leaves"):
            own = getattr(self, own_name.get(name, name))
            if model.config[name] != own:
                raise UserError(f"env.{name}={own}: env.user_model={self.file} has {model.config[name]}")
        if self.member is not None and self.member >= len(model.members):
            raise UserError(f"env.member={self.member}: env.user_model={self.file} has {len(model.members)} members")
        return model

    def reset(self, num_users: int, *, generator: torch.Generator) -> Observation:
        model = self.model
        for term in self.terms:
            try:
                term.begin(model)
            except UserError as error:
                raise UserError(f"env.user_model={self.file}: {error}") from error
        self.members = model.members if self.member is None else [model.members[self.member]]
        self.generator, self.turn = generator, 0
        self.everyone = torch.arange(num_users, device=self.device)
        self.belongs = self._draw(len(self.members), num_users)
        self.states = [member.initial_state(num_users) for member in self.members]
        chosen = self._draw(len(model.first_slates), num_users)
        return self._read(Observation(model.first_slates[chosen].long(), model.first_clicks[chosen].bool()))

    def step(self, slate: Tensor, *, oracle_slots: Tensor | None = None) -> tuple[Observation, Tensor, bool | Tensor]:
        self.turn += 1
        pairs = zip(self.members, self.states, strict=True)
        chances = torch.stack([member.click_logits(state, slate) for member, state in pairs]).sigmoid()  # [K, B, S]
        own = chances[self.belongs, self.everyone]
        clicks = torch.rand(own.shape, generator=self.generator, device=self.device) < own
        rewards = clicks.sum(1, dtype=torch.float32)
        for term in self.terms:
            rewards += term.reward(chances, slate)
        observation = self._read(Observation(slate, clicks))
        if not self.ends_early:
            return observation, rewards, self.turn == self.episode_length
        pairs = zip(self.members, self.states, strict=True)
        leaving = torch.stack([member.leave_chances(state) for member, state in pairs])[self.belongs, self.everyone]
        left = torch.rand(leaving.shape, generator=self.generator, device=self.device) < leaving
        return observation, rewards, left

    def _draw(self, below: int, count: int) -> Tensor:
        return torch.randint(below, (count,), generator=self.generator, device=self.device)

    def _read(self, observation: Observation) -> Observation:
        pairs = zip(self.members, self.states, strict=True)
        self.states = [member.step(observation, state) for member, state in pairs]
        return observation
