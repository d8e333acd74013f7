"""Contract of every belief that reads frames. A new file in conf/belief is tested at once."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf
from torch import Tensor, nn

from slaterl.beliefs import frames
from slaterl.beliefs.base import JoinedBeliefs, for_actor_and_critics, states_of
from slaterl.beliefs.frames import FrameBelief
from slaterl.beliefs.lru import linear_scan
from slaterl.beliefs.lstm import lstm_scan
from slaterl.config.build import make, plain
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation
from slaterl.errors import UserError
from slaterl.paths import CONF
from slaterl.seeds import seeded_weights, stream
from tests.helpers import compose_config

ITEMS, SLOTS, BATCH, TURNS = 20, 3, 4, 11
SIZES: dict[str, Any] = dict(num_items=ITEMS, slate_size=SLOTS)
FILES = {file.stem: OmegaConf.load(file) for file in sorted((CONF / "belief").glob("*.yaml"))}
OF_FRAMES = [name for name, node in FILES.items() if issubclass(get_object(node["_target_"]), FrameBelief)]
# a context that is much shorter than the episode, and not a divisor of it
CHANGES = [(name, {}) for name in OF_FRAMES] + [("transformer", {"context": 3}), ("mean", {"decay": 0.7})]
CHANGES += [("transformer", {"context": 2, "layers": 1}), ("lru", {"layers": 1, "min_radius": 0.0})]
beliefs = pytest.mark.parametrize(("name", "changes"), CHANGES)


def built(name: str, changes: dict[str, Any], seed: int = 0) -> FrameBelief:
    with seeded_weights(seed, "belief"):
        return make({**plain(FILES[name]), **changes}, "belief", **SIZES).double()


@pytest.fixture(scope="module")
def batch() -> Trajectories:
    generator = stream(0, "frames")
    slates = torch.randint(ITEMS, (BATCH, TURNS + 1, SLOTS), generator=generator).to(torch.uint8)
    return Trajectories(slates, (torch.rand(slates.shape, generator=generator) < 0.5).to(torch.uint8))


def seen(batch: Trajectories, turn: int) -> Observation:
    return Observation(batch.slates[:, turn].long(), batch.clicks[:, turn])


@beliefs
def test_turn_by_turn_equals_one_pass(name: str, changes: dict[str, Any], batch: Trajectories) -> None:
    belief = built(name, changes)
    (states,) = states_of([belief], batch)
    assert states.shape == (BATCH, TURNS, belief.state_dim)
    memory = belief.initial_state(BATCH)
    assert not memory.any()
    for turn in range(TURNS):
        memory = belief.step(seen(batch, turn), memory)
        assert memory.shape == (BATCH, belief.memory_dim)
        torch.testing.assert_close(belief.state_of(memory), states[:, turn], rtol=1e-10, atol=1e-12)
    assert (states[:, 1:] - states[:, :-1]).abs().amax(2).min() > 1e-6


@beliefs
@pytest.mark.parametrize("column", ["slates", "clicks"])
def test_a_state_depends_on_its_frame_and_none_after(
    name: str, changes: dict[str, Any], column: str, batch: Trajectories
) -> None:
    belief = built(name, changes)
    (own,) = states_of([belief], batch)
    for turn in range(TURNS):
        other = copy.deepcopy(batch)
        frame = getattr(other, column)[:, turn]
        frame.copy_((frame + 1) % 2)
        (states,) = states_of([belief], other)
        assert torch.equal(states[:, :turn], own[:, :turn])
        assert (states[:, turn] != own[:, turn]).any(1).all()


@beliefs
def test_it_matters_which_item_was_clicked(name: str, changes: dict[str, Any], batch: Trajectories) -> None:
    """A sum of what items and clicks say on their own does not know it."""
    belief = built(name, changes)
    slates = torch.tensor([[0, 1, 2], [3, 4, 5]])
    first, second = torch.tensor([1, 0, 0]), torch.tensor([0, 1, 0])
    columns = [(slates[0], first), (slates[0], second), (slates[1], first), (slates[1], second)]
    state = [
        belief.state_of(belief.step(Observation(slate[None], clicks[None]), belief.initial_state(1)))
        for slate, clicks in columns
    ]
    assert (state[0] - state[1] - state[2] + state[3]).abs().max() > 1e-4


@beliefs
def test_several_beliefs_at_once_are_each_alone(name: str, changes: dict[str, Any], batch: Trajectories) -> None:
    several = [built(name, changes, seed) for seed in range(2)]
    parameters = [parameter for belief in several for parameter in belief.parameters()]
    together = torch.stack(states_of(several, batch))
    weights = torch.randn(together.shape, generator=stream(1, "cotangent"), dtype=torch.float64)
    alone = torch.stack([states_of([belief], batch)[0] for belief in several])
    assert not torch.allclose(alone[0], alone[1])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)
    found, expected = (torch.autograd.grad((states * weights).sum(), parameters) for states in (together, alone))
    assert all(part.any() for part in found)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(states_of(several, batch)), together, rtol=1e-12, atol=1e-14)

    joined = JoinedBeliefs(several)
    memory = joined.initial_state(BATCH)
    for turn in range(3):
        memory = joined.step(seen(batch, turn), memory)
    expected_state = torch.cat([alone[0, :, 2], alone[1, :, 2]], dim=1)
    torch.testing.assert_close(joined.state_of(memory), expected_state, rtol=1e-10, atol=1e-12)


@beliefs
@pytest.mark.parametrize("frames_per_item", [0, 10**9])
def test_gradients(name: str, changes: dict[str, Any], frames_per_item: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against differences along a direction, with the first layer computed in each of its two ways."""
    monkeypatch.setattr(frames, "FRAMES_PER_ITEM", frames_per_item)
    belief = built(name, changes)
    generator = stream(0, "frames")
    slates = torch.randint(ITEMS, (2, 6, SLOTS), generator=generator)
    clicks = (torch.rand(slates.shape, generator=generator) < 0.5).to(torch.uint8)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in belief.parameters()]

    def value() -> Tensor:
        states = type(belief).unroll([belief], slates, clicks)
        return (states * torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view_as(states)).sum()

    gradients = torch.autograd.grad(value(), list(belief.parameters()))
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    step, ends = 1e-5, []
    with torch.no_grad():
        for move in (step, -2 * step):
            for parameter, change in zip(belief.parameters(), direction, strict=True):
                parameter += move * change
            ends.append(value())
    assert slope.item() == pytest.approx(((ends[0] - ends[1]) / (2 * step)).item(), rel=1e-5)


