"""Small user models, and a log of users whose clicks and departures follow known probabilities."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from slaterl.data.trajectories import Trajectories
from slaterl.seeds import seeded_weights, stream
from slaterl.user_models.click_model import ClickModel
from slaterl.user_models.coverage import coverage_of
from slaterl.user_models.saved import save_user_model
from tests.helpers import ITEMS, SLOTS, TURNS, tiny_trajectories

NODE = {"_target_": "slaterl.user_models.click_model.ClickModel", "item_dim": 3, "hidden_dim": 5, "slot_dim": 4}
TOY_ITEMS, TOY_SLOTS, TOY_TURNS = 6, 2, 8


def tiny_member(seed: int = 0, leaves: bool = True, drift: float = 0.5) -> ClickModel:
    """A user model with a number of its own in every parameter, also in the biases that start at zero."""
    with seeded_weights(seed, "tiny member"):
        sizes = dict(num_items=ITEMS, slate_size=SLOTS, item_dim=3, hidden_dim=5, slot_dim=4)
        member = ClickModel(**sizes, leaves=leaves)
        with torch.no_grad():
            for parameter in member.parameters():
                parameter.add_(drift * torch.randn_like(parameter))
    return member


def tiny_sessions(count: int = 7, seed: int = 0) -> Trajectories:
    """Random frames in sessions of 1 to 6 turns; every third one was cut off."""
    data = tiny_trajectories(count, seed)
    lengths = (torch.arange(count) % 6 + 1).int()
    return Trajectories(data.slates, data.clicks, lengths=lengths, truncated=torch.arange(count) % 3 == 2)


def padded_otherwise(data: Trajectories, extra: int = 2) -> Trajectories:
    """The same sessions with other numbers in their padding, and with more of it."""
    mask = torch.nn.functional.pad(data.mask, (1, 0), value=True).unsqueeze(2)
    slates = torch.where(mask, data.slates, ITEMS - 1 - data.slates)
    clicks = torch.where(mask, data.clicks, 1 - data.clicks)
    more = [torch.cat([frames, frames[:, :extra]], dim=1) for frames in (slates, clicks)]
    return Trajectories(*more, lengths=data.lengths, truncated=data.truncated)


def toy_chance(slates: Tensor, clicked_before: Tensor) -> Tensor:
    """P(click) [..., S]: a rate of the item, doubled for who clicked in the turn before; halved next to item 0."""
    rate = 0.05 + 0.07 * slates
    rate = rate * torch.where(clicked_before.unsqueeze(-1), 2.0, 1.0)
    return torch.where((slates == 0).flip(-1), rate / 2, rate)


def toy_log(count: int, seed: int = 0) -> Trajectories:
    """Sessions of random slates; a user leaves with 0.3 after a turn without a click, with 0.05 after another one."""
    generator = stream(seed, "toy log")

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    slates = torch.randint(TOY_ITEMS, (count, TOY_TURNS + 1, TOY_SLOTS), generator=generator)
    clicks = torch.zeros_like(slates, dtype=torch.bool)
    lengths = torch.full((count,), TOY_TURNS)
    clicked = torch.zeros(count, dtype=torch.bool)
    for turn in range(1, TOY_TURNS + 1):
        clicks[:, turn] = draw(count, TOY_SLOTS) < toy_chance(slates[:, turn], clicked)
        clicked = clicks[:, turn].any(1)
        left = draw(count) < torch.where(clicked, 0.05, 0.3)
        lengths = torch.where(left & (lengths == TOY_TURNS), turn, lengths)
    return Trajectories(
        slates.to(torch.uint8), clicks.to(torch.uint8), lengths=lengths.int(), truncated=lengths == TOY_TURNS
    )


def families(count: int, seed: int, strays: float = 0.2) -> Trajectories:
    """Slates of items 0..4 or of items 5..9 in any order; a share of `strays` shows any of 30 items."""
    generator = stream(seed, "families")
    family = torch.rand(count, 20, 5, generator=generator).argsort(-1)
    family = family + 5 * torch.randint(2, (count, 20, 1), generator=generator)
    any_items = torch.rand(count, 20, 30, generator=generator).argsort(-1)[..., :5]
    slates = torch.where(torch.rand(count, 20, 1, generator=generator) < strays, any_items, family)
    slates = torch.cat([torch.zeros_like(slates[:, :1]), slates], 1)
    return Trajectories(slates, torch.zeros_like(slates))


def save_tiny_user_model(path: Path, members: int = 3) -> Path:
    """A file with untrained members, as stage=user_model writes it."""
    data = tiny_sessions()
    sizes = {"num_items": ITEMS, "slate_size": SLOTS, "leaves": True}
    config = {"user_model": NODE, "items": "0123456789abcdef", "episode_length": TURNS, "item_ids": None, **sizes}
    learned = [tiny_member(seed) for seed in range(members)]
    save_user_model(path, learned, data, coverage_of(data, ITEMS, 2), 2, config, stream(0, "first"))
    return path
