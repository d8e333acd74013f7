"""Environments for Gymnasium: one user (`SlateEnv`), or many in one batched simulator (`SlateVectorEnv`).

    name = "slaterl.envs.gymnasium:slaterl/TopicRec-v0"
    env = gymnasium.make(name, env="focused_topdown")
    envs = gymnasium.make_vec(name, num_envs=8, env="diffuse_mix", overrides=["env.num_items=200"])

Gymnasium first imports the module before the colon. Once it is imported, the id alone is enough (Gymnasium has loaded
no plugins since 1.0). torch and Hydra are imported when an environment is made, so registering it costs nothing.
`env` may be any file of conf/env, whatever its class. Shapes: B users, S slots, K topics, D dimensions of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from slaterl.errors import UserError
from slaterl.paths import CONF

if TYPE_CHECKING:
    from slaterl.bounds import Count
    from slaterl.envs.env import Env
    from slaterl.envs.observation import Observation

ENV_ID = "slaterl/TopicRec-v0"

Arrays = dict[str, np.ndarray]


def register() -> None:
    """Register `slaterl/TopicRec-v0` with Gymnasium. Importing this module does it."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(ENV_ID, f"{__name__}:SlateEnv", vector_entry_point=f"{__name__}:SlateVectorEnv")


class SlateEnv(gymnasium.Env[Arrays, np.ndarray]):
    """One user, who sees a slate in each turn. In TopicRec the reward is the number of clicks.

    Observation: `slate` (item ids) and `clicks`, [S] each. Action: the item ids of the next slate, [S]. The horizon is
    part of the task, so an episode ends in `terminated`, never in `truncated`. `info["hidden"]` holds the state that
    no policy may see, in TopicRec `bored` [K] and `user` [D].

    Args:
        env: name of a file in conf/env.
        overrides: as on the command line, for example ["env.num_items=200", "click_model=mixPBM"].
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (as in gymnasium.Env)

    def __init__(self, *, env: str, overrides: Sequence[str] = ()) -> None:
        self.simulator = _build(env, overrides)
        self.observation_space, self.action_space = _spaces(self.simulator)
        self._running = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, dict[str, Any]]:
        """Show the first slate to a new user. There are no options."""
        super().reset(seed=seed)
        observation = _new_users(self.simulator, 1, self.np_random)
        self._running = True
        return _first(_arrays(observation)), {"hidden": _first(_hidden(self.simulator))}

    def step(self, action: np.ndarray) -> tuple[Arrays, float, bool, bool, dict[str, Any]]:
        """Show a slate [S].

        Raises:
            InvalidAction: wrong shape, not whole numbers, or unknown item ids.
            ResetNeeded: the episode ended, or `reset` was never called.
        """
        if not self._running:
            raise ResetNeeded("step: no episode is running; call reset first")
        slate = _checked(action, self.action_space.shape or (), self.simulator.num_items)
        observation, reward, ended = _step(self.simulator, slate[None])
        self._running = not ended
        return _first(observation), float(reward[0]), ended, False, {"hidden": _first(_hidden(self.simulator))}


class SlateVectorEnv(VectorEnv[Arrays, np.ndarray, np.ndarray]):
    """B users in one batched simulator, with the spaces, rewards and info of a vector of `SlateEnv`.

    All episodes end at the same step. The next step ignores its actions and brings new users, without a reward
    (Gymnasium's next-step autoreset).

    Args:
        num_envs: B.
        env, overrides: see SlateEnv.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: Count = 1, *, env: str, overrides: Sequence[str] = ()) -> None:
        from slaterl.bounds import Count, checked

        self.num_envs = num_envs = checked("num_envs", num_envs, Count)
        self.simulator = _build(env, overrides)
        if self.simulator.ends_early:
            from slaterl.errors import UserError

            raise UserError(
                f"env={self.simulator.name}: its users leave one by one; SlateVectorEnv resets all together"
            )
        self.single_observation_space, self.single_action_space = _spaces(self.simulator)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._ended: bool | None = None  # None before the first reset

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, dict[str, Any]]:
        """Show the first slate to B new users. One seed determines all of them."""
        if not np.all((options or {}).get("reset_mask", True)):
            raise ValueError("options['reset_mask']: the users of this environment can only be reset together")
        super().reset(seed=seed)
        observation = _new_users(self.simulator, self.num_envs, self.np_random)
        self._ended = False
        return _arrays(observation), self._info()

    def step(self, actions: np.ndarray) -> tuple[Arrays, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Show the slates [B, S], or bring new users after the end of an episode.

        Raises:
            InvalidAction: wrong shape, not whole numbers, or unknown item ids.
            ResetNeeded: `reset` was never called.
        """
        if self._ended is None:
            raise ResetNeeded("step: no episode is running; call reset first")
        never = np.zeros(self.num_envs, dtype=np.bool_)
        if self._ended:
            observation, info = self.reset()
            return observation, np.zeros(self.num_envs), never, never.copy(), info
        slates = _checked(actions, self.action_space.shape or (), self.simulator.num_items)
        observation, reward, self._ended = _step(self.simulator, slates)
        return observation, reward, np.full(self.num_envs, self._ended), never, self._info()

    def _info(self) -> dict[str, Any]:
        """Info in Gymnasium's layout: next to each entry a mask `_entry` [B] of the users who have it."""
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        hidden = _hidden(self.simulator)
        return {"hidden": hidden | {f"_{key}": everyone.copy() for key in hidden}, "_hidden": everyone}


def _build(env: str, overrides: Sequence[str]) -> Env:
    """Build the simulator of conf/env/<env>.yaml on the CPU, where Gymnasium's arrays are.

    Raises:
        UserError: the simulator refuses its settings.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from slaterl.bounds import check_node

    with _hydra_set_aside(), initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose("config", overrides=[f"env={env}", *overrides]).env
        try:
            return instantiate(check_node("env", node), device="cpu", _convert_="all")
        except InstantiationException as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise


@contextmanager
def _hydra_set_aside() -> Iterator[None]:
    """Uninitialise Hydra in the block, then restore the global state of a surrounding Hydra app."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton
    from hydra.core.utils import JobRuntime
    from hydra.version import VersionBase

    instances = Singleton._instances  # where initialize() itself keeps one of the three
    kept: dict[type, Singleton] = {
        cls: instances.pop(cls) for cls in (GlobalHydra, JobRuntime, VersionBase) if cls in instances
    }
    try:
        yield
    finally:
        for cls in (GlobalHydra, JobRuntime, VersionBase):
            instances.pop(cls, None)
        instances.update(kept)


def _spaces(simulator: Env) -> tuple[spaces.Space[Arrays], spaces.MultiDiscrete]:
    """Return the spaces of one user's observations and actions."""
    items = [simulator.num_items] * simulator.slate_size
    clicks = spaces.MultiBinary(simulator.slate_size)
    observations: Any = spaces.Dict({"slate": spaces.MultiDiscrete(items), "clicks": clicks})
    return observations, spaces.MultiDiscrete(items)


def _new_users(simulator: Env, num_users: int, random: np.random.Generator) -> Observation:
    """Start an episode whose users and clicks all follow from one draw of `random`."""
    import torch

    return simulator.reset(num_users, generator=torch.Generator().manual_seed(int(random.integers(2**63))))


def _checked(action: Any, shape: tuple[int, ...], num_items: int) -> np.ndarray:
    """Copy an action as int64 item ids, after a check of its shape and range."""
    slate = np.asarray(action)
    if slate.shape != shape or slate.dtype.kind not in "iu":
        found = f"{slate.dtype} of shape {list(slate.shape)}"
        raise InvalidAction(f"action: found {found}, expected whole numbers of shape {list(shape)}")
    if slate.min() < 0 or slate.max() >= num_items:
        raise InvalidAction(f"action: item ids must lie in 0..{num_items - 1}, found {slate.min()}..{slate.max()}")
    return slate.astype(np.int64)


def _step(simulator: Env, slates: np.ndarray) -> tuple[Arrays, np.ndarray, bool]:
    """Show slates [B, S]. Returns the observation, the rewards [B], and whether the episode ended."""
    import torch

    observation, rewards, ended = simulator.step(torch.from_numpy(slates))
    return _arrays(observation), rewards.numpy().astype(np.float64), bool(ended)


def _arrays(observation: Observation) -> Arrays:
    """Copy an observation, so that the caller may keep or change it."""
    return {"slate": observation.slate.numpy().copy(), "clicks": observation.clicks.numpy().astype(np.int8)}


def _hidden(simulator: Env) -> Arrays:
    """Copy the users' hidden state, see Env.info."""
    return {name: column.numpy().copy() for name, column in simulator.info().items()}


def _first(batch: Arrays) -> Arrays:
    """Select the only user of a batch."""
    return {key: array[0] for key, array in batch.items()}


register()