@pytest.mark.parametrize("name", OF_FRAMES)
def test_a_shared_belief_is_read_once(name: str, batch: Trajectories, monkeypatch: pytest.MonkeyPatch) -> None:
    first = built(name, {"shared": True})
    actor, critic = for_actor_and_critics(first, pytest.fail)
    assert critic is first and not list(actor.parameters()) and not actor.state_dict()
    counts, read = [], type(first).read
    monkeypatch.setattr(type(first), "read", lambda beliefs, batch: counts.append(len(beliefs)) or read(beliefs, batch))
    of_critic, of_actor = states_of([critic, actor], batch)
    assert counts == [1] and torch.equal(of_critic, of_actor)
    (alone,) = states_of([actor], batch)
    assert not alone.requires_grad and torch.equal(alone, of_actor)
    weights = [torch.randn(of_actor.shape, generator=stream(i, "cotangent"), dtype=torch.float64) for i in range(2)]
    loss = (of_critic * weights[0]).sum()
    parameters = list(first.parameters())
    found = torch.autograd.grad(loss + (of_actor * weights[1]).sum(), parameters, retain_graph=True)
    assert all(map(torch.equal, found, torch.autograd.grad(loss, parameters)))
    memory = actor.step(seen(batch, 0), actor.initial_state(BATCH))
    torch.testing.assert_close(actor.state_of(memory), of_actor[:, 0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OF_FRAMES)
def test_about_as_many_parameters_as_the_gru(name: str) -> None:
    """Without item embeddings, in the paper's environment."""
    counts = []
    for one in (name, "gru"):
        belief = make(plain(FILES[one]), "belief", num_items=1000, slate_size=10)
        counts.append(sum(p.numel() for p in belief.parameters()) - belief.item_embeddings.numel())
    assert counts[0] == pytest.approx(counts[1], rel=0.15)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"name": "lstm", "hidden_dim": 0}, r"belief\.hidden_dim=0"),
        ({"name": "mean", "decay": 0}, r"belief\.decay=0.*above 0 and at most 1"),
        ({"name": "lru", "max_radius": 1.0}, r"belief\.max_radius=1\.0.*below 1"),
        ({"name": "lru", "max_radius": 0.3}, r"belief\.min_radius=0\.4: must be below belief\.max_radius=0\.3"),
        ({"name": "transformer", "heads": 3}, r"belief\.hidden_dim=20: must be a multiple of belief\.heads=3"),
        ({"name": "transformer", "context": 0}, r"belief\.context=0"),
    ],
)
def test_bad_settings_are_refused(overrides: dict[str, Any], message: str) -> None:
    node = plain(compose_config(f"belief={overrides['name']}").belief)
    with pytest.raises(UserError, match=message):
        make({**node, **overrides}, "belief", **SIZES)


