"""The frames' meaning, and a file format that refuses whatever is not what was saved."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from slaterl.data import trajectories
from slaterl.data.trajectories import Trajectories, check_ids, load, save, smallest_int
from slaterl.errors import UserError
from slaterl.seeds import stream
from tests.helpers import same_columns

ITEMS, SLOTS, TURNS = 300, 4, 5
METADATA: dict[str, Any] = {"env": {"name": "tiny", "num_items": ITEMS}, "behaviours": [{"name": "random"}]}


def make(count: int = 3) -> Trajectories:
    """With every column there can be."""
    generator = stream(0, "trajectories")
    return Trajectories(
        slates=torch.randint(ITEMS, (count, TURNS + 1, SLOTS), generator=generator),
        clicks=torch.rand(count, TURNS + 1, SLOTS, generator=generator) < 0.5,
        actions=torch.randn(count, TURNS, 2, generator=generator),
        policy_id=torch.arange(count, dtype=torch.int16),
        hidden={
            "bored": torch.rand(count, TURNS, 3, generator=generator) < 0.5,
            "user": torch.randn(count, TURNS, 6, generator=generator),
        },
    ).compact(ITEMS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "made" / "data.safetensors"
    save(path, make(), METADATA)
    return path


def message(path: Path, **options: Any) -> str:
    """What `load` says; it must name the file."""
    with pytest.raises(UserError) as found:
        load(path, **options)
    assert str(path) in str(found.value)
    return str(found.value)


def test_rewards_are_the_clicks_of_the_frame_after() -> None:
    clicks = torch.tensor([[[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]]], dtype=torch.uint8)
    data = Trajectories(slates=torch.zeros_like(clicks), clicks=clicks)
    assert data.rewards.tolist() == [[1.0, 0.0, 2.0]]  # the three of reset's frame count for nothing
    assert data.returns.tolist() == [3.0]
    assert data.rewards.dtype == torch.float32


def test_recorded_rewards_take_the_place_of_clicks(tmp_path: Path) -> None:
    """They go along with every copy, selection and file; a file without them has the clicks."""
    data = make()
    clicks = data.rewards
    data.reward = 0.5 * clicks - 1
    save(tmp_path / "data", data, METADATA)
    loaded, _ = load(tmp_path / "data")
    for found in (data, loaded, data.compact(ITEMS), data.to(torch.device("cpu")), data[torch.arange(3)]):
        assert torch.equal(found.rewards, 0.5 * clicks - 1)
        assert torch.equal(found.returns, (0.5 * clicks - 1).sum(1))
    assert data[:2].reward.shape == (2, TURNS)
    save(tmp_path / "clicks", make(), METADATA)
    assert load(tmp_path / "clicks")[0].reward is None


def test_rewards_do_not_overflow_a_byte() -> None:
    clicks = torch.ones(1, 2, 300, dtype=torch.uint8)
    assert Trajectories(slates=clicks, clicks=clicks).rewards.tolist() == [[300.0]]


def test_nothing_after_a_session_counts(tmp_path: Path) -> None:
    """Whatever the padding holds, rewards are those of the session's own turns."""
    data = make()
    data.lengths, data.truncated = torch.tensor([5, 1, 3], dtype=torch.int32), torch.tensor([False, True, False])
    clicks = data.clicks[:, 1:].sum(2).float()
    save(tmp_path / "data", data, METADATA)
    for found in (data, load(tmp_path / "data")[0], data[torch.arange(3)]):
        assert found.mask.tolist() == [[True] * 5, [True] + [False] * 4, [True] * 3 + [False] * 2]
        assert torch.equal(found.rewards, clicks * found.mask)
        assert torch.equal(found.returns, torch.stack([clicks[0].sum(), clicks[1, 0], clicks[2, :3].sum()]))
        assert found.turns == 9 and found.truncated.tolist() == [False, True, False]
    assert clicks[1, 1:].sum() > 0  # padding that would show


def test_sessions_of_one_length_need_no_column() -> None:
    data = make()
    assert data.lengths is None and data.mask.all() and data.mask.shape == (3, TURNS) and data.turns == 3 * TURNS


def test_indexing_takes_all_columns() -> None:
    data = make(4)
    assert same_columns(data[1:3], data[torch.tensor([1, 2])])
    assert data[1:3].policy_id.tolist() == [1, 2]
    assert torch.equal(data[2:3].hidden["user"], data.hidden["user"][2:3])


def test_round_trip(file: Path) -> None:
    data, metadata = load(file, num_items=ITEMS)
    assert same_columns(data, make())
    assert set(data.hidden) == {"bored", "user"}
    assert metadata["num_trajectories"] == 3
    assert {name: metadata[name] for name in METADATA} == METADATA
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]  # no partial file stays


def test_round_trip_of_observations_alone(tmp_path: Path) -> None:
    full = make()
    data = Trajectories(slates=full.slates, clicks=full.clicks)
    save(tmp_path / "data", data, {})
    found, _ = load(tmp_path / "data")
    assert found.actions is None and found.policy_id is None and found.hidden == {}
    assert same_columns(found, data)


