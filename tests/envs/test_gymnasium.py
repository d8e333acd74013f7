"""The Gymnasium adapters: Gymnasium's own checks, the end of an episode, seeds, and agreement with the simulator."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.version import getbase

from slaterl.envs.gymnasium import ENV_ID, SlateEnv, SlateVectorEnv, register
from slaterl.errors import UserError

SMALL = [
    "env.num_items=30",
    "env.num_topics=3",
    "env.slate_size=4",
    "env.episode_length=6",
    "env.boredom_threshold=2",
    "env.offset=0.2",
]
TURNS, USERS = 6, 8


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    """Gymnasium's checkers warn about what they only advise against."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def single() -> SlateEnv:
    return SlateEnv(env="focused_topdown", overrides=SMALL)


def vector(mode: str | None = "vector_entry_point") -> VectorEnv:
    return gymnasium.make_vec(ENV_ID, num_envs=USERS, vectorization_mode=mode, env="diffuse_mix", overrides=SMALL)


def actions_of(env: gymnasium.Env | VectorEnv, count: int) -> list[np.ndarray]:
    env.action_space.seed(4)
    return [env.action_space.sample() for _ in range(count)]


def same(a: Any, b: Any) -> bool:
    """Equal trees of dictionaries, arrays and numbers."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return np.array_equal(a, b)


def shapes(tree: Any) -> Any:
    """The same tree with (shape, dtype) for each array."""
    if isinstance(tree, dict):
        return {key: shapes(value) for key, value in sorted(tree.items())}
    return np.shape(tree), np.asarray(tree).dtype


# --- registration


def test_registering_waits_for_torch_and_hydra() -> None:
    code = f"""if True:
        import sys, gymnasium
        assert {ENV_ID!r} not in gymnasium.registry
        import slaterl.envs.gymnasium
        assert {ENV_ID!r} in gymnasium.registry and not {{"torch", "hydra"}} & sys.modules.keys()
    """
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_gymnasium_imports_what_stands_before_the_colon() -> None:
    code = f"""if True:
        import gymnasium
        name, settings = "slaterl.envs.gymnasium:{ENV_ID}", dict(env="focused_topdown", overrides={SMALL})
        env = gymnasium.make(name, **settings)
        assert type(env.unwrapped).__name__ == "SlateEnv" and env.spec.max_episode_steps is None
        envs = gymnasium.make_vec(name, num_envs=2, **settings)
        assert type(envs).__name__ == "SlateVectorEnv" and envs.num_envs == 2
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_registering_twice_is_silent() -> None:
    before = gymnasium.registry[ENV_ID]
    register()
    assert gymnasium.registry[ENV_ID] is before


def test_env_names_a_file_of_conf_and_overrides_change_it() -> None:
    simulator = SlateEnv(env="diffuse_divpen", overrides=["env.num_items=200", "click_model=tdPBM"]).simulator
    assert (simulator.name, simulator.num_items, simulator.diversity_penalty) == ("diffuse_divpen", 200, 3.0)
    assert simulator.examination.tolist() == pytest.approx([0.85**rank for rank in range(10)])


def test_names_and_settings_that_do_not_exist() -> None:
    with pytest.raises(HydraException, match="no_such_env"):
        SlateEnv(env="no_such_env")
    with pytest.raises(HydraException, match="num_itens"):
        SlateEnv(env="focused_topdown", overrides=["env.num_itens=3"])
    with pytest.raises(UserError, match=r"env\.slate_size=0"):
        gymnasium.make(ENV_ID, env="focused_topdown", overrides=["env.slate_size=0"])
    with pytest.raises(UserError, match="num_envs=0"):
        gymnasium.make_vec(ENV_ID, num_envs=0, env="focused_topdown")


def test_a_surrounding_hydra_app_is_left_alone(tmp_path: Path) -> None:
    SlateEnv(env="focused_topdown", overrides=SMALL)
    assert not GlobalHydra.instance().is_initialized()
    with initialize_config_dir(str(tmp_path), job_name="surrounding", version_base="1.2"):
        outer, base = GlobalHydra.instance().hydra, getbase()
        SlateEnv(env="focused_topdown", overrides=SMALL)
        with pytest.raises(HydraException):
            SlateEnv(env="no_such_env")
        assert GlobalHydra.instance().hydra is outer
        assert getbase() == base and str(base) == "1.2"
        assert JobRuntime.instance().get("name") == "surrounding"