# --- each against an independent implementation


def embedded_by_hand(belief: FrameBelief, batch: Trajectories) -> np.ndarray:
    """gelu(W x + b) of the frames before each turn, [B, T, W]."""
    items = belief.item_embeddings.detach().numpy()[batch.slates[:, :-1].long().numpy()]
    x = np.concatenate([items, batch.clicks[:, :-1].numpy()[..., None]], axis=3).reshape(BATCH, TURNS, -1)
    y = torch.from_numpy(x @ belief.weight_ih.detach().numpy().T + belief.bias_ih.detach().numpy())
    return (0.5 * y * (1 + torch.erf(y / np.sqrt(2)))).numpy()


@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_mean(decay: float, batch: Trajectories) -> None:
    belief = built("mean", {"decay": decay})
    embedded = embedded_by_hand(belief, batch)
    (states,) = states_of([belief], batch)
    for turn in range(TURNS):
        weights = decay ** np.arange(turn, -1.0, -1)
        expected = np.average(embedded[:, : turn + 1], axis=1, weights=weights)
        np.testing.assert_allclose(states[:, turn].detach(), expected, rtol=1e-10, atol=1e-12)


def test_lstm_is_torch_lstm(batch: Trajectories) -> None:
    belief = built("lstm", {"hidden_dim": 5})
    reference = nn.LSTM(belief.weight_ih.shape[1], 5, batch_first=True).double()
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    with torch.no_grad():
        for name in names:
            getattr(reference, f"{name}_l0").copy_(getattr(belief, name))
    items = belief.item_embeddings[batch.slates[:, :-1].long()]
    expected, _ = reference(torch.cat([items, batch.clicks[:, :-1, :, None].double()], dim=3).flatten(2))
    (states,) = states_of([belief], batch)
    torch.testing.assert_close(states, expected, rtol=1e-10, atol=1e-12)
    weights = torch.randn(states.shape, generator=stream(0, "cotangent"), dtype=torch.float64)
    own = [getattr(belief, name) for name in names]
    theirs = [getattr(reference, f"{name}_l0") for name in names]
    found = torch.autograd.grad((states * weights).sum(), [belief.item_embeddings, *own], retain_graph=True)
    wanted = torch.autograd.grad((expected * weights).sum(), [belief.item_embeddings, *theirs])
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("turns", [1, 2, 5])
def test_lstm_scan_gradcheck(turns: int) -> None:
    generator = stream(0, "gradcheck")

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()

    assert torch.autograd.gradcheck(lstm_scan, (draw(turns, 3, 8), draw(3, 2), draw(3, 2), draw(8, 2)))


@pytest.mark.parametrize("turns", [1, 2, 7, 8])
def test_linear_scan_is_the_recurrence(turns: int) -> None:
    generator = stream(0, "scan")
    driven = torch.randn(turns, 2, 3, generator=generator, dtype=torch.complex128).requires_grad_()
    eigenvalues = (0.7 * torch.randn(3, generator=generator, dtype=torch.complex128)).requires_grad_()
    x, expected = np.zeros((2, 3), dtype=complex), []
    for b in driven.detach().numpy():
        x = eigenvalues.detach().numpy() * x + b
        expected.append(x)
    np.testing.assert_allclose(linear_scan(driven, eigenvalues).detach(), np.stack(expected), rtol=1e-12)
    assert torch.autograd.gradcheck(linear_scan, (driven, eigenvalues))


