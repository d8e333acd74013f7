"""Rankers turn an agent's action into a slate."""

from __future__ import annotations

import hashlib
from typing import ClassVar

import torch
from torch import Tensor, nn

from slaterl.layers import in_blocks, product
from slaterl.networks import with_gumbel_noise
from slaterl.runtime import exact_products


class Ranker(nn.Module):
    """Map latent actions to slates, and slates back to latent actions.

    Agents act in [-1, 1]^A. The action box (center and half-width of each latent dimension, part of the state dict)
    maps this range to latent units.

    Args:
        unique: fill slates without repeats.
        temperature: of the draws of `serve`; 0 always shows the items with the largest scores.

    Attributes:
        PRETRAINED: whether stage=pretrain trains it before an agent uses it.
        action_dim: A.
        center, half_width: [A].
    """

    PRETRAINED: ClassVar[bool] = False
    center: Tensor
    half_width: Tensor

    def __init__(self, action_dim: int, unique: bool, temperature: float = 0.0) -> None:
        super().__init__()
        self.action_dim, self.unique, self.temperature = action_dim, unique, temperature
        self.register_buffer("center", torch.zeros(action_dim))
        self.register_buffer("half_width", torch.ones(action_dim))

    def set_box(self, low: Tensor, high: Tensor) -> None:
        """Map [-1, 1] to [low, high], each [A]."""
        self.half_width.copy_((high - low) / 2)
        self.center.copy_((high + low) / 2)

    def to_latent(self, action: Tensor) -> Tensor:
        """Map actions [..., A] in [-1, 1] to latent units."""
        return torch.addcmul(self.center, self.half_width, action)

    def to_action(self, latent: Tensor) -> Tensor:
        """Invert to_latent, clipped to [-1, 1]; 0 in a dimension whose box has no width."""
        tiny = torch.finfo(self.half_width.dtype).tiny
        return ((latent - self.center) / self.half_width.clamp(min=tiny)).clamp(-1, 1)

    def random_action(self, num_users: int, generator: torch.Generator) -> Tensor:
        """Draw uniform actions [B, A] in the middle half of the box."""
        return torch.rand(num_users, self.action_dim, generator=generator, device=generator.device) - 0.5

    def rank(self, latent: Tensor) -> Tensor:
        """Map latent actions [B, A] to the slates [B, S] of the items with the largest scores."""
        raise NotImplementedError

    def draw(self, latent: Tensor, generator: torch.Generator) -> Tensor:
        """Map latent actions [B, A] to slates [B, S] of items drawn from softmax(scores / temperature), slot by slot.

        If unique, a slot draws among the items that are not on the slate yet.
        """
        raise NotImplementedError

    def serve(self, latent: Tensor, generator: torch.Generator | None) -> Tensor:
        """Map latent actions [B, A] to the slates [B, S] that users see.

        `draw` needs a generator and a temperature above 0. Otherwise this is `rank`, so a policy without exploration
        shows the same slates every time.
        """
        return self.draw(latent, generator) if self.temperature and generator is not None else self.rank(latent)

    def encode(self, slate: Tensor, clicks: Tensor) -> Tensor:
        """Map slates and clicks [B, S] to latent actions [B, A], so that an agent can learn from any slate."""
        raise NotImplementedError

    def action_of(self, slates: Tensor) -> Tensor:
        """Return the actions [B, A] in [-1, 1] of slates [B, S], encoded without clicks.

        With clicks, the encoder would write the reward into the action. Critics would read it there, and a policy
        would learn to promise clicks.
        """
        return self.to_action(self.encode(slates, torch.zeros_like(slates)))

    def place_of(self, slates: Tensor) -> Tensor:
        """Return the actions [B, A] of slates [B, S] without the limits of the box, for networks that read slates.

        An encoder can read a policy's slates far from the actions that made them. A box that was fitted to actions, or
        to calibrated labels, can then lie far from what is read. Clipped to it, different slates would look the same.
        A dimension whose box has no width gives 0.
        """
        latent = self.encode(slates, torch.zeros_like(slates))
        wide = self.half_width > 0
        return ((latent - self.center) / self.half_width.where(wide, 1.0)).where(wide, 0.0)

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with any bit of the weights or the box, with the class, and with `unique`.

        With equal fingerprints `rank` gives the same slate for an action in [-1, 1]. A temperature only changes draws.
        """
        digest = hashlib.sha256(f"{type(self).__name__} {self.unique}".encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @exact_products()
    def best_by_slot(self, queries: Tensor, items: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the item with the largest inner product in each slot; if unique, among items not on the slate yet.

        Args:
            queries: [B, S, E]; items: [N, E].
            generator: if given, items are drawn as `draw` says.

        Returns:
            slates [B, S].
        """
        blocks = in_blocks(queries, queries.shape[1] * len(items))
        scores = (product(block.flatten(0, 1), items).unflatten(0, block.shape[:2]) for block in blocks)
        return torch.cat([best_of(self.tempered(each, generator), self.unique) for each in scores])

    def tempered(self, scores: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return scores [..., N] whose largest is a draw from softmax(scores / temperature); as given if no generator.

        A draw among some of the items is the largest of their results.
        """
        return scores if generator is None else with_gumbel_noise(scores / self.temperature, generator)


def best_of(scores: Tensor, unique: bool) -> Tensor:
    """Return the slates [B, S] of the items with the largest scores [B, S, N]; if unique, without repeats.

    Slots choose in their order.
    """
    if not unique:
        return argmax(scores)
    taken = torch.zeros_like(scores[:, 0], dtype=torch.bool)  # [B, N]
    slots = []
    for slot in scores.unbind(1):
        slots.append(argmax(slot.masked_fill(taken, -torch.inf)).unsqueeze(1))
        taken = taken.scatter(1, slots[-1], True)
    return torch.cat(slots, dim=1)


def argmax(scores: Tensor) -> Tensor:
    """Return the place of the first largest score, [..., N] -> [...].

    On the CPU, NumPy searches the same memory nine times as fast as torch 2.13. A graph of torch.export has no NumPy.
    """
    if scores.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.as_tensor(scores.detach().numpy().argmax(-1))
    return scores.argmax(-1)