# --- one user


def test_gymnasium_checks_the_single_env() -> None:
    check_env(gymnasium.make(ENV_ID, env="focused_topdown", overrides=SMALL).unwrapped)


def test_spaces() -> None:
    env = single()
    assert env.action_space == gymnasium.spaces.MultiDiscrete([30] * 4)
    clicks, slate = gymnasium.spaces.MultiBinary(4), gymnasium.spaces.MultiDiscrete([30] * 4)
    assert env.observation_space == gymnasium.spaces.Dict({"slate": slate, "clicks": clicks})


def test_episode_is_the_simulators() -> None:
    """The same user, clicks and hidden state as TopicRec with a generator of the same seed; clicks are the reward."""
    env = single()
    observation, info = env.reset(seed=5)
    seed = int(np.random.Generator(np.random.PCG64(np.random.SeedSequence(5))).integers(2**63))
    simulator = single().simulator
    expected = simulator.reset(1, generator=torch.Generator().manual_seed(seed))
    total, bored = 0.0, False
    for turn, action in enumerate(actions_of(env, TURNS), start=1):
        assert observation in env.observation_space
        assert np.array_equal(observation["slate"], expected.slate[0])
        assert np.array_equal(observation["clicks"], expected.clicks[0])
        assert np.array_equal(info["hidden"]["user"], simulator.state.embedding[0])
        assert np.array_equal(info["hidden"]["bored"], simulator.state.bored[0])
        observation, reward, terminated, truncated, info = env.step(action)
        expected, _, _ = simulator.step(torch.from_numpy(action)[None])
        assert np.array_equal(observation["slate"], action)
        assert reward == observation["clicks"].sum() and type(reward) is float
        assert (terminated, truncated) == (turn == TURNS, False)
        total, bored = total + reward, bored or info["hidden"]["bored"].any()
    assert total > 0 and bored


def test_seed_determines_this_episode_and_those_after_it() -> None:
    def two_episodes(seed: int) -> list[Any]:
        env = single()
        seen: list[Any] = [env.reset(seed=seed)[1]["hidden"]]
        seen += [env.step(action)[0] for action in actions_of(env, TURNS)]
        return [*seen, env.reset()[1]["hidden"]]

    one, again, other = two_episodes(0), two_episodes(0), two_episodes(1)
    assert all(same(a, b) for a, b in zip(one, again, strict=True))
    assert not same(one[0], other[0]) and not same(one[0], one[-1])


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ([0, 1, 2, 30], r"0\.\.29, found 0\.\.30"),
        ([0, 1, 2, -1], r"0\.\.29, found -1\.\.2"),
        ([0, 1, 2], r"found int64 of shape \[3\], expected whole numbers of shape \[4\]"),
        ([[0, 1, 2, 3]], r"shape \[1, 4\]"),
        ([0.0, 1.0, 2.0, 3.0], r"found float64"),
        ([True, True, False, False], r"found bool"),
        (3, r"shape \[\]"),
    ],
)
def test_bad_actions(action: Any, said: str) -> None:
    env, envs = single(), vector()
    env.reset(seed=0)
    envs.reset(seed=0)
    with pytest.raises(InvalidAction, match=said):
        env.step(action)
    with pytest.raises(InvalidAction, match=r"^action: "):
        envs.step([action] * USERS)
    assert env.simulator.state.turn == 0  # nothing happened


def test_step_wants_a_running_episode() -> None:
    env, envs = single(), vector()
    for stepped in (env, envs):
        with pytest.raises(ResetNeeded, match="call reset first"):
            stepped.step(stepped.action_space.sample())
    env.reset(seed=0)
    for action in actions_of(env, TURNS):
        env.step(action)
    with pytest.raises(ResetNeeded, match="call reset first"):
        env.step(env.action_space.sample())


def test_what_comes_back_belongs_to_the_caller() -> None:
    """It neither changes later on, nor does overwriting it change what follows."""
    env, overwritten = single(), single()
    actions = actions_of(env, 3)
    expected = [env.reset(seed=0), *[env.step(action) for action in actions]]
    found = overwritten.reset(seed=0)
    for action, after in zip(actions, expected[1:], strict=True):
        for array in (*found[0].values(), *found[-1]["hidden"].values()):
            array[...] = 0
        found = overwritten.step(action)
        assert all(same(a, b) for a, b in zip(found, after, strict=True))
        action[...] = 0
    assert same(overwritten.reset(seed=0)[0], expected[0][0])


