"""What determines an agent besides its own settings: also where its ranker is not one that slaterl has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, open_dict
from torch import Tensor

from slaterl.errors import UserError
from slaterl.rankers.base import Ranker
from slaterl.rankers.gems import GeMS
from slaterl.run import run_stage
from slaterl.runs.products import product_of
from tests.helpers import compose_config

SMALL = ["scale=smoke", "device=cpu", "threads=1", "env.num_items=60", "env.slate_size=4", "env.episode_length=7"]


class Stripes(Ranker):
    """Slates of neighbouring items, from where the latent's first dimension points."""

    def __init__(self, *, num_items: int, slate_size: int, latent_dim: int, unique: bool) -> None:
        super().__init__(action_dim=latent_dim, unique=unique)
        self.num_items, self.slate_size = num_items, slate_size

    def rank(self, latent: Tensor) -> Tensor:
        first = ((latent[:, :1] + 1) / 2 * (self.num_items - self.slate_size)).long()
        return first + torch.arange(self.slate_size)


class Compared(Stripes):
    """Asks for item embeddings, and could not take others later."""

    def __init__(self, *, item_embeddings: Tensor, **others: Any) -> None:
        super().__init__(**others)


class SameGeMS(GeMS):
    pass


def config(ranker: type[Ranker], *more: str, **settings: Any) -> DictConfig:
    """Of an agent that acts through a ranker whose file could be a user's."""
    cfg = compose_config(*SMALL, "agent=td3", "ranker=none", *more)
    with open_dict(cfg):
        cfg.ranker = {"_target_": f"{__name__}.{ranker.__name__}", "name": "own", "unique": True, **settings}
    return cfg


def digest(cfg: DictConfig) -> str:
    return product_of(cfg, "online").run.digest


def test_a_rankers_settings_are_the_runs() -> None:
    assert digest(config(Stripes, latent_dim=3)) == digest(config(Stripes, latent_dim=3))
    assert digest(config(Stripes, latent_dim=3)) != digest(config(Stripes, latent_dim=4))


def test_ranker_that_cannot_take_factors_is_refused() -> None:
    assert digest(config(Compared, "item_embeddings=ideal", latent_dim=3))
    with pytest.raises(UserError, match="item_embeddings=mf: Compared has no method set_items to load them"):
        product_of(config(Compared, "item_embeddings=mf", latent_dim=3), "online").begin()


def test_kind_of_gems_is_pretrained(tmp_path: Path) -> None:
    settings = compose_config(*SMALL, "ranker=gems").ranker
    cfg = config(SameGeMS, "stage=pretrain", f"paths.root={tmp_path}")
    with open_dict(cfg):
        cfg.ranker = {**settings, "_target_": f"{__name__}.SameGeMS", "name": "own"}
    run_stage(cfg)
    assert list(tmp_path.glob("pretrain/*/own-*/ranker.ckpt"))
    others = compose_config("item_embeddings=mf")
    with open_dict(cfg):
        cfg.stage, cfg.item_embeddings = others.stage, others.item_embeddings
    with pytest.raises(UserError, match="item_embeddings=mf: ranker=own learns its own"):
        run_stage(cfg)
