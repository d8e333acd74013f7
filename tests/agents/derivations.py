"""Helpers for derivations of learners in NumPy: returns, drifted targets, difference quotients, optimisers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from slaterl.config.build import make
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.seeds import seeded_weights
from slaterl.training.learner import Learner
from tests.agents.test_sac import gradients
from tests.helpers import Array


def rewards_of(batch: Trajectories) -> Array:
    """Return the clicks of every turn, [B, H]. Frame 0 is no turn."""
    return batch.clicks.numpy()[:, 1:].sum(2).astype(float)


def returns_of(batch: Trajectories, gamma: float) -> Array:
    """Return the discounted sum of clicks from each turn on, [B, H]."""
    rewards = rewards_of(batch)
    since = np.subtract.outer(np.arange(rewards.shape[1]), np.arange(rewards.shape[1]))
    return rewards @ np.where(since >= 0, gamma ** np.maximum(since, 0.0), 0)


def drift(*modules: nn.Module) -> None:
    """Move target networks away from the online ones, as training does."""
    with torch.no_grad(), seeded_weights(0, "tiny targets"):
        for module in modules:
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))


def assert_gradients(
    learner: Learner, before: dict[str, Array], loss: Callable[[dict[str, Array]], float], names: Iterable[str]
) -> None:
    """Compare the gradients of the last update with difference quotients of `loss`, along random directions.

    The comparison fails if a target is not held fixed, or if another loss adds to a gradient.
    """
    found = gradients(learner)
    random, step = np.random.default_rng(0), 1e-6
    for name in names:
        direction = random.standard_normal(before[name].shape)
        up, down = (loss({**before, name: before[name] + s * direction}) for s in (step, -step))
        slope = float((found[name].double().numpy() * direction).sum())
        assert slope != 0, name
        assert slope == pytest.approx((up - down) / (2 * step), rel=1e-3, abs=1e-6), name


def parameters_of(learner: Learner, *modules: str) -> list[str]:
    """Return the names of the parameters of these modules."""
    names = [name for name, _ in learner.named_parameters() if name.split(".")[0] in modules]
    assert {name.split(".")[0] for name in names} == set(modules)
    return names


def assert_named(kind: type, wrong: dict[str, Any]) -> None:
    """Check that a class refuses a wrong value by its signature, with a message that names the setting."""
    with pytest.raises(UserError, match=rf"agent\.{next(iter(wrong))}="):
        make({"_target_": f"{kind.__module__}.{kind.__qualname__}", **wrong}, "agent")


def stepped_by(learner: Learner) -> dict[str, str]:
    """Return the optimiser of each module, leaving out modules that no optimiser knows as a whole."""
    owners: dict[str, set[str | None]] = {}
    owned = {
        id(p): key for key, optimizer in learner.optim.items() for g in optimizer.param_groups for p in g["params"]
    }
    for name, parameter in learner.named_parameters():
        owners.setdefault(name.split(".")[0], set()).add(owned.get(id(parameter)))
    return {module: owner for module, (owner, *rest) in owners.items() if owner is not None and not rest}


def assert_learning_rates(learner: Learner, batch: Trajectories, rates: dict[str, float]) -> None:
    """Check each optimiser's rate: Adam's first step is the learning rate against the gradient's sign."""
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    learner.update(batch)
    owners = stepped_by(learner)
    for name, gradient in gradients(learner).items():
        moved = dict(learner.named_parameters())[name].detach() - before[name]
        clear = gradient.abs() > 1e-4  # Adam's epsilon is negligible here
        expected = -rates[owners[name.split(".")[0]]] * gradient.sign()
        assert clear.any(), name
        torch.testing.assert_close(moved[clear], expected[clear], rtol=1e-3, atol=1e-6)