def test_whole_numbers_of_any_kind_are_actions() -> None:
    env = single()
    env.reset(seed=0)
    for action in ([0, 1, 2, 29], (3, 4, 5, 6), np.array([7, 7, 7, 7], dtype=np.uint8), torch.tensor([1, 2, 3, 4])):
        observation, *_ = env.step(action)
        assert observation["slate"].tolist() == list(action)
        assert observation["slate"].dtype == np.int64


# --- many users


def test_vector_env_looks_like_gymnasiums_own() -> None:
    """Spaces, layouts and types are those of a SyncVectorEnv over SlateEnv, at reset, in a turn, and at the end."""
    ours, theirs = vector(), vector("sync")
    assert isinstance(ours.unwrapped, SlateVectorEnv) and isinstance(vector(None).unwrapped, SlateVectorEnv)
    for name in ("single_observation_space", "single_action_space", "observation_space", "action_space", "num_envs"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    mine, other = ours.reset(seed=0), theirs.reset(seed=0)
    assert mine[0] in ours.observation_space
    assert [shapes(part) for part in mine] == [shapes(part) for part in other]
    for action in actions_of(ours, 2 * TURNS + 3):
        mine, other = ours.step(action), theirs.step(action)
        assert mine[0] in ours.observation_space
        assert [shapes(part) for part in mine] == [shapes(part) for part in other]
        assert same(mine[0]["slate"], other[0]["slate"])
        assert same(mine[2], other[2]) and same(mine[3], other[3])  # terminated, truncated


def test_next_step_autoreset() -> None:
    envs = vector()
    first, first_info = envs.reset(seed=0)
    actions = actions_of(envs, 2 * TURNS + 1)
    for action in actions[:TURNS]:
        observation, reward, terminated, truncated, _ = envs.step(action)
        assert np.array_equal(reward, observation["clicks"].sum(1))
    assert terminated.all() and not truncated.any()
    assert np.array_equal(observation["slate"], action)  # the last turn's, not the new users'
    observation, reward, terminated, truncated, info = envs.step(np.full((USERS, 4), -1))  # ignored
    assert np.array_equal(observation["slate"], first["slate"])
    assert not (reward.any() or terminated.any() or truncated.any())
    assert not np.isclose(info["hidden"]["user"], first_info["hidden"]["user"]).all(1).any()  # other users
    ends = [envs.step(action)[2].all() for action in actions[TURNS + 1 :]]
    assert ends == [False] * (TURNS - 1) + [True]


def test_vector_seed_determines_all_users() -> None:
    def episodes(seed: int) -> list[Any]:
        envs = vector()
        return [envs.reset(seed=seed), *[envs.step(action) for action in actions_of(envs, TURNS + 2)]]

    one, again, other = episodes(0), episodes(0), episodes(1)
    for a, b in zip(one, again, strict=True):
        assert all(same(x, y) for x, y in zip(a, b, strict=True))
    users = one[0][1]["hidden"]["user"]
    assert len(np.unique(users, axis=0)) == USERS and not same(users, other[0][1]["hidden"]["user"])


def test_wrappers_of_gymnasium_count_right() -> None:
    envs = RecordEpisodeStatistics(vector())
    envs.reset(seed=0)
    returns = np.zeros((2, USERS))
    for turn, action in enumerate(actions_of(envs, 2 * TURNS + 1)):
        _, reward, terminated, _, info = envs.step(action)
        returns[int(turn > TURNS)] += reward
        assert ("episode" in info) == terminated.all()
    assert np.array_equal(list(envs.return_queue), returns.flatten()) and returns.sum() > 0
    assert set(envs.length_queue) == {TURNS}
    _, infos = DictInfoToList(vector()).reset(seed=0)
    assert [info["hidden"]["user"].shape for info in infos] == [(6,)] * USERS


def test_users_are_reset_together() -> None:
    envs = vector()
    with pytest.raises(ValueError, match="reset_mask"):
        envs.reset(options={"reset_mask": np.arange(USERS) == 0})
    envs.reset(options={"reset_mask": np.ones(USERS, dtype=bool)})
