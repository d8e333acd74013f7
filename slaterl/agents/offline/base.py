"""Base class of the offline agents that act through a ranker, and the actions that they learn from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from slaterl.agents.base import LatentAgent
from slaterl.agents.losses import mean, valid_turns
from slaterl.agents.offline.calibration import calibrate, read_latents
from slaterl.beliefs.base import Belief
from slaterl.console import note
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.rankers.base import Ranker
from slaterl.seeds import stream

MakeBelief = Callable[[], Belief]

CALIBRATED_ON = 20_000  # slates
LEAST_MATCH = 0.5  # of labels, see Calibration
DEVIATIONS = 2.5  # half-width of the agent's action box, in standard deviations of the data
LEAST_DEVIATION = 0.01  # of an action in the ranker's own box, where data hardly vary


class OfflineAgent(LatentAgent):
    """An agent that learns from recorded trajectories. A subclass gives `action` and `update`.

    It learns actions of its own ranker, in [-1, 1]: those that were recorded, if the data were collected through it.
    Otherwise a_t is read from the slate of frame t + 1, see `with_labels`. So it can learn from any behaviour: random
    slates, another ranker, a log.

    Before training, `prepare` narrows the action box of the agent's ranker to the data: [-1, 1] becomes the mean
    -/+ 2.5 standard deviations in each dimension, inside the old box. So actions of the data have a deviation of 0.4
    (if they are Gaussian; 1.2 % are clipped). In the box of the ranker one policy's actions have 0.1 to 0.2.

    Constants of papers assume actions that fill [-1, 1], with a deviation of about 0.6. A distance of one deviation
    costs (0.4 / 0.6)^2 = 0.45 of what it costs there. In the ranker's box it would be 0.03 to 0.1.
    There, TD3 + BC's alpha = 2.5 and ReBRAC's penalties of 0.01 hardly hold a policy.

    The box is part of the ranker, and so of the agent's state dict and checkpoint. Losses, densities and what `action`
    returns are in this box; critics, slates and other agents get latent units, as from every LatentAgent.

    Args:
        ranker: the ranker that the agent acts through, already trained.
        belief: makes a belief; called once for each network that reads one.
        generator: random stream of the updates.

    Attributes:
        data_low, data_high: [A] mean -/+ two standard deviations of the data's actions, set by `prepare`.
    """

    LEARNS_FROM: ClassVar[Literal["simulator", "dataset"]] = "dataset"

    data_low: Tensor
    data_high: Tensor

    def __init__(self, ranker: Ranker, belief: MakeBelief, generator: torch.Generator) -> None:
        super().__init__(ranker)
        self.generators["update"] = generator
        self.actor_belief = of_frames(belief) if self.LEARNS_FROM == "dataset" else belief()
        self.register_buffer("data_low", torch.full((ranker.action_dim,), -1.0))
        self.register_buffer("data_high", torch.full((ranker.action_dim,), 1.0))
        self.found: dict[str, Tensor] | None = None  # by `prepare`
        self.given: Mapping[str, Tensor] | None = None  # the same of an earlier start, in a resumed run
        self.box: tuple[Tensor, Tensor] | None = None  # then also the fitted box: center and half-width

    @torch.no_grad()
    def prepare(self, data: Trajectories) -> Trajectories:
        """Called once before training: fits the action box to the actions [N, H, A], read from slates if missing."""
        self.found = None
        found = self.preparation() if self.given is None else dict(self.given)
        self.ranker.center.copy_(found["center"])
        self.ranker.half_width.copy_(found["half_width"])
        if data.actions is None:
            if self.ranker.PRETRAINED and "weight" not in found:
                found["weight"], found["bias"] = calibration_of(data, self.ranker)
            data = with_labels(data, self.ranker, (found["weight"], found["bias"]) if "weight" in found else None)
        self.found = found
        return self.fit_box(data)

    def preparation(self) -> dict[str, Tensor]:
        """Return the ranker's own box [A] (center and half_width), and the calibration of the labels if they have one.

        The labels follow from these: see `Calibration`.
        """
        if self.found is not None:
            return dict(self.found)
        return {"center": self.ranker.center.clone(), "half_width": self.ranker.half_width.clone()}

    def prepare_again(self, data: Trajectories, found: Mapping[str, Tensor]) -> Trajectories:
        device = self.ranker.center.device
        self.given = {name: value.to(device) for name, value in found.items()}
        self.box = (self.ranker.center.clone(), self.ranker.half_width.clone())
        return super().prepare_again(data, found)

    def fit_box(self, data: Trajectories) -> Trajectories:
        """Fit the ranker's box to actions [N, H, A] of the old box. Return the data with actions of the new box."""
        assert data.actions is not None
        mask = valid_turns(data)
        deviation, center = _spread(data.actions, mask)
        reach = DEVIATIONS * deviation.clamp(min=LEAST_DEVIATION)
        bounds = self.ranker.to_latent(torch.stack([center - reach, center + reach]).clamp(-1, 1))
        latent = self.ranker.to_latent(data.actions)
        self.ranker.set_box(*bounds)
        if self.box is not None:  # of the checkpoint that a run resumes from
            self.ranker.center.copy_(self.box[0])
            self.ranker.half_width.copy_(self.box[1])
        actions = self.ranker.to_action(latent)
        deviation, center = _spread(actions, mask)
        self.data_low.copy_(center - 2 * deviation)
        self.data_high.copy_(center + 2 * deviation)
        return dataclasses.replace(data, actions=actions)

    def beyond_data(self, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the share of components of actions [..., A] more than two deviations from the data's mean.

        Args:
            mask: [B, H] the turns of sessions, for actions [B, H, A]; None for all.
        """
        return mean(((action < self.data_low) | (action > self.data_high)).float(), mask, of_vectors=True)


def _spread(actions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return deviation and mean [A] of actions [N, H, A] over the turns of a mask [N, H]; None for all."""
    if mask is None:
        return torch.std_mean(actions, dim=(0, 1), correction=0)
    count, there = mask.sum(), mask.unsqueeze(-1)
    center = actions.where(there, 0.0).sum((0, 1)) / count
    return ((actions - center).square().where(there, 0.0).sum((0, 1)) / count).sqrt(), center


def of_frames(belief: MakeBelief) -> Belief:
    """Make a belief. Raise UserError if it reads more than frames, which is all that a dataset has."""
    made = belief()
    if made.sees_hidden:
        raise UserError("belief=none: recorded trajectories do not hold the hidden state; use belief=gru")
    return made


@torch.no_grad()
def with_actions(data: Trajectories, ranker: Ranker) -> Trajectories:
    """Add the actions [N, H, A] in [-1, 1] that a ranker's encoder reads from the slates; of padding, any."""
    actions = []
    for start in range(0, len(data), 256):
        part = data[start : start + 256]
        actions.append(ranker.action_of(part.slates[:, 1:].flatten(0, 1)).unflatten(0, (len(part), -1)))
    return dataclasses.replace(data, actions=torch.cat(actions))


@torch.no_grad()
def with_labels(data: Trajectories, ranker: Ranker, calibration: tuple[Tensor, Tensor] | None = None) -> Trajectories:
    """Add the actions [N, H, A] in [-1, 1] that a ranker reads from the slates, calibrated on them (`calibrate`).

    Rankers in the space of item embeddings are not calibrated: their slates do not depend on the scale of an action, so
    nothing would keep the fitted Gaussian from shrinking.

    Args:
        calibration: weight [A, A] and bias [A] of an earlier one; None fits one to the data.
    """
    if not ranker.PRETRAINED:
        return with_actions(data, ranker)
    weight, bias = calibration or calibration_of(data, ranker)
    slates = data.slates[:, 1:].flatten(0, 1)
    actions = [ranker.to_action(read_latents(ranker, part) @ weight + bias) for part in slates.split(25_600)]
    return dataclasses.replace(data, actions=torch.cat(actions).unflatten(0, (len(data), -1)))


@torch.no_grad()
def calibration_of(data: Trajectories, ranker: Ranker) -> tuple[Tensor, Tensor]:
    """Calibrate labels on slates of the data, and say how well they fit. Returns weight [A, A] and bias [A]."""
    slates = data.slates[:, 1:].flatten(0, 1)
    valid = data.mask.flatten().nonzero().squeeze(1)
    spread_out = torch.linspace(0, len(valid) - 1, min(len(valid), CALIBRATED_ON), dtype=torch.float64).long()
    generator = stream(0, "calibration", slates.device)
    calibration = calibrate(ranker, slates[valid[spread_out.to(valid.device)]], generator)
    note(
        f"labels read back: a Gaussian fitted to them shows {calibration.match_before:.0%} of the items that the data "
        f"show, slot by slot; calibrated, {calibration.match:.0%}"
    )
    if calibration.match < LEAST_MATCH:
        note(
            "warning: this is less than half, so a Gaussian policy through this ranker cannot imitate the data; "
            "agent=slate_bc can"
        )
    return calibration.weight, calibration.bias


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Return the Euclidean norm of all gradients of an optimiser's parameters."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return torch.stack(torch._foreach_norm(gradients)).norm()
