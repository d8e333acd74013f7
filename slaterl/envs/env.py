"""The interface of an environment to rollout, evaluation, agents and stages."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from slaterl.bounds import Count
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation
from slaterl.errors import UserError


class Env:
    """Simulated users, B at a time. A subclass gives `reset` and `step`; everything else has a default.

    All users' episodes last `episode_length` turns, unless users can leave before (`ends_early`). Shapes: B users,
    N items, S slots, H turns.

    Attributes:
        name: names the environment in folders and tables.
        fingerprint: 16 hex digits. Item ids mean the same in two environments with the same fingerprint.
        first_slate: [S], frame 0 for imported data without one; by default the items 0..S-1.
        simulates: whether it can be acted in. The environment of a log cannot.
        reward_is_clicks: whether the reward of a turn is its number of clicks. If not, trajectories record rewards.
        ends_early: whether users can leave before `episode_length` turns; `step` then says who left. The others go on,
            and `step` still gets slates for all B users. What it answers for those who left is ignored.
        fills_oracle_slots: whether `step` can fill slots with the best items for each user.
        hidden_columns: names of the fields of `hidden`; None if the environment does not reveal its users' state.
        full_state_dim: width of `full_state`, which belief=none reads; None if the environment does not offer it.
        own_measures: names of the entries of `measures`, such as bored_share.
        item_embeddings: [N, D], the environment's own knowledge of its items; None if it has none.
        catalogue_argument: constructor argument that a checkpoint must carry to rebuild the environment; None if the
            settings suffice. The attribute of the same name holds its value.
        file_arguments: constructor arguments that are files. Their content, not their place, determines a run.

    The settings of an `env` node are the constructor's arguments except `device`. They always include name, num_items,
    slate_size and episode_length.
    """

    simulates: bool = True
    reward_is_clicks: bool = True
    ends_early: bool = False
    fills_oracle_slots: bool = False
    hidden_columns: tuple[str, ...] | None = None
    full_state_dim: int | None = None
    own_measures: tuple[str, ...] = ()
    item_embeddings: Tensor | None = None
    catalogue_argument: str | None = None
    file_arguments: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        name: str,
        num_items: Count,
        slate_size: Count,
        episode_length: Count,
        device: str | torch.device = "cpu",
    ) -> None:
        """Set the attributes that every environment has.

        Raises:
            UserError: a slate is larger than the catalogue.
        """
        if slate_size > num_items:
            raise UserError(f"env.slate_size={slate_size}: a slate cannot be larger than env.num_items={num_items}")
        self.name, self.device = name, torch.device(device)
        self.num_items, self.slate_size, self.episode_length = num_items, slate_size, episode_length
        kind = f"{type(self).__module__}.{type(self).__qualname__} {num_items}"
        self.fingerprint = hashlib.sha256(kind.encode()).hexdigest()[:16]
        self.first_slate = torch.arange(slate_size, device=self.device)

    def reset(self, num_users: int, *, generator: torch.Generator) -> Observation:
        """Start the episodes of B new users and show each a first slate.

        Args:
            generator: source of every draw until the next reset, on the environment's device.
        """
        raise NotImplementedError

    def step(self, slate: Tensor, *, oracle_slots: Tensor | None = None) -> tuple[Observation, Tensor, bool | Tensor]:
        """Show a slate [B, S] to every user.

        Args:
            oracle_slots: [B, S] bool, slots to fill with the best items; only given if `fills_oracle_slots`.

        Returns:
            the observation, with the slate as shown; the rewards [B] float; and whether the episodes ended. With
            `ends_early` that is [B] bool, who left after this slate; at turn `episode_length` all episodes end.
        """
        raise NotImplementedError

    def hidden(self) -> Any:
        """Return the users' state before the next slate: a NamedTuple of `hidden_columns`, each [B, ...]."""
        raise NotImplementedError

    def full_state(self, hidden: Mapping[str, Tensor]) -> Tensor:
        """Return the users' whole state [..., full_state_dim] from the columns of `hidden`, each [..., width]."""
        raise NotImplementedError

    def measures(self, data: Trajectories) -> dict[str, float]:
        """Return the environment's own measures, if any, of trajectories that hold its hidden columns."""
        return {}

    def info(self) -> dict[str, Tensor]:
        """Return the users' entries for a Gymnasium `info`, each [B, ...]; never part of an observation."""
        return {}

    def catalogue(self) -> Tensor | None:
        """Return the value of `catalogue_argument` on the CPU, for a checkpoint."""
        return None if self.catalogue_argument is None else getattr(self, self.catalogue_argument).cpu()
