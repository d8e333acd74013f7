"""Correct the actions that an encoder reads back from slates for what the encoder loses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slaterl.rankers.base import Ranker

ROUNDS = 60
MOST_DRAWS = 5000  # actions drawn in a round; no more than there are slates
RIDGE = 1e-3  # added to the mean squares of the regression's inputs, as a share of their mean
LEAST = 1e-6  # added as well, for slates that are all the same
AT_ONCE = 1000  # slates


class Calibration(NamedTuple):
    """The most likely input of a ranker, given what its encoder reads from the slate: `read @ weight + bias`."""

    weight: Tensor  # [A, A]
    bias: Tensor  # [A]
    match: float  # share of the shown items that the fitted Gaussian shows, too, in the same slots
    match_before: float  # the same without calibration


@torch.no_grad()
def calibrate(ranker: Ranker, slates: Tensor, generator: torch.Generator) -> Calibration:
    """Learn how a ranker's inputs follow from what its encoder reads from a behaviour's slates [M, S].

    A ranker shows one slate for a whole region of inputs. Its encoder returns one point of it, near the middle of
    the data that it was trained on. So what is read back varies less than the inputs did, around another mean, and that
    mean decodes to other slates. Expectation-maximisation (Dempster et al. 1977) for Gaussian inputs z undoes this:

    - draw z from the current Gaussian, and regress z on encode(rank(z)) linearly (E-step, by simulation);
    - apply the regression to what is read from the behaviour's slates. The mean of the results, and their covariance
      plus that of the residuals, are the next Gaussian (M-step).

    The first Gaussian is that of the readings themselves. The result is the one that shows the items most as the
    behaviour does. For slates that the ranker cannot show, such as random ones, this is often the first.

    Args:
        generator: source of the draws, on the device of the slates.
    """
    read = read_latents(ranker, slates)
    draws, width = min(MOST_DRAWS, len(slates)), read.shape[1]
    weight, bias = torch.eye(width, device=read.device), torch.zeros(width, device=read.device)
    residual = torch.zeros_like(weight)
    found: list[Calibration] = []
    for _ in range(ROUNDS + 1):
        labels = read @ weight + bias
        factor = _factor(_covariance(labels) + residual)
        noise = torch.randn(draws, width, generator=generator, device=read.device)
        drawn = labels.mean(0) + noise @ factor.T
        shown = torch.cat([ranker.rank(part) for part in drawn.split(AT_ONCE)])
        match = overlap(slates, shown)
        found.append(Calibration(weight, bias, match, found[0].match if found else match))
        read_again = read_latents(ranker, shown)
        weight, bias = _regression(read_again, drawn)
        residual = _covariance(drawn - read_again @ weight - bias)
    return max(found, key=lambda calibration: calibration.match)


@torch.no_grad()
def read_latents(ranker: Ranker, slates: Tensor) -> Tensor:
    """Return what a ranker's encoder reads from slates [M, S] without clicks, in latent units [M, A]."""
    return torch.cat([ranker.encode(part, torch.zeros_like(part)) for part in slates.split(AT_ONCE)])


def overlap(slates: Tensor, others: Tensor) -> float:
    """Return the overlap of two sets of slates [M, S] and [L, S]: 1 if each slot shows each item equally often."""
    slots = slates.shape[1]
    num_items = int(max(slates.max(), others.max())) + 1
    place = num_items * torch.arange(slots, device=slates.device)
    shares = [
        torch.bincount((part.long() + place).flatten(), minlength=slots * num_items).double() / part.numel()
        for part in (slates, others)
    ]
    return torch.minimum(*shares).sum().item()


def _regression(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression of targets [M, A] on inputs [M, A]. Returns weight [A, A] and bias [A]."""
    centered = (inputs - inputs.mean(0)).double()
    square = centered.T @ centered
    square.diagonal().add_(RIDGE * square.diagonal().mean() + LEAST * len(inputs))
    weight = torch.linalg.solve(square, centered.T @ targets.double()).to(inputs.dtype)
    return weight, targets.mean(0) - inputs.mean(0) @ weight


def _covariance(rows: Tensor) -> Tensor:
    centered = rows - rows.mean(0)
    return centered.T @ centered / len(rows)


def _factor(covariance: Tensor) -> Tensor:
    """Return a factor F of a covariance F @ F.T [A, A] that may be singular, such as that of one slate."""
    variances, axes = torch.linalg.eigh(covariance)
    return axes * variances.clamp(min=0).sqrt()
