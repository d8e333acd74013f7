"""Settings of the process: memory, threads, and the precision of products."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from slaterl.envs.topic_rec import TopicRec
from slaterl.evaluation.constant_slate import SlatePerGroup
from slaterl.rankers import base, gems
from slaterl.rollout import rollout
from slaterl.run import run_stage
from slaterl.runtime import exact_products, keep_freed_memory, prepare, warn_without_amx
from slaterl.seeds import stream
from tests.helpers import LATENT, SLOTS, compose_config, tiny_env, tiny_gems

TRIM, MMAP = -1, -3
MEBIBYTE = 1 << 20


class FakeLibc:
    """A glibc that refuses an mmap threshold above `largest`; `taken` are the settings that it accepted."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.taken: dict[int, int] = {}

    def mallopt(self, parameter: int, value: int) -> int:
        if parameter == MMAP and value > self.largest:
            return 0
        self.taken[parameter] = value
        return 1


@pytest.mark.parametrize(("largest", "threshold"), [(1 << 40, 1024 * MEBIBYTE), (32 * MEBIBYTE, 32 * MEBIBYTE)])
def test_older_glibc_gets_the_largest_threshold_that_it_takes(largest: int, threshold: int) -> None:
    libc = FakeLibc(largest)
    keep_freed_memory(libc)
    assert libc.taken == {MMAP: threshold, TRIM: 1024 * MEBIBYTE}


def test_trim_threshold_is_not_set_alone() -> None:
    """It would freeze the mmap threshold at its small default."""
    libc = FakeLibc(MEBIBYTE)
    keep_freed_memory(libc)
    assert libc.taken == {}


def test_a_libc_without_mallopt() -> None:
    keep_freed_memory(SimpleNamespace())


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_the_fake_behaves_as_glibc() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        pytest.skip("no glibc")
    assert libc.mallopt(MMAP, 32 * MEBIBYTE) == 1
    keep_freed_memory(libc)


def precisions() -> tuple[str, str]:
    """What torch has set for products on the processor and on a GPU."""
    return torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision


def test_precision_of_one_job_does_not_stay_for_the_next() -> None:
    """The jobs of a sweep share a process."""
    prepare(1, "medium")
    assert precisions() == ("bf16", "tf32")
    prepare(1, "highest")
    assert precisions() == ("ieee", "ieee") and torch.get_float32_matmul_precision() == "highest"


def test_exact_products_within_the_block_alone() -> None:
    prepare(1, "medium")
    with exact_products():
        assert precisions() == ("ieee", "ieee")
        with exact_products():
            pass
        assert precisions() == ("ieee", "ieee")
    assert precisions() == ("bf16", "tf32")
    with pytest.raises(ZeroDivisionError), exact_products():
        raise ZeroDivisionError
    assert precisions() == ("bf16", "tf32")
    assert torch.backends.cuda.matmul.allow_tf32, "torch refuses to answer if its two interfaces are mixed"


def test_items_are_scored_and_users_simulated_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded scores would change the slates of a ranker and the clicks of a simulated user."""
    seen: dict[str, set[str]] = {}

    def spy(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def spied(*args: object, **kwargs: object) -> object:
            seen.setdefault(name, set()).add(torch.get_float32_matmul_precision())
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, spied)

    spy(gems, "product")  # logits of the cross-entropy
    spy(base, "best_of")
    spy(TopicRec, "_score")
    spy(gems, "layers")  # as the opposite
    env, ranker = tiny_env(), tiny_gems()
    prepare(1, "medium")
    try:
        slates = torch.zeros(2, SLOTS, dtype=torch.long)
        ranker.losses(slates, slates, None)
        ranker.rank(torch.zeros(2, LATENT))
        policy = SlatePerGroup(slates, 1)
        rollout(policy, env, 2, generator=stream(0, "users"), deterministic=True)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        prepare(1, "highest")
    assert seen == {"product": {"highest"}, "best_of": {"highest"}, "_score": {"highest"}, "layers": {"medium"}}


@pytest.mark.parametrize(
    ("device", "machine", "amx", "warned"),
    [
        ("cpu", "x86_64", False, True),
        ("cpu", "x86_64", True, False),
        ("cpu", "aarch64", False, False),  # has other instructions for it
        ("cuda", "x86_64", False, False),
    ],
)
def test_medium_warns_where_nothing_gains(
    device: str,
    machine: str,
    amx: bool,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    warn_without_amx(torch.device(device))
    told = capsys.readouterr().err
    assert told.count("warning: matmul_precision=medium: only processors with AMX gain from it") == warned
    assert bool(told) == warned


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_a_command_warns_of_medium_once(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    small = ["scale=smoke", "device=cpu", "threads=1", "stage=evaluate", "agent=random", f"paths.root={tmp_path}"]
    run_stage(compose_config(*small, f"matmul_precision={precision}"))
    assert capsys.readouterr().err.count("AMX") == (precision == "medium")