@pytest.mark.parametrize(
    ("num_items", "dtype"),
    [
        (2, torch.uint8),
        (256, torch.uint8),
        (257, torch.int16),
        (32768, torch.int16),
        (32769, torch.int32),
        (2**31, torch.int32),
        (2**31 + 1, torch.int64),
    ],
)
def test_smallest_type_that_holds_the_ids(num_items: int, dtype: torch.dtype) -> None:
    assert smallest_int(num_items) == dtype
    largest = torch.tensor([[[num_items - 1]]])
    data = Trajectories(slates=largest, clicks=largest > 0).compact(num_items)
    assert data.slates.dtype == dtype and data.clicks.dtype == torch.uint8
    assert data.slates.item() == num_items - 1


def test_100_000_trajectories_fit_in_320_megabytes(tmp_path: Path) -> None:
    """1,000 items, 100 turns, slates of 10: by the bytes a trajectory adds to a file."""
    sizes = []
    for count in (1, 11):
        slates = torch.zeros(count, 101, 10, dtype=torch.int64)
        save(tmp_path / "data", Trajectories(slates=slates, clicks=slates > 0).compact(1000), METADATA)
        sizes.append((tmp_path / "data").stat().st_size)
    assert (sizes[1] - sizes[0]) / 10 * 100_000 < 320e6


def test_saving_again_gives_the_same_bytes(file: Path) -> None:
    before = file.read_bytes()
    save(file, make(), METADATA)
    assert file.read_bytes() == before


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in message(tmp_path / "nothing.safetensors")


def test_truncated_anywhere(file: Path) -> None:
    content = file.read_bytes()
    for length in [0, 1, 7, 8, 50, len(content) // 2, len(content) - 1]:
        file.write_bytes(content[:length])
        message(file)


def start_of_columns(content: bytes) -> int:
    """safetensors: 8 bytes for the header's length, the header, the columns."""
    return 8 + int.from_bytes(content[:8], "little")


def flipped(content: bytes, byte: int, bit: int) -> bytes:
    return content[:byte] + bytes([content[byte] ^ 1 << bit]) + content[byte + 1 :]


def test_a_flipped_bit_in_a_column(file: Path) -> None:
    save(file, make(1), METADATA)
    content = file.read_bytes()
    for byte in range(start_of_columns(content), len(content)):
        file.write_bytes(flipped(content, byte, byte % 8))
        assert "checksum" in message(file)


def test_a_flipped_bit_in_the_header(file: Path) -> None:
    """Refused, or harmless (white space): never other metadata than were saved, never another error."""
    content = file.read_bytes()
    data, metadata = load(file)
    unlike: list[str] = []
    for byte in range(8, start_of_columns(content)):
        file.write_bytes(flipped(content, byte, byte % 7))
        try:
            found, found_metadata = load(file)
            if found_metadata != metadata or not same_columns(found, data):
                unlike.append(f"byte {byte}: loaded something else")
        except UserError as error:
            assert str(file) in str(error)
        except Exception as error:
            unlike.append(f"byte {byte}: {type(error).__name__}: {error}")
    assert not unlike, unlike


def write_foreign(path: Path, header: Any) -> None:
    """The columns of `make` under another header."""
    metadata = None if header is None else {"slaterl": header if isinstance(header, str) else json.dumps(header)}
    save_file(make().columns(), path, metadata=metadata)


def test_another_schema(file: Path) -> None:
    _, metadata = load(file)
    write_foreign(file, {**metadata, "schema": 2})
    text = message(file)
    assert "schema 2" in text and "schema 1" in text


@pytest.mark.parametrize(
    "header",
    [
        None,
        {"format": "pt"},
        {"schema": 1},
        "not json",
        "[1]",
    ],
)
def test_foreign_safetensors(tmp_path: Path, header: Any) -> None:
    path = tmp_path / "foreign.safetensors"
    write_foreign(path, header)
    message(path)


def test_not_safetensors_at_all(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("slates, clicks\n" * 100)
    message(path)


def test_item_ids_out_of_range(file: Path) -> None:
    assert load(file, num_items=ITEMS)
    largest = int(make().slates.max())
    text = message(file, num_items=largest)
    assert f"to {largest}" in text and f"0..{largest - 1}" in text
    with pytest.raises(UserError, match=r"here: .*-1 to 3"):
        check_ids(torch.tensor([-1, 3]), 10, where="here")


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where a folder should be")
    path = tmp_path / "occupied" / "data.safetensors"
    with pytest.raises(UserError, match=r"data.safetensors: cannot be written"):
        save(path, make(), METADATA)


def test_full_disk_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(columns: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trajectories, "save_file", write_half)
    with pytest.raises(UserError, match=r"data.safetensors: .*No space left"):
        save(file, make(1), METADATA)
    assert len(load(file)[0]) == 3
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]
