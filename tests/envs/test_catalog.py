"""Item embeddings: how they are generated, which files are read, and what is said about those that are not."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from slaterl.config.build import build_env
from slaterl.envs.catalog import fingerprint, generate, topic_components
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from tests.helpers import compose_config

ROWS = torch.rand(20, 6, generator=torch.Generator().manual_seed(5))
WITH_NAN = torch.where(torch.arange(120).reshape(20, 6) == 7, torch.nan, ROWS)


def env_with(*overrides: str) -> TopicRec:
    """An environment of 20 items in 3 topics of 2 dimensions."""
    sizes = ["env.num_items=20", "env.num_topics=3", "env.topic_size=2", "env.slate_size=4"]
    return build_env(compose_config("env=topic_rec", *sizes, *overrides).env, torch.device("cpu"))


def test_peakedness_raises_the_same_rows_to_a_power() -> None:
    spread, focused = (generate(40, 5, 2, peakedness, seed=3) for peakedness in (1.0, 1.5))
    torch.testing.assert_close(spread.norm(dim=1), torch.ones(40))
    torch.testing.assert_close(focused, torch.nn.functional.normalize(spread**1.5))


def test_items_follow_their_seed() -> None:
    assert torch.equal(generate(40, 5, 2, 1.0, seed=3), generate(40, 5, 2, 1.0, seed=3))
    assert not torch.equal(generate(40, 5, 2, 1.0, seed=3), generate(40, 5, 2, 1.0, seed=4))


def test_topic_components_are_a_capped_half_normal() -> None:
    x = topic_components(20_000, 2, 2, torch.Generator().manual_seed(0))
    assert x.min() >= 0
    assert x.median().item() == pytest.approx(0.4 * 0.6745, rel=0.02)  # median of |N(0, 1)|
    assert (x == 1).float().mean().item() == pytest.approx(math.erfc(2.5 / math.sqrt(2)), rel=0.1)


def test_weights_of_topics_are_uniform_draws_over_their_sum() -> None:
    """With many dimensions a topic's norm is all but proportional to its weight; the largest share is compared."""
    norms = generate(3000, 4, 50, 1.0, seed=1).unflatten(1, (4, 50)).norm(dim=2)
    weights = norms / norms.sum(1, keepdim=True)
    draws = torch.rand(3000, 4, generator=torch.Generator().manual_seed(2))
    expected = (draws / draws.sum(1, keepdim=True)).amax(1).mean().item()
    assert weights.amax(1).mean().item() == pytest.approx(expected, rel=0.02)


def test_fingerprint_changes_with_any_bit() -> None:
    changed = ROWS.clone()
    changed[3, 4] = torch.nextafter(changed[3, 4], torch.tensor(2.0))
    assert fingerprint(ROWS) == fingerprint(ROWS.clone())
    assert len({fingerprint(ROWS), fingerprint(changed), fingerprint(ROWS.reshape(6, 20))}) == 3


WRITERS: dict[str, Callable[[Tensor, Path], Any]] = {
    ".pt": torch.save,
    ".npy": lambda rows, file: np.save(file, rows.numpy()),
    ".safetensors": lambda rows, file: save_file({"rows": rows}, file),
}


@pytest.fixture(params=WRITERS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Tensor], Path]:
    """Writes a tensor to a file; once with every suffix."""

    def write(rows: Tensor) -> Path:
        WRITERS[request.param](rows, file := tmp_path / f"items{request.param}")
        return file

    return write


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_files_are_read(written: Callable[[Tensor], Path], dtype: torch.dtype) -> None:
    env = env_with(f"env.item_embeddings.path={written(ROWS.to(dtype))}")
    assert torch.equal(env.item_embeddings, ROWS)
    assert env.fingerprint == fingerprint(ROWS)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (ROWS[:, :5].contiguous(), r"found \[20, 5\] torch.float32, expected \[20, 6\] floats .*env\.num_items"),
        (ROWS.T.contiguous(), r"found \[6, 20\] torch.float32, expected \[20, 6\]"),
        (ROWS.long(), r"found \[20, 6\] torch.int64, expected \[20, 6\] floats"),
        (WITH_NAN, "1 of its values are not finite"),
        (ROWS / 0, "120 of its values are not finite"),
    ],
    ids=["too narrow", "transposed", "whole numbers", "nan", "inf"],
)
def test_tensors_that_do_not_fit(written: Callable[[Tensor], Path], rows: Tensor, said: str) -> None:
    refused(written(rows), said)


