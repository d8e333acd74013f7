"""Export to Minari: Minari loads the dataset, and reading it back returns the same trajectories."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slaterl.data.formats import minari as minari_export
from slaterl.data.formats.minari import export, fingerprint
from slaterl.data.formats.read import FRAME_0_RECORDED, read
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from tests.helpers import ITEMS, SLOTS, TURNS, same_columns, tiny_trajectories

NAME = "topic_rec/tiny/medium-v0"
METADATA: dict[str, Any] = {"env": {"name": "tiny"}, "behaviours": ["medium", "random"], "seed": 3}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def minari() -> Any:
    pytest.importorskip("h5py")
    return pytest.importorskip("minari")


def make(count: int = 5) -> Trajectories:
    data = tiny_trajectories(count)
    data.policy_id = torch.arange(count, dtype=torch.int16) % 2
    return data


def back(name: str = NAME, **sizes: Any) -> Any:
    first_slate = torch.zeros(sizes.get("slate_size", SLOTS), dtype=torch.int64)
    expected = dict(num_items=ITEMS, slate_size=SLOTS, episode_length=TURNS, first_slate=first_slate)
    return read(f"minari:{name}", **(expected | sizes))


def message(name: str = NAME, **sizes: Any) -> str:
    with pytest.raises(UserError, match=f"minari:{name}: ") as found:
        back(name, **sizes)
    return str(found.value)


def entries(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_round_trip(minari: Any) -> None:
    export(make(), METADATA, NAME, ITEMS)
    data, metadata = back()
    expected = make()
    expected.actions = None  # latent actions are not exported
    assert same_columns(data, expected)
    assert metadata == {"format": "minari", "source": NAME, "frame_0": FRAME_0_RECORDED, "exported": METADATA}


def test_round_trip_without_policy_id(minari: Any) -> None:
    export(tiny_trajectories(2), {}, "plain-v3", ITEMS)
    data, metadata = back("plain-v3")
    assert data.policy_id is None and metadata["exported"] == {}


def test_minari_loads_it(minari: Any, root: Path) -> None:
    folder = export(make(), METADATA, NAME, ITEMS)
    assert folder == root / NAME and folder.is_dir()
    dataset = minari.load_dataset(NAME)
    assert list(minari.list_local_datasets()) == [NAME]
    assert dataset.total_episodes == 5 and dataset.total_steps == 5 * TURNS
    assert json.loads(dataset.storage.metadata["slaterl"]) == METADATA
    for i, episode in enumerate(dataset.iterate_episodes()):
        frames = make()[i : i + 1]
        assert np.array_equal(episode.observations["slate"], frames.slates[0])
        assert np.array_equal(episode.observations["clicks"], frames.clicks[0])
        assert np.array_equal(episode.actions, frames.slates[0, 1:])
        assert np.array_equal(episode.rewards, frames.rewards[0])
        assert episode.terminations.tolist() == [False] * (TURNS - 1) + [True]
        assert not episode.truncations.any()
        for t in range(TURNS):
            assert dataset.action_space.contains(episode.actions[t])
            observation = {name: column[t] for name, column in episode.observations.items()}
            assert dataset.observation_space.contains(observation)


def test_spaces_are_those_of_the_gymnasium_environment(minari: Any) -> None:
    from gymnasium.spaces import MultiBinary

    export(make(), METADATA, NAME, ITEMS)
    dataset = minari.load_dataset(NAME)
    assert dataset.action_space.nvec.tolist() == [ITEMS] * SLOTS
    assert dataset.observation_space["slate"].nvec.tolist() == [ITEMS] * SLOTS
    assert dataset.observation_space["clicks"] == MultiBinary(SLOTS)


@pytest.mark.parametrize("num_items", [256, 32_768])  # the type that holds all ids cannot hold num_items
def test_sizes_at_the_edge_of_a_type(minari: Any, num_items: int) -> None:
    slates = torch.full((1, TURNS + 1, SLOTS), num_items - 1)
    export(Trajectories(slates, slates > 0).compact(num_items), {}, "edge-v0", num_items)
    data, _ = back("edge-v0", num_items=num_items)
    assert torch.equal(data.slates.long(), slates)


def test_types_of_a_rollout(minari: Any) -> None:
    data = tiny_trajectories(2)
    export(Trajectories(data.slates.long(), data.clicks.bool()), {}, "wide-v0", ITEMS)
    assert torch.equal(back("wide-v0")[0].slates, data.slates)


def test_an_existing_dataset_stays(minari: Any, root: Path) -> None:
    export(make(), METADATA, NAME, ITEMS)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"minari:{NAME}: already exists"):
        export(make(2), {}, NAME, ITEMS)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    export(make(2), {}, NAME.replace("v0", "v1"), ITEMS)
    assert len(minari.list_local_datasets()) == 2


@pytest.mark.parametrize("name", ["medium", "", "/medium-v0", "../medium-v0", "medium v0", "topic_rec/medium"])
def test_not_an_id(minari: Any, root: Path, name: str) -> None:
    with pytest.raises(UserError, match="not a dataset id"):
        export(make(), METADATA, name, ITEMS)
    assert entries(root) == []


@pytest.mark.parametrize(("data", "words"), [(make(), "item ids"), (make()[:0], "no trajectories")])
def test_nothing_is_written_of_wrong_data(minari: Any, root: Path, data: Trajectories, words: str) -> None:
    with pytest.raises(UserError, match=words):
        export(data, METADATA, NAME, ITEMS // 2)
    assert entries(root) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Can't decrement id ref count (file write failed: No space left on device)"),
    ],
)
def test_a_failed_write_leaves_nothing(
    minari: Any, root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from minari import data_collector

    class Failing(data_collector.EpisodeBuffer):  # type: ignore[misc]
        made = 0

        def __new__(cls, **_: Any) -> Any:
            cls.made += 1
            if cls.made == 3:
                raise error
            return super().__new__(cls)

    monkeypatch.setattr(data_collector, "EpisodeBuffer", Failing)
    with pytest.raises(UserError, match=f"minari:{NAME}: cannot be written .*No space left"):
        export(make(), METADATA, NAME, ITEMS)
    assert Failing.made == 3
    assert entries(root) == []


def test_a_full_disk_is_found_before_hdf5_finds_it(minari: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 can end the process when the disk is full, so nothing may be written before the check."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(minari_export, "_write", lambda *_: pytest.fail("there was no room"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(UserError, match=f"minari:{NAME}: cannot be written"):
            export(make(), METADATA, NAME, ITEMS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert entries(root) == []


@pytest.mark.parametrize(("count", "turns", "items"), [(1, 1, 3), (100, 6, 30), (20, 101, 40_000), (3, 3_000, 100_000)])
def test_the_room_that_is_asked_for_is_enough(
    minari: Any, root: Path, monkeypatch: pytest.MonkeyPatch, count: int, turns: int, items: int
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("os.posix_fallocate", lambda _, start, size: asked.append(size), raising=False)
    slates = torch.zeros(count, turns + 1, 10, dtype=torch.int64)
    folder = export(Trajectories(slates, slates > 0), METADATA, NAME, items)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < asked[0]


def test_a_root_that_cannot_be_written(minari: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "occupied").write_text("a file where a folder should be", encoding="utf-8")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root / "occupied"))
    with pytest.raises(UserError, match="cannot be written"):
        export(make(), METADATA, NAME, ITEMS)


def test_a_dataset_that_is_not_there(minari: Any, root: Path) -> None:
    assert str(root) in message("nothing-v0")


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"episode_length": TURNS + 1}, "found 7 turns, expected 8"),
        ({"slate_size": SLOTS + 1}, "slate of session 0: found [7, 4], expected [turns, 5]"),
        ({"num_items": ITEMS // 2}, "expected item ids 0..14"),
    ],
)
def test_a_dataset_of_other_sizes(minari: Any, sizes: dict[str, int], words: str) -> None:
    export(make(), METADATA, NAME, ITEMS)
    assert words in message(**sizes)


def foreign_dataset(minari: Any, space: Any, observations: Any) -> None:
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    episode = EpisodeBuffer(
        observations=observations,
        actions=np.zeros((TURNS, 1), dtype=np.float32),
        rewards=[0.0] * TURNS,
        terminations=[False] * TURNS,
        truncations=[False] * TURNS,
    )
    minari.create_dataset_from_buffers(
        "other-v0", [episode], observation_space=space, action_space=spaces.Box(-1, 1, (1,))
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_dataset_of_somebody_else(minari: Any) -> None:
    from gymnasium import spaces

    frames = np.zeros((TURNS + 1, SLOTS), dtype=np.int64)
    items, clicks = spaces.MultiDiscrete([ITEMS] * SLOTS), spaces.MultiBinary(SLOTS)
    foreign_dataset(minari, spaces.Box(-1, 1, (3,)), np.zeros((TURNS + 1, 3), dtype=np.float32))
    assert "no slate in its observation space" in message("other-v0")
    minari.delete_dataset("other-v0")
    foreign_dataset(minari, spaces.Dict({"slate": items}), {"slate": frames})
    assert "no clicks in its observation space" in message("other-v0")
    minari.delete_dataset("other-v0")
    foreign_dataset(minari, spaces.Dict({"slate": items, "clicks": clicks}), {"slate": frames, "clicks": frames})
    assert "no field slaterl in its metadata" in message("other-v0")


def test_a_damaged_dataset(minari: Any) -> None:
    folder = export(make(), METADATA, NAME, ITEMS)
    (folder / "data" / "main_data.hdf5").write_bytes(b"something else")
    assert "cannot be read" in message()
    (folder / "data" / "metadata.json").write_text("{", encoding="utf-8")
    assert "cannot be read" in message()


def test_fingerprint(minari: Any) -> None:
    export(make(), METADATA, NAME, ITEMS)
    export(make(), METADATA, "other-v0", ITEMS)
    found = fingerprint(NAME)
    assert found == fingerprint(NAME) and found != fingerprint("other-v0") and len(found) == 16
    with pytest.raises(UserError, match="minari:nothing-v0: no such dataset"):
        fingerprint("nothing-v0")


@pytest.mark.parametrize("package", ["minari", "h5py"])
def test_without_the_packages(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in ("minari", "h5py"):
        monkeypatch.setitem(sys.modules, name, None if name == package else minari_export)  # any module
    for attempt in (lambda: export(make(), {}, NAME, ITEMS), back, lambda: fingerprint(NAME)):
        with pytest.raises(UserError, match=rf"needs the package {package}: pip install 'slaterl\[minari\]'"):
            attempt()
