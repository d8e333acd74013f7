"""Small things that many tests are made of: an environment, a ranker, an agent, trajectories, in few numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import nn

from slaterl.agents.online.sac import SAC
from slaterl.beliefs.gru import GRUBelief
from slaterl.data.trajectories import Trajectories, smallest_int
from slaterl.envs.catalog import generate
from slaterl.envs.click_models import PositionBasedModel
from slaterl.envs.topic_rec import TopicRec
from slaterl.paths import CONF
from slaterl.rankers.gems import GeMS, SlateVAE
from slaterl.rankers.gems_transformer import GeMSTransformer
from slaterl.seeds import seeded_weights, stream

Array = NDArray[np.float64]

ITEMS, SLOTS, TURNS, LATENT = 30, 4, 6, 3
TINY_VAE: dict[str, Any] = dict(
    num_items=ITEMS,
    slate_size=SLOTS,
    item_dim=5,
    latent_dim=LATENT,
    encoder_hidden=[16, 8],
    lambda_click=0.5,
    lambda_KL=1.0,
    lambda_prior=0.0,
    posterior_noise="variance",
    unique=False,
)
OTHER_ENVS = {"learned", "learned_mopo", "learned_dorl", "log"}  # need a file of their own, or are no simulator
SIMULATORS = sorted({file.stem for file in (CONF / "env").glob("*.yaml")} - OTHER_ENVS)


def tiny_env(**changes: Any) -> TopicRec:
    """30 items of 3 topics, slates of 4, episodes of 6 turns; boredom sets in within an episode."""
    settings: dict[str, Any] = dict(
        name="tiny",
        item_embeddings=generate(ITEMS, 3, 2, 1.0, seed=1),
        click_model=PositionBasedModel(decay=0.85, bottom_weight=0.0),
        num_items=ITEMS,
        num_topics=3,
        topic_size=2,
        slate_size=SLOTS,
        episode_length=TURNS,
        omega=0.9,
        offset=0.28,
        slope=100,
        boredom_threshold=3,
        boredom_moving_window=3,
        boredom_timeout=2,
        recent_items_maxlen=5,
        diversity_threshold=3,
        diversity_penalty=2.0,
        short_term_boost=1.0,
    )
    return TopicRec(**(settings | changes))


def tiny_gems(seed: int = 0, **changes: Any) -> GeMS:
    """An untrained GeMS with an action box that is not [-1, 1]."""
    with seeded_weights(seed, "tiny gems"):
        gems = GeMS(**(TINY_VAE | dict(decoder_hidden=[8, 16]) | changes))
    return _boxed(gems)


def tiny_transformer(seed: int = 0, drift: float = 0.3, **changes: Any) -> GeMSTransformer:
    """An untrained GeMS with a transformer, with a number of its own in every parameter, norms and biases included."""
    sizes = dict(decoder_dim=8, decoder_layers=2, decoder_heads=2)
    with seeded_weights(seed, "tiny transformer"):
        gems = GeMSTransformer(**(TINY_VAE | sizes | changes))
        with torch.no_grad():
            for name, parameter in gems.named_parameters():
                if name != "prior":
                    parameter.add_(drift * torch.randn_like(parameter))
    return _boxed(gems)


def _boxed(ranker: SlateVAE) -> Any:
    center = torch.linspace(-1, 2, ranker.action_dim)
    half_width = torch.linspace(1.5, 3, ranker.action_dim)
    ranker.set_box(center - half_width, center + half_width)
    return ranker


def tiny_sac(seed: int = 0, drift: float = 0.1, **changes: Any) -> SAC:
    """An untrained SAC over tiny_gems. Every learning rate is another number, so that none can stand for another.

    Args:
        drift: how far the target critics are from the critics, as they are after a while.
    """
    sizes = dict(num_items=ITEMS, slate_size=SLOTS)
    settings: dict[str, Any] = dict(
        ranker=tiny_gems(),
        belief=partial(GRUBelief, **sizes, item_dim=2, hidden_dim=5),
        generator=stream(seed, "update"),
        gamma=0.8,
        tau=0.1,
        q_lr=1e-3,
        pi_lr=3e-3,
        alpha_lr=2e-3,
        q_hidden=[16],
        pi_hidden=[12, 8],
        num_critics=2,
        initial_alpha=0.5,
        target_entropy_scale=1.0,
    )
    with seeded_weights(seed, "tiny sac"):
        agent = SAC(**(settings | changes))
    with torch.no_grad(), seeded_weights(seed, "tiny targets"):
        for parameter in agent.target_critics.parameters():
            parameter.add_(drift * torch.randn_like(parameter))
    return agent


def tiny_trajectories(count: int, seed: int = 0, turns: int = TURNS) -> Trajectories:
    """Random frames and actions, in the types that a rollout has."""
    generator = stream(seed, "tiny trajectories")
    frames = (count, turns + 1, SLOTS)
    return Trajectories(
        slates=torch.randint(ITEMS, frames, generator=generator).to(smallest_int(ITEMS)),
        clicks=(torch.rand(frames, generator=generator) < 0.4).to(torch.uint8),
        actions=torch.rand(count, turns, LATENT, generator=generator) * 2 - 1,
    )


def arrays(module: nn.Module) -> dict[str, Array]:
    """A copy of the state dict in NumPy, double precision."""
    return {name: value.detach().numpy().astype(np.float64) for name, value in module.state_dict().items()}


def mlp_forward(weights: dict[str, Array], prefix: str, inputs: Array) -> Array:
    """Linear layers `prefix0`, `prefix2`, ... with ReLU between them, in NumPy."""
    numbers = sorted(int(name[len(prefix) :].split(".")[0]) for name in weights if name.startswith(prefix))
    for number in sorted(set(numbers)):
        if number > 0:
            inputs = np.maximum(inputs, 0)
        inputs = inputs @ weights[f"{prefix}{number}.weight"].T + weights[f"{prefix}{number}.bias"]
    return inputs


def copy_of(generator: torch.Generator) -> torch.Generator:
    """Another generator in the same state."""
    return torch.Generator(device=generator.device).set_state(generator.get_state())


def same_columns(a: Trajectories, b: Trajectories) -> bool:
    """Equal bit for bit, with the same columns and types."""
    left, right = a.columns(), b.columns()
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def compose_config(*overrides: str) -> DictConfig:
    """The configuration as the command line would compose it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))