def refused(file: Path, said: str) -> None:
    """The file is refused with an error that begins with the setting and the file, and goes on with `said`."""
    with pytest.raises(UserError, match=rf"^env\.item_embeddings\.path={file}: {said}"):
        env_with(f"env.item_embeddings.path={file}")


def quantised() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(ROWS, 0.1, 0, torch.quint8)


class Subclass(Tensor):
    pass


@pytest.mark.filterwarnings("ignore:.*(Sparse|nested|prototype|beta|TypedStorage)")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (ROWS.to_sparse, "found one of layout torch.sparse_coo"),
        (ROWS.to_sparse_csr, "found one of layout torch.sparse_csr"),
        (ROWS.to_sparse_csc, "found one of layout torch.sparse_csc"),
        (lambda: ROWS.to_sparse_bsr((2, 2)), "found one of layout torch.sparse_bsr"),
        (lambda: torch.nested.nested_tensor(list(ROWS)), "found a nested one"),
        (lambda: torch.nested.nested_tensor(list(ROWS), layout=torch.jagged), "found a NestedTensor"),
        (lambda: ROWS.to("meta"), "found one on the meta device"),
        (quantised, r"found a quantised one \(torch.quint8\)"),
    ],
    ids=["coo", "csr", "csc", "bsr", "nested", "jagged", "meta", "quantised"],
)
def test_odd_tensors_are_refused(make: Callable[[], Tensor], said: str, tmp_path: Path) -> None:
    torch.save(make(), tmp_path / "items.pt")
    refused(tmp_path / "items.pt", f"expected a dense tensor of floats, {said}")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (ROWS.to(torch.complex64), "found .* torch.complex64, expected .* floats"),
        (ROWS.as_subclass(Subclass), r"cannot be read \(it holds classes other than plain tensors\)$"),
    ],
    ids=["complex", "subclass"],
)
def test_tensors_of_other_kinds_are_refused(rows: Tensor, said: str, tmp_path: Path) -> None:
    torch.save(rows, tmp_path / "items.pt")
    refused(tmp_path / "items.pt", said)


@pytest.mark.parametrize(
    "rows",
    [ROWS.clone().requires_grad_(), torch.nn.Parameter(ROWS), ROWS.T.contiguous().T, ROWS.repeat(2, 2)[:20, :6]],
    ids=["requires_grad", "parameter", "transposed view", "part of a larger one"],
)
def test_harmless_tensors_are_taken(rows: Tensor, tmp_path: Path) -> None:
    torch.save(rows, tmp_path / "items.pt")
    env = env_with(f"env.item_embeddings.path={tmp_path / 'items.pt'}")
    assert torch.equal(env.item_embeddings, ROWS) and not env.item_embeddings.requires_grad
    assert env.fingerprint == fingerprint(ROWS)


@pytest.mark.parametrize("suffix", WRITERS)
def test_missing_and_damaged_files(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"items{suffix}"
    refused(file, "no such file")
    file.write_bytes(b"these are no numbers")
    refused(file, "cannot be read")


class Trap:
    """Pickled, it writes a file when it is read."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.write_text, (self.sprung, "sprung")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    torch.save([ROWS, Trap(sprung)], tmp_path / "items.pt")
    np.save(tmp_path / "items.npy", np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    for name in ("items.pt", "items.npy"):
        refused(tmp_path / name, "cannot be read")
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap works


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    torch.save({"rows": ROWS}, tmp_path / "items.pt")
    refused(tmp_path / "items.pt", "expected a tensor, found dict")
    save_file({"a": ROWS, "b": ROWS + 1}, tmp_path / "items.safetensors")
    refused(tmp_path / "items.safetensors", r"expected one tensor, found \['a', 'b'\]")
    (tmp_path / "items.csv").write_text("0.1,0.2")
    refused(tmp_path / "items.csv", r"expected a \.pt, \.npy or \.safetensors file")


@pytest.mark.parametrize("peakedness", ["0", "-1", "high", "60"])
def test_peakedness_that_cannot_be(peakedness: str) -> None:
    """60 leaves nothing of a row in single precision."""
    with pytest.raises(UserError, match=rf"env\.item_embeddings\.peakedness={peakedness}: "):
        env_with(f"env.item_embeddings.peakedness={peakedness}")
