"""One seed, independent streams."""

from __future__ import annotations

import pytest
import torch

from slaterl.seeds import seeded_weights, stream, stream_seed

NAMES = ["weights", "exploration", "training users", "validation users", "test users", "batches"]


def draws(seed: int, name: str) -> list[float]:
    return torch.rand(4, generator=stream(seed, name)).tolist()


def test_a_stream_depends_on_seed_and_name_and_nothing_else() -> None:
    forwards = {name: draws(0, name) for name in NAMES}
    torch.manual_seed(1)
    backwards = {name: draws(0, name) for name in reversed(NAMES)}
    assert forwards == backwards


def test_streams_differ() -> None:
    # also seeds and names that would meet if one were merely appended to the other
    pairs = [(seed, name) for seed in (0, 1, 2, 58407201) for name in NAMES]
    pairs += [(1, "2/users"), (12, "users"), (1, "2users"), (0, ""), (0, "0")]
    assert len({tuple(draws(*pair)) for pair in pairs}) == len(pairs)


def test_drawing_from_one_leaves_the_others() -> None:
    one, other = stream(0, "one"), stream(0, "other")
    torch.rand(100, generator=one)
    assert torch.rand(4, generator=other).tolist() == draws(0, "other")


def test_a_seed_stays_what_it_is() -> None:
    """Another formula would change every result; and torch takes 64 bits with a sign."""
    assert stream_seed(58407201, "weights") == 7796256841520294185
    assert all(0 <= stream_seed(seed, "weights") < 2**63 for seed in range(100))


def test_seeded_weights_restores_the_global_generator() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with seeded_weights(0, "weights"):
        inside = torch.nn.Linear(3, 3).weight.tolist()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    with seeded_weights(0, "weights"):
        assert torch.nn.Linear(3, 3).weight.tolist() == inside
    with seeded_weights(1, "weights"):
        assert torch.nn.Linear(3, 3).weight.tolist() != inside
    with seeded_weights(0, "ranker weights"):
        assert torch.nn.Linear(3, 3).weight.tolist() != inside


def test_seeded_weights_restores_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded_weights(0, "weights"):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)