def test_lru_layer_by_its_equations(batch: Trajectories) -> None:
    belief = built("lru", {"layers": 1})
    layer = belief.layers[0]
    embedded = embedded_by_hand(belief, batch)

    def norm(values: np.ndarray, by: nn.LayerNorm) -> np.ndarray:
        return by(torch.from_numpy(values)).detach().numpy()

    width = belief.state_dim
    w = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    eigenvalues = np.exp(-np.exp(w["nu_log"]) + 1j * np.exp(w["theta_log"]))
    assert (np.abs(eigenvalues) >= 0.4).all() and (np.abs(eigenvalues) <= 0.99).all()
    np.testing.assert_allclose(np.exp(w["gamma_log"]), np.sqrt(1 - np.abs(eigenvalues) ** 2), rtol=1e-4)
    b = w["inputs"][:width] + 1j * w["inputs"][width:]
    c = w["outputs"][:, :width] - 1j * w["outputs"][:, width:]
    u, x, states = norm(embedded, layer.norm), np.zeros((BATCH, width), dtype=complex), []
    for turn in range(TURNS):
        x = eigenvalues * x + np.exp(w["gamma_log"]) * (u[:, turn] @ b.T)
        y = torch.from_numpy((x @ c.T).real + w["skip"] * u[:, turn])
        y = (0.5 * y * (1 + torch.erf(y / np.sqrt(2)))).numpy()
        left, right = np.split(y @ w["gate.weight"].T + w["gate.bias"], 2, axis=1)
        states.append(embedded[:, turn] + left / (1 + np.exp(-right)))
    expected = norm(np.stack(states, axis=1), belief.norm)
    np.testing.assert_allclose(states_of([belief], batch)[0].detach(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("context", [3, 50])
def test_transformer_is_torch_encoder(context: int, batch: Trajectories) -> None:
    belief = built("transformer", {"context": context})
    width, heads = belief.state_dim, 2
    hidden = torch.from_numpy(embedded_by_hand(belief, batch))
    slopes = (2.0**-4, 2.0**-8)
    back = torch.arange(TURNS).unsqueeze(1) - torch.arange(TURNS)
    hidden_keys = (back < 0) | (back >= context)
    mask = torch.stack([(-slope * back.double()).masked_fill(hidden_keys, -torch.inf) for slope in slopes])
    for layer in belief.layers:
        reference = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        ).double()
        with torch.no_grad():
            attention = reference.self_attn
            attention.in_proj_weight.copy_(torch.cat([layer.to_queries.weight, layer.to_pairs.weight]))
            attention.in_proj_bias.copy_(torch.cat([layer.to_queries.bias, layer.to_pairs.bias]))
        attention.out_proj.load_state_dict(layer.joined.state_dict())
        pairs = [("norm1", "attention_norm"), ("norm2", "mlp_norm"), ("linear1", "widened"), ("linear2", "narrowed")]
        for theirs, own in pairs:
            getattr(reference, theirs).load_state_dict(getattr(layer, own).state_dict())
        hidden = reference(hidden, src_mask=mask.repeat(BATCH, 1, 1))
    torch.testing.assert_close(states_of([belief], batch)[0], belief.norm(hidden), rtol=1e-9, atol=1e-11)


def test_a_transformer_forgets_what_lies_behind_its_context(batch: Trajectories) -> None:
    """Two layers of 3 frames see 4 frames back."""
    belief = built("transformer", {"context": 3, "layers": 2})
    other = copy.deepcopy(batch)
    other.slates[:, 0] = (other.slates[:, 0] + 1) % ITEMS
    (own,), (changed,) = states_of([belief], batch), states_of([belief], other)
    assert (own != changed).any(2).any(0).tolist() == [True] * 5 + [False] * (TURNS - 5)
