"""Denoising diffusion: a schedule of noise, steps from noise to data, and a network that knows the step.

Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, with the variance-preserving schedule of
Xiao et al., arXiv 2112.07804, which Diffusion-QL uses for few steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

LEAST_NOISE, MOST_NOISE = 0.1, 10.0  # rates of the noise at the first and at the last step, times the number of steps
TIME_DIM = 16  # width of a step's embedding


def variance_preserving(steps: int) -> Tensor:
    """Return the variances beta_1..beta_T [T] of the noise that each step adds, in double precision."""
    step = torch.arange(1, steps + 1, dtype=torch.float64)
    rate = LEAST_NOISE / steps + (MOST_NOISE - LEAST_NOISE) * (2 * step - 1) / (2 * steps**2)
    return 1 - (-rate).exp()


class Diffusion(nn.Module):
    """Noise that is added to data in [-1, 1] in T steps, and removed again. Step 0 is the one next to the data.

    It has no parameters. Its numbers follow from T, so checkpoints leave them out.
    """

    keep: Tensor
    spread: Tensor
    of_clean: Tensor
    of_noisy: Tensor
    deviation: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        beta = variance_preserving(steps)
        kept = (1 - beta).cumprod(0)  # share of the data's variance that is left after each step
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        numbers = {
            "keep": kept.sqrt(),
            "spread": (1 - kept).sqrt(),
            # mean and deviation of q(x_{t-1} | x_t, x_0) (equation 7 of DDPM)
            "of_clean": beta * before.sqrt() / (1 - kept),
            "of_noisy": (1 - before) * (1 - beta).sqrt() / (1 - kept),
            "deviation": (beta * (1 - before) / (1 - kept)).sqrt(),
        }
        for name, value in numbers.items():
            self.register_buffer(name, value.float(), persistent=False)

    def noised(self, clean: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Return x_t for data and standard normal noise [..., A], after the steps [...]: [..., A]."""
        return self.keep[step].unsqueeze(-1) * clean + self.spread[step].unsqueeze(-1) * noise

    def clean(self, x: Tensor, noise: Tensor, step: int) -> Tensor:
        """Estimate the data in x_t [...] from its noise, clipped to [-1, 1]."""
        return ((x - self.spread[step] * noise) / self.keep[step]).clamp(-1, 1)

    def ladder(self, count: int) -> list[int]:
        """Return `count` of the T steps, evenly spaced, from the last one down to step 0; one alone is the last."""
        last = self.steps - 1
        return [last - round(last * i / max(count - 1, 1)) for i in range(count)]

    def implicit(self, predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, ladder: Sequence[int]) -> Tensor:
        """Go from noisy data to data without noise on the way (DDIM, Song et al., arXiv 2010.02502, equation 12).

        Args:
            predict: returns the noise in x_t [...] at a step [].
            x: [...] noisy data at the first step of the ladder.
            ladder: falling steps; the data follow the last one.

        Returns:
            [...] in [-1, 1].
        """
        for place, step in enumerate(ladder):
            clean = self.clean(x, predict(x, torch.full((), step, device=x.device)), step)
            if place + 1 == len(ladder):
                break
            noise = (x - self.keep[step] * clean) / self.spread[step]  # of the clipped data
            lower = ladder[place + 1]
            x = self.keep[lower] * clean + self.spread[lower] * noise
        return clean

    def denoised(self, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor) -> Tensor:
        """Go from noise to data in T steps (algorithm 2 of DDPM, with clipped estimates of the data).

        Args:
            predict: returns the noise in x_t [..., A] at a step [].
            noise: [T, ..., A] standard normal: x_T first, and then what each step but the last adds again.

        Returns:
            [..., A] in [-1, 1].
        """
        x = noise[0]
        for step in reversed(range(self.steps)):
            found = predict(x, torch.full((), step, device=x.device))
            clean = self.clean(x, found, step)
            x = self.of_clean[step] * clean + self.of_noisy[step] * x
            if step > 0:
                x = x + self.deviation[step] * noise[self.steps - step]
        return x


class StepEmbedding(nn.Module):
    """Embed numbers of steps [...] by sines, cosines and two layers: [..., TIME_DIM]."""

    frequency: Tensor

    def __init__(self) -> None:
        super().__init__()
        half = TIME_DIM // 2
        exponent = torch.arange(half, dtype=torch.float64) / (half - 1)
        self.register_buffer("frequency", (-math.log(10_000) * exponent).exp().float(), persistent=False)
        self.layers = mish_mlp(TIME_DIM, [2 * TIME_DIM], TIME_DIM)

    def forward(self, step: Tensor) -> Tensor:
        angle = step.unsqueeze(-1) * self.frequency
        return self.layers(torch.cat([angle.sin(), angle.cos()], dim=-1))


class Denoiser(nn.Module):
    """Predict the noise in actions at a step, given belief states."""

    def __init__(self, state_dim: int, action_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.embedding = StepEmbedding()
        self.layers = mish_mlp(state_dim + action_dim + TIME_DIM, hidden, action_dim)

    def forward(self, state: Tensor, noisy: Tensor, step: Tensor) -> Tensor:
        """States [..., state], noisy actions [..., A] and steps [...] or [] -> noise [..., A]."""
        time = self.embedding(step).expand(*noisy.shape[:-1], -1)
        return self.layers(torch.cat([state, noisy, time], dim=-1))


def mish_mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Build linear layers with Mish between them, which is smooth in the noise, unlike ReLU."""
    parts: list[nn.Module] = []
    for fan_in, width in zip([inputs, *hidden], hidden, strict=False):
        parts += [nn.Linear(fan_in, width), nn.Mish()]
    return nn.Sequential(*parts, nn.Linear(hidden[-1], outputs))
