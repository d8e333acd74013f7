"""The hand-written GRU is torch.nn.GRU, forwards and backwards, in one pass and turn by turn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from slaterl.beliefs import frames as of_frames
from slaterl.beliefs.gru import GRUBelief, gru_scan
from slaterl.config.build import make, plain
from slaterl.envs.observation import Observation
from slaterl.errors import UserError
from slaterl.seeds import seeded_weights, stream
from tests.helpers import compose_config

ITEMS, SLOTS, BATCH, TURNS = 20, 3, 4, 7


@pytest.fixture
def belief() -> GRUBelief:
    with seeded_weights(0, "belief"):
        return GRUBelief(num_items=ITEMS, slate_size=SLOTS, item_dim=4, hidden_dim=5).double()


@pytest.fixture
def frames() -> tuple[Tensor, Tensor]:
    generator = stream(0, "frames")
    slates = torch.randint(ITEMS, (BATCH, TURNS, SLOTS), generator=generator).to(torch.uint8)
    return slates, torch.rand(BATCH, TURNS, SLOTS, generator=generator) < 0.5


def reference_of(belief: GRUBelief) -> tuple[nn.Embedding, nn.GRU]:
    """torch's modules with the belief's weights."""
    items = nn.Embedding(ITEMS, belief.item_embeddings.shape[1]).double()
    gru = nn.GRU(belief.weight_ih.shape[1], belief.state_dim, batch_first=True).double()
    with torch.no_grad():
        items.weight.copy_(belief.item_embeddings)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(gru, f"{name}_l0").copy_(getattr(belief, name))
    return items, gru


@pytest.mark.parametrize("given_state", [False, True])
def test_equals_torch_gru(belief: GRUBelief, frames: tuple[Tensor, Tensor], given_state: bool) -> None:
    slates, clicks = frames
    generator = stream(0, "cotangent")
    weights = torch.randn(BATCH, TURNS, belief.state_dim, generator=generator, dtype=torch.float64)
    start = torch.randn(BATCH, belief.state_dim, generator=generator, dtype=torch.float64).requires_grad_()
    own_start = start.detach().clone().requires_grad_()

    items, gru = reference_of(belief)
    embedded = torch.cat([items(slates.long()), clicks.unsqueeze(3).double()], dim=3).flatten(2)
    expected, _ = gru(embedded, start.unsqueeze(0) if given_state else None)
    (expected * weights).sum().backward()
    states = belief(slates, clicks, own_start if given_state else None)
    (states * weights).sum().backward()

    close = dict(rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(states, expected, **close)
    torch.testing.assert_close(belief.item_embeddings.grad, items.weight.grad, **close)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        torch.testing.assert_close(getattr(belief, name).grad, getattr(gru, f"{name}_l0").grad, **close)
    if given_state:
        torch.testing.assert_close(own_start.grad, start.grad, **close)


def test_two_beliefs_in_one_scan(frames: tuple[Tensor, Tensor]) -> None:
    with seeded_weights(1, "beliefs"):
        sizes = dict(num_items=ITEMS, slate_size=SLOTS, item_dim=4, hidden_dim=5)
        beliefs = [GRUBelief(**sizes).double() for _ in range(2)]
    weights = torch.randn(2, BATCH, TURNS, 5, generator=stream(1, "cotangent"), dtype=torch.float64)
    together = GRUBelief.unroll(beliefs, *frames)
    found = torch.autograd.grad((together * weights).sum(), [*beliefs[0].parameters(), *beliefs[1].parameters()])
    alone = torch.stack([belief(*frames) for belief in beliefs])
    expected = torch.autograd.grad((alone * weights).sum(), [*beliefs[0].parameters(), *beliefs[1].parameters()])
    assert not torch.allclose(alone[0], alone[1])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_input_gates_from_a_table_or_without(frames: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    with seeded_weights(1, "beliefs"):
        sizes = dict(num_items=ITEMS, slate_size=SLOTS, item_dim=4, hidden_dim=5)
        beliefs = [GRUBelief(**sizes).double() for _ in range(2)]
    parameters = [part for belief in beliefs for part in (belief.item_embeddings, belief.weight_ih, belief.bias_ih)]
    weights = torch.randn(TURNS, BATCH, 30, generator=stream(1, "cotangent"), dtype=torch.float64)
    found = []
    for frames_per_item in (0, 10**9):
        monkeypatch.setattr(of_frames, "FRAMES_PER_ITEM", frames_per_item)
        gates = of_frames.first_layers(beliefs, *(part.transpose(0, 1) for part in frames), gates=3)
        found.append([gates, *torch.autograd.grad((gates * weights).sum(), parameters)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("frames_per_item", [0, 10**9])
@pytest.mark.parametrize("item", [-1, ITEMS, ITEMS + 1])
@pytest.mark.parametrize("slot", range(SLOTS))
def test_items_out_of_range_are_refused(
    frames_per_item: int, item: int, slot: int, frames: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_frames, "FRAMES_PER_ITEM", frames_per_item)
    belief = GRUBelief(num_items=ITEMS, slate_size=SLOTS, item_dim=4, hidden_dim=5).double()
    slates, clicks = (part.transpose(0, 1) for part in frames)
    slates = slates.long().clone()
    slates[-1, 0, slot] = item
    with pytest.raises((RuntimeError, IndexError)):
        of_frames.first_layers([belief], slates, clicks, gates=3)


@pytest.mark.parametrize("shape", [(5, 3, 2), (1, 1, 3)])
def test_scan_gradcheck(shape: tuple[int, int, int]) -> None:
    turns, batch, hidden = shape
    generator = stream(0, "gradcheck")

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()

    gates, start = draw(turns, batch, 3 * hidden), draw(batch, hidden)
    weight_hh, bias_hh = draw(3 * hidden, hidden), draw(3 * hidden)
    assert torch.autograd.gradcheck(gru_scan, (gates, start, weight_hh, bias_hh))


def test_turn_by_turn_equals_one_pass(belief: GRUBelief, frames: tuple[Tensor, Tensor]) -> None:
    slates, clicks = frames
    expected = belief(slates, clicks)
    state = belief.initial_state(BATCH)
    assert torch.equal(state, torch.zeros_like(state))
    for turn in range(TURNS):
        state = belief.step(Observation(slates[:, turn], clicks[:, turn]), state)
        torch.testing.assert_close(state, expected[:, turn], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("what", ["slates", "clicks"])
def test_a_state_depends_on_its_frame_and_none_after(
    belief: GRUBelief, frames: tuple[Tensor, Tensor], what: str
) -> None:
    slates, clicks = frames
    expected = belief(slates, clicks)
    for turn in range(TURNS):
        other_slates, other_clicks = slates.clone(), clicks.clone()
        if what == "slates":
            other_slates[:, turn] = (slates[:, turn] + 1) % ITEMS
        else:
            other_clicks[:, turn] = ~clicks[:, turn]
        states = belief(other_slates, other_clicks)
        assert torch.equal(states[:, :turn], expected[:, :turn])
        assert (states[:, turn:] != expected[:, turn:]).any(2).all()


def test_without_gradient_the_same_states(belief: GRUBelief, frames: tuple[Tensor, Tensor]) -> None:
    with_gradient = belief(*frames)
    with torch.no_grad():
        without = belief(*frames)
    assert with_gradient.requires_grad and not without.requires_grad
    assert torch.equal(with_gradient, without)


def test_starts_as_torch_gru_does() -> None:
    with seeded_weights(1, "belief"):
        belief = GRUBelief(num_items=2000, slate_size=10, item_dim=20, hidden_dim=25)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        largest = getattr(belief, name).abs().max().item()
        assert 0.9 / 5 < largest <= 1 / 5, name  # U(-1/sqrt(hidden_dim), 1/sqrt(hidden_dim))
    assert belief.item_embeddings.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("field", ["item_dim", "hidden_dim"])
def test_sizes_must_be_positive(field: str) -> None:
    with pytest.raises(UserError, match=rf"belief\.{field}=0"):
        make({**plain(compose_config().belief), field: 0}, "belief", num_items=5, slate_size=2)
