"""Files that are no checkpoints end in one short message that names them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch

from slaterl.errors import UserError
from slaterl.training import checkpoints


@pytest.fixture
def file(tmp_path: Path) -> Path:
    checkpoints.save(tmp_path / "some.ckpt", {"kind": "line", "weight": torch.ones(500)})
    return tmp_path / "some.ckpt"


class Code:
    """What an ordinary pickle may hold."""


def test_as_it_was_written(file: Path) -> None:
    assert checkpoints.load(file, "line")["weight"].sum() == 500


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty, not a checkpoint of slaterl"),
        (b"\x00\x01 anything at all", "not a checkpoint of slaterl"),
        (pickle.dumps({"format": 2, "kind": "line"}), "not a checkpoint of slaterl"),
        (pickle.dumps(Code()), "not a checkpoint of slaterl"),
        (0.5, "damaged: the end of the file is missing"),
    ],
)
def test_other_files(content: bytes | float, why: str, file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(content if isinstance(content, bytes) else whole[: int(len(whole) * content)])
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}: {why}$"):
        checkpoints.load(file, "line")


def test_changed_bytes_are_damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    place = content.index(b"data.pkl") + 80
    content[place : place + 20] = b"\xff" * 20
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}: ") as error:
        checkpoints.load(file, "line")
    assert len(str(error.value)) < len(str(file)) + 250 and "weights_only" not in str(error.value)


def test_objects_are_not_loaded(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save({"format": 2, "kind": "line", "model": torch.nn.Linear(2, 2)}, file)
    with pytest.raises(UserError, match=r"pickled code or objects, which are not loaded$"):
        checkpoints.load(file, "line")


@pytest.mark.parametrize(("number", "who"), [(3, "a newer"), (1, "another"), ("x", "another")])
def test_other_formats(number: object, who: str, tmp_path: Path) -> None:
    file = tmp_path / "some.ckpt"
    torch.save({"format": number, "kind": "line"}, file)
    with pytest.raises(UserError, match=rf"checkpoint format {number}, .* reads 2; {who} version of slaterl wrote it"):
        checkpoints.load(file, "line")
